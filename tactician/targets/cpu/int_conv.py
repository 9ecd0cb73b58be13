"""Tactic: 8-bit convolutions and matrix products in s32, with fused epilogue.

Floor per layer: ``pixels * K * C * taps`` products at the rate of the CPU's best instruction:
4 a lane and cycle with dot products (VNNI: two vectors a cycle), else 2 by pairs of s16, or 4 by
pairs of bytes in three instructions for 32 products (256 bits, four instructions a cycle).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import int_problem
from . import vecmath as V
from .conv_common import RuntimeSizes, argument, stored_otherwise
from .conv_direct import Builder, even_split, tile_cycles
from .conv_ir import Loop, Tile
from .dot_guard import LIMIT_BYTES, block_of
from .dot_ir import DotMicroKernel
from .dots import Products
from .emitter import Shifted
from .int_depthwise import DepthwiseMicroKernel, pack_depthwise
from .int_dot import GROUP, Dot, methods, pair_limits
from .int_problem import IntProblem
from .vecmath import I8, I32, I64

_LINE = 64  # bytes of a cache line
_MANY_BYTES = 64 << 10  # of weights: fewer are soon in the cache
_FILL = 64  # bytes of zero points written at once


@dataclass(frozen=True)
class IntTile(Tile):
    """A register tile, and how products are made."""

    dot: str = "dot"

    def __str__(self) -> str:
        return f"{super().__str__()} {self.dot}"


@register_tactic
class IntContraction(Tactic):
    """Convolution of 8-bit channels-last tensors, and matrix products, with constant weights."""

    name = "int_dot"
    target = "cpu"
    priority = 50

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        conv = region.anchor is not None and region.anchor.op == "int_conv"
        return (
            conv and int_problem.unsuited(region, device) is None
            and bool(_choices(region, device))
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        why = int_problem.unsuited(region, device)
        if why is not None:
            return why
        assert region.anchor is not None
        why = stored_otherwise(region) if region.anchor.op == "int_conv" else None
        if why is not None:
            return why
        if not _choices(region, device):
            return "the CPU's vectors are too short"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        p = IntProblem(region)
        rows = p.images * D.product(a.out for a in p.axes)
        once = isinstance(rows, int) and rows < 4
        names = [m.name for m in methods(device.isa, p.x_signed, p.weights, once)]
        return tiles(p, device, names[:1] if p.depthwise else names)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return DotBuilder(IntProblem(region), candidate, device.isa).build()


def _choices(region: Region, device: Any) -> list[Dot]:
    p = IntProblem(region)
    return methods(device.isa, p.x_signed, p.weights)


# --- choosing tiles ---------------------------------------------------------------------------


def tiles(p: IntProblem, device: Any, names: list[str]) -> list[IntTile]:
    """Register tiles that fit the machine, most promising first."""
    lanes = vector_lanes(p.k // p.groups if p.groups > 1 and not p.depthwise else 0, device)
    many = device.isa.vector_registers >= 32
    shapes = (
        [(6, 4), (8, 3), (7, 3), (12, 2), (5, 4), (4, 4), (12, 1)] if many
        else [(4, 2), (5, 2), (3, 3), (4, 3), (6, 1), (8, 1)]
    )  # fmt: skip
    width = p.axes[-1].out if not p.flat else p.images * D.product(a.out for a in p.axes)
    if isinstance(width, int) and width < 4:
        most = 6 if many else 4
        shapes = [(width, nv) for nv in (most, 2, 1) if width * nv < (28 if many else 12)]
    per_group = p.k // p.groups
    grouped = p.groups > 1 and not p.depthwise
    fit = [
        (mr, nv) for mr, nv in shapes
        if (nv - 1) * lanes < p.k and not (grouped and per_group % (nv * lanes))
    ] or [(4, 1)]
    if isinstance(width, int):
        fit = list(dict.fromkeys((-(-width // even_split(width, mr)[0]), nv) for mr, nv in fit))
        fit.sort(key=lambda s: _cost(p, width, s[0], s[1], narrowed(device.isa, lanes)))
    rows = 1 if p.flat or not isinstance(width, int) else max(1, 64 // max(width, 1))
    late = _late(p)
    choices = [(s, first) for s, first in ((fit[0], late), *((s, late) for s in fit[1:3]))]
    choices.insert(2, (fit[0], not late))
    made = [
        IntTile(mr, nv, lanes, rows, first, _unroll(p, lanes, name), name)
        for (mr, nv), first in choices for name in names
    ]  # fmt: skip
    if "guarded" in names:  # what is slower on usual operands is tried in one tile alone
        made = [t for n, t in enumerate(made) if t.dot == "guarded" or n < len(names)]
    return made


def _unroll(p: IntProblem, lanes: int, name: str) -> int:
    """Groups of channels that a turn of the inner loop takes."""
    if name != "guarded":
        return 1 if name == "madd" else 2
    return block_of(p.c, lanes * GROUP) // GROUP


def vector_lanes(per_group: int, device: Any) -> int:
    """Lanes of the widest vectors that groups of channels consist of (0: there is one group)."""
    lanes = int(device.isa.lanes(32))
    while per_group % lanes and lanes > 4:
        lanes //= 2
    return lanes


def narrowed(isa: Any, lanes: int) -> Any:
    """The CPU as one with vectors of so many 32-bit lanes."""
    return replace(isa, vector_bits=32 * lanes)


def _cost(p: IntProblem, width: int, mr: int, nv: int, isa: Any) -> float:
    """Modelled cycles of a row of outputs, relative to other tiles."""
    blocks = -(-p.k // (nv * isa.lanes(32)))
    count, low, more = even_split(width, mr)
    long, short = tile_cycles(low + 1, nv, isa), tile_cycles(low, nv, isa)
    return blocks * (more * long + (count - more) * short)


def _late(p: IntProblem) -> bool:
    """Whether weights are larger than the image: then they should be read once."""
    pixels = D.product(p.x_dims)
    return not isinstance(pixels, int) or p.weights.size > pixels * p.channels


# --- building ---------------------------------------------------------------------------------


class DotBuilder(Builder):
    """Builds the kernel of one candidate."""

    p: IntProblem  # type: ignore[assignment]
    epilogue: int_problem.IntEpilogue
    symbol = "int_dot"
    x_type: ir.Type = I8
    w_type: ir.Type = I8

    def __init__(self, problem: IntProblem, tile: IntTile, isa: Any):
        p = problem
        self.p, self.t, self.isa = p, tile, isa.fingerprint
        self.dot = self._products(tile, isa)
        self.module = ir.Module(self.symbol)
        self.module.isa = isa  # conversions of types ask it
        self.sizes = RuntimeSizes()
        self.rank = len(p.axes)
        self.packed = self._packed()
        self.ahead = self._ahead()
        self.x = p.stored
        known = isinstance(p.x_zero, int)
        # runs of outer rows that lie outside are as long as a tile is wide
        wide = p.c + tile.mr * p.shape.stride[-1] * p.pitch + _FILL if p.merged else 0
        room = -(-max(p.c, p.channels, tile.nr, wide) // _FILL) * _FILL
        self.zeros = np.full(room, p.x_zero if known else 0, self.x.dtype.np)
        operands: list[Value | np.ndarray[Any, Any]] = [self.x, self.packed, self.zeros]
        operands += [v for v in p.finish.values() if v is not self.x]
        self.zero_arg = -1
        if isinstance(p.x_zero, Value):
            if p.x_zero not in operands[3:]:
                operands.append(p.x_zero)
            self.zero_arg = next(i for i, v in enumerate(operands) if v is p.x_zero)
        operands.append(p.out)
        self.epilogue = int_problem.epilogue(p, operands, self.sizes)
        self.args = int_problem.arguments(p, operands)
        self.variant = p.finish.variant
        self.tiles = {}

    def build(self) -> Kernel:
        kernel = super().build()
        if self.zero_arg >= 0:
            kernel.scratch = self.zeros.size
        return kernel

    def _turns(self) -> int:
        """Turns of the inner loop in a tile."""
        groups = -(-self.p.c // self.dot.group)
        return self.p.shape.taps * (groups // self.t.unroll)

    def _ahead(self) -> int:
        """Lines of the next panel that each turn of the inner loop asks for, so that the tiles of
        an item together ask for all of it; 0 where weights are few, or have no such loop."""
        tiles, turns = self._item_tiles(), self._turns()
        groups = -(-self.p.c // self.dot.group)
        if not tiles or groups <= 4 or groups % self.t.unroll or self.p.depthwise or self.p.merged:
            return 0
        if self.packed.nbytes < _MANY_BYTES or len(self.packed) == 1:
            return 0
        return -(-(self.packed.shape[1] // _LINE) // (tiles * turns))

    def _streams(self, w: Any, column: Any, number: Any) -> list[Any]:
        """The part of the next panel that a tile asks for."""
        if not self.ahead:
            return [w]
        b = self.b
        share = self.ahead * self._turns() * _LINE
        at = b.gep(self.after, [b.mul(number, I64(share))], source_etype=I8)
        useful = b.icmp_signed("<", number, I64(-(-self.packed.shape[1] // share)))
        return [b.select(useful, at, w)]

    def _products(self, tile: IntTile, isa: Any) -> Products:
        return Dot(tile.dot, tile.lanes, self.p.x_signed, narrowed(isa, tile.lanes))

    def _starts(self) -> np.ndarray[Any, Any]:
        """What the sums of each channel start from, or are to be multiplied with the zero point
        first."""
        sums = self.p.weights.sum(axis=(1, 2), dtype=np.int64)
        zero = self.p.x_zero
        if isinstance(zero, int):
            sums = sums * (zero + self._shift())
        return (-sums).astype(np.int32)

    def _packed(self) -> np.ndarray[Any, Any]:
        p, t, dot = self.p, self.t, self.dot
        blocks = -(-p.k // t.nr)
        start = self._starts()
        header = np.zeros(blocks * t.nr, start.dtype)
        header[: p.k] = start
        head = header.reshape(blocks, t.nr).view(np.uint8)
        if p.depthwise:
            return np.ascontiguousarray(
                np.concatenate([head, pack_depthwise(p.weights, t.nr, blocks)], axis=1)
            )
        groups = -(-p.c // dot.group)
        taps = p.weights.shape[2]
        full = np.zeros((blocks * t.nr, groups * dot.group, taps), p.packed_type)
        full[: p.k, : p.c] = p.weights
        parts = full.reshape(blocks, t.nr, groups, dot.group, taps).transpose(0, 4, 2, 1, 3)
        body = dot.pack(parts).reshape(blocks, -1)
        return np.ascontiguousarray(np.concatenate([head, body, *self._limits(full)], axis=1))

    def _limits(self, weights: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """What the operands of each panel are held against, if they are."""
        if not self.dot.guarded:
            return []
        limits = pair_limits(weights).reshape(-1, self.t.nr).min(axis=1)
        return [np.repeat(limits[:, None], LIMIT_BYTES, axis=1)]

    def _shift(self) -> int:
        return 0 if self.p.depthwise else getattr(self.dot, "shift", 0)

    def _prepare(self, b: ir.IRBuilder, scratch: Any) -> None:
        """Taps outside the input read the zero point: made here where only the run knows it."""
        if self.zero_arg < 0 or not self.p.padded:
            return
        byte = b.load(argument(b, self.fn_args, self.zero_arg), typ=I8)
        line = V.splat(b, byte, _FILL)
        with Loop(b, I64(0), I64(self.zeros.size), _FILL) as at:
            b.store(line, b.gep(scratch, [at.index], source_etype=I8), align=1)
        self.pointers[2] = scratch

    def _tile(self, mr: int, channels: int) -> Any:
        name = f"tile_{mr}x{channels}"
        p, t = self.p, self.t
        mk: Any
        if p.depthwise:
            mk = DepthwiseMicroKernel(self.module, p.shape, t, mr, channels, name, p.x_signed)
        else:
            run = p.axes[-1].window if p.merged else 0
            mk = DotMicroKernel(
                self.module, p.shape, t, self.dot, mr, channels, name, run, self.ahead
            )
        zero = None if self.zero_arg < 0 else self._zero_point
        mk.build(zero, lambda m, b, acc: self._store(m, b, acc, channels), self._before)
        return mk

    def _before(self, m: Any, b: ir.IRBuilder) -> None:
        """What the epilogue will read beside the sums comes nearer while they are made."""
        self.epilogue.enter(b, m.args)
        em = self.epilogue.at(b, m.dims, m.image, m.pixel[:-1])
        for i in range(m.mr):
            self.epilogue.touch_pixel(em, Shifted(m.pixel[-1], i), m.k, self.t.nr)

    def _store(self, m: Any, b: ir.IRBuilder, acc: list[Any], channels: int) -> None:
        """The epilogue, on all vectors of a pixel at once where they are full: narrowing to
        bytes takes fewer instructions then."""
        lanes = self.t.lanes
        self.epilogue.enter(b, m.args)
        em = self.epilogue.at(b, m.dims, m.image, m.pixel[:-1])
        for i in range(m.mr):
            x = Shifted(m.pixel[-1], i)
            row = acc[i * m.nv : (i + 1) * m.nv]
            done = 0
            while done < m.nv:
                full = (channels - done * lanes) // lanes  # vectors left that are full
                n = 1 << max(0, full.bit_length() - 1) if self.p.out.dtype.size == 1 else 1
                k = Shifted(m.k, done * lanes)
                sums = V.concat(b, row[done : done + n])
                self.epilogue.store(em, x, k, sums, channels - done * lanes)
                done += n

    def _zero_point(self, b: ir.IRBuilder, args: Any) -> ir.Value:
        """The input's zero point as it counts in registers."""
        byte = b.load(argument(b, args, self.zero_arg), typ=I8)
        wide = b.sext(byte, I32) if self.p.x_signed else b.zext(byte, I32)
        return b.add(wide, I32(self._shift()))
