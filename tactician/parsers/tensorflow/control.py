"""Control flow of TensorFlow 1.x: Switch and Merge, and while-loops made of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.graph import Graph, TensorType, Value
from ..onnx.errors import NodeProblem, Poisoned, Unsupported
from ..onnx.scope import Scope
from .arrays import ArrayHandle, EmptyArray
from .context import Context
from .walk import Nodes, Walker, data_inputs, enter


@dataclass
class Variable:
    """One loop variable: names of the nodes that carry it."""

    merge: str
    enter: str
    next: str
    switch: str = ""


@dataclass
class Frame:
    """One while-loop.

    Attributes:
        name: The frame's name.
        variables: Its loop variables.
        cond: The node that the LoopCond reads.
    """

    name: str
    variables: list[Variable] = field(default_factory=list)
    cond: str = ""


def find_loops(nodes: Nodes) -> dict[str, Frame]:
    """The while-loops of a graph by frame name."""
    loops: dict[str, Frame] = {}
    merges: dict[str, tuple[Frame, Variable]] = {}
    for node in nodes.by_name.values():
        if node.op not in ("Merge", "RefMerge"):
            continue
        ins = [nodes.by_name.get(nodes.split(i)[0]) for i in data_inputs(node)]
        kinds = {n.op: n for n in ins if n is not None}
        start, back = kinds.get("Enter"), kinds.get("NextIteration")
        if start is None or back is None:
            continue
        name = start.attr["frame_name"].s.decode()
        frame = loops.setdefault(name, Frame(name))
        v = Variable(node.name, start.name, back.name)
        frame.variables.append(v)
        merges[node.name] = (frame, v)
    for node in nodes.by_name.values():
        refs = data_inputs(node)
        if node.op == "Switch" and len(refs) == 2 and nodes.split(refs[0])[0] in merges:
            frame, v = merges[nodes.split(refs[0])[0]]
            v.switch = node.name
            cond = nodes.by_name.get(nodes.split(refs[1])[0])
            if cond is not None and cond.op == "LoopCond":
                frame.cond = data_inputs(cond)[0]
    return loops


def _frame_of_exit(nodes: Nodes, node: Any) -> tuple[Frame, int]:
    """The loop an Exit leaves, and which variable it takes along."""
    switch = nodes.split(data_inputs(node)[0])[0]
    for frame in nodes.loops.values():
        for k, v in enumerate(frame.variables):
            if v.switch == switch:
                return frame, k
    raise NodeProblem(f"it leaves no while-loop: {switch!r} is no Switch of a loop variable",
                      "INVALID_GRAPH")


def needs(w: Walker, node: Any) -> list[str]:
    """What a node depends on at its own level."""
    if node.op == "Exit":
        try:
            frame, _ = _frame_of_exit(w.nodes, node)
        except NodeProblem:
            return []
        enters = [w.nodes.by_name[v.enter] for v in frame.variables]
        return [data_inputs(n)[0] for n in enters]
    if node.op == "Enter":
        return []
    if node.op in ("Merge", "RefMerge"):
        return [r for s in _switches(w, node) for r in data_inputs(s)]
    if node.op == "Switch":
        pred = data_inputs(node)[1]
        return [] if w.branch is not None and w.branch[0] == pred else data_inputs(node)
    return data_inputs(node)


def special(w: Walker, node: Any) -> list[Any] | None:
    """Outputs of a control flow node, or None for any other node."""
    if node.op == "Exit":
        return [_exit(w, node)]
    if node.op == "Enter":
        return [w.outer(data_inputs(node)[0])]
    if node.op in ("Merge", "RefMerge"):
        return [_merge(w, node), w.c.const(0, w.c.named("i32"))]
    if node.op == "Switch":
        return _switch(w, node)
    if node.op in ("NextIteration", "LoopCond"):
        return [w.value(data_inputs(node)[0])]
    return None


# --- while --------------------------------------------------------------------------------


def _exit(w: Walker, node: Any) -> Any:
    frame, k = _frame_of_exit(w.nodes, node)
    if not frame.cond:
        raise NodeProblem(f"loop {frame.name!r} has no LoopCond", "INVALID_GRAPH")
    key = f"{frame.name} (loop)"
    if key not in w.results:
        label = f"while-loop '{frame.name}'"
        start = [w.value(data_inputs(w.nodes.by_name[v.enter])[0]) for v in frame.variables]

        def cond(outer: Walker, c: Context, values: Sequence[Any]) -> Value:
            given = {v.merge: [x, None] for v, x in zip(frame.variables, values, strict=True)}
            return Walker(c, w.nodes, outer, given).value(frame.cond)

        def body(outer: Walker, c: Context, values: Sequence[Any]) -> list[Any]:
            given = {v.switch: [x, x] for v, x in zip(frame.variables, values, strict=True)}
            given |= {v.merge: [x, None] for v, x in zip(frame.variables, values, strict=True)}
            inner = Walker(c, w.nodes, outer, given)
            back = [w.nodes.by_name[v.next] for v in frame.variables]
            inner.demand([inner.nodes.split(data_inputs(n)[0])[0] for n in back])
            return [inner.value(data_inputs(n)[0]) for n in back]

        w.results[key] = while_loop(w, label, start, cond, body)
    return w.results[key][k]


def while_loop(w: Walker, label: str, start: list[Any], cond: Any, body: Any) -> list[Any]:
    """Emits a loop.

    Args:
        w: Where.
        label: For error messages.
        start: What loop variables begin with: values, or arrays nothing was written to.
        cond: ``cond(walker around, context, variables)`` imports the condition.
        body: Imports an iteration, in the same way; gives the variables' next contents.

    Returns:
        What the variables end with.
    """
    c = w.c
    for _ in range(8):
        trial = _Iteration(w, label, start, cond, body)
        again = trial.first_writes(c, start)
        if again is None:
            break
        start = again
    else:
        raise NodeProblem(f"shapes of {label}'s variables do not settle")
    carried = [v for v in start if isinstance(v, Value)]
    first = c.boolean(c.scalar(cond(w, c, start)))
    results = c.ops("loop", None, first, *carried, *trial.captures, subgraphs=[trial.graph],
                    carried=len(carried), scans=0)
    it = iter(results)
    return [next(it) if isinstance(v, Value) else v for v in start]


class _Iteration:
    """One import of a loop's body and condition."""

    def __init__(self, w: Walker, label: str, start: list[Any], cond: Any, body: Any):
        self.label, self.start = label, start
        self.graph = Graph(label)
        self.scope = Scope(self.graph, w.c.scope)
        self.c = Context(w.c.state, self.scope, {}, (*w.c.stack, label))
        self.c.source = w.c.source
        scalar = [TensorType(self.c.named(t), ()) for t in ("i64", "b1")]
        types = [*scalar, *(TensorType(v.dtype, v.dims) for v in start if isinstance(v, Value))]
        names = ["iteration", "going", *(v.name for v in start if isinstance(v, Value))]
        for name, t in zip(names, types, strict=True):
            self.graph.inputs.append(Value(name, t.dtype, t.shape))
        own = iter(self.graph.inputs[2:])
        values = [next(own) if isinstance(v, Value) else enter(self.c, v) for v in start]
        before = len(w.c.state.problems)
        self.captures: list[Value] = []
        self.next = body(w, self.c, values)
        if len(w.c.state.problems) > before:
            raise Poisoned(label)
        if all(isinstance(n, Value) == isinstance(s, Value)
               for n, s in zip(self.next, start, strict=True)):
            self._finish(w, cond)

    def _finish(self, w: Walker, cond: Any) -> None:
        going = self.c.boolean(self.c.scalar(cond(w, self.c, self.next)))
        outputs = [going, *(v for v in self.next if isinstance(v, Value))]
        self.graph.outputs = [
            v if v.producer is not None and v.producer in self.graph.nodes
            and all(v is not o for o in outputs[:k]) else self.c.op("identity", v)
            for k, v in enumerate(outputs)
        ]
        self.captures = list(self.scope.captures)
        for outer in self.captures:
            self.graph.inputs.append(self.scope.captures[outer])

    def first_writes(self, c: Context, start: list[Any]) -> list[Any] | None:
        """Start values with arrays that the body writes to made tensors; None if there is nothing
        to change and the body is complete."""
        out = list(start)
        for k, (before, after) in enumerate(zip(start, self.next, strict=True)):
            if isinstance(before, EmptyArray) and isinstance(after, Value):
                out[k] = before.zeros(c, after.dims[1:])
            elif isinstance(before, Value) and isinstance(after, Value) and (
                    before.dtype is not after.dtype or before.rank != after.rank):
                raise NodeProblem(
                    f"a variable of {self.label} is {before!r} when it starts but {after!r} "
                    "after an iteration; type and rank must stay")
        changed = any(a is not b for a, b in zip(out, start, strict=True))
        return out if changed else None


