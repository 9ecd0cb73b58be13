"""What the fuser puts into one kernel, and what it must not."""

import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.regions.signature import signature

RNG = np.random.default_rng(0)


class Net:
    """A few words to write small graphs with."""

    def __init__(self, shape=(2, 4, 8, 8)):
        self.g = Graph("t")
        self.x = self.g.add_input("x", "f32", shape)

    def unary(self, x, fn="neg"):
        return emit(self.g, "unary", [x], fn, fn=fn).output

    def binary(self, a, b, fn="add"):
        return emit(self.g, "binary", [a, b], fn, fn=fn).output

    def conv(self, x, name="conv"):
        w = self.g.constant(RNG.standard_normal((4, 4, 1, 1)).astype("f4"))
        return emit(self.g, "convolution", [x, w], name, stride=(1, 1)).output

    def softmax(self, x):
        return emit(self.g, "softmax", [x], "softmax", axes=(x.rank - 1,)).output

    def regions(self, *outputs):
        self.g.outputs = list(outputs)
        return [[n.op for n in r.nodes] for r in fuse(self.g).regions]


def test_pointwise_chain_is_one_region():
    n = Net()
    assert n.regions(n.unary(n.unary(n.unary(n.x, "exp")), "abs")) == [["unary"] * 3]


def test_epilogue_joins_the_contraction():
    n = Net()
    y = n.unary(n.conv(n.x), "abs")
    assert n.regions(n.binary(y, n.x)) == [["convolution", "unary", "binary"]]


def test_swish_joins_although_the_result_is_read_twice():
    n = Net()
    y = n.conv(n.x)
    assert n.regions(n.binary(y, n.unary(y, "sigmoid"), "mul")) == [
        ["convolution", "unary", "binary"]
    ]


def test_residual_of_two_convolutions_runs_after_both():
    n = Net()
    a, b = n.conv(n.x, "a"), n.conv(n.x, "b")
    got = n.regions(n.unary(n.binary(a, b)))
    assert got in ([["convolution"], ["convolution", "binary", "unary"]],)


def test_result_read_elsewhere_keeps_its_memory():
    n = Net()
    y = n.conv(n.x)
    assert n.regions(n.unary(y), y) == [["convolution"], ["unary"]]


def test_broadcast_is_not_an_epilogue():
    n = Net((1, 4, 8, 8))
    y = n.conv(n.x)
    big = n.g.add_input("big", "f32", (3, 4, 8, 8))
    assert n.regions(n.binary(y, big)) == [["convolution"], ["binary"]]


def test_expensive_work_is_not_repeated_in_a_softmax():
    n = Net()
    assert n.regions(n.softmax(n.unary(n.x, "erf"))) == [["unary"], ["softmax"]]


def test_cheap_work_is_repeated_in_a_softmax():
    n = Net()
    assert n.regions(n.softmax(n.unary(n.x, "neg"))) == [["unary", "softmax"]]


def test_softmax_takes_its_consumer():
    n = Net()
    assert n.regions(n.unary(n.softmax(n.x), "abs")) == [["softmax", "unary"]]


def test_shared_pointwise_result_is_computed_once():
    n = Net()
    y = n.unary(n.x, "exp")
    assert n.regions(n.unary(y, "abs"), n.unary(y, "neg")) == [["unary"]] * 3


def test_views_cost_nothing():
    n = Net()
    y = emit(n.g, "reshape", [n.x, n.g.constant(np.array([2, -1]))], "flat").output
    z = n.unary(y)
    n.g.outputs = [z]
    fusion = fuse(n.g)
    assert [r.nodes[0].op for r in fusion.regions] == ["unary"]
    assert fusion.views[y] is n.x


def test_symbolic_sizes_fuse_alike():
    n = Net((D.sym("n"), 4, 8, 8))
    assert n.regions(n.binary(n.unary(n.conv(n.x)), n.x)) == [["convolution", "unary", "binary"]]


@pytest.mark.parametrize("other, same", [("abs", False), ("neg", True)])
def test_signature_tells_regions_apart(other, same):
    def text(fn):
        n = Net()
        n.g.outputs = [n.unary(n.unary(n.x, fn), "exp")]
        return signature(fuse(n.g).regions[0])

    assert (text("neg") == text(other)) is same
