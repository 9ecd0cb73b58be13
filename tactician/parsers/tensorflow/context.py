"""What importers work with: the ONNX importers' context, and TensorFlow's habits of shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dims as D
from ...ir.dtypes import i32, i64
from ...ir.graph import Value
from ..onnx import context as base
from ..onnx.context import axes_of, axis_of, require_ints
from ..onnx.errors import Unsupported

__all__ = ["Context", "Size", "axes_of", "axis_of", "require_ints"]

Size = int | Value  # one size: known, or an i64 tensor of shape [1]


class Context(base.Context):
    """Builds nodes in one graph."""

    # --- sizes that may be known only at run time --------------------------------------------

    def size(self, x: Value, axis: int) -> Size:
        """The extent of an axis."""
        d = x.dims[axis]
        return d if isinstance(d, int) else self.shape_of(x, [axis])

    def size_op(self, fn: str, a: Size, b: int) -> Size:
        """Arithmetic on sizes."""
        if isinstance(a, int):
            return {"mul": a * b, "floordiv": a // b, "add": a + b}[fn]
        return self.binary(fn, a, self.ints([b]))

    def sizes(self, parts: Sequence[Size]) -> Value:
        """Sizes as a 1-D i64 tensor."""
        if all(isinstance(p, int) for p in parts):
            return self.ints([int(p) for p in parts])  # type: ignore[arg-type]
        return self.concat([self.ints([p]) if isinstance(p, int) else p for p in parts])

    def to_shape(self, x: Value, parts: Sequence[Size]) -> Value:
        """Reshapes to sizes; one that is unknown is inferred."""
        unknown = [i for i, p in enumerate(parts) if not isinstance(p, int)]
        if len(unknown) == 1 and 0 not in parts:
            return self.reshape(x, [p if isinstance(p, int) else -1 for p in parts])
        return self.reshape(x, self.sizes(parts))

    def dims(self, dims: Sequence[Any]) -> Value:
        """Symbolic dimensions as a 1-D i64 tensor, from values of this graph that have them.

        Raises:
            Unsupported: If no input of the graph has such a dimension.
        """
        return self.sizes([d if isinstance(d, int) else self._find(d) for d in dims])

    def _find(self, d: Any) -> Value:
        candidates = [*self.graph.inputs, *self.scope.captures.values(),
                      *(v for n in self.graph.nodes for v in n.outputs)]
        for v in candidates:
            if v.shape is not None and d in v.shape:
                return self.shape_of(v, [v.shape.index(d)])
        raise Unsupported(f"a size {d} is only known inside a loop; give the tensor array or list "
                          "a static element shape", "UNSUPPORTED_NODE_DYNAMIC")

    # --- layouts ------------------------------------------------------------------------------

    def to_first(self, x: Value) -> Value:
        """Channels from the last axis to axis 1."""
        return self.transpose(x, (0, x.rank - 1, *range(1, x.rank - 1)))

    def to_last(self, x: Value) -> Value:
        """Channels from axis 1 to the last axis."""
        return self.transpose(x, (0, *range(2, x.rank), 1))

    def vector(self, x: Value) -> Value:
        """A scalar or 1-D integer tensor as i64 [n]."""
        x = self.index(x)
        return self.reshape(x, (1,)) if x.rank == 0 else x

    def cast(self, x: Value, dt: Any, saturate: bool = True) -> Value:
        if x.const is not None and x.dtype is not dt and {x.dtype, dt} <= {i32, i64}:
            return self.const(x.const.astype(dt.np), name=x.name)
        return super().cast(x, dt, saturate)

    def is_static(self, *dims: Any) -> bool:
        return D.is_static(*dims)
