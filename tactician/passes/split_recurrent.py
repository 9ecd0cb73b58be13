"""Multiplies all inputs of a recurrent layer before its steps.

    'rnn(x, w, r, …) => recurrent_steps(x @ w + biases, r, …)'

One large product takes the place of one per step. Only where the target has a kernel for the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir.dtypes import f32
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..ops.recurrent import CELLS
from .manager import Pass


class SplitRecurrent(Pass):
    """See the module's text.

    Args:
        takes: Whether the target has a tactic for a ``recurrent_steps`` node.
    """

    name = "split_recurrent"

    def __init__(self, takes: Callable[[Node], bool]):
        self.takes = takes

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            if node.op not in ("rnn", "quantized_lstm") or self.takes(node):
                continue
            if not self.takes(_trial(node)):
                continue
            split = _split if node.op == "rnn" else _split_quantized
            new = split(graph, node)
            if new is None:
                continue
            new.meta.update(node.meta)
            for old, result in zip(node.outputs, new.outputs, strict=True):
                graph.replace_uses(old, result)
                result.name = old.name
                result.meta.update(old.meta)
            graph.remove(node)
            changed = True
        return changed


def _attributes(node: Node) -> dict[str, Any]:
    return {f.name: getattr(node.attrs, f.name) for f in fields(node.attrs)}


def _trial(node: Node) -> Node:
    """The recurrence that would take the node's place, in a graph of its own."""
    a, graph = node.attrs, Graph()
    x = node.inputs[0]
    assert x is not None
    quantized = node.op == "quantized_lstm"
    dirs = 2 if a.direction == "bidirectional" else 1
    rows = CELLS[a.cell] * a.hidden

    def like(v: Value | None) -> Value | None:
        return None if v is None else graph.add_input(f"v{len(graph.inputs)}", v.dtype, v.dims)

    gates = graph.add_input("gates", f32 if x.dtype.bits < 32 else x.dtype,
                            (*x.dims[:2], dirs * rows))  # fmt: skip
    r = graph.add_input("r", x.dtype, (dirs, rows, a.hidden))
    rb = None
    if a.cell == "gru" and not quantized and len(node.inputs) > 3 and node.inputs[3] is not None:
        rb = graph.add_input("rb", x.dtype, (dirs, a.hidden))
    rest = (*node.inputs, *(None,) * 8)[3 if quantized else 4 :][:4]
    inputs = [gates, r, rb, *map(like, rest)]
    return emit(graph, "recurrent_steps", inputs, node.name, **_attributes(node))


class _Maker:
    """Adds nodes before one that they replace."""

    def __init__(self, graph: Graph, node: Node):
        self.graph, self.node, self.count = graph, node, 0

    def __call__(self, op: str, inputs: list[Value | None], **attrs: Any) -> Value:
        self.count += 1
        name = f"{self.node.name}.{op}{self.count}"
        return emit(self.graph, op, inputs, name, before=self.node, **attrs).output

    def ints(self, *values: int) -> Value:
        return self.graph.constant(np.array(values, np.int64), f"{self.node.name}.ints")

    def cut(self, x: Value, start: int, stop: int) -> Value:
        """A slice of the last axis."""
        axis = x.rank - 1
        return self("strided_slice",
                    [x, self.ints(start), self.ints(stop), self.ints(axis)])  # fmt: skip


def _split(graph: Graph, node: Node) -> Node | None:
    x, w, r, b, lens, h0, c0, p = (*node.inputs, *(None,) * 8)[:8]
    assert x is not None and w is not None and r is not None
    a, make = node.attrs, _Maker(graph, node)
    dirs = 2 if a.direction == "bidirectional" else 1
    rows = CELLS[a.cell] * a.hidden
    size = w.dims[2]
    if not isinstance(size, int):
        return None
    flat = make("reshape", [w, make.ints(dirs * rows, size)])
    to = f32 if x.dtype.bits < 32 else x.dtype
    gates = make("matmul", [x, flat], tb="transpose", **({"to": to} if to is not x.dtype else {}))
    rb = None
    if b is not None:
        own, other = make.cut(b, 0, rows), make.cut(b, rows, 2 * rows)
        if a.cell == "gru":  # the reset gate comes between the last gate's products
            rb = make.cut(other, 2 * a.hidden, rows)
            kept = make.cut(other, 0, 2 * a.hidden)
            zeros = graph.constant(np.zeros((dirs, a.hidden), x.dtype.np), "zeros")
            other = make("concat", [kept, zeros], axis=1)
        bias = make("binary", [own, other], fn="add")
        if to is not x.dtype:
            bias = make("cast", [bias], to=to)
        bias = make("reshape", [bias, make.ints(1, 1, dirs * rows)])
        gates = make("binary", [gates, bias], fn="add")
    inputs = [gates, r, rb, lens, h0, c0, p]
    return emit(graph, "recurrent_steps", inputs, node.name, before=node, source=node.source,
                **_attributes(node))  # fmt: skip


def _split_quantized(graph: Graph, node: Node) -> Node | None:
    """On real numbers: the products are as exact as those of a quantized state, or more."""
    gates, r, scale, lens, h0, c0, p = (*node.inputs, *(None,) * 7)[:7]
    assert r is not None and scale is not None
    if r.const is None or scale.const is None:
        return None
    real = r.const.astype(np.float32) * scale.const[:, None]
    weights = graph.constant(np.ascontiguousarray(real.swapaxes(1, 2)), f"{node.name}.r")
    inputs = [gates, weights, None, lens, h0, c0, p]
    return emit(graph, "recurrent_steps", inputs, node.name, before=node, source=node.source,
                **_attributes(node))  # fmt: skip
