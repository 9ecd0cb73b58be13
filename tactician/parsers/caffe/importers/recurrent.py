"""Recurrent layers, unrolled over their time steps."""

from __future__ import annotations

from ....ir.graph import Value
from ....network.enums import ActivationType as A
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer

_NOTES = ("time is dimension 0 (explicit batch); the second bottom says where sequences go on; "
          "expose_hidden takes the state's start and gives its end")


class _Steps:
    """What both kinds of layers share: the input's part of all gates, step by step.

    Args:
        gates: How many there are; each has as many units as the layer's outputs.
        states: How many blobs make the state.

    Attributes:
        start: The state before the first step if it is given.
    """

    def __init__(self, c: Context, n: CaffeLayer, gates: int, states: int):
        c.refuse_batch(0, "a sequence")
        self.c, self.n = c, n
        p = n.proto.recurrent_param
        given = states if p.expose_hidden else 0
        if len(n) - given not in (2, 3):
            raise LayerProblem(f"has {len(n)} bottoms; it takes the sequence, markers, maybe a "
                               f"fixed input, and {given} for the state")
        if not p.num_output:
            raise LayerProblem("recurrent_param needs num_output, at least 1")
        self.units, x = p.num_output, n[0]
        self.time, self.batch = n.size(0, "time"), n.size(1, "the batch")
        if x.rank < 3:
            raise LayerProblem(f"its bottom has {x.rank} dimensions; (time, num, …) is needed")
        if n[1].rank != 2 or tuple(n[1].dims) != (self.time, self.batch):
            raise LayerProblem(f"its second bottom has shape {list(n[1].dims)}; markers of "
                               f"sequences are (time, num): {[self.time, self.batch]}")
        width = gates * self.units
        self.parts = self._project(c.flatten(x, 2, x.rank - 1), 0, width, bias=1)
        self.next_blob = 2
        if len(n) - given == 3:
            fixed = c.flatten(n[2], 1, n[2].rank - 1)
            self.parts = c.binary("add", self.parts, self._project(fixed, 2, width))
            self.next_blob = 3
        self.start = [c.reshape(v, [self.batch, self.units]) for v in n.bottoms[len(n) - given :]]

    def _project(self, x: Value, blob: int, width: int, bias: int | None = None) -> Value:
        inner = x.dims[-1]
        if not isinstance(inner, int):
            raise LayerProblem("the size of its bottoms must be known")
        c, n = self.c, self.n
        w = c.weights(n.blob(blob, (width, inner), "weights"), "kernel")
        y = c.op("matmul", x, w, ta="none", tb="transpose")
        if bias is None:
            return y
        return c.binary("add", y, c.weights(n.blob(bias, (width,), "bias"), "bias"))

    def recurrent(self, blob: int, width: int) -> Value:
        """Weights from the state."""
        return self.c.weights(self.n.blob(blob, (width, self.units), "recurrent weights"),
                              "kernel")

    def at(self, t: int) -> tuple[Value, Value | None]:
        """The input's part at a step, and the factor that keeps or forgets the state before."""
        c = self.c
        part = c.reshape(c.cut(self.parts, 0, t, t + 1), [self.batch, -1])
        if t == 0 and not self.start:
            return part, None
        return part, c.reshape(c.cut(self.n[1], 0, t, t + 1), [self.batch, 1])

    def end(self, *state: Value) -> list[Value]:
        """The state after the last step, where it is a top."""
        shape = [1, self.batch, self.units]
        return [self.c.reshape(v, shape) for v in state] if self.start else []

    def together(self, steps: list[Value]) -> Value:
        """The results of all steps, (time, num, units)."""
        shape = [1, self.batch, self.units]
        return self.c.concat([self.c.reshape(h, shape) for h in steps], 0)


@importer("LSTM", inputs=(2, 5), does="long short-term memory", notes=_NOTES)
def lstm(c: Context, n: CaffeLayer) -> list[Value]:
    s = _Steps(c, n, 4, 2)
    w = s.recurrent(s.next_blob, 4 * s.units)
    hidden, cell = s.start or (None, None)
    out: list[Value] = []
    for t in range(s.time):
        z, go_on = s.at(t)
        if hidden is not None and go_on is not None:
            before = c.binary("mul", hidden, go_on)
            z = c.binary("add", z, c.op("matmul", before, w, ta="none", tb="transpose"))
        i, f, o, g = (c.activation(c.cut(z, 1, k * s.units, (k + 1) * s.units),
                                   A.TANH if k == 3 else A.SIGMOID) for k in range(4))
        fresh = c.binary("mul", i, g)
        if cell is not None and go_on is not None:
            kept = c.binary("mul", c.binary("mul", f, go_on), cell)
            fresh = c.binary("add", kept, fresh)
        cell = fresh
        hidden = c.binary("mul", o, c.activation(cell, A.TANH))
        out.append(hidden)
    assert hidden is not None and cell is not None
    return [s.together(out), *s.end(hidden, cell)]


@importer("RNN", inputs=(2, 4), does="plain recurrence through tanh", notes=_NOTES)
def rnn(c: Context, n: CaffeLayer) -> list[Value]:
    s = _Steps(c, n, 1, 1)
    w = s.recurrent(s.next_blob, s.units)
    w_out = s.recurrent(s.next_blob + 1, s.units)
    b_out = c.weights(n.blob(s.next_blob + 2, (s.units,), "bias"), "bias")
    hidden = s.start[0] if s.start else None
    out: list[Value] = []
    for t in range(s.time):
        z, go_on = s.at(t)
        if hidden is not None and go_on is not None:
            before = c.binary("mul", hidden, go_on)
            z = c.binary("add", z, c.op("matmul", before, w, ta="none", tb="transpose"))
        hidden = c.activation(z, A.TANH)
        y = c.op("matmul", hidden, w_out, ta="none", tb="transpose")
        out.append(c.activation(c.binary("add", y, b_out), A.TANH))
    assert hidden is not None
    return [s.together(out), *s.end(hidden)]
