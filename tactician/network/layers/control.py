"""Loops and conditionals, recorded flat; `tactician.network.control` lowers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Value
from ..core import NetworkCore
from ..enums import LayerType, LoopOutput, TripLimit
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import as_int


class _Scope:
    """What `ILoop` and `IIfConditional` share: an identity, a name, and boundary layers."""

    def __init__(self, network: NetworkCore, kind: str):
        self._net = network
        self._id = network._scopes
        network._scopes += 1
        self._name = f"(Unnamed {kind}* {self._id})"
        self._boundary: list[ILayer] = []

    @property
    def name(self) -> str:
        """Its name, which the lowered operation bears."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = str(name)
        for layer in self._boundary:
            layer._changed()

    def _add(self, cls: type[ILayer], inputs: Sequence[ITensor | None], **state: Any) -> Any:
        layer = self._net._add(cls, inputs, scope=self, **state)
        if layer is not None:
            self._boundary.append(layer)
        return layer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"


class _Boundary(ILayer):
    def _scope_attrs(self) -> dict[str, Any]:
        scope: _Scope = self._state["scope"]
        return {"scope": scope._id, "label": scope._name}

    def _emit_nothing(self, e: Emitter, op: str, **attrs: Any) -> Sequence[Value]:
        e.op(op, self._x(), **self._scope_attrs(), **attrs)
        return []


class ILoopBoundaryLayer(_Boundary):
    """Where values enter or leave a loop.

    Attributes:
        loop: The loop.
    """

    @property
    def loop(self) -> ILoop:
        """The loop it belongs to."""
        return self._state["scope"]


class ITripLimitLayer(ILoopBoundaryLayer):
    """Ends the loop: after a number of iterations, or when a condition is false.

    Attributes:
        kind: COUNT or WHILE.
    """

    _layer_type = LayerType.TRIP_LIMIT
    _title = "TripLimit"
    _default_outputs = 0

    @property
    def kind(self) -> TripLimit:
        """COUNT or WHILE."""
        return self._state["kind"]

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return self._emit_nothing(e, "trip_limit", kind=self.kind.name.lower())


class IRecurrenceLayer(ILoopBoundaryLayer):
    """A value that iterations hand on: input 0 at first, input 1 from then on."""

    _layer_type = LayerType.RECURRENCE
    _title = "Recurrence"
    _incomplete = True

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("recurrence", self._x(0), self._in(1), **self._scope_attrs())]


class IIteratorLayer(ILoopBoundaryLayer):
    """One slice of a tensor per iteration.

    Attributes:
        axis: The dimension that is iterated over.
        reverse: Whether from the end.
    """

    _layer_type = LayerType.ITERATOR
    _title = "Iterator"
    axis = Attr(as_int, "The dimension that is iterated over.")
    reverse = Attr(bool, "Whether from the end.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        return [e.value("iterator", self._x(), axis=s["axis"] + self._net._off,
                        reverse=s["reverse"], **self._scope_attrs())]


class ILoopOutputLayer(ILoopBoundaryLayer):
    """A value that leaves the loop.

    Input 1 is the length of a concatenation (needed for CONCATENATE and REVERSE in TensorRT; here
    the loop's trip count by default).

    Attributes:
        kind: LAST_VALUE, or the values of all iterations, CONCATENATE or REVERSE.
        axis: The dimension they are joined along.
    """

    _layer_type = LayerType.LOOP_OUTPUT
    _title = "LoopOutput"
    axis = Attr(as_int, "The dimension values are joined along.")

    @property
    def kind(self) -> LoopOutput:
        """Which values leave the loop."""
        return self._state["kind"]

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        length = self._in(1)
        if length is None and self.kind is not LoopOutput.LAST_VALUE:
            limits = [x for x in self.loop._boundary if isinstance(x, ITripLimitLayer)]
            length = next((x._in(0) for x in limits if x.kind is TripLimit.COUNT), None)
        return [e.value("loop_output", self._x(), length, kind=self.kind.name.lower(),
                        axis=self._state["axis"] + self._net._off, **self._scope_attrs())]


