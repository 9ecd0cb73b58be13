"""Tensor arrays (1.x) and tensor lists (2.x): a tensor whose first axis counts the elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ir.dtypes import DType
from ...ir.graph import Value
from ..onnx.errors import NodeProblem, Unsupported
from .context import Context


@dataclass(frozen=True)
class EmptyArray:
    """An array nothing has been written to: its element shape may not be known yet.

    Attributes:
        dtype: Element type.
        size: Number of elements, i64 [1].
        shape: Shape of an element with -1 or None for what is unknown.
    """

    dtype: DType
    size: Value
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"an empty array of {self.dtype}"

    def inside(self, c: Context) -> EmptyArray:
        """The same array seen from a loop's body."""
        return EmptyArray(self.dtype, c.scope.capture(self.size), self.shape)

    def zeros(self, c: Context, dims: Any) -> Value:
        """The array with elements of zeros."""
        shape = c.concat([self.size, c.dims(dims)]) if dims else self.size
        return c.expand_new(c.const(0, self.dtype), shape)


@dataclass(frozen=True)
class ArrayHandle:
    """The handle of a tensor array; its contents travel in the flow value."""

    empty: EmptyArray

    def __str__(self) -> str:
        return "a tensor array's handle"


Contents = Value | EmptyArray


def contents(x: Any, what: str) -> Contents:
    """An operand that must be an array's contents."""
    if not isinstance(x, (Value, EmptyArray)):
        raise NodeProblem(f"{what} is {x}; expected the contents of a tensor array or list")
    return x


def filled(c: Context, x: Contents) -> Value:
    """Contents that must be a tensor: of an empty array with known element shape, zeros."""
    if isinstance(x, Value):
        return x
    if x.shape is None or any(d is None or d < 0 for d in x.shape):
        raise Unsupported("the array is read before anything was written, and its element shape "
                          "is unknown", "UNSUPPORTED_NODE_DYNAMIC")
    return x.zeros(c, x.shape)


def write(c: Context, x: Contents, index: Value, item: Value) -> Value:
    """The array with one element replaced."""
    whole = x.zeros(c, item.dims) if isinstance(x, EmptyArray) else x
    at = c.reshape(c.index(index), (1, 1))
    return c.op("scatter_nd", whole, at, c.unsqueeze(item, [0]), reduction="none")


def read(c: Context, x: Contents, index: Value) -> Value:
    """One element."""
    return c.op("gather", filled(c, x), c.scalar(c.index(index)), axis=0)


def scatter(c: Context, x: Contents, indices: Value, items: Value) -> Value:
    """The array with several elements replaced; all of them, where indices count from 0."""
    if _counts_all(indices) and isinstance(x, EmptyArray):
        return items
    whole = x.zeros(c, items.dims[1:]) if isinstance(x, EmptyArray) else x
    return c.op("scatter_nd", whole, c.unsqueeze(c.index(indices), [1]), items, reduction="none")


def gather(c: Context, x: Contents, indices: Value) -> Value:
    """Several elements, stacked."""
    whole = filled(c, x)
    if _counts_all(indices):
        return whole
    return c.op("gather", whole, c.index(indices), axis=0)


def _counts_all(indices: Value) -> bool:
    """Whether indices are 0, 1, 2, … (as TensorFlow's stack and unstack make them)."""
    while indices.producer is not None and indices.producer.op in ("cast", "identity"):
        source = indices.producer.inputs[0]
        assert source is not None
        indices = source
    if indices.const is not None:
        return indices.const.tolist() == list(range(indices.const.size))
    made = indices.producer
    if made is None or made.op != "range":
        return False
    start, delta = made.inputs[0].known_ints(), made.inputs[2].known_ints()  # type: ignore
    return start is not None and delta is not None and start.item() == 0 and delta.item() == 1
