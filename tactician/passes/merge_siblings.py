"""Merges the projections that attention reads into one matrix product.

    'attention(x @ wq + bq, x @ wk + bk, x @ wv + bv) => attention(slices of x @ w + b)'

The merged product reads ``x`` once and has more columns to divide between threads; its parts are
read in place (see `regions.heads`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass
from .strides import Readers, reshape_to, slice_rows


class MergeSiblings(Pass):
    """Projections of queries, keys and values become one."""

    name = "merge_siblings"

    def run(self, graph: Graph) -> bool:
        changed = False
        found = [n for n in graph.nodes if n.op == "attention"]
        readers = Readers(graph) if found else None
        for node in found:
            assert readers is not None
            groups: dict[tuple[Value, str], list[_Projection]] = {}
            for v in dict.fromkeys(x for x in node.inputs[:3] if x is not None):
                p = _projection(readers, v, node)
                if p is not None:
                    groups.setdefault((p.x, v.dtype.name), []).append(p)
            for group in groups.values():
                if len(group) > 1:
                    changed |= _merge(graph, node, group)
        return changed


@dataclass
class _Projection:
    """``y = x @ weights + bias``, seen as ``[batch, length, columns]``."""

    y: Value
    x: Value
    weights: np.ndarray  # [inner, columns]
    bias: np.ndarray | None
    layers: tuple[str, ...]


def _projection(readers: Readers, y: Value, reader: Node) -> _Projection | None:
    if y.rank != 3:
        return None
    v, bias = _alone(readers, y, reader), None
    node = None if v is None else v.producer
    layers: list[str] = []
    if v is not None and node is not None and node.op == "binary" and node.attrs.fn == "add":
        for a, b in (node.inputs, node.inputs[::-1]):
            if b is not None and b.const is not None and _is_row(b.const, v):
                assert a is not None
                bias = b.const.reshape(-1)
                layers.append(node.name)
                v = _alone(readers, a, node)
                break
        node = None if v is None else v.producer
    if v is None or node is None or node.op != "matmul":
        return None
    x, w = node.inputs
    if x is None or w is None or w.const is None or w.rank != 2 or node.attrs.ta != "none":
        return None
    if v.dims[-1] != y.dims[-1] or node.attrs.tb == "vector" or x.const is not None:
        return None
    weights = w.const.T if node.attrs.tb == "transpose" else w.const
    if bias is not None and bias.size == 1:
        bias = np.repeat(bias, weights.shape[1])
    return _Projection(y, x, weights, bias, (node.name, *layers))


def _alone(readers: Readers, v: Value, reader: Node) -> Value | None:
    """What ``v`` is a view of, if ``reader`` is all that reads it."""
    while True:
        if not readers.alone(v, reader):
            return None
        p = v.producer
        if p is None:
            return None
        source = p.inputs[0] if p.op in ("reshape", "squeeze", "unsqueeze") else None
        if source is None:
            return v
        if source.rank < 2 or source.dims[-1] != v.dims[-1]:
            return None
        v, reader = source, p


def _is_row(c: np.ndarray, v: Value) -> bool:
    last = v.dims[-1]
    return c.size == 1 or (c.shape[-1:] == (last,) and c.size == last)


def _merge(graph: Graph, node: Node, group: list[_Projection]) -> bool:
    first = group[0]
    columns = [p.weights.shape[1] for p in group]
    batch, length = first.y.dims[:2]
    if any(p.y.dims[:2] != (batch, length) or p.weights.dtype != first.weights.dtype
           for p in group):
        return False
    dt = first.y.dtype
    name = " + ".join(p.layers[0] for p in group)

    def constant(array: np.ndarray, what: str) -> Value:
        value = graph.constant(np.ascontiguousarray(array), f"{name}.{what}")
        value.dtype = dt
        return value

    weights = constant(np.concatenate([p.weights for p in group], axis=1), "weights")
    y = emit(graph, "matmul", [first.x, weights], name, before=node)
    y.meta["layers"] = tuple(layer for p in group for layer in p.layers if layer)
    result = y.output
    if any(p.bias is not None for p in group):
        zeros = [np.zeros(n, first.weights.dtype) for n in columns]
        parts = [z if p.bias is None else p.bias for p, z in zip(group, zeros, strict=True)]
        bias = constant(np.concatenate(parts).reshape((1,) * (result.rank - 1) + (-1,)), "bias")
        result = emit(graph, "binary", [result, bias], f"{name}.bias", before=node, fn="add").output
    rows: tuple[D.DimLike, ...] = (batch, length, sum(columns))
    merged = reshape_to(graph, result, rows, node, f"{name}.rows")
    if merged is None:
        return False
    at = 0
    for p, count in zip(group, columns, strict=True):
        part = slice_rows(graph, merged, at, count, node, p.layers[0])
        for i in range(3):
            if node.inputs[i] is p.y:
                node.set_input(i, part)
        at += count
    return True
