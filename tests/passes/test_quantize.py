"""Quantized networks: contractions in integers, and what lies between them on integers."""

import numpy as np
import onnx
import pytest
from conftest import shared_path

from tactician.ir import dtypes as T
from tactician.ir.graph import Graph
from tactician.ir.verify import verify
from tactician.onnx_backend import load_network
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import optimize
from tactician.regions.fuse import fuse

RNG = np.random.default_rng(0)


def randn(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype("f4")


def f4(x):
    return np.asarray(x, "f4")


class Net:
    """A graph under construction, with quantization."""

    def __init__(self, *shape):
        self.g = Graph("t")
        self.x = self.g.add_input("x", "f32", shape)

    def op(self, name, *inputs, **attrs):
        values = [self.g.constant(i) if isinstance(i, (np.ndarray, np.generic)) else i
                  for i in inputs]
        return emit(self.g, name, values, name, **attrs).outputs[0]

    def dq(self, x, scale, zero=None, **kw):
        return self.op("dequantize", x, f4(scale), zero, **kw)

    def qdq(self, x, scale=0.05, zero=None, to="i8"):
        q = self.op("quantize", x, f4(scale), zero, to=T.dtype(to))
        return self.dq(q, scale, zero)

    def weights(self, *shape, axis=0, per_channel=True, to="i8", zero=None):
        low, high = {"i8": (-127, 128), "u8": (0, 256), "i4": (-8, 8)}[to]
        w = RNG.integers(low, high, shape).astype(T.dtype(to).np)
        scale = f4(RNG.uniform(1e-3, 2e-3, shape[axis])) if per_channel else f4(1e-3)
        return self.dq(w, scale, zero, axis=axis)

    def finish(self, *outputs, steps=1, takes=True):
        """Optimizes; results may differ by ``steps`` of 0.05. Returns the ops, with types."""
        self.g.outputs = list(outputs)
        feed = randn(*self.x.dims)
        want = run_graph(self.g, [feed])
        optimize(self.g, takes=lambda n: takes and n.op != "attention")
        verify(self.g)
        for y, e in zip(run_graph(self.g, [feed]), want, strict=True):
            assert y.dtype == e.dtype
            assert np.abs(y.astype("f8") - e).max() <= steps * 0.0501 + 1e-5 * np.abs(e).max()
        return [f"{n.op} {n.outputs[0].dtype}" for n in self.g.nodes]


@pytest.mark.parametrize("to,zero", [("i8", None), ("i8", np.int8(-7)), ("u8", np.uint8(120))])
@pytest.mark.parametrize("per_channel", [False, True])
def test_convolution_with_bias_and_residual(to, zero, per_channel):
    n = Net(2, 4, 8, 8)
    x = n.qdq(n.x, zero=zero, to=to)
    y = n.op("convolution", x, n.weights(4, 4, 3, 3, per_channel=per_channel), randn(4),
             pre=(1, 1), post=(1, 1))
    y = n.op("activation", n.op("binary", y, x, fn="add"), fn="relu")
    n.finish(n.qdq(y))
    ops = [x.op for x in n.g.nodes]
    assert "convolution" not in ops and ops.count("int_conv") == 1
    anchor = next(x for x in n.g.nodes if x.op == "int_conv")
    assert anchor.inputs[1].dtype is T.i8 and (anchor.inputs[2] is None) == (zero is None)


@pytest.mark.parametrize("ta", ["none", "transpose"])
@pytest.mark.parametrize("tb", ["none", "transpose"])
def test_matmul(ta, tb):
    n = Net(2, 3, *((6, 5) if ta == "none" else (5, 6)))
    b = n.weights(*((5, 7) if tb == "transpose" else (7, 5))[::-1], axis=1 if tb == "none" else 0)
    y = n.op("matmul", n.qdq(n.x), b, ta=ta, tb=tb)
    assert n.finish(n.op("binary", y, randn(7), fn="add")) == [
        "quantize i8", "int_matmul i32", "dequantize f32", "binary f32"]


def test_product_of_two_activations():
    n = Net(2, 3, 6, 5)
    x = n.qdq(n.x, zero=np.int8(3))
    assert "int_matmul i32" in n.finish(n.op("matmul", x, x, tb="transpose"))


@pytest.mark.parametrize("to,zero,left", [
    ("u8", np.uint8(128), "i8"), ("u8", np.full(4, 128, "u1"), "i8"), ("u8", np.uint8(7), "u8"),
    ("i8", np.zeros(4, "i1"), "i8"), ("i4", None, "i8"),
])  # fmt: skip
def test_weights_lose_their_zero_points(to, zero, left):
    n = Net(1, 3, 5, 5)
    w = n.weights(4, 3, 3, 3, to=to, zero=zero)
    n.finish(n.op("convolution", n.qdq(n.x), w))
    anchor = next(x for x in n.g.nodes if x.op == "int_conv")
    assert anchor.inputs[1].dtype.name == left
    assert len(anchor.present_inputs()) == (3 if left == "u8" else 2)


def test_what_moves_elements_moves_integers():
    n = Net(1, 4, 8, 8)
    w = n.weights(4, 4, 3, 3)
    y = n.op("activation", n.op("convolution", n.qdq(n.x), w), fn="relu")
    y = n.qdq(n.op("pooling", y, fn="max", window=(2, 2), stride=(2, 2)))  # up through pooling
    y = n.op("transpose", y, perm=(0, 2, 3, 1))  # down through transpose and reshape
    y = n.qdq(n.op("reshape", y, np.array([1, 36])))
    y = n.op("matmul", y, n.weights(36, 5, axis=1))
    assert n.finish(y) == [
        "quantize i8", "int_conv i32", "dequantize f32", "activation f32", "quantize i8",
        "pooling i8", "transpose i8", "reshape i8", "int_matmul i32", "dequantize f32"]


@pytest.mark.parametrize("scales", [(0.05, 0.05), (0.05, 0.04)])
def test_concatenation(scales):
    n = Net(1, 4, 4, 4)
    w = n.weights(4, 4, 1, 1)
    x = n.qdq(n.x)
    parts = [n.op("convolution", x, w), n.op("convolution", x, n.weights(2, 4, 1, 1))]
    if scales[0] == scales[1]:
        parts = [n.qdq(p, s) for p, s in zip(parts, scales, strict=True)]
    y = n.qdq(n.op("concat", *parts, axis=1))
    ops = n.finish(n.op("convolution", y, n.weights(3, 6, 1, 1)))
    assert "concat i8" in ops and ops.count("int_conv i32") == 3


@pytest.mark.parametrize("zero", [None, np.int8(5)])
@pytest.mark.parametrize("op,inputs,attrs", [
    ("pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}), ("activation", [], {"fn": "relu"}),
    ("gather", [np.array([1, 0])], {"axis": 1}), ("expand", [np.array([2, 4, 6, 6])], {}),
    ("strided_slice", [np.array([1]), np.array([4]), np.array([2])], {}),
    ("depth_to_space", [], {"block": 2, "mode": "dcr"}),
])  # fmt: skip
def test_movers_keep_their_meaning(op, inputs, attrs, zero):
    n = Net(1, 4, 6, 6)
    x = n.qdq(n.x, zero=zero)
    y = n.op(op, x, *inputs, **attrs)
    ops = n.finish(n.op("pooling", y, fn="average", window=(2, 2)), steps=0)
    assert ops[-2:] == ["dequantize f32", "pooling f32"]


def test_without_kernels_networks_stay_as_they_are():
    n = Net(1, 4, 8, 8)
    ops = n.finish(n.op("convolution", n.qdq(n.x), n.weights(4, 4, 3, 3)), takes=False)
    assert ops == ["quantize i8", "dequantize f32", "convolution f32"]


def test_layers_that_ask_for_f32_stay_in_it():
    n = Net(1, 4, 8, 8)
    y = n.op("convolution", n.qdq(n.x), n.weights(4, 4, 3, 3))
    y.producer.meta["precision"] = T.f32
    assert "convolution f32" in n.finish(y)


def test_real_model_runs_in_integers():
    path = shared_path("models", "micro_kws_m_static_qdq.onnx")
    g = load_network(onnx.load(path)).lower_control()
    optimize(g, takes=lambda n: n.op != "attention")
    ops = [n.op for n in g.nodes]
    assert ops.count("int_conv") == 3 and ops.count("int_matmul") == 3 and "matmul" not in ops
    assert next(n for n in g.nodes if n.op == "transpose").output.dtype is T.i8
    with np.load(f"{path}.npz") as run:
        got = run_graph(g, {k[4:]: run[k] for k in run if k.startswith("in::")})[0]
        want = run[f"out::{g.outputs[0].name}"]
    assert np.abs(got - want).max() < 0.01 and (got.argmax(-1) == want.argmax(-1)).all()


def test_residuals_go_through_memory_as_integers():
    n = Net(1, 4, 8, 8)
    x = n.qdq(n.x)
    a, b = (n.qdq(n.op("convolution", x, n.weights(4, 4, 1, 1))) for _ in range(2))
    y = n.qdq(n.op("activation", n.op("binary", a, b, fn="add"), fn="relu"))
    n.finish(n.op("convolution", y, n.weights(4, 4, 1, 1)), steps=2)
    regions = fuse(n.g).regions
    assert [r.outputs[0].dtype.name for r in regions] == ["i8", "i8", "i8", "f32"]
    assert len(regions[2].stages) == 1 and regions[2].anchor.op == "int_conv"


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("to", ["f8e4m3", "f8e5m2"])
def test_products_of_8_bit_floats(to, takes):
    n = Net(2, 16)
    dt = T.dtype(to)
    b = n.dq(randn(16, 5).astype(dt.np), RNG.uniform(0.5, 2, 5), axis=1)
    ops = n.finish(n.op("matmul", n.qdq(n.x, 0.02, to=to), b), takes=takes, steps=0.01)
    assert ops == [f"quantize {to}", *(["matmul f32", "binary f32"] if takes else
                                       ["dequantize f32", "matmul f32"])]


@pytest.mark.parametrize("to,block", [("i4", 4), ("i4", 0), ("i8", 8), ("f8e4m3", 0)])
def test_quantized_weights_alone_are_folded(to, block):
    n = Net(2, 16)
    dt = T.dtype(to)
    w = (RNG.integers(-8, 8, (16, 5)) if dt.is_int else randn(16, 5)).astype(dt.np)
    scale = RNG.uniform(0.5, 2, (16 // block, 5)) if block else 0.3
    b = n.dq(w, scale, axis=0, block_size=block)
    assert n.finish(n.op("matmul", n.x, b)) == ["matmul f32"]
