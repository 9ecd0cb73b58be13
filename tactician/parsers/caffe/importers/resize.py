"""Layers that change the size of images."""

from __future__ import annotations

import numpy as np

from ....ir.dtypes import i64
from ....ir.graph import Value
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


@importer("Upsample", inputs=(1, 2),
          does="each element repeated, or put back where the second bottom, a pooling mask, says",
          notes="by scale (or scale_h and scale_w), or to height and width; with a mask to "
                "upsample_h and upsample_w (explicit batch)")
def upsample(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.upsample_param, n[0]
    if x.rank != 4:
        raise LayerProblem(f"needs four dimensions, the bottom has {x.rank}")
    if len(n) == 2:
        return _unpool(c, n)
    how = {"mode": "nearest", "coordinate": "asymmetric", "nearest": "floor", "axes": (2, 3)}
    if p.height or p.width:
        return c.op("resize", x, c.ints([p.height, p.width]), **how)
    scales = np.array([p.scale_h or p.scale, p.scale_w or p.scale], np.float32)
    if scales.min() < 1:
        raise LayerProblem("upsample_param needs scale, at least 1")
    return c.op("resize", x, None, c.const(scales), **how)


def _unpool(c: Context, n: CaffeLayer) -> Value:
    p, x, mask = n.proto.upsample_param, n[0], n[1]
    if tuple(mask.dims) != tuple(x.dims):
        raise LayerProblem(f"the mask has shape {list(mask.dims)}, the bottom {list(x.dims)}; both "
                           "must have the same")
    num, channels, h, w = (n.size(i, "a mask") for i in range(4))
    out_h = p.upsample_h or h * (p.scale_h or p.scale)
    out_w = p.upsample_w or w * (p.scale_w or p.scale)
    zeros = c.const(np.zeros((num, channels, out_h * out_w), np.float32))
    at = c.op("cast", c.reshape(mask, (num, channels, h * w)), to=i64, saturate=False)
    y = c.op("scatter_elements", zeros, at, c.reshape(x, (num, channels, h * w)), axis=2,
             reduction="none")
    return c.reshape(y, (num, channels, out_h, out_w))


@importer("Interp", inputs=(1, 2), does="bilinear, corners aligned",
          notes="by zoom_factor and shrink_factor, to height and width, or to the size of the "
                "second bottom; negative padding crops")
def interp(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.interp_param, n[0]
    if x.rank != 4:
        raise LayerProblem(f"needs four dimensions, the bottom has {x.rank}")
    if p.pad_beg > 0 or p.pad_end > 0:
        raise LayerProblem("pad_beg and pad_end can't be positive: they crop")
    sizes = [n.size(i, "its size") for i in (2, 3)]
    for i in (0, 1):
        if p.pad_beg or p.pad_end:
            x = c.cut(x, 2 + i, -p.pad_beg, sizes[i] + p.pad_end)
            sizes[i] += p.pad_beg + p.pad_end
    if min(sizes) < 1 or p.shrink_factor < 1 or p.zoom_factor < 1:
        raise LayerProblem("factors are at least 1, and cropping must leave something")
    if len(n) == 2:
        other = n[1].dims[2:]
        if len(other) != 2 or not all(isinstance(d, int) for d in other):
            raise LayerProblem("its second bottom needs four dimensions with a known size")
        out = [int(d) for d in other if isinstance(d, int)]
    elif p.height > 0 and p.width > 0:
        out = [p.height, p.width]
    else:
        out = [(s - 1) // p.shrink_factor + 1 for s in sizes]
        out = [s + (s - 1) * (p.zoom_factor - 1) for s in out]
    return c.op("resize", x, c.ints(out), mode="linear", coordinate="align_corners", axes=(2, 3))
