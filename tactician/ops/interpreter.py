"""Runs a graph node by node in numpy: the `reference` target, slow and right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.graph import Graph, Value
from .registry import evaluate

Array = np.ndarray[Any, Any]


def run_graph(graph: Graph, feeds: Mapping[str, Any] | Sequence[Any]) -> list[Array]:
    """Evaluates a graph.

    Args:
        graph: In topological order.
        feeds: One array per graph input, by name or in order.

    Returns:
        One array per graph output.
    """
    if isinstance(feeds, Mapping):
        feeds = [feeds[v.name] for v in graph.inputs]
    env: dict[Value, Array] = {
        v: np.asarray(a, dtype=v.dtype.np) for v, a in zip(graph.inputs, feeds, strict=True)
    }

    def value(v: Value | None) -> Array | None:
        if v is None:
            return None
        return env[v] if v.const is None else v.const

    for node in graph.nodes:
        results = evaluate(node, *(value(v) for v in node.inputs))
        env.update(zip(node.outputs, results, strict=True))
    return [np.asarray(value(v)) for v in graph.outputs]
