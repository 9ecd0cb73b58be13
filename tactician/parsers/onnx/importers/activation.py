"""Activation functions."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context, axis_of
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer

# op: our function, then (attribute, default) for alpha and beta
_FUNCTIONS: dict[str, tuple[str, tuple[str, float] | float, tuple[str, float] | float]] = {
    "Sigmoid": ("sigmoid", 0.0, 0.0),
    "Tanh": ("tanh", 0.0, 0.0),
    "Softsign": ("softsign", 0.0, 0.0),
    "Softplus": ("softplus", 1.0, 1.0),
    "Elu": ("elu", ("alpha", 1.0), 0.0),
    "Celu": ("celu", ("alpha", 1.0), 0.0),
    "Selu": ("selu", ("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
    "LeakyRelu": ("leaky_relu", ("alpha", 0.01), 0.0),
    "HardSigmoid": ("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "ThresholdedRelu": ("thresholded_relu", ("alpha", 1.0), 0.0),
    "HardSwish": ("hard_swish", 0.0, 0.0),
    "Mish": ("mish", 0.0, 0.0),
    "Swish": ("swish", ("alpha", 1.0), 0.0),
    "Shrink": ("shrink", ("lambd", 0.5), ("bias", 0.0)),
    "ScaledTanh": ("scaled_tanh", ("alpha", 1.0), ("beta", 1.0)),
    "ParametricSoftplus": ("softplus", ("alpha", 1.0), ("beta", 1.0)),
}


def _parameter(n: OnnxNode, spec: Any) -> float:
    return spec if isinstance(spec, float) else float(n.attr(*spec))


@importer(*_FUNCTIONS)
def activation(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs")
    fn, alpha, beta = _FUNCTIONS[n.op]
    x = n[0]
    if fn == "shrink" and not x.dtype.is_float:
        return _integer_shrink(c, n)
    return c.activation(x, fn, alpha=_parameter(n, alpha), beta=_parameter(n, beta))


def _integer_shrink(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    bias, bound = c.like(n.attr("bias", 0.0), x), n.attr("lambd", 0.5)
    import math

    limit = math.floor(bound)
    low = c.select(c.binary("lt", x, c.like(-limit, x)), c.add(x, bias), c.like(0, x))
    return c.select(c.binary("gt", x, c.like(limit, x)), c.sub(x, bias), low)


@importer("Relu")
def relu(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs")
    if not n[0].dtype.is_float:
        return c.binary("max", n[0], c.like(0, n[0]))
    return c.activation(n[0], "relu")


@importer("PRelu", since=7)
def prelu(c: Context, n: OnnxNode) -> Value:
    x, slope = n[0], n[1]
    if not x.dtype.is_float:
        return c.select(c.binary("lt", x, c.like(0, x)), c.mul(x, slope), x)
    return c.op("prelu", x, slope)


@importer("Gelu", since=20)
def gelu(c: Context, n: OnnxNode) -> Value:
    mode = n.attr("approximate", "none")
    if mode not in ("none", "tanh"):
        raise NodeProblem(f"approximate is {mode!r}; expected none or tanh")
    return c.activation(n[0], "gelu_tanh" if mode == "tanh" else "gelu_erf")


@importer("Softmax", "LogSoftmax", since=13)
def softmax(c: Context, n: OnnxNode) -> Value:
    axis = axis_of(n.attr("axis", -1), n[0].rank)
    return c.op("softmax", n[0], axes=(axis,), log=n.op == "LogSoftmax")


@importer("Softmax", "LogSoftmax", until=12)
def softmax_flattened(c: Context, n: OnnxNode) -> Value:
    """Up to opset 12 all axes from ``axis`` on are one."""
    axis = axis_of(n.attr("axis", 1), n[0].rank)
    return c.op("softmax", n[0], axes=tuple(range(axis, n[0].rank)), log=n.op == "LogSoftmax")


@importer("Hardmax", since=13)
def hardmax(c: Context, n: OnnxNode) -> Value:
    return _hardmax(c, n[0], axis_of(n.attr("axis", -1), n[0].rank))


@importer("Hardmax", until=12)
def hardmax_flattened(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    axis = axis_of(n.attr("axis", 1), x.rank)
    rows, columns = range(axis), range(axis, x.rank)
    flat = c.reshape(x, c.concat([c.numel_of(x, rows), c.numel_of(x, columns)]))
    return c.reshape(_hardmax(c, flat, 1), c.shape(x))


def _hardmax(c: Context, x: Value, axis: int) -> Value:
    first = c.op("argreduce", x, fn="max", axis=axis, keepdims=False, last=False)
    depth = c.shape_of(x, [axis])
    values = c.const([0, 1], x.dtype)
    return c.op("one_hot", first, depth, values, axis=axis)
