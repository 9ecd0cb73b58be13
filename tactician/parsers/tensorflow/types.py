"""TensorFlow's element types, tensors and attributes as ours, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import dtypes as T
from ...ir.dtypes import DType, dtype
from ..onnx.errors import NodeProblem, Unsupported
from .schema import messages

_DTYPES: dict[int, DType] = {
    1: T.f32, 2: T.f64, 3: T.i32, 4: T.u8, 5: T.i16, 6: T.i8, 8: T.c64, 9: T.i64, 10: T.b1,
    14: T.bf16, 17: T.u16, 18: T.c128, 19: T.f16, 22: T.u32, 23: T.u64, 24: T.f8e5m2, 25: T.f8e4m3,
}  # fmt: skip
_NUMBERS = {d: n for n, d in _DTYPES.items()}
_OTHER = {0: "invalid", 7: "string", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16",
          16: "quint16", 20: "resource", 21: "variant"}  # fmt: skip
STRING, RESOURCE, VARIANT = 7, 20, 21

# Which repeated field holds the elements of a type, where they are not raw bytes.
_FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 5: "int_val", 6: "int_val",
           9: "int64_val", 10: "bool_val", 14: "half_val", 17: "int_val", 19: "half_val",
           22: "uint32_val", 23: "uint64_val", 8: "scomplex_val", 18: "dcomplex_val"}  # fmt: skip


def dtype_of(number: int) -> DType:
    """The element type of a ``DataType`` number; references count as what they refer to.

    Raises:
        Unsupported: If tactician has no such type.
    """
    number = number - 100 if number > 100 else number
    if number not in _DTYPES:
        name = _OTHER.get(number, f"number {number}")
        raise Unsupported(f"element type {name} is not supported", "UNSUPPORTED_NODE_DATATYPE")
    return _DTYPES[number]


def number_of(dt: Any) -> int:
    """The ``DataType`` number of an element type."""
    return _NUMBERS[dtype(dt)]


def shape_of(proto: Any) -> tuple[int, ...] | None:
    """A ``TensorShapeProto`` with -1 for what is unknown; None if not even the rank is known."""
    return None if proto.unknown_rank else tuple(int(d.size) for d in proto.dim)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """A ``TensorProto`` as an array. Fewer elements than its shape needs repeat the last one.

    Raises:
        NodeProblem: If the amount of data does not fit its shape.
        Unsupported: If its element type is not supported.
    """
    dt = dtype_of(tensor.dtype)
    shape = shape_of(tensor.tensor_shape)
    if shape is None or any(d < 0 for d in shape):
        raise NodeProblem("a constant needs a static shape; the file is damaged")
    count = int(np.prod(shape, dtype=np.int64))
    if tensor.tensor_content:
        raw = tensor.tensor_content
        if len(raw) != count * dt.np.itemsize:
            raise NodeProblem(f"its tensor {dt}{list(shape)} needs {count * dt.np.itemsize} bytes "
                              f"but has {len(raw)}; the file is damaged")
        return np.frombuffer(raw, dt.np).reshape(shape)
    given = np.array(getattr(tensor, _FIELDS.get(tensor.dtype, "float_val")))
    if dt.kind == "c":
        given = given[0::2] + 1j * given[1::2]
    if tensor.dtype in (14, 19):  # sixteen bits in an integer
        given = given.astype(np.uint16).view(dt.np)
    if given.size > count or (count and not given.size and shape):
        if not given.size:
            return np.zeros(shape, dt.np)
        raise NodeProblem(f"its tensor {dt}{list(shape)} holds {given.size} elements; the file is "
                          "damaged")
    if not given.size:
        return np.zeros(shape, dt.np)
    out = np.full(count, given[-1] if count else 0, dt.np)
    out[: given.size] = given.astype(dt.np)
    return out.reshape(shape)


def to_tensor(array: Any) -> Any:
    """An array as a ``TensorProto``."""
    array = np.asarray(array)
    proto = messages()["TensorProto"](dtype=number_of(array.dtype))
    proto.tensor_shape.SetInParent()
    for d in array.shape:
        proto.tensor_shape.dim.add(size=d)
    proto.tensor_content = np.ascontiguousarray(array).tobytes()
    if not proto.tensor_content and array.size:
        raise ValueError("no data")
    return proto


def attr_value(attr: Any) -> Any:
    """An ``AttrValue`` in Python: bytes as text, types as numbers, shapes as tuples, tensors as
    arrays, functions as `NameAttrList` messages, lists as tuples."""
    kind = attr.WhichOneof("value")
    if kind is None:
        return ()  # an empty list may be written as nothing
    if kind == "list":
        for field in ("s", "i", "f", "b", "type", "shape", "tensor", "func"):
            items = getattr(attr.list, field)
            if len(items):
                return tuple(_plain(field, x) for x in items)
        return ()
    return _plain(kind, getattr(attr, kind))


def _plain(kind: str, x: Any) -> Any:
    if kind == "s":
        return x.decode("utf-8", "replace")
    if kind == "shape":
        return shape_of(x)
    if kind == "tensor":
        return to_numpy(x)
    if kind in ("i", "type"):
        return int(x)
    return x


def set_attr(proto: Any, value: Any) -> None:
    """Writes a Python value into an ``AttrValue``: bool, int, float, text, bytes, `DType` or numpy
    type, array, or a list of one of these. A protobuf message is copied."""
    if hasattr(value, "DESCRIPTOR"):
        proto.CopyFrom(value) if value.DESCRIPTOR.name == "AttrValue" else _message(proto, value)
    elif isinstance(value, (bool, np.bool_)):
        proto.b = bool(value)
    elif isinstance(value, (int, np.integer)):
        proto.i = int(value)
    elif isinstance(value, (float, np.floating)):
        proto.f = float(value)
    elif isinstance(value, (str, bytes)):
        proto.s = value.encode() if isinstance(value, str) else value
    elif isinstance(value, (DType, np.dtype, type)):
        proto.type = number_of(value)
    elif isinstance(value, np.ndarray):
        proto.tensor.CopyFrom(to_tensor(value))
    elif isinstance(value, (list, tuple)):
        _set_list(proto, value)
    else:
        raise TypeError(f"an attribute can't be a {type(value).__name__}: {value!r}")


def _message(proto: Any, value: Any) -> None:
    field = {"TensorProto": "tensor", "TensorShapeProto": "shape", "NameAttrList": "func"}
    getattr(proto, field[value.DESCRIPTOR.name]).CopyFrom(value)


def _set_list(proto: Any, values: Any) -> None:
    proto.list.SetInParent()
    for v in values:
        if isinstance(v, (bool, np.bool_)):
            proto.list.b.append(bool(v))
        elif isinstance(v, (int, np.integer)):
            proto.list.i.append(int(v))
        elif isinstance(v, (float, np.floating)):
            proto.list.f.append(float(v))
        elif isinstance(v, (str, bytes)):
            proto.list.s.append(v.encode() if isinstance(v, str) else v)
        elif isinstance(v, (DType, np.dtype, type)):
            proto.list.type.append(number_of(v))
        else:
            raise TypeError(f"a list attribute can't hold a {type(v).__name__}")
