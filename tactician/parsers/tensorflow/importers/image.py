"""Resizing and cropping images."""

from __future__ import annotations

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, require_ints
from ..node import TfNode
from ..table import importer

_MODES = {"ResizeBilinear": "linear", "ResizeNearestNeighbor": "nearest", "ResizeBicubic": "cubic"}


@importer(*_MODES)
def resize(c: Context, n: TfNode) -> Value:
    x, mode = n[0], _MODES[n.op]
    if mode != "nearest" and not x.dtype.is_float:
        x = c.cast(x, T.f32)
    corners, half = n.attr("align_corners", False), n.attr("half_pixel_centers", False)
    y = c.op("resize", c.to_first(x), c.index(n[1]), mode=mode, axes=(2, 3),
             coordinate="align_corners" if corners else "half_pixel" if half else "asymmetric",
             nearest="round_prefer_ceil" if corners or half else "floor",
             cubic_a=-0.5 if half else -0.75, exclude_outside=half)
    return c.to_last(y)


@importer("CropAndResize")
def crop_and_resize(c: Context, n: TfNode) -> Value:
    """Samples each box on a grid; positions outside of the image take a fixed value."""
    x, boxes, which = c.cast(n[0], T.f32), n[1], c.index(n[2])
    size = [int(s) for s in require_ints(n[3], "crop_size").reshape(-1)]
    mode = "nearest" if n.attr("method", "bilinear") == "nearest" else "linear"
    images = c.to_first(c.op("gather", x, which, axis=0))
    places, inside = [], []
    for k in (0, 1):
        at, ok = _positions(c, x, boxes, k, size[k], mode == "nearest")
        places.append(at)
        inside.append(ok)
    shape = c.concat([c.shape_of(boxes, [0]), c.ints(size)])
    ys = c.expand(c.unsqueeze(places[0], [2]), shape)
    xs = c.expand(c.unsqueeze(places[1], [1]), shape)
    grid = c.op("concat", c.unsqueeze(xs, [3]), c.unsqueeze(ys, [3]), axis=3)
    y = c.to_last(c.op("grid_sample", images, grid, mode=mode, padding="border",
                       align_corners=True))
    ok = c.binary("and", c.unsqueeze(inside[0], [2]), c.unsqueeze(inside[1], [1]))
    outside = c.const(n.attr("extrapolation_value", 0.0), T.f32)
    return c.select(c.unsqueeze(ok, [3]), y, outside)


def _positions(c: Context, x: Value, boxes: Value, k: int, count: int, whole: bool
               ) -> tuple[Value, Value]:
    """Sampling positions along one axis, [boxes, count] from -1 to 1, and which are inside;
    ``whole`` rounds them to elements, halves up."""
    last = c.cast(c.sub(c.shape_of(x, [1 + k]), c.ints([1])), T.f32)
    low, high = c.cut(boxes, 1, k, k + 1), c.cut(boxes, 1, k + 2, k + 3)
    if count > 1:
        steps = c.const(np.arange(count)[None] / (count - 1), T.f32)
        at = c.mul(c.add(low, c.mul(c.sub(high, low), steps)), last)
    else:
        at = c.mul(c.mul(c.add(low, high), c.const(0.5, T.f32)), last)
    inside = c.binary("and", c.binary("ge", at, c.const(0, T.f32)), c.binary("le", at, last))
    if whole:
        at = c.unary("floor", c.add(at, c.const(0.5, T.f32)))
    span = c.binary("max", last, c.const(1, T.f32))
    return c.sub(c.div(c.mul(at, c.const(2, T.f32)), span), c.const(1, T.f32)), inside
