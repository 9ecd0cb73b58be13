"""Layers that make, pick and place elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dtypes as T
from ...ir.graph import Value
from ...ops import OpError
from ...support.errors import UsageError
from ..core import NetworkCore
from ..enums import (
    BoundingBoxFormat,
    DataType,
    FillOperation,
    GatherMode,
    LayerType,
    ScatterMode,
    to_ir,
)
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
    _incomplete = True
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


class IScatterLayer(ILayer):
    """Copies data and replaces elements by index.

    Attributes:
        axis: The dimension indices count along (ELEMENT mode).
        mode: How indices are read.
    """

    _layer_type = LayerType.SCATTER
    _title = "Scatter"
    _incomplete = True
    axis = Attr(as_int, "The dimension indices count along.")
    mode = Attr(ScatterMode, "How indices are read.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, idx, new = self._x(0), self._x(1), self._x(2)
        if self._state["mode"] is ScatterMode.ND:
            return [e.value("scatter_nd", x, idx, new, reduction="none")]
        axis = self._state["axis"] + self._net._off
        if not 0 <= axis < x.rank:
            raise OpError(f"axis {self._state['axis']} is not a dimension of {x!r}")
        return [e.value("scatter_elements", x, idx, new, axis=axis, reduction="none")]


class IOneHotLayer(ILayer):
    """One-hot encoding; inputs are indices, [off, on] values, depth (a scalar).

    Attributes:
        axis: Where the new dimension goes; negative counts from the end of the output.
    """

    _layer_type = LayerType.ONE_HOT
    _title = "OneHot"
    axis = Attr(as_int, "Where the new dimension goes.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        axis = self._state["axis"]
        return [e.value("one_hot", self._x(0), self._x(2), self._x(1),
                        axis=axis + (self._net._off if axis >= 0 else 0))]


def _indices(e: Emitter, v: Value, indices_type: DataType) -> Value:
    """Indices in the type that the layer promises."""
    want = to_ir(indices_type)
    return v if v.dtype is want else e.value("cast", v, to=want)


class INonZeroLayer(ILayer):
    """Indices of the elements that are not zero, [rank, count].

    Attributes:
        indices_type: INT32 or INT64.
    """

    _layer_type = LayerType.NON_ZERO
    _title = "NonZero"
    indices_type = Attr(DataType, "Element type of the indices.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [_indices(e, e.value("non_zero", self._x()), self.indices_type)]


class BoxLimit(Attr):
    """How many boxes selection looks at, once it is set."""

    def __set__(self, layer: Any, value: Any) -> None:
        if as_int(value) < 1:
            raise UsageError(f"layer {layer.name!r}: topk_box_limit is {value}; it must be at "
                             "least 1")
        layer._state["limited"] = True
        super().__set__(layer, value)


class INMSLayer(ILayer):
    """Non-maximum suppression: selected [batch, class, box] indices, and how many there are.

    Inputs: boxes [batch, boxes, 4], scores [batch, boxes, classes], most boxes per class (scalar),
    and optionally IoU threshold and score threshold (scalars).

    Attributes:
        bounding_box_format: How boxes are given.
        topk_box_limit: Most boxes of a batch element, over all classes, that are looked at: those
            with the best scores. Not set: all of them (2000 is what reading it then gives).
        indices_type: INT32 or INT64.
    """

    _layer_type = LayerType.NMS
    _title = "NMS"
    _default_outputs = 2
    bounding_box_format = Attr(BoundingBoxFormat, "How boxes are given.")
    topk_box_limit = BoxLimit(as_int, "Most boxes of a batch element that are looked at.")
    indices_type = Attr(DataType, "Element type of the indices.")

    def _max_inputs(self) -> int:
        return 4

    def _emit(self, e: Emitter) -> Sequence[Value]:
        boxes, scores, most = self._x(0), self._x(1), self._x(2)
        if boxes.rank != 3 or scores.rank != 3:
            raise OpError(f"it needs boxes [batch, boxes, 4] and scores [batch, boxes, classes],"
                          f" got {boxes!r} and {scores!r}")
        iou = self._x(3) if self._in(3) is not None else None
        least = self._x(4) if self._in(4) is not None else None
        by_class = e.value("transpose", scores, perm=(0, 2, 1))
        if self._state.get("limited"):
            by_class, least = self._best(e, by_class, least)
        center = self.bounding_box_format is BoundingBoxFormat.CENTER_SIZES
        found = e.value("nms", boxes, by_class, most, iou, least, center_box=center)
        selected = _indices(e, found, self.indices_type)
        size = e.value("slice", e.value("shape", selected), e.ints([0]), e.ints([1]),
                       e.ints([1]), None, mode="strict")
        count = e.value("reshape", size, e.const(np.zeros(0, np.int64)), zero_copies=False)
        return [selected, e.value("cast", count, to=T.i32)]

    def _best(self, e: Emitter, scores: Value, least: Value | None) -> tuple[Value, Value]:
        """Scores [batch, classes, boxes] with the worst number in the place of all but the
        greatest, and what others must exceed."""
        none = e.const(np.array(np.finfo(scores.dtype.np).min, scores.dtype.np))
        flat = e.value("reshape", scores, e.ints([0, -1]), zero_copies=True)
        limit = int(self.topk_box_limit)
        have = flat.dims[1]
        if isinstance(have, int) and have <= limit:
            return scores, none if least is None else least
        if not isinstance(have, int):
            raise OpError("topk_box_limit needs known numbers of boxes and classes, got "
                          f"{scores!r}")
        best, at = e.op("topk", flat, e.ints([limit]), axis=1, largest=True, sorted=True).outputs
        blank = e.value("expand", none, e.value("shape", flat))
        kept = e.value("scatter_elements", blank, at, best, axis=1, reduction="none")
        kept = e.value("reshape", kept, e.value("shape", scores), zero_copies=False)
        return kept, none if least is None else least


_FILL = {
    FillOperation.LINSPACE: "linspace", FillOperation.RANDOM_UNIFORM: "random_uniform",
    FillOperation.RANDOM_NORMAL: "random_normal",
}


class IFillLayer(ILayer):
    """Fills a shape with a sequence or random numbers.

    Attributes:
        operation: LINSPACE (``alpha + beta * index``), RANDOM_UNIFORM (from alpha to beta) or
            RANDOM_NORMAL (mean alpha, deviation beta).
        shape: The shape; input 0 overrides it.
        alpha, beta: Parameters; inputs 1 and 2 override them. Beta as a tensor has one number per
            dimension (LINSPACE).
        to_type: Element type.
    """

    _layer_type = LayerType.FILL
    _title = "Fill"
    _incomplete = True
    shape = Attr(dims_attr, "The shape.")
    operation = Attr(FillOperation, "What it is filled with.")
    to_type = Attr(DataType, "Element type.")

    def _max_inputs(self) -> int:
        return 2

    def _number(self, key: str, i: int) -> float | int | None:
        return None if self._in(i) is not None else self._state[key]

    def _set_number(self, key: str, x: Any) -> None:
        self._state[key] = as_int(x) if isinstance(x, (int, np.integer)) else float(x)
        self._changed()

    alpha = property(lambda s: s._number("alpha", 1), lambda s, v: s._set_number("alpha", v),
                     doc="First parameter.")
    beta = property(lambda s: s._number("beta", 2), lambda s, v: s._set_number("beta", v),
                    doc="Second parameter.")

    def is_alpha_beta_int64(self) -> bool:
        """Whether alpha and beta are integers."""
        return isinstance(self._state["alpha"], int) and isinstance(self._state["beta"], int)

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        to = to_ir(s["to_type"])
        shape = self._x(0) if self._in(0) is not None else e.ints(tuple(s["shape"]))
        work = T.f32 if to.is_float or to.kind == "b" else to
        rank = shape.dims[0] if shape.rank else 0
        alpha, beta = (self._x(i) if self._in(i) is not None else None for i in (1, 2))
        if alpha is None:
            alpha = e.const(np.asarray(s["alpha"], work.np))
        if beta is None:
            number = np.asarray(s["beta"], work.np)
            if s["operation"] is FillOperation.LINSPACE:
                if rank != 1:
                    raise OpError("LINSPACE of more than one dimension needs beta as a tensor with"
                                  " one number per dimension: set_input(2, tensor)")
                number = number.reshape(1)
            beta = e.const(number)
        return [e.value("fill", shape, alpha, beta, fn=_FILL[s["operation"]], to=to, seed=None)]


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



    def add_scatter(self, data: ITensor, indices: ITensor, updates: ITensor,
                    mode: ScatterMode) -> IScatterLayer:
        """Adds a scatter."""
        return self._add(IScatterLayer, [data, indices, updates], axis=0, mode=ScatterMode(mode))

    def add_one_hot(self, indices: ITensor, values: ITensor, depth: ITensor,
                    axis: int) -> IOneHotLayer:
        """Adds one-hot encoding."""
        return self._add(IOneHotLayer, [indices, values, depth], axis=as_int(axis))

    def add_non_zero(self, input: ITensor, indices_type: DataType = DataType.INT32
                     ) -> INonZeroLayer:
        """Adds a search for elements that are not zero."""
        return self._add(INonZeroLayer, [input], indices_type=DataType(indices_type))

    def add_nms(self, boxes: ITensor, scores: ITensor, max_output_boxes_per_class: ITensor,
                indices_type: DataType = DataType.INT32) -> INMSLayer:
        """Adds non-maximum suppression."""
        return self._add(INMSLayer, [boxes, scores, max_output_boxes_per_class],
                         bounding_box_format=BoundingBoxFormat.CORNER_PAIRS, topk_box_limit=2000,
                         indices_type=DataType(indices_type))

    def add_fill(self, shape: Any, op: FillOperation,
                 output_type: DataType = DataType.FLOAT) -> IFillLayer:
        """Adds a filled tensor; pass empty dims if `IFillLayer.set_input` gives the shape."""
        return self._add(IFillLayer, [], shape=Dims(dims(shape)), operation=FillOperation(op),
                         to_type=DataType(output_type), alpha=0.0, beta=1.0)
