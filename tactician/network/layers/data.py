"""Layers that make, pick and place elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import GatherMode, LayerType
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import Dims, as_int, dims
from .contraction import dims_attr


class IConstantLayer(ILayer):
    """Constant data.

    Attributes:
        weights: The data.
        shape: Its shape.
    """

    _layer_type = LayerType.CONSTANT
    _title = "Constant"
    shape = Attr(dims_attr, "The shape.")

    @property
    def weights(self) -> Any:
        """The data, as a numpy array."""
        v = self._weights.get("weights")
        return np.empty(0, np.float32) if v is None else v.const

    @weights.setter
    def weights(self, weights: Any) -> None:
        self._set_weights("weights", weights)
        self._changed()

    def _emit(self, e: Emitter) -> Sequence[Value]:
        shape = tuple(self._state["shape"])
        v = self._weights.get("weights")
        count = int(np.prod(shape))
        array = np.empty(0, np.float32) if v is None else v.const
        assert array is not None
        if array.size != count:
            raise OpError(f"shape {shape} needs {count} weights, got {array.size}")
        array = array.reshape(((1,) * self._net._off) + shape)
        if v is not None:
            v.const, v.shape = array, array.shape
        return [e.value("constant", value=array)]


class IGatherLayer(ILayer):
    """Picks elements by index.

    Attributes:
        axis: The dimension that indices count along (DEFAULT and ELEMENT modes).
        num_elementwise_dims: Leading dimensions that data and indices share.
        mode: How indices are read.
    """

    _layer_type = LayerType.GATHER
    _title = "Gather"
    axis = Attr(as_int, "The dimension indices count along.")
    num_elementwise_dims = Attr(as_int, "Leading dimensions shared with the indices.")
    mode = Attr(GatherMode, "How indices are read.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x, idx, off = self._state, self._x(0), self._x(1), self._net._off
        axis = s["axis"] + (off if s["axis"] >= 0 else 0)
        if s["mode"] is not GatherMode.ND and not -x.rank <= axis < x.rank:
            raise OpError(f"axis {s['axis']} is not a dimension of {x!r}")
        axis %= max(x.rank, 1)
        batch = s["num_elementwise_dims"]
        if off and _has_batch(x) and _has_batch(idx):
            batch += 1
        if s["mode"] is GatherMode.ELEMENT:
            return [e.value("gather_elements", x, idx, axis=axis)]
        if s["mode"] is GatherMode.ND:
            return [e.value("gather_nd", x, idx, batch_dims=batch)]
        return [e.value("gather", x, idx, axis=axis, batch_dims=batch)]


def _has_batch(v: Value) -> bool:
    return bool(v.dims) and v.dims[0] != 1


class DataAdders(NetworkCore):
    """``add_*`` methods of layers that make, pick and place elements."""

    def add_constant(self, shape: Any, weights: Any) -> IConstantLayer:
        """Adds constant data."""
        return self._add(IConstantLayer, [], shape=Dims(dims(shape)), given={"weights": weights})

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> IGatherLayer:
        """Adds a gather along a dimension."""
        return self._add(IGatherLayer, [input, indices], axis=as_int(axis),
                         num_elementwise_dims=0, mode=GatherMode.DEFAULT)

    def add_gather_v2(self, input: ITensor, indices: ITensor, mode: GatherMode) -> IGatherLayer:
        """Adds a gather of any mode."""
        return self._add(IGatherLayer, [input, indices], axis=0, num_elementwise_dims=0,
                         mode=GatherMode(mode))


