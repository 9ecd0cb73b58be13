"""Common subexpression elimination."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import get
from ..ops.registry import Kind
from .manager import Pass

_SMALL = 4096  # constants up to this many bytes are compared by content


class CommonSubexpressions(Pass):
    """Merges nodes that compute the same thing, and small equal constants."""

    name = "cse"

    def run(self, graph: Graph) -> bool:
        seen: dict[Any, Node] = {}
        dead: list[Node] = []
        outputs = set(graph.outputs)
        for node in graph.nodes:
            if not get(node.op).is_pure(node) or get(node.op).kind is Kind.CONTROL:
                continue
            first = seen.setdefault(_key(node), node)
            if first is node or any(v in outputs for v in node.outputs):
                continue
            for old, new in zip(node.outputs, first.outputs, strict=True):
                graph.replace_uses(old, new)
            dead.append(node)
        if dead:
            graph.remove_all(dead)
        return bool(dead)


def _key(node: Node) -> Any:
    attrs = tuple(_hashable(getattr(node.attrs, f.name)) for f in fields(node.attrs))
    inputs = tuple(None if v is None else _value_key(v) for v in node.inputs)
    return node.op, attrs, inputs, tuple(v.dtype.name for v in node.outputs)


def _value_key(v: Value) -> Any:
    if v.const is not None and v.const.nbytes <= _SMALL:
        return "const", v.dtype.name, v.const.shape, v.const.tobytes()
    return id(v.const) if v.const is not None else id(v)


def _hashable(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    return x
