"""Matrix products: `matmul` with any batch, broadcast, transpose and vector operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType, f32, f64
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import affine, packing
from . import epilogue as epi
from .codegen import Gen, Num
from .contraction import Contraction, Operand, Shape, Tile, register_tiles, vector
from .isa import Isa

_GRAIN_FLOPS = 60_000
_BATCH = 16  # entries of a batch that are looked at to make threads' shares even
_MOST_ADDRESSES = 8  # of rows at distances known only at run time, in registers
_ASSUMED = 64  # a symbolic size is blocked as if it were this


@dataclass(frozen=True)
class Matrix:
    """One operand of a product: its batch dimensions and the strides of a matrix."""

    value: Value
    batch: tuple[DimLike, ...]
    free: DimLike
    inner: DimLike
    stride: DimLike
    k_stride: DimLike

    @property
    def elements(self) -> DimLike:
        return self.free * self.inner


@dataclass(frozen=True)
class Problem:
    """A matrix product in the form the contraction takes: rows from ``a``, columns from ``b``.

    Attributes:
        batch: Batch dimensions left after folding those of ``a`` into rows.
        inner: The result's last dimensions that columns run along.
        rows: The result's dimensions (after ``batch``) that rows run along.
    """

    batch: tuple[DimLike, ...]
    m: DimLike
    n: DimLike
    k: DimLike
    a: Matrix
    b: Matrix
    rows: tuple[DimLike, ...]
    inner: tuple[DimLike, ...]
    acc: DType


def _operand(v: Value, flag: str, second: bool) -> Matrix:
    if flag == "vector":
        return Matrix(v, v.dims[:-1], 1, v.dims[-1], 0, 1)
    rows, cols = v.dims[-2:]
    if (flag == "transpose") != second:  # memory is [k, free]
        return Matrix(v, v.dims[:-2], cols, rows, 1, cols)
    return Matrix(v, v.dims[:-2], rows, cols, cols, 1)


def problem(node: Node) -> Problem:
    """A matmul node's problem; batches folded and matrix-vector products turned."""
    va, vb = node.inputs[:2]
    assert va is not None and vb is not None
    a, b = _operand(va, node.attrs.ta, False), _operand(vb, node.attrs.tb, True)
    out = node.outputs[0]
    acc = f64 if out.dtype is f64 else f32
    tail = (node.attrs.ta != "vector") + (node.attrs.tb != "vector")
    batch = out.dims[: out.rank - tail]
    rows: tuple[DimLike, ...] = (a.free,) if node.attrs.ta != "vector" else ()
    cols: tuple[DimLike, ...] = (b.free,) if node.attrs.tb != "vector" else ()
    single_b = all(d == 1 for d in b.batch)
    if single_b and (node.attrs.ta == "none" or node.attrs.ta == "vector"):
        # Rows of all batches lie behind each other.
        m = D.product(batch) * a.free
        a = replace(a, free=m, stride=a.inner, batch=())
        b = replace(b, batch=())
        rows, batch = (*batch, *rows), ()
    if D.is_static(b.free) and b.free == 1 and not (D.is_static(a.free) and a.free == 1):
        # Matrix times vector: what were rows become columns, so that lanes are full.
        return Problem(batch, 1, a.free, a.inner, b, a, (), (*rows, *cols), acc)
    if not cols:
        cols = (1,)  # a column of extent one that the result doesn't show
        return Problem(batch, a.free, 1, a.inner, a, b, rows, (), acc)
    return Problem(batch, a.free, b.free, a.inner, a, b, rows, cols, acc)


# --- building ---------------------------------------------------------------------------------


def settled(tile: Tile, p: Problem) -> Tile:
    """The tile with packing switched off for constants, which are packed already, and on for
    operands that the microkernel can't read in place."""
    pack_a = tile.pack_a and p.a.value.const is None
    in_place_b = p.b.stride == 1 and p.b.value.dtype is p.acc
    pack_b = p.b.value.const is None and (tile.pack_b or not in_place_b)
    symbolic = isinstance(p.k, D.Dim)
    return replace(tile, pack_a=pack_a, pack_b=pack_b, kc=tile.kc or (384 if symbolic else 0))


