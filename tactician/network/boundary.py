"""Ops that only networks under construction hold.

Loops and conditionals are recorded flat: boundary nodes say where values enter and leave a body.
`tactician.network.control` turns them into ``loop`` and ``if`` before anything is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ir import dims as D
from ..ir.graph import Node, TensorType, Value
from ..ops.registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class InvalidAttrs:
    message: str = ""
    outputs: int = 1


@register
class Invalid(Op):
    """Stands for a layer whose arguments are wrong; says why."""

    name = "invalid"
    kind = Kind.OPAQUE
    Attrs = InvalidAttrs

    def num_outputs(self, node: Node) -> int:
        return int(node.attrs.outputs)

    def infer(self, node: Node) -> Sequence[TensorType]:
        raise OpError(node.attrs.message)

    def reference(self, node: Node, *inputs: Any) -> Any:
        raise OpError(node.attrs.message)


@dataclass(frozen=True)
class ScopeAttrs:
    """``scope``: which loop or conditional; ``label``: its name."""

    scope: int = 0
    label: str = ""


@dataclass(frozen=True)
class TripLimitAttrs(ScopeAttrs):
    """``kind``: count or while."""

    kind: str = "count"


@dataclass(frozen=True)
class IteratorAttrs(ScopeAttrs):
    """``axis`` that is iterated over, ``reverse``: from its end."""

    axis: int = 0
    reverse: bool = False


@dataclass(frozen=True)
class LoopOutputAttrs(ScopeAttrs):
    """``kind``: last_value, concatenate or reverse; ``axis`` values are joined along."""

    kind: str = "last_value"
    axis: int = 0


class _Boundary(Op):
    kind = Kind.CONTROL

    def reference(self, node: Node, *inputs: Any) -> Any:
        raise OpError(f"{node.describe()} must be lowered before it can run")


def _operand(node: Node, i: int) -> Value:
    v = node.inputs[i] if i < len(node.inputs) else None
    if v is None:
        raise OpError(f"input {i} is missing")
    return v


@register
class TripLimit(_Boundary):
    """Ends a loop."""

    name = "trip_limit"
    Attrs = TripLimitAttrs

    def num_outputs(self, node: Node) -> int:
        return 0

    def infer(self, node: Node) -> Sequence[TensorType]:
        v = _operand(node, 0)
        good = v.dtype.is_int if node.attrs.kind == "count" else v.dtype.kind == "b"
        if not good or v.numel != 1:
            want = "an integer" if node.attrs.kind == "count" else "a boolean"
            raise OpError(f"a {node.attrs.kind.upper()} limit is {want} scalar, got {v!r}")
        return []


@register
class Recurrence(_Boundary):
    """The value of the last iteration, at first the initial one."""

    name = "recurrence"
    Attrs = ScopeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        v = _operand(node, 0)
        return [TensorType(v.dtype, v.dims)]


@register
class Iterator(_Boundary):
    """One slice per iteration."""

    name = "iterator"
    Attrs = IteratorAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        v, axis = _operand(node, 0), node.attrs.axis
        if not 0 <= axis < v.rank:
            raise OpError(f"axis {axis} is not a dimension of {v!r}")
        return [TensorType(v.dtype, v.dims[:axis] + v.dims[axis + 1:])]


@register
class LoopOutput(_Boundary):
    """What leaves a loop."""

    name = "loop_output"
    Attrs = LoopOutputAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        v, a = _operand(node, 0), node.attrs
        if a.kind == "last_value":
            return [TensorType(v.dtype, v.dims)]
        if not 0 <= a.axis <= v.rank:
            raise OpError(f"values {v!r} cannot be joined along axis {a.axis}")
        length: D.DimLike = D.sym(f"%{node.id}.0")
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            known = node.inputs[1].known_ints()
            if known is not None and known.size == 1:
                length = known.reshape(-1)[0]
        return [TensorType(v.dtype, (*v.dims[:a.axis], length, *v.dims[a.axis:]))]


@register
class Condition(_Boundary):
    """The condition of a conditional."""

    name = "condition"
    Attrs = ScopeAttrs

    def num_outputs(self, node: Node) -> int:
        return 0

    def infer(self, node: Node) -> Sequence[TensorType]:
        v = _operand(node, 0)
        if v.dtype.kind != "b" or v.numel != 1:
            raise OpError(f"the condition must be a boolean scalar, got {v!r}")
        return []


@register
class ConditionalInput(_Boundary):
    """What enters the branches of a conditional."""

    name = "conditional_input"
    Attrs = ScopeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        v = _operand(node, 0)
        return [TensorType(v.dtype, v.dims, v.known_ints())]


@register
class ConditionalOutput(_Boundary):
    """What leaves a conditional."""

    name = "conditional_output"
    Attrs = ScopeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        a, b = _operand(node, 0), _operand(node, 1)
        if a.dtype is not b.dtype or a.rank != b.rank:
            raise OpError(f"the branches give {a!r} and {b!r}; they must have one type and rank")
        shape = [x if x == y else D.sym(f"%{node.id}.{k}")
                 for k, (x, y) in enumerate(zip(a.dims, b.dims, strict=True))]
        return [TensorType(a.dtype, tuple(shape))]
