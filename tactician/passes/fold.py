"""Constant folding: nodes whose inputs are all known are computed now.

Covers shape arithmetic too: a value whose integer contents are known without symbols becomes a
constant, whatever computed it.
"""

from __future__ import annotations

import warnings

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ops import evaluate, get
from ..ops.registry import D_ERRORS, Kind
from .manager import Pass

# A folded result this large must not be larger than what it is computed from.
_LARGE = 1 << 20


class FoldConstants(Pass):
    """Replaces constant results by constants.

    Args:
        weights: Whether dequantized weights are constants, too. Not before those that integer
            contractions take have been found.
    """

    name = "fold"

    def __init__(self, weights: bool = True):
        self.weights = weights

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            if not self.weights and _is_weights(node):
                continue
            if _by_content(graph, node) or (_foldable(node) and _evaluate(graph, node)):
                changed = True
        if changed:
            graph.remove_all([n for n in graph.nodes if _unread(graph, n)])
        return changed


def _is_weights(node: Node) -> bool:
    x = node.inputs[0] if node.op == "dequantize" else None
    return x is not None and x.dtype.bits <= 8


def _unread(graph: Graph, node: Node) -> bool:
    return bool(node.outputs) and not any(
        v.users or any(v is o for o in graph.outputs) for v in node.outputs
    )


def _by_content(graph: Graph, node: Node) -> bool:
    """Folds outputs whose integer contents are known without symbols."""
    changed = False
    for v in node.outputs:
        if v.content is None or not (v.users or v in graph.outputs):
            continue
        if not all(D.is_static(x) for x in v.content.flat):
            continue
        array = np.array(v.content.tolist(), dtype=v.dtype.np).reshape(v.content.shape)
        _replace(graph, v, array)
        changed = True
    return changed


def _foldable(node: Node) -> bool:
    if not node.outputs or get(node.op).kind is Kind.CONTROL or not get(node.op).is_pure(node):
        return False
    if node.op == "constant":  # already takes all the memory that it will take
        return True
    inputs = node.present_inputs()
    if any(v.const is None for v in inputs) or not all(v.is_static for v in node.outputs):
        return False
    size_in = sum(v.const.size for v in inputs if v.const is not None)
    size_out = sum(int(D.product(v.dims)) for v in node.outputs)  # type: ignore[arg-type]
    return size_out <= max(_LARGE, 2 * size_in)


def _evaluate(graph: Graph, node: Node) -> bool:
    if not any(v.users or v in graph.outputs for v in node.outputs):
        return False
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = evaluate(node, *(None if v is None else v.const for v in node.inputs))
    except D_ERRORS:
        return False  # the step will fail, or not be reached, at run time
    for v, array in zip(node.outputs, results, strict=True):
        _replace(graph, v, array.reshape(v.dims))  # type: ignore[arg-type]
    return True


def _replace(graph: Graph, old: Value, array: np.ndarray) -> None:
    new = graph.constant(np.ascontiguousarray(array).reshape(array.shape), old.name)
    new.meta = dict(old.meta)
    if new.dtype is not old.dtype:
        new.dtype = old.dtype
    graph.replace_uses(old, new)
