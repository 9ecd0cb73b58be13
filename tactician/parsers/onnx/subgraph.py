"""Bodies of control-flow nodes: building graphs whose captures are explicit inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Graph, TensorType, Value
from .context import Context
from .errors import NodeProblem, Poisoned
from .scope import Scope
from .walk import MAX_DEPTH, import_nodes


class Body:
    """One imported subgraph: its graph, results, and what it captures."""

    def __init__(self, c: Context, proto: Any, label: str, inputs: Sequence[TensorType] = ()):
        """Imports ``proto``; its inputs get the given types.

        Raises:
            NodeProblem: If the number of inputs differs.
            Poisoned: If a node inside failed (its problem has been recorded).
        """
        if len(proto.input) != len(inputs):
            raise NodeProblem(f"{label} has {len(proto.input)} inputs; expected {len(inputs)}")
        if c.state.depth >= MAX_DEPTH:
            raise NodeProblem(f"subgraphs are nested more than {MAX_DEPTH} deep")
        self.graph = Graph(proto.name or label)
        self.scope = Scope(self.graph, c.scope)
        for info, t in zip(proto.input, inputs, strict=True):
            value = Value(info.name, t.dtype, t.shape)
            value.content = t.content
            self.graph.inputs.append(value)
            self.scope.define(info.name, value)
        self.own_inputs = len(self.graph.inputs)
        self.context = Context(c.state, self.scope, c.opsets, (*c.stack, label), c.attributes)
        self.outputs = import_body(self.context, proto)
        self.graph.outputs = [unaliased(self, v) for v in self.outputs]

    @property
    def captures(self) -> dict[Value, Value]:
        return self.scope.captures

    def take_captures(self, outer: Sequence[Value]) -> None:
        """Appends stand-ins for ``outer`` to the graph's inputs, in that order."""
        for v in outer:
            self.graph.inputs.append(self.scope.capture(v))


def import_body(c: Context, proto: Any) -> list[Value]:
    """Imports initializers and nodes of a subgraph into ``c``'s scope; returns its outputs."""
    define_initializers(c, proto)
    before = len(c.state.problems)
    c.state.depth += 1
    try:
        import_nodes(c, proto.node)
    finally:
        c.state.depth -= 1
    if len(c.state.problems) > before:
        raise Poisoned(proto.name)
    return [c.scope.lookup(o.name) for o in proto.output]


def define_initializers(c: Context, graph: Any) -> None:
    """Binds a graph's initializers, dense and sparse, that its inputs have not bound."""
    for tensor in graph.initializer:
        if not c.scope.defines(tensor.name):
            c.scope.define(tensor.name, c.const(c.state.load_tensor(tensor), name=tensor.name))
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if not c.scope.defines(name):
            c.scope.define(name, c.const(densify(c, sparse), name=name))


def densify(c: Context, sparse: Any) -> Any:
    """A ``SparseTensorProto`` as a dense array."""
    import numpy as np

    values = c.state.load_tensor(sparse.values)
    indices = c.state.load_tensor(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def unaliased(body: Body, v: Value) -> Value:
    """A result that is an input, a constant or a double, as a value of its own."""
    if isinstance(v, list):
        raise NodeProblem("sequences cannot leave a subgraph", "UNSUPPORTED_NODE_DATATYPE")
    if v.producer is not None and v.producer in body.graph.nodes:
        return v
    return body.context.op("identity", v)


def union(*bodies: Body) -> list[Value]:
    """What any of the bodies captures, in order of first use."""
    return list(dict.fromkeys(v for b in bodies for v in b.captures))
