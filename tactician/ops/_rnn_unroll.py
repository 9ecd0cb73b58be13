"""Short recurrences, unrolled into matrix products and pointwise steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ._numeric import operands
from .registry import emit

MAX_STEPS = 16  # longer sequences stay one node: unrolled, they would be too many


def unroll(node: Node, graph: Graph, functions: dict[str, Any]) -> list[Value] | None:
    """The outputs of an ``rnn`` node as simpler nodes, or None where steps or weights are not
    known while building.

    Args:
        functions: ``gates`` of the cell, its default ``activations``, and ``parameters``, which
            gives an activation's alpha and beta.
    """
    x, w, r, b, lens, _, _, p = operands(node, 3, 8)
    a = node.attrs
    steps = x.dims[1 if a.layout else 0]
    weights = [v for v in (w, r, b, p) if v is not None]
    if lens is not None or any(v.const is None for v in weights):
        return None
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        return None
    if x.dtype.bits < 32 or "affine" in a.activations:
        return None  # states would be rounded at every step
    return _Unroller(node, graph, functions, steps).run()


class _Unroller:
    def __init__(self, node: Node, graph: Graph, functions: dict[str, Any], steps: int):
        self.node, self.graph, self.functions, self.steps = node, graph, functions, steps
        self.a, self.count = node.attrs, 0
        self.inputs = operands(node, 3, 8)

    # --- emitting ---------------------------------------------------------------------------

    def make(self, op: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        self.count += 1
        name = f"{self.node.name}.{op}{self.count}"
        return emit(self.graph, op, inputs, name, before=self.node, **attrs).output

    def constant(self, array: Any) -> Value:
        return self.graph.constant(np.ascontiguousarray(array), f"{self.node.name}.weights")

    def ints(self, *values: int) -> Value:
        return self.graph.constant(np.array(values, np.int64), f"{self.node.name}.ints")

    def binary(self, fn: str, x: Value, y: Value) -> Value:
        return self.make("binary", [x, y], fn=fn)

    def cut(self, x: Value, axis: int, start: int, stop: int) -> Value:
        if x.dims[axis] == stop - start:
            return x
        bounds = [self.ints(start), self.ints(stop), self.ints(axis)]
        return self.make("strided_slice", [x, *bounds])

    def pick(self, x: Value, axis: int, i: int) -> Value:
        return self.make("squeeze", [self.cut(x, axis, i, i + 1), self.ints(axis)])

    # --- the recurrence ---------------------------------------------------------------------

    def run(self) -> list[Value]:
        x = self.inputs[0]
        if self.a.layout:
            x = self.make("transpose", [x], perm=(1, 0, 2))
        rows: list[list[Value]] = [[] for _ in range(self.steps)]
        hs: list[Value] = []
        cs: list[Value] = []
        for d in range(2 if self.a.direction == "bidirectional" else 1):
            reverse = self.a.direction == "reverse" or d == 1
            h, c = self._direction(x, d, reverse, rows)
            hs.append(h)
            cs.append(c)
        y = self._join([self._join([self._lift(h, 0, 1) for h in row], 1) for row in rows], 0)
        states = [self._join([self._lift(s, 0) for s in values], 0) for values in (hs, cs)]
        if self.a.layout:
            y = self.make("transpose", [y], perm=(2, 0, 1, 3))
            states = [self.make("transpose", [s], perm=(1, 0, 2)) for s in states]
        return [y, *states][: len(self.node.outputs)]

    def _lift(self, x: Value, *axes: int) -> Value:
        return self.make("unsqueeze", [x, self.ints(*axes)])

    def _join(self, xs: list[Value], axis: int) -> Value:
        return xs[0] if len(xs) == 1 else self.make("concat", xs, axis=axis)

    def _state(self, k: int, d: int, like: Value) -> Value:
        given = self.inputs[k]
        if given is not None:
            return self.pick(given, 1 if self.a.layout else 0, d)
        zero = self.graph.constant(np.zeros((1, self.a.hidden), like.dtype.np), "zero")
        if like.dims[1] == 1:
            return zero
        # zeros for every batch entry, whose number may be symbolic
        first = self.cut(self.pick(like, 0, 0), 1, 0, 1)
        none = self.binary("mul", first, self.graph.constant(np.zeros((1, 1), like.dtype.np)))
        return self.binary("add", none, zero)

    def _direction(
        self, x: Value, d: int, reverse: bool, rows: list[list[Value]]
    ) -> tuple[Value, Value]:
        _, w, r, b, _, _, _, p = self.inputs
        assert w is not None and r is not None and w.const is not None and r.const is not None
        gates = self.functions["gates"] * self.a.hidden
        bias = np.zeros(2 * gates, x.dtype.np) if b is None or b.const is None else b.const[d]
        self.w_bias, self.r_bias = bias[:gates], bias[gates:]
        self.peep = None if p is None or p.const is None else np.split(p.const[d], 3)
        self.r = self.constant(r.const[d].T)
        per = len(self.functions["activations"])
        names = self.a.activations[d * per : (d + 1) * per] or self.functions["activations"]
        self.f = [
            (n, *self.functions["parameters"](self.a, d * per + k, n))
            for k, n in enumerate(names)
        ]
        own = self.w_bias if self.a.cell == "gru" else self.w_bias + self.r_bias
        xw = self.make("matmul", [x, self.constant(w.const[d].T)])
        xw = self.binary("add", xw, self.constant(own.reshape(1, 1, -1)))
        h = self._state(5, d, x)
        c = self._state(6, d, x) if self.a.cell == "lstm" else h
        step = {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.a.cell]
        for t in reversed(range(self.steps)) if reverse else range(self.steps):
            h, c = step(self.pick(xw, 0, t), h, c)
            rows[t].append(h)
        return h, c

    def _act(self, k: int, x: Value, clip: bool = True) -> Value:
        if clip and self.a.clip > 0:
            x = self.make("activation", [x], fn="clip", alpha=-self.a.clip, beta=self.a.clip)
        name, alpha, beta = self.f[k]
        return self.make("activation", [x], fn=name, alpha=alpha, beta=beta)

    def _part(self, x: Value, k: int, count: int = 1) -> Value:
        return self.cut(x, 1, k * self.a.hidden, (k + count) * self.a.hidden)

    def _peeped(self, x: Value, k: int, c: Value) -> Value:
        if self.peep is None:
            return x
        return self.binary("add", x, self.binary("mul", c, self.constant(self.peep[k][None])))

    def _one_minus(self, x: Value) -> Value:
        one = self.graph.constant(np.ones((1, 1), x.dtype.np), "one")
        return self.binary("sub", one, x)

    def _lstm(self, xw: Value, h: Value, c: Value) -> tuple[Value, Value]:
        gates = self.binary("add", xw, self.make("matmul", [h, self.r]))
        i = self._act(0, self._peeped(self._part(gates, 0), 0, c))
        if self.a.input_forget:
            forget = self._one_minus(i)
        else:
            forget = self._act(0, self._peeped(self._part(gates, 2), 2, c))
        new = self.binary("mul", i, self._act(1, self._part(gates, 3)))
        c = self.binary("add", self.binary("mul", forget, c), new)
        o = self._act(0, self._peeped(self._part(gates, 1), 1, c))
        return self.binary("mul", o, self._act(2, c, clip=False)), c

    def _gru(self, xw: Value, h: Value, c: Value) -> tuple[Value, Value]:
        n = 2 * self.a.hidden
        r_bias = self.constant(self.r_bias[None])
        inputs = self._part(xw, 2)
        if self.a.linear_before_reset:
            hr = self.binary("add", self.make("matmul", [h, self.r]), r_bias)
            zr = self._act(0, self.binary("add", self._part(xw, 0, 2), self._part(hr, 0, 2)))
            inner = self.binary("mul", self._part(zr, 1), self._part(hr, 2))
        else:
            assert self.r.const is not None
            first, last = (self.constant(m) for m in (self.r.const[:, :n], self.r.const[:, n:]))
            hr = self.make("matmul", [h, first])
            hr = self.binary("add", hr, self.constant(self.r_bias[None, :n]))
            zr = self._act(0, self.binary("add", self._part(xw, 0, 2), hr))
            inner = self.make("matmul", [self.binary("mul", self._part(zr, 1), h), last])
            inner = self.binary("add", inner, self.constant(self.r_bias[None, n:]))
        z = self._part(zr, 0)
        new = self._act(1, self.binary("add", inputs, inner))
        kept = self.binary("mul", z, h)
        return self.binary("add", self.binary("mul", self._one_minus(z), new), kept), c

    def _rnn(self, xw: Value, h: Value, c: Value) -> tuple[Value, Value]:
        return self._act(0, self.binary("add", xw, self.make("matmul", [h, self.r]))), c
