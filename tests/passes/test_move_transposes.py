"""Channels-last transposes move down until they cancel; results stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tactician.ir.dims import sym
from tactician.ir.graph import Graph, Value
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import optimize

RNG = np.random.default_rng(3)


class Net:
    """A graph whose images have channels last, as front ends write it."""

    def __init__(self, batch: object = 2) -> None:
        self.g = Graph()
        self.x = self.g.add_input("x", "f32", (batch, 6, 5, 4))  # type: ignore[arg-type]

    def op(self, op: str, *inputs: object, **attrs: object) -> Value:
        values = [self.g.constant(v) if isinstance(v, np.ndarray) else v for v in inputs]
        return emit(self.g, op, values, op, **attrs).output  # type: ignore[arg-type]

    def conv(self, x: Value, k: int = 4) -> Value:
        first = self.op("transpose", x, perm=(0, 3, 1, 2))
        w = RNG.normal(size=(k, int(first.dims[1]), 1, 1)).astype(np.float32)
        return self.op("transpose", self.op("convolution", first, w), perm=(0, 2, 3, 1))


def f(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


BETWEEN: dict[str, Callable[[Net, Value], Value]] = {
    "bias": lambda n, y: n.op("binary", y, f(4), fn="add"),
    "scalar": lambda n, y: n.op("binary", f(1), y, fn="mul"),
    "relu": lambda n, y: n.op("activation", y, fn="relu"),
    "residual": lambda n, y: n.op("binary", y, n.conv(y), fn="add"),
    "concat": lambda n, y: n.op("concat", y, n.conv(y, 3), axis=3),
    "pad": lambda n, y: n.op("pad", y, i(0, 1, 0, 0, 0, 2, 1, 0)),
    "slice": lambda n, y: n.op("strided_slice", y, i(1, 0), i(5, 2), i(1, 3), i(1, 1)),
    "mean": lambda n, y: n.op("reduce", y, fn="mean", axes=(1, 2), keepdims=True),
    "gate": lambda n, y: n.op("binary", y, n.op("activation", n.op(
        "reduce", y, fn="mean", axes=(1, 2), keepdims=True), fn="sigmoid"), fn="mul"),
    "softmax": lambda n, y: n.op("softmax", y, axes=(3,)),
    "select": lambda n, y: n.op("select", n.op("binary", y, f(1, 1, 1, 4), fn="gt"), y, f(4)),
    "line": lambda n, y: n.op("unsqueeze", n.op("activation", n.op(
        "squeeze", n.op("reduce", y, fn="max", axes=(1,), keepdims=True), i(1)), fn="tanh"), i(1)),
}


@pytest.mark.parametrize("batch", [2, sym("x.0")], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", BETWEEN)
def test_between_convolutions(name: str, batch: object) -> None:
    n = Net(batch)
    n.g.outputs = [n.conv(BETWEEN[name](n, n.conv(n.x)), 3)]
    feed = [f(2, 6, 5, 4)]
    wanted = run_graph(n.g, feed)[0]
    optimize(n.g)
    np.testing.assert_allclose(run_graph(n.g, feed)[0], wanted, rtol=1e-5, atol=1e-6)
    assert sum(node.op == "transpose" for node in n.g.nodes) <= 2, n.g


@pytest.mark.parametrize("flag", ["none", "transpose"])
def test_flattened_dense_layer(flag: str) -> None:
    n = Net()
    flat = n.op("reshape", n.conv(n.x), i(2, 120), zero_copies=False)
    n.g.outputs = [n.op("matmul", flat, f(120, 7) if flag == "none" else f(7, 120), tb=flag)]
    feed = [f(2, 6, 5, 4)]
    wanted = run_graph(n.g, feed)[0]
    optimize(n.g)
    np.testing.assert_allclose(run_graph(n.g, feed)[0], wanted, rtol=1e-4, atol=1e-5)
    assert sum(node.op == "transpose" for node in n.g.nodes) == 1


def test_output_before_the_transpose_keeps_its_type() -> None:
    n = Net()
    y = n.conv(n.x)
    z = n.op("activation", y, fn="relu")
    n.g.outputs = [y, z, n.op("reduce", z, fn="mean", axes=(1, 2), keepdims=False)]
    feed = [f(2, 6, 5, 4)]
    wanted = run_graph(n.g, feed)
    optimize(n.g)
    for a, b in zip(run_graph(n.g, feed), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_matrix_transposes_stay_flags() -> None:
    """Swapping the last two axes of matrices belongs to the product."""
    g = Graph()
    x = g.add_input("x", "f32", (2, 3, 4))
    t = emit(g, "activation", [emit(g, "transpose", [x], perm=(0, 2, 1)).output], fn="relu").output
    g.outputs = [emit(g, "matmul", [x, t]).output]
    optimize(g)
    assert [n.op for n in g.nodes] == ["transpose", "activation", "matmul"]
