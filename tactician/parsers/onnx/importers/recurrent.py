"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer

_DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}


def recurrent_attributes(n: OnnxNode, cell: str) -> dict[str, Any]:
    direction = n.attr("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise NodeProblem(f"direction is {direction!r}")
    count = 2 if direction == "bidirectional" else 1
    names = n.attr("activations", _DEFAULTS[cell] * count)
    if len(names) != len(_DEFAULTS[cell]) * count:
        raise NodeProblem(f"{len(names)} activations; a {direction} {cell.upper()} has "
                          f"{len(_DEFAULTS[cell]) * count}")
    return {
        "cell": cell, "hidden": n.attr("hidden_size", 0) or int(n[2].dims[-1]),  # type: ignore[arg-type]
        "direction": direction, "activations": tuple(names),
        "activation_alpha": tuple(n.attr("activation_alpha", ())),
        "activation_beta": tuple(n.attr("activation_beta", ())),
        "clip": n.attr("clip", 0.0), "layout": n.attr("layout", 0),
    }


def _some(n: OnnxNode, outputs: list[Value]) -> list[Value | None]:
    return [v if n.wants(i) else None for i, v in enumerate(outputs)]


@importer("LSTM")
def lstm(c: Context, n: OnnxNode) -> list[Value | None]:
    attrs = recurrent_attributes(n, "lstm")
    inputs = [n.get(i) for i in range(8)]
    return _some(n, c.ops("rnn", *inputs, input_forget=n.flag("input_forget"), **attrs))


@importer("GRU")
def gru(c: Context, n: OnnxNode) -> list[Value | None]:
    attrs = recurrent_attributes(n, "gru")
    inputs = [n.get(i) for i in range(6)]
    return _some(n, c.ops("rnn", *inputs, linear_before_reset=n.flag("linear_before_reset"),
                          **attrs))


@importer("RNN")
def rnn(c: Context, n: OnnxNode) -> list[Value | None]:
    inputs = [n.get(i) for i in range(6)]
    return _some(n, c.ops("rnn", *inputs, **recurrent_attributes(n, "rnn")))
