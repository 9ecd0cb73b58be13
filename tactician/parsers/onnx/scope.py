"""Names visible at one place of a model, and captures across subgraph borders."""

from __future__ import annotations

from typing import Any

from ...ir.graph import Graph, Value
from .errors import NodeProblem, Poisoned


class Poison:
    """Stands for a result of a node that could not be imported."""


POISON = Poison()


class Scope:
    """One naming scope; lookups that leave its graph become captures.

    Attributes:
        graph: Where nodes of this scope are added.
        parent: The scope around it, or None (the model's graph, or a function body).
        captures: For a subgraph scope: outer value → its stand-in, an input of the subgraph.
    """

    def __init__(self, graph: Graph, parent: Scope | None = None):
        self.graph = graph
        self.parent = parent
        self.captures: dict[Value, Value] = {}
        self._constants: dict[Value, Value] = {}
        self._names: dict[str, Any] = {}

    def define(self, name: str, value: Any) -> None:
        """Binds a name: to a `Value`, a list (a sequence known at parse time) or `POISON`."""
        if name:
            if name in self._names:
                raise NodeProblem(
                    f"two tensors are called {name!r}; names must be unique", "INVALID_GRAPH"
                )
            self._names[name] = value

    def defines(self, name: str) -> bool:
        return name in self._names

    def names(self) -> list[str]:
        return list(self._names)

    def knows(self, name: str) -> bool:
        return name in self._names or (self.parent is not None and self.parent.knows(name))

    def lookup(self, name: str) -> Any:
        """The value of a name.

        Raises:
            NodeProblem: If nothing has that name.
            Poisoned: If its producer failed.
        """
        if name in self._names:
            found = self._names[name]
            if found is POISON:
                raise Poisoned(name)
            return found
        if self.parent is None:
            raise NodeProblem(
                f"reads {name!r}, which no node, input or initializer provides", "INVALID_GRAPH"
            )
        found = self.parent.lookup(name)
        if self.parent.graph is self.graph:
            return found
        if isinstance(found, list):
            return [self.capture(v) for v in found]
        return self.capture(found)

    def capture(self, outer: Value) -> Value:
        """The stand-in for a value of the enclosing graph."""
        if outer.const is not None:
            if outer not in self._constants:
                self._constants[outer] = self.graph.constant(outer.const, outer.name)
            return self._constants[outer]
        root = self
        while root.parent is not None and root.parent.graph is self.graph:
            root = root.parent
        if outer not in root.captures:
            inner = Value(outer.name, outer.dtype, outer.shape)
            inner.content = outer.content
            root.captures[outer] = inner
        return root.captures[outer]
