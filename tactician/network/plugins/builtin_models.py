"""Built-in plugins that exported models name: crops of Faster R-CNN,
deformable convolution and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Fields, Kind
from .builtin_boxes import need
from .builtin_vision import _ints
from .kit import Kit

F, I, L = DataType.FLOAT, DataType.INT32, DataType.INT64


def _constant(g: Graph, values: Any) -> Value:
    return ops.emit(g, "constant", [], value=np.asarray(values)).output


# --- boxes ----------------------------------------------------------------------------------


def _crops(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """TensorFlow's crop_and_resize: corners of a crop are centres of pixels; zeros outside."""
    need(inputs, [(4,), (3, 4)], "x [N, C, H, W] and rois [N, boxes, 4]")
    k = Kit(g)
    x, rois = inputs
    sizes = int(f.one("crop_height")), int(f.one("crop_width"))
    if rois.rank == 4:
        rois = k.reshape(rois, 0, 0, 4)
    n, r = k.size(rois, 0), k.size(rois, 1)
    corners = k.split(rois, 2)
    lines, inside = [], []
    for axis, count in enumerate(sizes):
        limit = k.sub(k.f32(k.reshape(k.size(x, 2 + axis))), np.float32(1))
        first, last = k.mul(corners[axis], limit), k.mul(corners[axis + 2], limit)
        if count == 1:
            at = k.mul(k.add(first, last), np.float32(0.5))
        else:
            at = k.add(first, k.mul(k.sub(last, first), k.const(np.linspace(0, 1, count))))
        inside.append(k.mul(k.f32(k.binary("ge", at, np.float32(0))),
                            k.f32(k.binary("le", at, limit))))
        scale = k.div(np.float32(2), k.binary("max", limit, np.float32(1)))
        lines.append(k.sub(k.mul(at, scale), np.float32(1)))
    ys, xs = (k.expand(k.unsqueeze(v, 3 - a, 4), n, r, *sizes, 1) for a, v in enumerate(lines))
    grid = k.reshape(k.join([xs, ys], 4), n, -1, sizes[1], 2)
    y = k.op("grid_sample", x, grid, mode="linear", padding="border", align_corners=True)
    y = k.transpose(k.reshape(y, n, k.size(x, 1), r, *sizes), 0, 2, 1, 3, 4)
    return [k.mul(k.mul(y, k.unsqueeze(inside[0], 2, 4)), k.unsqueeze(inside[1], 2, 3))]


# --- images ---------------------------------------------------------------------------------


