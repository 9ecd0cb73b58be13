"""Recurrent modules: LSTM, GRU and plain RNN, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...ir.graph import Value
from ..context import Context
from ..table import AtenProblem, aten_op

aten = torch.ops.aten

# rows of torch's gates in the order of the op: LSTM i f g o -> i o f c, GRU r z n -> z r h
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def _rows(c: Context, cell: str, w: Value) -> Value:
    """Weights or biases with gates in the op's order."""
    gates = _GATES[cell]
    if len(gates) == 1:
        return w
    hidden = int(w.dims[0]) // len(gates)  # type: ignore[arg-type]
    if w.const is not None and not c.refit:
        import numpy as np

        split = np.split(w.const, len(gates), axis=0)
        return c.const(np.concatenate([split[g] for g in gates], axis=0), name=w.name)
    return c.concat([c.slice_axis(w, 0, g * hidden, hidden) for g in gates], 0)


def _directions(c: Context, parts: Sequence[Value]) -> Value:
    return c.concat([c.unsqueeze(p, [0]) for p in parts], 0)


def _layer(c: Context, cell: str, x: Value, params: Sequence[Sequence[Value]],
           states: Sequence[Value], **attrs: Any) -> list[Value]:
    """One layer of one or two directions; time first. Gives y, then the states."""
    w = _directions(c, [_rows(c, cell, p[0]) for p in params])
    r = _directions(c, [_rows(c, cell, p[1]) for p in params])
    bias = None
    if len(params[0]) > 2:
        bias = _directions(c, [
            c.concat([_rows(c, cell, p[2]), _rows(c, cell, p[3])], 0) for p in params])
    hidden = int(r.dims[2])  # type: ignore[arg-type]
    y, *last = c.ops("rnn", x, w, r, bias, None, *states, cell=cell, hidden=hidden,
                     direction="bidirectional" if len(params) == 2 else "forward",
                     linear_before_reset=cell == "gru", **attrs)
    steps, _, batch, _ = y.dims
    merged = c.view(c.transpose(y, [0, 2, 1, 3]), [steps, batch, len(params) * hidden])
    return [merged, *last]


def _stack(c: Context, cell: str, x: Value, states: Sequence[Value], params: Sequence[Value],
           has_biases: bool, layers: int, bidirectional: bool, batch_first: bool,
           train: bool, dropout: float, **attrs: Any) -> list[Value]:
    if train and dropout:
        raise AtenProblem("dropout while training; call module.eval() first")
    per, directions = (4 if has_biases else 2), 2 if bidirectional else 1
    if len(params) != per * directions * layers:
        raise AtenProblem("a recurrent layer with projections")
    alone = x.rank == 2
    if alone:
        x = c.unsqueeze(x, [1])
        states = [c.unsqueeze(s, [1]) for s in states]
    elif batch_first:
        x = c.transpose(x, [1, 0, 2])
    ends: list[list[Value]] = []
    for layer in range(layers):
        first = layer * directions
        chosen = [params[(first + d) * per : (first + d + 1) * per] for d in range(directions)]
        own = [s if layers == 1 else c.slice_axis(s, 0, first, directions) for s in states]
        x, *last = _layer(c, cell, x, chosen, own, **attrs)
        ends.append(last)
    finals = [c.concat(list(parts), 0) for parts in zip(*ends, strict=True)]
    if alone:
        x, finals = c.squeeze(x, [1]), [c.squeeze(f, [1]) for f in finals]
    elif batch_first:
        x = c.transpose(x, [1, 0, 2])
    return [x, *finals]


@aten_op(aten.lstm.input, note="without projections")
def lstm(c: Context, x: Value, states: Sequence[Value], params: Sequence[Value],
         has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool,
         batch_first: bool) -> list[Value]:
    return _stack(c, "lstm", x, states, params, has_biases, num_layers, bidirectional,
                  batch_first, train, dropout)


@aten_op(aten.gru.input)
def gru(c: Context, x: Value, state: Value, params: Sequence[Value], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool,
        batch_first: bool) -> list[Value]:
    return _stack(c, "gru", x, [state], params, has_biases, num_layers, bidirectional,
                  batch_first, train, dropout)


@aten_op(aten.rnn_tanh.input, aten.rnn_relu.input)
def rnn(c: Context, x: Value, state: Value, params: Sequence[Value], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool,
        batch_first: bool) -> list[Value]:
    fn = "relu" if c.node.target is aten.rnn_relu.input else "tanh"
    return _stack(c, "rnn", x, [state], params, has_biases, num_layers, bidirectional,
                  batch_first, train, dropout, activations=(fn,) * (2 if bidirectional else 1))
