"""Reductions, top-k and the like."""

from __future__ import annotations

from ....ir.graph import Value
from ..context import Context, axes_of, axis_of, require_ints
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer

_FUNCTIONS = {
    "ReduceSum": "sum", "ReduceProd": "prod", "ReduceMax": "max", "ReduceMin": "min",
    "ReduceMean": "mean", "ReduceL1": "l1", "ReduceL2": "l2", "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp", "ReduceSumSquare": "sum_square",
}  # fmt: skip
_OTHERS = tuple(op for op in _FUNCTIONS if op != "ReduceSum")


@importer(*_OTHERS, until=17)
@importer("ReduceSum", until=12)
def reduce_attribute(c: Context, n: OnnxNode) -> Value:
    return _reduce(c, n, axes_of(n.ints("axes", range(n[0].rank)), n[0].rank))


@importer(*_OTHERS, since=18)
@importer("ReduceSum", since=13)
def reduce(c: Context, n: OnnxNode) -> Value:
    x, noop = n[0], n.flag("noop_with_empty_axes")
    axes: tuple[int, ...] = ()
    if n.has(1):
        axes = axes_of([int(a) for a in require_ints(n[1], "axes").reshape(-1)], x.rank)
    if axes or (x.rank == 0 and not noop):
        return _reduce(c, n, axes)
    if not noop:
        return _reduce(c, n, tuple(range(x.rank)))
    return _elementwise_part(c, n)


def _elementwise_part(c: Context, n: OnnxNode) -> Value:
    """A reduction over no axes still applies its function to every element."""
    n.ignore("keepdims")
    fn, x = _FUNCTIONS[n.op], n[0]
    if fn in ("l1", "l2"):
        return c.unary("abs", x)
    if fn == "sum_square":
        return c.mul(x, x)
    if fn == "log_sum":
        return c.unary("log", x)
    return c.op("identity", x)


def _reduce(c: Context, n: OnnxNode, axes: tuple[int, ...]) -> Value:
    return c.reduce(n[0], _FUNCTIONS[n.op], axes, n.flag("keepdims", True))


@importer("ArgMax", "ArgMin")
def arg_reduce(c: Context, n: OnnxNode) -> Value:
    return c.op("argreduce", n[0], fn="max" if n.op == "ArgMax" else "min",
                axis=axis_of(n.attr("axis", 0), n[0].rank), keepdims=n.flag("keepdims", True),
                last=n.flag("select_last_index"))


@importer("TopK", until=9)
def top_k_attribute(c: Context, n: OnnxNode) -> list[Value]:
    return c.ops("topk", n[0], c.ints([n.attr("k")]),
                 axis=axis_of(n.attr("axis", -1), n[0].rank), largest=True, sorted=True)


@importer("TopK", since=10)
def top_k(c: Context, n: OnnxNode) -> list[Value]:
    return c.ops("topk", n[0], c.index(n[1]), axis=axis_of(n.attr("axis", -1), n[0].rank),
                 largest=n.flag("largest", True), sorted=n.flag("sorted", True))


@importer("Unique", since=11)
def unique(c: Context, n: OnnxNode) -> list[Value]:
    axis = n.attr("axis", None)
    return c.ops("unique", n[0], axis=None if axis is None else axis_of(axis, n[0].rank),
                 sorted=n.flag("sorted", True))


@importer("NonZero", since=9)
def non_zero(c: Context, n: OnnxNode) -> Value:
    return c.op("non_zero", n[0])


@importer("Einsum", since=12)
def einsum(c: Context, n: OnnxNode) -> Value:
    return c.op("einsum", *n.present(), equation=n.attr("equation").replace(" ", ""))


@importer("NonMaxSuppression", since=10)
def nms(c: Context, n: OnnxNode) -> Value:
    box = n.attr("center_point_box", 0)
    if box not in (0, 1):
        raise NodeProblem(f"center_point_box is {box}; expected 0 or 1")
    limit = n.get(2)
    return c.op("nms", n[0], n[1], c.const(0, c.named("i64")) if limit is None else limit,
                n.get(3), n.get(4), center_box=bool(box))
