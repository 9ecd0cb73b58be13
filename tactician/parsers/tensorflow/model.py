"""Imports a whole graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dtypes import DType, dtype
from ...ir.graph import Graph, SymbolInfo, Value
from ..onnx.context import ModelState
from ..onnx.errors import ImportProblem, Poisoned, Problem, Unsupported
from ..onnx.model import _forget_unused_symbols, _give_content, legal_symbol
from ..onnx.scope import POISON, Scope
from .context import Context
from .types import STRING, attr_value, dtype_of
from .walk import Nodes, Walker, data_inputs

_IGNORED_OUTPUTS = frozenset("NoOp Assert Const Placeholder VarHandleOp".split())


@dataclass(frozen=True)
class Feed:
    """How an input differs from what the graph says.

    Attributes:
        shape: Its shape, -1 or None for unknown sizes; None: as the graph says.
        dtype: Its element type; None: as the graph says.
        enter: Turns the network's input into what the graph reads (another order of axes).
    """

    shape: Sequence[int | None] | None = None
    dtype: DType | None = None
    enter: Callable[[Context, Value], Value] | None = None


def default_outputs(graph: Any) -> list[str]:
    """Names of nodes that nothing reads."""
    read = {i.lstrip("^").split(":")[0] for n in graph.node for i in n.input}
    return [n.name for n in graph.node if n.name not in read and n.op not in _IGNORED_OUTPUTS]


def import_graph(
    proto: Any,
    graph: Graph,
    *,
    inputs: Mapping[str, Feed] | None = None,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, Any] | None = None,
    network: Any = None,
    plugins: Any = None,
    leave: Callable[[Context, Value], Value] | None = None,
) -> ModelState:
    """Builds ``graph`` from a ``GraphDef``. Problems are collected, not raised.

    Args:
        proto: The ``GraphDef``.
        graph: Receives inputs, nodes, outputs and symbols; must be empty.
        inputs: Changed inputs by node or tensor name. Any node can be one: nodes above it are not
            imported then.
        outputs: Names of nodes or tensors; None: nodes that nothing reads.
        constants: Values of placeholders (or any nodes) that are known.
        network: The network that owns ``graph``, if layers are to be added through it.
        plugins: Finds plugins for operators without an importer.
        leave: Applied to every output.
    """
    state = ModelState(plugins=plugins, network=network)
    functions = {f.signature.name: f for f in proto.library.function}
    nodes = Nodes(proto.node, functions)
    for name in nodes.double:
        state.problems.append(Problem("INVALID_GRAPH", f"two nodes are called {name!r}"))
    c = Context(state, Scope(graph), {})
    w = Walker(c, nodes)
    wanted = list(outputs) if outputs is not None else default_outputs(proto)
    if not wanted:
        state.problems.append(Problem("INVALID_GRAPH", "the graph has no outputs; name some"))
    for name, value in (constants or {}).items():
        _define(w, name, partial(_known, c, value))
    _inputs(w, inputs or {}, wanted)
    w.demand([nodes.split(r)[0] for r in wanted])
    _outputs(w, wanted, leave)
    if not state.problems:
        _forget_unused_symbols(graph)
    return state


# --- inputs -------------------------------------------------------------------------------


def _inputs(w: Walker, feeds: Mapping[str, Feed], wanted: Sequence[str]) -> None:
    for name, feed in feeds.items():
        _define(w, name, partial(_input, w, feed))
    needed = _reachable(w, wanted)
    for node in w.nodes.by_name.values():
        if node.op == "Placeholder" and node.name in needed and node.name not in w.results:
            _define(w, node.name, partial(_input, w, Feed()))


def _define(w: Walker, ref: str, make: Callable[[str], Value]) -> None:
    """Gives a node's output a value instead of importing it."""
    name, k = w.nodes.split(ref)
    if name not in w.nodes.by_name:
        w.c.state.problems.append(Problem(
            "INVALID_GRAPH", f"input {ref!r}: the graph has no node {name!r}; "
            f"its placeholders are {_placeholders(w) or 'none'}"))
        return
    try:
        value: Any = make(ref)
    except ImportProblem as e:
        w.c.state.problems.append(Problem(e.code, f"input {ref!r}: {e}"))
        w.results[name] = POISON
        return
    outputs = w.results.setdefault(name, [])
    while len(outputs) <= k:
        outputs.append(None)
    outputs[k] = value


