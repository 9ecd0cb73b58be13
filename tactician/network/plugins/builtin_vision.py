"""Built-in plugins that models for vision name: regions, normalization, resizing, anchors,
scatter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ... import ops
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Array, Fields, Kind
from .builtin_boxes import need

F, I = DataType.FLOAT, DataType.INT32


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))


# --- regions, normalization, resizing -------------------------------------------------------


def _roi_align(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,), (2,), (1,)], "x [N, C, H, W], rois [R, 4] and batch indices [R]")
    return ops.emit(
        g, "roi_align", inputs, mode="avg" if f.one("mode", 1) else "max",
        output_height=int(f.one("output_height", 1)), output_width=int(f.one("output_width", 1)),
        sampling_ratio=int(f.one("sampling_ratio", 0)),
        spatial_scale=float(f.one("spatial_scale", 1.0)),
        half_pixel=bool(f.one("coordinate_transformation_mode", 1))).outputs


def _instance_norm(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3, 4, 5)], "x [N, C, spatial…]")
    (x,) = inputs
    shape = (1, -1, *(1,) * (x.rank - 2))
    scale, bias = (g.constant(f.many(k).astype(np.float32).reshape(shape))
                   for k in ("scales", "bias"))
    y = ops.emit(g, "normalization", [x, scale, bias], axes=tuple(range(2, x.rank)),
                 epsilon=float(f.one("epsilon", 1e-5))).output
    if f.one("relu", 0):
        y = ops.emit(g, "activation", [y], fn="leaky_relu",
                     alpha=float(f.one("alpha", 0.0))).output
    return [y]


def _resize_nearest(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3, 4)], "x [C, H, W] or [N, C, H, W]")
    (x,) = inputs
    scales = g.constant(np.array([f.one("scale")] * 2, np.float32))
    return ops.emit(g, "resize", [x, None, scales], mode="nearest", coordinate="asymmetric",
                    nearest="floor", axes=(x.rank - 2, x.rank - 1)).outputs


def _leaky(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    return ops.emit(g, "activation", inputs, fn="leaky_relu",
                    alpha=float(f.one("negSlope"))).outputs


def _clip(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    return ops.emit(g, "activation", inputs, fn="clip", alpha=float(f.one("clipMin")),
                    beta=float(f.one("clipMax"))).outputs


def _flatten_concat(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    if int(f.one("axis", 1)) != 1:
        raise ops.OpError(f"axis is {f.one('axis'):g}; flattened tensors are joined along axis 1")
    flat = [ops.emit(g, "reshape", [v, _ints(g, 0, -1)], zero_copies=True).output for v in inputs]
    return ops.emit(g, "concat", flat, axis=1).outputs


def _scatter_nd(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    return ops.emit(g, "scatter_nd", inputs, reduction="none").outputs


def _region(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Per anchor: logistic of x, y and objectness, softmax over classes; the rest as it is."""
    need(inputs, [(4,)], "x [N, num * (coords + 1 + classes), H, W]")
    (x,) = inputs
    num, coords, classes = (int(f.one(k)) for k in ("num", "coords", "classes"))
    width = coords + 1 + classes
    if coords < 2 or x.dims[1] != num * width:
        raise ops.OpError(f"{x!r} must have num * (coords + 1 + classes) = {num * width} channels")
    cuts = [0, 2, coords, coords + 1, width]
    functions = ["sigmoid", "", "sigmoid", "softmax"]
    parts = []
    for k in range(num):
        for (a, b), fn in zip(pairwise(cuts), functions, strict=True):
            if a == b:
                continue
            part = ops.emit(g, "strided_slice", [x, _ints(g, k * width + a),
                                                 _ints(g, k * width + b), _ints(g, 1)]).output
            if fn == "softmax":
                part = ops.emit(g, "softmax", [part], axes=(1,)).output
            elif fn:
                part = ops.emit(g, "activation", [part], fn=fn).output
            parts.append(part)
    return ops.emit(g, "concat", parts, axis=1).outputs


