"""Imports a whole model into a graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Graph, SymbolInfo, Value
from .context import Context, ModelState
from .errors import ImportProblem, ModelProblem, Poisoned, Problem, Unsupported
from .external import TensorLoader
from .scope import Scope
from .types import dtype_of
from .walk import canonical, import_nodes

OLDEST_OPSET = 1  # complete from 7 on; before that, operators as the table says
MAX_SHAPE_ELEMENTS = 64  # longest integer input whose elements get symbols


def import_model(
    model: Any,
    graph: Graph,
    folder: str | None = None,
    given: Mapping[str, bytes] | None = None,
    plugins: Any = None,
    network: Any = None,
    constants: Mapping[str, Any] | None = None,
) -> ModelState:
    """Builds ``graph`` from a ``ModelProto``. Problems are collected, not raised.

    Args:
        model: The model.
        graph: Receives inputs, nodes, outputs and symbols; must be empty.
        folder: Where external data lies.
        given: External data by initializer name.
        plugins: Finds plugins for operators without an importer.
        network: The network that owns ``graph``, if layers are to be added through it.
        constants: Values for inputs of the model, which then are constants.
    """
    state = ModelState(plugins=plugins, network=network)
    state.load_tensor = TensorLoader(folder, given or {}, state.warnings.append)
    state.functions = {
        (canonical(f.domain), f.name, getattr(f, "overload", "")): f for f in model.functions
    }
    graph.name = model.graph.name or graph.name
    try:
        opsets = _opsets(model)
    except ImportProblem as e:
        state.problems.append(Problem(e.code, str(e)))
        return state
    c = Context(state, Scope(graph), opsets)
    for name, array in (constants or {}).items():
        c.scope.define(name, c.const(array, name=name))
    _initializers(c, model.graph)
    _inputs(c, model.graph)
    import_nodes(c, model.graph.node, top_level=True)
    _outputs(c, model.graph)
    _forget_unused_symbols(graph)
    return state


def _opsets(model: Any) -> dict[str, int]:
    from onnx import defs

    out = {canonical(o.domain): int(o.version) for o in model.opset_import}
    newest = defs.onnx_opset_version()
    version = out.get("")
    if version is not None and version < OLDEST_OPSET:
        raise ModelProblem(
            f"the model uses opset {version}; {OLDEST_OPSET} to {newest} are supported: convert "
            "it with onnx.version_converter.convert_version", "UNSUPPORTED_GRAPH")
    if version is not None and version > newest:
        raise ModelProblem(
            f"the model uses opset {version}, which the installed onnx does not know (newest: "
            f"{newest}): upgrade onnx or export for an older opset", "UNSUPPORTED_GRAPH")
    return out


def _problem(c: Context, what: str, e: ImportProblem, code: str | None = None) -> None:
    c.state.problems.append(Problem(code or e.code, f"{what}: {e}"))


def _initializers(c: Context, graph: Any) -> None:
    from .scope import POISON
    from .subgraph import densify

    given = set(c.scope.names())
    entries = [(t.name, t, c.state.load_tensor) for t in graph.initializer]
    entries += [(s.values.name, s, lambda s: densify(c, s)) for s in graph.sparse_initializer]
    for name, proto, load in entries:
        if name in given:
            continue
        if c.scope.defines(name):
            _problem(c, f"initializer {name!r}", ImportProblem("there are two of that name"))
            continue
        try:
            c.scope.define(name, c.const(load(proto), name=name))
        except ImportProblem as e:
            code = "INVALID_GRAPH" if e.code == "INVALID_NODE" else e.code
            _problem(c, f"initializer {name!r}", e, code)
            c.scope.define(name, POISON)


# --- inputs and outputs ---------------------------------------------------------------------


def _inputs(c: Context, graph: Any) -> None:
    from .scope import POISON

    for info in graph.input:
        if c.scope.defines(info.name):
            if any(v.name == info.name for v in c.graph.inputs):
                _problem(c, f"input {info.name!r}", ImportProblem("there are two of that name"))
            continue  # an initializer gives the input its (default) value
        try:
            c.scope.define(info.name, _input(c.graph, info))
        except ImportProblem as e:
            _problem(c, f"input {info.name!r}", e)
            c.scope.define(info.name, POISON)


def _input(graph: Graph, info: Any) -> Value:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Unsupported(
            f"its type is {kind or 'missing'}, but only tensors are supported; split sequences "
            "and optionals into tensors before export", "UNSUPPORTED_GRAPH")
    tensor = info.type.tensor_type
    dt = dtype_of(tensor.elem_type)
    if not tensor.HasField("shape"):
        raise Unsupported("it has no shape; give it one (unknown dimensions may be symbolic)",
                          "UNSUPPORTED_GRAPH")
    shape = [_dimension(graph, info.name, i, d) for i, d in enumerate(tensor.shape.dim)]
    value = graph.add_input(info.name, dt, shape)
    value.meta["onnx_name"] = info.name
    _give_content(graph, value)
    return value


def _dimension(graph: Graph, name: str, i: int, proto: Any) -> D.DimLike:
    if proto.HasField("dim_value") and proto.dim_value >= 0:
        return int(proto.dim_value)
    symbol = legal_symbol(proto.dim_param) if proto.dim_param else ""
    symbol = symbol or legal_symbol(f"{name}.{i}") or f"input{len(graph.inputs)}.{i}"
    if symbol not in graph.symbols:
        graph.symbols[symbol] = SymbolInfo(symbol, "dim", name, i)
    return D.sym(symbol)


def legal_symbol(name: str) -> str:
    """``name`` if it can be a symbol as it stands, else an empty string."""
    ok = re.fullmatch(r"[^\s*+(),%@\-][^\s*+(),]*", name) and not re.fullmatch(r"\d+", name)
    return name if ok and name not in ("floordiv", "mod", "max", "min") else ""


def _give_content(graph: Graph, value: Value) -> None:
    """Small integer inputs may be shapes: their elements become symbols."""
    if not value.dtype.is_int or value.rank > 1 or not value.is_static:
        return
    count = int(D.product(value.dims))
    base = value.name if legal_symbol(value.name) else f"input{len(graph.inputs) - 1}"
    if not 0 < count <= MAX_SHAPE_ELEMENTS:
        return
    content = np.empty(count, dtype=object)
    for k in range(count):
        name = f"{base}@{k}"
        graph.symbols[name] = SymbolInfo(name, "value", value.name, k)
        content[k] = D.sym(name)
    value.content = content.reshape(tuple(int(d) for d in value.dims))


def _outputs(c: Context, graph: Any) -> None:
    taken: set[Value] = set()
    for info in graph.output:
        try:
            value = c.scope.lookup(info.name)
        except Poisoned:
            continue
        except ImportProblem as e:
            _problem(c, f"output {info.name!r}", e)
            continue
        if isinstance(value, list):
            _problem(c, f"output {info.name!r}", Unsupported(
                "it is a sequence, but only tensors are supported", "UNSUPPORTED_GRAPH"))
            continue
        if value.producer is None or value in taken:
            c.emitted = []
            value = c.op("identity", value)
            c.emitted[-1][1].name = c.state.unique(f"output_{info.name}")
        taken.add(value)
        value.name = info.name
        c.graph.outputs.append(value)
        _compare_declared(c, info, value)


def _compare_declared(c: Context, info: Any, value: Value) -> None:
    """Warns if the model declares an output type that cannot be right."""
    tensor = info.type.tensor_type
    if not tensor.elem_type:
        return
    declared = dtype_of(tensor.elem_type)
    if declared is not value.dtype:
        c.state.warnings.append(
            f"output {info.name!r} is declared {declared} but is {value.dtype}")
    if not tensor.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    differs = len(dims) != value.rank or any(
        d is not None and not isinstance(v, D.Dim) and d != v
        for d, v in zip(dims, value.dims, strict=True))
    if differs:
        shown = [d if d is not None else "?" for d in dims]
        c.state.warnings.append(
            f"output {info.name!r} is declared {shown} but has shape {list(value.dims)}")


# --- symbols of shape tensors ---------------------------------------------------------------

# Ops that only pass integer contents on; reading a symbol there does not make it a shape.
_CARRIERS = frozenset(
    "unary binary cast select identity reshape squeeze unsqueeze concat gather transpose if loop "
    "reduce".split())


def _forget_unused_symbols(graph: Graph) -> None:
    """Drops element symbols of integer inputs that no shape depends on, so that those inputs
    are ordinary data."""
    candidates = {s for s, info in graph.symbols.items() if info.kind == "value"}
    if not candidates:
        return
    unused = candidates - _needed(graph)
    if not unused:
        return
    for g in _all_graphs(graph):
        for v in g.values():
            if v.content is not None and _symbols_in(v.content) & unused:
                v.content = None
    for s in unused:
        del graph.symbols[s]


def _all_graphs(graph: Graph) -> Iterable[Graph]:
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from _all_graphs(sub)


def _symbols_in(content: Any) -> set[str]:
    out: set[str] = set()
    for d in np.asarray(content, dtype=object).flat:
        out |= D.symbols(d)
    return out


def _needed(graph: Graph) -> set[str]:
    needed: set[str] = set()
    for g in _all_graphs(graph):
        for v in g.values():
            for d in v.dims:
                needed |= D.symbols(d)
        for node in g.nodes:
            if node.op not in _CARRIERS:
                for v in node.present_inputs():
                    if v.content is not None:
                        needed |= _symbols_in(v.content)
    return needed
