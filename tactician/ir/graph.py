"""The one graph: values, nodes, and the graph that owns them.

Network views build it, parsers and front ends build through those views, passes rewrite a clone.
Graphs are in SSA form. A node that holds subgraphs (``if``, ``loop``) takes every outer value
its subgraphs use as an explicit input, so a graph never refers to a value of another graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import dims as D
from .dtypes import DType, dtype

Shape = tuple[D.DimLike, ...]


@dataclass(frozen=True)
class TensorType:
    """What shape inference returns for one output.

    Attributes:
        dtype: Element type.
        shape: Dimensions; ints or symbolic.
        content: For integer tensors whose elements are known as (symbolic) integers: an object
            array of ints and `Dim`s with the tensor's shape; shapes are computed from it.
    """

    dtype: DType
    shape: Shape
    content: np.ndarray[Any, Any] | None = None


class Value:
    """One tensor. Identity is what counts; names are unique only where users need them to be.

    Attributes:
        name: For people and for I/O.
        dtype, shape, content: As in `TensorType`. ``shape`` is None while its producer is
            invalid (see `Node.error`).
        const: The data, if the value is a constant.
        producer: The node that computes it, or None for graph inputs and constants.
        index: Its position among the producer's outputs.
        users: Nodes that read it, with how often each does.
        meta: Free annotations (``dynamic_range``, ``location``, …) that survive cloning.
    """

    __slots__ = (
        "const", "content", "dtype", "index", "meta", "name", "producer", "shape", "users",
    )

    def __init__(self, name: str, dt: DType, shape: Shape | None):
        self.name = name
        self.dtype = dt
        self.shape = shape
        self.content: np.ndarray[Any, Any] | None = None
        self.const: np.ndarray[Any, Any] | None = None
        self.producer: Node | None = None
        self.index = 0
        self.users: dict[Node, int] = {}
        self.meta: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def dims(self) -> Shape:
        """The shape, for callers that need a known one.

        Raises:
            ValueError: If the producer is invalid, with its error.
        """
        if self.shape is None:
            reason = self.producer.error if self.producer else "it has no type"
            raise ValueError(f"shape of {self.name!r} is unknown: {reason}")
        return self.shape

    @property
    def is_static(self) -> bool:
        return self.shape is not None and D.is_static(*self.shape)

    @property
    def numel(self) -> D.DimLike:
        return D.product(self.dims)

    def known_ints(self) -> np.ndarray[Any, Any] | None:
        """Elements as ints and `Dim`s (object array), from ``const`` or ``content``."""
        if self.content is not None:
            return self.content
        if self.const is not None and self.const.dtype.kind in "iub" and self.const.size <= 4096:
            return self.const.astype(object)
        return None

    def set_type(self, t: TensorType) -> bool:
        """Takes a new type; returns whether anything changed."""
        same = (
            self.dtype is t.dtype
            and self.shape == t.shape
            and _same_content(self.content, t.content)
        )
        self.dtype, self.shape, self.content = t.dtype, t.shape, t.content
        return not same

    def __repr__(self) -> str:
        shape = "?" if self.shape is None else ", ".join(map(str, self.shape))
        return f"%{self.name}: {self.dtype}[{shape}]"


def _same_content(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and bool(np.all(a == b))


class Node:
    """One operation.

    Attributes:
        op: Name of an op declared in `tactician.ops`.
        attrs: The op's frozen ``Attrs`` dataclass.
        inputs: Values read; None for an optional input that is absent.
        outputs: Values produced.
        subgraphs: Bodies of control-flow ops.
        name: The layer's name, for people; errors and reports show it.
        source: Where it came from (e.g. ``onnx node 12 'conv1' (Conv)``).
        id: Unique within the process, stable across clones; keys data-dependent symbols.
        error: Why shape inference failed, or None.
        meta: Free annotations (``precision``, ``output_types``, …) that survive cloning.
    """

    __slots__ = (
        "attrs", "error", "id", "inputs", "meta", "name", "op", "outputs", "source", "subgraphs",
    )
    _ids = itertools.count()

    def __init__(self, op: str, inputs: Sequence[Value | None], attrs: Any, name: str = ""):
        self.op = op
        self.attrs = attrs
        self.inputs: list[Value | None] = []
        self.outputs: list[Value] = []
        self.subgraphs: tuple[Graph, ...] = ()
        self.name = name
        self.source = ""
        self.id = next(Node._ids)
        self.error: str | None = None
        self.meta: dict[str, Any] = {}
        for v in inputs:
            self._append_input(v)

    def _append_input(self, v: Value | None) -> None:
        self.inputs.append(v)
        if v is not None:
            v.users[self] = v.users.get(self, 0) + 1

    def set_input(self, i: int, v: Value | None) -> None:
        """Reads ``v`` as input ``i`` (appending absent ones before it, if any)."""
        while len(self.inputs) <= i:
            self.inputs.append(None)
        old = self.inputs[i]
        if old is not None:
            old.users[self] -= 1
            if not old.users[self]:
                del old.users[self]
        self.inputs[i] = v
        if v is not None:
            v.users[self] = v.users.get(self, 0) + 1

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    def present_inputs(self) -> list[Value]:
        return [v for v in self.inputs if v is not None]

    def describe(self) -> str:
        """Layer name, op and source, as error messages show them."""
        where = f" from {self.source}" if self.source else ""
        return f"layer {self.name!r} [{self.op}]{where}"

    def __repr__(self) -> str:
        ins = ", ".join("-" if v is None else f"%{v.name}" for v in self.inputs)
        return f"{', '.join(map(repr, self.outputs))} = {self.op}({ins}) {self.attrs}"


@dataclass
class SymbolInfo:
    """Where a dimension symbol gets its value, and between which bounds.

    Attributes:
        kind: ``dim`` (dimension ``index`` of input ``source``), ``value`` (element ``index`` of
            input ``source``, a shape tensor), or ``data`` (found while running node ``source``).
        upper: Largest value, as far as known (may depend on other symbols).
    """

    name: str
    kind: str
    source: str
    index: int
    lower: int = 0
    upper: D.DimLike | None = None


@dataclass
class Graph:
    """A graph owns its nodes; ``nodes`` is in topological order after `toposort`."""

    name: str = "graph"
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    symbols: dict[str, SymbolInfo] = field(default_factory=dict)

    def add_input(self, name: str, dt: Any, shape: Sequence[D.DimLike]) -> Value:
        value = Value(name, dtype(dt), tuple(shape))
        self.inputs.append(value)
        return value

    def constant(self, array: Any, name: str = "const") -> Value:
        """A constant value; it belongs to no node. The array is not copied."""
        array = np.asarray(array)
        value = Value(name, dtype(array.dtype), tuple(array.shape))
        value.const = array
        return value

    def insert(self, node: Node, before: Node | None = None) -> Node:
        if before is None:
            self.nodes.append(node)
        else:
            self.nodes.insert(self.nodes.index(before), node)
        return node

    def replace_uses(self, old: Value, new: Value) -> None:
        """Makes every reader of ``old``, and the graph's outputs, read ``new``."""
        for node in list(old.users):
            for i, v in enumerate(node.inputs):
                if v is old:
                    node.set_input(i, new)
        self.outputs = [new if v is old else v for v in self.outputs]

    def remove(self, node: Node) -> None:
        """Removes a node that nothing reads."""
        self.remove_all([node])

    def remove_all(self, nodes: Iterable[Node]) -> None:
        gone = set(nodes)
        for node in gone:
            for i in range(len(node.inputs)):
                node.set_input(i, None)
        self.nodes = [n for n in self.nodes if n not in gone]

    def values(self) -> Iterator[Value]:
        """Every value, each once: inputs, constants, then results in node order."""
        seen: set[int] = set()
        results = itertools.chain.from_iterable(
            itertools.chain(n.present_inputs(), n.outputs) for n in self.nodes
        )
        for v in itertools.chain(self.inputs, results, self.outputs):
            if id(v) not in seen:
                seen.add(id(v))
                yield v

    def toposort(self) -> None:
        """Orders nodes by data flow, keeping insertion order where it is free.

        Raises:
            ValueError: If the graph has a cycle, naming a layer on it.
        """
        own = {n: i for i, n in enumerate(self.nodes)}
        waiting = {
            n: len({v.producer for v in n.present_inputs() if v.producer in own})
            for n in self.nodes
        }
        import heapq

        ready = [i for n, i in own.items() if not waiting[n]]
        heapq.heapify(ready)
        order: list[Node] = []
        while ready:
            node = self.nodes[heapq.heappop(ready)]
            order.append(node)
            for user in dict.fromkeys(u for v in node.outputs for u in v.users if u in own):
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, own[user])
        if len(order) != len(self.nodes):
            stuck = next(n for n in self.nodes if waiting[n])
            raise ValueError(f"the network has a cycle through {stuck.describe()}")
        self.nodes = order

    def clone(self) -> tuple[Graph, dict[Value, Value]]:
        """A copy that shares constant data, and the map from old to new values."""
        twin: dict[Value, Value] = {}

        def copy(v: Value) -> Value:
            if v not in twin:
                new = Value(v.name, v.dtype, v.shape)
                new.content, new.const, new.index = v.content, v.const, v.index
                new.meta = dict(v.meta)
                twin[v] = new
            return twin[v]

        out = Graph(self.name, [copy(v) for v in self.inputs], symbols=dict(self.symbols))
        for node in self.nodes:
            ins = [None if v is None else copy(v) for v in node.inputs]
            new = Node(node.op, ins, node.attrs, node.name)
            new.id, new.source, new.error = node.id, node.source, node.error
            new.meta = dict(node.meta)
            new.subgraphs = tuple(g.clone()[0] for g in node.subgraphs)
            new.outputs = [copy(v) for v in node.outputs]
            for v in new.outputs:
                v.producer = new
            out.nodes.append(new)
        out.outputs = [copy(v) for v in self.outputs]
        return out, twin

    def __str__(self) -> str:
        from .printer import print_graph

        return print_graph(self)
