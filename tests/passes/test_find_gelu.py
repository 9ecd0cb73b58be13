"""GELU is found in its parts, as exporters write it, and nowhere else."""

import math

import numpy as np
import pytest

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import optimize

ROOT, TANH = math.sqrt(0.5), math.sqrt(2 / math.pi)


class Net:
    """A few words to write formulas with; numbers become constants."""

    def __init__(self, dtype="f32", shape=(3, 17)):
        self.g, self.dtype = Graph("t"), np.dtype({"f32": "f4", "f16": "f2", "f64": "f8"}[dtype])
        self.x = self.g.add_input("x", dtype, shape)
        self.feed = np.random.default_rng(0).normal(scale=2, size=shape).astype(self.dtype)

    def __getattr__(self, fn):
        def op(*operands):
            kind = "unary" if len(operands) == 1 else "binary"
            values = [
                self.g.constant(np.asarray(v, self.dtype)) if isinstance(v, float) else v
                for v in operands
            ]
            return emit(self.g, kind, values, fn, fn=fn).output

        return op

    def left(self, *outputs):
        """What optimizing leaves; results must stay."""
        self.g.outputs = list(outputs)
        before = run_graph(self.g, [self.feed])
        optimize(self.g)
        after = run_graph(self.g, [self.feed])
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(a.astype("f8"), b.astype("f8"), rtol=0, atol=4e-3 if
                                       self.dtype == np.float16 else 1e-5)  # fmt: skip
        return [(n.op, getattr(n.attrs, "fn", "")) for n in self.g.nodes]


def exact(n, x, how):
    arg = n.div(x, 1 / ROOT) if how in ("torch", "half last") else n.mul(x, ROOT)
    one = n.add(n.erf(arg), 1.0)
    return {
        "torch": lambda: n.mul(n.mul(x, one), 0.5),
        "half first": lambda: n.mul(n.mul(0.5, x), one),
        "half inside": lambda: n.mul(x, n.mul(one, 0.5)),
        "half last": lambda: n.mul(0.5, n.mul(one, x)),
    }[how]()


def by_tanh(n, x, how):
    square = n.pow(x, 2.0) if how == "power" else n.mul(x, x)
    cube = n.pow(x, 3.0) if how == "torch" else n.mul(square, x)
    t = n.tanh(n.mul(n.add(x, n.mul(0.044715, cube)), TANH))
    return n.mul(n.mul(x, 0.5), n.add(1.0, t))


@pytest.mark.parametrize("dtype", ["f32", "f16", "f64"])
@pytest.mark.parametrize("how", ["torch", "half first", "half inside", "half last"])
def test_exact(dtype, how):
    n = Net(dtype)
    assert n.left(exact(n, n.x, how)) == [("activation", "gelu_erf")]


@pytest.mark.parametrize("how", ["torch", "square", "power"])
def test_by_tanh(how):
    n = Net()
    assert n.left(by_tanh(n, n.x, how)) == [("activation", "gelu_tanh")]


def test_of_what_is_computed():
    n = Net()
    y = n.add(n.x, 1.0)
    assert n.left(n.neg(exact(n, y, "torch"))) == [
        ("binary", "add"), ("activation", "gelu_erf"), ("unary", "neg"),
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["half", "root", "one", "other", "tanh"])
def test_what_is_no_gelu(change):
    n = Net()
    y = n.neg(n.x) if change == "other" else n.x
    arg = n.mul(y, 0.8 if change == "root" else ROOT)
    f = n.tanh(arg) if change == "tanh" else n.erf(arg)
    one = n.add(f, 2.0 if change == "one" else 1.0)
    z = n.mul(n.mul(n.x, one), 0.25 if change == "half" else 0.5)
    assert "activation" not in {op for op, _ in n.left(z)}


def test_outputs_between_stay():
    n = Net()
    one = n.add(n.erf(n.mul(n.x, ROOT)), 1.0)
    y = n.mul(n.mul(n.x, one), 0.5)
    assert ("unary", "erf") in n.left(y, one)


def test_names_and_layers():
    n = Net()
    y = exact(n, n.x, "torch")
    name = y.name
    n.left(y)
    (node,) = n.g.nodes
    assert node.output.name == name
    assert sorted(node.meta["layers"]) == ["add", "div", "erf", "mul", "mul"]
