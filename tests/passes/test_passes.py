"""Graph passes keep results, and do what they are for."""

import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ir.verify import InvalidGraph, verify
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.manager import Pass, PassManager
from tactician.passes.pipeline import optimize

RNG = np.random.default_rng(0)


def randn(*shape):
    return RNG.standard_normal(shape).astype("f4")


@pytest.fixture(autouse=True)
def check_contracts(monkeypatch):
    monkeypatch.setenv("TACTICIAN_CHECK", "1")


def optimized(g, feed):
    """Optimizes and returns the op names left; results must not change."""
    before = run_graph(g, [feed])
    optimize(g)
    after = run_graph(g, [feed])
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return [n.op for n in g.nodes]


def graph(shape=(2, 3, 8, 8)):
    g = Graph("t")
    return g, g.add_input("x", "f32", shape)


def conv(g, x, k=4, **attrs):
    w = g.constant(randn(k, x.dims[1] // attrs.get("groups", 1), 3, 3))
    return emit(g, "convolution", [x, w], "conv", stride=(1, 1), **attrs).output


@pytest.mark.parametrize("groups", [1, 3])
def test_batch_norm_folds_into_convolution(groups):
    g, x = graph()
    y = conv(g, x, 6, groups=groups)
    scale = [g.constant(randn(6)), g.constant(randn(6))]
    g.outputs = [emit(g, "scale", [y, *scale], "bn", axis=1).output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["convolution"]
    assert g.nodes[0].meta["layers"] == ("conv", "bn")


@pytest.mark.parametrize("groups", [1, 2])
def test_affine_folds_into_deconvolution(groups):
    g, x = graph((1, 4, 5, 5))
    w = g.constant(randn(4, 3, 2, 2))
    y = emit(g, "deconvolution", [x, w], "up", stride=(2, 2), groups=groups).output
    channels = y.dims[1]
    y = emit(g, "binary", [y, g.constant(randn(channels, 1, 1))], "mul", fn="mul").output
    g.outputs = [emit(g, "binary", [y, g.constant(randn(channels, 1, 1))], "add", fn="add").output]
    kept = {1: ["convolution", "depth_to_space"], 2: ["deconvolution"]}
    assert optimized(g, randn(1, 4, 5, 5)) == kept[groups]


@pytest.mark.parametrize("fn, kept", [("mul", 1), ("add", 2)])
def test_matmul_takes_the_scale_only(fn, kept):
    g, x = graph((2, 5))
    y = emit(g, "matmul", [x, g.constant(randn(5, 7))], "mm").output
    g.outputs = [emit(g, "binary", [y, g.constant(randn(7))], fn, fn=fn).output]
    assert len(optimized(g, randn(2, 5))) == kept


def test_scale_per_pixel_does_not_fold():
    g, x = graph()
    y = conv(g, x)
    g.outputs = [emit(g, "binary", [y, g.constant(randn(6, 6))], "mul", fn="mul").output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["convolution", "binary"]


def test_convolution_read_twice_does_not_fold():
    g, x = graph()
    y = conv(g, x)
    g.outputs = [y, emit(g, "binary", [y, g.constant(np.float32(3))], "mul", fn="mul").output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["convolution", "binary"]


def test_constants_fold_and_dead_code_goes():
    g, x = graph()
    c = emit(g, "unary", [g.constant(randn(8))], "c", fn="exp").output
    emit(g, "unary", [x], "dead", fn="exp")
    g.outputs = [emit(g, "binary", [x, c], "add", fn="add").output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["binary"]


def test_common_subexpressions_merge():
    g, x = graph()
    a, b = (emit(g, "unary", [x], n, fn="exp").output for n in "ab")
    g.outputs = [emit(g, "binary", [a, b], "add", fn="add").output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["unary", "binary"]


def test_different_attributes_do_not_merge():
    g, x = graph()
    a, b = (emit(g, "unary", [x], n, fn=n).output for n in ("exp", "neg"))
    g.outputs = [emit(g, "binary", [a, b], "add", fn="add").output]
    assert optimized(g, randn(2, 3, 8, 8)) == ["unary", "unary", "binary"]


def test_a_pass_that_breaks_the_graph_is_named():
    class Breaks(Pass):
        name = "breaks"

        def run(self, graph):
            graph.nodes.reverse()
            return True

    g, x = graph()
    y = emit(g, "unary", [x], "a", fn="exp").output
    g.outputs = [emit(g, "unary", [y], "b", fn="neg").output]
    with pytest.raises(InvalidGraph, match=r"after pass breaks: .*'b'"):
        PassManager([Breaks()]).run(g)


def test_verify_finds_untyped_values():
    g, x = graph((D.sym("n"),))
    node = emit(g, "unary", [x], "a", fn="exp")
    g.outputs = [node.output]
    node.output.shape = None
    with pytest.raises(InvalidGraph, match="no shape"):
        verify(g)


def test_cycles_are_reported():
    g, x = graph()
    a = emit(g, "unary", [x], "a", fn="exp")
    b = emit(g, "unary", [a.output], "b", fn="exp")
    a.set_input(0, b.output)
    with pytest.raises(ValueError, match="cycle through layer"):
        g.toposort()


def _norm_in_parts(g, x, square, quotient, centre=True):
    """A normalization over the last axis as exporters write it."""
    def op(fn, *inputs):
        return emit(g, "binary", inputs, fn, fn=fn).output

    def mean(v):
        return emit(g, "reduce", [v], "mean", fn="mean", axes=(v.rank - 1,), keepdims=True).output

    d = op("sub", x, mean(x)) if centre else x
    two = g.constant(np.float32(2))
    v = mean(op("mul", d, d) if square == "mul" else op("pow", d, two))
    v = op("add", v, g.constant(np.float32(1e-5)))
    if quotient == "rsqrt":
        return op("mul", d, emit(g, "unary", [v], "rsqrt", fn="rsqrt").output)
    root = emit(g, "unary", [v], "sqrt", fn="sqrt").output
    if quotient == "div":
        return op("div", d, root)
    return op("mul", op("div", g.constant(np.float32(1)), root), d)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("quotient", ["div", "rsqrt", "reciprocal"])
@pytest.mark.parametrize("square", ["mul", "pow"])
def test_normalization_is_found(square, quotient, centre):
    g, x = graph((2, 3, 16))
    y = _norm_in_parts(g, x, square, quotient, centre)
    y = emit(g, "binary", [y, g.constant(randn(16))], "scale", fn="mul").output
    if centre:
        y = emit(g, "binary", [g.constant(randn(16)), y], "shift", fn="add").output
    g.outputs = [y]
    assert optimized(g, randn(2, 3, 16)) == ["normalization"]


def test_normalization_of_something_else_is_not_found():
    g, x = graph((2, 3, 16))
    other = emit(g, "unary", [x], "abs", fn="abs").output
    m = emit(g, "reduce", [other], "mean", fn="mean", axes=(2,), keepdims=True).output
    d = emit(g, "binary", [x, m], "sub", fn="sub").output  # the mean of another value
    s = emit(g, "binary", [d, d], "square", fn="mul").output
    v = emit(g, "reduce", [s], "mean", fn="mean", axes=(1,), keepdims=True).output
    v = emit(g, "binary", [v, g.constant(np.float32(1e-5))], "add", fn="add").output
    root = emit(g, "unary", [v], "sqrt", fn="sqrt").output
    g.outputs = [emit(g, "binary", [d, root], "div", fn="div").output]
    ops = optimized(g, randn(2, 3, 16))
    assert ops.count("normalization") == 1 and "sub" not in ops  # only the RMS norm of d
    assert g.nodes[-1].attrs.rms


def test_scale_along_another_axis_stays_outside():
    g, x = graph((2, 3, 16))
    y = _norm_in_parts(g, x, "mul", "div")
    g.outputs = [emit(g, "binary", [y, g.constant(randn(3, 1))], "scale", fn="mul").output]
    assert optimized(g, randn(2, 3, 16)) == ["normalization", "binary"]


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("geometry", [{}, {"pre": (1, 0), "post": (0, 1)},
                                      {"pre": (1, 1), "post": (1, 1), "output_padding": (1, 1)}])
def test_strided_deconvolution_becomes_a_convolution(kernel, stride, geometry):
    g, x = graph((2, 3, 5, 4))
    w, b = g.constant(randn(3, 2, kernel, kernel)), g.constant(randn(2))
    g.outputs = [
        emit(g, "deconvolution", [x, w, b], "up", stride=(stride, stride), **geometry).output
    ]
    ops = optimized(g, randn(2, 3, 5, 4))
    assert ops[:2] == ["convolution", "depth_to_space"] and "deconvolution" not in ops


def test_constants_of_any_size_are_no_steps():
    """A network's weights, as the network API adds them."""
    g, x = graph((2, 1100))
    w = emit(g, "constant", [], "weights", value=np.ones((1100, 1000), "f4")).output
    g.outputs = [emit(g, "matmul", [x, w], "product").output]
    assert optimized(g, randn(2, 1100)) == ["matmul"]
    assert g.nodes[0].inputs[1].const is not None
