"""Integer convolutions and matrix products as one problem: rows of pixels by output channels.

A matrix product with constant columns is a 1x1 convolution whose pixels are its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Node, Value
from ...ops._windows import Axis
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region, is_slice, pitch
from .conv_common import is_depthwise, own_or_by_channel, single
from .conv_ir import ConvShape
from .int_dot import GROUP
from .int_epilogue import Finish, IntEpilogue, RowEpilogue

Array = np.ndarray[Any, Any]
_FEW = 4  # up to so many channels, neighbouring taps of a row are read as one run
_LEAST_LANES = 4  # groups of channels may consist of vectors as short as this
_MOST_TAPS = 256  # of a depthwise window, whose sums are to be exact in f32


def unsuited(region: Region, device: Any) -> str | None:
    """Why no integer kernel can do the region whatever its layouts, or None."""
    node = region.anchor
    if node is None or node.op not in ("int_conv", "int_matmul"):
        return "not an integer convolution or matrix product"
    x, w, x_zero, w_zero = (*node.inputs, None, None)[:4]
    assert x is not None and w is not None
    if x.dtype.bits != 8 or w.dtype.bits != 8 or w.const is None:
        return "needs 8-bit operands, the second constant"
    if x_zero is not None and x_zero.numel != 1:
        return "the first operand has several zero points"
    if w_zero is not None and w_zero.const is None:
        return "a zero point of the weights is known only at run time"
    if len(region.outputs) != 1 or len(region.stages) > 1:
        return "the epilogue has more than one result"
    return _unsuited_matmul(node) if node.op == "int_matmul" else _unsuited_conv(node, device)


def _unsuited_matmul(node: Node) -> str | None:
    a, b = node.inputs[:2]
    assert a is not None and b is not None and b.const is not None
    if node.attrs.ta == "transpose" and a.rank > 1:
        return "the first operand is transposed"
    if any(d != 1 for d in b.dims[:-2]):
        return "the second operand is a batch of matrices"
    if not isinstance(a.dims[-1], int) or 0 in b.dims or 0 in a.dims:
        return "the inner extent must be fixed and not zero"
    return None


def _unsuited_conv(node: Node, device: Any) -> str | None:
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    if not isinstance(x.dims[1], int) or 0 in x.dims or 0 in w.dims:
        return "the number of channels must be fixed"
    groups = node.attrs.groups
    per_group = int(w.dims[0]) // groups  # type: ignore[arg-type]
    lanes = min(device.isa.lanes(32), _LEAST_LANES)
    if groups > 1 and per_group % lanes and not is_depthwise(node):
        return f"{per_group} channels per group are no multiple of {lanes}"
    axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    if not all(isinstance(a.pre, int) for a in axes):
        return "the padding depends on a size known only at run time"
    if is_depthwise(node) and np.prod([a.window for a in axes]) > _MOST_TAPS:
        return f"more than {_MOST_TAPS} taps of a channel"
    return None


class IntProblem:
    """The numbers of an integer contraction, as the code generator needs them.

    Attributes:
        c: Input channels that meet in one tap, or bytes of one run of taps (see ``merged``).
        k: Output channels.
        weights: Integers ``[k, c, taps]``, zero points subtracted.
        merged: The last axis' taps lie behind each other in memory and are read as one run.
        axes: Spatial axes; register tiles lie along the last.
        x_zero: The zero point of the first operand: a number, or a value read at run time.
        flat: Pixels can be counted through all images and rows.
        pitch: Bytes from pixel to pixel of the input.
        group: Elements of the input that meet in one lane.
    """

    by_image = False
    group = GROUP
    packed_type: Any = np.int16  # holds differences of 8-bit numbers
    few = _FEW  # most channels of which a row of taps may be one run

    def __init__(self, region: Region):
        self.region = region
        node = region.anchor
        assert node is not None
        self.node: Node = node
        x, w = node.inputs[:2]
        assert x is not None and w is not None and w.const is not None
        self.x, self.w, self.y = x, w, node.outputs[0]
        self.x_signed = x.dtype.kind == "i"
        sums = region.physical.get(self.y, self.y)
        self.finish = Finish(region.stages[-1] if region.stages else None, sums, _most(w.const))
        self.stage = self.finish.stage
        self.out = region.outputs[0]
        self.x_zero: int | Value = 0
        self._operands()

    def _operands(self) -> None:
        """Weights and zero points."""
        x_zero, w_zero = (*self.node.inputs, None, None)[2:4]
        if x_zero is not None:
            known = x_zero.const
            self.x_zero = x_zero if known is None else int(np.asarray(known).reshape(()))
        zero = 0 if w_zero is None else np.asarray(w_zero.const, np.int32)
        full = np.asarray(self.w.const).astype(np.int32)
        if self.node.op == "int_matmul":
            self._matmul(full, zero)
        else:
            self._conv(full, zero)

    def _matmul(self, w: Array, zero: Any) -> None:
        node, x = self.node, self.x
        matrix = w.reshape(w.shape[-2:]) if w.ndim > 1 else w[:, None]
        if node.attrs.tb == "transpose" and w.ndim > 1:
            matrix = matrix.T
        matrix = matrix - (zero.reshape(1, -1) if np.size(zero) > 1 else np.reshape(zero, ()))
        self.weights = np.ascontiguousarray(matrix.T)[:, :, None]
        self.k, self.c = self.weights.shape[:2]
        rows = D.product(x.dims[:-1])
        self.order = [0]
        self.axes: Sequence[Axis] = [Axis(rows, rows, 0, 0, 1, 1, 1)]
        self.x_dims: list[D.DimLike] = [rows]
        self.images: D.DimLike = 1
        self.groups, self.channels = 1, self.c
        self.pitch = self.c
        self.depthwise = self.merged = False
        self.flat = True
        self.stored = x
        self._shape()

    def _conv(self, w: Array, zero: Any) -> None:
        node, x, region = self.node, self.x, self.region
        window = kernel_extents(self.w)
        axes = conv_axes(x.dims[2:], window, node.attrs)
        self.order = sorted(range(len(axes)), key=lambda d: not single(axes[d]))
        self.axes = [axes[d] for d in self.order]
        self.x_dims = [x.dims[2 + d] for d in self.order]
        if np.size(zero) > 1:
            zero = np.reshape(zero, (-1, *(1,) * (w.ndim - 1)))
        w = (w - zero).reshape(w.shape[0], w.shape[1], -1, self.axes[-1].window)
        self.groups, self.images = node.attrs.groups, x.dims[0]
        self.channels = int(x.dims[1])  # type: ignore[arg-type]
        self.depthwise = is_depthwise(node)
        last = self.axes[-1]
        self.merged = (
            self.groups == 1 and self.channels <= self.few and self.channels % self.group != 0
            and last.window > 1 and last.dilation == 1
        )  # fmt: skip
        self.stored = region.physical.get(x, x)
        self.pitch = int(pitch(self.stored)) if is_slice(self.stored) else self.channels  # type: ignore[arg-type]
        if self.merged and self.pitch != self.channels:
            self.merged = False
        if self.merged:  # [k, (tap, channel), outer taps]
            self.weights = w.transpose(0, 3, 1, 2).reshape(w.shape[0], -1, w.shape[2])
        else:
            self.weights = w.reshape(w.shape[0], w.shape[1], -1)
        self.k, self.c = self.weights.shape[:2]
        plain = self.weights.shape[2] == 1 and not self.merged
        self.flat = (
            plain and all(a.stride == 1 and a.pre == 0 and a.out == a.size for a in axes)
            and own_or_by_channel(self.stage, self.out)
            and (x.dims[0] == 1 or any(a.out != 1 for a in axes))
        )  # fmt: skip
        self._shape()

    def _shape(self) -> None:
        window = tuple(a.window for a in self.axes)
        self.x_channel, self.x_pixel = 1, self.pitch
        self.shape = ConvShape(
            c=self.c, k=self.k, window=(*window[:-1], 1) if self.merged else window,
            stride=tuple(a.stride for a in self.axes),
            dilation=tuple(a.dilation for a in self.axes),
            pre=tuple(int(a.pre) for a in self.axes),  # type: ignore[arg-type]
            x_channel=1, x_pixel=self.pitch, depthwise=self.depthwise,
            past=tuple(a.past_end for a in self.axes),
        )  # fmt: skip

    @property
    def padded(self) -> bool:
        """Whether any tap may lie outside the input."""
        return any(a.pre != 0 or a.past_end for a in self.axes)


def _most(w: Array) -> float:
    """What no sum exceeds: both factors are differences of bytes."""
    return 255.0 * 255.0 * w.size


def epilogue(p: IntProblem, operands: Sequence[Any], sizes: Any) -> IntEpilogue:
    """Emits the region's stage on sums.

    Args:
        operands: What the kernel's pointer arguments are, constants that were made as values.
    """
    kind = IntEpilogue if p.node.op in ("int_conv", "convolution") else RowEpilogue
    return kind(p, operands, sizes)


def arguments(p: IntProblem, operands: Sequence[Any]) -> list[Any]:
    """The kernel's arguments: like ``operands``, made constants as arrays."""
    made = p.finish.constants
    return [made.get(v, v) if isinstance(v, Value) else v for v in operands]
