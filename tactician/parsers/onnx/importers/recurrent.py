"""Recurrent layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
        "direction": direction, "activations": tuple(_snake(a) for a in names),
        "alpha": _parameters(n, "activation_alpha", names, _TAKES_ALPHA),
        "beta": _parameters(n, "activation_beta", names, _TAKES_BETA),
        "clip": n.attr("clip", 0.0), "layout": n.attr("layout", 0),
    }


def _snake(name: str) -> str:
    """``HardSigmoid`` as ``hard_sigmoid``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


# ONNX lists parameters only for the activations that have them
_TAKES_ALPHA = frozenset(("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid",
                          "Elu"))
_TAKES_BETA = frozenset(("Affine", "ScaledTanh", "HardSigmoid"))


def _parameters(
    n: OnnxNode, attribute: str, names: Sequence[str], takers: frozenset[str]
) -> tuple[float, ...]:
    """One parameter per activation; nan where it keeps its default."""
    given = list(n.attr(attribute, ()))
    if not given or len(given) == len(names):
        return tuple(given)
    return tuple(given.pop(0) if name in takers and given else float("nan") for name in names)


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
