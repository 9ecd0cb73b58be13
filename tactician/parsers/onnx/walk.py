"""Walks the nodes of a graph or function body and imports them one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ...ir.graph import Value
from ...ops.registry import OpError
from . import table
from .context import Context
from .errors import ImportProblem, NodeProblem, Poisoned, Problem, Unsupported
from .node import OnnxNode
from .scope import POISON, Scope

MAX_DEPTH = 64  # of nested function calls and subgraphs: recursion means a damaged model


def canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def import_nodes(c: Context, nodes: Sequence[Any], top_level: bool = False) -> None:
    """Imports every node; failures are recorded and the rest goes on."""
    for index in _order(c, nodes):
        proto = nodes[index]
        before = len(c.state.problems)
        ok = _import_one(c, proto, index)
        if top_level:
            c.state.outcome[index] = ok and len(c.state.problems) == before


def _order(c: Context, nodes: Sequence[Any]) -> Iterable[int]:
    """Node indices in data-flow order; ONNX demands it of the file, but some exporters don't."""
    producer: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in node.output:
            if name:
                producer.setdefault(name, i)
    if all(producer.get(name, -1) < i for i, node in enumerate(nodes) for name in _reads(node)):
        return range(len(nodes))
    needs = [{producer[r] for r in _reads(n) if r in producer} for n in nodes]
    order: list[int] = []
    done: set[int] = set()
    waiting = list(range(len(nodes)))
    while waiting:
        ready = [i for i in waiting if needs[i] <= done]
        if not ready:
            _report_cycle(c, nodes, waiting, needs)
            break
        order += ready
        done.update(ready)
        waiting = [i for i in waiting if i not in done]
    return order


def _report_cycle(
    c: Context, nodes: Sequence[Any], waiting: list[int], needs: list[set[int]]
) -> None:
    stuck = set(waiting)
    node, seen = waiting[0], []
    while node not in seen:
        seen.append(node)
        node = min(needs[node] & stuck)
    cycle = seen[seen.index(node):]
    for i in waiting:
        for name in nodes[i].output:
            if name and not c.scope.defines(name):
                c.scope.define(name, POISON)
    names = " → ".join(f"{i} '{nodes[i].name}' ({nodes[i].op_type})" for i in [*cycle, cycle[0]])
    report(c, nodes[cycle[0]], cycle[0], NodeProblem(
        f"the graph has a cycle: {names}; ONNX graphs must be acyclic", "INVALID_GRAPH"))


def _reads(node: Any) -> Iterable[str]:
    """Names a node reads, those read by its subgraphs included."""
    yield from (n for n in node.input if n)
    for attr in node.attribute:
        for graph in [attr.g, *attr.graphs]:
            for inner in graph.node:
                yield from _reads(inner)
            yield from (o.name for o in graph.output)


def _import_one(c: Context, proto: Any, index: int) -> bool:
    """Imports a node; returns whether that works, or would if its inputs were there. Never raises
    for a fault of the model."""
    c.emitted, known = [], False
    try:
        results = _results(c, proto, index)
        for name, value in zip(proto.output, results, strict=False):
            c.scope.define(name, POISON if value is None else value)
        if any(name and not c.scope.defines(name) for name in proto.output):
            raise Unsupported(
                f"output {len(results)} is asked for, but only {len(results)} can be computed"
            )
        return True
    except Poisoned:
        known = _check_known(c, proto, index)
    except (ImportProblem, OpError) as e:
        report(c, proto, index, e)
    except RecursionError:
        report(c, proto, index, NodeProblem("functions or subgraphs are nested without end"))
    except Exception as e:  # a defect of an importer must not hide the model's other problems
        defect = ImportProblem(f"{type(e).__name__}: {e}", "INTERNAL_ERROR")
        report(c, proto, index, defect.with_traceback(e.__traceback__))
    for name in proto.output:
        if name and not c.scope.defines(name):
            c.scope.define(name, POISON)
    return known


def _results(c: Context, proto: Any, index: int) -> Sequence[Value | None]:
    domain = canonical(proto.domain)
    opset = _opset(c, domain, proto)
    inputs = _inputs(c, proto)
    node = OnnxNode(proto, index, opset, inputs, c.attributes)
    c.source = node.source if not c.stack else f"{node.source} in {' / '.join(c.stack)}"
    local = find_function(c, proto)
    if local is not None:
        from .functions import call_local

        return call_local(c, node, local)
    if c.state.plugins is not None and c.state.plugins.override:
        plugin = _call_plugin(c, node)
        if plugin is not None:
            return plugin
    row = table.find(domain, proto.op_type, opset)
    if row is not None:
        result = row.fn(c, node)
        results: list[Any] = [result] if isinstance(result, Value) else list(result)
        _name_layers(c, node, results)
        _name_outputs(node, results)
        _warn_unused(c, node)
        return results
    from .functions import call_schema

    expanded = call_schema(c, node, domain)
    if expanded is not None:
        return expanded
    plugin = _call_plugin(c, node)
    if plugin is not None:
        return plugin
    raise Unsupported(unknown_reason(domain, proto.op_type, opset))


