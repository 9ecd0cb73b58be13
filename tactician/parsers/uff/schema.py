"""The messages of UFF files, declared in Python, and values of fields."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...ir.dtypes import DType, dtype
from ..tensorflow.schema import declare

PACKAGE = "tactician.uff"

ENUMS = {
    "DataType": "DT_INVALID=0 DT_INT8=65544 DT_INT16=65552 DT_INT32=65568 DT_INT64=65600 "
                "DT_FLOAT16=131088 DT_FLOAT32=131104",
}
MESSAGES = """
MetaGraph
  1 version int64
  2 descriptor_core_version int64
  3 descriptors Descriptor*
  4 graphs Graph*
  5 referenced_data [string,Data]
  100 extra_fields [string,Data]
Descriptor
  1 id string
  2 version int64
  3 optional bool
Graph
  1 id string
  2 nodes Node*
  100 extra_fields [string,Data]
Node
  1 id string
  2 inputs string*
  3 operation string
  4 fields [string,Data]
  100 extra_fields [string,Data]
Data
  1 s string type
  2 s_list ListString type
  3 d double type
  4 d_list ListDouble type
  5 b bool type
  6 b_list ListBool type
  7 i int64 type
  8 i_list ListInt64 type
  9 blob bytes type
  100 ref string type
  101 dtype DataType type
  102 dtype_list ListDataType type
  103 dim_orders DimensionOrders type
  104 dim_orders_list ListDimensionOrders type
ListString
  1 val string*
ListDouble
  1 val double*
ListBool
  1 val bool*
ListInt64
  1 val int64*
ListDataType
  1 val DataType*
ListDimensionOrders
  1 val DimensionOrders*
DimensionOrders
  1 orders [int32,ListInt64]
"""
INCREMENT = 0x7FFFFFFF  # the key of an order of dimensions as a plain list

_DTYPES = {65544: "i8", 65552: "i16", 65568: "i32", 65600: "i64", 131088: "f16", 131104: "f32"}
_NUMBERS = {name: number for number, name in _DTYPES.items()}


@lru_cache(1)
def messages() -> dict[str, Any]:
    """Message classes by name: ``MetaGraph``, ``Node``, …"""
    return declare(MESSAGES, ENUMS, PACKAGE)


def number_of(dt: Any) -> int:
    """The number of an element type; types that UFF lacks become the nearest it has.

    Raises:
        ValueError: If there is none.
    """
    name = dtype(dt).name
    name = {"b1": "i32", "u8": "i32", "f64": "f32", "bf16": "f32", "u16": "i32"}.get(name, name)
    if name not in _NUMBERS:
        raise ValueError(f"UFF has no element type {name}")
    return _NUMBERS[name]


def dtype_of(number: int) -> DType | None:
    """The element type of a number, or None."""
    return dtype(_DTYPES[number]) if number in _DTYPES else None


def set_data(data: Any, value: Any) -> None:
    """Writes a Python value into a ``Data``: bool, int, float, text, bytes, an element type, or a
    list of one of these.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        _set_list(data, list(value))
    elif isinstance(value, (bool, np.bool_)):
        data.b = bool(value)
    elif isinstance(value, (int, np.integer)):
        data.i = int(value)
    elif isinstance(value, (float, np.floating)):
        data.d = float(value)
    elif isinstance(value, str):
        data.s = value
    elif isinstance(value, bytes):
        data.blob = value
    elif isinstance(value, (DType, np.dtype, type)):
        data.dtype = number_of(value)
    else:
        raise TypeError(f"a UFF field can't be a {type(value).__name__}: {value!r}")


def _set_list(data: Any, values: list[Any]) -> None:
    kinds = (((bool, np.bool_), "b_list"), ((int, np.integer), "i_list"),
             ((int, float, np.integer, np.floating), "d_list"), ((str,), "s_list"))
    for kind, name in kinds:
        if all(isinstance(v, kind) for v in values):
            if name == "b_list" and not values:
                continue  # an empty list is one of integers
            target = getattr(data, name)
            target.SetInParent()
            target.val.extend(v.item() if isinstance(v, np.generic) else v for v in values)
            return
    raise TypeError(f"a UFF list must have elements of one kind: {values!r}")


def get_data(data: Any) -> Any:
    """A ``Data`` in Python: lists as tuples, element types as `DType`, orders of dimensions as
    dictionaries."""
    kind = data.WhichOneof("type")
    if kind is None:
        return None
    value = getattr(data, kind)
    if kind == "dtype":
        return dtype_of(value)
    if kind == "dtype_list":
        return tuple(dtype_of(v) for v in value.val)
    if kind == "dim_orders":
        return {k: tuple(v.val) for k, v in value.orders.items()}
    if kind == "dim_orders_list":
        return tuple({k: tuple(v.val) for k, v in o.orders.items()} for o in value.val)
    return tuple(value.val) if kind.endswith("_list") else value
