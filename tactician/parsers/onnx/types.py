"""ONNX element types, tensors and attributes as ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import dtypes as T
from ...ir.dtypes import DType
from .errors import NodeProblem, Unsupported

# TensorProto.DataType numbers, which are part of ONNX's file format.
_DTYPES: dict[int, DType] = {
    1: T.f32, 2: T.u8, 3: T.i8, 4: T.u16, 5: T.i16, 6: T.i32, 7: T.i64, 9: T.b1, 10: T.f16,
    11: T.f64, 12: T.u32, 13: T.u64, 14: T.c64, 15: T.c128, 16: T.bf16, 17: T.f8e4m3,
    19: T.f8e5m2, 21: T.u4, 22: T.i4, 23: T.f4e2m1, 24: T.f8e8m0,
}  # fmt: skip
_NUMBERS = {d: n for n, d in _DTYPES.items()}
_OTHER_NAMES = {0: "undefined", 8: "string", 18: "float8e4m3fnuz", 20: "float8e5m2fnuz",
                25: "uint2", 26: "int2"}  # fmt: skip


def dtype_of(number: int) -> DType:
    """The element type of a ``TensorProto.DataType`` number.

    Raises:
        Unsupported: If tactician has no such type.
    """
    try:
        return _DTYPES[number]
    except KeyError:
        name = _OTHER_NAMES.get(number, f"number {number}")
        raise Unsupported(
            f"element type {name} is not supported", "UNSUPPORTED_NODE_DATATYPE"
        ) from None


def number_of(dt: DType) -> int:
    """The ``TensorProto.DataType`` number of an element type."""
    return _NUMBERS[dt]


def element_count(dims: Any) -> int:
    count = 1
    for d in dims:
        if d < 0:
            raise NodeProblem(f"a tensor has the negative dimension {d}")
        count *= int(d)
    return count


def to_numpy(tensor: Any, raw: Any = None) -> np.ndarray[Any, Any]:
    """A ``TensorProto`` as an array.

    Args:
        tensor: The proto.
        raw: Its bytes, if they lie outside the proto.

    Raises:
        NodeProblem: If the amount of data does not fit its shape.
        Unsupported: If its element type is not supported.
    """
    dt = dtype_of(tensor.data_type)
    count = element_count(tensor.dims)
    shape = tuple(int(d) for d in tensor.dims)
    if raw is None and tensor.HasField("raw_data"):
        raw = tensor.raw_data
    if raw is not None:
        packed_bits = {4: 4}.get(dt.bits, dt.np.itemsize * 8)
        expected = (count * packed_bits + 7) // 8
        if len(raw) != expected:
            raise NodeProblem(
                f"tensor {tensor.name!r} {dt}{list(shape)} needs {expected} bytes but has "
                f"{len(raw)}; the file is damaged"
            )
        if dt.bits != 4:
            return np.frombuffer(raw, dtype=dt.np.newbyteorder("<")).astype(
                dt.np, copy=False
            ).reshape(shape)
    from onnx import TensorProto, numpy_helper

    if raw is not None and not tensor.HasField("raw_data"):
        filled = TensorProto()
        filled.dims.extend(tensor.dims)
        filled.data_type, filled.raw_data = tensor.data_type, bytes(raw)
        tensor = filled
    try:
        return np.asarray(numpy_helper.to_array(tensor)).astype(dt.np, copy=False).reshape(shape)
    except (TypeError, ValueError) as e:
        raise NodeProblem(
            f"tensor {tensor.name!r} {dt}{list(shape)} does not hold {count} elements ({e}); "
            "the file is damaged"
        ) from None


def attribute_value(attr: Any) -> Any:
    """An ``AttributeProto`` as a Python value: int, float, str, ndarray, GraphProto, or a tuple."""
    from onnx import AttributeProto as A

    kind = attr.type
    if kind == A.UNDEFINED:  # old exporters leave it out
        kind = next((k for k, f in _FIELDS(A).items() if attr.HasField(f)), A.INTS)
    if kind == A.FLOAT:
        return float(attr.f)
    if kind == A.INT:
        return int(attr.i)
    if kind == A.STRING:
        return attr.s.decode("utf-8", "replace")
    if kind == A.TENSOR:
        return to_numpy(attr.t)
    if kind == A.GRAPH:
        return attr.g
    if kind == A.FLOATS:
        return tuple(float(x) for x in attr.floats)
    if kind == A.INTS:
        return tuple(int(x) for x in attr.ints)
    if kind == A.STRINGS:
        return tuple(s.decode("utf-8", "replace") for s in attr.strings)
    if kind == A.TENSORS:
        return tuple(to_numpy(t) for t in attr.tensors)
    raise Unsupported(
        f"attribute {attr.name!r} has a type that is not supported "
        f"({A.AttributeType.Name(attr.type)})",
        "UNSUPPORTED_NODE_ATTR",
    )


def _FIELDS(A: Any) -> dict[int, str]:
    return {A.FLOAT: "f", A.INT: "i", A.STRING: "s", A.TENSOR: "t", A.GRAPH: "g"}
