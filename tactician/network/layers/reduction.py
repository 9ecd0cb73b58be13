"""Layers that combine elements along dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dtypes as T
from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import (
    CumulativeOperation,
    DataType,
    LayerType,
    PaddingMode,
    PoolingType,
    ReduceOperation,
    TopKOperation,
    to_ir,
)
from ..layer import Attr, Emitter, ILayer, share
from ..tensor import ITensor
from ..values import Dims, DimsHW, as_int, dims
from .contraction import HW, Symmetric, dims_attr, padding_attrs, window_state
from .formulas import POOLING, fitted

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


class ICumulativeLayer(ILayer):
    """Running sum along a dimension, which input 1 (a constant scalar) names.

    Attributes:
        op: The operation.
        exclusive: Whether an element is left out of its own sum.
        reverse: Whether sums run from the end.
    """

    _layer_type = LayerType.CUMULATIVE
    _title = "Cumulative"
    op = Attr(CumulativeOperation, "The operation.")
    exclusive = Attr(bool, "Whether an element is left out of its own sum.")
    reverse = Attr(bool, "Whether sums run from the end.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x, axis = self._state, self._x(0), self._x(1)
        if self._net._off:
            known = axis.known_ints()
            if known is None:
                raise OpError("its axis must be constant in a network with implicit batch")
            axis = e.ints(as_int(known.reshape(-1)[0]) % (x.rank - 1) + 1)
        return [e.value("cumulative", x, axis, fn="sum", exclusive=s["exclusive"],
                        reverse=s["reverse"])]


class INormalizationLayer(ILayer):
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over some dimensions.

    Attributes:
        axes: Bit mask of dimensions that mean and variance are taken over.
        epsilon: Added to the variance.
        num_groups: Groups the channels are split into (group normalization).
        compute_precision: Element type of the computation; always at least FLOAT here.
        is_v2: Whether scale and bias of group normalization are per channel.
    """

    _layer_type = LayerType.NORMALIZATION
    _title = "Normalization"
    _incomplete = True
    axes = Attr(as_int, "Bit mask of dimensions.")
    epsilon = Attr(float, "Added to the variance.")
    num_groups = Attr(as_int, "Groups of channels.")
    compute_precision = Attr(DataType, "Element type of the computation.")

    @property
    def is_v2(self) -> bool:
        """Whether scale and bias of group normalization are per channel."""
        return bool(self._state["is_v2"])

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        return [e.value("normalization", x, self._x(1), self._x(2), groups=s["num_groups"],
                        epsilon=s["epsilon"], rms=False,
                        axes=mask_axes(s["axes"], x, self._net._off))]


class ILRNLayer(ILayer):
    """Local response normalization across channels.

    Attributes:
        window_size: Channels in a window; odd.
        alpha, beta, k: ``x / (k + alpha / window_size * sum(x²)) ** beta``.
    """

    _layer_type = LayerType.LRN
    _title = "LRN"
    window_size = Attr(as_int, "Channels in a window.")
    alpha = Attr(float, "Factor of the sum of squares.")
    beta = Attr(float, "Exponent.")
    k = Attr(float, "Constant.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        return [e.value("lrn", self._x(), size=s["window_size"], alpha=s["alpha"],
                        beta=s["beta"], k=s["k"])]


class IRaggedSoftMaxLayer(ILayer):
    """Softmax over the first ``bounds`` elements of each row; 0 after them."""

    _layer_type = LayerType.RAGGED_SOFTMAX
    _title = "RaggedSoftMax"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("ragged_softmax", self._x(0), self._x(1))]


_POOLING = {
    PoolingType.MAX: "max", PoolingType.AVERAGE: "average",
    PoolingType.MAX_AVERAGE_BLEND: "max_average_blend",
}