# --- if -----------------------------------------------------------------------------------


def _switches(w: Walker, merge: Any) -> list[Any]:
    """For each input of a Merge the Switch that its branch starts from."""
    found = []
    for ref in data_inputs(merge):
        s = _trace(w, ref)
        if s is not None:
            found.append(s[0])
    return found


def _trace(w: Walker, ref: str) -> tuple[Any, int] | None:
    """The nearest Switch above a value (by data or control inputs), and which output of it.

    A Merge on the way belongs to an inner conditional, whose Switches are skipped."""
    nodes = w.nodes
    seen: set[str] = set()
    work = [(ref, 0)]
    while work:
        r, inner = work.pop(0)
        name, k = nodes.split(r.lstrip("^"))
        node = nodes.by_name.get(name)
        if node is None or (name, inner) in seen:
            continue
        seen.add((name, inner))  # type: ignore[arg-type]
        if node.op == "Switch":
            if name in {v.switch for f in nodes.loops.values() for v in f.variables}:
                continue
            if inner == 0:
                return node, k
            work += [(i, inner - 1) for i in node.input]
            continue
        if node.op in ("Merge", "RefMerge"):
            inner += 1
        work += [(i, inner) for i in node.input]
    return None


def _merge(w: Walker, node: Any) -> Any:
    refs = data_inputs(node)
    if len(refs) != 2:
        raise Unsupported(f"a Merge of {len(refs)} branches is not supported; 2 are")
    traced = [_trace(w, r) for r in refs]
    known = [t for t in traced if t is not None]
    if not known:
        raise NodeProblem("no Switch leads to it", "INVALID_GRAPH")
    pred = data_inputs(known[0][0])[1]
    sides = [t[1] if t is not None else 1 - known[0][1] for t in traced]
    if set(sides) != {0, 1}:
        raise NodeProblem("both of its inputs come from the same side of a Switch",
                          "INVALID_GRAPH")
    by_side = dict(zip(sides, refs, strict=True))
    condition = w.value(pred)
    return branches(w, condition, f"cond '{node.name}'", [
        lambda c, s=s: [Walker(c, w.nodes, w, branch=(pred, s)).value(by_side[s])]
        for s in (1, 0)])[0]


