"""Pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.dtypes import f32
from ....ir.graph import Value
from ....network.enums import PaddingMode, PoolingType
from ....network.values import Dims
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


def _pair(p: Any, name: str, default: int | None) -> tuple[int, int]:
    """Height and width of a window parameter."""
    short = name.split("_")[0]
    h, w = f"{short}_h", f"{short}_w"
    if p.HasField(h) or p.HasField(w):
        if p.HasField(name):
            raise LayerProblem(f"has {name} as well as {h} and {w}; give one of the two forms")
        return getattr(p, h), getattr(p, w)
    if not p.HasField(name) and default is None:
        raise LayerProblem("pooling_param needs kernel_size (or kernel_h and kernel_w), or "
                           "global_pooling")
    return (getattr(p, name),) * 2


@importer("Pooling", does="maximum or average over windows, or over the whole image",
          notes="sizes round up unless ceil_mode is false or round_mode FLOOR; averages count "
                "padding, as Caffe's; a second top of MAX is the mask; no STOCHASTIC")
def pooling(c: Context, n: CaffeLayer) -> Value | list[Value]:
    p, x = n.proto.pooling_param, n[0]
    methods = {0: ("max", PoolingType.MAX), 1: ("mean", PoolingType.AVERAGE)}
    if p.pool not in methods:
        raise LayerProblem("STOCHASTIC pooling is random and only for training; use MAX or AVE")
    fn, kind = methods[p.pool]
    if x.rank != 4:
        raise LayerProblem(f"its bottom has {x.rank} dimensions; pooling needs (num, channels, "
                           "height, width)")
    if len(n.tops) > 1 and p.pool != 0:
        raise LayerProblem("has a second top, the mask, which only MAX pooling has; remove it")
    if p.global_pooling:
        if any(p.HasField(f) for f in ("kernel_size", "kernel_h", "kernel_w")):
            raise LayerProblem("has global_pooling and a kernel size; give one of the two")
        if not isinstance(x.dims[2], int) or not isinstance(x.dims[3], int):
            return c.op("reduce", x, fn=fn, axes=(2, 3), keepdims=True)
        window, pad, stride = (x.dims[2], x.dims[3]), (0, 0), (1, 1)
    else:
        window, pad = _pair(p, "kernel_size", None), _pair(p, "pad", 0)
        stride = _pair(p, "stride", 1)
    if min(window) < 1 or min(stride) < 1 or any(b >= k for b, k in zip(pad, window, strict=True)):
        raise LayerProblem(f"window {window}, stride {stride}, pad {pad}: window and stride are "
                           "at least 1, and the padding is less than the window")
    up = p.ceil_mode and p.round_mode == 0
    if len(n.tops) > 1:
        return _with_mask(c, n, window=window, stride=stride, pre=pad, post=pad, ceil=up)
    mode = PaddingMode.CAFFE_ROUND_UP if up else PaddingMode.CAFFE_ROUND_DOWN
    return c.layer("add_pooling_nd", x, type=kind, window_size=window, then={
        "stride_nd": Dims(stride), "padding_nd": Dims(pad), "padding_mode": mode,
        "average_count_excludes_padding": False})


def _with_mask(c: Context, n: CaffeLayer, **where: Any) -> list[Value]:
    """Maxima, and where each was: its position in the channel's image, as a number of f32."""
    plane = n.size(2, "the mask") * n.size(3, "the mask")
    y, at = c.ops("max_pool_indices", n[0], **where)
    at = c.binary("mod", at, c.const(np.int64(plane)))
    return [y, c.op("cast", at, to=f32, saturate=False)]


@importer("ROIPooling", inputs=2, does="maximum over regions, cut into a grid")
def roi_pooling(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.roi_pooling_param
    if not (p.pooled_h and p.pooled_w):
        raise LayerProblem("roi_pooling_param needs pooled_h and pooled_w")
    rois = n[1] if n[1].rank == 2 else c.reshape(n[1], (-1, 5))
    return c.op("max_roi_pool", n[0], rois, output_height=p.pooled_h, output_width=p.pooled_w,
                spatial_scale=p.spatial_scale)
