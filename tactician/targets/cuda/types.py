"""Element types as Triton spells them, in registers and in memory.

f16, bf16 and 8-bit floats are f32 in registers; booleans are i1 in registers, bytes in memory.
"""

from __future__ import annotations

from ...ir import dtypes as T
from ...ir.dtypes import DType

_NAMES: dict[DType, str] = {
    T.f64: "float64", T.f32: "float32", T.f16: "float16", T.bf16: "bfloat16",
    T.f8e4m3: "float8e4nv", T.f8e5m2: "float8e5", T.i64: "int64", T.i32: "int32", T.i16: "int16",
    T.i8: "int8", T.u64: "uint64", T.u32: "uint32", T.u16: "uint16", T.u8: "uint8", T.b1: "int1",
}  # fmt: skip
_POINTEES: dict[DType, str] = {
    T.f64: "fp64", T.f32: "fp32", T.f16: "fp16", T.bf16: "bf16", T.f8e4m3: "fp8e4nv",
    T.f8e5m2: "fp8e5", T.i64: "i64", T.i32: "i32", T.i16: "i16", T.i8: "i8", T.u64: "u64",
    T.u32: "u32", T.u16: "u16", T.u8: "u8", T.b1: "i8",
}  # fmt: skip
_NARROW_FLOATS = (T.f16, T.bf16, T.f8e4m3, T.f8e5m2)


def supported(dt: DType) -> bool:
    """Whether Triton kernels can compute with this element type."""
    return dt in _NAMES


def register(dt: DType) -> DType:
    """The type arithmetic on ``dt`` is done in."""
    return T.f32 if dt in _NARROW_FLOATS else dt


def is_narrow_float(dt: DType) -> bool:
    """Whether elements are floats that registers hold as f32."""
    return dt in _NARROW_FLOATS


def tl_name(dt: DType) -> str:
    """A type in Triton source, such as ``tl.float32``."""
    return "tl." + _NAMES[dt]


def pointer_type(dt: DType) -> str:
    """The type of a pointer parameter, such as ``*fp16``; booleans are bytes."""
    return "*" + _POINTEES[dt]
