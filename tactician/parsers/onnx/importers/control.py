"""If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir import dtypes as T
from ....ir.graph import SymbolInfo, TensorType, Value
from ..context import Context, axis_of
from ..errors import NodeProblem, Poisoned
from ..node import OnnxNode
from ..scope import Scope
from ..subgraph import Body, import_body, union
from ..table import importer

# --- If ---------------------------------------------------------------------------------------


@importer("If", note="folded where the condition is known while parsing")
def if_(c: Context, n: OnnxNode) -> list[Value]:
    names = ("then_branch", "else_branch")
    branches = [n.attr(name) for name in names]
    known = n[0].known_ints()
    if known is not None and known.size == 1 and not isinstance(known.reshape(-1)[0], D.Dim):
        taken = 0 if known.reshape(-1)[0] else 1
        return _inline(c, branches[taken], f"{names[taken]} of node {n.index} '{n.name}'")
    bodies: list[Body] = []
    for name, proto in zip(names, branches, strict=True):
        try:
            bodies.append(Body(c, proto, f"{name} of node {n.index} '{n.name}'"))
        except Poisoned:
            continue  # the other branch may have problems to report, too
    if len(bodies) < 2:
        raise Poisoned(n.name)
    if any(a.rank != b.rank for a, b in zip(bodies[0].outputs, bodies[1].outputs, strict=False)):
        return _branch_of_known_rank(c, n, branches)
    outer = union(*bodies)
    for body in bodies:
        body.take_captures(outer)
    cond = c.boolean(c.scalar(n[0]))
    return c.ops("if", cond, *outer, subgraphs=[b.graph for b in bodies])


def _inline(c: Context, branch: object, label: str) -> list[Value]:
    """The taken branch's nodes, put in place of the If."""
    scope = Scope(c.graph, c.scope)
    inner = Context(c.state, scope, c.opsets, (*c.stack, label), c.attributes)
    return import_body(inner, branch)


def _branch_of_known_rank(c: Context, n: OnnxNode, branches: list[Any]) -> list[Value]:
    """Exporters write ``x.squeeze(axis)`` of unknown size as "if it is 1: Squeeze, else x". Ranks
    must be known here, so the squeeze is taken, and checked at run time."""
    kinds = [[node.op_type for node in b.node if node.op_type != "Constant"] for b in branches]
    for taken, other in ((0, 1), (1, 0)):
        if kinds[taken] == ["Squeeze"] and kinds[other] in ([], ["Identity"]):
            cond = c.boolean(n[0])
            message = (f"{n.source} squeezes a dimension that is not 1; its rank would differ, "
                       "which is not supported")
            c.ops("assertion", cond if taken == 0 else c.unary("not", cond), message=message)
            c.state.warnings.append(
                f"node {n.index} '{n.name}' (If): its branches differ in rank; assuming that the "
                "dimension squeezed is 1 (checked at run time)")
            return _inline(c, branches[taken], f"branch of node {n.index} '{n.name}'")
    raise NodeProblem("its branches give results of different rank; the condition must be known "
                      "while parsing", "UNSUPPORTED_NODE_DYNAMIC")


# --- Loop -------------------------------------------------------------------------------------


def _scalar_type(dt: T.DType) -> TensorType:
    return TensorType(dt, ())


def _weaker(a: Value, b: Value, name: str, graph_name: str) -> TensorType:
    """The type of a carried value that starts as ``a`` and becomes ``b``."""
    if a.dtype is not b.dtype or a.rank != b.rank:
        raise NodeProblem(
            f"{name!r} is {a.dtype}{list(a.dims)} when the loop starts but "
            f"{b.dtype}{list(b.dims)} after an iteration; type and rank must stay")
    dims = tuple(
        x if x == y else D.sym(f"{name}.{i}".replace(" ", "_"))
        for i, (x, y) in enumerate(zip(a.dims, b.dims, strict=True)))
    return TensorType(a.dtype, dims)


