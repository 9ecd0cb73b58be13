"""Control flow: if and loop, over subgraphs that take outer values as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir.graph import Graph, Node, TensorType, Value
from . import _shapes as S
from .interpreter import run_graph
from .registry import Kind, Op, OpError, get, infer_node, register


def _type(v: Value) -> TensorType:
    return TensorType(v.dtype, v.dims, v.known_ints())


def _feed(graph: Graph, types: Sequence[TensorType], what: str) -> None:
    """Gives a subgraph's inputs their types and infers its nodes anew.

    Raises:
        OpError: If a node of it is invalid.
    """
    if len(graph.inputs) != len(types):
        raise OpError(f"{what} takes {len(graph.inputs)} inputs, the node gives it {len(types)}")
    changed = [v.set_type(t) for v, t in zip(graph.inputs, types, strict=True)]
    if any(changed) or any(n.error for n in graph.nodes):
        for node in graph.nodes:
            infer_node(node)
    for node in graph.nodes:
        if node.error:
            raise OpError(f"in {what}: {node.error}")


def _all_pure(node: Node) -> bool:
    return all(get(n.op).is_pure(n) for g in node.subgraphs for n in g.nodes)


@register
class If(Op):
    """Runs one of two subgraphs. Inputs ``cond, captures…``; both subgraphs take the captures.

    Outputs of one element may differ in rank; the result has the higher one. Where one branch
    gives what the other does without some axes (exporters write a squeeze of an axis of unknown
    size so), the result is without them, and their sizes are assumed to be 1.
    """

    name = "if"
    kind = Kind.CONTROL

    def num_outputs(self, node: Node) -> int:
        return len(node.subgraphs[0].outputs)

    def is_pure(self, node: Node) -> bool:
        return _all_pure(node)

    def infer(self, node: Node) -> Sequence[TensorType]:
        cond = S.operand(node, 0)
        if cond.dtype is not T.b1 or (cond.rank and cond.numel != 1):
            raise OpError(f"the condition {S.show(cond)} must be one bool")
        if len(node.subgraphs) != 2:
            raise OpError(f"an if has two branches, not {len(node.subgraphs)}")
        types = [_type(S.operand(node, i)) for i in range(1, len(node.inputs))]
        known = S.scalar_int(cond)
        if known is not None and not isinstance(known, D.Dim):
            taken = node.subgraphs[0 if known else 1]
            _feed(taken, types, "the branch taken")
            return [_type(v) for v in taken.outputs]
        yes, no = node.subgraphs
        _feed(yes, types, "the true branch")
        _feed(no, types, "the false branch")
        if len(yes.outputs) != len(no.outputs):
            raise OpError(f"the branches have {len(yes.outputs)} and {len(no.outputs)} outputs")
        first = 0
        out = []
        for a, b in zip(yes.outputs, no.outputs, strict=True):
            out.append(self._merge(node, a, b, first))
            first += a.rank
        return out

    def _merge(self, node: Node, a: Value, b: Value, first: int) -> TensorType:
        if a.dtype is b.dtype and a.rank != b.rank and a.numel == b.numel == 1:
            return TensorType(a.dtype, (1,) * max(a.rank, b.rank))
        squeezed = _squeezed(node, a, b) if a.dtype is b.dtype and a.rank != b.rank else None
        if squeezed is not None:
            return TensorType(a.dtype, squeezed)
        if a.dtype is not b.dtype or a.rank != b.rank:
            raise OpError(f"branch outputs {S.show(a)} and {S.show(b)} must have one type and rank")
        shape = tuple(
            x if x == y else S.data_dim(node, first + k)
            for k, (x, y) in enumerate(zip(a.dims, b.dims, strict=True))
        )
        x, y = a.known_ints(), b.known_ints()
        same = x is not None and y is not None and x.shape == y.shape and bool(np.all(x == y))
        return TensorType(a.dtype, shape, x if same else None)

    def reference(self, node: Node, *inputs: Any) -> Any:
        cond = bool(np.asarray(inputs[0]).reshape(-1)[0])
        results = run_graph(node.subgraphs[0 if cond else 1], list(inputs[1:]))
        return tuple(_ranked(node, r, v) for r, v in zip(results, node.outputs, strict=True))


def _squeezed(node: Node, a: Value, b: Value) -> tuple[D.DimLike, ...] | None:
    """The lower-ranked shape, if it is the other without axes that may have size 1."""
    short, full = sorted((a.dims, b.dims), key=len)
    gone: list[D.DimLike] = []
    k = 0
    for d in full:
        if k < len(short) and d == short[k]:
            k += 1
        else:
            gone.append(d)
    if k < len(short) or any(D.is_static(d) and d != 1 for d in gone):
        return None
    for d in gone:
        if isinstance(d, D.Dim):
            S.assume(node, "eq", d, 1)
    return short


def _ranked(node: Node, r: Any, v: Value) -> Any:
    """A branch's result in the rank that was inferred for it."""
    if r.ndim == v.rank:
        return r
    extra = r.ndim - v.rank
    if r.size == 1:
        return r.reshape((1,) * v.rank)
    drop = [k for k, n in enumerate(r.shape) if n == 1][-max(extra, 0):]
    if extra <= 0 or len(drop) < extra:
        raise ValueError(f"{node.describe()}: the branch taken gives shape {list(r.shape)} for "
                         f"{v}, whose axes beyond rank {v.rank} were assumed to have size 1")
    return np.squeeze(r, axis=tuple(drop))


