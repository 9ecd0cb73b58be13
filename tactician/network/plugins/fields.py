"""Named data that plugin creators take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..enums_build import FieldType, PluginFieldType

_BY_NAME = {
    "float16": PluginFieldType.FLOAT16, "float32": PluginFieldType.FLOAT32,
    "float64": PluginFieldType.FLOAT64, "int8": PluginFieldType.INT8,
    "int16": PluginFieldType.INT16, "int32": PluginFieldType.INT32,
    "int64": PluginFieldType.INT64, "bfloat16": PluginFieldType.BF16,
    "float8_e4m3fn": PluginFieldType.FP8, "int4": PluginFieldType.INT4,
    "float4_e2m1fn": PluginFieldType.FP4, "bool": PluginFieldType.INT8,
    "uint8": PluginFieldType.CHAR,
}


class FallbackString(str):
    """A string made from str or bytes."""

    __slots__ = ()

    def __new__(cls, arg0: str | bytes = "") -> FallbackString:
        text = arg0.decode("utf-8", "replace") if isinstance(arg0, bytes) else arg0
        return super().__new__(cls, text)


class FieldNumber(np.ndarray[Any, Any]):
    """A field's single number, as an array of one. It converts to a number, which numpy's own
    arrays no longer do but programs rely on."""

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return int(self.item())


class PluginField:
    """One named value of a plugin.

    Args:
        name: Its name.
        data: Numbers, an array, str or bytes; kept as an array.
        type: Element type; UNKNOWN: from the data.
    """

    name: str
    size: int
    type: PluginFieldType

    def __init__(self, name: str | bytes = "", data: Any = None,
                 type: PluginFieldType = PluginFieldType.UNKNOWN):
        self.name = str(FallbackString(name))
        self._data: Any = None
        self.type = PluginFieldType(type)
        self.size = 0
        if data is not None:
            self.data = data

    @property
    def data(self) -> Any:
        """The value, as a numpy array; characters as 8-bit integers."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, (bytes, bytearray, memoryview)) and not isinstance(value, np.ndarray):
            if isinstance(value, memoryview) and value.format not in ("B", "b", "c"):
                value = np.asarray(value)
            else:
                value = np.frombuffer(bytes(value), np.int8)
                if self.type is PluginFieldType.UNKNOWN:
                    self.type = PluginFieldType.CHAR
        array: np.ndarray[Any, Any] = np.array(value)
        self._data = array.view(FieldNumber) if array.shape == (1,) else array
        self.size = int(self._data.size)
        if self.type is PluginFieldType.UNKNOWN:
            self.type = _BY_NAME.get(self._data.dtype.name, PluginFieldType.UNKNOWN)

    def __repr__(self) -> str:
        return f"<PluginField {self.name!r} {self.type.name} x {self.size}>"


class PluginFieldCollection:
    """A list of plugin fields."""

    def __init__(self, fields: Iterable[PluginField] = ()):
        self._fields = list(fields)

    def append(self, x: PluginField) -> None:
        """Adds a field."""
        self._fields.append(x)

    def extend(self, L: Iterable[PluginField]) -> None:
        """Adds fields."""
        self._fields.extend(L)

    def insert(self, i: int, x: PluginField) -> None:
        """Inserts a field."""
        self._fields.insert(i, x)

    def pop(self, i: int = -1) -> PluginField:
        """Removes a field and returns it."""
        return self._fields.pop(i)

    def clear(self) -> None:
        """Removes all fields."""
        self._fields.clear()

    def __len__(self) -> int:
        return len(self._fields)

    def __bool__(self) -> bool:
        return bool(self._fields)

    def __iter__(self) -> Iterator[PluginField]:
        return iter(self._fields)

    def __getitem__(self, i: Any) -> Any:
        picked = self._fields[i]
        return PluginFieldCollection(picked) if isinstance(i, slice) else picked

    def __setitem__(self, i: Any, x: Any) -> None:
        self._fields[i] = x

    def __delitem__(self, i: Any) -> None:
        del self._fields[i]

    def __repr__(self) -> str:
        return f"PluginFieldCollection({self._fields!r})"


class PluginFieldCollection_(PluginFieldCollection):
    """The form in which creators receive fields."""


class FieldMap:
    """A named value of an operator (UFF parser).

    Attributes:
        name, data, type, length: Name, data, `FieldType`, number of elements.
    """

    name: str
    data: Any
    type: FieldType
    length: int

    def __init__(self, name: str = "", data: Any = None, type: FieldType = FieldType.UNKNOWN,
                 length: int = 0):
        self.name, self.data, self.type, self.length = name, data, FieldType(type), length


class FieldCollection:
    """The values of an operator (UFF parser).

    Attributes:
        fields: The values.
    """

    fields: list[FieldMap]

    def __init__(self, fields: Iterable[FieldMap] = ()):
        self.fields = list(fields)

    @property
    def num_fields(self) -> int:
        """How many there are."""
        return len(self.fields)


_NAMES = {t.value: t for t in PluginFieldType}


def pack_fields(fields: Iterable[PluginField]) -> bytes:
    """Fields as bytes: for each, a header line ``type size shape name-length`` and the data."""
    out = bytearray()
    for f in fields:
        array = f.data if isinstance(f.data, np.ndarray) else None
        raw = b"" if f.data is None else (array.tobytes() if array is not None else bytes(f.data))
        kind = "-" if array is None else array.dtype.name
        shape = "" if array is None else ",".join(map(str, array.shape))
        name = f.name.encode()
        out += f"{f.type.value} {kind} [{shape}] {len(name)} {len(raw)}\n".encode()
        out += name + raw
    return bytes(out)


def unpack_fields(data: bytes) -> PluginFieldCollection_:
    """The inverse of `pack_fields`.

    Raises:
        ValueError: If the bytes are not packed fields.
    """
    import ml_dtypes

    out, at = PluginFieldCollection_(), 0
    while at < len(data):
        end = data.index(b"\n", at)
        kind, dtype, shape, n, size = data[at:end].decode().split(" ")
        at = end + 1
        name = data[at:at + int(n)].decode()
        at += int(n)
        raw = data[at:at + int(size)]
        at += int(size)
        value: Any = raw
        if dtype != "-":
            dt = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
            sizes = [int(d) for d in shape[1:-1].split(",") if d]
            value = np.frombuffer(raw, dt).reshape(sizes)
        out.append(PluginField(name, value, _NAMES[int(kind)]))
    return out
