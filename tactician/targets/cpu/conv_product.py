"""Tactic: convolutions of single pixels as one matrix product, on channels-last tensors.

Pixels of all images are the rows, input channels the inner dimension: the matrix is the tensor as
it lies in memory. Blocks, microkernel and candidates are those of matrix products (`gemm`,
`contraction`); results leave through the convolutions' epilogue, which knows their layout.

Floor: ``2 * pixels * K * C`` operations at the core's FMA peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import f32
from ...ir.graph import Value
from ...regions.region import Region
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from ...tactics.tactic import Tactic, register_tactic
from . import epilogue as epi
from . import gemm
from . import vecmath as V
from .codegen import Gen, Num
from .contraction import Contraction, Operand, Shape, Tile, vector
from .conv_common import Epilogue, Problem, stored_otherwise, unsuited
from .emitter import Emitter
from .isa import Isa
from .vecmath import I64

_FEWEST = 4  # pixels; fewer are left to tiles that read weights once
_SOURCES = SourceCache()


@register_tactic
class ProductConvolution(Tactic):
    """Convolution with a window of one pixel and without stride or padding, constant weights."""

    name = "conv_product"
    target = "cpu"
    priority = 40

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return unsuited(region, device) is None and _no_product(Problem(region)) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = unsuited(region, device) or stored_otherwise(region)
        return why or _no_product(Problem(region))

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        return gemm.tiles(product_of(Problem(region)), device.isa, device.threads)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _build(Problem(region), candidate, device.isa)


def _no_product(p: Problem) -> str | None:
    """Why the convolution is no product of pixels with weights."""
    if not p.countable or p.groups > 1:
        return "pixels have neighbours in the window, or cannot be counted through"
    pixels = p.images * D.product(a.out for a in p.axes)
    if isinstance(pixels, int) and pixels < _FEWEST:
        return "few pixels"
    return None


def product_of(p: Problem) -> gemm.Problem:
    """Rows are pixels, columns output channels."""
    pixels = p.images * D.product(a.out for a in p.axes)
    x = gemm.Matrix(p.x, (), pixels, p.c, p.pitch, 1)
    w = gemm.Matrix(p.w, (), p.k, p.c, p.c, 1)
    return gemm.Problem((), pixels, p.k, p.c, x, w, (pixels,), (p.k,), f32)


def _build(p: Problem, tile: Tile, isa: Isa) -> Kernel:
    """The kernel of one candidate."""
    problem = product_of(p)
    tile = gemm.settled(tile, problem)
    lanes = vector(isa, f32)
    packed = gemm.pack_constant(problem.b, f32, False, tile, lanes)
    bias = np.zeros(-(-p.k // lanes) * lanes, np.float32)
    if p.bias is not None:
        assert p.bias.const is not None
        bias[: p.k] = p.bias.const
    weights = {p.w, p.bias}
    x = p.region.physical.get(p.x, p.x)
    extra = [v for v in p.region.inputs if v not in weights and v is not x]
    args: list[Value | np.ndarray[Any, Any]] = [x, packed, bias, *extra, p.out]
    shape = Shape(1, problem.m, problem.n, problem.k, f32)
    g = Gen("conv_product", isa)
    a = Operand(g.arg(0), p.x.dtype, lambda _: 0, 1, g.size(p.pitch))
    b = Operand(g.arg(1), f32, lambda _: 0, packed=True)
    core = Contraction(g, shape, tile, a, b, PixelEpilogue(g, p, args))

    def generate() -> tuple[str, tuple[D.DimLike, ...]]:
        core.emit()
        return g.finish(), tuple(g.dims)

    source, dims = _SOURCES.get(f"{isa.fingerprint} {tile!r} {signature(p.region)}", generate)
    rows, columns = Contraction.blocks(shape, tile)
    return Kernel(
        "conv_product", source, tuple(args), dims, rows * columns,
        gemm.grain(tile, problem.m, problem.n, problem.k), core.scratch_bytes,
        problem.m * problem.n * problem.k * 2, notes={"tile": str(tile)},
    )  # fmt: skip


class _Sizes:
    """Run-time sizes of a kernel, for emitters."""

    def __init__(self, g: Gen):
        self.g = g

    def value(self, b: ir.IRBuilder, array: Any, d: D.DimLike) -> Any:
        return self.g.value(self.g.size(d))


class PixelEpilogue:
    """The bias and the convolutions' epilogue, for a contraction (see `contraction.Epilogue`).

    Args:
        g: The kernel.
        p: The convolution.
        args: Its arguments; the third one is the bias.
    """

    partial = True

    def __init__(self, g: Gen, p: Problem, args: Sequence[Any]):
        self.inner = Epilogue(p, args, _Sizes(g))
        self.inner.know({v: g.arg(i) for i, v in enumerate(args) if isinstance(v, Value)})
        self.bias = g.arg(2) if p.bias is not None else None
        self.rank = len(p.axes)
        self.cost = 2 + sum(epi.cost(s.expr) for s in p.region.stages)

    def _emitter(self, g: Gen) -> Emitter:
        return self.inner.at(g.b, None, I64(0), [I64(0)] * (self.rank - 1))

    def finish(
        self, g: Gen, acc: ir.Value, batch: Num, m: Num, n: Num, count: int = 0
    ) -> None:
        """See `contraction.Epilogue`."""
        if self.bias is not None:
            acc = g.b.fadd(acc, g.load(acc.type, g.at(self.bias, n, 4), 4))
        lanes = V.lanes(acc.type)
        self.inner.store(self._emitter(g), g.value(m), g.value(n), acc, count or lanes)

    def touch(self, g: Gen, batch: Num, m: Num, n: Num) -> None:
        """See `contraction.Epilogue`."""
        self.inner.touch(self._emitter(g), g.value(m), g.value(n))