class IPoolingLayer(ILayer):
    """Pooling over windows.

    Attributes:
        type: Maximum, average, or a blend of both.
        window_size_nd: Sizes of the window.
        stride_nd: Steps between windows.
        pre_padding, post_padding, padding_nd: Padding before, after, or both.
        padding_mode: How padding and output sizes are computed.
        blend_factor: ``(1 - blend_factor) * max + blend_factor * average``.
        average_count_excludes_padding: Whether averages divide by the elements inside the input.
    """

    _layer_type = LayerType.POOLING
    _title = "Pooling"
    _formula_kind = POOLING
    _incomplete = True
    type = Attr(PoolingType, "The pooling function.")  # type: ignore[assignment]
    window_size_nd = Attr(dims_attr, "Sizes of the window.")
    stride_nd = Attr(dims_attr, "Steps between windows.")
    pre_padding = Attr(dims_attr, "Padding before.")
    post_padding = Attr(dims_attr, "Padding after.")
    padding_nd = Symmetric()
    padding_mode = Attr(PaddingMode, "How padding and output sizes are computed.")
    blend_factor = Attr(float, "Share of the average in a blend.")
    average_count_excludes_padding = Attr(bool, "What averages divide by.")
    window_size = HW("window_size_nd")
    stride = HW("stride_nd")
    padding = HW("padding_nd")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        n = len(s["window_size_nd"])
        if x.rank < n + 1 + self._net._off:
            raise OpError(f"a {n}-D window needs an input of {n + 2} dimensions, got {x!r}")
        # Caffe leaves out windows that would start in the padding behind
        clip = s["padding_mode"] is PaddingMode.CAFFE_ROUND_UP
        attrs = fitted(self, POOLING, x.dims[-n:], s["window_size_nd"],
                       {"ceil": clip, **padding_attrs(s, n)})
        return [e.value("pooling", x, fn=_POOLING[s["type"]], window=tuple(s["window_size_nd"]),
                        blend=s["blend_factor"],
                        count_include_pad=not s["average_count_excludes_padding"], **attrs)]

    def _view(self) -> ILayer:
        return share(self, _PoolingView)


class _PoolingView(IPoolingLayer):
    """As `get_layer` shows it: ``type`` is the kind of layer until it is cast down by
    ``layer.__class__ = IPoolingLayer``."""

    @property
    def type(self) -> Any:
        return LayerType.POOLING


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

    def add_cumulative(self, input: ITensor, axis: ITensor, op: CumulativeOperation,
                       exclusive: bool, reverse: bool) -> ICumulativeLayer:
        """Adds running sums."""
        return self._add(ICumulativeLayer, [input, axis], op=CumulativeOperation(op),
                         exclusive=bool(exclusive), reverse=bool(reverse))

    def add_normalization(self, input: ITensor, scale: ITensor, bias: ITensor,
                          axesMask: int) -> INormalizationLayer:
        """Adds a normalization; ``axesMask`` is a bit mask. Scale and bias broadcast; with
        groups they are per group."""
        return self._normalization(input, scale, bias, axesMask, False)

    def add_normalization_v2(self, input: ITensor, scale: ITensor, bias: ITensor,
                             axesMask: int) -> INormalizationLayer:
        """Adds a normalization whose scale and bias are per channel with groups too."""
        return self._normalization(input, scale, bias, axesMask, True)

    def _normalization(self, input: ITensor, scale: ITensor, bias: ITensor, mask: int,
                       v2: bool) -> INormalizationLayer:
        return self._add(INormalizationLayer, [input, scale, bias], axes=as_int(mask),
                         epsilon=1e-5, num_groups=1, compute_precision=DataType.FLOAT, is_v2=v2)

    def add_lrn(self, input: ITensor, window: int, alpha: float, beta: float,
                k: float) -> ILRNLayer:
        """Adds local response normalization."""
        return self._add(ILRNLayer, [input], window_size=as_int(window), alpha=float(alpha),
                         beta=float(beta), k=float(k))

    def add_ragged_softmax(self, input: ITensor, bounds: ITensor) -> IRaggedSoftMaxLayer:
        """Adds a softmax over rows of different lengths."""
        return self._add(IRaggedSoftMaxLayer, [input, bounds])

    def add_pooling_nd(self, input: ITensor, type: PoolingType,
                       window_size: Any) -> IPoolingLayer:
        """Adds pooling."""
        window = Dims(dims(window_size))
        return self._add(IPoolingLayer, [input], type=PoolingType(type), window_size_nd=window,
                         blend_factor=0.0, average_count_excludes_padding=True,
                         **window_state(len(window)))

    def add_pooling(self, input: ITensor, type: PoolingType, window_size: Any) -> IPoolingLayer:
        """Adds 2-D pooling (legacy spelling)."""
        return self.add_pooling_nd(input, type, DimsHW(dims(window_size, 2)))
