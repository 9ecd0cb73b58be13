"""Operators on images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axes_of, require_ints
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer


def _scales(c: Context, n: OnnxNode, scales: Value) -> Value:
    return c.op("resize", n[0], None, scales, mode=_old_mode(n), coordinate="asymmetric",
                nearest="floor")


def _old_mode(n: OnnxNode) -> str:
    mode = n.attr("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear"):
        raise NodeProblem(f"mode is {mode!r}; expected nearest or linear")
    return "linear" if mode == "bilinear" else mode


@importer("Upsample", since=7, until=8)
def upsample_attribute(c: Context, n: OnnxNode) -> Value:
    return _scales(c, n, c.const(np.asarray(n.attr("scales"), np.float32)))


@importer("Upsample", since=9)
@importer("Resize", since=10, until=10)
def upsample(c: Context, n: OnnxNode) -> Value:
    return _scales(c, n, n[1])


@importer("Resize", since=11, until=17)
@importer("Resize", since=18)
def resize(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    roi, scales, sizes = (_present(n, i) for i in (1, 2, 3))
    if (scales is None) == (sizes is None):
        raise NodeProblem("exactly one of scales and sizes must be given")
    axes = n.ints("axes", ())
    attrs: dict[str, Any] = {
        "mode": n.attr("mode", "nearest"),
        "coordinate": n.attr("coordinate_transformation_mode", "half_pixel"),
        "nearest": n.attr("nearest_mode", "round_prefer_floor"),
        "cubic_a": n.attr("cubic_coeff_a", -0.75),
        "exclude_outside": n.flag("exclude_outside"),
        "extrapolation": n.attr("extrapolation_value", 0.0),
        "antialias": n.flag("antialias"),
        "axes": tuple(a + x.rank if a < 0 else a for a in axes),
        "keep_aspect": n.attr("keep_aspect_ratio_policy", "stretch"),
    }
    if attrs["coordinate"] != "tf_crop_and_resize":
        roi = None
    elif roi is None:
        raise NodeProblem("tf_crop_and_resize needs roi")
    else:
        roi = c.cast(roi, T.f32)
    if attrs["keep_aspect"] != "stretch" and sizes is not None:
        require_ints(sizes, "sizes, with keep_aspect_ratio_policy,")
    return c.op("resize", x, None if sizes is None else c.index(sizes), scales, roi, **attrs)


def _present(n: OnnxNode, i: int) -> Value | None:
    """Input ``i``; an empty tensor also means that it is absent."""
    v = n.get(i)
    return None if v is None or v.dims == (0,) else v


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@importer("GridSample", since=16)
def grid_sample(c: Context, n: OnnxNode) -> Value:
    mode = n.attr("mode", "linear")
    return c.op("grid_sample", n[0], n[1], mode=_GRID_MODES.get(mode, mode),
                padding=n.attr("padding_mode", "zeros"), align_corners=n.flag("align_corners"))


@importer("RoiAlign", since=10, until=15)
def roi_align_10(c: Context, n: OnnxNode) -> Value:
    return _roi_align(c, n, half_pixel=False)


@importer("RoiAlign", since=16)
def roi_align(c: Context, n: OnnxNode) -> Value:
    mode = n.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in ("half_pixel", "output_half_pixel"):
        raise NodeProblem(f"coordinate_transformation_mode is {mode!r}")
    return _roi_align(c, n, half_pixel=mode == "half_pixel")


def _roi_align(c: Context, n: OnnxNode, half_pixel: bool) -> Value:
    mode = n.attr("mode", "avg")
    if mode not in ("avg", "max"):
        raise NodeProblem(f"mode is {mode!r}; expected avg or max")
    return c.op("roi_align", n[0], n[1], n[2], mode=mode,
                output_height=n.attr("output_height", 1), output_width=n.attr("output_width", 1),
                sampling_ratio=n.attr("sampling_ratio", 0),
                spatial_scale=n.attr("spatial_scale", 1.0), half_pixel=half_pixel)


@importer("ImageScaler")
def image_scaler(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    bias = c.const(np.asarray(n.attr("bias"), x.dtype.np))
    scaled = c.mul(x, c.like(n.attr("scale", 1.0), x))
    return c.add(scaled, c.broadcast_channel(bias, x.rank))


@importer("CenterCropPad", since=18)
def center_crop_pad(c: Context, n: OnnxNode) -> Value:
    """Crops or pads around the centre, by a pad whose amounts may be negative."""
    x = n[0]
    axes = axes_of(n.ints("axes", range(x.rank)), x.rank)
    given = [a + x.rank if a < 0 else a for a in n.ints("axes", range(x.rank))]
    want = require_ints(n[1], "shape").reshape(-1)
    if len(want) != len(axes):
        raise NodeProblem(f"shape has {len(want)} entries for {len(axes)} axes")
    pads = np.zeros(2 * x.rank, dtype=np.int64)
    for axis, size in zip(given, want, strict=True):
        extent = x.dims[axis]
        if not isinstance(extent, int) or not isinstance(size, int):
            raise NodeProblem(f"axis {axis} has extent {extent} and wanted size {size}; both "
                              "must be static", "UNSUPPORTED_NODE_DYNAMIC")
        crop = max(extent - size, 0)
        grow = max(size - extent, 0)
        pads[axis] = grow // 2 - crop // 2
        pads[x.rank + axis] = (grow - grow // 2) - (crop - crop // 2)
    return c.op("pad", x, c.const(pads), mode="constant")
