"""Tensors of implicit-batch networks that have one value for the whole batch.

An input that is broadcast is bound once, whatever the batch; layers read it repeated. Other
tensors are broadcast if all that their layer reads is. A plugin is asked, as `IPluginV2Ext` of
TensorRT's C++ API is: ``can_broadcast_input_across_batch(input_index)`` says that it takes one
copy of such an input, ``is_output_broadcast_across_batch(output_index, input_is_broadcasted,
nb_inputs)`` that an output is one copy. A plugin without these methods gets and gives copies for
each element of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import OpError, emit

FLAG = "broadcast_across_batch"
_PRIVATE = frozenset("fill bernoulli multinomial loop if".split())  # not by their inputs alone


def is_broadcast(v: Value, known: dict[Value, bool]) -> bool:
    """Whether a value of an implicit-batch network is the same for the whole batch.

    Args:
        v: The value.
        known: What is known so far; it grows.
    """
    if v not in known:
        known[v] = False  # while it is looked at: cycles of recorded loops
        node = v.producer
        if node is None:
            known[v] = v.const is not None or bool(v.meta.get(FLAG))
        elif node.op == "plugin":
            flags = [is_broadcast(u, known) for u in node.inputs if u is not None]
            known[v] = _says(node, "is_output_broadcast_across_batch", v.index, flags, len(flags))
        elif node.op not in _PRIVATE and not node.error:
            known[v] = all(is_broadcast(u, known) for u in node.inputs if u is not None)
    return known[v]


def _says(node: Node, method: str, *args: Any) -> bool:
    ask: Callable[..., Any] | None = getattr(node.meta.get("plugin"), method, None)
    return ask is not None and _is_static(node) and bool(ask(*args))


def _is_static(node: Node) -> bool:
    """Whether the node's plugin is one of those with fixed shapes, to which the batch is a
    number of its own."""
    plugin = node.meta.get("plugin")
    return bool(node.meta.get("implicit_batch")) and not (
        hasattr(plugin, "get_capability_interface") or hasattr(plugin, "get_output_dimensions"))


def spread(graph: Graph) -> None:
    """Gives inputs that are broadcast a batch of 1 and repeats them for their readers.

    Args:
        graph: An implicit-batch network.

    Raises:
        OpError: If all inputs are broadcast, as then nothing says how large the batch is.
    """
    single = [v for v in graph.inputs if v.meta.get(FLAG)]
    nodes = [n for n in graph.nodes if n.op == "plugin" and _is_static(n)]
    rest = [v for v in graph.inputs if not v.meta.get(FLAG)]
    if not single and not (nodes and rest):
        return
    if not rest:
        raise OpError(f"inputs {', '.join(repr(v.name) for v in single)} are all broadcast across"
                      " the batch, whose size only other inputs can give; leave"
                      " broadcast_across_batch off for one of them")
    known: dict[Value, bool] = {}
    for node in nodes:
        for v in node.outputs:
            is_broadcast(v, known)  # before values change places
    graph.symbols["batch"].source = rest[0].name
    repeated = {}
    for v in single:
        old = list(v.users)
        v.shape = (1, *v.dims[1:])
        new = _repeated(graph, v, rest[0], graph.nodes[0] if graph.nodes else None)
        for node in old:
            for i, u in enumerate(node.inputs):
                if u is v:
                    node.set_input(i, new)
        repeated[new] = v
        known[new] = True
    for node in nodes:
        _suit(graph, node, rest[0], repeated, known)


def _repeated(graph: Graph, v: Value, like: Value, before: Node | None) -> Value:
    """``v``, which has a batch of 1, for as large a batch as ``like`` has."""
    def ints(*values: int) -> Value:
        return graph.constant(np.array(values, np.int64))

    def add(op: str, *inputs: Value, **attrs: Any) -> Value:
        return emit(graph, op, inputs, f"{v.name} (for the batch)", before=before, **attrs).output

    batch = add("gather", add("shape", like), ints(0), axis=0, batch_dims=0)
    return add("expand", v, add("concat", batch, ints(*map(int, v.dims[1:])), axis=0))  # type: ignore[arg-type]


def _suit(graph: Graph, node: Node, like: Value, repeated: dict[Value, Value],
          known: dict[Value, bool]) -> None:
    """Gives a plugin one copy of what it takes so, and copies of all else."""
    inputs = [v for v in node.inputs if v is not None]
    flags = [is_broadcast(v, known) for v in inputs]
    takes = [f and _says(node, "can_broadcast_input_across_batch", i) for i, f in enumerate(flags)]
    gives = [known[v] for v in node.outputs]
    if all(takes) and not all(gives):
        takes = takes and [False, *takes[1:]]  # something must tell the batch
    for i, (v, one) in enumerate(zip(inputs, takes, strict=True)):
        if one and v in repeated:
            node.set_input(i, repeated[v])
        elif one and v.dims[0] != 1:
            node.set_input(i, _first(graph, v, node))
        elif not one and v.dims[0] == 1 and v is not like:
            node.set_input(i, _repeated(graph, v, like, node))
    if any(flags):
        node.meta["input_broadcast"] = tuple(map(int, flags))
    if any(gives):
        node.meta["output_broadcast"] = tuple(map(int, gives))
        for v in [v for v, one in zip(node.outputs, gives, strict=True) if one]:
            _spread_output(graph, node, v, like)


def _first(graph: Graph, v: Value, before: Node) -> Value:
    ints = [graph.constant(np.array([k], np.int64)) for k in (0, 1, 0)]
    return emit(graph, "strided_slice", [v, *ints], f"{v.name} (one)", before=before).output


def _spread_output(graph: Graph, node: Node, v: Value, like: Value) -> None:
    users, is_output = list(v.users), any(v is o for o in graph.outputs)
    v.shape = (1, *v.dims[1:])
    at = graph.nodes.index(node) + 1
    new = _repeated(graph, v, like, graph.nodes[at] if at < len(graph.nodes) else None)
    for user in users:
        for i, u in enumerate(user.inputs):
            if u is v:
                user.set_input(i, new)
    if is_output:
        new.name, v.name = v.name, f"{v.name} (one)"
        new.meta.update(v.meta)
        graph.outputs = [new if o is v else o for o in graph.outputs]


def leading(shapes: Sequence[Sequence[Any]], singles: Sequence[int]) -> tuple[Any, ...]:
    """The batch (as the first dimensions of a shape) of a plugin's inputs.

    Args:
        shapes: Shapes of the inputs.
        singles: Which of them may be one copy for the batch.
    """
    own = [s[0] for i, s in enumerate(shapes) if not (i < len(singles) and singles[i])]
    rest = [s[0] for s in shapes if s[0] != 1]
    found = own or rest or [s[0] for s in shapes]
    return tuple(found[:1])
