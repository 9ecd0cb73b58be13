"""Epilogue trees as pointwise operations of cuDNN's graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import cudnn_api as api
from .cudnn_graph import GraphSpec
from .patterns import ACC, Epilogue, NotCovered, Tree, terms

_COMPARE = {"eq", "ne", "gt", "ge", "lt", "le"}
ORDERS = ("bias first", "residual first")


class Writer:
    """Adds the operations of one epilogue to a graph.

    Args:
        graph: Has the contraction already.
        acc: Number of the (virtual) tensor of its sums.
        dims, strides: The result's logical extents and strides.
        operands: Numbers of the epilogue's operands.
    """

    def __init__(
        self, graph: GraphSpec, acc: int, dims: Sequence[int], strides: Sequence[int],
        operands: Sequence[int],
    ):
        self.g, self.dims, self.strides = graph, tuple(dims), tuple(strides)
        self.operands = operands
        self.done: dict[Tree, int] = {ACC: acc}

    def emit(self, t: Tree) -> int:
        """Number of the tensor that holds a tree's value."""
        if t not in self.done:
            self.done[t] = self._emit(t)
        return self.done[t]

    def _emit(self, t: Tree) -> int:
        fn = t[0]
        if fn == "in":
            return self.operands[t[1]]
        if fn == "const":
            ones = (1,) * len(self.dims)
            return self.g.tensor("f32", ones, ones, value=t[1])
        if fn == "clip":
            return self._clip(t)
        if fn == "leaky_relu":
            return self._op("relu", [t[1]], slope=t[2])
        if fn == "elu":
            return self._op("elu", [t[1]], alpha=t[2])
        if fn == "swish":
            return self._op("swish", [t[1]], beta=t[2])
        if fn not in api.POINTWISE_MODES:
            raise NotCovered(f"cuDNN has no operation for {fn}")
        return self._op(fn, list(t[1:]))

    def _clip(self, t: Tree) -> int:
        x, low, high = t[1:]
        if low == 0.0 and high < math.inf:
            return self._op("relu", [x], upper=high)
        out = x
        if low > -math.inf:
            out = ("max", out, ("const", low))
        if high < math.inf:
            out = ("min", out, ("const", high))
        return self.emit(out)

    def _op(self, fn: str, args: list[Tree], **attrs: float) -> int:
        inputs = [self.emit(a) for a in args]
        dtype = "b1" if fn in _COMPARE else "f32"
        out = self.g.tensor(dtype, self.dims, self.strides, virtual=True)
        return self.g.op("pointwise", inputs, out, fn=fn, **attrs)


def result_tree(e: Epilogue, dtype: str) -> Tree:
    """The tree without the rounding that storing into an integer type does anyway.

    Raises:
        NotCovered: If rounding happens elsewhere.
    """
    t = e.tree
    if t[0] == "saturate":
        if dtype != "i8" or t[1][0] != "round":
            raise NotCovered(f"cuDNN doesn't store {dtype} with this rounding")
        t = t[1][1]
    elif dtype in ("i8", "u8"):
        raise NotCovered("a result of integers that is not quantized")
    return t


def reorder(t: Tree, operands: Sequence[tuple[int, ...]], first: str) -> Tree:
    """The tree with the terms that are added to the sums in another order.

    cuDNN has ready-made kernels for sums + residual + bias, and compiles all others.

    Args:
        operands: Extents of each operand, 1 where it is broadcast.
        first: ``residual`` or ``bias``.
    """
    at = _sum_node(t)
    if at is None:
        return t
    parts = terms(at)
    assert parts is not None

    def full(x: Tree) -> bool:
        return x[0] != "in" or sum(d > 1 for d in operands[x[1]]) > 1

    rest = sorted(parts[1:], key=lambda x: full(x) != (first == "residual"))
    chain = ACC
    for x in rest:
        chain = ("add", chain, x)
    return _replace(t, at, chain)


def _sum_node(t: Tree) -> Tree | None:
    """The largest chain of additions that holds the sums."""
    if t == ACC:
        return t
    if t[0] == "add" and terms(t) is not None:
        return t
    for c in t[1:]:
        if isinstance(c, tuple):
            found = _sum_node(c)
            if found is not None:
                return found
    return None


def _replace(t: Tree, old: Tree, new: Tree) -> Tree:
    if t == old:
        return new
    return (t[0], *(_replace(c, old, new) if isinstance(c, tuple) else c for c in t[1:]))


def seal(g: GraphSpec, uid: int, dtype: str, strides: Sequence[int]) -> None:
    """Makes a virtual tensor, which the last operation wrote, the result in memory."""
    import dataclasses

    t = g.tensors[uid - 1]
    g.tensors[uid - 1] = dataclasses.replace(
        t, dtype=dtype, strides=tuple(strides), virtual=False
    )
