"""Normalizations, scales and biases."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value
from ....network.enums import ScaleMode
from ..context import Context
from ..errors import LayerProblem
from ..node import Array, CaffeLayer
from ..table import importer


def _per_channel(c: Context, x: Value, scale: Array | None, shift: Array | None) -> Value:
    """``x * scale + shift`` along dimension 1."""
    return c.layer("add_scale_nd", x, mode=ScaleMode.CHANNEL, shift=shift, scale=scale,
                   power=None, channel_axis=1 - int(c.implicit))


@importer("BatchNorm", does="(x - mean) / sqrt(variance + eps)",
          notes="stored statistics divided by the stored scale factor; with use_global_stats: "
                "false, statistics of the batch; scale_bias as in NVIDIA's fork")
def batch_norm(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.batch_norm_param, n[0]
    channels = n.size(1, "its statistics")
    if p.HasField("use_global_stats") and not p.use_global_stats:
        c.refuse_batch(0, "statistics of the batch")
        one, zero = (c.const(np.full((channels, *(1,) * (x.rank - 2)), v, np.float32))
                     for v in (1, 0))
        axes = (0, *range(2, x.rank))
        y = c.op("normalization", x, one, zero, axes=axes, epsilon=p.eps)
        return y if not p.scale_bias else _per_channel(
            c, y, n.blob(3, (channels,), "scale"), n.blob(4, (channels,), "bias"))
    factor = float(n.blob(2, (1,), "scale factor").reshape(()))
    factor = 0.0 if factor == 0 else 1 / factor
    mean = n.blob(0, (channels,), "mean").astype(np.float64) * factor
    variance = n.blob(1, (channels,), "variance").astype(np.float64) * factor
    if not (variance + p.eps > 0).all():
        raise LayerProblem("its variance (blob 1) has numbers that are not positive; the "
                           "caffemodel is damaged, or its scale factor (blob 2) is wrong")
    scale = 1 / np.sqrt(variance + p.eps)
    shift = -mean * scale
    if p.scale_bias:
        gain = n.blob(3, (channels,), "scale")
        scale, shift = scale * gain, shift * gain + n.blob(4, (channels,), "bias")
    return _per_channel(c, x, scale.astype(np.float32), shift.astype(np.float32))


def _covered(n: CaffeLayer, p: Any) -> tuple[int, tuple[int, ...]]:
    """First axis and shape of a learned scale or bias."""
    x = n[0]
    if p.num_axes == 0:
        return 0, ()
    axis = n.axis(p.axis)
    last = x.rank if p.num_axes == -1 else axis + p.num_axes
    if p.num_axes < -1 or last > x.rank:
        raise LayerProblem(f"axis {p.axis} and num_axes {p.num_axes} reach beyond the {x.rank} "
                           "dimensions of the bottom")
    return axis, tuple(n.size(i, "its scale") for i in range(axis, last))


def _wide(array: Array, axis: int, rank: int) -> Array:
    """Shaped so that it broadcasts with its first dimension at ``axis``."""
    return array.reshape(*array.shape, *(1,) * (rank - axis - array.ndim)) if array.ndim \
        else array


def _by_bottom(c: Context, n: CaffeLayer, fn: str, axis: int) -> Value:
    """The first bottom times or plus the second, aligned at ``axis``."""
    x, other = n[0], n[1]
    if other.rank:
        axis = n.axis(axis)
        trailing = x.rank - axis - other.rank
        if trailing < 0 or tuple(x.dims[axis : axis + other.rank]) != tuple(other.dims):
            raise LayerProblem(f"its second bottom {list(other.dims)} doesn't match the "
                               f"dimensions from axis {axis} on of the first {list(x.dims)}")
        if trailing:
            other = c.op("unsqueeze", other,
                         c.ints(range(other.rank, other.rank + trailing)))
    return c.binary(fn, x, other)


@importer("Scale", inputs=(1, 2), does="x times a learned scale or the second bottom, plus a bias")
def scale(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.scale_param, n[0]
    if len(n) == 2:
        y = _by_bottom(c, n, "mul", p.axis)
        if not p.bias_term:
            return y
        axis = n.axis(p.axis)
        shape = tuple(n.size(i, "its bias") for i in range(axis, axis + n[1].rank))
        return c.binary("add", y, c.weights(_wide(n.blob(0, shape, "bias"), axis, x.rank),
                                            "shift"))
    axis, shape = _covered(n, p)
    gain = n.blob(0, shape, "scale")
    bias = n.blob(1, shape, "bias") if p.bias_term else None
    if axis == 1 and len(shape) == 1:
        return _per_channel(c, x, gain, bias)
    c.refuse_batch(axis if shape else 1, "a scale")
    y = c.binary("mul", x, c.weights(_wide(gain, axis, x.rank), "scale"))
    if bias is None:
        return y
    return c.binary("add", y, c.weights(_wide(bias, axis, x.rank), "shift"))


@importer("Bias", inputs=(1, 2), does="x plus a learned bias or the second bottom")
def bias(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.bias_param, n[0]
    if len(n) == 2:
        return _by_bottom(c, n, "add", p.axis)
    axis, shape = _covered(n, p)
    learned = n.blob(0, shape, "bias")
    if axis == 1 and len(shape) == 1:
        return _per_channel(c, x, None, learned)
    c.refuse_batch(axis if shape else 1, "a bias")
    return c.binary("add", x, c.weights(_wide(learned, axis, x.rank), "shift"))


@importer("LRN", does="x / (k + alpha / size * sum of squares nearby) ^ beta",
          notes="ACROSS_CHANNELS and WITHIN_CHANNEL; local_size is odd")
def lrn(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.lrn_param, n[0]
    if p.local_size % 2 == 0:
        raise LayerProblem(f"local_size is {p.local_size}; it must be odd")
    if p.norm_region == 0:
        return c.layer("add_lrn", x, window=p.local_size, alpha=p.alpha, beta=p.beta, k=p.k)
    if x.rank != 4:
        raise LayerProblem(f"WITHIN_CHANNEL needs four dimensions, the bottom has {x.rank}")
    pad = (p.local_size - 1) // 2
    squares = c.op("pooling", c.binary("mul", x, x), fn="average", window=(p.local_size,) * 2,
                   stride=(1, 1), pre=(pad, pad), post=(pad, pad), count_include_pad=True)
    # here Caffe's constant is 1, whatever k says
    return c.binary("mul", x, c.affine(squares, p.alpha, 1.0, -p.beta))


@importer("MVN", does="(x - mean) / (standard deviation + eps) of each image or channel")
def mvn(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.mvn_param, n[0]
    axes = tuple(range(1 if p.across_channels else 2, x.rank))
    if not axes:
        raise LayerProblem(f"its bottom has {x.rank} dimensions; there is nothing to take the "
                           "mean of")
    mean = c.op("reduce", x, fn="mean", axes=axes, keepdims=True)
    y = c.binary("sub", x, mean)
    if not p.normalize_variance:
        return y
    variance = c.op("reduce", c.binary("mul", y, y), fn="mean", axes=axes, keepdims=True)
    return c.binary("div", y, c.binary("add", c.unary("sqrt", variance), c.number(p.eps)))


@importer("Normalize", does="x / sqrt(sum of squares + eps) times a learned scale")
def normalize(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.norm_param, n[0]
    axes = tuple(range(1, x.rank)) if p.across_spatial else (1,)
    squares = c.op("reduce", x, fn="sum_square", axes=axes, keepdims=True)
    y = c.binary("div", x, c.unary("sqrt", c.binary("add", squares, c.number(p.eps))))
    count = 1 if p.channel_shared else n.size(1, "its scale")
    gain = n.blob(0, (count,), "scale")
    if p.channel_shared:
        return c.affine(y, float(gain[0]))
    return _per_channel(c, y, gain, None)


@importer("Softmax", does="softmax along axis")
def softmax(c: Context, n: CaffeLayer) -> Value:
    return _softmax(c, n)


def _softmax(c: Context, n: CaffeLayer) -> Value:
    axis = n.axis(n.proto.softmax_param.axis)
    c.refuse_batch(axis, "a softmax")
    return c.layer("add_softmax", n[0], then={"axes": 1 << (axis - int(c.implicit))})


@importer("SoftmaxWithLoss", inputs=(1, 3), does="softmax along axis; the loss is left out")
def softmax_with_loss(c: Context, n: CaffeLayer) -> list[Value]:
    return [_softmax(c, n)] * len(n.tops)
