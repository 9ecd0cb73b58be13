"""Convolutions, pooling, normalization, dense layers.

Graphs keep channels last; these ops want them on axis 1. Transposes go before and behind; the
passes move them through what lies between until they cancel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value
from ..context import Context, require_ints
from ..node import TfNode
from ..table import importer

from ...onnx.errors import NodeProblem, Unsupported  # isort: skip


def is_last(n: TfNode) -> bool:
    """Whether the node's channels are the last axis.

    Raises:
        Unsupported: If its format has channels elsewhere or in blocks.
    """
    text = n.attr("data_format", "NHWC")
    if text not in ("NHWC", "NCHW", "NDHWC", "NCDHW", "NWC", "NCW"):
        raise Unsupported(f"data_format is {text!r}; NHWC, NCHW and their 1-D and 3-D forms are "
                          "supported")
    return text.endswith("C")


def first(c: Context, n: TfNode, x: Value) -> Value:
    return c.to_first(x) if is_last(n) else x


def back(c: Context, n: TfNode, y: Value) -> Value:
    return c.to_last(y) if is_last(n) else y


def _spatial(n: TfNode, values: Any, what: str) -> tuple[int, ...]:
    """The spatial entries of a list with one entry per axis; others must be 1."""
    values = tuple(int(v) for v in values)
    inner = values[1:-1] if is_last(n) else values[2:]
    others = (values[0], values[-1]) if is_last(n) else values[:2]
    if any(v != 1 for v in others):
        raise Unsupported(f"{what} {list(values)} of batch and channels must be 1")
    return inner


def window(n: TfNode, rank: int) -> dict[str, Any]:
    """Stride, padding and dilation of a convolution or pooling."""
    count = rank - 2
    ones = (1,) * rank
    out: dict[str, Any] = {"stride": _spatial(n, n.ints("strides"), "strides"),
                           "dilation": _spatial(n, n.ints("dilations", ones) or ones, "dilations")}
    padding = n.attr("padding")
    if len(out["stride"]) != count:
        raise NodeProblem(f"strides {list(n.ints('strides'))} do not fit an input of rank {rank}")
    pads = [0] * (2 * rank)
    if padding == "EXPLICIT":
        pads = list(n.ints("explicit_paddings"))
        if len(pads) != 2 * rank:
            raise NodeProblem(f"explicit_paddings {pads} needs {2 * rank} entries")
    elif padding not in ("SAME", "VALID"):
        raise NodeProblem(f"padding is {padding!r}; expected SAME, VALID or EXPLICIT")
    out["pre"], out["post"] = (_spatial_pads(n, pads[k::2]) for k in (0, 1))
    out["padding_mode"] = "same_upper" if padding == "SAME" else "explicit_down"
    return out


def _spatial_pads(n: TfNode, pads: list[int]) -> tuple[int, ...]:
    return tuple(pads[1:-1] if is_last(n) else pads[2:])


def check_image(x: Value, w: Value | None = None) -> None:
    if x.rank < 3 or (w is not None and w.rank != x.rank):
        raise NodeProblem(f"an input of rank {x.rank} and weights of rank "
                          f"{w.rank if w is not None else '?'} don't fit together")


def permuted(c: Context, w: Value, perm: tuple[int, ...], shape: Any = None) -> Value:
    """Weights with permuted axes; at once where they are constant."""
    if w.const is not None:
        data = np.ascontiguousarray(w.const.transpose(perm))
        return c.const(data if shape is None else data.reshape(shape), name=w.name)
    w = c.transpose(w, perm)
    return w if shape is None else c.reshape(w, shape)


@importer("Conv2D", "Conv3D")
def conv(c: Context, n: TfNode) -> Value:
    x, w = n[0], n[1]
    check_image(x, w)
    x = first(c, n, x)
    count = x.rank - 2
    inner, channels, groups = w.dims[-2], x.dims[1], 1
    if isinstance(inner, int) and isinstance(channels, int):
        if channels % inner:
            raise NodeProblem(f"the input has {channels} channels, the weights {list(w.dims)} want "
                              f"{inner}")
        groups = channels // inner
    w = permuted(c, w, (count + 1, count, *range(count)))
    return back(c, n, c.op("convolution", x, w, groups=groups, **window(n, x.rank)))


@importer("DepthwiseConv2dNative", "DepthwiseConv2dNativeV2")
def depthwise(c: Context, n: TfNode) -> Value:
    x, w = n[0], n[1]
    check_image(x, w)
    x = first(c, n, x)
    height, width, channels, times = (int(d) for d in w.dims)
    w = permuted(c, w, (2, 3, 0, 1), (channels * times, 1, height, width))
    return back(c, n, c.op("convolution", x, w, groups=channels, **window(n, x.rank)))


@importer("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def conv_transpose(c: Context, n: TfNode) -> Value:
    w, x = n[1], first(c, n, n[2])
    check_image(x, w)
    count = x.rank - 2
    wanted = require_ints(n[0], "the output's shape", static=False).reshape(-1)
    sizes = list(wanted[1:-1] if is_last(n) else wanted[2:])
    if wanted.size == count:  # written without batch and channels
        sizes = list(wanted)
    where = window(n, x.rank)
    pre, post, extra = [], [], []
    for i, want in enumerate(sizes):
        k = (w.dims[i] - 1) * where["dilation"][i] + 1
        full = (x.dims[2 + i] - 1) * where["stride"][i] + k
        total = full - want
        if not isinstance(total, int):
            raise Unsupported(f"the output's size {want} for an input of {x.dims[2 + i]} needs "
                              "padding known only at run time", "UNSUPPORTED_NODE_DYNAMIC")
        pads = max(total, 0)
        if where["padding_mode"] == "same_upper":
            pre.append(pads // 2)
            post.append(pads - pads // 2)
        else:
            pre.append(where["pre"][i])
            post.append(total - where["pre"][i] if total > 0 else 0)
        extra.append(max(-total, 0))
    w = permuted(c, w, (count + 1, count, *range(count)))
    y = c.op("deconvolution", x, w, stride=where["stride"], dilation=where["dilation"], groups=1,
             pre=tuple(pre), post=tuple(post), output_padding=tuple(extra),
             padding_mode="explicit_down")
    return back(c, n, y)


@importer("MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D")
def pool(c: Context, n: TfNode) -> Value:
    x = n[0]
    check_image(x)
    attrs = window(n, x.rank)
    size = _spatial(n, n.ints("ksize"), "ksize")
    fn = "max" if n.op.startswith("Max") else "average"
    attrs.pop("dilation")
    return back(c, n, c.op("pooling", first(c, n, x), fn=fn, window=size,
                           count_include_pad=False, **attrs))


@importer("MaxPoolV2")
def pool_v2(c: Context, n: TfNode) -> Value:
    size = _spatial(n, require_ints(n[1], "ksize").reshape(-1), "ksize")
    stride = _spatial(n, require_ints(n[2], "strides").reshape(-1), "strides")
    mode = "same_upper" if n.attr("padding") == "SAME" else "explicit_down"
    return back(c, n, c.op("pooling", first(c, n, n[0]), fn="max", window=size, stride=stride,
                           padding_mode=mode))


@importer("BiasAdd", "BiasAddV1")
def bias_add(c: Context, n: TfNode) -> Value:
    x, b = n[0], n[1]
    if not is_last(n) and x.rank > 2:
        b = c.broadcast_channel(b, x.rank)
    return c.add(x, b)


@importer("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
          outputs="y batch_mean batch_variance reserve_space_1 reserve_space_2 reserve_space_3")
def batch_norm(c: Context, n: TfNode) -> list[Value]:
    x, gamma, beta, mean, variance = (n[i] for i in range(5))
    x = first(c, n, x)
    if n.attr("is_training", True):
        mean, variance = _batch_statistics(c, x)
    epsilon = n.attr("epsilon", 1e-4)
    if all(v.const is not None for v in (gamma, beta, mean, variance)):
        g, b, m, v = (np.asarray(k.const, np.float64) for k in (gamma, beta, mean, variance))
        factor = g / np.sqrt(v + epsilon)
        scale = c.const(factor.astype(np.float32), name=gamma.name)
        shift = c.const((b - m * factor).astype(np.float32), name=beta.name)
    else:
        root = c.unary("sqrt", c.add(variance, c.like(epsilon, variance)))
        scale = c.div(gamma, root)
        shift = c.sub(beta, c.mul(mean, scale))
    if x.dtype is not scale.dtype:
        scale, shift = c.cast(scale, x.dtype), c.cast(shift, x.dtype)
    if scale.const is not None:
        y = c.op("scale", x, shift, scale, axis=1)
    else:
        y = c.add(c.mul(x, c.broadcast_channel(scale, x.rank)),
                  c.broadcast_channel(shift, x.rank))
    y = back(c, n, y)
    return [y, mean, variance, mean, variance, mean]


def _batch_statistics(c: Context, x: Value) -> tuple[Value, Value]:
    axes = (0, *range(2, x.rank))
    mean = c.reduce(x, "mean", axes)
    d = c.sub(x, mean)
    variance = c.reduce(c.mul(d, d), "mean", axes, keepdims=False)
    return c.squeeze(mean, axes), variance


@importer("LRN")
def lrn(c: Context, n: TfNode) -> Value:
    size = 2 * n.attr("depth_radius", 5) + 1
    y = c.op("lrn", c.to_first(n[0]), size=size, alpha=n.attr("alpha", 1.0) * size,
             beta=n.attr("beta", 0.5), k=n.attr("bias", 1.0))
    return c.to_last(y)


def _flag(n: TfNode, *names: str) -> str:
    return "transpose" if any(n.attr(name, False) for name in names) else "none"


@importer("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def matmul(c: Context, n: TfNode) -> Value:
    a, b = n[0], n[1]
    return c.matmul(a, b, _flag(n, "transpose_a", "adj_x"), _flag(n, "transpose_b", "adj_y"))


@importer("Einsum")
def einsum(c: Context, n: TfNode) -> Value:
    return c.op("einsum", *n.all(), equation=n.attr("equation"))


@importer("Softmax", "LogSoftmax")
def softmax(c: Context, n: TfNode) -> Value:
    return c.op("softmax", n[0], axes=(n[0].rank - 1,), log=n.op == "LogSoftmax")


@importer("L2Loss")
def l2_loss(c: Context, n: TfNode) -> Value:
    x = n[0]
    total = c.reduce(c.mul(x, x), "sum", range(x.rank), keepdims=False)
    return c.mul(total, c.like(0.5, x))
