"""One ONNX node as importers see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from .errors import NodeProblem
from .types import attribute_value

_REQUIRED: Any = object()


class OnnxNode:
    """A node with its inputs resolved.

    Attributes:
        proto: The ``NodeProto``.
        index: Its position in its graph.
        opset: Version of its operator set that the model imports.
        inputs: Values read; None where an optional input is absent.
        used: Attributes that the importer has looked at.
    """

    def __init__(
        self,
        proto: Any,
        index: int,
        opset: int,
        inputs: Sequence[Value | None],
        outer_attributes: dict[str, Any] | None = None,
    ):
        self.proto = proto
        self.index = index
        self.opset = opset
        self.inputs = list(inputs)
        self.used: set[str] = set()
        self.attributes = resolve_attributes(proto, outer_attributes)
        self._values: dict[str, Any] = {}

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def name(self) -> str:
        """Its name, or one made from its first output as TensorRT does."""
        if self.proto.name:
            return self.proto.name
        first = next((o for o in self.proto.output if o), "")
        return f"node_of_{first}" if first else f"{self.op}_{self.index}"

    @property
    def source(self) -> str:
        return f"onnx node {self.index} '{self.proto.name}' ({self.op})"

    def __getitem__(self, i: int) -> Value:
        """Input ``i``, which must be present."""
        value = self.get(i)
        if value is None:
            raise NodeProblem(f"input {i} is missing; {self.op} needs it")
        return value

    def __len__(self) -> int:
        return len(self.inputs)

    def get(self, i: int) -> Value | None:
        """Input ``i``, or None if it is absent."""
        return self.inputs[i] if i < len(self.inputs) else None

    def has(self, i: int) -> bool:
        return self.get(i) is not None

    def present(self) -> list[Value]:
        """Inputs of a variadic operator, all of which must be present."""
        return [self[i] for i in range(len(self.inputs))]

    def wants(self, i: int) -> bool:
        """True if output ``i`` has a name."""
        return i < len(self.proto.output) and bool(self.proto.output[i])

    def attr(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute as a Python value.

        Raises:
            NodeProblem: If it is absent and there is no default.
        """
        self.used.add(name)
        if name not in self.attributes:
            if default is _REQUIRED:
                raise NodeProblem(f"attribute {name!r} is missing; {self.op} needs it")
            return default
        if name not in self._values:
            self._values[name] = attribute_value(self.attributes[name])
        return self._values[name]

    def ints(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        value = self.attr(name, tuple(default))
        return (value,) if isinstance(value, int) else tuple(value)

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.attr(name, int(default)))

    def ignore(self, *names: str) -> None:
        """Declares attributes that rightly have no influence."""
        self.used.update(names)

    def const(self, i: int) -> np.ndarray[Any, Any] | None:
        """The data of input ``i`` if it is present and constant."""
        value = self.get(i)
        return None if value is None else value.const


def resolve_attributes(proto: Any, outer: dict[str, Any] | None) -> dict[str, Any]:
    """A node's ``AttributeProto``s by name, references to a function's attributes replaced."""
    out: dict[str, Any] = {}
    for a in proto.attribute:
        if not a.ref_attr_name:
            out[a.name] = a
        elif outer is not None and a.ref_attr_name in outer:
            out[a.name] = outer[a.ref_attr_name]
    return out
