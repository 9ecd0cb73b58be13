"""How a loop nest is cut into blocks: what runs along the two axes of a block, how large the
block is, and whether a row is reduced at once, in pieces, or by several blocks. Nothing here
writes Triton text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...ir import dims as D
from ...ir import expr as E
from ...ir.expr import Expr, Var
from ..cpu import affine as A
from ..cpu.lanes import _accesses
from ..cpu.loopnest import LoopNest, Step, as_linear, merge

GUESS = 256  # stands for a size known only at run time
MOST = 16384  # elements of a block that are kept in registers
SERIAL = 32  # reductions of up to this many steps may be written out


class Unplannable(Exception):
    """A nest that can't be cut into blocks; says why."""


@dataclass(eq=False)
class Tile:
    """A planned nest.

    Attributes:
        outer: Variables with one value in a block.
        rows, cols: Variables along block axis 0 and 1, the last one fastest.
        shape: The block's extents.
        mode: ``points`` (each element by itself), ``rows`` (axis 1 holds whole rows that are
            reduced at once), ``pieces`` (rows are gone through in pieces), ``split`` (several
            blocks share a row).
        splits: Blocks that share a row.
        warps: Warps of a block.
        reduces: The reductions along axis 1.
    """

    nest: LoopNest
    outer: list[Var]
    rows: list[Var]
    cols: list[Var]
    shape: tuple[int, int]
    mode: str
    warps: int = 4
    splits: int = 1
    reduces: list[E.Reduce] = field(default_factory=list)

    @property
    def row_total(self) -> D.DimLike:
        return D.product(v.extent for v in self.rows)

    @property
    def col_total(self) -> D.DimLike:
        return D.product(v.extent for v in self.cols)

    @property
    def blocks(self) -> tuple[D.DimLike, D.DimLike, D.DimLike]:
        """Blocks along the outer variables, axis 0 and axis 1."""
        along = D.ceil_div(self.col_total, self.shape[1]) if self.mode == "points" else self.splits
        outer = D.product(v.extent for v in self.outer)
        return outer, D.ceil_div(self.row_total, self.shape[0]), along

    @property
    def grid(self) -> D.DimLike:
        a, b, c = self.blocks
        return a * b * c

    def __str__(self) -> str:
        split = f"/{self.splits}" if self.splits > 1 else ""
        return f"{self.mode}{split} {self.shape[0]}x{self.shape[1]} w{self.warps}"


def guess(d: D.DimLike) -> int:
    return GUESS if isinstance(d, D.Dim) else max(int(d), 1)


def count(vs: Iterable[Var]) -> int:
    return math.prod(guess(v.extent) for v in vs)


