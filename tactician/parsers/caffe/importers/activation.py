"""Layers that compute each element by itself."""

from __future__ import annotations

import math

from ....ir.dtypes import f32
from ....ir.graph import Value
from ....network.enums import ActivationType as A
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


@importer("ReLU", does="max(x, 0), or x * negative_slope below 0")
def relu(c: Context, n: CaffeLayer) -> Value:
    slope = n.proto.relu_param.negative_slope
    if slope:
        return c.activation(n[0], A.LEAKY_RELU, alpha=slope)
    return c.activation(n[0], A.RELU)


@importer("ReLU6", does="x between 0 and 6")
def relu6(c: Context, n: CaffeLayer) -> Value:
    return c.activation(n[0], A.CLIP, alpha=0.0, beta=6.0)


@importer("PReLU", does="x, below 0 times a slope per channel")
def prelu(c: Context, n: CaffeLayer) -> Value:
    x = n[0]
    if n.proto.prelu_param.channel_shared:
        slope = n.blob(0, (1,), "slope")
    else:
        channels = n.size(1, "its slopes")
        slope = n.blob(0, (channels,), "slopes").reshape(channels, *(1,) * (x.rank - 2))
    return c.layer("add_parametric_relu", x, slopes=c.network._tensor(c.weights(slope, "kernel")))


@importer("ELU", does="x, below 0 alpha * (exp(x) - 1)")
def elu(c: Context, n: CaffeLayer) -> Value:
    return c.activation(n[0], A.ELU, alpha=n.proto.elu_param.alpha)


@importer("Sigmoid", does="1 / (1 + exp(-x))")
def sigmoid(c: Context, n: CaffeLayer) -> Value:
    return c.activation(n[0], A.SIGMOID)


@importer("TanH", does="tanh(x)")
def tanh(c: Context, n: CaffeLayer) -> Value:
    return c.activation(n[0], A.TANH)


@importer("BNLL", does="log(1 + exp(x))")
def bnll(c: Context, n: CaffeLayer) -> Value:
    return c.activation(n[0], A.SOFTPLUS, alpha=1.0, beta=1.0)


@importer("Swish", does="x * sigmoid(beta * x)")
def swish(c: Context, n: CaffeLayer) -> Value:
    return c.op("activation", n[0], fn="swish", alpha=n.proto.swish_param.beta)


@importer("Clip", does="x between min and max")
def clip(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.clip_param
    if not (p.HasField("min") and p.HasField("max")):
        raise LayerProblem("clip_param needs min and max")
    return c.activation(n[0], A.CLIP, alpha=p.min, beta=p.max)


@importer("AbsVal", does="|x|")
def abs_val(c: Context, n: CaffeLayer) -> Value:
    return c.unary("abs", n[0])


@importer("Power", does="(shift + scale * x) ^ power")
def power(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.power_param
    return c.affine(n[0], p.scale, p.shift, p.power)


def _log_base(base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0 or base == 1:
        raise LayerProblem(f"base is {base:g}; it must be positive and not 1, or -1 for e")
    return math.log(base)


@importer("Exp", does="base ^ (shift + scale * x)")
def exp(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.exp_param
    log = _log_base(p.base)
    return c.unary("exp", c.affine(n[0], p.scale * log, p.shift * log))


@importer("Log", does="logarithm of shift + scale * x")
def log(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.log_param
    return c.affine(c.unary("log", c.affine(n[0], p.scale, p.shift)), 1 / _log_base(p.base))


@importer("Threshold", does="1 where x > threshold, else 0")
def threshold(c: Context, n: CaffeLayer) -> Value:
    over = c.binary("gt", n[0], c.number(n.proto.threshold_param.threshold))
    return c.op("cast", over, to=f32, saturate=False)
