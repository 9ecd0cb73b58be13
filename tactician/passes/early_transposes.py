"""Transposes of merged spatial dimensions come before the merge.

    'transpose(reshape(x [N, C, H, W], [N, C, H W]), (0, 2, 1))
        => reshape(transpose(x, (0, 2, 3, 1)), [N, H W, C])'

As vision transformers have it behind their first convolution. Where the convolution's result is
stored channels-last, the transpose is nothing then.
"""

from __future__ import annotations

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass


class EarlyTransposes(Pass):
    """See the module."""

    name = "early_transposes"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            x = _spread(node)
            if x is None:
                continue
            perm = (0, *range(2, x.rank), 1)
            turned = emit(graph, "transpose", [x], node.name, before=node, perm=perm).output
            dims = [d if isinstance(d, int) else -1 for d in node.output.dims]
            shape = graph.constant(np.array(dims, np.int64))
            new = emit(graph, "reshape", [turned, shape], node.name, before=node,
                       zero_copies=False).output  # fmt: skip
            graph.replace_uses(node.output, new)
            new.name = node.output.name
            new.meta.update(node.output.meta)
            graph.remove(node)
            changed = True
        return changed


def _spread(node: Node) -> Value | None:
    """The convolution's result whose merged positions a node transposes."""
    if node.op != "transpose" or tuple(node.attrs.perm) != (0, 2, 1):
        return None
    merged = node.inputs[0]
    p = None if merged is None else merged.producer
    if p is None or p.op != "reshape":
        return None
    x = p.inputs[0]
    if x is None or x.rank < 4 or x.producer is None or merged is None:
        return None
    if x.producer.op not in ("convolution", "int_conv", "deconvolution"):
        return None
    whole = D.product(x.dims[2:])
    if sum(not isinstance(d, int) for d in merged.dims) > 1 or 0 in merged.dims:
        return None
    return x if merged.dims == (x.dims[0], x.dims[1], whole) else None
