"""Elementwise arithmetic, comparisons, logic, activations, casts."""

from __future__ import annotations

from typing import Any

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context
from ..node import TfNode
from ..table import importer

_UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh",
    "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf",
    "Exp": "exp", "Floor": "floor", "IsNan": "isnan", "IsInf": "isinf", "Log": "log",
    "Neg": "neg", "Reciprocal": "recip", "Inv": "recip", "Rint": "round", "Round": "round",
    "Rsqrt": "rsqrt", "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan",
    "LogicalNot": "not", "Invert": "bitnot", "Lgamma": "lgamma",
}  # fmt: skip
_BINARY = {
    "Add": "add", "AddV2": "add", "Sub": "sub", "Mul": "mul", "RealDiv": "div", "Pow": "pow",
    "Maximum": "max", "Minimum": "min", "FloorDiv": "floordiv", "FloorMod": "mod",
    "Mod": "fmod", "TruncateMod": "fmod", "TruncateDiv": "truncdiv", "Atan2": "atan2",
    "LogicalAnd": "and", "LogicalOr": "or", "BitwiseAnd": "bitand", "BitwiseOr": "bitor",
    "BitwiseXor": "bitxor", "LeftShift": "shl", "RightShift": "shr", "Equal": "eq",
    "NotEqual": "ne", "Greater": "gt", "GreaterEqual": "ge", "Less": "lt", "LessEqual": "le",
}  # fmt: skip
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus",
                "Softsign": "softsign", "Selu": "selu", "Elu": "elu"}
_PARAMETERS = {"softplus": {"alpha": 1.0, "beta": 1.0}, "elu": {"alpha": 1.0},
               "selu": {"alpha": 1.6732632423543772, "beta": 1.0507009873554805}}


@importer(*_UNARY)
def unary(c: Context, n: TfNode) -> Value:
    return c.unary(_UNARY[n.op], n[0])


@importer(*_BINARY)
def binary(c: Context, n: TfNode) -> Value:
    return c.binary(_BINARY[n.op], n[0], n[1])


@importer("Div")
def divide(c: Context, n: TfNode) -> Value:
    return c.binary("truncdiv" if n[0].dtype.is_int else "div", n[0], n[1])


@importer("DivNoNan", "MulNoNan", "Xdivy", "Xlogy", "Xlog1py")
def no_nan(c: Context, n: TfNode) -> Value:
    """Products and quotients that are 0 where one operand is."""
    x, y = n[0], n[1]
    zero, one = c.like(0, x), c.like(1, x)
    guard = x if n.op.startswith("X") else y
    is_zero = c.binary("eq", guard, zero)
    if n.op == "DivNoNan":
        result = c.div(x, c.select(is_zero, one, y))
    elif n.op == "MulNoNan":
        result = c.mul(x, y)
    elif n.op == "Xdivy":
        result = c.div(x, y)
    else:
        result = c.mul(x, c.unary("log", y if n.op == "Xlogy" else c.add(y, one)))
    return c.select(is_zero, zero, result)


@importer("SquaredDifference")
def squared_difference(c: Context, n: TfNode) -> Value:
    d = c.sub(n[0], n[1])
    return c.mul(d, d)


@importer("Square")
def square(c: Context, n: TfNode) -> Value:
    return c.mul(n[0], n[0])


@importer("AddN", "AccumulateNV2")
def add_n(c: Context, n: TfNode) -> Value:
    total, *rest = n.all()
    for v in rest:
        total = c.add(total, v)
    return total if rest else c.op("identity", total)


@importer("Expm1")
def expm1(c: Context, n: TfNode) -> Value:
    """tanh(x / 2) * (exp(x) + 1), which keeps its digits near 0."""
    x = n[0]
    half = c.unary("tanh", c.mul(x, c.like(0.5, x)))
    return c.mul(half, c.add(c.unary("exp", x), c.like(1, x)))


@importer("Log1p")
def log1p(c: Context, n: TfNode) -> Value:
    """2 atanh(x / (x + 2)), which keeps its digits near 0."""
    x = n[0]
    return c.mul(c.like(2, x), c.unary("atanh", c.div(x, c.add(x, c.like(2, x)))))


@importer("Erfc")
def erfc(c: Context, n: TfNode) -> Value:
    return c.sub(c.like(1, n[0]), c.unary("erf", n[0]))


@importer("IsFinite")
def is_finite(c: Context, n: TfNode) -> Value:
    return c.unary("not", c.binary("or", c.unary("isnan", n[0]), c.unary("isinf", n[0])))


@importer(*_ACTIVATIONS)
def activation(c: Context, n: TfNode) -> Value:
    fn = _ACTIVATIONS[n.op]
    return c.activation(n[0], fn, **_PARAMETERS.get(fn, {}))


@importer("Relu6")
def relu6(c: Context, n: TfNode) -> Value:
    return c.activation(n[0], "clip", alpha=0.0, beta=6.0)


@importer("LeakyRelu")
def leaky_relu(c: Context, n: TfNode) -> Value:
    return c.activation(n[0], "leaky_relu", alpha=n.attr("alpha", 0.2))


@importer("ClipByValue")
def clip_by_value(c: Context, n: TfNode) -> Value:
    return c.binary("min", c.binary("max", n[0], n[1]), n[2])


@importer("Cast")
def cast(c: Context, n: TfNode) -> Value:
    x, to = n[0], n.dtype("DstT")
    if to is T.b1:
        return c.binary("ne", x, c.like(0, x)) if x.dtype is not T.b1 else c.op("identity", x)
    return c.op("cast", x, to=to) if x.dtype is not to else c.op("identity", x)


@importer("Select", "SelectV2", "BatchSelect")
def select(c: Context, n: TfNode) -> Value:
    cond = n[0]
    if n.op == "Select" and cond.rank == 1 and n[1].rank > 1:  # chooses among rows
        cond = c.unsqueeze(cond, range(1, n[1].rank))
    return c.select(cond, n[1], n[2])


@importer("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs",
          "FakeQuantWithMinMaxVarsPerChannel")
def fake_quantize(c: Context, n: TfNode) -> Value:
    """Rounds to the levels of a quantized type, whose range is nudged so that 0 is a level."""
    x, f32 = n[0], T.f32
    levels = 2 ** n.attr("num_bits", 8) - 1
    first = 1 if n.attr("narrow_range", False) else 0
    low: Any = c.const(n.attr("min", -6.0), f32) if n.op.endswith("Args") else n[1]
    high: Any = c.const(n.attr("max", 6.0), f32) if n.op.endswith("Args") else n[2]
    scale = c.div(c.sub(high, low), c.const(levels - first, f32))
    zero = c.sub(c.const(first, f32), c.div(low, scale))
    zero = c.unary("floor", c.add(zero, c.const(0.5, f32)))
    zero = c.binary("min", c.binary("max", zero, c.const(first, f32)), c.const(levels, f32))
    low = c.mul(c.sub(c.const(first, f32), zero), scale)
    high = c.mul(c.sub(c.const(levels, f32), zero), scale)
    clipped = c.binary("min", c.binary("max", x, low), high)
    steps = c.unary("floor", c.add(c.div(c.sub(clipped, low), scale), c.const(0.5, f32)))
    return c.add(c.mul(steps, scale), low)
