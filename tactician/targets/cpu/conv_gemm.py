"""Convolutions and deconvolutions of any rank as one matrix product per image and group.

Rows are output channels, columns output positions, and ``k`` runs over (input channel, window
position). The matrix of input windows never exists: each work item packs the panels it needs,
reading the input where a window position falls (1x1 windows are read in place). Operands are
stored channels-first. This is the tactic for every case that the channels-last kernels do not
take: other element types, weights known only at run time, groups of any size, deconvolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType, f32, f64
from ...ir.graph import Node, Value
from ...ops.conv import conv_axes, deconv_axes, kernel_extents
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import affine, convert, packing
from . import epilogue as epi
from . import vecmath as V
from .codegen import Gen, Num
from .contraction import Contraction, Operand, Shape, Tile, register_tiles, vector
from .gemm import grain
from .isa import Isa

_DEPTH = 384  # rows of packed windows in one pass


@dataclass(frozen=True)
class WindowAxis:
    """Where window position ``t`` of output ``o`` falls: ``(o * mult + base + t * step) / div``,
    if that is whole and inside ``size``."""

    mult: int
    base: DimLike
    step: int
    div: int
    taps: int
    size: DimLike
    out: DimLike


@dataclass(frozen=True)
class ConvProblem:
    """A convolution or deconvolution in the form the contraction takes."""

    x: Value
    w: Value
    bias: Value | None
    images: DimLike
    groups: int
    rows: int
    channels: int
    axes: tuple[WindowAxis, ...]
    acc: DType
    transposed: bool

    @property
    def taps(self) -> int:
        return int(np.prod([a.taps for a in self.axes], dtype=np.int64))

    @property
    def k(self) -> int:
        return self.channels * self.taps

    @property
    def positions(self) -> DimLike:
        return D.product(a.out for a in self.axes)

    @property
    def in_place(self) -> bool:
        """Whether the input is the matrix of windows as it lies in memory."""
        return self.x.dtype is self.acc and all(
            (a.taps, a.mult, a.div) == (1, 1, 1) and a.base == 0 and a.size == a.out
            for a in self.axes
        )


def problem(node: Node) -> ConvProblem:
    """The problem of a convolution or deconvolution node with known channel counts."""
    x, w, bias = (*node.inputs, None)[:3]
    assert x is not None and w is not None
    transposed = node.op == "deconvolution"
    window = kernel_extents(w)
    groups = node.attrs.groups
    axes = []
    for a in (deconv_axes if transposed else conv_axes)(x.dims[2:], window, node.attrs):
        if transposed:
            made = WindowAxis(1, a.pre, -a.dilation, a.stride, a.window, a.size, a.out)
        else:
            made = WindowAxis(a.stride, -a.pre, a.dilation, 1, a.window, a.size, a.out)
        axes.append(made)
    first, second = int(w.dims[0]), int(w.dims[1])  # type: ignore[arg-type]
    rows, channels = (second, first // groups) if transposed else (first // groups, second)
    acc = f64 if x.dtype is f64 else f32
    return ConvProblem(x, w, bias, x.dims[0], groups, rows, channels, tuple(axes), acc, transposed)


# --- packing windows --------------------------------------------------------------------------


class WindowPacker:
    """Packs panels of the matrix of windows; see `contraction.Packer`."""

    def __init__(self, g: Gen, p: ConvProblem, x: ir.Value):
        self.p = p
        self.x = x
        self.strides = [g.size(s) for s in affine.contiguous([a.size for a in p.axes])]
        self.sizes = [g.size(a.size) for a in p.axes]
        self.outs = [g.size(a.out) for a in p.axes]
        self.bases = [g.size(a.base) for a in p.axes]
        self.plane = g.size(D.product(a.size for a in p.axes))
        self.image = g.mul(self.plane, p.channels)
        self.lanes = vector(g.isa, p.acc)

    def __call__(
        self, g: Gen, dest: ir.Value, batch: Num, n0: Num, cols: Num, width: int, k0: Num,
        count: Num,
    ) -> None:  # fmt: skip
        p = self.p
        c0, channels = g.div(k0, p.taps), g.div(count, p.taps)
        at = g.add(g.mul(batch, self.image), g.mul(c0, self.plane))
        source = g.at(self.x, at, p.x.dtype.size)
        last = p.axes[-1]
        if not (last.mult == last.div == 1 and isinstance(cols, int) and cols == width):
            self._by_columns(g, dest, source, n0, cols, width, channels)
            return
        first = epi.unravel(g, n0, [a.out for a in p.axes])
        one_row = g.test("<=", g.add(first[-1], width), self.outs[-1])
        if isinstance(one_row, bool):
            if one_row:
                self._by_rows(g, dest, source, first, width, channels)
            else:
                self._by_columns(g, dest, source, n0, cols, width, channels)
            return
        with g.b.if_else(one_row) as (yes, no):
            with yes:
                self._by_rows(g, dest, source, first, width, channels)
            with no:
                self._by_columns(g, dest, source, n0, cols, width, channels)

    def _place(self, g: Gen, o: Sequence[Num], tap: Num, upto: int) -> tuple[Num, ir.Value]:
        """Offset of a window position in the input plane by the first ``upto`` axes, and whether
        it is inside along those."""
        p = self.p
        steps = epi.unravel(g, tap, [a.taps for a in p.axes])
        offset: Num = 0
        inside: Any = True
        for d, a in enumerate(p.axes[:upto]):
            at = g.add(g.add(g.mul(o[d], a.mult), self.bases[d]), g.mul(steps[d], a.step))
            inside = g.both(inside, g.test(">=", at, 0))
            if a.div != 1:
                whole = g.b.srem(g.value(at), V.I64(a.div))
                inside = g.both(inside, g.b.icmp_signed("==", whole, V.I64(0)))
                at = g.b.sdiv(g.value(at), V.I64(a.div))
            inside = g.both(inside, g.test("<", at, self.sizes[d]))
            offset = g.add(offset, g.mul(at, self.strides[d]))
        return offset, V.I1(int(inside)) if isinstance(inside, bool) else inside

    def _line(self, g: Gen, dest: ir.Value, c: Num, tap: Num, width: int) -> ir.Value:
        row = g.add(g.mul(c, self.p.taps), tap)
        return g.at(dest, g.mul(row, width), self.p.acc.size)

    def _by_columns(
        self, g: Gen, dest: ir.Value, source: ir.Value, n0: Num, cols: Num, width: int,
        channels: Num,
    ) -> None:  # fmt: skip
        """Column by column: any stride, any shape."""
        p, size = self.p, self.p.acc.size
        zero = V.const(convert.register_type(p.acc), 0)
        with g.loop(0, cols) as col:
            o = epi.unravel(g, g.add(n0, col.index), [a.out for a in p.axes])
            with g.loop(0, p.taps) as tap:
                offset, inside = self._place(g, o, tap.index, len(p.axes))
                with g.b.if_else(inside) as (yes, no):
                    with yes, g.loop(0, channels) as c:
                        at = g.add(g.mul(c.index, self.plane), offset)
                        v = packing.read(g, g.at(source, at, p.x.dtype.size), p.x.dtype, p.acc)
                        line = self._line(g, dest, c.index, tap.index, width)
                        g.store(v, g.at(line, col.index, size))
                    with no, g.loop(0, channels) as c:
                        line = self._line(g, dest, c.index, tap.index, width)
                        g.store(zero, g.at(line, col.index, size))
        if isinstance(cols, int) and cols == width:
            return
        with g.loop(0, g.mul(channels, p.taps)) as k, g.loop(cols, width) as rest:
            line = g.at(dest, g.mul(k.index, width), size)
            g.store(zero, g.at(line, rest.index, size))

    def _by_rows(
        self, g: Gen, dest: ir.Value, source: ir.Value, o: Sequence[Num], width: int,
        channels: Num,
    ) -> None:  # fmt: skip
        """All columns in one output row, which is contiguous in the input."""
        p = self.p
        with g.loop(0, p.taps) as tap:
            outer, inside = self._place(g, o, tap.index, len(p.axes) - 1)
            a = p.axes[-1]
            step = g.mul(g.mod(tap.index, a.taps), a.step)
            x0 = g.add(g.add(o[-1], self.bases[-1]), step)
            fits = g.both(g.test(">=", x0, 0), g.test("<=", g.add(x0, width), self.sizes[-1]))
            low = g.min(g.max(g.sub(0, x0), 0), width)
            high = g.max(g.min(g.sub(self.sizes[-1], x0), width), low)
            high = g.b.select(inside, g.value(high), g.value(low))
            at = g.add(outer, x0)
            quick = g.both(inside, fits)
            with g.b.if_else(V.I1(int(quick)) if isinstance(quick, bool) else quick) as (yes, no):
                with yes, g.loop(0, channels) as c:
                    row = g.at(source, g.add(g.mul(c.index, self.plane), at), p.x.dtype.size)
                    line = self._line(g, dest, c.index, tap.index, width)
                    packing.copy_line(g, line, row, p.x.dtype, p.acc, width, width, self.lanes)
                with no, g.loop(0, channels) as c:
                    row = g.at(source, g.add(g.mul(c.index, self.plane), at), p.x.dtype.size)
                    line = self._line(g, dest, c.index, tap.index, width)
                    self._clipped(g, line, row, low, high, width)

    def _clipped(
        self, g: Gen, line: ir.Value, row: ir.Value, low: Num, high: Num, width: int
    ) -> None:
        p = self.p
        zero = V.const(
            V.with_lanes(convert.register_type(p.acc), packing.lane_count(self.lanes)), 0
        )
        for at in range(0, width, self.lanes):
            g.store(zero, g.at(line, at, p.acc.size))
        with g.loop(low, high) as c:
            x = packing.read(g, g.at(row, c.index, p.x.dtype.size), p.x.dtype, p.acc)
            g.store(x, g.at(line, c.index, p.acc.size))


# --- building ---------------------------------------------------------------------------------


def _weights(p: ConvProblem) -> np.ndarray[Any, Any]:
    """Constant weights as ``[groups, rows, k]``."""
    w = np.asarray(p.w.const).astype(p.acc.np, copy=False)
    if p.transposed:
        w = w.reshape(p.groups, p.channels, p.rows, p.taps).swapaxes(1, 2)
    return w.reshape(p.groups, p.rows, p.k)


def build(region: Region, tile: Tile, isa: Isa) -> Kernel:
    """The kernel of a region whose anchor is a convolution or deconvolution."""
    assert region.anchor is not None
    p = problem(region.anchor)
    tile = replace(tile, pack_a=False, pack_b=tile.pack_b and p.in_place)
    symbol = "deconv_gemm" if p.transposed else "conv_gemm"
    g = Gen(symbol, isa)
    args: list[Value | np.ndarray[Any, Any]] = []
    pointers: dict[Value, Any] = {}

    def take(v: Value) -> Any:
        if v not in pointers:
            pointers[v] = g.arg(len(args))
            args.append(v)
        return pointers[v]

    x = take(p.x)
    shape = Shape(p.images * p.groups, p.rows, p.positions, p.k, p.acc)
    a = _a_operand(g, p, tile, args, take)
    if p.in_place:
        plane = g.size(p.positions)
        b = Operand(x, p.x.dtype, lambda i: g.mul(i, g.mul(plane, p.channels)), plane, 1)
    else:
        b = Operand(x, p.x.dtype, lambda i: 0, pack=WindowPacker(g, p, x))
    for v in (*epi.stage_inputs(region), *([p.bias] if p.bias is not None else ())):
        take(v)
    for v in region.outputs:
        take(v)

    def channel(g: Gen, batch: Num, m: Num) -> Num:
        return g.add(g.mul(g.mod(batch, p.groups), p.rows), m)

    def coordinates(g: Gen, batch: Num, m: Num, n: Num) -> list[Num]:
        spatial = epi.unravel(g, n, [a.out for a in p.axes])
        return [g.div(batch, p.groups), channel(g, batch, m), *spatial]

    def add_bias(g: Gen, acc: ir.Value, batch: Num, m: Num, n: Num) -> ir.Value:
        assert p.bias is not None
        at = g.at(pointers[p.bias], channel(g, batch, m), p.bias.dtype.size)
        return g.b.fadd(
            acc, V.splat(g.b, packing.read(g, at, p.bias.dtype, p.acc), V.lanes(acc.type))
        )

    finish = epi.RegionEpilogue(
        g, region, len(p.axes), (p.rows, g.size(p.positions)), coordinates, pointers,
        None if p.bias is None else add_bias,
    )  # fmt: skip
    core = Contraction(g, shape, tile, a, b, finish)
    core.emit()
    mbs, nbs = Contraction.blocks(shape, tile)
    return Kernel(
        symbol, g.finish(), tuple(args), tuple(g.dims), shape.batch * mbs * nbs,
        grain(tile, p.rows, p.positions, p.k), core.scratch_bytes,
        shape.batch * p.rows * p.positions * p.k * 2, notes={"tile": str(tile)},
    )  # fmt: skip


def _a_operand(g: Gen, p: ConvProblem, tile: Tile, args: list[Any], take: Any) -> Operand:
    if p.w.const is None:
        per_group = p.rows * p.k
        return Operand(take(p.w), p.w.dtype, lambda i: g.mul(g.mod(i, p.groups), per_group), 1, p.k)
    packed = packing.pack_rows(_weights(p), tile.mr)
    args.append(packed)
    size = packed.shape[-1]
    return Operand(
        g.arg(len(args) - 1), p.acc, lambda i: g.mul(g.mod(i, p.groups), size), packed=True
    )


# --- choosing tiles ---------------------------------------------------------------------------


def tiles(p: ConvProblem, isa: Isa, threads: int) -> list[Tile]:
    """Blockings worth timing, the likely best first."""
    lanes = vector(isa, p.acc)
    n = 256 if isinstance(p.positions, D.Dim) else int(p.positions)
    kc = p.taps * max(1, _DEPTH // p.taps)
    kc = 0 if p.k <= kc else kc
    out = []
    for mr, nv in register_tiles(isa, p.acc)[:3]:
        mr = min(mr, p.rows)
        nv = max(1, min(nv, -(-n // lanes)))
        nr = nv * lanes
        mb = -(-min(p.rows, 512) // mr) * mr
        nb = -(-min(n, 128) // nr) * nr
        batch = p.groups * (1 if isinstance(p.images, D.Dim) else int(p.images))
        while threads > 1 and nb > nr and batch * -(-p.rows // mb) * -(-n // nb) < 4 * threads:
            nb = -(-nb // 2 // nr) * nr
        while threads > 1 and mb > 8 * mr and batch * -(-p.rows // mb) * -(-n // nb) < 2 * threads:
            mb = -(-mb // 2 // mr) * mr
        late = p.rows * p.k * p.acc.size > isa.l2
        out.append(Tile(mr, nv, mb, nb, kc, rows_outer=late))
        if p.in_place and kc == 0:
            out.append(Tile(mr, nv, mb, nb, kc, pack_b=True, rows_outer=late))
    return list(dict.fromkeys(out))


@register_tactic
class ConvGemm(Tactic):
    """Convolution and deconvolution as matrix products of windows packed on the fly."""

    name = "conv_gemm"
    target = "cpu"
    priority = 20

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in ("convolution", "deconvolution"):
            return "not a convolution"
        x, w = node.inputs[:2]
        assert x is not None and w is not None
        if not (epi.supported_float(x.dtype) and x.dtype is w.dtype):
            return f"no convolution of {x.dtype} with {w.dtype}"
        if not D.is_static(*w.dims) or not all(w.dims):
            return f"weights {w.dims} must have known, non-zero extents"
        if node.op == "deconvolution" and w.const is None:
            return "a deconvolution's weights must be constant"
        p = problem(node)
        if any(d == 0 for d in (p.images, p.positions)):
            return "an extent is zero"
        return epi.refuse(region)

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        assert region.anchor is not None
        return tiles(problem(region.anchor), device.isa, device.threads)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return build(region, candidate, device.isa)
