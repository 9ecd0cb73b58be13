"""Value classes of the API: dimensions, permutations, weights, host memory."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..ir.dtypes import dtype as ir_dtype
from .enums import DataType, from_ir, to_ir


def as_int(x: Any) -> int:
    """A plain int from anything with ``__index__`` (numpy ints, enums, subclasses of int).

    Subclasses of int keep overridden arithmetic out of tactician's own.

    Raises:
        TypeError: If it is not an integer.
    """
    if isinstance(x, int):
        return int.__add__(x, 0)
    return int.__add__(operator.index(x), 0)


class Dims:
    """Sizes of a tensor's dimensions: a mutable sequence of ints, -1 for "known at run time".

    Compares equal to any sequence of the same numbers. Unlike TensorRT's it is not limited to
    `MAX_DIMS` dimensions.
    """

    MAX_DIMS = 8
    _length: int | None = None
    _types: tuple[str, ...] = ()

    def __init__(self, shape: Iterable[int] = (), *rest: int):
        if rest or not isinstance(shape, Iterable):
            shape = (shape, *rest)  # type: ignore[assignment,arg-type]
        self._d = [as_int(d) for d in shape]
        if self._length is not None and len(self._d) != self._length:
            if self._d:
                raise ValueError(
                    f"{type(self).__name__} takes {self._length} sizes, got {len(self._d)}"
                )
            self._d = [0] * self._length

    def __len__(self) -> int:
        return len(self._d)

    def __iter__(self) -> Iterator[int]:
        return iter(self._d)

    def __getitem__(self, i: Any) -> Any:
        return tuple(self._d[i]) if isinstance(i, slice) else self._d[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        if isinstance(i, slice):
            value = [as_int(v) for v in value]
            if len(value) != len(self._d[i]):
                raise IndexError(f"cannot put {len(value)} sizes into {len(self._d[i])} places")
            self._d[i] = value
        else:
            self._d[i] = as_int(value)

    def __contains__(self, x: object) -> bool:
        return x in self._d

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Dims, Permutation)):
            return self._d == list(other)
        if isinstance(other, (tuple, list)):
            return self._d == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._d))

    def __add__(self, other: Iterable[int]) -> tuple[int, ...]:
        return (*self._d, *other)

    def __radd__(self, other: Iterable[int]) -> tuple[int, ...]:
        return (*other, *self._d)

    def __repr__(self) -> str:
        return str(tuple(self._d))

    def __reduce__(self) -> Any:
        return type(self), (tuple(self._d),)

    def count(self, x: int) -> int:
        return self._d.count(x)

    def index(self, x: int) -> int:
        return self._d.index(x)

    def get_type(self, i: int) -> Any:
        """What dimension ``i`` means (version 7)."""
        from .enums import DimensionType

        operator.getitem(self._d, i)
        return DimensionType[self._types[i] if self._types else "SPATIAL"]


class InvalidDims(Dims):
    """The shape of a tensor whose layer is invalid; using it raises and says why."""

    def __init__(self, reason: str):
        super().__init__()
        self.reason = reason

    def _fail(self, *_: Any) -> Any:
        raise ValueError(f"the shape is not known: {self.reason}")

    __len__ = __iter__ = __getitem__ = __contains__ = _fail

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"(invalid: {self.reason})"


def _named(index: int, what: str) -> Any:
    def get(self: Dims) -> int:
        return self._d[index]

    def set_(self: Dims, value: int) -> None:
        self._d[index] = as_int(value)

    return property(get, set_, doc=what)


class Dims2(Dims):
    """Two sizes."""

    _length = 2


class DimsHW(Dims2):
    """Height and width."""

    h = _named(0, "Height.")
    w = _named(1, "Width.")


class Dims3(Dims):
    """Three sizes."""

    _length = 3


class DimsCHW(Dims3):
    """Channels, height, width (version 7)."""

    _types = ("CHANNEL", "SPATIAL", "SPATIAL")

    c = _named(0, "Channels.")
    h = _named(1, "Height.")
    w = _named(2, "Width.")


class Dims4(Dims):
    """Four sizes."""

    _length = 4


class DimsNCHW(Dims4):
    """Batch, channels, height, width (version 7)."""

    _types = ("INDEX", "CHANNEL", "SPATIAL", "SPATIAL")

    n = _named(0, "Batch.")
    c = _named(1, "Channels.")
    h = _named(2, "Height.")
    w = _named(3, "Width.")


class Permutation(Dims):
    """An order of dimensions. ``Permutation()`` is the identity, of any rank."""


class Weights:
    """Constant data for layers.

    Args:
        type: A `DataType` (empty weights of that type, or with ``ptr`` and ``count`` a view of
            foreign memory), or a numpy array (not copied here; layers copy it when they are added).
        ptr: Address of the first element.
        count: Number of elements.
    """

    __slots__ = ("_array", "_dtype", "name")

    def __init__(self, type: Any = DataType.FLOAT, ptr: int | None = None,
                 count: int | None = None, *, a: Any = None):
        self.name = ""
        data = a if a is not None else type
        if not isinstance(data, DataType):
            array = np.asarray(data)
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            self._array = array
            self._dtype = from_ir(ir_dtype(array.dtype))
            return
        self._dtype = data
        ir = to_ir(data)
        if ptr is None or not count:
            self._array = np.empty(0, ir.np)
            return
        if ir.bits < 8:
            packed = np.frombuffer(_memory(ptr, (count * ir.bits + 7) // 8), np.uint8)
            self._array = unpack_4bit(packed, count, ir.np)
        else:
            self._array = np.frombuffer(_memory(ptr, count * ir.size), ir.np)

    @property
    def dtype(self) -> DataType:
        return self._dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._array.size)

    @property
    def nbytes(self) -> int:
        return int(np.ceil(self.size * self._dtype.itemsize))

    def numpy(self) -> Any:
        """The elements as a numpy array (flat if made from an address)."""
        return self._array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self._array, dtype=dtype) if copy else np.asarray(self._array, dtype)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"Weights({self._dtype}, {self.size} elements)"


def _memory(ptr: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(as_int(ptr))


def unpack_4bit(packed: Any, count: int, dt: Any) -> Any:
    """Elements of a packed array of 4-bit values, the low half of each byte first."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    if np.dtype(dt).name == "int4":
        return ((nibbles.astype(np.int8) ^ 8) - 8).astype(dt)
    if np.dtype(dt).name == "uint4":
        return nibbles.astype(dt)
    return nibbles.view(dt)  # 4-bit floats: the byte holds the code


