"""Operators as they were before opset 7."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..errors import Unsupported
from ..node import OnnxNode
from ..table import importer
from .math import _BINARY
from .matmul import gemm as gemm_7
from .norm import _batch_norm
from .pool import _window

_SINCE_1 = ("Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Equal", "Greater", "Less")


def _aligned(c: Context, n: OnnxNode) -> Value:
    """The second operand, its dimensions put where ``axis`` says."""
    a, b = n[0], n[1]
    if not n.flag("broadcast") or "axis" not in n.attributes or b.rank == 0:
        n.ignore("axis")
        return b
    trailing = a.rank - axis_of(n.attr("axis"), a.rank) - b.rank
    return c.unsqueeze(b, range(b.rank, b.rank + trailing)) if trailing > 0 else b


@importer(*_SINCE_1, until=6)
def binary(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs")
    fn = "truncdiv" if n.op == "Div" and n[0].dtype.is_int else _BINARY[n.op]
    return c.binary(fn, n[0], _aligned(c, n))


@importer("Pow", until=6)
def power(c: Context, n: OnnxNode) -> Value:
    return c.binary("pow", n[0], _aligned(c, n))


@importer("PRelu", until=6)
def prelu(c: Context, n: OnnxNode) -> Value:
    x, slope = n[0], n[1]
    n.ignore("consumed_inputs")
    if slope.rank == 1 and x.rank > 1 and slope.dims[0] != 1:
        slope = c.broadcast_channel(slope, x.rank)
    return c.op("prelu", x, slope)


@importer("Gemm", until=6)
def gemm(c: Context, n: OnnxNode) -> Value:
    n.ignore("broadcast")
    return gemm_7(c, n)


@importer("BatchNormalization", until=6)
def batch_norm(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs", "momentum", "spatial")
    if not n.flag("is_test") and n.wants(1):
        raise Unsupported("BatchNormalization in training mode; export the model for inference")
    return _batch_norm(c, n)


@importer("Dropout", until=6)
def dropout(c: Context, n: OnnxNode) -> list[Value]:
    n.ignore("ratio", "is_test", "consumed_inputs")
    mask = [c.expand_new(c.const(True), c.shape(n[0]))] if n.wants(1) else []
    return [c.op("identity", n[0]), *mask]


@importer("AveragePool", until=6)
def average_pool(c: Context, n: OnnxNode) -> Value:
    return c.op("pooling", n[0], fn="average", count_include_pad=False, **_window(n))


@importer("Reshape", until=4)
def reshape(c: Context, n: OnnxNode) -> Value:
    n.ignore("consumed_inputs")
    return c.op("reshape", n[0], c.ints(n.ints("shape")), zero_copies=True)


@importer("Concat", until=3)
def concat(c: Context, n: OnnxNode) -> Value:
    values = n.present()
    return c.op("concat", *values, axis=axis_of(n.attr("axis", 1), values[0].rank))


@importer("Cast", until=5)
def cast(c: Context, n: OnnxNode) -> Value:
    names = {"FLOAT": T.f32, "DOUBLE": T.f64, "FLOAT16": T.f16, "BOOL": T.b1, "INT8": T.i8,
             "INT16": T.i16, "INT32": T.i32, "INT64": T.i64, "UINT8": T.u8, "UINT16": T.u16,
             "UINT32": T.u32, "UINT64": T.u64}
    to = n.attr("to").upper()
    if to not in names:
        raise Unsupported(f"element type {to!r} is not supported", "UNSUPPORTED_NODE_DATATYPE")
    return c.op("cast", n[0], to=names[to], saturate=True)