def _split(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    (x,) = inputs
    axis = int(f.one("axis", 0)) % x.rank
    ends = np.cumsum([int(n) for n in f.many("output_lengths")])
    if x.dims[axis] != int(ends[-1]):
        raise ops.OpError(f"output_lengths add up to {ends[-1]}, but axis {axis} of {x!r} has "
                          f"{x.dims[axis]} elements")
    return [ops.emit(g, "strided_slice", [x, _ints(g, a), _ints(g, b), _ints(g, axis)]).output
            for a, b in zip([0, *map(int, ends[:-1])], map(int, ends), strict=True)]


def _tile_batch(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """The second input, repeated for each image of the first."""
    need(inputs, [(4,), (4,)], "x [N, C, H, W] and what is repeated [1, C, H, W]")
    whole = ops.emit(g, "shape", [inputs[0]]).output
    count = ops.emit(g, "slice", [whole, _ints(g, 0), _ints(g, 1), _ints(g, 1)]).output
    sizes = ops.emit(g, "concat", [count, _ints(g, 1, 1, 1)], axis=0).output
    return ops.emit(g, "expand", [inputs[1], sizes]).outputs


def _coordinates(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Two more channels: y and x from -1 to 1."""
    need(inputs, [(4,)], "x [N, C, H, W]")
    (x,) = inputs
    n, _, height, width = x.dims
    if not isinstance(height, int) or not isinstance(width, int):
        raise ops.OpError(f"height and width of {x!r} must be known")
    lines = (np.linspace(-1, 1, s, dtype=np.float32) for s in (height, width))
    both = _constant(g, np.stack(np.meshgrid(*lines, indexing="ij"))[None])
    parts = [x, _tile_batch(g, [x, both], f)[0] if n != 1 else both]
    return ops.emit(g, "concat", parts, axis=1).outputs


def _deformed(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    x, offset, mask, weights, *bias = inputs

    def pair(name: str, default: int) -> tuple[int, ...]:
        given = [int(v) for v in f.many(name)] or [default]
        return tuple(given * 2)[:2]

    padding = pair("padding", 0)
    return ops.emit(
        g, "deform_conv", [x, weights, offset, bias[0] if bias else None, mask],
        stride=pair("stride", 1), pre=padding, post=padding, dilation=pair("dilation", 1),
        groups=int(f.one("group", 1)), offset_groups=int(f.one("deformable_group", 1))).outputs


def _group_norm(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3, 4, 5), (1,), (1,)], "x [N, C, spatial…], scales [C] and biases [C]")
    x = inputs[0]
    shape = _ints(g, 1, -1, *(1,) * (x.rank - 2))
    scale, bias = (ops.emit(g, "reshape", [v, shape], zero_copies=False).output
                   for v in inputs[1:])
    return ops.emit(g, "normalization", [x, scale, bias], axes=tuple(range(2, x.rank)),
                    groups=int(f.one("num_groups")),
                    epsilon=float(f.one("eps", f.one("epsilon", 1e-5)))).outputs


# --- elements and transformers --------------------------------------------------------------


def _scatter_elements(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    reduction = f.text("reduction", "add")
    if reduction not in ("none", "add", "mul", "min", "max"):
        raise ops.OpError(f"reduction is {reduction!r}; it can be add, mul, min or max")
    return ops.emit(g, "scatter_elements", inputs, axis=int(f.one("axis", 0)) % inputs[0].rank,
                    reduction=reduction).outputs


def _corners(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3,)], "detections [N, boxes, 6]")
    return ops.emit(g, "strided_slice",
                    [inputs[0], _ints(g, 0), _ints(g, 4), _ints(g, 2)]).outputs


def _disentangled(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """DeBERTa's scores: content to content, to position, and position to content."""
    need(inputs, [(3,)] * 3, "three scores, [N, length, length] and twice [N, length, 2 * span]")
    k = Kit(g)
    content, to_position, to_content = inputs
    span, n, length = int(f.one("span")), k.size(content, 0), k.size(content, 2)
    token = k.upto(length)
    apart = k.sub(k.unsqueeze(token, 1), k.unsqueeze(token, 0))
    at = k.unsqueeze(k.clip(k.add(apart, np.int64(span)), np.int64(0), np.int64(2 * span - 1)), 0)
    first = k.op("gather_elements", to_position, k.expand(at, n, length, length), axis=2)
    turned = k.expand(k.transpose(at, 0, 2, 1), n, length, length)
    second = k.transpose(k.op("gather_elements", to_content, turned, axis=2), 0, 2, 1)
    return [k.mul(k.add(k.add(content, first), second), np.float32(f.one("factor")))]


def _deformable_attention(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Weighted sums of values at fractional places of several images (levels)."""
    need(inputs, [(4,), (2,), (1,), (6,), (5,)], "value, spatial shapes, level starts, sampling "
         "locations [N, queries, heads, levels, points, 2] and attention weights")
    k = Kit(g)
    value, shapes, starts, places, weights = inputs
    n, length, heads = (k.size(value, a) for a in range(3))
    rows = k.reshape(value, -1, k.size(value, 3))
    sizes = k.cast(k.reshape(shapes, 1, 1, 1, -1, 1, 2), T.i64)
    high, wide = (k.squeeze(v, 5) for v in k.split(sizes))
    start = k.cast(k.reshape(starts, 1, 1, 1, -1, 1), T.i64)
    image = k.reshape(k.upto(n), -1, 1, 1, 1, 1)
    head = k.reshape(k.upto(heads), 1, 1, -1, 1, 1)
    base = k.add(k.mul(image, length), start)
    column, row = (k.squeeze(v, 5) for v in k.split(places))
    x = k.sub(k.mul(column, k.f32(wide)), np.float32(0.5))
    y = k.sub(k.mul(row, k.f32(high)), np.float32(0.5))
    total = None
    for dy in (0, 1):
        for dx in (0, 1):
            parts, good, share = [], None, weights
            for at, d, size in ((y, dy, high), (x, dx, wide)):
                low = k.add(k.unary("floor", at), np.float32(d))
                share = k.mul(share, k.sub(np.float32(1), k.unary("abs", k.sub(at, low))))
                place = k.cast(low, T.i64)
                fits = k.op("binary", k.binary("ge", place, np.int64(0)),
                            k.binary("lt", place, size), fn="and")
                good = fits if good is None else k.op("binary", good, fits, fn="and")
                parts.append(k.clip(place, np.int64(0), k.sub(size, np.int64(1))))
            at = k.add(base, k.add(k.mul(parts[0], wide), parts[1]))
            taken = k.gather(rows, k.add(k.mul(at, heads), head), axis=0)
            assert good is not None
            tap = k.mul(taken, k.unsqueeze(k.where(good, share, np.float32(0)), 5))
            total = tap if total is None else k.add(total, tap)
    assert total is not None
    return [k.reduce("sum", total, 3, 4)]


_BOTH = ("1", "2")
KINDS.update({
    "CropAndResize": Kind(("crop_width", "crop_height"), (F,), _crops),
    "CropAndResizeDynamic": Kind(("crop_width", "crop_height"), (F,), _crops,
                                 versions=_BOTH),
    "Split": Kind(("axis", "output_lengths"), (F,), _split,
                  count=lambda f: len(f.many("output_lengths"))),
    "BatchTilePlugin_TRT": Kind((), (F,), _tile_batch),
    "CoordConvAC": Kind((), (F,), _coordinates),
    "ModulatedDeformConv2d": Kind(
        ("stride", "padding", "dilation", "group", "deformable_group"), (F,), _deformed,
        versions=_BOTH),
    "GroupNormalizationPlugin": Kind(("eps", "epsilon", "num_groups"), (F,), _group_norm),
    "ScatterElements": Kind(("axis", "reduction"), (F,), _scatter_elements, inputs=(F, L, F),
                            versions=_BOTH),
    "SpecialSlice_TRT": Kind((), (F,), _corners),
    "DisentangledAttention_TRT": Kind(("span", "factor"), (F,), _disentangled,
                                      versions=_BOTH),
    "MultiscaleDeformableAttnPlugin_TRT": Kind(
        (), (F,), _deformable_attention, inputs=(F, I, I, F, F), versions=_BOTH),
})  # fmt: skip
