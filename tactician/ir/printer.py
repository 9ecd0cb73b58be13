"""Graphs as text, one node a line."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import numpy as np

from .graph import Graph, Node, Value


def print_graph(graph: Graph, indent: str = "") -> str:
    """Readable text of a graph; constants show type and shape, attributes that differ from
    their defaults."""
    lines = [f"{indent}graph {graph.name}({', '.join(map(repr, graph.inputs))}) {{"]
    for node in graph.nodes:
        lines.append(f"{indent}  {_node_text(node)}")
        lines.extend(print_graph(g, indent + "    ") for g in node.subgraphs)
    lines.append(f"{indent}  return {', '.join('%' + v.name for v in graph.outputs)}")
    lines.append(indent + "}")
    return "\n".join(lines)


def _node_text(node: Node) -> str:
    ins = ", ".join(_operand(v) for v in node.inputs)
    attrs = _attrs_text(node.attrs)
    return f"{', '.join(map(repr, node.outputs))} = {node.op}({ins}){attrs}  # {node.name}"


def _operand(v: Value | None) -> str:
    if v is None:
        return "-"
    if v.const is None:
        return "%" + v.name
    if v.const.size <= 4:
        return f"{v.dtype}{v.const.tolist()}"
    return f"const {v.dtype}{list(v.const.shape)}"


def _attrs_text(attrs: Any) -> str:
    if attrs is None or not is_dataclass(attrs):
        return ""
    shown = [
        f"{f.name}={getattr(attrs, f.name)!r}"
        for f in fields(attrs)
        if f.default is MISSING or not np.array_equal(getattr(attrs, f.name), f.default)
    ]
    return f" {{{', '.join(shown)}}}" if shown else ""
