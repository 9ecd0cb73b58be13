"""The tactic for regions without an anchor: pointwise chains, index maps, reductions, norms.

`loopnest` plans the loops, `tile` cuts them into blocks, `Emitter` writes the expressions; here
they become one Triton kernel, with a range of blocks for each nest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from ..cpu import affine as A
from ..cpu import loopnest
from . import reduce as R
from . import types as ty
from .clamp import clamped
from .emit import Emitter, Frame, is_wide
from .tile import Tile, Unplannable, all_reduces, plan_tile

_MAX_NODES = 4000  # larger expressions would compile for too long
_DEFAULT_SMS = 132


@dataclass(frozen=True)
class LoopCandidate:
    """One way to cut the loops: how much larger than by default blocks are, in powers of two."""

    scale: int = 0

    def __str__(self) -> str:
        return f"x{2.0**self.scale:g}"


@register_tactic
class LoopTactic(Tactic):
    """Loop nests over expressions of the compute language."""

    name = "loops"
    target = "cuda"

    def refuse(self, region: Region, device: Any) -> str | None:
        if region.anchor is not None:
            return f"{region.anchor.op} is not a loop nest"
        if not region.stages:
            return "there is nothing to compute"
        return refusal(region.stages, region.outputs, getattr(device, "arch", 90))

    def candidates(self, region: Region, device: Any) -> Sequence[LoopCandidate]:
        reduces = any(isinstance(e, E.Reduce) for s in region.stages for e in E.walk(s.expr))
        return [LoopCandidate(n) for n in ((0, -1, -3, 1) if reduces else (0, 1, -1))]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        sms = getattr(device, "sms", _DEFAULT_SMS)
        pairs = getattr(device, "arch", 0) >= 90
        return build_loops(region.stages, region.outputs, sms, candidate, pairs)


def refusal(
    stages: Sequence[E.Stage], outputs: Sequence[Value], arch: int = 90
) -> str | None:
    """Why stages can't be a kernel of a compute capability, or None."""
    size = 0
    for s in stages:
        nodes = E.walk(s.expr)
        size += len(nodes)
        used = {s.out.dtype, *(x.dtype for x in nodes)}
        used |= {x.value.dtype for x in nodes if isinstance(x, E.Load)}
        for dt in used:
            if not ty.supported(dt):
                return f"element type {dt} is not supported in loops"
            if dt is T.f8e4m3 and arch < 89:
                return f"element type {dt} needs compute capability 8.9"
    if size > _MAX_NODES:
        return f"{size} expression nodes are too many"
    try:
        _tiles(stages, outputs, _DEFAULT_SMS, 0)
    except Unplannable as e:
        return str(e)
    return None


def build_loops(
    stages: Sequence[E.Stage], outputs: Sequence[Value], sms: int = _DEFAULT_SMS,
    candidate: LoopCandidate | None = None, pairs: bool = False,
) -> Kernel:
    """The kernel that computes ``outputs``.

    Args:
        pairs: Whether the device compares two integers of 16 bits at a time.

    Raises:
        Unplannable: If the stages can't be one kernel.
    """
    scale = candidate.scale if candidate else 0
    outputs = [v for v in outputs if all(d != 0 for d in v.dims)]
    if not outputs:
        return _nothing()
    stages = clamped(stages)
    tiles = _tiles(stages, outputs, sms, scale)
    touched = {ld.value for s in stages for ld in E.loads(s.expr)} | set(outputs)
    frame = Frame(is_wide(touched))
    frame.functions.exact, frame.functions.pairs = _rounds(stages), pairs
    for v in outputs:
        frame.pointer(v)
    parts: list[_Nest] = []
    for k, t in enumerate(tiles):
        parts.append(_Nest(t, frame, k, sum_counters(tiles[:k]), sum(p.workspace for p in parts)))
    body = _body(frame, parts)
    source = frame.source("KERNEL", body)
    kind = "reduce" if any(t.mode != "points" for t in tiles) else "loops"
    symbol = f"{kind}_" + hashlib.sha256(source.encode()).hexdigest()[:10]
    grid: D.DimLike = 0
    for t in tiles:
        grid = grid + t.grid
    launch = Launch(
        types=frame.types, grid=(grid,), warps=max(t.warps for t in tiles),
        stages=2, workspace=sum(p.workspace for p in parts), counters=sum_counters(tiles),
    )
    return Kernel(
        symbol, source.replace("def KERNEL(", f"def {symbol}("), frame.values,
        tuple(frame.dims), launch=launch, notes={"tiles": [str(t) for t in tiles]},
    )


