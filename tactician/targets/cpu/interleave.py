"""Tactic: pictures of few channels from planes to pixels, as bytes.

What a network's first 8-bit layer reads is such a picture, quantized. Loops over pixels have no
vectors to work on (three channels), loops over columns store byte by byte; here a vector of
columns of every plane is computed, then their bytes are shuffled into place.

Floor: the planes are read once, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...regions.region import Region, is_slice
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import vecmath as V
from .conv_common import RuntimeSizes, argument, least
from .conv_ir import PTR, Loop
from .emitter import Emitter
from .loops import refusal
from .printer import text_of
from .vecmath import I8, I32, I64

_MOST_CHANNELS = 4
_GRAIN = 8192  # bytes worth a thread


@dataclass(frozen=True)
class Columns:
    """How many columns are done at a time."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} columns"


@register_tactic
class Interleave(Tactic):
    """Pointwise functions of planes, stored as the bytes of pixels."""

    name = "interleave"
    target = "cpu"
    priority = 40

    def refuse(self, region: Region, device: Any) -> str | None:
        if region.anchor is not None or len(region.stages) != 1 or len(region.outputs) != 1:
            return "not one loop nest"
        stage = region.stages[0]
        out = stage.out
        if out.dtype.size != 1 or out.dtype.bits != 8 or out.rank != 4 or is_slice(out):
            return "the result is not bytes of four dimensions"
        channels, wide = out.dims[-1], out.dims[-2]
        if not (isinstance(channels, int) and 2 <= channels <= _MOST_CHANNELS):
            return f"the result's last extent is not 2 to {_MOST_CHANNELS}"
        if not (isinstance(wide, int) and wide >= device.isa.lanes(32) >= 4):
            return "rows are shorter than a vector"
        n, y, x, c = stage.vars
        for ld in E.loads(stage.expr):
            planes = len(ld.index) == 4 and all(
                i is v for i, v in zip(ld.index, (n, c, y, x), strict=True)
            )
            constant = ld.value.numel == 1
            if ld.guard is not None or not (planes or constant) or is_slice(ld.value):
                return "operands are not planes of the same size"
        if any(isinstance(e, E.Reduce) for e in E.walk(stage.expr)):
            return "there are sums"
        return refusal(region.stages, device.isa.f16c)

    def candidates(self, region: Region, device: Any) -> Sequence[Columns]:
        wide, lanes = region.stages[0].out.dims[-2], device.isa.lanes(32)
        assert isinstance(wide, int)
        return [Columns(n) for n in (4 * lanes, 2 * lanes, lanes) if n <= wide][:2]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _build(region, candidate.count, device.isa)


def _build(region: Region, count: int, isa: Any) -> Kernel:
    stage = region.stages[0]
    out = stage.out
    operands = [*dict.fromkeys(ld.value for ld in E.loads(stage.expr)), out]
    sizes = RuntimeSizes()
    module = ir.Module("interleave")
    module.isa = isa  # conversions of types ask it
    types = [PTR, PTR, I64, I64, PTR]
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), types), "interleave")
    args, dims, begin, end, _ = fn.args
    b = ir.IRBuilder(fn.append_basic_block("entry"))
    pointers = {v: argument(b, args, i) for i, v in enumerate(operands)}
    n, y, x, c = stage.vars
    high = sizes.value(b, dims, out.dims[1])
    wide, channels = int(out.dims[2]), int(out.dims[3])  # type: ignore[arg-type]
    with Loop(b, begin, end) as row, Loop(b, I64(0), I64(wide), count) as col:
        first = least(b, col.index, I64(wide - count))
        em = Emitter(b, pointer=pointers.__getitem__, size=lambda d: sizes.value(b, dims, d))
        em.bind(n, b.sdiv(row.index, high))
        em.bind(y, b.srem(row.index, high))
        em.bind(x, first, width=count)
        planes = []
        for k in range(channels):
            em.push(b)
            em.bind(c, I64(k))
            planes.append(V.splat(b, em.emit(stage.expr), count))
            em.pop()
        pixel = b.add(b.mul(row.index, I64(wide)), first)
        at = b.gep(pointers[out], [b.mul(pixel, I64(channels))], source_etype=I8)
        for k, part in enumerate(_woven(b, planes)):
            b.store(part, b.gep(at, [I64(k * count)], source_etype=I8), align=1)
    b.ret_void()
    return Kernel(
        symbol="interleave",
        source=text_of(module),
        args=tuple(operands),
        dims=tuple(sizes.dims),
        work=D.product(out.dims[:2]),
        grain=max(1, _GRAIN // (wide * channels)),
    )


def _woven(b: ir.IRBuilder, planes: list[Any]) -> list[Any]:
    """The lanes of several vectors in turn, as as many vectors of the same length."""
    n, many = planes[0].type.count, len(planes)
    out = []
    for part in range(many):
        lanes = range(part * n, (part + 1) * n)
        made = planes[0]
        for k in range(1, many):
            index = []
            for place, lane in enumerate(lanes):
                pixel, channel = divmod(lane, many)
                old = pixel if k == 1 else place
                index.append(I32(n + pixel if channel == k else old))
            mask = ir.Constant(ir.VectorType(I32, n), index)
            made = b.shuffle_vector(made, planes[k], mask)
        out.append(made)
    return out
