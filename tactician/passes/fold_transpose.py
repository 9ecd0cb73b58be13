"""Folds transposes of matrix operands into the matmul's own flags.

    'matmul(a, transpose(b, swap last two)) => matmul(a, b, tb=transpose)'
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.graph import Graph, Node, Value
from ..ops import infer_node
from .manager import Pass

_FLIPPED = {"none": "transpose", "transpose": "none"}


class FoldTranspose(Pass):
    """Transposes of the last two dimensions become matmul flags."""

    name = "fold_transpose"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in graph.nodes:
            if node.op == "matmul":
                changed |= _fold(node, 0, "ta")
                changed |= _fold(node, 1, "tb")
        return changed


def _fold(node: Node, i: int, flag: str) -> bool:
    source = _untransposed(node.inputs[i])
    mode = getattr(node.attrs, flag)
    if source is None or mode not in _FLIPPED:
        return False
    node.attrs = replace(node.attrs, **{flag: _FLIPPED[mode]})
    node.set_input(i, source)
    infer_node(node)
    return True


def _untransposed(v: Value | None) -> Value | None:
    """What ``v`` is the matrix transpose of, if it is one."""
    p = v.producer if v is not None else None
    if p is None or p.op != "transpose" or len(p.attrs.perm) < 2:
        return None
    perm = tuple(p.attrs.perm)
    n = len(perm)
    return p.inputs[0] if perm == (*range(n - 2), n - 1, n - 2) else None