def branches(w: Walker, cond: Value, label: str, bodies: Sequence[Any]) -> list[Any]:
    """Emits an ``if``, or only the branch taken where the condition is known.

    Args:
        w: Where.
        cond: The condition.
        label: For error messages.
        bodies: The true and the false branch: ``body(context)`` imports one.
    """
    c = w.c
    known = cond.known_ints()
    if known is not None and known.size == 1 and isinstance(known.reshape(-1)[0], (int, bool)):
        same = Context(c.state, Scope(c.graph, c.scope), {}, c.stack)
        same.source = c.source
        return bodies[0 if known.reshape(-1)[0] else 1](same)
    made, results = [], []
    for body, side in zip(bodies, ("true", "false"), strict=True):
        graph = Graph(f"{label} {side}")
        inner = Context(c.state, Scope(graph, c.scope), {}, (*c.stack, f"{side} branch of {label}"))
        inner.source = c.source
        results.append(body(inner))
        if any(isinstance(v, (EmptyArray, ArrayHandle)) for v in results[-1]):
            raise Unsupported("a conditional gives a tensor array or list")
        graph.outputs = [v if v.producer is not None and v.producer in graph.nodes
                         else inner.op("identity", v) for v in results[-1]]
        made.append((graph, inner.scope))
    outer = list(dict.fromkeys(v for _, scope in made for v in scope.captures))
    for graph, scope in made:
        for v in outer:
            graph.inputs.append(scope.capture(v))
    return c.ops("if", c.boolean(c.scalar(cond)), *outer, subgraphs=[g for g, _ in made])


def _switch(w: Walker, node: Any) -> list[Any]:
    data, pred = data_inputs(node)
    if w.branch is not None and w.branch[0] == pred:
        x = w.outer(data)
        return [x, x]
    x, cond = w.value(data), w.value(pred)
    if w.branch is None and cond.known_ints() is None:
        raise Unsupported("a Switch whose branches never merge needs a condition that is known")
    return [x, x]