class ILoop(_Scope):
    """A loop. Values enter through recurrences and iterators, and leave through loop outputs.

    Layers that depend on a recurrence or iterator form the body.
    """

    def add_trip_limit(self, tensor: ITensor, kind: TripLimit) -> ITripLimitLayer:
        """Adds a limit: a count (an integer scalar from outside), or a condition (a boolean scalar
        of the body) that ends the loop before the iteration in which it is false."""
        return self._add(ITripLimitLayer, [tensor], kind=TripLimit(kind))

    def add_recurrence(self, initial_value: ITensor) -> IRecurrenceLayer:
        """Adds a value that iterations hand on; give the next one with ``set_input(1, …)``."""
        return self._add(IRecurrenceLayer, [initial_value])

    def add_iterator(self, tensor: ITensor, axis: int = 0,
                     reverse: bool = False) -> IIteratorLayer:
        """Adds iteration over slices of a tensor."""
        return self._add(IIteratorLayer, [tensor], axis=as_int(axis), reverse=bool(reverse))

    def add_loop_output(self, tensor: ITensor, kind: LoopOutput,
                        axis: int = 0) -> ILoopOutputLayer:
        """Adds a value that leaves the loop."""
        return self._add(ILoopOutputLayer, [tensor], kind=LoopOutput(kind), axis=as_int(axis))


class IIfConditionalBoundaryLayer(_Boundary):
    """Where values enter or leave a conditional.

    Attributes:
        conditional: The conditional.
    """

    @property
    def conditional(self) -> IIfConditional:
        """The conditional it belongs to."""
        return self._state["scope"]


class IConditionLayer(IIfConditionalBoundaryLayer):
    """The condition: a boolean scalar."""

    _layer_type = LayerType.CONDITION
    _title = "Condition"
    _default_outputs = 0

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return self._emit_nothing(e, "condition")


class IIfConditionalInputLayer(IIfConditionalBoundaryLayer):
    """A value that enters the branches."""

    _layer_type = LayerType.CONDITIONAL_INPUT
    _title = "ConditionalInput"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("conditional_input", self._x(), **self._scope_attrs())]


class IIfConditionalOutputLayer(IIfConditionalBoundaryLayer):
    """A value that leaves: that of the true or the false branch."""

    _layer_type = LayerType.CONDITIONAL_OUTPUT
    _title = "ConditionalOutput"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return [e.value("conditional_output", self._x(0), self._x(1), **self._scope_attrs())]


class IIfConditional(_Scope):
    """A choice between two branches, of which only one runs."""

    def set_condition(self, condition: ITensor) -> IConditionLayer | None:
        """Sets the condition, a boolean scalar. It can be set once."""
        if any(isinstance(x, IConditionLayer) for x in self._boundary):
            return self._net._error(f"{self._name}: the condition is set already")
        return self._add(IConditionLayer, [condition])

    def add_input(self, input: ITensor) -> IIfConditionalInputLayer:
        """Adds a value that enters the branches."""
        return self._add(IIfConditionalInputLayer, [input])

    def add_output(self, true_subgraph_output: ITensor,
                   false_subgraph_output: ITensor) -> IIfConditionalOutputLayer:
        """Adds a value that leaves; both branches' tensors have one type and rank."""
        return self._add(IIfConditionalOutputLayer, [true_subgraph_output, false_subgraph_output])


class ControlAdders(NetworkCore):
    """``add_*`` methods of loops and conditionals."""

    def add_loop(self) -> ILoop:
        """Adds a loop."""
        return ILoop(self, "Loop")

    def add_if_conditional(self) -> IIfConditional:
        """Adds a conditional."""
        return IIfConditional(self, "Conditional")
