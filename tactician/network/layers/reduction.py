"""Layers that combine elements along dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dtypes as T
from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import DataType, LayerType, ReduceOperation, TopKOperation, to_ir
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import as_int

_REDUCE = {
    ReduceOperation.SUM: "sum", ReduceOperation.PROD: "prod", ReduceOperation.MAX: "max",
    ReduceOperation.MIN: "min", ReduceOperation.AVG: "mean",
}


def mask_axes(mask: int, x: Value, off: int) -> tuple[int, ...]:
    """Dimensions from a bit mask (bit i: dimension i, not counting an implicit batch).

    Raises:
        OpError: If it names none, or dimensions that ``x`` has not.
    """
    rank = x.rank - off
    if mask <= 0 or mask >> rank:
        raise OpError(f"axes {mask:#b} is a bit mask and must name some of the {rank} dimensions"
                      f" of {x!r}, e.g. 1 << 1 for dimension 1")
    return tuple(i + off for i in range(rank) if mask >> i & 1)


class IReduceLayer(ILayer):
    """Reduces dimensions.

    Attributes:
        op: The operation.
        axes: Bit mask of dimensions.
        keep_dims: Whether reduced dimensions stay, with size 1.
    """

    _layer_type = LayerType.REDUCE
    _title = "Reduce"
    op = Attr(ReduceOperation, "The operation.")
    axes = Attr(as_int, "Bit mask of dimensions.")
    keep_dims = Attr(bool, "Whether reduced dimensions stay.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        if s["op"] not in _REDUCE:
            raise OpError("ReduceOperation.NONE is only meant for collectives")
        return [e.value("reduce", x, fn=_REDUCE[s["op"]], keepdims=s["keep_dims"],
                        axes=mask_axes(s["axes"], x, self._net._off))]


class ISoftMaxLayer(ILayer):
    """Softmax.

    Attributes:
        axes: Bit mask of one dimension; by default the third from the end, or the first if there
            are fewer (with implicit batch not counting the batch).
    """

    _layer_type = LayerType.SOFTMAX
    _title = "SoftMax"
    axes = Attr(as_int, "Bit mask of the dimension.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        axes = mask_axes(self._state["axes"], x, self._net._off)
        return [e.value("softmax", x, axes=axes, log=False)]


class ITopKLayer(ILayer):
    """The k largest or smallest elements along a dimension: values and their indices.

    Attributes:
        op: MAX or MIN.
        k: How many; input 1 overrides it.
        axes: Bit mask of one dimension.
        indices_type: INT32 or INT64.
    """

    _layer_type = LayerType.TOPK
    _title = "TopK"
    _default_outputs = 2
    op = Attr(TopKOperation, "Largest or smallest.")
    k = Attr(as_int, "How many elements.")
    axes = Attr(as_int, "Bit mask of the dimension.")
    indices_type = Attr(DataType, "Element type of the indices.")

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        axes = mask_axes(s["axes"], x, self._net._off)
        if len(axes) != 1:
            raise OpError(f"axes {s['axes']:#b} must name one dimension")
        k = self._x(1) if self._in(1) is not None else e.ints([s["k"]])
        if len(k.dims) == 0:
            k = e.value("reshape", k, e.ints([1]), zero_copies=False)
        node = e.op("topk", x, k, axis=axes[0], largest=s["op"] is TopKOperation.MAX, sorted=True)
        indices = node.outputs[1]
        want = to_ir(s["indices_type"])
        if want is not T.i64:
            indices = e.value("cast", indices, to=want)
        return [node.outputs[0], indices]


class ReductionAdders(NetworkCore):
    """``add_*`` methods of reductions."""

    def add_reduce(self, input: ITensor, op: ReduceOperation, axes: int,
                   keep_dims: bool) -> IReduceLayer:
        """Adds a reduction; ``axes`` is a bit mask."""
        return self._add(IReduceLayer, [input], op=ReduceOperation(op), axes=as_int(axes),
                         keep_dims=bool(keep_dims))

    def add_softmax(self, input: ITensor) -> ISoftMaxLayer:
        """Adds a softmax; set the layer's ``axes``."""
        shape = input._v.shape if isinstance(input, ITensor) else None
        rank = 0 if shape is None else len(shape) - self._off
        return self._add(ISoftMaxLayer, [input], axes=1 << max(rank - 3, 0))

    def add_topk(self, input: ITensor, op: TopKOperation, k: int, axes: int,
                 indices_type: Any = DataType.INT32) -> ITopKLayer:
        """Adds top-k; ``axes`` is a bit mask of one dimension."""
        return self._add(ITopKLayer, [input], op=TopKOperation(op), k=as_int(k), axes=as_int(axes),
                         indices_type=DataType(indices_type))
