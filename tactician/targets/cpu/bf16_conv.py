"""Tactic: bf16 convolutions and matrix products by dot products, sums in f32.

Floor per layer: two products a lane for each instruction, twice as many as f32 has.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir.dtypes import bf16
from ...ir.graph import Node
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from .bf16_dot import Bf16Dot
from .conv_common import is_depthwise, stored_otherwise
from .conv_common import unsuited as unsuited_conv
from .dots import Products
from .int_conv import DotBuilder, IntTile, tiles
from .int_problem import IntProblem
from .vecmath import I16

_OPS = ("convolution", "matmul")


@register_tactic
class Bf16Contraction(Tactic):
    """Convolution of bf16 channels-last tensors, and matrix products, with constant weights."""

    name = "bf16_dot"
    target = "cpu"
    priority = 55

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        conv = region.anchor is not None and region.anchor.op == "convolution"
        return conv and unsuited(region, device, device.isa.bf16_dot) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = unsuited(region, device, device.isa.bf16_dot)
        if why is not None:
            return why
        assert region.anchor is not None
        return stored_otherwise(region) if region.anchor.op == "convolution" else None

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        return tiles(Bf16Problem(region), device, ["bf16"])

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(Bf16Problem(region), candidate, device.isa).build()


def unsuited(region: Region, device: Any, able: bool) -> str | None:
    """Why products of bf16 can't do the region whatever its layouts, or None.

    Args:
        able: Whether the CPU has such products.
    """
    node = region.anchor
    if node is None or node.op not in _OPS:
        return "not a convolution or matrix product"
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    if x.dtype is not bf16 or w.dtype is not bf16 or w.const is None:
        return "needs bf16 operands, the second constant"
    if not able:
        return "the CPU has no dot products of bf16"
    if device.isa.lanes(32) < 2:
        return "the CPU's vectors are too short"
    if len(region.outputs) != 1 or len(region.stages) > 1:
        return "the epilogue has more than one result"
    if node.op == "matmul":
        return _unsuited_matmul(node)
    if is_depthwise(node):
        return "channels do not meet"
    return unsuited_conv(region, device)


def _unsuited_matmul(node: Node) -> str | None:
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    if node.attrs.ta == "transpose":
        return "the first operand is transposed"
    if node.attrs.tb == "vector" and b.rank > 1:
        return "the second operand is a batch of vectors"
    if any(d != 1 for d in b.dims[:-2]):
        return "the second operand is a batch of matrices"
    if not isinstance(a.dims[-1], int) or 0 in b.dims or 0 in a.dims:
        return "the inner extent must be fixed and not zero"
    return None


class Bf16Problem(IntProblem):
    """The same numbers for operands in bf16; weights are kept in f32 until they are packed."""

    group = 2
    packed_type = np.float32

    def _operands(self) -> None:
        full = np.asarray(self.w.const).astype(np.float32)
        if self.node.op == "matmul":
            self._matmul(full, 0)
        else:
            self._conv(full, 0)

    @property
    def bias(self) -> np.ndarray[Any, Any] | None:
        """A convolution's bias."""
        b = (*self.node.inputs, None)[2] if self.node.op == "convolution" else None
        return None if b is None else np.asarray(b.const).astype(np.float32)


class _Builder(DotBuilder):
    """Builds the kernel of one candidate."""

    symbol = "bf16_dot"
    x_type: ir.Type = I16

    def _products(self, tile: IntTile, isa: Any) -> Products:
        return Bf16Dot(tile.lanes, isa)

    def _starts(self) -> np.ndarray[Any, Any]:
        assert isinstance(self.p, Bf16Problem)
        bias = self.p.bias
        return np.zeros(self.p.k, np.float32) if bias is None else bias