def _reorg(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Pixels into channels as Darknet's layer does it: the image is taken for one of C / s^2
    channels with s times the height and width, and cut into blocks of s x s."""
    need(inputs, [(4,)], "x [N, C, H, W]")
    (x,) = inputs
    s = int(f.one("stride"))
    c, h, w = x.dims[1:]
    if not all(isinstance(d, int) for d in (c, h, w)) or s < 1 or c % (s * s) or (  # type: ignore
            h % s or w % s):  # type: ignore[operator]
        raise ops.OpError(f"{x!r} must have channels that are a multiple of {s * s}, height and "
                          f"width that are multiples of {s}, all known")
    y = ops.emit(g, "reshape", [x, _ints(g, 0, c // (s * s), h, s, w, s)],  # type: ignore
                 zero_copies=True).output
    y = ops.emit(g, "transpose", [y], perm=(0, 3, 5, 1, 2, 4)).output
    return [ops.emit(g, "reshape", [y, _ints(g, 0, c * s * s, h // s, w // s)],  # type: ignore
                     zero_copies=True).output]


def anchors(f: Fields, layer: int, height: int, width: int) -> Array:
    """Anchor boxes of one layer of an SSD, and their variances: [2, boxes * 4, 1]."""
    layers = int(f.one("numLayers"))
    least, most = float(f.one("minSize", 0.2)), float(f.one("maxSize", 0.95))
    scales = [*np.linspace(least, most, layers), 1.0]
    if layer == 0:
        sizes, ratios = [0.1, scales[0], scales[0]], [1.0, 2.0, 0.5]
    else:
        ratios = [*map(float, f.many("aspectRatios")), 1.0]
        sizes = [scales[layer]] * (len(ratios) - 1) + [
            float(np.sqrt(scales[layer] * scales[layer + 1]))]
    root = np.sqrt(ratios)
    half = np.stack([np.array(sizes) * root, np.array(sizes) / root], -1) / 2  # [priors, (w, h)]
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width,
                       indexing="ij")
    centre = np.stack([x, y], -1)[:, :, None]
    boxes = np.concatenate([centre - half, centre + half], -1).reshape(-1)
    variance = np.tile(f.many("variance"), boxes.size // 4)
    return np.stack([boxes, variance]).astype(np.float32)[..., None]


def _grid_anchors(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    shapes = [int(n) for n in f.many("featureMapShapes")]
    layers = int(f.one("numLayers"))
    if len(shapes) == layers:
        shapes = [n for n in shapes for _ in range(2)]
    if len(shapes) != 2 * layers or len(f.many("variance")) != 4:
        raise ops.OpError(f"numLayers is {layers}, featureMapShapes has {len(shapes)} numbers and "
                          f"variance {len(f.many('variance'))}; one size (or height and width) per "
                          "layer and four variances are needed")
    return [ops.emit(g, "constant", [], value=anchors(f, k, *shapes[2 * k:2 * k + 2])).output
            for k in range(layers)]


_ANCHORS = Kind(
    ("minSize", "maxSize", "aspectRatios", "featureMapShapes", "variance", "numLayers"),
    (F,), _grid_anchors, count="numLayers")
KINDS.update({
    "GridAnchor_TRT": _ANCHORS,
    "GridAnchorRect_TRT": _ANCHORS,
    "Reorg_TRT": Kind(("stride",), (F,), _reorg, versions=("1", "2")),
    "ROIAlign_TRT": Kind(
        ("coordinate_transformation_mode", "mode", "output_height", "output_width",
         "sampling_ratio", "spatial_scale"), (F,), _roi_align, inputs=(F, F, I),
        versions=("1", "2")),
    "InstanceNormalization_TRT": Kind(
        ("epsilon", "scales", "bias", "relu", "alpha"), (F,), _instance_norm,
        versions=("1", "2", "3")),
    "ResizeNearest_TRT": Kind(("scale",), (F,), _resize_nearest),
    "LReLU_TRT": Kind(("negSlope",), (F,), _leaky),
    "Clip_TRT": Kind(("clipMin", "clipMax"), (F,), _clip),
    "FlattenConcat_TRT": Kind(
        ("axis", "ignoreBatch"), (F,), _flatten_concat, ignored=("ignoreBatch",)),
    "ScatterND": Kind((), (F,), _scatter_nd, inputs=(F, I, F)),
    "Region_TRT": Kind(
        ("num", "coords", "classes", "softmaxTree"), (F,), _region, ignored=("softmaxTree",)),
})  # fmt: skip