def _fixed_point(
    c: Context, proto: object, label: str, fixed: Sequence[TensorType], carried: Sequence[Value]
) -> Body:
    """Imports a loop's body, with carried types that hold in every iteration."""
    types = [TensorType(v.dtype, v.dims) for v in carried]
    for _ in range(4):
        before, warned = len(c.state.problems), len(c.state.warnings)
        body = Body(c, proto, label, [*fixed, *types])
        inner = body.graph.inputs[len(fixed):]
        after = body.outputs[1:1 + len(types)]
        new = [_weaker(a, b, a.name, body.graph.name) for a, b in zip(inner, after, strict=True)]
        if [t.shape for t in new] == [t.shape for t in types]:
            _declare_symbols(body)
            return body
        types = new
        del c.state.problems[before:], c.state.warnings[warned:]
    raise NodeProblem("shapes of its carried values do not settle")


def _declare_symbols(body: Body) -> None:
    for v in body.graph.inputs:
        for i, d in enumerate(v.dims):
            name = f"{v.name}.{i}".replace(" ", "_")
            if d == D.sym(name) and name not in body.graph.symbols:
                body.graph.symbols[name] = SymbolInfo(name, "dim", v.name, i)


@importer("Loop", note="tensors only")
def loop(c: Context, n: OnnxNode) -> list[Value]:
    proto = n.attr("body")
    trips, cond = n.get(0), n.get(1)
    carried = [n[i] for i in range(2, len(n))]
    label = f"body of node {n.index} '{n.name}'"
    body = _fixed_point(c, proto, label, [_scalar_type(T.i64), _scalar_type(T.b1)], carried)
    scans = len(body.outputs) - 1 - len(carried)
    if scans < 0:
        raise NodeProblem(f"its body has {len(body.outputs)} outputs; expected the condition, "
                          f"{len(carried)} carried values and the scan outputs")
    body.graph.outputs[0] = body.context.boolean(body.context.scalar(body.graph.outputs[0]))
    outer = union(body)
    body.take_captures(outer)
    return c.ops(
        "loop",
        None if trips is None else c.index(c.scalar(trips)),
        None if cond is None else c.boolean(c.scalar(cond)),
        *carried, *outer, subgraphs=[body.graph], carried=len(carried), scans=scans)


# --- Scan -------------------------------------------------------------------------------------


class _ScanSpec:
    """Axes and directions of a Scan, defaults filled in."""

    def __init__(self, n: OnnxNode, states: int, scans_in: int, outputs: int):
        scans_out = outputs - states
        self.in_axes = n.ints("scan_input_axes", (0,) * scans_in)
        self.in_back = n.ints("scan_input_directions", (0,) * scans_in)
        self.out_axes = n.ints("scan_output_axes", (0,) * scans_out)
        self.out_back = n.ints("scan_output_directions", (0,) * scans_out)


@importer("Scan", since=9)
def scan(c: Context, n: OnnxNode) -> list[Value]:
    count = n.attr("num_scan_inputs")
    states = [n[i] for i in range(len(n) - count)]
    sequences = [n[i] for i in range(len(n) - count, len(n))]
    return _scan(c, n, states, sequences)


@importer("Scan", since=8, until=8)
def scan_8(c: Context, n: OnnxNode) -> list[Value]:
    """Opset 8 has a batch axis in front; one loop runs each batch item in turn."""
    count = n.attr("num_scan_inputs")
    back = n.ints("directions", (0,) * count)
    if n.has(0):
        raise NodeProblem("sequence_lens is not supported; re-export with opset 9 or newer",
                          "UNSUPPORTED_NODE_INPUT")
    values = [n[i] for i in range(1, len(n))]
    batch = values[0].dims[0]
    if isinstance(batch, D.Dim):
        raise NodeProblem("Scan of opset 8 needs a static batch", "UNSUPPORTED_NODE_DYNAMIC")
    rows: list[list[Value]] = []
    for b in range(batch):
        item = [c.squeeze(c.cut(v, 0, b, b + 1), [0]) for v in values]
        states, sequences = item[: len(item) - count], item[len(item) - count:]
        rows.append(_scan(c, n, states, sequences, back))
    return [c.concat([c.unsqueeze(row[k], [0]) for row in rows]) for k in range(len(rows[0]))]


