"""Imports the nodes that outputs need, one by one, inputs first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ...ir.graph import Value
from ...ops.registry import OpError
from ..onnx.errors import ImportProblem, NodeProblem, Poisoned, Problem, Unsupported
from ..onnx.scope import POISON
from . import table
from .context import Context
from .node import TfNode

MAX_DEPTH = 64  # of nested function calls, loops and conditionals

FAILED = "(failed)"  # operator of a node whose problem has been reported already
_AUDIO = ("audio files are decoded outside of the network; make this node's output an input")
_FILES = "files are decoded outside of the network; make this node's output an input"
_VARIABLES = ("the graph still has variables; freeze it first (TensorFlow 1: "
              "graph_util.convert_variables_to_constants; TensorFlow 2: "
              "convert_variables_to_constants_v2)")
_EXCLUDED = {
    "DecodeWav": _AUDIO,
    **dict.fromkeys("DecodeJpeg DecodePng DecodeImage DecodeBmp ParseExample DecodeRaw ReadFile"
                    .split(), _FILES),
    **dict.fromkeys("Variable VariableV2 VarHandleOp ReadVariableOp".split(), _VARIABLES),
}


class Nodes:
    """The nodes of a graph or function body by name, and what control flow needs to know.

    Attributes:
        by_name: The ``NodeDef``s.
        functions: The library: ``FunctionDef``s by name.
        in_function: Whether inputs are written as in function bodies, ``node:output:number``.
    """

    def __init__(self, nodes: Sequence[Any], functions: dict[str, Any], in_function: bool = False):
        self.by_name: dict[str, Any] = {}
        self.functions = functions
        self.in_function = in_function
        self.double: list[str] = []
        for node in nodes:
            if node.name in self.by_name:
                self.double.append(node.name)
            self.by_name.setdefault(node.name, node)
        self._loops: dict[str, Any] | None = None

    @property
    def loops(self) -> dict[str, Any]:
        """1.x while-loops by frame name (see `control.find_loops`)."""
        if self._loops is None:
            from .control import find_loops

            self._loops = find_loops(self)
        return self._loops

    def split(self, ref: str) -> tuple[str, int]:
        """Node name and output number of an input as it is written in a node."""
        parts = ref.split(":")
        if len(parts) == 1 or not parts[-1].isdecimal():
            return ref, 0  # of the latter kind no node exists, which is reported
        if len(parts) == 3:
            node = self.by_name.get(parts[0])
            op = node.op if node is not None else ""
            called = self.functions.get(op)
            names = [a.name for a in called.signature.output_arg] if called else ()
            return parts[0], table.output_index(op, parts[1], int(parts[2]), names)
        return parts[0], int(parts[1])


def data_inputs(node: Any) -> list[str]:
    return [i for i in node.input if not i.startswith("^")]


class Walker:
    """Imports nodes of one graph, function call, loop body or branch.

    Attributes:
        c: Where nodes go.
        nodes: What they are imported from.
        parent: The walker around a loop body or branch, which evaluates what comes from outside.
        results: Outputs by node name; given ones (inputs, arguments, loop variables) and imported
            ones. A list, or `POISON`.
        branch: For a branch of a 1.x conditional: its predicate's reference, and 0 or 1.
    """

    def __init__(self, c: Context, nodes: Nodes, parent: Walker | None = None,
                 results: dict[str, Any] | None = None, branch: tuple[str, int] | None = None):
        self.c = c
        self.nodes = nodes
        self.parent = parent
        self.results: dict[str, Any] = dict(results or {})
        self.branch = branch
        self._active: dict[str, None] = {}
        self.depth: int = 0 if parent is None else parent.depth + 1
        if self.depth > MAX_DEPTH:
            raise NodeProblem(f"functions, loops and conditionals are nested more than {MAX_DEPTH} "
                              "deep")

    # --- asking ------------------------------------------------------------------------------

    def value(self, ref: str) -> Any:
        """What a reference stands for, importing it if need be.

        Raises:
            Poisoned: If that failed (its problem has been recorded).
        """
        name, k = self.nodes.split(ref)
        self.demand([name])
        return self._output(name, k)

    def outer(self, ref: str) -> Any:
        """What a reference stands for outside of this loop body or branch, as seen inside."""
        if self.parent is None:
            raise NodeProblem("control flow leaves a loop or branch that it did not enter")
        found = self.parent.value(ref)
        return found if self.parent.c.graph is self.c.graph else enter(self.c, found)

    def _output(self, name: str, k: int) -> Any:
        found = self.results.get(name, POISON)
        if found is POISON:
            raise Poisoned(name)
        if k >= len(found):
            raise NodeProblem(f"output {k} of node {name!r} is asked for; only {len(found)} can be "
                              "computed", "INVALID_GRAPH")
        return found[k]

    def demand(self, names: Iterable[str]) -> None:
        """Imports nodes and what they need. Faults of the model are recorded, not raised."""
        stack: list[tuple[str, Any]] = [(n, None) for n in names]
        while stack:
            name, rest = stack.pop()
            if rest is None:
                if name in self.results:
                    continue
                if name not in self.nodes.by_name:
                    self.results[name] = POISON
                    self.c.state.problems.append(Problem("INVALID_GRAPH", self._missing(name)))
                    continue
                self._active[name] = None
                rest = iter(self._needs(name))
            for need in rest:
                if need in self._active:
                    self._report_cycle(need)
                elif need not in self.results:
                    stack += [(name, rest), (need, None)]
                    break
            else:
                if name not in self.results:
                    self._import(self.nodes.by_name[name])
                self._active.pop(name, None)

    def _missing(self, name: str) -> str:
        readers = [n.name for n in self.nodes.by_name.values()
                   if any(self.nodes.split(i)[0] == name for i in data_inputs(n))]
        by = f", which {', '.join(map(repr, readers[:4]))} reads" if readers else ""
        return f"the graph has no node {name!r}{by}"

    def _needs(self, name: str) -> list[str]:
        """Names of nodes of this level that a node depends on."""
        from .control import needs

        node = self.nodes.by_name[name]
        return [self.nodes.split(r)[0] for r in needs(self, node)]

    def _report_cycle(self, name: str) -> None:
        cycle = list(self._active)
        cycle = cycle[cycle.index(name):]
        shown = " → ".join(f"'{n}' ({self.nodes.by_name[n].op})" for n in [*cycle, name])
        for n in cycle:
            self.results[n] = POISON
        report(self.c, self.nodes.by_name[name], [], NodeProblem(
            f"the graph has a cycle: {shown}; only while-loops may have one", "INVALID_GRAPH"))

    # --- importing ---------------------------------------------------------------------------

    def _import(self, node: Any) -> None:
        """Imports one node whose inputs have been; never raises for a fault of the model."""
        c, inputs = self.c, []
        c.source = f"TensorFlow node '{node.name}' ({node.op})"
        c.emitted = []
        self.results[node.name] = POISON
        try:
            found = self._special(node)
            if found is None:
                inputs = [self._read(r) for r in data_inputs(node)]
                if any(v is POISON for v in inputs):
                    raise Poisoned(node.name)
                found = self._apply(node, inputs)
            self.results[node.name] = found
        except Poisoned:
            if not self._known(node):
                report(c, node, inputs, Unsupported(unknown_reason(node.op)))
        except (ImportProblem, OpError) as e:
            report(c, node, inputs, e)
        except RecursionError:
            report(c, node, inputs, NodeProblem("functions or loops are nested without end"))
        except Exception as e:  # a defect of an importer must not hide other problems
            defect = ImportProblem(f"{type(e).__name__}: {e}", "INTERNAL_ERROR")
            report(c, node, inputs, defect.with_traceback(e.__traceback__))

    def _read(self, ref: str) -> Any:
        name, k = self.nodes.split(ref)
        return POISON if self.results.get(name, POISON) is POISON else self._output(name, k)

    def _special(self, node: Any) -> list[Any] | None:
        """Outputs of nodes that 1.x control flow consists of."""
        from .control import special

        return special(self, node)

    def _apply(self, node: Any, inputs: list[Any]) -> list[Any]:
        c, n = self.c, TfNode(node, inputs, self)
        if node.op == FAILED:
            raise Poisoned(node.name)
        if node.op in _EXCLUDED:
            raise Unsupported(_EXCLUDED[node.op])
        row = table.find(node.op)
        if row is not None:
            result = row.fn(c, n)
        elif node.op in self.nodes.functions:
            from .functions import call

            result = call(c, n, node.op, inputs)
        else:
            result = self._plugin(n)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        name_layers(c, n, outputs)
        return outputs

    def _plugin(self, n: TfNode) -> Any:
        plugins = self.c.state.plugins
        creator = None if plugins is None else plugins.find(n)
        if creator is None:
            raise Unsupported(unknown_reason(n.op))
        return plugins.call(self.c, n, creator)

    def _known(self, node: Any) -> bool:
        plugins = self.c.state.plugins
        return (node.op in _EXCLUDED or node.op == FAILED or table.find(node.op) is not None
                or node.op in self.nodes.functions
                or node.op in ("Enter", "Exit", "Merge", "Switch", "NextIteration", "LoopCond")
                or (plugins is not None and plugins.find(TfNode(node, [], self)) is not None))


def enter(c: Context, found: Any) -> Any:
    """A result of an enclosing level as seen in ``c``'s graph."""
    from .arrays import ArrayHandle, EmptyArray

    parent = c.scope.parent
    if parent is None or parent.graph is c.graph:
        return found
    if isinstance(found, Value):
        return c.scope.capture(found)
    if isinstance(found, EmptyArray):
        return found.inside(c)
    if isinstance(found, ArrayHandle):
        return ArrayHandle(found.empty.inside(c))
    return found


