"""Ops that only networks under construction hold.

Loops and conditionals are recorded flat: boundary nodes say where values enter and leave a body.
`tactician.network.control` turns them into ``loop`` and ``if`` before anything is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.graph import Node, TensorType
from ..ops.registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class InvalidAttrs:
    message: str = ""
    outputs: int = 1


@register
class Invalid(Op):
    """Stands for a layer whose arguments are wrong; says why."""

    name = "invalid"
    kind = Kind.OPAQUE
    Attrs = InvalidAttrs

    def num_outputs(self, node: Node) -> int:
        return int(node.attrs.outputs)

    def infer(self, node: Node) -> Sequence[TensorType]:
        raise OpError(node.attrs.message)

    def reference(self, node: Node, *inputs: Any) -> Any:
        raise OpError(node.attrs.message)
