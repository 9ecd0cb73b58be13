"""Integer convolutions and matrix products as one problem: rows of pixels by output channels.

A matrix product with constant columns is a 1x1 convolution whose pixels are its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import f32
from ...ir.graph import Node, Value
from ...ops._windows import Axis
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region, is_slice, pitch
from .conv_common import Epilogue, is_depthwise, own_or_by_channel, single
from .conv_ir import I64, ConvShape
from .int_dot import GROUP

Array = np.ndarray[Any, Any]
_FEW = 4  # up to so many channels, neighbouring taps of a row are read as one run


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
    if groups > 1 and per_group % device.isa.lanes(32) and not is_depthwise(node):
        return f"{per_group} channels per group are no multiple of {device.isa.lanes(32)}"
    axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    if not all(isinstance(a.pre, int) for a in axes):
        return "the padding depends on a size known only at run time"
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
    """

    def __init__(self, region: Region):
        self.region = region
        node = region.anchor
        assert node is not None
        self.node: Node = node
        x, w, x_zero, w_zero = (*node.inputs, None, None)[:4]
        assert x is not None and w is not None and w.const is not None
        self.x, self.w, self.y = x, w, node.outputs[0]
        self.x_signed = x.dtype.kind == "i"
        self.x_zero: int | Value = 0
        if x_zero is not None:
            known = x_zero.const
            self.x_zero = x_zero if known is None else int(np.asarray(known).reshape(()))
        self.stage = region.stages[-1] if region.stages else None
        self.out = region.outputs[0]
        zero = 0 if w_zero is None else np.asarray(w_zero.const, np.int32)
        full = np.asarray(w.const).astype(np.int32)
        if node.op == "int_matmul":
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
            self.groups == 1 and self.channels <= _FEW and self.channels % GROUP != 0
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
        )  # fmt: skip

    @property
    def padded(self) -> bool:
        """Whether any tap may lie outside the input."""
        return any(a.pre != 0 or a.post != 0 for a in self.axes)

def stage_values(p: IntProblem) -> list[Value]:
    """Values that the epilogue reads from memory."""
    if p.stage is None:
        return []
    source = p.region.physical.get(p.y, p.y)
    found = {ld.value: None for ld in E.loads(p.stage.expr)}
    return [v for v in found if v is not source]


def epilogue(p: IntProblem, operands: Sequence[Any], sizes: Any) -> Epilogue:
    """Emits the region's stage on sums."""
    kind = Epilogue if p.node.op == "int_conv" else _RowEpilogue
    made = kind(p, operands, sizes)  # type: ignore[arg-type]
    made.stage = E.Stage(made.stage.out, made.stage.vars, _reciprocals(made.stage.expr))
    return made


class _RowEpilogue(Epilogue):
    """The stage of a matrix product: ``x`` counts the rows of all batches."""

    def __init__(self, problem: Any, operands: Sequence[Any], sizes: Any):
        super().__init__(problem, operands, sizes)
        rows = self.stage.vars[:-1] if problem.w.rank > 1 else self.stage.vars
        self.rows = tuple(rows)
        # where operands are read at their own place or by column, rows need no taking apart
        self.flat = bool(rows) and own_or_by_channel(problem.stage, problem.out, last=True)

    def at(self, b: Any, dims: Any, image: Any, outer: Sequence[Any]) -> Any:
        return super().at(b, dims, None, ())

    def _bind_outer(self, em: Any, image: Any, outer: Sequence[Any]) -> None:
        if self.flat:
            for v in self.rows[:-1]:
                em.bind(v, I64(0))

    def _bind_pixel(self, em: Any, x: Any) -> None:
        if self.flat:
            em.bind(self.rows[-1], x)
            return
        for v in reversed(self.rows[1:]):
            size = em.dim(v.extent)
            em.bind(v, em.builder.srem(x, size))
            x = em.builder.sdiv(x, size)
        if self.rows:
            em.bind(self.rows[0], x)

    def _channel(self) -> E.Var | None:
        return self.stage.vars[-1] if self.p.w.rank > 1 else None


def _reciprocals(e: E.Expr) -> E.Expr:
    """Divisions by what is the same for all elements as products with its reciprocal, which is
    computed once a tile."""

    def changed(x: E.Expr) -> E.Expr | None:
        if not isinstance(x, E.Binary) or x.fn != "div" or x.dtype is not f32:
            return None
        if isinstance(x.a, E.Const) or any(isinstance(v, E.Var) for v in E.walk(x.b)):
            return None
        return E.mul(x.a, E.div(E.const(1.0, f32), x.b))

    return E.rewrite(e, changed)
