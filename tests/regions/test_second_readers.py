"""Results that two nodes read, one of them transposed, and that meet again behind them."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tactician

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
N = 16


def quantized(x, name):
    """Nodes that take a value through i8."""
    return [
        helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [name]),
    ]


def product(kind):
    """Nodes that compute "d": in floats, rounded, or from integers."""
    nodes = quantized("x", "a") + quantized("w", "b") if kind == "integers" else []
    a, b = ("a", "b") if nodes else ("x", "w")
    out = "m" if kind != "integers" else "d"
    nodes.append(helper.make_node("MatMul", [a, b], [out]))
    if kind == "rounded":
        return nodes + quantized("m", "d")
    return nodes if kind == "integers" else [*nodes, helper.make_node("Relu", ["m"], ["d"])]


READERS = {
    "transposed second": [
        ("Transpose", "d", "t"), ("Sigmoid", "t", "g"), ("Mul", "d", "g", "y")],
    "transposed first": [
        ("Transpose", "d", "t"), ("Sigmoid", "t", "g"), ("Mul", "g", "d", "y")],
    "three": [
        ("Sigmoid", "d", "g"), ("Mul", "d", "g", "e"), ("Transpose", "d", "t"),
        ("Add", "e", "t", "y")],
    "both": [
        ("Transpose", "d", "t"), ("Sigmoid", "t", "g"), ("Mul", "t", "g", "e"),
        ("Add", "d", "e", "y")],
}


@pytest.mark.parametrize("readers", sorted(READERS))
@pytest.mark.parametrize("kind", ["floats", "rounded", "integers"])
def test_second_reader_that_transposes(kind, readers):
    nodes = product(kind)
    for op, *names in READERS[readers]:
        attrs = {"perm": [1, 0]} if op == "Transpose" else {}
        nodes.append(helper.make_node(op, names[:-1], names[-1:], **attrs))
    constants = {
        "w": RNG.standard_normal((N, N)).astype("f4") / 4, "scale": np.float32(0.04),
        "zero": np.int8(0),
    }
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [N, N])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    x = RNG.standard_normal((N, N)).astype("f4")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    got = tactician.build(data, level=0, device="cpu")({"x": x})["y"]
    step = 0.04 * 2 if kind == "rounded" else 1e-5  # a tie of rounding may go either way
    assert np.abs(got - want).max() <= step * max(1.0, np.abs(want).max())
    assert np.median(np.abs(got - want)) < 1e-5
