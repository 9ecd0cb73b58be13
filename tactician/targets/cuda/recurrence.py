"""LSTM, GRU and RNN: all steps in one kernel.

A block computes the states of some units for some batch entries and keeps them in registers; what
other units need of them goes through memory, twice buffered. If one block holds all units of a
direction, steps are a barrier of its threads apart. Otherwise all blocks of a direction run at once
(a cooperative launch) and count themselves in after every step, so each reads only its part of the
weights, which stays in the cache of its multiprocessor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...ops.recurrent import CELLS, DEFAULTS, parameters
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import named, pow2, refuse_types
from .product import Writer
from .types import tl_name

_FLOATS = (T.f16, T.bf16, T.f32, T.f64)
_STREAM = 110e9  # bytes/s that one multiprocessor reads from its cache or the next
_MEETING = 2e-6  # seconds that blocks take to wait for each other


@dataclass(frozen=True)
class Tile:
    """How a layer is cut up.

    Attributes:
        bm, bu, bk: Batch entries and units of a block, states that are multiplied at once.
        warps: Warps of a block.
    """

    bm: int
    bu: int
    bk: int
    warps: int = 4

    def __str__(self) -> str:
        return f"{self.bm}x{self.bu}x{self.bk} w{self.warps}"


@register_tactic
class RecurrenceTactic(Tactic):
    """Whole sequences of recurrent layers."""

    name = "recurrence"
    target = "cuda"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "recurrent_steps":
            return "not a recurrence"
        if region.stages:
            return "a recurrence has no epilogue"
        gates, r = node.inputs[:2]
        assert gates is not None and r is not None
        if gates.dtype not in _FLOATS or r.dtype not in _FLOATS:
            return f"no recurrence on {gates.dtype} and {r.dtype}"
        if any(d == 0 for v in (gates, *node.outputs) for d in v.dims):
            return "there is nothing to compute"
        if not self.candidates(region, device):
            return f"sm_{device.arch} does not hold {node.attrs.hidden} units at once"
        return refuse_types([r], device.arch)

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        node = region.anchor
        assert node is not None
        return tiles(node, device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None
        return _Builder(node, region.outputs, candidate, device).build()


def _batch(node: Node) -> DimLike:
    gates = node.inputs[0]
    assert gates is not None
    return gates.dims[0 if node.attrs.layout else 1]


def tiles(node: Node, device: Any) -> list[Tile]:
    """Tiles by the time a step is expected to take."""
    a, r = node.attrs, node.inputs[1]
    assert r is not None
    bm = pow2(_batch(node), 16, 32, 16)
    bk = 64 if r.dtype.bits == 16 else 32
    gates = CELLS[a.cell]
    weights = gates * a.hidden * a.hidden * r.dtype.size
    found: list[tuple[float, Tile]] = []
    for bu in (16, 32, 64, 128, 256):
        count = -(-a.hidden // bu)
        if bu > 16 and bu // 2 >= a.hidden:
            continue
        if _directions(node) * count > device.sms and count > 1:
            continue
        if gates * bm * bu * 4 > 64 << 10 or (r.dtype is T.f64 and bu > 64):
            continue  # sums would not fit the registers
        meetings = 2 if a.cell == "gru" and not a.linear_before_reset else 1
        apart = _MEETING if count > 1 else 2e-7
        seconds = weights / count / _STREAM + meetings * apart
        warps = max(4, min(8, bm * bu // 256))
        found.append((seconds, Tile(bm, bu, min(bk, pow2(a.hidden, 16, bk)), warps)))
    return [t for _, t in sorted(found, key=lambda x: x[0])]


def _directions(node: Node) -> int:
    return 2 if node.attrs.direction == "bidirectional" else 1


class _Builder:
    """Writes the kernel of one candidate."""

    def __init__(self, node: Node, wanted: list[Value], t: Tile, device: Any):
        self.node, self.wanted, self.t, self.a = node, wanted, t, node.attrs
        gates, r, rb, lens, h0, c0, p = (*node.inputs, *(None,) * 7)[:7]
        assert gates is not None and r is not None
        self.gates, self.r, self.rb, self.lens = gates, r, rb, lens
        self.h0, self.c0, self.p = h0, c0, p
        self.dirs, self.count = _directions(node), CELLS[self.a.cell]
        self.hidden = int(self.a.hidden)
        self.batch = _batch(node)
        self.steps = gates.dims[1 if self.a.layout else 0]
        self.units = -(-self.hidden // t.bu)  # blocks that share a direction's units
        self.work = T.f64 if r.dtype is T.f64 else T.f32
        blocks = D.ceil_div(self.batch, t.bm)
        room = max(1, device.sms // (self.dirs * self.units))
        # parts of the batch that have blocks of their own; 0: as many as there are
        self.parts = room if self.units > 1 else 0
        if not isinstance(blocks, D.Dim):
            self.parts = min(int(blocks), room) if self.units > 1 else int(blocks)
        self.groups: DimLike = self.dirs * (self.parts or blocks)
        self.frame = Frame(is_wide([gates, r, *node.outputs]))
        self.second = self.a.cell == "gru" and not self.a.linear_before_reset
        self.kind, self.acc = tl_name(r.dtype), tl_name(self.work)
        self.how = ', input_precision="tf32x3"' if r.dtype is T.f32 else ""

    def build(self) -> Kernel:
        frame, t, w = self.frame, self.t, Writer()
        frame.workspace = True
        frame.counters = self.units > 1
        size = frame.size
        parts = size(self.parts or D.ceil_div(self.batch, t.bm))
        w("pid = tl.program_id(0)", f"steps = {size(self.steps)}", f"batch = {size(self.batch)}",
          f"d = pid // {self.units} % {self.dirs}", f"part = pid // {self.units * self.dirs}",
          f"ru = pid % {self.units} * {t.bu} + tl.arange(0, {t.bu})",
          f"states = workspace.to(tl.pointer_type({self.kind}))",
          f"area = batch * {self.hidden}", "arrived = pid * 0")  # fmt: skip
        if self.units > 1:
            w(f"count = counters + (part * {self.dirs} + d) * 2")
        with w.block(f"for b0 in range(part * {t.bm}, batch, {parts} * {t.bm}):"):
            self._start(w)
            with w.block("for s in range(0, steps):"):
                self._step(w)
            self._finish(w)
        if self.units > 1:  # whoever leaves last leaves the counters at zero
            w("left = tl.atomic_add(count + 1, 1)")
            with w.block(f"if left == {self.units - 1}:"):
                w("tl.store(count, 0)", "tl.store(count + 1, 0)")
        areas = 3 if self.second else 2
        launch = Launch(
            grid=(self.groups * self.units,), warps=t.warps, stages=2,
            options=(("launch_cooperative_grid", True),) if self.units > 1 else (),
            workspace=self.batch * (areas * self.dirs * self.hidden * self.r.dtype.size),
            counters=self.groups * 2 if self.units > 1 else 0,
        )
        flops = self.steps * self.batch * (2 * self.dirs * self.count * self.hidden**2)
        kernel = named("recurrence", frame, w.lines, launch, flops=flops)
        kernel.notes["tile"] = str(t)
        return kernel

    # --- before and after the steps -------------------------------------------------------

    def _start(self, w: Writer) -> None:
        t = self.t
        w(f"rm = b0 + tl.arange(0, {t.bm})", "rows = (rm < batch)[:, None]",
          f"own = rows & (ru < {self.hidden})[None, :]")  # fmt: skip
        self._state(w, "h", self.h0)
        if self.a.cell == "lstm":
            self._state(w, "c", self.c0)
        if self.lens is not None:
            w(f"lens = tl.load({self.frame.pointer(self.lens)} + rm, mask=rm < batch, other=0)"
              ".to(tl.int32)[:, None]")  # fmt: skip
        if self.p is not None and self.a.cell == "lstm":
            p = self.frame.pointer(self.p)
            for k in range(3):
                w(f"peep{k} = tl.load({p} + (d * 3 + {k}) * {self.hidden} + ru, "
                  f"mask=ru < {self.hidden}, other=0).to({self.acc})[None, :]")
        if self.rb is not None:
            w(f"rb = tl.load({self.frame.pointer(self.rb)} + d * {self.hidden} + ru, "
              f"mask=ru < {self.hidden}, other=0).to({self.acc})[None, :]")
        w(self._leave("h", "0"))
        self._meet(w)

    def _state(self, w: Writer, name: str, given: Value | None) -> None:
        if given is None:
            w(f"{name} = tl.zeros(({self.t.bm}, {self.t.bu}), {self.acc})")
            return
        w(f"{name} = tl.load({self.frame.pointer(given)} + {self._place()}, mask=own, "
          f"other=0).to({self.acc})")

    def _place(self) -> str:
        """Where a block's states are in ``h0`` and the like."""
        if self.a.layout:
            return f"(rm * {self.dirs} + d)[:, None] * {self.hidden} + ru[None, :]"
        return f"(d * batch + rm)[:, None] * {self.hidden} + ru[None, :]"

    def _leave(self, x: str, area: str) -> str:
        """Writes a block's states where the others read them."""
        return (f"tl.store(states + (({area}) * {self.dirs} + d) * area + "
                f"rm[:, None] * {self.hidden} + ru[None, :], {x}.to({self.kind}), mask=own)")

    def _meet(self, w: Writer) -> None:
        """Waits until all blocks of the direction have come as far as this one."""
        w("tl.debug_barrier()")
        if self.units == 1:
            return
        w(f"arrived += {self.units}", "tl.atomic_add(count, 1)")
        with w.block("while tl.atomic_add(count, 0) < arrived:"):
            w("pass")
        w("tl.debug_barrier()")

    def _finish(self, w: Writer) -> None:
        for v, x in zip(self.node.outputs[1:], ("h", "c"), strict=False):
            if v in self.wanted:
                w(f"tl.store({self.frame.pointer(v)} + {self._place()}, {x}.to({self.kind}), "
                  "mask=own)")

    # --- a step ---------------------------------------------------------------------------

    def _step(self, w: Writer) -> None:
        a, wide = self.a, ".to(tl.int64)" if self.frame.wide else ""
        if a.direction == "bidirectional":
            w("t = tl.where(d == 1, steps - 1 - s, s)")
        else:
            w("t = steps - 1 - s" if a.direction == "reverse" else "t = s")
        entry = "rm * steps + t" if a.layout else "t * batch + rm"
        w(f"entry = ({entry}){wide}")
        width = self.dirs * self.count * self.hidden
        for g in range(self.count):
            w(f"x{g} = tl.load({self.frame.pointer(self.gates)} + entry[:, None] * {width} + "
              f"(d * {self.count} + {g}) * {self.hidden} + ru[None, :], mask=own, other=0)"
              f".to({self.acc})")  # fmt: skip
        first = range(2) if self.second else range(self.count)
        self._multiply(w, "s % 2", first)
        getattr(self, f"_{a.cell}")(w)
        self._keep(w)
        w(self._leave("h", "(s + 1) % 2"))
        self._meet(w)

    def _multiply(self, w: Writer, area: str, gates: Sequence[int]) -> None:
        """Sets ``a0`` … to the products of the states in an area with the gates' weights."""
        t, n = self.t, self.hidden
        for g in gates:
            w(f"a{g} = tl.zeros(({t.bm}, {t.bu}), {self.acc})")
        w(f"from_ = states + (({area}) * {self.dirs} + d) * area")
        with w.block(f"for k in range(0, {n}, {t.bk}):"):
            w(f"rk = k + tl.arange(0, {t.bk})",
              f"hk = tl.load(from_ + rm[:, None] * {n} + rk[None, :], "
              f"mask=rows & (rk < {n})[None, :], other=0, cache_modifier=\".cg\")")  # fmt: skip
            for g in gates:
                w(f"w{g} = tl.load({self.frame.pointer(self.r)} + "
                  f"((d * {self.count} + {g}) * {n} + ru)[None, :] * {n} + rk[:, None], "
                  f"mask=(ru < {n})[None, :] & (rk < {n})[:, None], other=0)",
                  f"a{g} = tl.dot(hk, w{g}, a{g}{self.how})")  # fmt: skip

    def _keep(self, w: Writer) -> None:
        """Takes the new states where the sequence has not ended, and writes the output."""
        y = self.node.outputs[0]
        result = "new"
        if self.lens is not None:
            w("live = t < lens", "h = tl.where(live, new, h)")
            if self.a.cell == "lstm":
                w("c = tl.where(live, cell, c)")
            result = "tl.where(live, new, 0)"
        else:
            w("h = new")
            if self.a.cell == "lstm":
                w("c = cell")
        if y in self.wanted:
            at = "(entry * {n} + d)" if self.a.layout else "((t * {n} + d) * batch + rm)"
            wide = ".to(tl.int64)" if self.frame.wide else ""
            w(f"tl.store({self.frame.pointer(y)} + {at.format(n=self.dirs)}{wide}[:, None] * "
              f"{self.hidden} + ru[None, :], ({result}).to({self.kind}), mask=own)")

    # --- cells ----------------------------------------------------------------------------

    def _lstm(self, w: Writer) -> None:
        f, p = self._act, self.p is not None
        w(f"i = x0 + a0{' + peep0 * c' if p else ''}", *f("i", 0))
        if self.a.input_forget:
            w("forget = 1 - i")
        else:
            w(f"forget = x2 + a2{' + peep2 * c' if p else ''}", *f("forget", 0))
        w("g = x3 + a3", *f("g", 1), "cell = forget * c + i * g")
        w(f"o = x1 + a1{' + peep1 * cell' if p else ''}", *f("o", 0))
        w("out = cell", *f("out", 2, clip=False), "new = o * out")

    def _gru(self, w: Writer) -> None:
        f, n = self._act, "n"
        bias = " + rb" if self.rb is not None else ""
        w("z = x0 + a0", *f("z", 0), "r = x1 + a1", *f("r", 0))
        if self.second:
            w(self._leave("(r * h)", "2"))
            self._meet(w)
            self._multiply(w, "2", [2])
            w(f"n = x2 + a2{bias}")
        else:
            w(f"n = x2 + r * (a2{bias})")
        w(*f(n, 1), "new = (1 - z) * n + z * h")

    def _rnn(self, w: Writer) -> None:
        w("new = x0 + a0", *self._act("new", 0))

    def _act(self, x: str, k: int, clip: bool = True) -> list[str]:
        """Lines that put ``x`` through the cell's ``k``-th activation. The directions may differ
        in it."""
        per = len(DEFAULTS[self.a.cell])
        lines = []
        if clip and self.a.clip > 0:
            lines.append(f"{x} = tl.minimum(tl.maximum({x}, {-self.a.clip!r}), {self.a.clip!r})")
        texts = []
        for d in range(self.dirs):
            names = self.a.activations[d * per : (d + 1) * per] or DEFAULTS[self.a.cell]
            texts.append(self._function(names[k], *parameters(self.a, d * per + k, names[k]), x))
        if len(set(texts)) == 1:
            return [*lines, f"{x} = ({texts[0]}).to({self.acc})"]
        return [*lines, f"{x} = tl.where(d == 0, {texts[0]}, {texts[1]}).to({self.acc})"]

    def _function(self, name: str, a: float, b: float, x: str) -> str:
        tanh = "_tanh64" if self.work is T.f64 else "_tanh"
        if "tanh" in name:
            self.frame.functions.helpers.add(tanh)
        table = {
            "relu": f"tl.where({x} < 0, 0.0, {x})",
            "tanh": f"{tanh}({x})",
            "sigmoid": f"1.0 / (1.0 + tl.exp(-{x}))",
            "affine": f"{a!r} * {x} + {b!r}",
            "leaky_relu": f"tl.where({x} >= 0, {x}, {a!r} * {x})",
            "thresholded_relu": f"tl.where({x} > {a!r}, {x}, 0.0)",
            "scaled_tanh": f"{a!r} * {tanh}({b!r} * {x})",
            "hard_sigmoid": f"tl.minimum(tl.maximum({a!r} * {x} + {b!r}, 0.0), 1.0)",
            "elu": f"tl.where({x} >= 0, {x}, {a!r} * (tl.exp(tl.minimum({x}, 0.0)) - 1.0))",
            "softsign": f"{x} / (1.0 + tl.abs({x}))",
            "softplus": f"tl.maximum({x}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({x})))",
        }
        return table[name]


__all__ = ["RecurrenceTactic", "Tile", "tiles"]
