"""Networks of contractions as engines for CUDA, run by the interpreter, against onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

pytest.importorskip("triton", reason="the CUDA target compiles with Triton")

import tactician

ort = pytest.importorskip("onnxruntime")
rng = np.random.default_rng(11)


class Maker:
    """Builds a model node by node."""

    def __init__(self):
        self.nodes, self.weights, self.count = [], [], 0

    def weight(self, *shape, scale=None):
        self.count += 1
        size = int(np.prod(shape[1:])) or 1
        data = rng.standard_normal(shape) * (size**-0.5 if scale is None else scale)
        self.weights.append(numpy_helper.from_array(data.astype("f4"), f"w{self.count}"))
        return f"w{self.count}"

    def ints(self, *values):
        self.count += 1
        self.weights.append(numpy_helper.from_array(np.array(values, "i8"), f"w{self.count}"))
        return f"w{self.count}"

    def __call__(self, op, *inputs, outputs=1, **attrs):
        self.count += 1
        names = [f"t{self.count}_{k}" for k in range(outputs)]
        self.nodes.append(h.make_node(op, list(inputs), names, **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x, k, c, window=1, act=True, **attrs):
        p = window // 2
        y = self("Conv", x, self.weight(k, c // attrs.get("group", 1), window, window),
                 self.weight(k, scale=0.1), pads=[p] * 4, **attrs)  # fmt: skip
        return self("Relu", y) if act else y

    def model(self, out, **inputs):
        ins = [h.make_tensor_value_info(n, T.FLOAT, s) for n, s in inputs.items()]
        self.nodes[-1].output[0] = out
        g = h.make_graph(self.nodes, "g", ins, [onnx.ValueInfoProto(name=out)], self.weights)
        m = h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        return m.SerializeToString()


def check(data, monkeypatch, tactics, **feeds):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    engine = tactician.build(data, device="gpu", level=0, tf32=False)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    want = session.run(None, feeds)[0]
    got = next(iter(engine(**feeds).values()))
    assert np.abs(np.asarray(got) - want).max() <= 1e-4 * np.abs(want).max()
    steps = engine.cuda_engine._program.steps
    used = {s.info.get("tactic") for s in steps}
    assert tactics <= used, used
    assert all(s.kind != "reference" for s in steps)


def test_residual_network(monkeypatch):
    m = Maker()
    x = m.conv("x", 16, 3, 7, strides=[2, 2])
    x = m("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = m.conv(x, 16, 16, 3)
    y = m.conv(y, 32, 16, act=False)
    x = m("Relu", m("Add", y, m.conv(x, 32, 16, act=False)))
    x = m.conv(x, 32, 32, 3, group=32, strides=[2, 2])
    x = m("ConvTranspose", x, m.weight(32, 8, 2, 2), strides=[2, 2])
    x = m("Flatten", m("GlobalAveragePool", x))
    m("Gemm", x, m.weight(10, 8), m.weight(10), transB=1)
    data = m.model("y", x=(1, 3, 32, 32))
    feeds = {"x": rng.standard_normal((1, 3, 32, 32)).astype("f4")}
    check(data, monkeypatch, {"conv", "depthwise", "gemv"}, **feeds)


def test_transformer_layer(monkeypatch):
    m, heads, size, length = Maker(), 2, 16, 20
    width = heads * size
    parts = []
    for k in range(3):
        y = m("Add", m("MatMul", "x", m.weight(width, width)), m.weight(width))
        y = m("Reshape", y, m.ints(1, length, heads, size))
        parts.append(m("Transpose", y, perm=[0, 2, 3, 1] if k == 1 else [0, 2, 1, 3]))
    q, k, v = parts
    m.weights.append(numpy_helper.from_array(np.float32(size**-0.5), "scale"))
    scores = m("Softmax", m("Mul", m("MatMul", q, k), "scale"), axis=-1)
    y = m("Transpose", m("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = m("Reshape", y, m.ints(1, length, width))
    y = m("Add", m("MatMul", y, m.weight(width, width)), "x")
    y = m("Relu", m("MatMul", y, m.weight(width, 64)))
    m("MatMul", y, m.weight(64, width))
    data = m.model("y", x=(1, length, width))
    feeds = {"x": rng.standard_normal((1, length, width)).astype("f4")}
    check(data, monkeypatch, {"gemm", "attention"}, **feeds)
