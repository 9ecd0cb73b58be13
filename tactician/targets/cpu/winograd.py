"""Tactic: Winograd convolution of 3x3 windows on channels-last tensors, with fused epilogue.

Floor per layer: the direct convolution's operations / 2.25 (F(2, 3)), / 4 (F(4, 3)) or / 5.06
(F(6, 3)) at the core's FMA peak, less what tiles waste at edges, plus the transforms' trips
through the cache. Transformed weights are 1.8, 4 and 7.1 times as large as the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import f32
from ...ir.graph import Node, Value
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from ...tactics.tactic import Tactic, register_tactic
from .conv_common import Epilogue, Problem, RuntimeSizes, argument, least, stored_last, unsuited
from .conv_direct import tile_cycles
from .conv_ir import F32, I64, PTR, Loop
from .printer import text_of
from .winograd_ir import Parts, Winograd, ahead_share, scratch
from .winograd_math import transforms

Array = np.ndarray[Any, Any]
_FEW = 16  # channels from which on transforms are small beside the products
_PAYS = 0.9  # a candidate is worth timing up to this share of the direct convolution's cost
_NEAR = 1.5  # and up to this many times the best candidate's
_ASSUMED_TILES = 192  # if their number is known only at run time
_INEXACT = 1.1  # F(6, 3) must be modelled so much faster to be tried first
_SOURCES = SourceCache()
_LEAST_TILES, _MOST_TILES = 24, 128  # of an item: few wait for weights, many leave the cache
_MOST_ROOM = 6 << 20  # bytes of an item's transformed inputs and outputs
_L2_RATE, _L3_RATE, _MEMORY_RATE = 32, 12, 5  # bytes a cycle


@register_tactic
class WinogradConvolution(Tactic):
    """Convolution of f32 channels-last tensors with constant 3x3 windows."""

    name = "conv_winograd"
    target = "cpu"
    priority = 45
    approximate = True

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return _refused(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = _refused(region, device)
        if why is not None:
            return why
        assert region.anchor is not None
        if not all(map(stored_last, region.outputs)):
            return "the result is not stored channels-last"
        if region.anchor.inputs[0] not in region.physical:
            return "the input is not stored channels-last"
        if not self.candidates(region, device):
            return "direct convolution takes about as many cycles by the model"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Winograd]:
        problem = Problem(region)
        return best_blockings(problem, device, direct_cycles(problem, device))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return Builder(Problem(region), candidate, device.isa.fingerprint).build()


def _refused(region: Region, device: Any) -> str | None:
    why = unsuited(region, device)
    if why is not None:
        return why
    assert region.anchor is not None and region.anchor.inputs[0] is not None
    if region.anchor.inputs[0].dtype is not f32:
        return "needs f32"
    return unsuited_window(region.anchor)


def unsuited_window(node: Node) -> str | None:
    """Why a convolution's geometry is not for Winograd, or None."""
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    if w.dims[2:] != (3, 3):
        return "the window is not 3x3"
    axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    if {a.stride for a in axes} | {a.dilation for a in axes} != {1}:
        return "has a stride or dilation"
    if node.attrs.groups != 1:
        return "has groups"
    if int(w.dims[0]) < _FEW or int(w.dims[1]) < _FEW:  # type: ignore[arg-type]
        return f"fewer than {_FEW} channels"
    return None


# --- choosing ---------------------------------------------------------------------------------


def best_blockings(
    p: Problem, device: Any, direct: float, sizes: Sequence[int] = (2, 4, 6)
) -> list[Winograd]:
    """Blockings worth timing beside a direct convolution of so many modelled cycles."""
    found = [f for m in sizes for f in _best(p, m, device)]
    # of two that are about as fast, the more exact one
    found.sort(key=lambda f: f[0] * (_INEXACT if f[1].m == 6 else 1))
    limit = min(_PAYS * direct, _NEAR * found[0][0])
    return [w for cycles, w in found if cycles < limit]


def _tile_counts(p: Problem, m: int) -> tuple[D.DimLike, D.DimLike]:
    """Tiles down and across an image."""
    down, across = (D.ceil_div(a.out, m) for a in p.axes)
    return down, across


def _tile_count(p: Problem, m: int) -> int:
    """All tiles, or a guess."""
    down, across = _tile_counts(p, m)
    n = p.images * down * across
    return n if isinstance(n, int) else _ASSUMED_TILES


def direct_cycles(p: Problem, device: Any) -> float:
    """Modelled cycles of a direct convolution, of the busiest thread."""
    pixels = p.images * D.product(a.out for a in p.axes)
    count = pixels if isinstance(pixels, int) else _ASSUMED_TILES * 16
    return 0.54 * count * 9 * p.c * p.k / device.isa.lanes(32) / device.threads


