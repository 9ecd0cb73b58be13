"""One TensorFlow node as importers see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.dtypes import DType
from ...ir.graph import Value
from ..onnx.errors import NodeProblem
from .types import attr_value, dtype_of

_REQUIRED: Any = object()


class TfNode:
    """A node with its inputs resolved.

    Attributes:
        proto: The ``NodeDef``.
        inputs: What it reads, without control inputs: values, or contents of tensor arrays.
        walker: Where it is being imported, for control flow.
    """

    def __init__(self, proto: Any, inputs: Sequence[Any], walker: Any):
        self.proto = proto
        self.inputs = list(inputs)
        self.walker = walker

    @property
    def op(self) -> str:
        return self.proto.op

    @property
    def name(self) -> str:
        return self.proto.name

    def __getitem__(self, i: int) -> Value:
        """Input ``i``, which must be a tensor."""
        if i >= len(self.inputs):
            raise NodeProblem(f"input {i} is missing; {self.op} needs it")
        value = self.inputs[i]
        if not isinstance(value, Value):
            raise NodeProblem(f"input {i} is {value}; {self.op} needs a tensor")
        return value

    def __len__(self) -> int:
        return len(self.inputs)

    def all(self) -> list[Value]:
        """Inputs of a variadic operator."""
        return [self[i] for i in range(len(self.inputs))]

    def has(self, name: str) -> bool:
        return name in self.proto.attr

    def attr(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute as a Python value.

        Raises:
            NodeProblem: If it is absent and there is no default.
        """
        if name not in self.proto.attr:
            if default is _REQUIRED:
                raise NodeProblem(f"attribute {name!r} is missing; {self.op} needs it")
            return default
        return attr_value(self.proto.attr[name])

    def ints(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        return tuple(int(x) for x in self.attr(name, default))

    def dtype(self, name: str, default: DType | None = None) -> DType:
        """A type attribute."""
        if default is not None and name not in self.proto.attr:
            return default
        return dtype_of(self.attr(name))