def _batch_offset(g: Gen, batch: tuple[DimLike, ...], own: tuple[DimLike, ...], size: Num) -> Any:
    """Batch index -> elements from the start of an operand, by numpy's broadcasting."""
    strides = affine.contiguous(own)
    lead = len(batch) - len(own)

    def offset(index: Num) -> Num:
        if all(d == 1 for d in own):
            return 0
        if own == batch:
            return g.mul(index, size)
        at = epi.unravel(g, index, batch)
        terms = [
            (at[lead + i], g.mul(g.size(strides[i]), size)) for i, d in enumerate(own) if d != 1
        ]
        return g.linear(terms)

    return offset


def build(region: Region, tile: Tile, isa: Isa, symbol: str = "gemm") -> Kernel:
    """The kernel of a region whose anchor is a matmul."""
    assert region.anchor is not None
    p = problem(region.anchor)
    tile = settled(tile, p)
    g = Gen(symbol, isa)
    args: list[Value | np.ndarray[Any, Any]] = []
    pointers: dict[Value, Any] = {}

    def take(v: Value) -> Any:
        if v not in pointers:
            pointers[v] = g.arg(len(args))
            args.append(v)
        return pointers[v]

    lanes = vector(isa, p.acc)

    def operand(x: Matrix, rows: bool) -> Operand:
        if x.value.const is None:
            offset = _batch_offset(g, p.batch, x.batch, g.mul(g.size(x.free), g.size(x.inner)))
            return Operand(
                take(x.value), x.value.dtype, offset, g.size(x.k_stride), g.size(x.stride)
            )
        packed = pack_constant(x, p.acc, rows, tile, lanes)
        args.append(packed)
        offset = _batch_offset(g, p.batch, x.batch, packed.shape[-1])
        return Operand(g.arg(len(args) - 1), p.acc, offset, packed=True)

    a, b = operand(p.a, True), operand(p.b, False)
    for v in epi.stage_inputs(region):
        take(v)
    for v in region.outputs:
        take(v)

    def coordinates(g: Gen, batch: Num, m: Num, n: Num) -> list[Num]:
        return [
            *epi.unravel(g, batch, p.batch), *epi.unravel(g, m, p.rows), *epi.unravel(g, n, p.inner)
        ]  # fmt: skip

    finish = epi.RegionEpilogue(
        g, region, len(p.inner), (g.size(p.m), g.size(p.n)), coordinates, pointers
    )
    batch = D.product(p.batch)
    shape = Shape(batch, p.m, p.n, p.k, p.acc)
    core = Contraction(g, shape, tile, a, b, finish)
    core.emit()
    mbs, nbs = Contraction.blocks(shape, tile)
    return Kernel(
        symbol, g.finish(), tuple(args), tuple(g.dims), batch * mbs * nbs,
        grain(tile, p.m, p.n, p.k), core.scratch_bytes, batch * p.m * p.n * p.k * 2,
        notes={"tile": str(tile)},
    )  # fmt: skip


