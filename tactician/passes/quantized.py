"""What passes over quantized graphs share: reading quantize and dequantize nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.dtypes import DType
from ..ir.graph import Graph, Node, Value
from ..ops import emit


@dataclass(frozen=True)
class Scaling:
    """How integers stand for reals: ``(data - zero) * scale``.

    Attributes:
        data: The quantized value (of a dequantize node), or the real one (of a quantize node).
        scale, zero: The parameters; ``zero`` is None if it is absent or known to be 0.
        axis: Axis of a scale per channel; None if there is one scale for all.
        to: Element type of the node's result.
    """

    data: Value
    scale: Value
    zero: Value | None
    axis: int | None
    to: DType

    def same_as(self, other: Scaling) -> bool:
        """Whether the parameters are equal (constants by content)."""
        return (
            self.axis == other.axis
            and _equal(self.scale, other.scale)
            and _equal(self.zero, other.zero)
        )


def _equal(a: Value | None, b: Value | None) -> bool:
    if a is b or a is None or b is None:
        return a is b
    if a.const is None or b.const is None:
        return False
    return bool(a.const.size == b.const.size and np.array_equal(
        a.const.reshape(-1), b.const.reshape(-1)))


def scaling(node: Node | None, op: str) -> Scaling | None:
    """The parameters of a quantize or dequantize node; None for other nodes, and for blocks."""
    if node is None or node.op != op or node.attrs.block_size:
        return None
    x, scale = node.inputs[:2]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or scale is None or not scale.dtype.is_float or scale.rank > 1:
        return None
    axis = None if scale.rank == 0 or scale.dims[0] == 1 else node.attrs.axis % max(x.rank, 1)
    if zero is not None and zero.const is not None and not np.any(zero.const != 0):
        zero = None
    if zero is not None and zero.rank == 1 and zero.dims[0] != 1 and axis is None:
        return None
    return Scaling(x, scale, zero, axis, node.outputs[0].dtype)


def dequantized(v: Value | None) -> Scaling | None:
    """The parameters of the dequantize node that computes ``v``."""
    return None if v is None else scaling(v.producer, "dequantize")


def is_small_int(dt: DType) -> bool:
    return dt.is_int and dt.bits <= 8


def replace(graph: Graph, node: Node, new: Value) -> None:
    """Lets readers of a node's only output read ``new``, under the old name, and removes it."""
    old = node.outputs[0]
    public = any(old is o for o in graph.outputs)
    own = new.producer is not None and not new.users and not any(new is o for o in graph.outputs)
    if public and not own:
        new = emit(graph, "identity", [new], node.name, before=node).output
    if public or own:
        new.name = old.name
        new.meta.update({k: m for k, m in old.meta.items() if k not in new.meta})
    graph.replace_uses(old, new)
    graph.remove(node)


def is_quantized(graph: Graph) -> bool:
    """Whether a graph, or a body in it, has anything to do with quantization."""
    return any(
        n.op in ("dequantize", "int_matmul", "int_conv") or any(map(is_quantized, n.subgraphs))
        for n in graph.nodes
    )