def weights_array(weights: Any, copy: bool = True) -> np.ndarray[Any, Any] | None:
    """The array of whatever programs pass as weights: `Weights`, an array, numbers or None.

    Empty weights give None. Arrays are copied, since callers may change theirs afterwards.

    Raises:
        TypeError: If it cannot be an array of a known element type.
    """
    if weights is None:
        return None
    if isinstance(weights, Weights):
        array = weights.numpy()
    elif hasattr(weights, "detach") and hasattr(weights, "cpu"):
        raise TypeError("weights are numpy arrays or trt.Weights; convert a torch tensor with"
                        " .detach().cpu().numpy()")
    else:
        array = np.asarray(weights)
    if array.size == 0 and array.ndim <= 1:
        return None
    ir_dtype(array.dtype)  # raises for strings and objects
    return np.array(array, order="C") if copy else np.ascontiguousarray(array)


class IHostMemory(bytes):
    """Memory holding a plan or a cache: a bytes object with TensorRT's attributes.

    Works wherever bytes do: ``f.write(m)``, ``bytearray(m)``, ``memoryview(m)``, ``len(m)``.
    """

    @property
    def dtype(self) -> DataType:
        return DataType.INT8

    @property
    def nbytes(self) -> int:
        return len(self)

    def __enter__(self) -> IHostMemory:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    def __repr__(self) -> str:
        return f"<IHostMemory of {len(self)} bytes>"


def volume(iterable: Iterable[int]) -> int:
    """The product of sizes; 1 for none, 0 if one is zero."""
    out = 1
    for d in iterable:
        out *= as_int(d)
    return out


def dims(x: Any, rank: int | None = None, what: str = "dims") -> tuple[int, ...]:
    """Sizes given as `Dims`, sequence or one int, as a tuple of ints.

    Raises:
        ValueError: If there are not ``rank`` of them.
    """
    out = tuple(as_int(d) for d in x) if isinstance(x, Iterable) else (as_int(x),)
    if rank is not None and len(out) != rank:
        raise ValueError(f"{what} needs {rank} sizes, got {out}")
    return out