@dataclass(frozen=True)
class LoopAttrs:
    """``carried``: how many values one iteration hands to the next; ``scans``: how many
    outputs collect one slice of each iteration."""

    carried: int = 0
    scans: int = 0


_MAX_WIDENINGS = 16


@register
class Loop(Op):
    """ONNX's loop. Inputs ``trips?, cond?, carried…, captures…``; the subgraph maps
    ``(iteration, cond, carried…, captures…)`` to ``(cond, carried…, scans…)``. Outputs are the
    last carried values, then the scans stacked along a new first axis.

    A carried value whose shape changes from one iteration to the next has data-dependent
    dimensions, inside the subgraph and after it.
    """

    name = "loop"
    kind = Kind.CONTROL
    Attrs = LoopAttrs

    def num_outputs(self, node: Node) -> int:
        return int(node.attrs.carried + node.attrs.scans)

    def is_pure(self, node: Node) -> bool:
        return _all_pure(node)

    def infer(self, node: Node) -> Sequence[TensorType]:
        (body,) = node.subgraphs
        n, scans = node.attrs.carried, node.attrs.scans
        self._check(node, body)
        carried = [
            TensorType(v.dtype, v.dims) for v in (S.operand(node, 2 + k) for k in range(n))
        ]
        captures = [_type(S.operand(node, i)) for i in range(2 + n, len(node.inputs))]
        # Contents of carried values stay known only if an iteration does not change them.
        for _ in range(_MAX_WIDENINGS):
            head = [TensorType(T.i64, self._scalar(body.inputs[0])),
                    TensorType(T.b1, self._scalar(body.inputs[1]))]
            _feed(body, head + carried + captures, "the loop's body")
            wider = [
                self._widen(node, t, v, k)
                for k, (t, v) in enumerate(zip(carried, body.outputs[1:1 + n], strict=True))
            ]
            if all(a.shape == b.shape for a, b in zip(carried, wider, strict=True)):
                break
            carried = wider
        trips = self._trips(node, body)
        out = [self._final(node, t, k) for k, t in enumerate(carried)]
        for j, v in enumerate(body.outputs[1 + n: 1 + n + scans]):
            out.append(TensorType(v.dtype, (trips, *self._outer(node, v, n + j))))
        return out

    def _check(self, node: Node, body: Graph) -> None:
        a = node.attrs
        if len(body.outputs) != 1 + a.carried + a.scans:
            raise OpError(f"the loop's body has {len(body.outputs)} outputs; a condition, "
                          f"{a.carried} carried values and {a.scans} scans are needed")
        cond = S.optional(node, 1)
        if cond is not None and cond.dtype is not T.b1:
            raise OpError(f"the condition {S.show(cond)} must be bool")
        trips = S.optional(node, 0)
        if trips is not None and not trips.dtype.is_int:
            raise OpError(f"the trip count {S.show(trips)} must be an integer")

    def _scalar(self, v: Value) -> tuple[D.DimLike, ...]:
        """The iteration number and condition are scalars, or vectors of one element."""
        return (1,) if v.shape is not None and v.rank == 1 else ()

    def _symbol(self, node: Node, k: int, axis: int, inside: bool) -> D.DimLike:
        return S.data_dim(node, 2 * (k * 64 + axis) + (1 if inside else 2))

    def _widen(self, node: Node, t: TensorType, result: Value, k: int) -> TensorType:
        """The type of a carried value that holds before and after an iteration."""
        if t.dtype is not result.dtype or len(t.shape) != result.rank:
            raise OpError(
                f"carried value {k} is {t.dtype}{S.fmt(t.shape)} before an iteration and "
                f"{result.dtype}{S.fmt(result.dims)} after it; type and rank must stay"
            )
        shape = tuple(
            a if a == b else self._symbol(node, k, axis, inside=True)
            for axis, (a, b) in enumerate(zip(t.shape, result.dims, strict=True))
        )
        return TensorType(t.dtype, shape)

    def _final(self, node: Node, t: TensorType, k: int) -> TensorType:
        """A carried value after the loop: sizes that vary inside are new unknowns."""
        own = f"%{node.id}."
        shape = tuple(
            self._symbol(node, k, axis, inside=False)
            if any(s.startswith(own) for s in D.symbols(d)) else d
            for axis, d in enumerate(t.shape)
        )
        return TensorType(t.dtype, shape)

    def _outer(self, node: Node, v: Value, k: int) -> tuple[D.DimLike, ...]:
        """Dimensions of a scan's slice; those found inside the body are new unknowns."""
        (body,) = node.subgraphs
        inner = {f"%{n.id}." for n in body.nodes} | {f"%{node.id}."}
        return tuple(
            self._symbol(node, k, axis, inside=False)
            if any(s.startswith(p) for s in D.symbols(d) for p in inner) else d
            for axis, d in enumerate(v.dims)
        )

    def _trips(self, node: Node, body: Graph) -> D.DimLike:
        """The number of iterations: the trip count, if nothing can end the loop before."""
        trips, cond = S.optional(node, 0), S.optional(node, 1)
        count = S.scalar_int(trips)
        starts = cond is None or S.scalar_int(cond) == 1
        if count is not None and starts and _always_continues(body):
            return count if S.at_least(count, 0) else D.dim_max(count, 0)
        return S.data_dim(node, 0, upper=count)

    def reference(self, node: Node, *inputs: Any) -> Any:
        (body,) = node.subgraphs
        n, scans = node.attrs.carried, node.attrs.scans
        most = None if inputs[0] is None else int(np.asarray(inputs[0]).reshape(-1)[0])
        going = True if inputs[1] is None else bool(np.asarray(inputs[1]).reshape(-1)[0])
        carried, captures = list(inputs[2:2 + n]), list(inputs[2 + n:])
        slices: list[list[Any]] = [[] for _ in range(scans)]
        i = 0
        while going and (most is None or i < most):
            head = [np.full(self._scalar(body.inputs[0]), i, np.int64),
                    np.full(self._scalar(body.inputs[1]), True)]
            results = run_graph(body, head + carried + captures)
            going = bool(results[0].reshape(-1)[0])
            carried = results[1:1 + n]
            for collected, r in zip(slices, results[1 + n:], strict=True):
                collected.append(r)
            i += 1
        stacked = [
            np.stack(c) if c else self._no_slices(v)
            for c, v in zip(slices, body.outputs[1 + n:], strict=True)
        ]
        return (*carried, *stacked)

    def _no_slices(self, v: Value) -> Any:
        dims = [0 if isinstance(d, D.Dim) else d for d in v.dims]
        return np.zeros((0, *dims), v.dtype.np)


def _always_continues(body: Graph) -> bool:
    """True if the body hands its condition on, or a constant true."""
    v = body.outputs[0]
    while v.producer is not None and v.producer.op in ("identity", "cast", "reshape"):
        source = v.producer.inputs[0]
        if source is None or source.dtype is not T.b1:
            break
        v = source
    if v is body.inputs[1]:
        return True
    known = S.ints(v)
    return known is not None and len(known) == 1 and known[0] == 1
