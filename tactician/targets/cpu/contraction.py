"""The blocked contraction that matrix products and convolutions share.

``C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]``, then an epilogue on registers. ``m`` runs
over rows whose elements are broadcast, ``n`` over columns held in vector lanes. A work item is
one block of rows and columns of one batch index. In it:

    for each block of k:                     (only if k is cut, or an operand is packed)
        pack B, pack A into scratch
        for each panel of nv vectors of columns, for each tile of mr rows (or the other way):
            the microkernel: mr x nv accumulators, one multiply-add each per k
            after the last block of k: epilogue and store; else keep the sums in scratch

Operands are read in place where the microkernel can read them fast, were packed when the
kernel was built (constants), or are packed by the item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType
from . import convert
from . import vecmath as V
from .codegen import Gen, Num
from .isa import Isa

Accumulators = list[list[ir.Value]]
_PREFETCH_ROWS = 4  # row tiles from which the next panel is fetched
_NEAR = 256 << 10  # bytes of results that are in L2 anyway
_COLD = 1 << 17  # bytes of constants that other layers have driven out of the nearer caches


@dataclass(frozen=True)
class Tile:
    """How a contraction is blocked.

    Attributes:
        mr, nv: Rows and vectors of columns of the register tile.
        mb, nb: Most rows and columns of a work item; multiples of the register tile's.
        kc: Most of k in one pass; 0: all.
        pack_a, pack_b: Copy the operand into scratch in the order the microkernel reads.
        rows_outer: Walk rows in the outer loop: reads A once, B once per row tile.
        unroll: Steps of k per turn of the innermost loop.
    """

    mr: int
    nv: int
    mb: int
    nb: int
    kc: int = 0
    pack_a: bool = False
    pack_b: bool = False
    rows_outer: bool = False
    unroll: int = 4

    def __str__(self) -> str:
        packs = "".join(c for c, on in (("a", self.pack_a), ("b", self.pack_b)) if on)
        parts = [f"{self.mr}x{self.nv}", f"block {self.mb}x{self.nb}"]
        if self.kc:
            parts.append(f"k {self.kc}")
        if packs:
            parts.append(f"pack {packs}")
        if self.rows_outer:
            parts.append("rows outer")
        return ", ".join(parts)


class Epilogue(Protocol):
    """What happens to a sum before it is stored."""

    cost: int
    """Roughly how many instructions `finish` emits."""
    partial: bool
    """Whether `finish` takes vectors of which only the first lanes exist."""

    def finish(
        self, g: Gen, acc: ir.Value, batch: Num, m: Num, n: Num, count: int = 0
    ) -> None:
        """Computes from ``acc`` (a vector along n, or a scalar) and stores the results.

        Args:
            count: How many lanes exist; 0: all.
        """

    def touch(self, g: Gen, batch: Num, m: Num, n: Num) -> None:
        """Asks for the lines that `finish` will read and write for a vector."""


@dataclass
class Operand:
    """Where an operand's elements are.

    Attributes:
        base: Its address.
        dtype: Element type in memory.
        offset: Batch index -> elements from ``base``.
        k_stride: Elements from one k to the next.
        stride: Elements from one row (A) or column (B) to the next.
        packed: Packed when the kernel was built: `packing.pack_rows` or `pack_columns` made it.
        pack: For B that is no matrix in memory: emits packing of one panel; see `Packer`.
    """

    base: ir.Value
    dtype: DType
    offset: Callable[[Num], Num]
    k_stride: Num = 0
    stride: Num = 0
    packed: bool = False
    pack: Packer | None = None


Packer = Callable[["Gen", ir.Value, Num, Num, Num, int, Num, Num], None]
"""``pack(g, dest, batch, n0, columns, width, k0, count)``: writes ``count`` rows of ``width``
elements to ``dest``: columns ``n0`` … of rows ``k0`` … of B, zero beyond ``columns``."""


@dataclass
class Shape:
    """Extents of a contraction; ``acc`` is the type of sums (f32 or f64)."""

    batch: DimLike
    m: DimLike
    n: DimLike
    k: DimLike
    acc: DType


def vector(isa: Isa, acc: DType) -> int:
    """Lanes of a vector of accumulators."""
    return isa.lanes(acc.bits)


class Contraction:
    """Emits one contraction kernel."""

    def __init__(
        self, g: Gen, shape: Shape, tile: Tile, a: Operand, b: Operand, epilogue: Epilogue
    ):
        self.g = g
        self.tile = tile
        self.a = a
        self.b = b
        self.epilogue = epilogue
        self.acc = shape.acc
        self.size = shape.acc.size
        self.scalar = convert.register_type(shape.acc)
        self.lanes = vector(g.isa, shape.acc)
        self.vec = V.with_lanes(self.scalar, self.lanes) if self.lanes > 1 else self.scalar
        self.nr = tile.nv * self.lanes
        self.m, self.n, self.k = g.size(shape.m), g.size(shape.n), g.size(shape.k)
        kc = tile.kc
        whole = not kc or (isinstance(self.k, int) and self.k <= kc)
        if whole and (tile.pack_b or tile.pack_a) and not isinstance(self.k, int):
            raise ValueError("packing with a symbolic k needs kc")
        self.kc: Num = self.k if whole else kc
        self.k_blocks: Num = 1 if whole else g.max(g.ceil_div(self.k, kc), 1)
        elements = D.product((shape.batch, shape.m, shape.n))
        self.far_results = not isinstance(elements, int) or elements * self.size > _NEAR
        self.in_place_b = not (b.packed or tile.pack_b or b.pack is not None)
        self._layout_scratch()

    def _layout_scratch(self) -> None:
        """Scratch: packed B, packed A, sums between passes, one tile on its way out."""
        t, kc = self.tile, self.kc
        split = not (isinstance(self.k_blocks, int) and self.k_blocks == 1)
        self.cut_k = split
        rows = -(-t.mb // t.mr) * t.mr
        cols = -(-t.nb // self.nr) * self.nr
        kc_int = kc if isinstance(kc, int) else 0
        if self.tail_needs_packing and not isinstance(kc, int):
            raise ValueError("columns that do not fill a panel need a known block of k")
        at = 0
        self.b_at = at
        if t.pack_b or self.b.pack is not None:
            at += kc_int * cols * self.size
        elif self.tail_needs_packing:
            at += kc_int * self.nr * self.size
        self.a_at = at = _round64(at)
        if t.pack_a:
            at += kc_int * rows * self.size
        self.c_at = at = _round64(at)
        if split:
            at += rows * cols * self.size
        self.t_at = at = _round64(at)
        self.scratch_bytes = at + _round64(t.mr * self.nr * self.size)

    @property
    def tail_needs_packing(self) -> bool:
        """Whether the last columns of an in-place B are copied first (reading whole vectors
        there could leave the buffer)."""
        return self.in_place_b and not (isinstance(self.n, int) and self.n % self.nr == 0)

    # --- blocks --------------------------------------------------------------------------

    @staticmethod
    def blocks(shape: Shape, tile: Tile) -> tuple[DimLike, DimLike]:
        """Blocks of rows and of columns."""
        return D.ceil_div(shape.m, tile.mb), D.ceil_div(shape.n, tile.nb)

    def emit(self) -> None:
        """The loop over work items ``begin`` … ``end``."""
        g, t = self.g, self.tile
        mbs, nbs = g.ceil_div(self.m, t.mb), g.ceil_div(self.n, t.nb)
        with g.loop(g.begin, g.end) as item:
            rest = g.div(item.index, nbs)
            nb = g.mod(item.index, nbs)
            mb, batch = g.mod(rest, mbs), g.div(rest, mbs)
            m0 = 0 if mbs == 1 else g.mul(mb, t.mb)
            n0 = 0 if nbs == 1 else g.mul(nb, t.nb)
            m1 = self.m if mbs == 1 else g.min(g.add(m0, t.mb), self.m)
            n1 = self.n if nbs == 1 else g.min(g.add(n0, t.nb), self.n)
            self._item(batch, m0, m1, n0, n1)

    def _item(self, batch: Num, m0: Num, m1: Num, n0: Num, n1: Num) -> None:
        g, t = self.g, self.tile
        self.batch, self.m0, self.m1, self.n0, self.n1 = batch, m0, m1, n0, n1
        self.a_base = g.at(self.a.base, self.a.offset(batch), self._bytes(self.a))
        self.b_base = self.b.base
        if self.b.pack is None:
            self.b_base = g.at(self.b.base, self.b.offset(batch), self._bytes(self.b))
        if self.cut_k:
            self._clear_sums()
        with g.loop(0, self.k_blocks) as kb:
            self.k0 = g.mul(kb.index, self.kc) if self.cut_k else 0
            self.kn = g.min(self.kc, g.sub(self.k, self.k0)) if self.cut_k else self.k
            self.last = g.test("==", kb.index, g.sub(self.k_blocks, 1)) if self.cut_k else True
            if t.pack_b or self.b.pack is not None:
                self._pack_b_block()
            elif self.tail_needs_packing:
                self._pack_b_tail()
            if t.pack_a:
                self._pack_a_block()
            if t.rows_outer:
                self._rows(
                    lambda i, mr, r: self._columns(lambda j, nv, c: self._micro(i, mr, r, j, nv, c))
                )
            else:
                self._columns(
                    lambda j, nv, c: self._rows(lambda i, mr, r: self._micro(i, mr, r, j, nv, c))
                )

    @staticmethod
    def _bytes(x: Operand) -> int:
        return x.dtype.size

    def _clear_sums(self) -> None:
        g, t = self.g, self.tile
        rows = -(-t.mb // t.mr) * t.mr
        count = rows * (-(-t.nb // self.nr) * self.nr) // self.lanes
        zero = V.const(self.vec, 0)
        with g.loop(0, count) as i:
            at = g.at(
                g.scratch, g.add(g.mul(i.index, self.lanes), self.c_at // self.size), self.size
            )
            g.store(zero, at, self.lanes * self.size)

    def _rows(self, body: Callable[[Num, int, Num], None]) -> None:
        """Calls ``body(row, tile height, valid rows)`` for the item's row tiles."""
        g, mr = self.g, self.tile.mr
        tail: Num = g.mod(self.m, mr)
        whole = g.sub(self.m, tail)
        end = g.min(self.m1, whole)
        if g.test("<", self.m0, end) is not False:
            with g.loop(self.m0, end, mr) as i:
                body(i.index, mr, mr)
        if isinstance(tail, int) and tail == 0:
            return
        height = tail if isinstance(tail, int) else mr
        _when(g, g.test(">", self.m1, whole), lambda: body(whole, height, tail))

    def _columns(self, body: Callable[[Num, int, Num], None]) -> None:
        """Calls ``body(column, vectors, valid columns)`` for the item's panels."""
        g, nr = self.g, self.nr
        tail: Num = g.mod(self.n, nr)
        whole = g.sub(self.n, tail)
        end = g.min(self.n1, whole)
        if g.test("<", self.n0, end) is not False:
            with g.loop(self.n0, end, nr) as j:
                body(j.index, self.tile.nv, nr)
        if isinstance(tail, int) and tail == 0:
            return
        nv = -(-tail // self.lanes) if isinstance(tail, int) else self.tile.nv
        _when(g, g.test(">", self.n1, whole), lambda: body(whole, nv, tail))

    # --- the microkernel -----------------------------------------------------------------

    def _micro(self, i: Num, mr: int, rows: Num, j: Num, nv: int, cols: Num) -> None:
        """One register tile at row ``i`` and column ``j``."""
        g = self.g
        a_rows, a_step = self._a_rows(i, mr, rows)
        b_base, b_step = self._b_panel(j, nv, cols)
        sums = self._sums_at(i, j)
        zero = V.const(self.vec, 0)
        if self.cut_k:
            start = [[self._sum_slot(sums, r, v) for v in range(nv)] for r in range(mr)]
            acc = [[g.load(self.vec, p, self.lanes * self.size) for p in row] for row in start]
        else:
            acc = [[zero] * nv for _ in range(mr)]
        whole = mr == self.tile.mr and nv == self.tile.nv
        if self.far_results and whole and rows == mr:
            self._touch(i, j)
        ahead = self._next_panel(i, b_base, nv) if whole else None
        acc = self._k_loop(acc, a_rows, a_step, b_base, b_step, whole, ahead)
        if self.last is True:
            self._finish(acc, i, rows, j, cols)
            return
        with g.b.if_else(self.last) as (then, otherwise):
            with then:
                self._finish(acc, i, rows, j, cols)
            with otherwise:
                for r in range(mr):
                    for v in range(nv):
                        slot = self._sum_slot(sums, r, v)
                        g.store(acc[r][v], slot, self.lanes * self.size)

    def _touch(self, i: Num, j: Num) -> None:
        """Asks for the tile's results while its sums are computed: lines that are far away would
        hold up the stores."""
        g, t = self.g, self.tile
        for r in range(t.mr):
            for v in range(t.nv):
                self.epilogue.touch(g, self.batch, g.add(i, r), g.add(j, v * self.lanes))

    def _sums_at(self, i: Num, j: Num) -> ir.Value | None:
        if not self.cut_k:
            return None
        g = self.g
        cols = -(-self.tile.nb // self.nr) * self.nr
        flat = g.add(g.mul(g.sub(i, self.m0), cols), g.mul(g.sub(j, self.n0), self.tile.mr))
        return g.at(g.scratch, g.add(flat, self.c_at // self.size), self.size)

    def _sum_slot(self, sums: ir.Value | None, r: int, v: int) -> ir.Value:
        assert sums is not None
        return self.g.at(sums, (r * self.tile.nv + v) * self.lanes, self.size)

    def _a_rows(self, i: Num, mr: int, rows: Num) -> tuple[list[ir.Value], Num]:
        """Addresses of the tile's rows at the block's first k, and bytes from k to k."""
        g = self.g
        if self.tile.pack_a:
            flat = g.mul(g.sub(i, self.m0), self.kc)
            base = g.at(g.scratch, g.add(flat, self.a_at // self.size), self.size)
            return [g.at(base, r, self.size) for r in range(mr)], mr * self.size
        if self.a.packed:
            base = g.at(self.a_base, g.add(g.mul(i, self.k), g.mul(self.k0, mr)), self.size)
            return [g.at(base, r, self.size) for r in range(mr)], mr * self.size
        size = self.a.dtype.size
        first = g.mul(self.k0, self.a.k_stride)
        if isinstance(rows, int):  # one base and offsets, which take no registers where known
            base = g.at(self.a_base, g.add(g.mul(i, self.a.stride), first), size)
            at = [g.at(base, g.mul(r, self.a.stride), size) for r in range(mr)]
            return at, g.mul(self.a.k_stride, size)
        at = []
        for r in range(mr):
            row = g.add(i, g.min(r, g.sub(rows, 1)))
            at.append(g.at(self.a_base, g.add(g.mul(row, self.a.stride), first), size))
        return at, g.mul(self.a.k_stride, size)

    def _b_panel(self, j: Num, nv: int, cols: Num) -> tuple[ir.Value, Num]:
        """Address of the panel at the block's first k, and bytes from k to k."""
        g, size = self.g, self.size
        width = nv * self.lanes
        if self.tile.pack_b or self.b.pack is not None:
            flat = g.mul(g.sub(j, self.n0), self.kc)
            return g.at(g.scratch, g.add(flat, self.b_at // size), size), width * size
        if self.b.packed:
            flat = g.add(g.mul(j, self.k), g.mul(self.k0, width))
            return g.at(self.b_base, flat, size), width * size
        flat = g.add(j, g.mul(self.k0, self.b.k_stride))
        direct = g.at(self.b_base, flat, size)
        if isinstance(cols, int) and cols == self.nr:
            return direct, g.mul(self.b.k_stride, size)
        return g.at(g.scratch, self.b_at // size, size), width * size

    def _ahead(self) -> int:
        """Bytes of the panel to come that a turn of the innermost loop fetches, so that all row
        tiles together fetch it; 0: not at all.

        A panel of constants is read from memory by the first row tile and from L2 by the others.
        Unless these fetch the next panel meanwhile, the cores wait at the beginning of each.
        """
        t, sizes = self.tile, (self.n, self.k)
        rows = min(t.mb, self.m) if isinstance(self.m, int) else t.mb
        if not self.b.packed or t.rows_outer or rows < _PREFETCH_ROWS * t.mr:
            return 0
        if all(isinstance(x, int) for x in sizes) and self.n * self.k * self.size < _COLD:
            return 0
        turn = t.mr * self.nr * self.size * t.unroll
        return -(-turn // (rows * t.unroll)) * t.unroll

    def _next_panel(self, i: Num, b: ir.Value, nv: int) -> ir.Value | None:
        """Address of the part of the next panel that the row tile at ``i`` fetches."""
        g, step = self.g, self._ahead()
        if not step:
            return None
        tile = g.div(g.sub(i, self.m0), self.tile.mr)
        part = g.mul(g.mul(tile, self.kn), step // self.tile.unroll)
        return g.at(g.at(b, g.mul(self.k, nv * self.lanes), self.size), part)

    def _prefetch(self, ahead: ir.Value, k: Num) -> None:
        g, step = self.g, self._ahead()
        at = g.at(ahead, g.mul(k, step // self.tile.unroll))
        for line in range(0, step, g.isa.line):
            V.prefetch(g.b, g.at(at, line), level=2)

    def _even(self, unroll: int) -> bool:
        """Whether every block of k is a multiple of ``unroll``."""
        return all(isinstance(x, int) and x % unroll == 0 for x in (self.k, self.kc))

    def _k_loop(
        self,
        acc: Accumulators,
        a_rows: list[ir.Value],
        a_step: Num,
        b: ir.Value,
        b_step: Num,
        whole: bool,
        ahead: ir.Value | None = None,
    ) -> Accumulators:
        g = self.g
        nv = len(acc[0])
        flat = [x for row in acc for x in row]

        def step(k: Num, sums: list[ir.Value]) -> list[ir.Value]:
            cols = [
                g.load(
                    self.vec, g.at(g.at(b, g.mul(k, b_step)), v * self.lanes * self.size), self.size
                )
                for v in range(nv)
            ]
            out = []
            for r, row in enumerate(a_rows):
                x = self._broadcast(g.at(row, g.mul(k, a_step)))
                for v in range(nv):
                    out.append(self._fma(x, cols[v], sums[r * nv + v]))
            return out

        # Edge tiles run seldom: less code serves them better than more speed.
        unroll = max(1, self.tile.unroll if whole else min(2, self.tile.unroll))
        left = 0 if self._even(unroll) else g.mod(self.kn, unroll)
        steps = g.sub(self.kn, left)
        if g.test(">", steps, 0) is not False:
            with g.loop(0, steps, unroll, carried=flat) as k:
                sums = k.carried
                if ahead is not None:
                    self._prefetch(ahead, k.index)
                for u in range(unroll):
                    sums = step(g.add(k.index, u), sums)
                k.next = sums
            flat = k.results
        if not (isinstance(left, int) and left == 0):
            with g.loop(steps, self.kn, 1, carried=flat) as k:
                k.next = step(k.index, k.carried)
            flat = k.results
        return [flat[r * nv : (r + 1) * nv] for r in range(len(acc))]

    def _broadcast(self, at: ir.Value) -> ir.Value:
        g = self.g
        dtype = self.acc if (self.tile.pack_a or self.a.packed) else self.a.dtype
        x = convert.from_memory(g.b, g.load(convert.memory_type(dtype), at), dtype)
        return V.splat(g.b, x, self.lanes if self.lanes > 1 else 0)

    def _fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        # Without the instruction, llvm.fma would be a library call per element.
        return V.intrinsic(self.g.b, "fma" if self.g.isa.fma else "fmuladd", x, y, z)

    # --- results -------------------------------------------------------------------------

    def _finish(self, acc: Accumulators, i: Num, rows: Num, j: Num, cols: Num) -> None:
        """Epilogue of a tile: on the accumulators where the tile is whole and the epilogue
        short, otherwise from memory in a loop, which keeps code small."""
        g = self.g
        mr, nv = len(acc), len(acc[0])
        split = isinstance(cols, int) and self.epilogue.partial
        whole = rows == mr and (cols == nv * self.lanes or split)
        if whole and self.epilogue.cost * mr * nv <= 400:
            for r in range(mr):
                for v in range(nv):
                    n = g.add(j, v * self.lanes)
                    self._out(acc[r][v], g.add(i, r), n, g.sub(cols, v * self.lanes))
            return
        width = nv * self.lanes
        buffer = g.at(g.scratch, self.t_at)
        for r in range(mr):
            for v in range(nv):
                at = g.at(buffer, r * width + v * self.lanes, self.size)
                g.store(acc[r][v], at, self.lanes * self.size)
        full = g.mul(g.div(cols, self.lanes), self.lanes) if self.lanes > 1 else 0
        with g.loop(0, rows) as row:
            m = g.add(i, row.index)
            line = g.at(buffer, g.mul(row.index, width), self.size)
            if g.test(">", full, 0) is not False:
                with g.loop(0, full, self.lanes) as c:
                    x = g.load(self.vec, g.at(line, c.index, self.size), self.lanes * self.size)
                    self.epilogue.finish(g, x, self.batch, m, g.add(j, c.index))
            if split and full != cols:
                x = g.load(self.vec, g.at(line, full, self.size), self.lanes * self.size)
                self._out(x, m, g.add(j, full), g.sub(cols, full))
            elif g.test("<", full, cols) is not False:
                with g.loop(full, cols) as c:
                    x = g.load(self.scalar, g.at(line, c.index, self.size))
                    self.epilogue.finish(g, x, self.batch, m, g.add(j, c.index))

    def _out(self, x: ir.Value, m: Num, n: Num, left: Num) -> None:
        """The epilogue of a vector with ``left`` columns from its first on."""
        count = left if isinstance(left, int) and left < self.lanes else 0
        self.epilogue.finish(self.g, x, self.batch, m, n, count)

    # --- packing -------------------------------------------------------------------------

    def _pack_b_block(self) -> None:
        def panel(j: Num, nv: int, cols: Num) -> None:
            g = self.g
            flat = g.add(g.mul(g.sub(j, self.n0), self.kc), self.b_at // self.size)
            self._pack_panel(g.at(g.scratch, flat, self.size), j, cols, nv * self.lanes)

        self._columns(panel)

    def _pack_b_tail(self) -> None:
        def panel(j: Num, nv: int, cols: Num) -> None:
            self._pack_panel(self.g.at(self.g.scratch, self.b_at), j, cols, nv * self.lanes)

        g = self.g
        tail = g.mod(self.n, self.nr)
        whole = g.sub(self.n, tail)
        nv = -(-tail // self.lanes) if isinstance(tail, int) else self.tile.nv
        _when(
            g,
            g.both(g.test(">", self.n1, whole), g.test(">", tail, 0)),
            lambda: panel(whole, nv, tail),
        )

    def _pack_panel(self, dest: ir.Value, j: Num, cols: Num, width: int) -> None:
        from . import packing

        if self.b.pack is not None:
            self.b.pack(self.g, dest, self.batch, j, cols, width, self.k0, self.kn)
        else:
            packing.emit_columns(
                self.g, dest, self.b_base, self.b, self.acc, j, cols, width, self.k0, self.kn
            )

    def _pack_a_block(self) -> None:
        from . import packing

        def tile(i: Num, mr: int, rows: Num) -> None:
            g = self.g
            flat = g.add(g.mul(g.sub(i, self.m0), self.kc), self.a_at // self.size)
            packing.emit_rows(
                g,
                g.at(g.scratch, flat, self.size),
                self.a_base,
                self.a,
                self.acc,
                i,
                rows,
                mr,
                self.k0,
                self.kn,
            )

        self._rows(tile)


def _round64(n: int) -> int:
    return -(-n // 64) * 64


def _when(g: Gen, cond: bool | ir.Value, body: Callable[[], None]) -> None:
    if cond is False:
        return
    if cond is True:
        body()
        return
    with g.b.if_then(cond):
        body()


def register_tiles(isa: Isa, acc: DType) -> Sequence[tuple[int, int]]:
    """Register tiles (rows, vectors) that fit the CPU's registers, best first: as few loads for
    their multiply-adds as there can be without spilling."""
    if isa.vector_registers >= 32:
        return ((14, 2), (8, 3), (6, 4), (12, 2))
    return ((6, 2), (4, 3))