def sum_counters(tiles: Sequence[Tile]) -> int:
    return sum(int(t.grid) // t.splits for t in tiles if t.splits > 1)  # type: ignore[arg-type]


def _rounds(stages: Sequence[E.Stage]) -> bool:
    """Whether quotients are rounded to integers, so that they must be exact."""
    return any(
        (isinstance(x, E.Unary) and x.fn in ("round", "floor", "ceil", "trunc"))
        or (isinstance(x, E.Cast) and x.dtype.is_int and x.x.dtype.is_float)
        for s in stages for x in E.walk(s.expr)
    )


def _nothing() -> Kernel:
    """For outputs without elements."""
    source = Frame().source("loops_nothing", ["pass"])
    return Kernel("loops_nothing", source, (), launch=Launch(grid=(1,), warps=1))


# --- from stages to tiles -----------------------------------------------------------------


def _tiles(
    stages: Sequence[E.Stage], outputs: Sequence[Value], sms: int, scale: int
) -> list[Tile]:
    outputs = [v for v in outputs if all(d != 0 for d in v.dims)]
    try:
        return [plan_tile(n, sms, scale) for n in _nests(stages, outputs)]
    except Unplannable:
        if len(outputs) < 2:
            raise
    return [
        plan_tile(n, sms, scale) for v in outputs for n in _nests(stages, [v])
    ]


def _nests(stages: Sequence[E.Stage], outputs: Sequence[Value]) -> list[loopnest.LoopNest]:
    """Nests in which every intermediate value is a register of its row."""
    work = pointwise_inlined(stages, outputs)
    for _ in range(len(stages) + 1):
        try:
            return loopnest.plan_in_registers(work, outputs)
        except loopnest.OtherPoints as e:
            if not any(s.out is e.value for s in work):
                break
            work = _inlined(work, e.value, outputs)
            if sum(len(E.walk(s.expr)) for s in work) > _MAX_NODES:
                break
    raise Unplannable("stages read each other's results at too many points")


def pointwise_inlined(
    stages: Sequence[E.Stage], outputs: Sequence[Value]
) -> list[E.Stage]:
    """Stages in which only those that reduce are read by others."""
    work = [E.Stage(s.out, s.vars, s.expr, s.meta) for s in stages]
    for s in list(work):
        if "concat" in s.meta or any(isinstance(x, E.Reduce) for x in E.walk(s.expr)):
            continue
        work = _inlined(work, s.out, outputs)
    return work


def _inlined(
    work: Sequence[E.Stage], value: Value, outputs: Sequence[Value]
) -> list[E.Stage]:
    """The stages with one written where it is read."""
    stage = next(s for s in work if s.out is value)
    out = []
    for s in work:
        if s is stage and value not in outputs and any(
            ld.value is value for k in work for ld in E.loads(k.expr)
        ):
            continue
        loads = any(ld.value is value for ld in E.loads(s.expr))
        expr = E.inline(s.expr, stage) if loads and s is not stage else s.expr
        out.append(E.Stage(s.out, s.vars, expr, s.meta))
    return out


# --- from tiles to text -------------------------------------------------------------------


def _body(frame: Frame, parts: Sequence[_Nest]) -> list[str]:
    wide = ".to(tl.int64)" if frame.wide else ""
    lines = [f"pid = tl.program_id(0){wide}"]
    if len(parts) == 1:
        return lines + parts[0].lines("pid")
    first: D.DimLike = 0
    for k, p in enumerate(parts):
        last = first + p.tile.grid
        if k < len(parts) - 1:
            lines.append(f"{'if' if k == 0 else 'elif'} pid < {frame.size(last)}:")
        else:
            lines.append("else:")
        own = p.lines(f"(pid - {frame.size(first)})" if k else "pid")
        lines += ["    " + line for line in own]
        first = last
    return lines


class _Nest:
    """Writes one nest of a kernel.

    Attributes:
        workspace: Bytes of memory it shares partial results in.
    """

    def __init__(self, tile: Tile, frame: Frame, number: int, counter: int, base: int):
        self.tile, self.frame, self.counter, self.base = tile, frame, counter, base
        self.prefix = "abcefghk"[number % 8] + ("" if number < 8 else f"{number}_")
        self.workspace = 0
        self.done: set[loopnest.Step] = set()
        if tile.splits > 1:
            frame.workspace = frame.counters = True
            rows = int(tile.grid) // tile.splits * tile.shape[0]  # type: ignore[call-overload]
            self.workspace = rows * tile.splits * 8 * sum(
                2 if r.fn.startswith("arg") else 1 for r in tile.reduces
            )

    def lines(self, pid: str) -> list[str]:
        """The nest's lines, for its block number ``pid``."""
        self.em = Emitter(
            self.frame, {}, self.tile.shape, self.tile.nest.lowerer, prefix=self.prefix + "t"
        )
        self._place(pid)
        if self.tile.mode == "points":
            self._columns(f"{self.prefix}1", self.em.lines)
            self._steps(self.tile.nest.steps)
        elif self.tile.mode == "rows":
            self._columns("0", self.em.lines)
            for v in self.tile.cols:
                self.em.block_axis[v] = 1
            self._steps(self.tile.nest.steps)
        else:
            for v in self.tile.cols:
                self.em.block_axis[v] = 1
            self._in_pieces()
        return self.em.lines

    # --- where a block stands --------------------------------------------------------------

    def _place(self, pid: str) -> None:
        """Binds the variables of the rows."""
        t, em, p = self.tile, self.em, self.prefix
        outer, along0, along1 = t.blocks
        rest = pid
        if along1 != 1:
            em.line(f"{p}1 = {rest} % {self.frame.size(along1)}")
            rest = f"({rest} // {self.frame.size(along1)})"
        else:
            em.line(f"{p}1 = 0")
        if outer != 1:
            if along0 != 1:
                em.line(f"{p}0 = {rest} % {self.frame.size(along0)}")
                rest = f"{rest} // {self.frame.size(along0)}"
            else:
                em.line(f"{p}0 = 0")
            em.line(f"{p}o = {rest}")
            em.bind_group(t.outer, f"{p}o")
        else:
            em.line(f"{p}0 = {rest}")
        if t.rows:
            self._axis(0, f"{p}0 * {t.shape[0]}", t.rows, t.row_total)

    def _axis(self, axis: int, start: str, variables: list[E.Var], total: D.DimLike) -> None:
        em, p, n = self.em, self.prefix, self.tile.shape[axis]
        at = "[:, None]" if axis == 0 else "[None, :]"
        begin = f"{start} + " if start != "0" else ""
        name = f"{p}{'rc'[axis]}"
        wide = ".to(tl.int64)" if self.frame.wide else ""
        em.line(f"{name} = {begin}tl.arange(0, {n}){at}{wide}")
        em.bind_group(variables, name, (axis,))
        em.masks.pop(axis, None)
        if isinstance(total, D.Dim) or int(total) % n:
            em.line(f"{name}m = {name} < {self.frame.size(total)}")
            em.masks[axis] = f"{name}m"

    def _columns(self, block: str, lines: list[str]) -> None:
        t = self.tile
        if t.cols:
            start = "0" if block == "0" else f"{block} * {t.shape[1]}"
            self._axis(1, start, t.cols, t.col_total)

    # --- steps --------------------------------------------------------------------------------

    def _steps(self, steps: Sequence[loopnest.Step]) -> None:
        for s in steps:
            self._step(s)

    def _step(self, s: loopnest.Step) -> None:
        em = self.em
        if s.at is not None:
            em.store(s.out, s.at, s.expr)
        if not s.inner and s is not self.tile.nest.steps[-1]:
            x = em.emit(s.expr)
            em.bind_result(s.out, x.text, x.axes, x.dt)
        self.done.add(s)

    # --- rows that are gone through in pieces ---------------------------------------------------

    def _in_pieces(self) -> None:
        """Rounds of reductions, each a loop over the row, then the loop that writes it."""
        t = self.tile
        waiting = list(t.reduces)
        while True:
            for s in t.nest.steps:
                if s not in self.done and not s.inner and self._ready(s.expr, waiting):
                    if t.mode == "split" and all_reduces([s]):
                        continue
                    self._step(s)
            now = [r for r in waiting if self._ready(r.body, waiting)]
            if not now:
                break
            self._reduce(now)
            waiting = [r for r in waiting if r not in now]
            if t.mode == "split":
                assert not waiting
                self._combine(now)
                return
        left = [s for s in t.nest.steps if s not in self.done]
        if left:
            self._loop(lambda: self._steps(left))

    def _ready(self, e: E.Expr, waiting: list[E.Reduce]) -> bool:
        """Whether nothing that ``e`` reads is still to be computed."""
        missing = {s.out for s in self.tile.nest.steps if s not in self.done}
        for x in A.walk([e]):
            if x in waiting or (isinstance(x, A.FlatLoad) and x.value in missing):
                return False
        return True

    def _loop(self, body: Any) -> None:
        """Runs ``body`` for every piece of the row that is this block's."""
        t, em, p = self.tile, self.em, self.prefix
        n, width = self.frame.size(t.col_total), t.shape[1]
        begin, end = "0", n
        if t.mode == "split":
            pieces = -(-int(t.col_total) // width)  # type: ignore[call-overload]
            share = -(-pieces // t.splits) * width
            begin, end = f"{p}1 * {share}", f"tl.minimum({p}1 * {share} + {share}, {n})"
        em.push()
        self._axis(1, f"{p}k", t.cols, t.col_total)
        body()
        em.pop(f"for {p}k in range({begin}, {end}, {width}):")
        em.masks.pop(1, None)

    def _reduce(self, now: list[E.Reduce]) -> None:
        em = self.em
        self.partial = [R.start(em, r) for r in now]

        def piece() -> None:
            for r, total in zip(now, self.partial, strict=True):
                R.advance(em, r, total, R.body_block(em, r))

        self._loop(piece)
        if self.tile.mode == "split":
            return
        for r, total in zip(now, self.partial, strict=True):
            em.pin(r, R.finish(em, r, total, 1))

    # --- rows that several blocks share ---------------------------------------------------------

    def _combine(self, now: list[E.Reduce]) -> None:
        """Leaves the block's partial results for the block that comes last, which joins them."""
        t, em, p = self.tile, self.em, self.prefix
        height, splits = t.shape[0], t.splits
        em.line(f"{p}w = ({p}0 * {splits} + {p}1) * {height} + tl.arange(0, {height})[:, None]")
        slots: list[tuple[str, T.DType]] = []
        count = int(t.grid) * height  # type: ignore[arg-type]
        for r, total in zip(now, self.partial, strict=True):
            x = R.finish(em, r, total, 1)
            if total.at:
                dt = R.accumulator_type(r)
                best = R.across(em, r.fn[3:6], total.value, 1, dt)
                self._leave(best, dt, len(slots), count)
                slots.append((total.value, dt))
                dt = T.i64 if self.frame.wide else T.i32
            else:
                dt = x.dt
            self._leave(x.text, dt, len(slots), count)
            slots.append((total.value, dt))
        counter = f"counters + {self.counter} + {p}0"
        em.line("tl.debug_barrier()")
        em.line(f"{p}n = tl.atomic_add({counter}, 1)")
        em.push()
        em.line(f"tl.store({counter}, 0)")
        self._gather(now, slots, count)
        for s in t.nest.steps:
            if s not in self.done:
                self._step(s)
        em.pop(f"if {p}n == {splits - 1}:")

    def _slot(self, k: int, dt: T.DType, count: int) -> str:
        kind = ty.tl_name(T.i8 if dt is T.b1 else dt)
        return f"(workspace + {k * count * 8 + self.base}).to(tl.pointer_type({kind}))"

    def _leave(self, x: str, dt: T.DType, k: int, count: int) -> None:
        stored = f"({x}).to(tl.int8)" if dt is T.b1 else x
        self.em.line(f"tl.store({self._slot(k, dt, count)} + {self.prefix}w, {stored})")

    def _gather(self, now: list[E.Reduce], slots: list[tuple[str, T.DType]], count: int) -> None:
        """Reads all blocks' partial results and finishes the reductions."""
        t, em, p = self.tile, self.em, self.prefix
        height, splits = t.shape[0], t.splits
        width = 1 << (splits - 1).bit_length()
        shape, em.shape = em.shape, (height, width)
        em.line(f"{p}h = tl.arange(0, {width})[None, :]")
        em.line(f"{p}q = ({p}0 * {splits} + {p}h) * {height} + tl.arange(0, {height})[:, None]")
        em.line(f"{p}hm = ({p}h < {splits}) & ({p}q >= 0)")
        names = []
        for k, (_, dt) in enumerate(slots):
            other = "0.0" if dt.is_float else "0"
            text = (f"tl.load({self._slot(k, dt, count)} + {p}q, mask={p}hm, other={other}, "
                    'cache_modifier=".cg")')
            names.append(em.assign(f"{text} != 0" if dt is T.b1 else text, dt, R.whole(em)).text)
        k = 0
        for r in now:
            dt = slots[k][1]
            neutral = em.full(R.whole(em), R.identity(r.fn, dt), dt)
            value = em.assign(f"tl.where({p}hm, {names[k]}, {neutral})", dt, R.whole(em)).text
            at = ""
            if r.fn.startswith("arg"):
                k += 1
                at = names[k]
            k += 1
            em.pin(r, R.finish(em, r, R.Partial(value, at), 1, f"{p}hm" if at else ""))
        em.shape = shape


__all__ = [
    "LoopCandidate", "LoopTactic", "build_loops", "pointwise_inlined", "refusal",
]