def _inputs(c: Context, proto: Any) -> list[Any]:
    """Resolves every input name before failing on one, so that all missing ones are named."""
    values: list[Any] = []
    missing: list[str] = []
    poisoned: Poisoned | None = None
    for name in proto.input:
        try:
            values.append(c.scope.lookup(name) if name else None)
        except Poisoned as e:
            poisoned = e
        except NodeProblem:
            missing.append(name)
    if missing:
        raise NodeProblem(
            f"reads {', '.join(map(repr, missing))}, which no node, input or initializer "
            "provides", "INVALID_GRAPH")
    if poisoned is not None:
        raise poisoned
    return values


def _opset(c: Context, domain: str, proto: Any) -> int:
    if domain in c.opsets:
        return c.opsets[domain]
    if domain == "":
        raise NodeProblem("the model does not import the default operator set; "
                          "add opset_import {domain: '', version: N}")
    return 1


def unknown_reason(domain: str, op: str, opset: int) -> str:
    """Why an operator has no importer, and what to do."""
    where = domain or "ai.onnx"
    known = table.versions(domain, op)
    if known:
        return (f"{where}.{op} at opset {opset} is not supported (known: {', '.join(known)}); "
                "convert the model to a newer opset")
    return (f"no importer for operator {where}.{op}, no function body, and no plugin called "
            f"{op!r}; register a plugin with that name, or replace the operator")


def find_function(c: Context, proto: Any) -> Any:
    """The model-local function a node calls, or None."""
    domain = canonical(proto.domain)
    overload = getattr(proto, "overload", "")
    functions = c.state.functions
    return functions.get((domain, proto.op_type, overload))


def is_known(c: Context, proto: Any) -> bool:
    """Whether there is any way to import the node's operator."""
    domain = canonical(proto.domain)
    opset = c.opsets.get(domain, 1)
    if find_function(c, proto) is not None or table.find(domain, proto.op_type, opset):
        return True
    from .functions import schema_of

    schema = schema_of(proto.op_type, opset, domain)
    if schema is not None and (schema.has_function or schema.has_context_dependent_function):
        return True
    return find_plugin(c, proto) is not None


def _check_known(c: Context, proto: Any, index: int) -> bool:
    """A node behind a failed one is still reported if its operator is unknown."""
    if is_known(c, proto):
        return True
    domain = canonical(proto.domain)
    reason = unknown_reason(domain, proto.op_type, c.opsets.get(domain, 1))
    report(c, proto, index, Unsupported(reason))
    return False


def find_plugin(c: Context, proto: Any) -> Any:
    return None if c.state.plugins is None else c.state.plugins.find(proto)


def _call_plugin(c: Context, node: OnnxNode) -> Sequence[Value] | None:
    creator = find_plugin(c, node.proto)
    if creator is None:
        return None
    results = c.state.plugins.call(c, node, creator)
    _name_layers(c, node, results)
    _name_outputs(node, results)
    return results


# --- names and reports --------------------------------------------------------------------


def _name_layers(c: Context, node: OnnxNode, results: Sequence[Any]) -> None:
    """The layer that computes output 0 gets the node's name, the others derived ones."""
    first = results[0] if results else None
    producer = first.producer if isinstance(first, Value) else None
    main = next((x for _, x in c.emitted if producer in (x, *getattr(x, "_nodes", ()))), None)
    for op, layer in c.emitted:
        layer.name = c.state.unique(node.name if layer is main else f"{node.name}/{op}")
    if main is not None and not c.stack:
        c.state.layers.setdefault(node.name, main)
    c.emitted = []


def _name_outputs(node: OnnxNode, results: Sequence[Any]) -> None:
    for name, value in zip(node.proto.output, results, strict=False):
        if isinstance(value, Value) and name and value.producer is not None \
                and "onnx_name" not in value.meta:
            value.name = name
            value.meta["onnx_name"] = name


def _warn_unused(c: Context, node: OnnxNode) -> None:
    unused = sorted(set(node.attributes) - node.used)
    if unused:
        c.state.warnings.append(
            f"node {node.index} '{node.name}' ({node.op}): attributes without influence: "
            f"{', '.join(unused)}"
        )


def report(c: Context, proto: Any, index: int, error: Exception) -> None:
    """Records a node's problem, with its inputs and the place that noticed it."""
    code = error.code if isinstance(error, ImportProblem) else "INVALID_NODE"
    where = "".join(f" in {s}" for s in reversed(c.stack))
    inputs = ", ".join(_describe_input(c.scope, n) for n in proto.input) or "none"
    op = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
    reason = str(error).split(f"{c.source}: ", 1)[-1] if c.source else str(error)
    text = f"node {index} '{proto.name}' ({op}){where}: {reason}\n    inputs: {inputs}"
    c.state.problems.append(Problem(
        code, text, index, proto.name, proto.op_type, c.stack, _origin(error)))


def _describe_input(scope: Scope, name: str) -> str:
    if not name:
        return "-"
    try:
        found = scope.lookup(name)
    except (Poisoned, NodeProblem):
        return f"{name}: ?"
    if isinstance(found, list):
        return f"{name}: sequence of {len(found)}"
    const = " const" if found.const is not None else ""
    shape = "?" if found.shape is None else ", ".join(map(str, found.shape))
    return f"{name}: {found.dtype}[{shape}]{const}"


def _origin(error: BaseException) -> tuple[str, int, str]:
    tb = error.__traceback__
    if tb is None:
        frame = sys._getframe(2)
        return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    while tb.tb_next is not None:
        tb = tb.tb_next
    return tb.tb_frame.f_code.co_filename, tb.tb_lineno, tb.tb_frame.f_code.co_name


