"""Layers that compute each element by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dims as D
from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import (
    ActivationType,
    DataType,
    ElementWiseOperation,
    LayerType,
    ScaleMode,
    UnaryOperation,
    to_ir,
)
from ..layer import Attr, Emitter, ILayer, WeightsAttr, share
from ..tensor import ITensor
from ..values import as_int

_ACTIVATIONS = {t: t.name.lower() for t in ActivationType}
_UNARY = {u: u.name.lower() for u in UnaryOperation}
_BINARY = {
    ElementWiseOperation.SUM: "add", ElementWiseOperation.PROD: "mul",
    ElementWiseOperation.MAX: "max", ElementWiseOperation.MIN: "min",
    ElementWiseOperation.SUB: "sub", ElementWiseOperation.DIV: "div",
    ElementWiseOperation.POW: "pow", ElementWiseOperation.FLOOR_DIV: "floordiv",
    ElementWiseOperation.AND: "and", ElementWiseOperation.OR: "or",
    ElementWiseOperation.XOR: "xor", ElementWiseOperation.EQUAL: "eq",
    ElementWiseOperation.GREATER: "gt", ElementWiseOperation.LESS: "lt",
}


class IActivationLayer(ILayer):
    """``f(x)`` for an activation function.

    Attributes:
        type: The function.
        alpha, beta: Its parameters; which it uses depends on the function.
    """

    _layer_type = LayerType.ACTIVATION
    _title = "Activation"
    type = Attr(ActivationType, "The activation function.")  # type: ignore[assignment]
    alpha = Attr(float, "First parameter.")
    beta = Attr(float, "Second parameter.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        return [e.value("activation", self._x(), fn=_ACTIVATIONS[s["type"]], alpha=s["alpha"],
                        beta=s["beta"])]

    def _view(self) -> ILayer:
        return share(self, _ActivationView)


class _ActivationView(IActivationLayer):
    """As `get_layer` shows it: ``type`` is the kind of layer until it is cast down by
    ``layer.__class__ = IActivationLayer``."""

    @property
    def type(self) -> Any:
        return LayerType.ACTIVATION


class IUnaryLayer(ILayer):
    """``op(x)``.

    Attributes:
        op: The operation.
    """

    _layer_type = LayerType.UNARY
    _title = "Unary"
    op = Attr(UnaryOperation, "The operation.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("unary", self._x(), fn=_UNARY[self._state["op"]])]


class IElementWiseLayer(ILayer):
    """``op(a, b)``, sizes of one broadcast.

    Attributes:
        op: The operation.
    """

    _layer_type = LayerType.ELEMENTWISE
    _title = "ElementWise"
    op = Attr(ElementWiseOperation, "The operation.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        a, b, op = self._x(0), self._x(1), self._state["op"]
        if a.rank != b.rank:
            raise OpError(f"{op.name} needs operands of one rank, got {a!r} and {b!r};"
                          " add dimensions of size 1 with a shuffle layer")
        return [e.value("binary", a, b, fn=_BINARY[op])]


class ISelectLayer(ILayer):
    """``then`` where the condition holds, else ``else``."""

    _layer_type = LayerType.SELECT
    _title = "Select"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("select", self._x(0), self._x(1), self._x(2))]


class ICastLayer(ILayer):
    """Converts the element type.

    Attributes:
        to_type: The new type.
    """

    _layer_type = LayerType.CAST
    _title = "Cast"
    to_type = Attr(DataType, "The new element type.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("cast", self._x(), to=to_ir(self._state["to_type"]))]


class IIdentityLayer(ILayer):
    """Passes its input on; with an output type set it converts."""

    _layer_type = LayerType.IDENTITY
    _title = "Identity"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("identity", self._x())]


class IAssertionLayer(ILayer):
    """Fails at run time (or build time, if it is known then) where the condition is false.

    Attributes:
        message: The error message.
    """

    _layer_type = LayerType.ASSERTION
    _title = "Assertion"
    message = Attr(str, "The error message.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        e.op("assertion", self._x(), message=self._state["message"])
        return []

    def _emit_all(self) -> list[Value]:
        changed = super()._emit_all()
        self._outputs.clear()
        return changed


class IParametricReLULayer(ILayer):
    """``x`` where positive, else ``x * slope``; slopes broadcast."""

    _layer_type = LayerType.PARAMETRIC_RELU
    _title = "ParametricReLU"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("prelu", self._x(0), self._x(1))]


class IScaleLayer(ILayer):
    """``(x * scale + shift) ** power`` with coefficients per tensor, channel or element.

    Attributes:
        mode: How coefficients broadcast.
        shift, scale, power: The coefficients; empty where absent.
        channel_axis: The channel dimension (with explicit batch it counts the batch dimension).
    """

    _layer_type = LayerType.SCALE
    _title = "Scale"
    _incomplete = True
    mode = Attr(ScaleMode, "How coefficients broadcast.")
    shift = WeightsAttr("Added; empty: 0.")
    scale = WeightsAttr("Multiplied; empty: 1.")
    power = WeightsAttr("Exponent; empty: 1.")
    channel_axis = Attr(as_int, "The channel dimension.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        mode = self._state["mode"]
        axis = self._axis(x)
        parts = [self._coefficient(e, k, x, mode, axis) for k in ("shift", "scale", "power")]
        return [e.value("scale", x, *parts, axis=axis if mode is ScaleMode.CHANNEL else -1)]

    def _axis(self, x: Value) -> int:
        axis = int(self._state["channel_axis"]) + self._net._off
        if not 0 <= axis < x.rank:
            raise OpError(f"channel axis {axis} is not a dimension of {x!r}")
        return axis

    def _coefficient(self, e: Emitter, key: str, x: Value, mode: ScaleMode,
                     axis: int) -> Value | None:
        v = self._weights.get(key)
        if v is None or v.const is None:
            return None
        if mode is ScaleMode.UNIFORM:
            shape: tuple[D.DimLike, ...] = ()
        elif mode is ScaleMode.CHANNEL:
            n = x.dims[axis]
            shape = (v.const.size if isinstance(n, D.Dim) else n,)
        else:
            first = max(axis, 1)
            shape = x.dims[first:]
        want = D.product(shape)
        if v.const.size != want:
            raise OpError(f"{mode.name} scale of {x!r} needs {want} {key} weights, got"
                          f" {v.const.size}")
        # the same value, so that it keeps its name and role for refitting
        v.const = v.const.reshape([as_int(d) for d in shape])
        v.shape = v.const.shape
        return v


_USUAL = {  # alpha and beta of a new activation layer
    ActivationType.LEAKY_RELU: (0.01, 0.0), ActivationType.ELU: (1.0, 0.0),
    ActivationType.SELU: (1.6732632, 1.0507010), ActivationType.SOFTPLUS: (1.0, 1.0),
    ActivationType.HARD_SIGMOID: (0.2, 0.5), ActivationType.SCALED_TANH: (1.0, 1.0),
    ActivationType.THRESHOLDED_RELU: (1.0, 0.0),
}


class PointwiseAdders(NetworkCore):
    """``add_*`` methods of pointwise layers."""

    def add_activation(self, input: ITensor, type: ActivationType) -> IActivationLayer:
        """Adds an activation; parameters are those of the function's usual form until set."""
        kind = ActivationType(type)
        alpha, beta = _USUAL.get(kind, (0.0, 0.0))
        return self._add(IActivationLayer, [input], type=kind, alpha=alpha, beta=beta)

    def add_unary(self, input: ITensor, op: UnaryOperation) -> IUnaryLayer:
        """Adds a unary operation."""
        return self._add(IUnaryLayer, [input], op=UnaryOperation(op))

    def add_elementwise(self, input1: ITensor, input2: ITensor,
                        op: ElementWiseOperation) -> IElementWiseLayer:
        """Adds a binary operation; the operands have one rank, sizes of 1 broadcast."""
        return self._add(IElementWiseLayer, [input1, input2], op=ElementWiseOperation(op))

    def add_select(self, condition: ITensor, then_input: ITensor,
                   else_input: ITensor) -> ISelectLayer:
        """Adds a choice between two tensors by a boolean one."""
        return self._add(ISelectLayer, [condition, then_input, else_input])

    def add_cast(self, input: ITensor, to_type: DataType) -> ICastLayer:
        """Adds a conversion of the element type."""
        return self._add(ICastLayer, [input], to_type=DataType(to_type))

    def add_identity(self, input: ITensor) -> IIdentityLayer:
        """Adds a layer that passes its input on."""
        return self._add(IIdentityLayer, [input])

    def add_assertion(self, condition: ITensor, message: str) -> IAssertionLayer:
        """Adds a check of a boolean tensor."""
        return self._add(IAssertionLayer, [condition], message=str(message))

    def add_parametric_relu(self, input: ITensor, slopes: ITensor) -> IParametricReLULayer:
        """Adds a ReLU with slopes for negative values."""
        return self._add(IParametricReLULayer, [input, slopes])

    def add_scale(self, input: ITensor, mode: ScaleMode, shift: Any = None, scale: Any = None,
                  power: Any = None) -> IScaleLayer:
        """Adds ``(x * scale + shift) ** power``; the channels are dimension 1 (0 with implicit
        batch)."""
        return self.add_scale_nd(input, mode, shift, scale, power, 1 - self._off)

    def add_scale_nd(self, input: ITensor, mode: ScaleMode, shift: Any = None, scale: Any = None,
                     power: Any = None, channel_axis: int = 1) -> IScaleLayer:
        """Like `add_scale`, with a choice of the channel dimension."""
        return self._add(IScaleLayer, [input], mode=ScaleMode(mode), channel_axis=as_int(
            channel_axis), given={"shift": shift, "scale": scale, "power": power})

