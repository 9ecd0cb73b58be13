"""Einsum equations: their labels, and their rewriting into reductions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from .registry import OpError, emit


def parse_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of each operand and of the result, one character per dimension. Dimensions that an
    ellipsis stands for get labels of their own (characters from U+0100, aligned at the right).

    Raises:
        OpError: If the equation is malformed or does not fit the operands' ranks.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise OpError(f"equation {equation!r} names {len(parts)} operands, but {len(ranks)} are "
                      f"given")
    hidden = [rank - len(p.replace("...", "")) for p, rank in zip(parts, ranks, strict=True)]
    widest = max((h for p, h in zip(parts, hidden, strict=True) if "..." in p), default=0)
    dots = "".join(chr(0x100 + i) for i in range(widest))
    terms = []
    for k, (p, h) in enumerate(zip(parts, hidden, strict=True)):
        letters = p.replace("...", "")
        if (letters and not letters.isalpha()) or p.count("...") > 1:
            raise OpError(f"operand {k} of equation {equation!r} must be letters and at most one "
                          f"'...'")
        if h < 0 or (h > 0 and "..." not in p):
            raise OpError(f"operand {k} of equation {equation!r} is {p!r}, but the tensor has "
                          f"{ranks[k]} dimensions")
        terms.append(p.replace("...", dots[widest - h :] if h else ""))
    seen = "".join(terms)
    if arrow:
        result = right.replace("...", dots)
    else:
        once = sorted(c for c in set(seen) - set(dots) if seen.count(c) == 1)
        result = dots + "".join(once)
    if len(set(result)) != len(result) or not set(result) <= set(seen) | set(dots):
        raise OpError(f"result {right!r} of equation {equation!r} must use labels of the operands, "
                      f"each once")
    return terms, result


class _Refused(Exception):
    """The equation has no simpler form."""


@dataclass
class _Operand:
    """A value and the label of each of its dimensions."""

    value: Value
    labels: str


@dataclass
class _Rewriter:
    """Emits the nodes that replace an einsum; nodes are removed again if it gives up."""

    node: Node
    graph: Graph
    made: list[Node] = field(default_factory=list)

    def make(self, op: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        name = f"{self.node.name}.{op}{len(self.made)}"
        new = emit(self.graph, op, inputs, name, before=self.node, **attrs)
        self.made.append(new)
        return new.output

    def undo(self) -> None:
        for n in reversed(self.made):
            self.graph.remove(n)

    def ints(self, values: Sequence[int]) -> Value:
        return self.graph.constant(np.array(values, np.int64), f"{self.node.name}.ints")

    def reshape(self, v: Value, dims: Sequence[D.DimLike]) -> Value:
        """A reshape by numbers, copied dimensions and at most one that follows.

        Raises:
            _Refused: If symbolic dimensions need more than that.
        """
        if tuple(v.dims) == tuple(dims):
            return v
        spec: list[int] = []
        for i, d in enumerate(dims):
            if i < v.rank and v.dims[i] == d:
                spec.append(0)
            elif isinstance(d, int) and d > 0:
                spec.append(d)
            elif isinstance(d, D.Dim) and -1 not in spec:
                spec.append(-1)
            else:
                raise _Refused
        return self.make("reshape", [v, self.ints(spec)], zero_copies=True)

    def order(self, x: _Operand, labels: str) -> Value:
        perm = tuple(x.labels.index(c) for c in labels)
        if perm == tuple(range(len(perm))):
            return x.value
        return self.make("transpose", [x.value], perm=perm)

    def drop(self, x: _Operand, keep: str) -> _Operand:
        """Sums over labels that are not in ``keep``."""
        axes = tuple(i for i, c in enumerate(x.labels) if c not in keep)
        if not axes:
            return x
        summed = self.make("reduce", [x.value], fn="sum", axes=axes, keepdims=False)
        return _Operand(summed, "".join(c for c in x.labels if c in keep))

    def squeeze_ones(self, x: _Operand, sizes: dict[str, D.DimLike]) -> _Operand:
        """Removes dimensions of 1 that broadcast."""
        axes = [
            i for i, c in enumerate(x.labels) if x.value.dims[i] == 1 and sizes[c] != 1
        ]
        if not axes:
            return x
        labels = "".join(c for i, c in enumerate(x.labels) if i not in axes)
        return _Operand(self.make("squeeze", [x.value, self.ints(axes)]), labels)

    def spread(self, x: _Operand, labels: str) -> Value:
        """x with dimensions in the order of ``labels``, 1 where it lacks one."""
        v = self.order(x, "".join(c for c in labels if c in x.labels))
        axes = [i for i, c in enumerate(labels) if c not in x.labels]
        return self.make("unsqueeze", [v, self.ints(axes)]) if axes else v

    def product(self, a: _Operand, b: _Operand, keep: str) -> _Operand:
        """Multiplies two operands and sums over shared labels that are not in ``keep``."""
        a = self.drop(a, keep + b.labels)
        b = self.drop(b, keep + a.labels)
        shared = [c for c in a.labels if c in b.labels]
        batch = "".join(c for c in shared if c in keep)
        inner = "".join(c for c in shared if c not in keep)
        rows = "".join(c for c in a.labels if c not in shared)
        cols = "".join(c for c in b.labels if c not in shared)
        labels = batch + rows + cols
        if not inner:
            both = [self.spread(x, labels) for x in (a, b)]
            return _Operand(self.make("binary", both, fn="mul"), labels)
        sizes = {c: d for x in (a, b) for c, d in zip(x.labels, x.value.dims, strict=True)}
        left = self._matrix(self.order(a, batch + rows + inner), batch, (rows, inner), sizes)
        right = self._matrix(self.order(b, batch + inner + cols), batch, (inner, cols), sizes)
        y = self.make(
            "matmul", [left, right], ta="none" if rows else "vector",
            tb="none" if cols else "vector",
        )
        return _Operand(self.reshape(y, [sizes[c] for c in labels]), labels)

    def _matrix(
        self, v: Value, batch: str, groups: tuple[str, str], sizes: dict[str, D.DimLike]
    ) -> Value:
        dims = [sizes[c] for c in batch]
        dims += [D.product(sizes[c] for c in g) for g in groups if g]
        return self.reshape(v, dims)


def decompose_einsum(node: Node, graph: Graph) -> list[Value] | None:
    """The einsum as transposes, sums and matrix products, operand by operand; None for diagonals
    and for shapes that reshapes cannot express."""
    xs = node.present_inputs()
    terms, result = parse_equation(node.attrs.equation, [x.rank for x in xs])
    narrow = xs[0].dtype.is_float and xs[0].dtype.bits < 32
    if any(len(set(t)) != len(t) for t in terms) or (narrow and len(xs) > 2):
        return None  # a diagonal, or products that would be rounded in between
    sizes: dict[str, D.DimLike] = {}
    for term, x in zip(terms, xs, strict=True):
        for c, d in zip(term, x.dims, strict=True):
            if sizes.get(c, 1) not in (1, d) and d != 1:
                return None  # different symbols
            sizes[c] = d if sizes.get(c, 1) == 1 else sizes[c]
    w = _Rewriter(node, graph)
    try:
        operands = [
            w.squeeze_ones(_Operand(x, t), sizes) for x, t in zip(xs, terms, strict=True)
        ]
        total = operands[0]
        for k, other in enumerate(operands[1:], 2):
            later = "".join(o.labels for o in operands[k:])
            total = w.product(total, other, result + later)
        total = w.drop(total, result)
        if set(total.labels) != set(result):
            raise _Refused
        y = w.order(total, result)
    except (_Refused, OpError):
        w.undo()
        return None
    if y in xs:
        y = w.make("identity", [y])
    return [y]
