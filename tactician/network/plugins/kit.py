"""Short names for the ops that built-in plugins are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value

Number = int | float | np.generic


class Kit:
    """Adds ops to a graph.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph

    def op(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The (first) result of an op."""
        return ops.emit(self.graph, name, list(inputs), **attrs).outputs[0]

    def const(self, values: Any, dtype: Any = None) -> Value:
        """A constant; floats are FP32 unless said otherwise."""
        array = np.asarray(values)
        if dtype is None and array.dtype == np.float64:
            dtype = np.float32
        return self.graph.constant(array if dtype is None else array.astype(dtype))

    def ints(self, *values: int) -> Value:
        """A vector of integers."""
        return self.graph.constant(np.array(values, np.int64))

    def binary(self, fn: str, a: Value | Number, b: Value | Number) -> Value:
        """An elementwise function; numbers take the other operand's type."""
        if not isinstance(a, Value):
            assert isinstance(b, Value)
            a = self.const(a, b.dtype.np)
        elif not isinstance(b, Value):
            b = self.const(b, a.dtype.np)
        return self.op("binary", a, b, fn=fn)

    def add(self, a: Value | Number, b: Value | Number) -> Value:
        """a + b."""
        return self.binary("add", a, b)

    def sub(self, a: Value | Number, b: Value | Number) -> Value:
        """a - b."""
        return self.binary("sub", a, b)

    def mul(self, a: Value | Number, b: Value | Number) -> Value:
        """a * b."""
        return self.binary("mul", a, b)

    def div(self, a: Value | Number, b: Value | Number) -> Value:
        """a / b; rounded down for integers."""
        whole = any(isinstance(v, Value) and v.dtype.is_int for v in (a, b))
        return self.binary("floordiv" if whole else "div", a, b)

    def clip(self, x: Value, low: Value | Number, high: Value | Number) -> Value:
        """Numbers brought between two limits."""
        return self.binary("min", self.binary("max", x, low), high)

    def unary(self, fn: str, x: Value) -> Value:
        """An elementwise function."""
        return self.op("unary", x, fn=fn)

    def cast(self, x: Value, to: Any) -> Value:
        """``x`` in another type."""
        return x if x.dtype is to else self.op("cast", x, to=to)

    def where(self, condition: Value, a: Value | Number, b: Value | Number) -> Value:
        """``a`` where the condition holds, else ``b``."""
        if not isinstance(a, Value):
            assert isinstance(b, Value)
            a = self.const(a, b.dtype.np)
        elif not isinstance(b, Value):
            b = self.const(b, a.dtype.np)
        return self.op("select", condition, a, b)

    def size(self, x: Value, axis: int) -> Value:
        """A dimension as a vector of one integer."""
        if isinstance(x.dims[axis], int):
            return self.ints(int(x.dims[axis]))  # type: ignore[arg-type]
        return self.op("slice", self.op("shape", x), self.ints(axis), self.ints(1), self.ints(1))

    def shape(self, *sizes: int | Value) -> Value:
        """A shape from integers and vectors (as `size` gives them)."""
        if all(isinstance(s, int) for s in sizes):
            return self.ints(*sizes)  # type: ignore[arg-type]
        parts = [s if isinstance(s, Value) else self.ints(s) for s in sizes]
        return self.op("concat", *parts, axis=0)

    def reshape(self, x: Value, *sizes: int | Value) -> Value:
        """``x`` in another shape; -1 is what is left, 0 as it is."""
        return self.op("reshape", x, self.shape(*sizes), zero_copies=True)

    def transpose(self, x: Value, *perm: int) -> Value:
        """``x`` with its axes in another order."""
        return self.op("transpose", x, perm=perm)

    def expand(self, x: Value, *sizes: int | Value) -> Value:
        """``x`` repeated along axes of size 1."""
        return self.op("expand", x, self.shape(*sizes))

    def full(self, value: Number, dtype: Any, *sizes: int | Value) -> Value:
        """A tensor of one number."""
        one = self.const(np.full((1,) * len(sizes), value, dtype))
        return self.expand(one, *sizes)

    def part(self, x: Value, axis: int, begin: int, end: int) -> Value:
        """Elements from ``begin`` to before ``end`` along an axis."""
        return self.op("strided_slice", x, self.ints(begin), self.ints(end), self.ints(axis))

    def split(self, x: Value, axis: int = -1) -> list[Value]:
        """The elements along an axis, each with a dimension of 1 there."""
        axis %= x.rank
        count = x.dims[axis]
        assert isinstance(count, int)
        return [self.part(x, axis, k, k + 1) for k in range(count)]

    def join(self, parts: Sequence[Value], axis: int) -> Value:
        """Tensors side by side."""
        return self.op("concat", *parts, axis=axis % parts[0].rank)

    def squeeze(self, x: Value, *axes: int) -> Value:
        """``x`` without dimensions of 1."""
        return self.op("squeeze", x, self.ints(*axes))

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        """``x`` with dimensions of 1, counted in the result."""
        return self.op("unsqueeze", x, self.ints(*axes))

    def reduce(self, fn: str, x: Value, *axes: int, keep: bool = False) -> Value:
        """A reduction."""
        axes = tuple(a % x.rank for a in axes)
        return self.op("reduce", x, fn=fn, axes=axes, keepdims=keep)

    def gather(self, x: Value, at: Value, axis: int, batch: int = 0) -> Value:
        """Elements of ``x`` along an axis by index."""
        return self.op("gather", x, at, axis=axis, batch_dims=batch)

    def topk(self, x: Value, count: int, axis: int) -> tuple[Value, Value]:
        """The greatest numbers along an axis, best first, and their places."""
        values, at = ops.emit(self.graph, "topk", [x, self.ints(count)], axis=axis, largest=True,
                              sorted=True).outputs
        return values, at

    def upto(self, count: Value) -> Value:
        """0, 1, 2 … before ``count``, a vector of one integer."""
        end = self.reshape(count)
        return self.op("range", self.const(0, np.int64), end, self.const(1, np.int64))

    def f32(self, x: Value) -> Value:
        """``x`` in FP32."""
        return self.cast(x, T.f32)
