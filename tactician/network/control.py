"""Turns recorded loops and conditionals into ``loop`` and ``if`` nodes with subgraphs.

A network records them flat (see `tactician.network.boundary`). The innermost are lowered first:
what depends on a loop's recurrences and iterators, or what only a branch of a conditional needs,
is cloned into a subgraph, and every outer value it reads becomes an explicit capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..ir import dtypes as T
from ..ir.graph import Graph, Node, Value
from ..ops.registry import infer_node
from ..support.errors import UsageError

_ENTRY = {"recurrence", "iterator", "conditional_input"}
_EXIT = {"loop_output", "conditional_output"}
_MARKERS = _ENTRY | _EXIT | {"trip_limit", "condition"}


def lower_control(graph: Graph) -> None:
    """Lowers every recorded loop and conditional of ``graph``, in place, and orders it.

    Raises:
        UsageError: If a loop or conditional is incomplete, naming it.
    """
    for node in graph.nodes:
        for sub in node.subgraphs:
            lower_control(sub)
    pending = {n.attrs.scope for n in graph.nodes if n.op in _MARKERS}
    lowered = bool(pending)
    while pending:
        scope = _innermost(graph, pending)
        markers = [n for n in graph.nodes if n.op in _MARKERS and n.attrs.scope == scope]
        if any(n.op.startswith("cond") for n in markers):
            _lower_conditional(graph, markers)
        else:
            _lower_loop(graph, markers)
        pending.discard(scope)
    graph.toposort()
    if lowered:
        for node in graph.nodes:
            infer_node(node)
            if node.error:
                raise UsageError(node.error)


def _inside(graph: Graph, scope: int) -> set[Node]:
    """Nodes that depend on what enters the scope, up to what leaves it."""
    work = [n for n in graph.nodes if n.op in _ENTRY and n.attrs.scope == scope]
    found: set[Node] = set(work)
    while work:
        for v in work.pop().outputs:
            for user in v.users:
                leaves = user.op in _MARKERS and user.attrs.scope == scope
                if user not in found and not leaves:
                    found.add(user)
                    work.append(user)
    return found


def _innermost(graph: Graph, pending: set[int]) -> int:
    """A scope that holds no other one."""
    for scope in sorted(pending, reverse=True):
        others = {n.attrs.scope for n in _inside(graph, scope) if n.op in _MARKERS}
        if others <= {scope}:
            return scope
    raise UsageError("loops and conditionals overlap without one containing the other; pass values"
                     " between them through their output layers")


class _Body:
    """A subgraph being cloned out of a graph.

    Attributes:
        graph: The subgraph.
        captures: Outer values it reads, in the order of its last inputs.
    """

    def __init__(self, name: str, inside: set[Node], inputs: Iterable[Value] = ()):
        self.graph = Graph(name, list(inputs))
        self.inside = inside
        self.captures: dict[Value, Value] = {}

    def input(self, like: Value, name: str = "") -> Value:
        v = Value(name or like.name, like.dtype, like.shape)
        self.graph.inputs.append(v)
        return v

    def copy(self, targets: Sequence[Value], known: dict[Value, Value]) -> list[Value]:
        """The twins of ``targets``; nodes they need are cloned. ``known`` maps values that have
        twins already and grows."""
        for node in self._needed(targets, known):
            ins = [None if v is None else self._twin(v, known) for v in node.inputs]
            new = Node(node.op, ins, node.attrs, node.name)
            new.source, new.meta = node.source, dict(node.meta)
            new.subgraphs = tuple(g.clone()[0] for g in node.subgraphs)
            for v in node.outputs:
                out = Value(v.name, v.dtype, v.shape)
                out.content, out.producer, out.index = v.content, new, v.index
                out.meta = dict(v.meta)
                new.outputs.append(out)
                known[v] = out
            self.graph.nodes.append(new)
        return [self._twin(v, known) for v in targets]

    def _needed(self, targets: Sequence[Value], known: dict[Value, Value]) -> list[Node]:
        """Nodes to clone, producers first."""
        order: dict[Node, None] = {}
        active: set[Node] = set()
        stack: list[tuple[Node, bool]] = []
        for v in targets:
            self._push(v, known, stack)
        while stack:
            node, done = stack.pop()
            if done:
                order.setdefault(node)
                active.discard(node)
                continue
            if node in order:
                continue
            if node in active:
                raise UsageError(f"the network has a cycle through {node.describe()}")
            active.add(node)
            stack.append((node, True))
            for v in node.present_inputs():
                if v.producer not in order:
                    self._push(v, known, stack)
        return list(order)

    def _push(self, v: Value, known: dict[Value, Value], stack: list[tuple[Node, bool]]) -> None:
        if v not in known and v.producer is not None and v.producer in self.inside:
            stack.append((v.producer, False))

    def _twin(self, v: Value, known: dict[Value, Value]) -> Value:
        if v in known:
            return known[v]
        if v.const is not None:
            new = self.graph.constant(v.const, v.name)
            new.meta = dict(v.meta)
            known[v] = new
            return new
        if v not in self.captures:
            self.captures[v] = self.input(v)
        return self.captures[v]


def _lower_loop(graph: Graph, markers: list[Node]) -> None:
    label = markers[0].attrs.label
    by_op: dict[str, list[Node]] = {}
    for n in markers:
        by_op.setdefault(n.op, []).append(n)
    limits = {n.attrs.kind: n for n in by_op.get("trip_limit", [])}
    if not limits:
        raise UsageError(f"loop {label!r} has no trip limit; add one with add_trip_limit")
    states = by_op.get("recurrence", [])
    for n in states:
        if len(n.inputs) < 2 or n.inputs[1] is None:
            raise UsageError(f"{n.describe()} of loop {label!r} has no next value; give it with"
                             " set_input(1, tensor)")
    body = _LoopBody(graph, label, markers, states, by_op.get("iterator", []))
    exits = by_op.get("loop_output", [])
    scans = [n for n in exits if not _is_last_state(n, states)]
    nexts = body.run([n.inputs[1] for n in states] + [n.inputs[0] for n in scans])
    going, starts = _loop_condition(graph, body, limits.get("while"), nexts[:len(states)])
    body.graph.outputs = [going, *nexts]
    body.keep_assertions()
    trips = limits["count"].inputs[0] if "count" in limits else None
    if trips is not None and trips.dtype is not T.i64:  # the op, like ONNX's, counts in i64
        trips = ops.create(graph, "cast", [trips], label, to=T.i64).outputs[0]
    node = ops.create(
        graph, "loop",
        [trips, starts, *(n.inputs[0] for n in states), *body.captures],
        label, subgraphs=(body.graph,), carried=len(states), scans=len(scans))
    for n in exits:
        if n in scans:
            result = _joined(graph, n, node.outputs[len(states) + scans.index(n)])
        else:
            result = node.outputs[_state_index(n, states)]
        _replace(graph, n.outputs[0], result)
    _discard(graph, markers)


def _state_index(n: Node, states: list[Node]) -> int:
    v = n.inputs[0]
    assert v is not None
    return next((i for i, s in enumerate(states) if s.outputs[0] is v), -1)


def _is_last_state(n: Node, states: list[Node]) -> bool:
    return n.attrs.kind == "last_value" and _state_index(n, states) >= 0


class _LoopBody(_Body):
    """The body of a loop: iteration number, condition, recurrences, captures."""

    def __init__(self, outer: Graph, label: str, markers: list[Node], states: list[Node],
                 iterators: list[Node]):
        super().__init__(label, _inside(outer, markers[0].attrs.scope) - set(markers))
        self.label, self.states, self.iterators = label, states, iterators
        self.outer = outer
        self.iteration = Value("iteration", T.i64, ())
        self.condition = Value("condition", T.b1, ())
        self.graph.inputs += [self.iteration, self.condition]
        self.carried = [self.input(n.outputs[0]) for n in states]

    def run(self, targets: Sequence[Value | None]) -> list[Value]:
        """Twins of values of one iteration."""
        known = dict(zip((n.outputs[0] for n in self.states), self.carried, strict=True))
        return self.at(self, known, self.iteration, targets)

    def keep_assertions(self) -> None:
        """Clones assertions inside, which nothing reads."""
        checks = [n for n in self.outer.nodes if n in self.inside and n.op == "assertion"]
        for n in checks:
            twin = Node(n.op, self.run(n.inputs), n.attrs, n.name)
            twin.source = n.source
            self.graph.nodes.append(twin)
        self.outer.remove_all(checks)

    def at(self, into: _Body, known: dict[Value, Value], iteration: Value | None,
           targets: Sequence[Value | None]) -> list[Value]:
        """Clones what ``targets`` need into a subgraph, for the iteration of a given number
        (None: the first)."""
        values = [v for v in targets if v is not None]
        needed = _needs(values, self.inside)
        for n in self.iterators:
            if n.outputs[0] in needed:
                known[n.outputs[0]] = self._slice(into, n, known, iteration)
        return into.copy(values, known)

    def _slice(self, into: _Body, n: Node, known: dict[Value, Value],
               iteration: Value | None) -> Value:
        source, a = n.inputs[0], n.attrs
        assert source is not None
        x, g = into._twin(source, known), into.graph
        if iteration is None:
            iteration = g.constant(np.zeros((), np.int64), "first")
        if a.reverse or iteration is not self.iteration:
            size = _one(g, "gather", [_one(g, "shape", [x], n.name), g.constant(
                np.asarray(a.axis, np.int64))], n.name, axis=0)
            last = _one(g, "binary", [size, g.constant(np.ones((), np.int64))], n.name, fn="sub")
            if iteration is not self.iteration:  # may be asked for one past the end
                iteration = _one(g, "binary", [iteration, last], n.name, fn="min")
            if a.reverse:
                iteration = _one(g, "binary", [last, iteration], n.name, fn="sub")
        return _one(g, "gather", [x, iteration], n.name, axis=a.axis)


def _one(graph: Graph, op: str, inputs: Sequence[Value | None], name: str,
         **attrs: Any) -> Value:
    return ops.create(graph, op, inputs, name, **attrs).outputs[0]


def _needs(values: Sequence[Value], inside: set[Node]) -> set[Value]:
    """All values inside that ``values`` depend on, themselves included."""
    seen: set[Value] = set()
    work = list(values)
    while work:
        v = work.pop()
        if v in seen:
            continue
        seen.add(v)
        if v.producer is not None and v.producer in inside:
            work.extend(v.producer.present_inputs())
    return seen


class _Inline(_Body):
    """Clones into the outer graph itself: outer values stand for themselves."""

    def __init__(self, graph: Graph, inside: set[Node]):
        super().__init__("", inside)
        self.graph = graph

    def _twin(self, v: Value, known: dict[Value, Value]) -> Value:
        return known.get(v, v)


def _loop_condition(graph: Graph, body: _LoopBody, limit: Node | None,
                    nexts: Sequence[Value]) -> tuple[Value, Value | None]:
    """The condition that the body hands on, and the one the loop starts with.

    A WHILE limit is tested before each iteration, on the values it starts with: so before the
    loop on the initial ones, and at an iteration's end on the next ones.
    """
    if limit is None:
        return _one(body.graph, "identity", [body.condition], body.label), None
    condition = limit.inputs[0]
    assert condition is not None
    states = [n.outputs[0] for n in body.states]
    initial = [n.inputs[0] for n in body.states]
    known = {s: v for s, v in zip(states, initial, strict=True) if v is not None}
    (starts,) = body.at(_Inline(graph, body.inside), known, None, [condition])
    step = body.graph.constant(np.ones((), np.int64))
    after = _one(body.graph, "binary", [body.iteration, step], body.label, fn="add")
    again = dict(zip(states, nexts, strict=True))
    (going,) = body.at(body, again, after, [condition])
    return going, starts


def _joined(graph: Graph, n: Node, scan: Value) -> Value:
    """The values of all iterations as the loop output wants them."""
    a = n.attrs
    v = n.inputs[0]
    assert v is not None
    if a.kind == "last_value":
        index = graph.constant(np.asarray([-1], np.int64))
        last = _one(graph, "strided_slice", [
            scan, index, graph.constant(np.asarray([np.iinfo(np.int64).max], np.int64)),
            graph.constant(np.zeros(1, np.int64)), None], n.name)
        return _one(graph, "squeeze", [last, graph.constant(np.zeros(1, np.int64))], n.name)
    if a.kind == "reverse":
        scan = _one(graph, "strided_slice", [
            scan, graph.constant(np.asarray([-1], np.int64)),
            graph.constant(np.asarray([np.iinfo(np.int64).min], np.int64)),
            graph.constant(np.zeros(1, np.int64)), graph.constant(np.asarray([-1], np.int64))],
            n.name)
    if a.axis:
        rest = [i + 1 for i in range(v.rank)]
        scan = _one(graph, "transpose", [scan], n.name, perm=(*rest[:a.axis], 0, *rest[a.axis:]))
    return scan


def _lower_conditional(graph: Graph, markers: list[Node]) -> None:
    label = markers[0].attrs.label
    condition = next((n.inputs[0] for n in markers if n.op == "condition"), None)
    if condition is None:
        raise UsageError(f"conditional {label!r} has no condition; set it with set_condition")
    exits = [n for n in markers if n.op == "conditional_output"]
    entries = [n for n in markers if n.op == "conditional_input"]
    reached = _inside(graph, markers[0].attrs.scope) - set(markers)
    bodies: list[_Body] = []
    captures: dict[Value, None] = {}
    for branch in (0, 1):
        targets = [n.inputs[branch] for n in exits]
        inside = reached | _exclusive(graph, [v for v in targets if v], exits)
        body = _Body(label, inside)
        known: dict[Value, Value] = {}
        for n in entries:
            source = n.inputs[0]
            assert source is not None
            if n.outputs[0] in _needs([v for v in targets if v], inside):
                known[n.outputs[0]] = body._twin(source, known)
        body.graph.outputs = body.copy([v for v in targets if v], known)
        captures.update(dict.fromkeys(body.captures))
        bodies.append(body)
    for body in bodies:  # both branches take all captures, in one order
        body.graph.inputs = [
            body.captures.get(v) or Value(v.name, v.dtype, v.shape) for v in captures]
    node = ops.create(graph, "if", [condition, *captures], label,
                      subgraphs=[b.graph for b in bodies])
    for n, result in zip(exits, node.outputs, strict=True):
        _replace(graph, n.outputs[0], result)
    for n in entries:  # readers outside the branches
        source = n.inputs[0]
        assert source is not None
        _replace(graph, n.outputs[0], source)
    _discard(graph, markers)


def _exclusive(graph: Graph, targets: Sequence[Value], exits: list[Node]) -> set[Node]:
    """Nodes that only these branch results need; they run only if the branch does."""
    kept = {id(v) for v in graph.outputs}
    allowed = set(exits)
    found: set[Node] = set()
    work = [v.producer for v in targets if v.producer is not None]
    while work:
        n = work.pop()
        if n in found or n.op in _MARKERS:
            continue
        users = {u for v in n.outputs for u in v.users}
        if users <= found | allowed and not any(id(v) in kept for v in n.outputs):
            found.add(n)
            work.extend(v.producer for v in n.present_inputs() if v.producer is not None)
    return found


def _replace(graph: Graph, old: Value, new: Value) -> None:
    was_output = any(v is old for v in graph.outputs)
    graph.replace_uses(old, new)
    if was_output:  # I/O names and hints stay
        new.name = old.name
        new.meta.update(old.meta)


def _discard(graph: Graph, markers: list[Node]) -> None:
    """Removes the markers and what nothing reads any more."""
    kept = {id(v) for v in graph.outputs}
    graph.remove_all(markers)
    while True:
        dead = [n for n in graph.nodes
                if n.outputs and not any(v.users or id(v) in kept for v in n.outputs)
                and n.op not in _MARKERS and n.op != "assertion"]
        if not dead:
            return
        graph.remove_all(dead)