def pow2(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(n - 1, 0).bit_length()


def below(n: int) -> int:
    """The largest power of two that is not more."""
    return 1 << max(n, 1).bit_length() - 1


# --- reductions and their variables -----------------------------------------------------------


def reduces_of(e: Expr) -> list[E.Reduce]:
    """The reductions in an expression that are not inside others, inner ones first."""
    found: dict[E.Reduce, None] = {}
    seen: set[Expr] = set()

    def go(x: Expr) -> None:
        if x in seen:
            return
        seen.add(x)
        if isinstance(x, E.Reduce):
            found[x] = None
            return
        for c in A.children(x):
            go(c)

    go(e)
    return list(found)


def free_vars(r: E.Reduce) -> set[Var]:
    """Variables from outside that a reduction depends on."""

    def go(x: Expr) -> set[Var]:
        if isinstance(x, Var):
            return {x}
        found: set[Var] = set().union(*(go(c) for c in A.children(x)))
        return found - set(x.vars) if isinstance(x, E.Reduce) else found

    return go(r)


def all_reduces(steps: Iterable[Step]) -> list[E.Reduce]:
    """Every reduction of the steps, children first."""
    return [x for s in steps for x in A.walk([s.expr]) if isinstance(x, E.Reduce)]


def share_columns(nest: LoopNest, serial_only: bool) -> list[Var]:
    """Gives reductions and inner loops over the same points the same variables.

    Returns:
        These variables; none if nothing runs along axis 1.

    Raises:
        Unplannable: If steps have different inner loops.
    """
    inner = [s.inner for s in nest.steps if s.inner]
    extents = {tuple(v.extent for v in vs) for vs in inner}
    if len(extents) > 1:
        raise Unplannable("stages write different numbers of elements for each row")
    if inner:
        cols = list(inner[0])
    else:
        rows = set(nest.rows)
        options = [] if serial_only else [
            r for r in _outermost(nest) if r.vars and free_vars(r) <= rows
        ]
        if not options:
            return []
        cols = list(max(options, key=lambda r: count(r.vars)).vars)
    low = nest.lowerer
    for s in nest.steps:
        env: dict[Var, Expr] = {}
        if s.inner and s.inner != cols:
            env = dict(zip(s.inner, cols, strict=True))
            s.inner = list(cols)
        for r in all_reduces([s]):
            same = [v.extent for v in r.vars] == [v.extent for v in cols]
            if same and free_vars(r) <= set(nest.rows) and not set(r.vars) & set(cols):
                env.update(zip(r.vars, cols, strict=True))
        if env:
            s.expr = low.lower(s.expr, env)
            if s.at is not None:
                s.at = as_linear(low.lower(s.at, env))
    cols = merge(nest, cols, nest.steps)
    for s in nest.steps:
        if s.inner:
            s.inner = list(cols)
    return cols


def _outermost(nest: LoopNest) -> list[E.Reduce]:
    return [r for s in nest.steps for r in reduces_of(s.expr)]


# --- memory accesses ----------------------------------------------------------------------


def accesses(nest: LoopNest) -> list[A.Linear]:
    """Flat indices of everything that is read and written."""
    out = [at for s in nest.steps for at, _ in _accesses(s.expr)]
    return out + [s.at for s in nest.steps if s.at is not None]


def unit_weights(nest: LoopNest, rows: Sequence[Var], cols: Sequence[Var]) -> dict[Var, float]:
    """Elements that lie next to each other along each variable."""
    weight = dict.fromkeys((*rows, *cols), 0.0)
    for at in accesses(nest):
        terms = {t: c for t, c in at.terms if isinstance(t, Var)}
        size = count(t for t in terms if t in weight)
        for t, c in terms.items():
            if c == 1 and t in weight:
                weight[t] += size
    return weight


def _spaced(at: A.Linear, v: Var) -> int:
    c = dict(at.terms).get(v, 0)
    return GUESS if isinstance(c, D.Dim) else abs(int(c))


def _by_stride(nest: LoopNest, vs: Sequence[Var]) -> list[Var]:
    """Variables with far steps first, as the largest access steps through them."""
    found = accesses(nest)
    main = max(found, key=lambda at: count(v for v in vs if v in dict(at.terms)), default=None)
    if main is None or any(isinstance(c, D.Dim) for t, c in main.terms if t in vs):
        return list(vs)
    return sorted(vs, key=lambda v: -_spaced(main, v) if _spaced(main, v) else -(1 << 62))


# --- choices ------------------------------------------------------------------------------


def plan_tile(nest: LoopNest, sms: int, scale: int = 0) -> Tile:
    """Cuts a nest into blocks.

    Args:
        sms: Multiprocessors that should have work.
        scale: Doubles (1), quadruples (2) or halves (-1) the block for comparison.

    Raises:
        Unplannable: If it can't be done.
    """
    serial = _all_serial(nest)
    cols = share_columns(nest, serial)
    if not cols:
        return _points(nest, sms, scale)
    axis = set(cols)
    reduces = [r for r in all_reduces(nest.steps) if set(r.vars) == axis]
    return _rows(nest, cols, reduces, sms, scale)


def _all_serial(nest: LoopNest) -> bool:
    """Whether every reduction is short enough, and lies in memory so, that each element had
    better be computed by one thread."""
    if any(s.inner for s in nest.steps):
        return False
    found = _outermost(nest)
    for r in found:
        n = D.product(v.extent for v in r.vars)
        if isinstance(n, D.Dim) or n > SERIAL:
            return False
        weights = unit_weights(nest, nest.rows, r.vars)
        best = max((v for v in r.vars), key=lambda v: weights[v], default=None)
        if best is None:
            continue
        along_rows = max((weights[v] for v in nest.rows), default=0.0)
        if guess(best.extent) >= 8 and weights[best] > along_rows:
            return False
    return True


def _points(nest: LoopNest, sms: int, scale: int) -> Tile:
    rows = list(nest.rows)
    if not rows:
        return Tile(nest, [], [], [], (1, 1), "points", 1)
    total = count(rows)
    size = 1024 if total < 4096 * sms else 2048
    work = sum(len(A.walk([s.expr])) for s in nest.steps)
    if work > 150 or all_reduces(nest.steps):
        size = 512 if total < 1024 * sms else 1024
    if total < 512 * sms:
        size = 512
    if total < 128 * sms:
        size = 128
    size = max(32, size << scale if scale >= 0 else size >> -scale)
    weights = unit_weights(nest, rows, ())
    stores = [s.at for s in nest.steps if s.at is not None]
    last = _unit(stores[-1], rows) or rows[-1]
    across = _transposed(nest, rows, last, weights)
    # sixteen bytes for each thread (a max pooling of bytes on an H200: 74 µs with eight, 53)
    narrow = all(s.out.dtype.size == 1 for s in nest.steps if s.at is not None)
    warps = min(8, max(1, size // (512 if narrow else 256)))
    if across is not None:
        return _transpose(nest, rows, last, across, size, warps)
    rest = [v for v in rows if v is not last]
    if isinstance(last.extent, D.Dim):
        width = size if not rest else min(size, 256)
    else:
        width = _width(last.extent, size)
    height = max(1, min(size // width, pow2(count(rest)))) if rest else 1
    return Tile(nest, [], rest, [last], (height, width), "points", warps)


def _width(extent: int, size: int) -> int:
    """Columns of a block: all of them, or a power of two that divides them well."""
    whole = pow2(extent)
    if whole <= size and (whole == extent or whole <= 64):
        return whole
    for w in (size, size // 2, size // 4):
        if w >= 128 and extent % w == 0:
            return w
    best = min(size, whole)
    for w in (512, 256, 128, 64):
        if w <= size and -(-extent // w) * w < -(-extent // best) * best * 0.9:
            best = w
    return best


def _unit(at: A.Linear, rows: Sequence[Var]) -> Var | None:
    for t, c in at.terms:
        if c == 1 and isinstance(t, Var) and t in rows:
            return t
    return None


def _transposed(
    nest: LoopNest, rows: Sequence[Var], last: Var, weights: dict[Var, float]
) -> Var | None:
    """The variable along which memory is read in a row, if it is not the one along which it is
    written."""
    others = [v for v in rows if v is not last and weights[v] > 0]
    if not others:
        return None
    best = max(others, key=lambda v: weights[v])
    if guess(best.extent) < 4 or weights[best] * 4 < max(weights.values()):
        return None
    return best


def _transpose(
    nest: LoopNest, rows: list[Var], last: Var, across: Var, size: int, warps: int
) -> Tile:
    """Blocks with an edge along each of the two variables."""
    size = max(size, 1024)
    width = min(pow2(guess(last.extent)), 64)
    height = min(pow2(guess(across.extent)), max(size // width, 16))
    width = min(pow2(guess(last.extent)), max(size // height, 1))
    outer = [v for v in rows if v is not last and v is not across]
    return Tile(nest, outer, [across], [last], (height, width), "points", max(warps, 4))


def _rows(
    nest: LoopNest, cols: list[Var], reduces: list[E.Reduce], sms: int, scale: int
) -> Tile:
    rows = list(nest.rows)
    weights = unit_weights(nest, rows, cols)
    col_best = max((weights[v] for v in cols), default=0.0)
    row_best = max(rows, key=lambda v: weights[v], default=None)
    if not any(r.fn.startswith("arg") for r in reduces):
        cols = _by_stride(nest, cols)
    total, n = count(rows), D.product(v.extent for v in cols)
    along_rows = row_best is not None and weights[row_best] > col_best
    if along_rows:
        assert row_best is not None
        rows = [v for v in rows if v is not row_best] + [row_best]
        height = min(32, pow2(guess(row_best.extent)))
    else:
        height = 1
    unknown = isinstance(n, D.Dim)
    whole = 4096 if unknown else pow2(int(n))  # type: ignore[arg-type]
    work = max(len(A.walk([s.expr])) for s in nest.steps)
    most = MOST if work < 120 else MOST // 4
    if not unknown and whole * height <= most:
        width, mode = whole, "rows"
        if not along_rows:
            while height * width < (2048 << max(scale, 0)) and total >= 2 * height * 2 * sms:
                height *= 2
            height = min(height, pow2(total))
    else:
        width, mode = max(32, min(whole, (4096 if work < 120 else 1024) // height)), "pieces"
        if unknown and not along_rows:
            width = 1024
    warps = max(1, min(16, height * width // 256))
    if scale < 0:  # a row within a warp needs no exchange through shared memory
        warps = max(1, warps >> -scale)
    tile = Tile(nest, [], rows, cols, (height, width), mode, warps, reduces=reduces)
    _split(tile, sms)
    return tile


def _split(tile: Tile, sms: int) -> None:
    """Lets several blocks share long rows if there are too few rows for the multiprocessors."""
    nest = tile.nest
    if any(s.inner for s in nest.steps) or isinstance(tile.col_total, D.Dim):
        return
    if isinstance(tile.grid, D.Dim) or any(_nested(r, tile) for r in tile.reduces):
        return
    if any(set(all_reduces([s])) and _reads_steps(s, nest) for s in nest.steps):
        return
    outermost = set(_outermost(nest))
    if any(r not in outermost for r in tile.reduces):
        return
    blocks, n = int(tile.grid), int(tile.col_total)
    pieces = -(-n // tile.shape[1])
    if tile.mode == "rows" or blocks * 2 > sms or pieces < 4:
        return
    tile.splits = min(pieces // 2, max(2, 2 * sms // blocks), 1024)
    if tile.splits > 1:
        tile.mode = "split"


def _nested(r: E.Reduce, tile: Tile) -> bool:
    return any(x in tile.reduces for x in A.walk([r.body]))


def _reads_steps(s: Step, nest: LoopNest) -> bool:
    made = {k.out for k in nest.steps}
    return any(isinstance(x, A.FlatLoad) and x.value in made for x in A.walk([s.expr]))
