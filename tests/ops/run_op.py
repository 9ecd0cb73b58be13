"""Runs one op three ways: numpy reference, stages and decomposition. All must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tactician import ops
from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph, Node
from tactician.ir.verify import verify
from tactician.ops.interpreter import run_graph

RTOL = {"f64": 1e-10, "f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2}


def build(op: str, inputs: Sequence[Any], const: Sequence[int] = (), **attrs: Any) -> Node:
    """A graph with one node; inputs listed in ``const`` are constants."""
    graph = Graph()
    values = [
        None if x is None
        else graph.constant(x, f"c{i}") if i in const
        else graph.add_input(f"x{i}", x.dtype, x.shape)
        for i, x in enumerate(inputs)
    ]
    node = ops.emit(graph, op, values, op, **attrs)
    graph.outputs = list(node.outputs)
    node.meta["graph"] = graph
    return node


def close(got: Any, want: Any, scale: float = 1.0) -> None:
    """Equal integers; floats within the tolerance of ``want``'s type."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    rtol = RTOL.get(dtype(want.dtype).name, 1e-5) * scale
    got, want = got.astype(np.complex128), want.astype(np.complex128)
    finite = np.abs(want[np.isfinite(want)])
    atol = rtol * max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def run_op(
    op: str, inputs: Sequence[Any], const: Sequence[int] = (), *, stages: bool = True,
    scale: float = 1.0, **attrs: Any,
) -> Any:
    """The reference's outputs (one array, or a tuple), checked for declared shapes and types and
    against stages and decomposition where the op has them.

    Args:
        stages: Fail if the op has neither stages nor a decomposition.
    """
    inputs = [None if x is None else np.asarray(x) for x in inputs]
    node = build(op, inputs, const, **attrs)
    want = ops.evaluate(node, *inputs)
    for value, array in zip(node.outputs, want, strict=True):
        assert tuple(value.dims) == array.shape, (value, array.shape)
        assert value.dtype.np == array.dtype
    native = check_stages(node, inputs, want, scale)
    native |= check_decomposition(node, inputs, want, scale)
    assert native or not stages, f"{op} has neither stages nor a decomposition"
    return want[0] if len(want) == 1 else want


def check_stages(node: Node, inputs: Sequence[Any], want: Sequence[Any], scale: float) -> bool:
    from tactician.testing.stage_eval import run_stages

    stages = ops.get(node.op).stages(node)
    if stages is None:
        return False
    env = {v: x for v, x in zip(node.inputs, inputs, strict=True) if v is not None}
    got = run_stages(stages, env)
    for value, array in zip(node.outputs, want, strict=True):
        close(got[value], array, scale)
    return True


def check_decomposition(
    node: Node, inputs: Sequence[Any], want: Sequence[Any], scale: float
) -> bool:
    graph = node.meta["graph"]
    results = ops.get(node.op).decompose(node, graph)
    if results is None:
        return False
    for old, new in zip(node.outputs, results, strict=True):
        assert tuple(new.dims) == tuple(old.dims), (old, new)
        graph.replace_uses(old, new)
    graph.remove(node)
    verify(graph)
    feeds = {f"x{i}": x for i, x in enumerate(inputs)}
    for got, array in zip(run_graph(graph, feeds), want, strict=True):
        close(got, array, scale)
    return True
