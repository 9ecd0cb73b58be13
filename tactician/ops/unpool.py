"""Putting windows back: col2im and max_unpool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType
from ._numeric import accumulator, operands, shape_text, widen
from ._shapes import data_dims, ints, operand, static_ints
from ._windows import Axis, per_axis, resolve
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class Col2imAttrs:
    """One entry per spatial dimension; empty means 1 (padding: 0).

    Attributes:
        stride, pre, post, dilation: How blocks lie in the image.
    """

    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()


@register
class Col2im(Op):
    """Sums columns of blocks into an image: ONNX's Col2Im. ``x [N, C * prod(block), blocks]``,
    ``image_shape`` and ``block_shape`` (integer vectors); the result is ``[N, C, *image]``."""

    name = "col2im"
    kind = Kind.REDUCTION
    Attrs = Col2imAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, image, block = operands(node, 3)
        if x.rank != 3:
            raise OpError(f"x {shape_text(x)} must be [N, C * prod(block), blocks]")
        window = static_ints(block, "block_shape")
        known = ints(image)
        sizes: Sequence[D.DimLike] = known if known is not None else data_dims(node, len(window))
        if len(sizes) != len(window):
            raise OpError(f"image_shape has {len(sizes)} entries and block_shape {len(window)}")
        taps = int(np.prod(window))
        if D.is_static(x.dims[1]) and int(x.dims[1]) % taps:
            raise OpError(f"dimension 1 of x {shape_text(x)} must be a multiple of the block's "
                          f"{taps} elements")
        if known is not None:
            blocks = D.product(a.out for a in self._axes(node.attrs, sizes, window))
            if D.is_static(blocks, x.dims[2]) and blocks != x.dims[2]:
                raise OpError(f"x {shape_text(x)} has {x.dims[2]} blocks, but {blocks} fit in "
                              f"the image {list(sizes)}")
        return [TensorType(x.dtype, (x.dims[0], D.floor_div(x.dims[1], taps), *sizes))]

    def _axes(self, a: Any, sizes: Sequence[D.DimLike], window: Sequence[int]) -> list[Axis]:
        return resolve(sizes, window, a.stride, a.pre, a.post, a.dilation, "explicit_down")

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = widen(inputs[0])
        sizes = [int(s) for s in np.ravel(inputs[1])]
        window = [int(s) for s in np.ravel(inputs[2])]
        axes = self._axes(node.attrs, sizes, window)
        taps = int(np.prod(window))
        n, c = x.shape[0], x.shape[1] // taps
        cols = x.reshape(n, c, taps, *(int(a.out) for a in axes))
        full = np.zeros((n, c, *(int(a.size + a.pre + a.post) for a in axes)), x.dtype)
        for t, position in enumerate(np.ndindex(*window)):
            region = tuple(
                slice(p * a.dilation, p * a.dilation + (int(a.out) - 1) * a.stride + 1, a.stride)
                for p, a in zip(position, axes, strict=True)
            )
            full[(slice(None), slice(None), *region)] += cols[:, :, t]
        cut = tuple(slice(int(a.pre), int(a.pre + a.size)) for a in axes)
        return full[(slice(None), slice(None), *cut)]

    def stages(self, node: Node) -> list[Stage] | None:
        x, out = operand(node, 0), node.output
        if ints(node.inputs[1]) is None:
            return None
        window = static_ints(node.inputs[2], "block_shape")  # type: ignore[arg-type]
        axes = self._axes(node.attrs, out.dims[2:], window)
        work = accumulator(x.dtype)
        ov = E.iter_vars(out.dims)
        over = [Var(i64, f"w{k}", a.window) for k, a in enumerate(axes)]
        tap: Expr = E.idx(0)
        block: Expr = E.idx(0)
        terms: list[Expr] = []
        for k, a in enumerate(axes):
            t = E.sub(E.add(ov[2 + k], E.idx(a.pre)), E.mul(over[k], E.idx(a.dilation)))
            p = E.binary("floordiv", t, E.idx(a.stride))
            if a.stride != 1:
                terms.append(E.compare("eq", E.binary("mod", t, E.idx(a.stride)), E.idx(0)))
            terms += [E.compare("ge", t, E.idx(0)), E.compare("lt", p, E.idx(a.out))]
            tap = E.add(E.mul(tap, E.idx(a.window)), over[k])
            block = E.add(E.mul(block, E.idx(a.out)), p)
        row = E.add(E.mul(ov[1], E.idx(int(np.prod(window)))), tap)
        v = E.load(x, [ov[0], row, block], E.logical_and(*terms), E.const(0, x.dtype))
        total = E.reduce_("sum", over, E.cast(v, work))
        return [Stage(out, ov, E.cast(total, out.dtype))]


@dataclass(frozen=True)
class MaxUnpoolAttrs:
    """The pooling that is undone: one entry per spatial dimension."""

    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()


@register
class MaxUnpool(Op):
    """Puts values back where max pooling found them, zeros elsewhere: ONNX's MaxUnpool. Indices
    count through the whole tensor of the pooling's smallest input shape; a third input gives the
    result's full shape if it is larger."""

    name = "max_unpool"
    kind = Kind.OPAQUE
    Attrs = MaxUnpoolAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, indices, shape = operands(node, 2, 3)
        if x.rank != len(node.attrs.window) + 2:
            raise OpError(f"x {shape_text(x)} must be [N, C, ...] with one spatial dimension for "
                          f"each entry of the window {node.attrs.window}")
        if not indices.dtype.is_int or indices.rank != x.rank:
            raise OpError(f"indices {shape_text(indices)} must be integers of x's shape "
                          f"{shape_text(x)}")
        if shape is None:
            return [TensorType(x.dtype, _unpooled(x.dims, node.attrs))]
        known = ints(shape)
        return [TensorType(x.dtype, data_dims(node, x.rank) if known is None else tuple(known))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, indices, shape = (*inputs, None)[:3]
        x = np.asarray(x)
        small = tuple(int(d) for d in _unpooled(x.shape, node.attrs))
        y = np.zeros(int(np.prod(small)), x.dtype)
        y[np.asarray(indices).ravel()] = x.ravel()
        y = y.reshape(small)
        if shape is None:
            return y
        out = np.zeros([int(s) for s in np.ravel(shape)], x.dtype)
        corner = tuple(slice(0, min(p, q)) for p, q in zip(small, out.shape, strict=True))
        out[corner] = y[corner]
        return out


def _unpooled(shape: Sequence[D.DimLike], a: MaxUnpoolAttrs) -> tuple[D.DimLike, ...]:
    n = len(a.window)
    stride, pre = per_axis("stride", a.stride, n, 1), per_axis("pre", a.pre, n, 0)
    post = per_axis("post", a.post, n, 0)
    return (*shape[:2], *(
        (d - 1) * stride[k] - (pre[k] + post[k]) + a.window[k] for k, d in enumerate(shape[2:])
    ))