def _best(p: Problem, m: int, device: Any) -> list[tuple[float, Winograd]]:
    """The blocking of F(m, 3) that should be fastest, the one with another number of groups, and
    one in which every thread reads a part of the weights of its own, once: how well threads share
    what comes from far is hard to tell. With modelled cycles."""
    lanes = device.isa.lanes(32)
    n = _tile_count(p, m)
    room = 4 * (m + 2) ** 2 * (p.c + p.k)
    most = max(_LEAST_TILES, min(_MOST_TILES, _MOST_ROOM // room))
    counts = {n, most, *(size for size in (24, 32, 48, 64, 96) if size < most)}
    options = []
    for mr, nv in _registers(p, n, device.isa):
        blocks = -(-p.k // (nv * lanes))
        parts = {-(-n // c) + extra for c in counts if c <= most for extra in range(device.threads)}
        for tiles in {-(-n // x) for x in parts}:
            tiles = -(-tiles // mr) * mr
            for groups in {1, device.threads, 2 * device.threads}:
                if groups <= blocks:
                    options.append(Winograd(m, tiles, mr, nv, lanes, groups))
    scored = sorted(((_cycles(p, w, n, device), w) for w in options), key=lambda s: s[0])
    other = (s for s in scored if s[1].groups != scored[0][1].groups)
    found = [scored[0], *itertools.islice(other, 1)]
    apart = (s for s in scored if s[1].tiles >= n and s[1].groups == device.threads > 1)
    found += [s for s in itertools.islice(apart, 1) if s not in found]
    return found


def _registers(p: Problem, n: int, isa: Any) -> list[tuple[int, int]]:
    """Register tiles that fit the machine."""
    if isa.vector_registers >= 32:
        shapes = [(8, 3), (6, 4), (5, 5), (4, 6), (5, 4), (4, 4), (12, 2), (8, 2)]
    else:
        shapes = [(6, 2), (5, 2), (4, 2)]
    fits = [(min(mr, n), nv) for mr, nv in shapes if (nv - 1) * isa.lanes(32) < p.k]
    return list(dict.fromkeys(fits or [(min(4, n), 1)]))


def _cycles(p: Problem, w: Winograd, n: int, device: Any) -> float:
    """Modelled cycles of the busiest thread.

    Weights come while products are computed, first from memory, then from where they fit. What
    lies between the transforms and the products makes two trips.
    """
    isa = device.isa
    blocks = -(-p.k // w.nr)
    group = -(-blocks // w.groups)
    squares = w.t * w.t
    tiles = min(w.tiles, n)
    whole, rest = divmod(tiles, w.mr)
    rows = whole * tile_cycles(w.mr, w.nv, isa) + (tile_cycles(rest, w.nv, isa) if rest else 0)
    products = squares * p.c * group * rows
    weights = 4 * squares * p.c * group * w.nr
    room = 4 * squares * tiles * (p.c + group * w.nr)
    transforms = 6 * tiles * squares * (p.c + group * w.nr) / w.lanes
    if room > isa.l2 * 3 // 4:
        transforms += 2 * room / _L3_RATE
    near = weights + room < isa.l2
    first = max(products, weights / (_L2_RATE if near else _MEMORY_RATE))
    again = max(products, weights / (_L2_RATE if near else _L3_RATE))
    items = -(-(-(-n // w.tiles) * w.groups) // device.threads)
    cold = min(items, -(-w.groups // device.threads))
    return float(cold * first + (items - cold) * again + items * transforms)


# --- building ---------------------------------------------------------------------------------


class Builder:
    """Builds the kernel of one candidate.

    Attributes:
        symbol: Names the kernel.
        x_type: What the input is addressed by.
        variant: What else the code depends on, as text.
    """

    variant = ""
    symbol = "conv_winograd"
    x_type: ir.Type = F32

    def __init__(self, problem: Problem, candidate: Winograd, isa: str):
        self.p, self.w = p, w = problem, candidate
        self.isa = isa
        self.module = ir.Module(self.symbol)
        self.sizes = RuntimeSizes()
        self.blocks = -(-p.k // w.nr)
        self.per_group = -(-self.blocks // w.groups)
        self.groups = -(-self.blocks // self.per_group)
        self.depth = self._depth()
        self.s = scratch(w, self.depth, self.per_group * w.nr, p.pitch)
        self.x = p.region.physical[p.x]
        self.bias = np.zeros(self.blocks * w.nr, np.float32)
        weights, bias, outside, operands = self._constants()
        self.biased = bias is not None
        if bias is not None:
            self.bias[: p.k] = bias
        self.args: list[Value | np.ndarray[Any, Any]] = [
            self.x, self._pack(weights), outside, self.bias, *operands, p.out
        ]
        self.down, self.across = _tile_counts(p, w.m)
        self.tiles = p.images * self.down * self.across
        self.runs = D.ceil_div(self.tiles, w.tiles)
        self.epilogue = self._epilogue()

    def _constants(self) -> tuple[Array, Array | None, Array, list[Value]]:
        """Weights, bias, a pixel outside the image, and operands of the epilogue."""
        p = self.p
        extra = [v for v in p.region.inputs if v not in (p.w, p.bias, self.x)]
        bias = None if p.bias is None else _constant(p.bias)
        return _constant(p.w), bias, np.zeros(p.c, np.float32), extra

    def _depth(self) -> int:
        """Elements of 4 bytes in the inner dimension of products."""
        return self.p.c

    def _pack(self, weights: Array) -> Array:
        return pack_weights(weights, self.w)

    def _epilogue(self) -> Epilogue:
        return Epilogue(self.p, self.args, self.sizes)

    def _parts(self) -> Parts:
        p = self.p
        return Parts(self.module, self.w, p.c, p.k, p.pitch, self.s)

    def build(self) -> Kernel:
        p, w = self.p, self.w
        name = f"{self.symbol}_f{w.m}"
        key = f"{self.isa} {w!r} {self.variant} {signature(p.region)}"
        source, dims = _SOURCES.get(key, lambda: self._generate(name))
        pixels = p.images * D.product(a.out for a in p.axes)
        return Kernel(
            symbol=name,
            source=source,
            args=tuple(self.args),
            dims=dims,
            work=self.runs * self.groups,
            scratch=4 * self.s.size,
            flops=pixels * (2 * p.k * p.c * 9),
            notes={"candidate": str(w)},
        )

    def _generate(self, name: str) -> tuple[str, tuple[D.DimLike, ...]]:
        w = self.w
        types = [PTR, PTR, I64, I64, PTR]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        parts = self._parts()
        self.input, self.border = parts.input(), parts.border()
        self.products = {r: parts.product(r) for r in sorted({w.mr, *self._rests()})}
        self.output = parts.output(self.epilogue, self.biased)
        self._main(fn)
        return text_of(self.module), tuple(self.sizes.dims)

    def _rests(self) -> set[int]:
        """Rows of register tiles at the end of runs: known, or single ones."""
        if not isinstance(self.tiles, int):
            return {1}
        return {self.tiles % self.w.tiles % self.w.mr} - {0}

    # --- the iteration over items ------------------------------------------------------------

    def _main(self, fn: ir.Function) -> None:
        args, dims, begin, end, self.scratch = fn.args
        b = ir.IRBuilder(fn.append_basic_block("entry"))
        self.b, self.fn_args, self.fn_dims = b, args, dims
        size = lambda d: self.sizes.value(b, dims, d)  # noqa: E731
        self.pointers = [argument(b, args, i) for i in range(4)]
        self.height, self.width = (size(a.size) for a in self.p.axes)
        self.out_sizes = [size(a.out) for a in self.p.axes]
        self.stride = b.mul(self.width, I64(self.p.pitch))
        self.image = b.mul(self.stride, self.height)
        self.grid = size(self.down), size(self.across)
        tiles, runs = size(self.tiles), size(self.runs)
        with Loop(b, begin, end) as item:
            # items of one group follow each other: a thread keeps to its part of the weights
            group, run = b.sdiv(item.index, runs), b.srem(item.index, runs)
            first = b.mul(run, I64(self.w.tiles))
            count = least(b, b.sub(tiles, first), I64(self.w.tiles))
            self._item(group, first, count)
        b.ret_void()

    def _item(self, group: Any, first: Any, count: Any) -> None:
        b, s, w = self.b, self.s, self.w
        with Loop(b, I64(0), count) as tile:
            v = b.gep(self.scratch, [b.mul(tile.index, I64(s.v_row))], source_etype=F32)
            self._load_tile(v, b.add(first, tile.index))
        block = b.mul(group, I64(self.per_group))
        blocks = least(b, I64(self.per_group), b.sub(I64(self.blocks), block))
        with Loop(b, I64(0), I64(w.t * w.t)) as square, Loop(b, I64(0), blocks) as panel:
            self._products(square.index, panel.index, block, blocks, count)
        k = b.mul(block, I64(w.nr))
        channels = least(b, I64(self.per_group * w.nr), b.sub(I64(self.p.k), k))
        with Loop(b, I64(0), count) as tile:
            at = b.add(b.mul(tile.index, I64(s.m_row)), I64(s.m_at))
            m = b.gep(self.scratch, [at], source_etype=F32)
            self._store_tile(m, b.add(first, tile.index), k, channels)

    def _tile(self, number: Any) -> tuple[Any, Any, Any]:
        """Image and first output pixel of a tile."""
        b = self.b
        down, across = self.grid
        x, rows = b.srem(number, across), b.sdiv(number, across)
        y, image = b.srem(rows, down), b.sdiv(rows, down)
        m = I64(self.w.m)
        return image, b.mul(y, m), b.mul(x, m)

    def _load_tile(self, v: Any, number: Any) -> None:
        b, t = self.b, I64(self.w.t)
        image, y, x = self._tile(number)
        y, x = (b.sub(o, I64(pre)) for o, pre in zip((y, x), self.p.shape.pre, strict=True))
        base = b.gep(self.pointers[0], [b.mul(image, self.image)], source_etype=self.x_type)
        fits = b.and_(b.icmp_signed(">=", y, I64(0)), b.icmp_signed(">=", x, I64(0)))
        for at, size in ((y, self.height), (x, self.width)):
            fits = b.and_(fits, b.icmp_signed("<=", b.add(at, t), size))
        with b.if_else(fits) as (inside, border):
            with inside:
                at = b.add(b.mul(y, self.stride), b.mul(x, I64(self.p.pitch)))
                pixel = b.gep(base, [at], source_etype=self.x_type)
                b.call(self.input, [pixel, v, self.stride])
            with border:
                copy = b.gep(self.scratch, [I64(self.s.m_at)], source_etype=F32)
                sizes = [y, x, self.height, self.width]
                b.call(self.border, [base, copy, self.stride, self.pointers[2], *sizes])
                b.call(self.input, [copy, v, I64(self.w.t * self.p.pitch)])

    def _products(self, square: Any, panel: Any, first: Any, panels: Any, count: Any) -> None:
        """All rows of one position and one block of output channels."""
        b, s, w = self.b, self.s, self.w
        size = I64(self.depth * w.nr)
        number = b.add(b.mul(square, I64(self.blocks)), b.add(first, panel))
        u = b.gep(self.pointers[1], [b.mul(number, size)], source_etype=F32)
        # after the group's last panel comes the first one of the next position
        more = b.icmp_signed("<", b.add(panel, I64(1)), panels)
        step = b.select(more, I64(1), b.sub(I64(self.blocks + 1), panels))
        following = b.gep(u, [b.mul(step, size)], source_etype=F32)
        v_at = b.mul(square, I64(s.v_plane))
        m_at = b.add(b.mul(square, I64(s.m_plane)), I64(s.m_at))
        m_at = b.add(m_at, b.mul(panel, I64(w.nr)))

        def call(rows: int, row: Any) -> None:
            v = b.gep(
                self.scratch, [b.add(v_at, b.mul(row, I64(s.v_row)))], source_etype=F32
            )
            m = b.gep(
                self.scratch, [b.add(m_at, b.mul(row, I64(s.m_row)))], source_etype=F32
            )
            share = b.mul(b.sdiv(row, I64(w.mr)), I64(ahead_share(w, self.depth)))
            useful = b.icmp_signed("<", share, size)
            ahead = b.select(useful, b.gep(following, [share], source_etype=F32), u)
            b.call(self.products[rows], [v, u, m, ahead])

        whole = b.sub(count, b.srem(count, I64(w.mr)))
        with Loop(b, I64(0), whole, w.mr) as row:
            call(w.mr, row.index)
        for rest in self._rests():
            with Loop(b, whole, count, rest) as row:
                call(rest, row.index)

    def _store_tile(self, m: Any, number: Any, k: Any, channels: Any) -> None:
        b = self.b
        image, y, x = self._tile(number)
        room = I64(self.w.m)
        rows, columns = (
            least(b, room, b.sub(size, at))
            for at, size in zip((y, x), self.out_sizes, strict=True)
        )
        pixels = b.gep(self.scratch, [I64(self.s.y_at)], source_etype=F32)
        values = [m, pixels, self.pointers[3], self.fn_args, self.fn_dims]
        b.call(self.output, [*values, image, y, x, rows, columns, k, channels])


def _constant(v: Value) -> np.ndarray[Any, Any]:
    assert v.const is not None
    return v.const


def pack_weights(weights: np.ndarray[Any, Any], w: Winograd) -> np.ndarray[Any, Any]:
    """Weights ``[K, C, 3, 3]`` transformed, as ``[t * t][K / nr][C][nr]`` with zeros at the end
    of the last block."""
    k, c = weights.shape[:2]
    blocks = -(-k // w.nr)
    padded = np.zeros((blocks * w.nr, c, 9), weights.dtype)
    padded[:k] = weights.reshape(k, c, 9)
    windows = padded.reshape(blocks, w.nr, c, 9).transpose(0, 2, 1, 3)
    out = np.empty((w.t * w.t, blocks, c, w.nr), np.float32)
    for block in range(blocks):  # so that what is in double precision stays small
        out[:, block] = transforms(w.m).weights(windows[block].reshape(c, w.nr, 3, 3))
    return out