def grain(tile: Tile, m: DimLike, n: DimLike, k: DimLike) -> int:
    """Items that make a thread worth waking."""
    rows = min(tile.mb, _known(m))
    cols = min(tile.nb, _known(n))
    return max(1, _GRAIN_FLOPS // max(1, 2 * rows * cols * _known(k)))


def _known(d: DimLike) -> int:
    """A size to block for: the size itself, or a guess from what is known of it."""
    if not isinstance(d, D.Dim):
        return int(d)
    return max(_ASSUMED, D.evaluate(d, dict.fromkeys(D.symbols(d), 1)))


def pack_constant(
    x: Matrix, acc: DType, rows: bool, tile: Tile, lanes: int
) -> np.ndarray[Any, Any]:
    """A constant operand in the order in which tiles read it."""
    array = x.value.const
    assert array is not None
    free, inner = int(x.free), int(x.inner)  # type: ignore[arg-type]
    array = np.asarray(array).astype(acc.np, copy=False).reshape(-1)
    count = array.size // (free * inner) if free * inner else 0
    array = array.reshape(count, -1)
    # [batch, free, inner] or the other way, by which stride is the small one
    free_first = x.k_stride == 1
    matrix = array.reshape(count, free, inner) if free_first else array.reshape(count, inner, free)
    if rows:
        return packing.pack_rows(matrix if free_first else matrix.swapaxes(1, 2), tile.mr)
    nr = tile.nv * lanes
    return packing.pack_columns(matrix.swapaxes(1, 2) if free_first else matrix, nr, lanes)


# --- choosing tiles ---------------------------------------------------------------------------


def tiles(p: Problem, isa: Isa, threads: int) -> list[Tile]:
    """Blockings worth timing, the likely best first."""
    lanes = vector(isa, p.acc)
    ways: list[list[Tile]] = []
    for mr, nv in _register_choices(p, isa, lanes):
        found = _shares(p, threads, mr, nv * lanes, nv)
        for kc in _k_choices(p):
            found.extend(_block(p, isa, threads, mr, nv, kc, lanes))
        ways.append(found)
    # the first blocking of every register tile, then the second, ...
    return list(dict.fromkeys(t for row in zip_longest(*ways) for t in row if t is not None))


def _shares(p: Problem, threads: int, mr: int, nr: int, nv: int) -> list[Tile]:
    """One block of rows, or of columns, for each thread: nothing is read more often than it must
    be, and with few blocks a thread that began late holds up nobody else."""
    sizes = (*p.batch, p.m, p.n, p.k)
    if any(isinstance(d, D.Dim) for d in sizes) or p.b.value.const is None or threads < 2:
        return []
    m, n = int(p.m), int(p.n)  # type: ignore[arg-type]
    if D.product(p.batch) != 1 or m < threads * mr:
        return []
    rows = Tile(mr, nv, _round(-(-m // threads), mr), min(_round(n, nr), 256 // nr * nr))
    cols = Tile(mr, nv, _round(m, mr), _round(-(-n // threads), nr))
    by_rows, by_columns = (_uneven(m, rows.mb, mr, threads), _uneven(n, cols.nb, nr, threads))
    return [rows, cols] if by_rows <= by_columns else [cols, rows]


def _uneven(size: int, block: int, unit: int, threads: int) -> float:
    """How many times its share a thread with a whole block does, coarsely."""
    return round(block * threads / size, 1) if block < size else float(threads)


def _register_choices(p: Problem, isa: Isa, lanes: int) -> list[tuple[int, int]]:
    standard = list(register_tiles(isa, p.acc))
    vectors = -(-_known(p.n) // lanes)
    if not isinstance(p.m, D.Dim) and p.m < standard[0][0]:
        m = int(p.m)
        most = 8 if m == 1 else max(1, (isa.vector_registers - 1) // (m + 1))
        return [(m, max(1, min(most, vectors)))]
    fitting = [(mr, min(nv, vectors)) for mr, nv in standard]
    if isinstance(p.m, D.Dim):
        # Tiles that use all registers spill where sizes are variables.
        fitting = [t for t in fitting if t[0] <= _MOST_ADDRESSES]
        return fitting[:1] if isa.vector_registers < 32 else fitting[:2]
    return sorted(fitting[:3], key=lambda t: _waste(int(p.m), t[0]))


def _waste(m: int, mr: int) -> float:
    """Share of register rows that the last tile leaves idle, coarsely."""
    rows = -(-m // mr) * mr
    return round((rows - m) / rows, 1)


def _k_choices(p: Problem) -> list[int]:
    if isinstance(p.k, D.Dim):
        return [384]
    few_rows = not isinstance(p.m, D.Dim) and p.m <= 8  # then nothing is read twice
    return [0] if p.k <= 1024 or few_rows else [768, 384]


def _block(p: Problem, isa: Isa, threads: int, mr: int, nv: int, kc: int, lanes: int) -> list[Tile]:
    m, n, k = _known(p.m), _known(p.n), _known(p.k)
    nr = nv * lanes
    in_place_b = p.b.value.const is None and p.b.stride == 1 and p.b.value.dtype is p.acc
    must_pack_b = p.b.value.const is None and not in_place_b
    if must_pack_b and kc == 0 and isinstance(p.k, D.Dim):
        kc = 384
    depth = min(kc or k, k)
    mb = min(_rows_in(isa, m, mr, max(1, depth * p.acc.size)), 40 * mr)
    nb = max(nr, min(_round(n, nr), 512 // nr * nr))
    if must_pack_b:
        mb = _round(m, mr) if m <= 1024 else 1024 // mr * mr
    mb, nb = _spread(_known(D.product(p.batch)), m, n, mb, nb, mr, nr, threads)
    apart = p.a.stride != 1 and not (isinstance(p.a.stride, int) and isinstance(p.a.k_stride, int))
    packs_a = mr > _MOST_ADDRESSES and p.a.value.const is None and apart
    tile = Tile(mr, nv, mb, nb, kc, packs_a, must_pack_b)
    out = [tile]
    if in_place_b and m >= 4 * mr:
        out.append(replace(tile, pack_b=True, kc=kc or min(k, 512)))
    return out


def _rows_in(isa: Isa, m: int, mr: int, size: int) -> int:
    """Rows of ``size`` bytes in a block of A, which should stay in L2 while panels of B pass by:
    all of them if they take up to half of it, so that B is read once; else a quarter is best."""
    rows = _round(m, mr)
    return rows if rows * size <= isa.l2 // 2 else max(mr, isa.l2 // 4 // size // mr * mr)


def _round(x: int, unit: int) -> int:
    return -(-x // unit) * unit


def _spread(
    batch: int, m: int, n: int, mb: int, nb: int, mr: int, nr: int, threads: int
) -> tuple[int, int]:
    """Makes blocks smaller until every thread gets several, and evens them out."""
    want = 4 * threads if threads > 1 else 1
    while batch * -(-m // mb) * -(-n // nb) < want:
        if nb >= 2 * nr and nb >= mb:
            nb = _round(nb // 2, nr)
        elif mb >= 2 * mr:
            mb = _round(mb // 2, mr)
        elif nb >= 2 * nr:
            nb = _round(nb // 2, nr)
        else:
            break
    return _even(batch, m, n, mb, nb, mr, nr, threads)


def _even(
    batch: int, m: int, n: int, mb: int, nb: int, mr: int, nr: int, threads: int
) -> tuple[int, int]:
    """Blocks of about ``mb`` by ``nb``, so that the thread with the most has little more than the
    others. Where one block has all rows it stays so."""
    rows, cols = -(-m // mb), -(-n // nb)
    more = threads if rows > 1 else 1
    options = [
        (_round(-(-m // r), mr), _round(-(-n // c), nr))
        for r in range(rows, rows + more) for c in range(cols, cols + 2 * threads)
    ]

    def most(option: tuple[int, int]) -> int:
        """Tiles times their columns of the thread that has most."""
        mb, nb = option
        heights = [-(-min(mb, m - i) // mr) for i in range(0, m, mb)]
        widths = [min(nb, n - j) for j in range(0, n, nb)]
        items = [h * w for h in heights for w in widths] * min(batch, _BATCH)
        ends = [len(items) * t // threads for t in range(threads + 1)]
        return max(sum(items[a:b]) for a, b in pairwise(ends))

    return min(options, key=most)


@register_tactic
class Gemm(Tactic):
    """Register-tiled matrix product; constant operands packed when built."""

    name = "gemm"
    target = "cpu"
    priority = 50

    def refuse(self, region: Region, device: Any) -> str | None:
        anchor = region.anchor
        if anchor is None or anchor.op != "matmul":
            return "not a matrix product"
        a, b = anchor.inputs[:2]
        assert a is not None and b is not None
        if not (epi.supported_float(a.dtype) and a.dtype is b.dtype):
            return f"no matrix product of {a.dtype} and {b.dtype}"
        p = problem(anchor)
        if any(not isinstance(d, D.Dim) and d == 0 for d in (*p.batch, p.m, p.n, p.k)):
            return "an extent is zero"
        for x in (p.a, p.b):
            full = p.batch[len(p.batch) - len(x.batch) :]
            if any(isinstance(d, D.Dim) and d != f for d, f in zip(x.batch, full, strict=True)):
                return "a batch size known only at run time may be broadcast"
        return epi.refuse(region)

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        assert region.anchor is not None
        return tiles(problem(region.anchor), device.isa, device.threads)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return build(region, candidate, device.isa)
