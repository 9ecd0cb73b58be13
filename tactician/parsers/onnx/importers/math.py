"""Elementwise arithmetic, comparisons, logic, casts."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..errors import NodeProblem, Unsupported
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of

_UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh",
    "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf",
    "Exp": "exp", "Floor": "floor", "IsNaN": "isnan", "Log": "log", "Neg": "neg",
    "Reciprocal": "recip", "Round": "round", "Sign": "sign", "Sin": "sin", "Sinh": "sinh",
    "Sqrt": "sqrt", "Tan": "tan", "Not": "not", "BitwiseNot": "bitnot",
}  # fmt: skip

_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or",
    "Xor": "xor", "BitwiseAnd": "bitand", "BitwiseOr": "bitor", "BitwiseXor": "bitxor",
    "Equal": "eq", "Greater": "gt", "Less": "lt", "GreaterOrEqual": "ge", "LessOrEqual": "le",
}  # fmt: skip


@importer(*_UNARY)
def unary(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs")
    return c.unary(_UNARY[n.op], n[0])


@importer(*(op for op in _BINARY if op not in ("GreaterOrEqual", "LessOrEqual")), since=7)
@importer("GreaterOrEqual", "LessOrEqual", since=12)
def binary(c: Context, n: OnnxNode) -> Value:
    fn = _BINARY[n.op]
    if fn == "div" and n[0].dtype.is_int:
        fn = "truncdiv"
    return c.binary(fn, n[0], n[1])


@importer("Pow", since=7)
def power(c: Context, n: OnnxNode) -> Value:
    return c.binary("pow", n[0], n[1])


@importer("Mod", since=10)
def mod(c: Context, n: OnnxNode) -> Value:
    fmod = n.flag("fmod")
    if n[0].dtype.is_float and not fmod and n.opset < 28:
        raise NodeProblem("floating-point Mod needs fmod=1")
    return c.binary("fmod" if fmod else "mod", n[0], n[1])


@importer("BitShift", since=11)
def bit_shift(c: Context, n: OnnxNode) -> Value:
    direction = n.attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise NodeProblem(f"direction is {direction!r}; expected LEFT or RIGHT")
    return c.binary("shl" if direction == "LEFT" else "shr", n[0], n[1])


_VARIADIC = {"Max": "max", "Min": "min", "Sum": "add", "Mean": "add"}


@importer(*_VARIADIC)
def variadic(c: Context, n: OnnxNode) -> Value:
    values = n.present()
    if not values:
        raise NodeProblem(f"{n.op} needs at least one input")
    total = values[0]
    for v in values[1:]:
        total = c.binary(_VARIADIC[n.op], total, v)
    if n.op == "Mean" and len(values) > 1:
        return c.div(total, c.like(len(values), total))
    return total if len(values) > 1 else c.op("identity", total)


@importer("Where", since=9)
def where(c: Context, n: OnnxNode) -> Value:
    return c.select(n[0], n[1], n[2])


@importer("IsInf", since=10)
def is_inf(c: Context, n: OnnxNode) -> Value:
    negative, positive = n.flag("detect_negative", True), n.flag("detect_positive", True)
    x = n[0]
    if negative and positive:
        return c.unary("isinf", x)
    if not negative and not positive:
        return c.binary("ne", c.select(c.unary("isnan", x), c.like(0, x), c.like(0, x)),
                        c.like(0, x))
    return c.binary("eq", x, c.like(float("inf") if positive else float("-inf"), x))


@importer("Clip", until=10)
def clip_attributes(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    low, high = n.attr("min", -3.4028234663852886e38), n.attr("max", 3.4028234663852886e38)
    return c.activation(x, "clip", alpha=low, beta=high)


@importer("Clip", since=11)
def clip(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    for i, fn in ((1, "max"), (2, "min")):
        bound = n.get(i)
        if bound is not None:
            x = c.binary(fn, x, c.scalar(bound))
    return c.op("identity", x) if x is n[0] else x


@importer("Identity")
def identity(c: Context, n: OnnxNode) -> Value:
    return n[0] if isinstance(n[0], list) else c.op("identity", n[0])


@importer("Cast", since=6, note="not to or from strings and fnuz float8")
def cast(c: Context, n: OnnxNode) -> Value:
    return _cast(c, n, dtype_of(n.attr("to")))


@importer("CastLike", since=15, note="as Cast")
def cast_like(c: Context, n: OnnxNode) -> Value:
    return _cast(c, n, n[1].dtype)


def _cast(c: Context, n: OnnxNode, to: T.DType) -> Value:
    saturate = n.flag("saturate", True)
    mode = n.attr("round_mode", "up")
    if to is T.f8e8m0 and mode != "nearest":
        return c.op("cast_e8m0", n[0], round_mode=mode)
    return c.op("cast", n[0], to=to, saturate=saturate)


@importer("BitCast", since=26)
def bit_cast(c: Context, n: OnnxNode) -> Value:
    to = dtype_of(n.attr("to"))
    if to.np.itemsize != n[0].dtype.np.itemsize or to.bits != n[0].dtype.bits:
        raise Unsupported(f"BitCast from {n[0].dtype} to {to}: the widths differ",
                          "UNSUPPORTED_NODE_DATATYPE")
    return c.op("bit_cast", n[0], to=to)


@importer("CumSum", since=11)
@importer("CumProd", since=26)
def cumulative(c: Context, n: OnnxNode) -> Value:
    fn = {"CumSum": "sum", "CumProd": "prod"}[n.op]
    axis = n[1]
    known = axis.known_ints()
    if known is not None and known.size == 1 and isinstance(known.reshape(-1)[0], int):
        axis = c.const(axis_of(known.reshape(-1)[0], n[0].rank), T.i64)
    return c.op("cumulative", n[0], c.scalar(axis), fn=fn, exclusive=n.flag("exclusive"),
                reverse=n.flag("reverse"))