def unknown_reason(op: str) -> str:
    """Why an operator can't be imported, and what to do."""
    return (f"no importer for operator {op} and no plugin called {op!r}; register a plugin of that "
            "name, replace the operator, or make its output an input")


# --- names and reports --------------------------------------------------------------------

_MOVES = frozenset("transpose reshape squeeze unsqueeze expand cast concat".split())


def name_layers(c: Context, n: TfNode, outputs: Sequence[Any]) -> None:
    """The layer that computes gets the node's name, those around it derived ones; results get
    TensorFlow's names."""
    main = next((x for op, x in c.emitted if op not in _MOVES), None)
    if main is None and c.emitted:
        main = c.emitted[-1][1]
    for op, layer in c.emitted:
        layer.name = c.state.unique(n.name if layer is main else f"{n.name}/{op}")
    if main is not None:
        c.state.layers.setdefault(n.name, main)
    c.emitted = []
    for k, v in enumerate(outputs):
        if isinstance(v, Value) and v.producer is not None and "tf_name" not in v.meta:
            v.name = v.meta["tf_name"] = f"{n.name}:{k}" if k else n.name


def report(c: Context, node: Any, inputs: Sequence[Any], error: Exception) -> None:
    """Records a node's problem, with its inputs and the place that noticed it."""
    code = error.code if isinstance(error, ImportProblem) else "INVALID_NODE"
    where = "".join(f" in {s}" for s in reversed(c.stack))
    refs = data_inputs(node)
    shown = [f"{r}: {_describe(v)}" for r, v in zip(refs, inputs, strict=False)]
    shown += [f"{r}: ?" for r in refs[len(inputs):]]
    reason = str(error).split(f"{c.source}: ", 1)[-1] if c.source else str(error)
    text = (f"node '{node.name}' ({shown_op(node)}){where}: {reason}\n"
            f"    inputs: {', '.join(shown) or 'none'}")
    problem = Problem(code, text, -1, node.name, node.op, c.stack, _origin(error))
    if all(p.text != text for p in c.state.problems):
        c.state.problems.append(problem)


def shown_op(node: Any) -> str:
    """The operator as the file calls it."""
    return node.attr["_uff_op"].s.decode() if "_uff_op" in node.attr else node.op


def _describe(v: Any) -> str:
    if v is POISON:
        return "?"
    if not isinstance(v, Value):
        return str(v)
    shape = "?" if v.shape is None else ", ".join(map(str, v.shape))
    return f"{v.dtype}[{shape}]{' const' if v.const is not None else ''}"


def _origin(error: BaseException) -> tuple[str, int, str]:
    tb = error.__traceback__
    if tb is None:
        frame = sys._getframe(2)
        return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    while tb.tb_next is not None:
        tb = tb.tb_next
    return tb.tb_frame.f_code.co_filename, tb.tb_lineno, tb.tb_frame.f_code.co_name
