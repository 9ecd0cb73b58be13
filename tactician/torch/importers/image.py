"""Resizing and sampling of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


def _resize(c: Context, x: Value, scales: Sequence[float | None] | None, **attrs: Any) -> Value:
    """Resizes the spatial dimensions. Scales that torch was given count for positions, so they
    are used where they lead to the size torch computed."""
    n = x.rank - 2
    target = c.shape_out[2:]
    axes = tuple(range(2, x.rank))
    given = [float(s) for s in scales or [] if s]
    if len(given) == n and attrs["coordinate"] != "align_corners":
        exact = all(isinstance(h, int) and int(h * s) == t
                    for h, s, t in zip(x.dims[2:], given, target, strict=True))  # type: ignore
        if exact or not all(isinstance(h, int) for h in x.dims[2:]):
            factors = c.const(np.asarray(given, np.float32))
            return c.op("resize", x, None, factors, axes=axes, **attrs)
    return c.op("resize", x, c.sizes(target), axes=axes, **attrs)


def _mode(align_corners: bool) -> str:
    return "align_corners" if align_corners else "half_pixel"


@aten_op(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
def nearest_vec(c: Context, x: Value, size: Any, scales: Any) -> Value:
    return _resize(c, x, scales, mode="nearest", coordinate="asymmetric", nearest="floor")


@aten_op(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default,
         aten.upsample_nearest3d.default)
def nearest(c: Context, x: Value, size: Any, *scales: Any) -> Value:
    return nearest_vec(c, x, size, scales)


@aten_op(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec,
         aten._upsample_nearest_exact3d.vec)
def nearest_exact_vec(c: Context, x: Value, size: Any, scales: Any) -> Value:
    return _resize(c, x, scales, mode="nearest", coordinate="half_pixel",
                   nearest="round_prefer_ceil")


@aten_op(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default,
         aten._upsample_nearest_exact3d.default)
def nearest_exact(c: Context, x: Value, size: Any, *scales: Any) -> Value:
    return nearest_exact_vec(c, x, size, scales)


@aten_op(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec)
def linear_vec(c: Context, x: Value, size: Any, align_corners: bool, scales: Any) -> Value:
    return _resize(c, x, scales, mode="linear", coordinate=_mode(align_corners))


@aten_op(aten.upsample_linear1d.default, aten.upsample_bilinear2d.default,
         aten.upsample_trilinear3d.default)
def linear(c: Context, x: Value, size: Any, align_corners: bool, *scales: Any) -> Value:
    return linear_vec(c, x, size, align_corners, scales)


@aten_op(aten.upsample_bicubic2d.vec)
def cubic_vec(c: Context, x: Value, size: Any, align_corners: bool, scales: Any) -> Value:
    return _resize(c, x, scales, mode="cubic", coordinate=_mode(align_corners), cubic_a=-0.75)


@aten_op(aten.upsample_bicubic2d.default)
def cubic(c: Context, x: Value, size: Any, align_corners: bool, *scales: Any) -> Value:
    return cubic_vec(c, x, size, align_corners, scales)


@aten_op(aten._upsample_bilinear2d_aa.vec, aten._upsample_bilinear2d_aa.default)
def linear_antialiased(c: Context, x: Value, size: Any, align_corners: bool,
                       *scales: Any) -> Value:
    return _resize(c, x, None, mode="linear", coordinate=_mode(align_corners), antialias=True,
                   exclude_outside=True)


@aten_op(aten.grid_sampler_2d.default, aten.grid_sampler.default, aten.grid_sampler_3d.default)
def grid_sampler(c: Context, x: Value, grid: Value, mode: int, padding: int,
                 align_corners: bool) -> Value:
    modes, paddings = ("linear", "nearest", "cubic"), ("zeros", "border", "reflection")
    return c.op("grid_sample", x, grid, mode=modes[mode], padding=paddings[padding],
                align_corners=align_corners)


@aten_op(aten.im2col.default, note="static sizes")
def im2col(c: Context, x: Value, kernel: Sequence[int], dilation: Sequence[int],
           padding: Sequence[int], stride: Sequence[int]) -> Value:
    """Rows of windows, by reading the flattened padded image at computed positions."""
    alone = x.rank == 3
    if alone:
        x = c.unsqueeze(x, [0])
    if not all(isinstance(d, int) for d in x.dims[1:]):
        raise AtenProblem("im2col of an image of dynamic size")
    py, px = padding
    pads = np.asarray([0, 0, py, px, 0, 0, py, px], np.int64)
    y = c.op("pad", x, c.const(pads), c.like(0, x), mode="constant")
    height, width = (int(d) for d in y.dims[2:])  # type: ignore[arg-type]
    counts = [(extent - d * (k - 1) - 1) // s + 1
              for extent, k, d, s in zip((height, width), kernel, dilation, stride, strict=True)]
    rows, columns = (
        np.arange(k)[:, None] * d + np.arange(n)[None, :] * s
        for k, d, n, s in zip(kernel, dilation, counts, stride, strict=True))
    at = rows[:, None, :, None] * width + columns[None, :, None, :]
    flat = c.view(y, [*y.dims[:2], height * width])
    where = c.const(at.reshape(kernel[0] * kernel[1], -1).astype(np.int64))
    taken = c.op("gather", flat, where, axis=2, batch_dims=0)
    return c.view(taken, c.shape_out)


@aten_op(aten.col2im.default)
def col2im(c: Context, x: Value, size: Sequence[int], kernel: Sequence[int],
           dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Value:
    alone = x.rank == 2
    if alone:
        x = c.unsqueeze(x, [0])
    y = c.op("col2im", x, c.sizes(size), c.ints(kernel), pre=tuple(padding), post=tuple(padding),
             stride=tuple(stride), dilation=tuple(dilation))
    return c.squeeze(y, [0]) if alone else y


@aten_op(aten.affine_grid_generator.default)
def affine_grid(c: Context, theta: Value, size: Sequence[Any], align_corners: bool) -> Value:
    return c.op("affine_grid", theta, c.cast(c.sizes(size), T.i64), align_corners=align_corners)
