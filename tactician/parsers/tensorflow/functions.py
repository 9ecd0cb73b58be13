"""Function libraries, and the control flow of TensorFlow 2.x, which calls functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..onnx.errors import NodeProblem
from .context import Context
from .control import branches, while_loop
from .node import TfNode
from .table import importer
from .walk import Nodes, Walker, enter


def call(c: Context, n: TfNode, name: str, arguments: Sequence[Any],
         around: Walker | None = None) -> list[Any]:
    """Imports a function's body in place of a call.

    Args:
        c: Where its nodes go.
        n: The calling node.
        name: The function.
        arguments: One per input of the function, as seen in ``c``'s graph.
        around: The walker of the call, if it is not the node's.

    Returns:
        One result per output of the function.
    """
    function = n.walker.nodes.functions.get(name)
    if function is None:
        raise NodeProblem(f"the graph's library has no function {name!r}", "INVALID_GRAPH")
    signature = function.signature
    if len(signature.input_arg) != len(arguments):
        raise NodeProblem(f"function {name!r} takes {len(signature.input_arg)} arguments, not "
                          f"{len(arguments)}", "INVALID_GRAPH")
    given = {a.name: [v] for a, v in zip(signature.input_arg, arguments, strict=True)}
    nodes = Nodes(function.node_def, n.walker.nodes.functions, in_function=True)
    inner = Context(c.state, c.scope, {}, (*c.stack, f"function '{name}'"))
    inner.source = c.source
    w = Walker(inner, nodes, around or n.walker, given)
    refs = [function.ret[o.name] for o in signature.output_arg]
    w.demand([nodes.split(r)[0] for r in refs])
    return [w.value(r) for r in refs]


def _called(n: TfNode, attr: str) -> str:
    return n.attr(attr).name


@importer("PartitionedCall", "StatefulPartitionedCall", note="inlined")
def partitioned_call(c: Context, n: TfNode) -> list[Any]:
    return call(c, n, _called(n, "f"), n.inputs)


@importer("If", "StatelessIf", note="folded where the condition is known")
def if_(c: Context, n: TfNode) -> list[Any]:
    arguments = n.inputs[1:]
    names = [_called(n, "then_branch"), _called(n, "else_branch")]
    cond = n[0]
    if cond.dtype is not c.named("b1"):
        cond = c.binary("ne", cond, c.like(0, cond)) if cond.rank == 0 else c.boolean(cond)
    return branches(n.walker, cond, f"'{n.name}'", [
        lambda inner, f=f: call(inner, n, f, [enter(inner, v) for v in arguments])
        for f in names])


@importer("While", "StatelessWhile")
def while_(c: Context, n: TfNode) -> list[Any]:
    def cond(w: Walker, inner: Context, values: Sequence[Any]) -> Any:
        return call(inner, n, _called(n, "cond"), values)[0]

    def body(w: Walker, inner: Context, values: Sequence[Any]) -> list[Any]:
        return call(inner, n, _called(n, "body"), values)

    return while_loop(n.walker, f"while-loop '{n.name}'", list(n.inputs), cond, body)
