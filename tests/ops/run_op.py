"""Runs one op three ways: numpy reference, stages and decomposition. All must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tactician import ops
from tactician.ir import dims as D
from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph, Node, Value
from tactician.ir.verify import verify
from tactician.ops.interpreter import run_graph
from tactician.ops.stage_eval import bind_symbols, run_stages

RTOL = {"f64": 1e-10, "f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2}


def build(
    op: str, inputs: Sequence[Any], const: Sequence[int] = (),
    dynamic: Mapping[int, Sequence[int]] | None = None, **attrs: Any,
) -> Node:
    """A node in a graph of its own (``meta["graph"]``)."""
    graph = Graph()

    def value(i: int, x: Any) -> Value:
        if i in const:
            return graph.constant(x, f"c{i}")
        symbolic = (dynamic or {}).get(i, ())
        shape = [D.sym(f"x{i}.{k}") if k in symbolic else n for k, n in enumerate(x.shape)]
        return graph.add_input(f"x{i}", x.dtype, shape)

    values = [None if x is None else value(i, x) for i, x in enumerate(inputs)]
    node = ops.emit(graph, op, values, op, **attrs)
    graph.outputs = list(node.outputs)
    node.meta["graph"] = graph
    return node


def close(got: Any, want: Any, slack: float = 1.0) -> None:
    """Equal integers; floats within the tolerance of ``want``'s type."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    rtol = RTOL.get(dtype(want.dtype).name, 1e-5) * slack
    got, want = got.astype(np.complex128), want.astype(np.complex128)
    finite = np.abs(want[np.isfinite(want)])
    atol = rtol * max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def run_op(
    op: str, inputs: Sequence[Any], const: Sequence[int] = (), *, native: bool = True,
    slack: float = 1.0, dynamic: Mapping[int, Sequence[int]] | None = None, **attrs: Any,
) -> Any:
    """The reference's outputs (one array, or a tuple), checked for declared shapes and types and
    against stages and decomposition where the op has them.

    Args:
        op: Name of the op.
        inputs: One array per input, None for absent ones.
        const: Inputs that are constants.
        native: Fail if the op has neither stages nor a decomposition.
        slack: Loosens the tolerance between reference and stages.
        dynamic: Dimensions, by input, that are symbolic in a second round.
        **attrs: The op's attributes.
    """
    inputs = [None if x is None else np.asarray(x) for x in inputs]
    node = build(op, inputs, const, **attrs)
    want = ops.evaluate(node, *inputs)
    check(node, inputs, want, native, slack)
    if dynamic:
        again = build(op, inputs, const, dynamic, **attrs)
        assert not all(v.is_static for v in again.outputs)
        check(again, inputs, want, native, slack)
    return want[0] if len(want) == 1 else want


def check(
    node: Node, inputs: Sequence[Any], want: Sequence[Any], native: bool, slack: float
) -> None:
    sizes = bind_symbols(node.inputs, inputs)
    for value, array in zip(node.outputs, want, strict=True):
        assert tuple(D.evaluate(d, sizes) for d in value.dims) == array.shape, (value, array.shape)
        assert value.dtype.np == array.dtype
    got = run_stages(node, *inputs)
    if got is not None:
        for array, other in zip(want, got, strict=True):
            close(other, array, slack)
    found = check_decomposition(node, inputs, want, slack)
    assert got is not None or found or not native, f"{node.op} can only run in numpy"


def check_decomposition(
    node: Node, inputs: Sequence[Any], want: Sequence[Any], slack: float
) -> bool:
    graph = node.meta["graph"]
    results = ops.get(node.op).decompose(node, graph)
    if results is None:
        return False
    sizes = bind_symbols(node.inputs, inputs)

    def at(dims: Sequence[D.DimLike]) -> list[int]:
        return [D.evaluate(d, sizes) for d in dims]

    for old, new in zip(node.outputs, results, strict=True):
        assert at(new.dims) == at(old.dims), (old, new)
        graph.replace_uses(old, new)
    graph.remove(node)
    verify(graph)
    feeds = {f"x{i}": x for i, x in enumerate(inputs)}
    for got, array in zip(run_graph(graph, feeds), want, strict=True):
        close(got, array, slack)
    return True
