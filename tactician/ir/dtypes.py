"""Element types of the graph, with their numpy storage.

`DType` is the compiler's own type. TensorRT's `DataType` enum (network/) is a view over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type.

    Attributes:
        name: Short name, e.g. ``f32``.
        np: The numpy dtype that stores it (sub-byte types are stored one element per byte).
        bits: Bits of information per element.
        kind: ``f`` float, ``i`` signed, ``u`` unsigned, ``b`` boolean, ``c`` complex.
    """

    name: str
    np: np.dtype[Any]
    bits: int
    kind: str

    @property
    def size(self) -> int:
        """Bytes per stored element."""
        return self.np.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        """True for signed and unsigned integers (not bool)."""
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        return (dtype, (self.name,))


_ALL: dict[str, DType] = {}
_BY_NP: dict[np.dtype[Any], DType] = {}


def _make(name: str, np_type: Any, bits: int, kind: str) -> DType:
    d = DType(name, np.dtype(np_type), bits, kind)
    _ALL[name] = d
    _BY_NP.setdefault(d.np, d)
    return d


f64 = _make("f64", np.float64, 64, "f")
f32 = _make("f32", np.float32, 32, "f")
f16 = _make("f16", np.float16, 16, "f")
bf16 = _make("bf16", ml_dtypes.bfloat16, 16, "f")
f8e4m3 = _make("f8e4m3", ml_dtypes.float8_e4m3fn, 8, "f")
f8e5m2 = _make("f8e5m2", ml_dtypes.float8_e5m2, 8, "f")
f8e8m0 = _make("f8e8m0", ml_dtypes.float8_e8m0fnu, 8, "f")
f4e2m1 = _make("f4e2m1", ml_dtypes.float4_e2m1fn, 4, "f")
i64 = _make("i64", np.int64, 64, "i")
i32 = _make("i32", np.int32, 32, "i")
i16 = _make("i16", np.int16, 16, "i")
i8 = _make("i8", np.int8, 8, "i")
i4 = _make("i4", ml_dtypes.int4, 4, "i")
u64 = _make("u64", np.uint64, 64, "u")
u32 = _make("u32", np.uint32, 32, "u")
u16 = _make("u16", np.uint16, 16, "u")
u8 = _make("u8", np.uint8, 8, "u")
u4 = _make("u4", ml_dtypes.uint4, 4, "u")
b1 = _make("b1", np.bool_, 8, "b")
c64 = _make("c64", np.complex64, 64, "c")
c128 = _make("c128", np.complex128, 128, "c")


def dtype(x: Any) -> DType:
    """Returns the `DType` of a name, numpy dtype, numpy array or `DType`.

    Raises:
        TypeError: If there is no such element type.
    """
    if isinstance(x, DType):
        return x
    if isinstance(x, str) and x in _ALL:
        return _ALL[x]
    try:
        return _BY_NP[np.dtype(getattr(x, "dtype", x))]
    except (KeyError, TypeError):
        raise TypeError(f"no tactician element type for {x!r}; known: {', '.join(_ALL)}") from None


def all_dtypes() -> tuple[DType, ...]:
    return tuple(_ALL.values())
