"""Built-in plugins that exported models name: suppression of boxes, crops of Faster R-CNN,
deformable convolution and attention, parts of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import ops
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Array, Fields, Kind
from .builtin_boxes import need
from .builtin_vision import _ints

F, I, L = DataType.FLOAT, DataType.INT32, DataType.INT64


def _constant(g: Graph, values: Any) -> Value:
    return ops.emit(g, "constant", [], value=np.asarray(values)).output


# --- boxes ----------------------------------------------------------------------------------


def _crops(arrays: Sequence[Array], f: Fields) -> Sequence[Array]:
    """TensorFlow's crop_and_resize: corners of a crop are centres of pixels; zeros outside."""
    x, rois = arrays
    high, wide = int(f.one("crop_height")), int(f.one("crop_width"))
    box = rois.reshape(*rois.shape[:2], 4)
    n, r = box.shape[:2]
    taps = []
    for k, (count, size) in enumerate(zip((high, wide), x.shape[2:], strict=True)):
        first, last = box[..., k, None] * (size - 1), box[..., k + 2, None] * (size - 1)
        at = (first + last) / 2 if count == 1 else first + (last - first) * (
            np.arange(count) / (count - 1))
        inside = (at >= 0) & (at <= size - 1)
        low = np.clip(np.floor(at), 0, size - 1).astype(int)
        up = np.clip(np.ceil(at), 0, size - 1).astype(int)
        weights = np.zeros((n, r, count, size))
        np.add.at(weights, (*np.indices(low.shape), low), (1 - (at - low)) * inside)
        np.add.at(weights, (*np.indices(up.shape), up), (at - low) * inside)
        taps.append(weights)
    return [np.einsum("nchw,nryh,nrxw->nrcyx", x, *taps, optimize=True).astype(np.float32)]


def _crop_shapes(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,), (3, 4)], "x [N, C, H, W] and rois [N, boxes, 4]")
    x, rois = inputs
    shape = (x.dims[0], rois.dims[1], x.dims[1], int(f.one("crop_height")),
             int(f.one("crop_width")))
    if not all(isinstance(d, int) for d in shape):
        raise ops.OpError("sizes of its inputs must be known")
    return [_constant(g, np.zeros(shape, np.float32))]  # type: ignore[arg-type]


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


def _added(g: Graph, x: Value, f: Fields, axis: int) -> Value:
    """``x`` plus the field ``bias``, if there is one, along an axis."""
    bias = f.many("bias").astype(np.float32)
    if not bias.size:
        return x
    shaped = g.constant(bias.reshape(-1, *(1,) * (x.rank - 1 - axis)))
    return ops.emit(g, "binary", [x, shaped], fn="add").output


def _gelu(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    (x,) = inputs
    y = _added(g, x, f, min(2, x.rank - 1))
    return ops.emit(g, "activation", [y], fn="gelu_tanh").outputs


def _skip_layer_norm(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Sum of both inputs (and a bias), normalized along the hidden axis."""
    need(inputs, [(3, 4, 5)] * 2, "input and skip [length, N, size, 1, 1]")
    x = _added(g, ops.emit(g, "binary", list(inputs), fn="add").output, f, 2)
    shape = (-1, *(1,) * (x.rank - 3))
    scale, bias = (g.constant(f.many(k).astype(np.float32).reshape(shape))
                   for k in ("gamma", "beta"))
    return ops.emit(g, "normalization", [x, scale, bias], axes=(2,), epsilon=1e-5).outputs


def _disentangled(arrays: Sequence[Array], f: Fields) -> Sequence[Array]:
    """DeBERTa's scores: content to content, to position, and position to content."""
    content, to_position, to_content = arrays
    span, length = int(f.one("span")), content.shape[-1]
    i, j = np.indices((length, length))
    at = np.clip(i - j + span, 0, 2 * span - 1)
    total = content + to_position[:, i, at] + to_content[:, j, at]
    return [(total * np.float32(f.one("factor"))).astype(np.float32)]


def _like_first(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    return ops.emit(g, "identity", [inputs[0]]).outputs


def _deformable_attention(arrays: Sequence[Array], f: Fields) -> Sequence[Array]:
    """Weighted sums of values at fractional places of several images (levels)."""
    value, sizes, starts, places, weights = arrays
    n, _, heads, width = value.shape
    out = np.zeros((n, places.shape[1], heads, width))
    b, _, h = np.indices(places.shape[:3])
    for level, ((high, wide), start) in enumerate(zip(sizes, starts.reshape(-1), strict=True)):
        x = places[:, :, :, level, :, 0] * wide - 0.5
        y = places[:, :, :, level, :, 1] * high - 0.5
        for dy in (0, 1):
            for dx in (0, 1):
                row, column = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                inside = (row >= 0) & (row < high) & (column >= 0) & (column < wide)
                at = start + np.where(inside, row * wide + column, 0)
                share = np.where(inside, share, 0) * weights[:, :, :, level]
                out += (value[b[..., None], at, h[..., None]] * share[..., None]).sum(axis=3)
    return [out.reshape(n, -1, heads, width).astype(np.float32)]


def _attention_shapes(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,), (2,), (1,), (6,), (5,)], "value, spatial shapes, level starts, sampling "
          "locations [N, queries, heads, levels, points, 2] and attention weights")
    value, places = inputs[0], inputs[3]
    shape = (value.dims[0], places.dims[1], *value.dims[2:])
    if not all(isinstance(d, int) for d in shape):
        raise ops.OpError("sizes of its inputs must be known")
    return [_constant(g, np.zeros(shape, np.float32))]  # type: ignore[arg-type]


_BOTH = ("1", "2")
KINDS.update({
    "CropAndResize": Kind(("crop_width", "crop_height"), (F,), _crop_shapes, compute=_crops),
    "CropAndResizeDynamic": Kind(("crop_width", "crop_height"), (F,), _crop_shapes,
                                 compute=_crops, versions=_BOTH),
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
    "CustomGeluPluginDynamic": Kind(("type_id", "bias"), (F,), _gelu, ignored=("type_id",)),
    "CustomSkipLayerNormPluginDynamic": Kind(
        ("type_id", "ld", "beta", "gamma", "bias"), (F,), _skip_layer_norm,
        ignored=("type_id",), versions=("1", "5")),
    "DisentangledAttention_TRT": Kind(("span", "factor"), (F,), _like_first,
                                      compute=_disentangled, versions=_BOTH),
    "MultiscaleDeformableAttnPlugin_TRT": Kind(
        (), (F,), _attention_shapes, inputs=(F, I, I, F, F), compute=_deformable_attention,
        versions=_BOTH),
})  # fmt: skip
