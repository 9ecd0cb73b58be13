"""The recurrent half of LSTM, GRU and RNN, for targets that multiply all inputs beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.graph import Node, TensorType
from ._numeric import operands, shape_text, widen
from .recurrent import (
    CELLS,
    RnnAttrs,
    _Cell,
    _check_attrs,
    _directions,
    _expect,
    result_types,
    results,
    run_steps,
)
from .registry import Kind, Op, OpError, register


@register
class RecurrentSteps(Op):
    """What `rnn` does once its inputs are multiplied.

    Inputs ``gates [time, batch, dirs*gates*hidden]`` (products of the inputs with their weights,
    all biases added but ``rb``), ``r [dirs, gates*hidden, hidden]``, ``rb [dirs, hidden]?`` (a
    GRU's bias beside the recurrent product of its last gate), ``lens?, h0?, c0?, p?``; outputs and
    attributes as `rnn`. ``gates`` may be f32 where ``r`` is narrower.
    """

    name = "recurrent_steps"
    kind = Kind.OPAQUE
    Attrs = RnnAttrs

    def num_outputs(self, node: Node) -> int:
        return 3 if node.attrs.cell == "lstm" else 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        gates, r, rb, lens, h0, c0, p = operands(node, 2, 7)
        a = node.attrs
        _check_attrs(a)
        dirs, rows = _directions(a), CELLS[a.cell] * a.hidden
        if gates.rank != 3 or not gates.dtype.is_float or gates.dims[2] != dirs * rows:
            raise OpError(f"gates {shape_text(gates)} must be floats, [time, batch, {dirs * rows}] "
                          f"(layout 0) or [batch, time, {dirs * rows}] (layout 1)")
        steps, batch = gates.dims[:2] if a.layout == 0 else (gates.dims[1], gates.dims[0])
        _expect("r", r, r, (dirs, rows, a.hidden))
        _expect("rb", rb, r, (dirs, a.hidden))
        return result_types(a, r, steps, batch, (lens, h0, c0, p))[: self.num_outputs(node)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        gates, r, rb, lens, h0, c0, p = (*inputs, *(None,) * 7)[:7]
        a = node.attrs
        gates, r = widen(gates), widen(r)
        if a.layout:
            gates = gates.swapaxes(0, 1)
            h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
        steps, batch = gates.shape[:2]
        rows = CELLS[a.cell] * a.hidden
        counts = np.full(batch, steps) if lens is None else np.asarray(lens).astype(np.int64)
        zeros = np.zeros((batch, a.hidden), r.dtype)
        none = np.zeros((rows, 1), r.dtype)
        ys, hs, cs = [], [], []
        for d in range(_directions(a)):
            bias = np.zeros(2 * rows, r.dtype)
            if rb is not None:
                bias[2 * rows - a.hidden :] = rb[d]
            cell = _Cell(a, d, none, r[d], bias, None if p is None else widen(p[d]))
            h = zeros if h0 is None else widen(h0[d])
            c = zeros if c0 is None else widen(c0[d])
            own = gates[:, :, d * rows : (d + 1) * rows].astype(r.dtype)
            y, h, c = run_steps(cell, own, counts, h, c, a.direction == "reverse" or d == 1)
            ys.append(y)
            hs.append(h)
            cs.append(c)
        return results(a, ys, hs, cs)[: self.num_outputs(node)]
