"""Reinterpreting bits, and casts with a rounding mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..ir import dtypes as T
from ..ir.dtypes import DType
from ..ir.graph import Node, TensorType
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class BitCastAttrs:
    """``to``: an element type of the same width."""

    to: DType = T.i32


@register
class BitCast(Op):
    """The same bits as another element type."""

    name = "bit_cast"
    kind = Kind.OPAQUE
    Attrs = BitCastAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        (x,), to = node.present_inputs(), node.attrs.to
        if x.dtype.bits != to.bits or x.dtype.size != to.size:
            raise OpError(f"bits of {x.dtype} cannot be read as {to}: the widths differ")
        return [TensorType(to, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.ascontiguousarray(inputs[0]).view(node.attrs.to.np).reshape(inputs[0].shape)


@dataclass(frozen=True)
class CastE8M0Attrs:
    """``round_mode``: up, down or nearest power of two; ``saturate``: clamp what is too large
    or too small, else it becomes NaN."""

    round_mode: str = "up"
    saturate: bool = True


@register
class CastE8M0(Op):
    """A float as the power of two that `f8e8m0` holds: 2**(byte - 127), byte 255 is NaN."""

    name = "cast_e8m0"
    kind = Kind.OPAQUE
    Attrs = CastE8M0Attrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        (x,) = node.present_inputs()
        if not x.dtype.is_float:
            raise OpError(f"a power of two is made from a float, not from {x.dtype}")
        if node.attrs.round_mode not in ("up", "down", "nearest"):
            raise OpError(f"round_mode is {node.attrs.round_mode!r}; expected up, down, nearest")
        return [TensorType(T.f8e8m0, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = np.abs(np.asarray(inputs[0]).astype(np.float64))
        mantissa, exponent = np.frexp(x)  # x = mantissa * 2**exponent, 0.5 <= mantissa < 1
        mode = node.attrs.round_mode
        if mode == "up":
            exponent = np.where(mantissa > 0.5, exponent, exponent - 1)
        elif mode == "down":
            exponent = exponent - 1
        else:
            exponent = np.where(mantissa >= 0.75, exponent, exponent - 1)
        byte = exponent + 127
        nan = ~np.isfinite(x) & ~(np.isinf(x) & node.attrs.saturate)
        byte = np.where(x == 0, 0, byte)
        byte = np.where(np.isinf(x), 255, byte)
        if not node.attrs.saturate:
            nan |= byte > 254
        byte = np.where(nan, 255, np.clip(byte, 0, 254))
        return byte.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