def _placeholders(w: Walker) -> str:
    return ", ".join(repr(n.name) for n in w.nodes.by_name.values()
                     if n.op.startswith("Placeholder"))


def _reachable(w: Walker, wanted: Sequence[str]) -> set[str]:
    """Nodes above the outputs, up to inputs that are given."""
    seen: set[str] = set()
    work = [w.nodes.split(r)[0] for r in wanted]
    while work:
        name = work.pop()
        if name in seen or name in w.results or name not in w.nodes.by_name:
            continue
        seen.add(name)
        work += [w.nodes.split(i)[0] for i in data_inputs(w.nodes.by_name[name])]
    return seen


def _known(c: Context, value: Any, name: str) -> Value:
    return c.const(np.asarray(value), name=name)


def _input(w: Walker, feed: Feed, name: str) -> Value:
    c = w.c
    node = w.nodes.by_name[w.nodes.split(name)[0]]
    dt = feed.dtype or _declared_dtype(node)
    shape = feed.shape
    if shape is None:
        if "shape" not in node.attr or attr_value(node.attr["shape"]) is None:
            raise Unsupported("the graph does not say its rank; give a shape "
                              "(inputs={name: shape})", "UNSUPPORTED_GRAPH")
        shape = attr_value(node.attr["shape"])
    label = name.removesuffix(":0")
    network = c.state.network
    if network is not None and network.has_implicit_batch_dimension:
        from ...network.enums import from_ir

        tensor = network.add_input(label, from_ir(dt), tuple(int(d) for d in shape))  # type: ignore
        if tensor is None:
            raise ImportProblem(f"the network refuses it with shape {list(shape)}")
        value = network._value(tensor, "parse")
    else:
        dims = [int(d) if d is not None and d >= 0 else _symbol(c.graph, label, i)
                for i, d in enumerate(shape)]
        value = c.graph.add_input(label, dt, dims)
        _give_content(c.graph, value)
    value.meta["tf_name"] = label
    return value if feed.enter is None else feed.enter(c, value)


def _declared_dtype(node: Any) -> DType:
    for key in ("dtype", "T", "Tparams", "out_type", "output_type"):
        if key in node.attr:
            number = node.attr[key].type
            if number == STRING:
                raise Unsupported("it is text, which networks don't take; make a later node the "
                                  "input", "UNSUPPORTED_GRAPH")
            return dtype_of(number)
    return dtype("f32")


def _symbol(graph: Graph, name: str, i: int) -> Any:
    symbol = legal_symbol(f"{name}.{i}") or f"input{len(graph.inputs)}.{i}"
    graph.symbols[symbol] = SymbolInfo(symbol, "dim", name, i)
    return D.sym(symbol)


# --- outputs ------------------------------------------------------------------------------


def _outputs(w: Walker, wanted: Sequence[str], leave: Any) -> None:
    c, taken = w.c, set[Value]()
    for ref in wanted:
        try:
            value = w.value(ref)
            if not isinstance(value, Value):
                raise Unsupported(f"it is {value}, but only tensors are supported")
        except Poisoned:
            continue
        except ImportProblem as e:
            c.state.problems.append(Problem(e.code, f"output {ref!r}: {e}"))
            continue
        c.emitted = []
        if leave is not None:
            value = leave(c, value)
        if value.producer is None or value in taken:
            value = c.op("identity", value)
        for op, layer in c.emitted:
            layer.name = c.state.unique(f"output_{ref}/{op}")
        taken.add(value)
        value.name = ref
        c.graph.outputs.append(value)
