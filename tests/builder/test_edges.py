"""Schedules of odd networks: what outputs are, empty tensors, values stored in two layouts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tactician

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(5)


def check(nodes, outputs, shape=(1, 8, 6, 6), constants=None, feed=None, inputs=None):
    """``nodes``: (op, inputs, output, attributes) with spaces between names; input ``x``."""
    made = [helper.make_node(op, ins.split(" "), out.split(), **attrs)
            for op, ins, out, attrs in nodes]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outs = [onnx.ValueInfoProto(name=n) for n in outputs.split()]
    graph = helper.make_graph(made, "g", given, outs, weights)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = onnx.shape_inference.infer_shapes(m).SerializeToString()
    real = tuple(s if isinstance(s, int) else 2 for s in shape)
    x = RNG.standard_normal(real).astype(np.float32)
    engine = tactician.build(data, level=1)
    got = engine({"x": x})
    for name, want in zip(outputs.split(), ort.InferenceSession(data).run(None, {"x": x}),
                          strict=True):
        assert got[name].shape == want.shape
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-4, err_msg=name)


def conv(name, source, out, weights):
    return ("Conv", f"{source} {name}", out, {"pads": [1, 1, 1, 1]}), (
        name, RNG.standard_normal(weights).astype(np.float32) / 8)


C1, W1 = conv("w1", "x", "a", (16, 8, 3, 3))
C2, W2 = conv("w2", "a", "b", (16, 16, 3, 3))
C3, W3 = conv("w3", "r", "c", (16, 16, 3, 3))
WEIGHTS = dict((W1, W2, W3))
R = ("Relu", "b", "r", {})
FLAT = {"flat": np.array([1, -1])}


@pytest.mark.parametrize("nodes, outputs", [
    ([("Identity", "x", "y", {})], "y"),
    ([("Identity", "x", "y", {}), ("Relu", "x", "z", {})], "y z"),
    ([("Identity", "x", "y", {}), ("Identity", "y", "z", {})], "y z"),
    ([("Reshape", "x flat", "y", {})], "y"),
    ([("Relu", "x", "r", {}), ("Reshape", "r flat", "y", {})], "y"),
    ([("Relu", "x", "r", {}), ("Reshape", "r flat", "y", {})], "y r"),
    ([("Relu", "x", "r", {}), ("Reshape", "r flat", "y", {})], "r y"),
    ([("Relu", "x", "r", {}), ("Reshape", "r flat", "y", {}), ("Reshape", "r flat", "z", {})],
     "y z"),
    ([("Identity", "k", "y", {}), ("Relu", "x", "z", {})], "y z"),
    ([("Shape", "x", "y", {}), ("Relu", "x", "z", {})], "y z"),
    ([("ReduceSum", "x", "y", {"keepdims": 0})], "y"),
    ([("ReduceMax", "x", "y", {"keepdims": 0}), ("Add", "y y", "z", {})], "z y"),
    ([("Relu", "x", "r", {}), ("Slice", "r zero one zero", "y", {})], "y"),
    ([("Slice", "x zero one one", "s", {}), ("Relu", "s", "y", {})], "y s"),
    ([("Slice", "x zero one one", "s", {})], "s"),
], ids=lambda v: v if isinstance(v, str) else "-".join(n[0] for n in v))  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 8, 6, 6), ("n", 8, 6, 6)], ids=["static", "dynamic"])
def test_what_outputs_are(nodes, outputs, shape):
    used = {n for _, ins, _, _ in nodes for n in ins.split()}
    constants = {**FLAT, "k": np.float32([[1, 2]]), "zero": np.array([0]), "one": np.array([1])}
    check(nodes, outputs, shape, {k: v for k, v in constants.items() if k in used})


@pytest.mark.parametrize("pieces", ["r r", "r s r", "x r", "r x", "k r k", "r s", "r c s"])
@pytest.mark.parametrize("outputs", ["y", "y r"])
def test_concatenation(pieces, outputs):
    nodes = [("Relu", "x", "r", {}), ("Exp", "x", "s", {}),
             ("Concat", "r s", "c", {"axis": 1}), ("Concat", pieces, "y", {"axis": 1})]
    constants = {"k": np.ones((1, 2, 6, 6), np.float32)} if "k" in pieces else None
    check(nodes, outputs, constants=constants)


def test_chain_of_concatenations():
    nodes, last = [], "x"
    for k in range(4):
        nodes += [("Relu", last, f"r{k}", {}), ("Concat", f"{last} r{k}", f"c{k}", {"axis": 1})]
        last = f"c{k}"
    check(nodes, last, (1, 2, 3, 3))


@pytest.mark.parametrize("op, attrs", [
    ("Relu", {}), ("ReduceSum", {"keepdims": 0}), ("Exp", {}),
    ("Transpose", {"perm": [3, 2, 1, 0]}), ("Softmax", {"axis": 1}),
    ("Identity", {}), ("Flatten", {}),
])  # fmt: skip
def test_no_elements(op, attrs):
    check([(op, "x", "y", attrs)], "y", (2, 0, 3, 4))


def test_concatenation_with_nothing():
    check([("Relu", "x", "r", {}), ("Concat", "r e", "y", {"axis": 1})], "y",
          constants={"e": np.zeros((1, 0, 6, 6), np.float32)})


@pytest.mark.parametrize("tail, outputs", [
    ([], "b"),  # the result of a chain
    ([R], "r"),
    ([R], "b r"),  # written row-major and read by others
    ([R, C3], "c a"),
    ([R, C3, ("Add", "a c", "y", {})], "y"),
    ([R, C3, ("Add", "a c", "y", {})], "y c"),
    ([R, C3, ("Concat", "a c", "y", {"axis": 1})], "y"),
    ([R, C3, ("Concat", "a a", "y", {"axis": 1})], "y"),
    ([R, C3, ("Concat", "x c", "y", {"axis": 1})], "y"),
    ([R, C3, ("Concat", "a c", "d", {"axis": 1}), ("Relu", "d", "y", {})], "y d"),
    ([("Reshape", "b flat", "f", {}), R, C3], "f c"),
    ([("Reshape", "b flat", "f", {}), ("Relu", "f", "y", {}), R, C3], "y c"),
    ([R, ("Transpose", "r", "t", {"perm": [0, 2, 3, 1]}), ("Exp", "t", "y", {})], "y"),
    ([("MaxPool", "b", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
      ("Reshape", "p flat", "y", {})], "y b"),
    ([("GlobalAveragePool", "b", "p", {}), ("Reshape", "p flat", "y", {})], "y"),
    ([("GlobalAveragePool", "b", "p", {}), ("Mul", "b p", "y", {})], "y p"),
    ([("Softmax", "b", "y", {"axis": 1})], "y"),
    ([("Softmax", "b", "y", {"axis": -1})], "y"),
    ([("ReduceMean", "b", "y", {"axes": [1], "keepdims": 0})], "y"),
    ([("Slice", "b zero one one", "y", {})], "y"),
    ([("Slice", "b zero one one", "s", {}), R, C3, ("Mul", "c s", "y", {})], "y s"),
    ([("Split", "b", "s t", {"axis": 1}), ("Mul", "s t", "y", {})], "y"),
    ([("Split", "b", "s t", {"axis": 1}), ("Mul", "s t", "y", {})], "y s t"),
    ([("Resize", "b  two", "u", {"mode": "nearest"}), ("Relu", "u", "y", {})], "y u"),
], ids=str)  # fmt: skip
def test_values_stored_channels_last(tail, outputs):
    used = {n for _, ins, _, _ in tail for n in ins.split()}
    constants = {**WEIGHTS, **FLAT, "zero": np.array([0]), "one": np.array([1]),
                 "two": np.float32([1, 1, 2, 2])}
    kept = {k: v for k, v in constants.items() if k in used | {"w1", "w2"}}
    check([C1, C2, *tail], outputs, constants=kept)