def _scan(
    c: Context, n: OnnxNode, states: list[Value], sequences: list[Value],
    back: tuple[int, ...] | None = None,
) -> list[Value]:
    proto = n.attr("body")
    spec = _ScanSpec(n, len(states), len(sequences), len(proto.output))
    if back is not None:
        spec.in_back = back
    moved = [_axis_first(c, v, a) for v, a in zip(sequences, spec.in_axes, strict=True)]
    if not moved:
        raise NodeProblem("needs at least one scan input")
    trips = c.scalar(c.shape_of(moved[0], [0]))
    label = f"body of node {n.index} '{n.name}'"
    body = _scan_body(c, proto, label, states, moved, spec.in_back)
    outer = [*moved, *union(body)]
    body.take_captures([v for v in outer if v not in moved])
    results = c.ops("loop", trips, None, *states, *outer, subgraphs=[body.graph],
                    carried=len(states), scans=len(proto.output) - len(states))
    out = results[: len(states)]
    for v, axis, reverse in zip(results[len(states):], spec.out_axes, spec.out_back, strict=True):
        if reverse:
            v = c.op("strided_slice", v, c.ints([-1]), c.ints([-(2**63) + 1]), c.ints([0]),
                     c.ints([-1]))
        out.append(_axis_last(c, v, axis))
    return out


def _axis_first(c: Context, v: Value, axis: int) -> Value:
    axis = axis_of(axis, v.rank)
    return c.transpose(v, [axis, *(i for i in range(v.rank) if i != axis)])


def _axis_last(c: Context, v: Value, axis: int) -> Value:
    axis = axis_of(axis, v.rank)
    order = list(range(1, v.rank))
    return c.transpose(v, [*order[:axis], 0, *order[axis:]])


def _scan_body(
    c: Context, proto: object, label: str, states: list[Value], sequences: list[Value],
    back: Sequence[int],
) -> Body:
    slices = [TensorType(v.dtype, v.dims[1:]) for v in sequences]
    types = [TensorType(v.dtype, v.dims) for v in states]
    for _ in range(4):
        body = Body(c, proto, label, [*types, *slices])
        inner, after = body.graph.inputs[: len(types)], body.outputs[: len(types)]
        new = [_weaker(a, b, a.name, body.graph.name) for a, b in zip(inner, after, strict=True)]
        if [t.shape for t in new] == [t.shape for t in types]:
            break
        types = new
    else:
        raise NodeProblem("shapes of its state values do not settle")
    _declare_symbols(body)
    _as_loop_body(body, sequences, len(states), back)
    return body


def _as_loop_body(body: Body, sequences: list[Value], states: int, back: Sequence[int]) -> None:
    graph, b = body.graph, body.context
    slices = graph.inputs[states:]
    step, cond = Value("iteration", T.i64, ()), Value("condition", T.b1, ())
    whole = []
    for v in sequences:
        stand_in = Value(v.name, v.dtype, v.dims)
        whole.append(stand_in)
    start = len(graph.nodes)
    for v, stand_in, reverse in zip(slices, whole, back, strict=True):
        index = step
        if reverse:
            last = b.sub(b.scalar(b.shape_of(stand_in, [0])), b.const(1, T.i64))
            index = b.sub(last, step)
        graph.replace_uses(v, b.op("gather", stand_in, index, axis=0))
    fresh = graph.nodes[start:]
    graph.nodes = fresh + graph.nodes[:start]
    graph.inputs = [step, cond, *graph.inputs[:states], *whole]
    graph.outputs = [b.op("identity", b.const(np.True_)), *graph.outputs]
