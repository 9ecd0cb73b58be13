"""Transposes behind merged positions of a convolution."""

import numpy as np
import pytest

from tactician.ir.graph import Graph
from tactician.ops import emit, evaluate
from tactician.passes.early_transposes import EarlyTransposes
from tactician.passes.manager import PassManager

rng = np.random.default_rng(3)


def patches(batch=2, perm=(0, 2, 1), merged=(8, 6)):
    g = Graph()
    x = g.add_input("x", "f32", (batch, 3, 8, 12))
    w = g.constant(rng.standard_normal((8, 3, 4, 4)).astype(np.float32))
    y = emit(g, "convolution", [x, w], stride=(4, 4)).output
    shape = g.constant(np.array([-1 if not isinstance(batch, int) else batch, *merged]))
    y = emit(g, "reshape", [y, shape]).output
    g.outputs = [emit(g, "transpose", [y], perm=perm).output]
    return g, x


def values(g, x, array):
    found = {x: array}
    for node in g.nodes:
        ins = [found.get(v, v.const) for v in node.inputs]
        found.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    return found[g.outputs[0]]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_transpose_comes_first(batch):
    g, x = patches(batch)
    array = rng.standard_normal((batch, 3, 8, 12)).astype(np.float32)
    want = values(g, x, array)
    PassManager([EarlyTransposes()]).run(g)
    g.toposort()
    assert [n.op for n in g.nodes][-2:] == ["transpose", "reshape"]
    got = values(g, x, array)
    assert got.shape == want.shape == (batch, 6, 8) and np.array_equal(got, want)


@pytest.mark.parametrize("case", [{"perm": (1, 0, 2)}, {"merged": (6, 8)}, {"merged": (4, 12)}])
def test_others_stay(case):
    g, _ = patches(**case)
    before = [n.op for n in g.nodes]
    assert not EarlyTransposes().run(g)
    assert [n.op for n in g.nodes] == before
