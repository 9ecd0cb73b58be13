"""Importers that ONNX's own cases leave out, against onnxruntime: old opsets, com.microsoft,
symbolic sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import I64, model, parse, tensor, weights
from onnx import TensorProto, helper

from tactician.ir.verify import verify
from tactician.ops.interpreter import run_graph

ort = pytest.importorskip("onnxruntime")
node = helper.make_node
RNG = np.random.default_rng(7)



def rand(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


X = rand(2, 6, 5, 4)


def check(m: Any, feeds: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Runs a model here and there, and compares."""
    parser, network, _ = parse(m)
    assert not parser.num_errors, parser.get_error(0)
    verify(network.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(m.SerializeToString(), options)
    expected = session.run(None, feeds)
    for value, a, b in zip(network.graph.outputs, run_graph(network.graph, feeds), expected,
                           strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, value
        assert len(value.dims) == b.ndim
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), tolerance,
                                   tolerance * max(1, float(np.abs(b).max(initial=0))))


def one(op: str, opset: int, inputs: dict[str, Any], outputs: int = 1, **attrs: Any) -> None:
    """A single node; the first input is fed with symbolic dimensions, the others are weights."""
    first, rest = next(iter(inputs)), list(inputs)[1:]
    x = inputs[first]
    names = [f"y{i}" for i in range(outputs)]
    domain = attrs.pop("domain", "")
    m = model([node(op, [k if inputs[k] is not None else "" for k in inputs], names, domain=domain,
                    **attrs)],
              [tensor(first, [f"d{i}" if i == 0 else d for i, d in enumerate(x.shape)],
                      helper.np_dtype_to_tensor_dtype(x.dtype))],
              [helper.make_empty_tensor_value_info(n) for n in names],
              initializers=weights(**{k: inputs[k] for k in rest if inputs[k] is not None}),
              opset=opset, domains=[domain] if domain else [])
    check(m, {first: x})


CHANNEL = {k: np.abs(rand(6)) for k in ("scale", "bias", "mean", "var")}
OLD = [
    ("Softmax", 9, {}, {"axis": 1}), ("Softmax", 11, {}, {"axis": -1}),
    ("LogSoftmax", 11, {}, {"axis": 2}), ("Hardmax", 11, {}, {"axis": 1}),
    ("Slice", 9, {}, {"starts": [1, 0], "ends": [-1, 9], "axes": [1, 3]}),
    ("Split", 11, {}, {"axis": 1, "split": [1, 2, 3]}),
    ("Split", 7, {}, {"axis": 2}),
    ("TopK", 9, {}, {"k": 3, "axis": 1}), ("Squeeze", 11, None, {"axes": [1]}),
    ("Unsqueeze", 11, {}, {"axes": [0, -1]}),
    ("Pad", 10, {}, {"pads": [0, 1, 2, 0, 0, 0, 1, 3], "mode": "reflect"}),
    ("Pad", 9, {}, {"pads": [0, 0, 1, 1, 0, 0, 0, 1], "value": 2.5}),
    ("Clip", 10, {}, {"min": -0.5, "max": 0.25}), ("Clip", 7, {}, {"min": 0.0}),
    ("ReduceMean", 11, {}, {"axes": [1, -1]}), ("ReduceLogSumExp", 13, {}, {"keepdims": 0}),
    ("ReduceSum", 11, {}, {"axes": [2], "keepdims": 0}), ("ReduceL2", 9, {}, {}),
    ("Flatten", 9, {}, {"axis": 2}), ("Flatten", 13, {}, {"axis": 0}),
    ("Upsample", 7, {}, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", 9, {"s": np.float32([1, 1, 2, 2])}, {"mode": "linear"}),
    ("Resize", 10, {"s": np.float32([1, 1, 1.7, 2])}, {"mode": "nearest"}),
    ("BatchNormalization", 7, CHANNEL, {}), ("BatchNormalization", 9, CHANNEL, {"epsilon": 0.1}),
    ("InstanceNormalization", 9, {k: CHANNEL[k] for k in ("scale", "bias")}, {}),
    ("LRN", 9, {}, {"size": 3, "alpha": 0.1}), ("LpNormalization", 9, {}, {"axis": 1, "p": 1}),
    ("MaxPool", 8, {}, {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", 10, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1,
                             "strides": [2, 2]}),
    ("AveragePool", 7, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalLpPool", 9, {}, {"p": 3}), ("LpPool", 11, {}, {"kernel_shape": [2, 2], "p": 3}),
    ("Conv", 10, {"w": rand(4, 3, 3, 3), "b": rand(4)}, {"group": 2, "auto_pad": "SAME_LOWER",
                                                        "strides": [2, 2]}),
    ("ConvTranspose", 10, {"w": rand(6, 2, 3, 3), "b": rand(2)},
     {"strides": [2, 3], "output_padding": [1, 0], "pads": [1, 0, 1, 1]}),
    ("ConvTranspose", 11, {"w": rand(6, 2, 3, 3)}, {"strides": [2, 2], "output_shape": [10, 8]}),
    ("ConvTranspose", 11, {"w": rand(6, 2, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("DepthToSpace", 10, None, {"blocksize": 2}), ("EyeLike", 9, None, {"k": 1}),
    ("ScatterElements", 11, {"i": np.int64([[[[0]]]]), "u": rand(1, 1, 1, 1)}, {"axis": 1}),
    ("GroupNormalization", 18, {"scale": rand(3), "bias": rand(3)}, {"num_groups": 3}),
    ("Dropout", 10, {}, {}), ("ThresholdedRelu", 10, {}, {"alpha": 0.3}),
    ("MeanVarianceNormalization", 9, {}, {"axes": [0, 2, 3]}), ("Celu", 12, {}, {"alpha": 0.7}),
    ("Einsum", 12, {"w": rand(6, 4, 3)}, {"equation": "nchw,cwk->nhk"}),
]
SPECIAL = {"Squeeze": rand(3, 1, 2), "DepthToSpace": rand(2, 8, 2, 3), "EyeLike": rand(3, 4)}


@pytest.mark.parametrize("op, opset, extra, attrs", OLD,
                         ids=[f"{op}-{opset}-{i}" for i, (op, opset, _, _) in enumerate(OLD)])
def test_old_opsets(op: str, opset: int, extra: Any, attrs: Any) -> None:
    outputs = {"TopK": 2, "Split": 3 if "split" in attrs else 5}.get(op, 1)
    one(op, opset, {"x": SPECIAL.get(op, X), **(extra or {})}, outputs, **attrs)


def quantized(x: Any, dt: Any = np.uint8) -> tuple[Any, Any, Any]:
    scale = np.float32(np.abs(x).max() / 100)
    zero = dt(128 if dt is np.uint8 else 0)
    return (np.round(x / scale) + float(zero)).astype(dt), scale, zero


AQ, AS, AZ = quantized(rand(3, 5))
BQ, BS, BZ = quantized(rand(5, 4))
YS, YZ = np.float32(0.05), np.uint8(120)
MS = [
    ("Gelu", {"x": X}, {}), ("FastGelu", {"x": X, "b": rand(4)}, {}),
    ("BiasGelu", {"x": X, "b": rand(4)}, {}), ("QuickGelu", {"x": X}, {"alpha": 1.3}),
    ("FusedMatMul", {"x": rand(2, 3, 5), "b": rand(2, 4, 5)}, {"transB": 1, "alpha": 0.5}),
    ("FusedGemm", {"x": rand(3, 5), "b": rand(5, 4), "c": rand(4)}, {"activation": "Relu"}),
    ("FusedConv", {"x": X, "w": rand(4, 6, 3, 3), "b": rand(4)},
     {"activation": "LeakyRelu", "activation_params": [0.3]}),
    ("QLinearAdd", {"a": AQ, "as": AS, "az": AZ, "b": AQ[:1], "bs": BS, "bz": BZ, "ys": YS,
                    "yz": YZ}, {}),
    ("QLinearMul", {"a": AQ, "as": AS, "az": AZ, "b": AQ[:1], "bs": BS, "bz": BZ, "ys": YS,
                    "yz": YZ}, {}),
    ("QLinearSigmoid", {"a": AQ, "as": AS, "az": AZ, "ys": np.float32(1 / 256),
                        "yz": np.uint8(0)}, {}),
    ("QLinearLeakyRelu", {"a": AQ, "as": AS, "az": AZ, "ys": YS, "yz": YZ}, {"alpha": 0.2}),
    ("MatMulIntegerToFloat", {"a": AQ, "b": BQ, "as": AS, "bs": BS, "az": AZ, "bz": BZ}, {}),
    ("DynamicQuantizeMatMul", {"a": rand(3, 5), "b": BQ, "bs": BS, "bz": BZ}, {}),
    ("SkipLayerNormalization", {"x": rand(2, 3, 8), "s": rand(2, 3, 8), "g": rand(8),
                                "b": rand(8)}, {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", {"x": rand(2, 3, 8), "s": rand(2, 3, 8), "g": rand(8)},
     {"epsilon": 1e-5}),
    ("MatMulNBits", {"x": rand(3, 32), "w": RNG.integers(0, 256, (6, 2, 8), dtype=np.uint8),
                     "s": rand(12), "z": RNG.integers(0, 256, 6, dtype=np.uint8)},
     {"K": 32, "N": 6, "bits": 4, "block_size": 16}),
]


@pytest.mark.parametrize("op, inputs, attrs", MS, ids=[m[0] for m in MS])
def test_microsoft(op: str, inputs: Any, attrs: Any) -> None:
    one(op, 17, inputs, domain="com.microsoft", **attrs)


def test_integer_products() -> None:
    one("MatMulInteger", 13, {"a": AQ, "b": BQ, "az": AZ, "bz": BZ})
    one("QLinearMatMul", 13, {"a": AQ, "as": AS, "az": AZ, "b": BQ, "bs": BS, "bz": BZ, "ys": YS,
                              "yz": YZ})


@pytest.mark.parametrize("signed", [False, True])
def test_quantized_convolutions(signed: bool) -> None:
    x, xs, xz = quantized(X)
    w, ws, wz = quantized(rand(4, 6, 3, 3), np.int8 if signed else np.uint8)
    one("ConvInteger", 13, {"x": x, "w": w, "xz": xz, "wz": wz}, pads=[1, 1, 1, 1])
    one("QLinearConv", 13, {"x": x, "xs": xs, "xz": xz, "w": w, "ws": ws, "wz": wz,
                            "ys": np.float32(0.2), "yz": np.uint8(128),
                            "b": np.int32([1, 200, -300, 0])}, strides=[2, 1])


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_with_symbolic_time_and_batch(op: str, gates: int) -> None:
    h, size = 3, 4
    w = {"w": rand(2, gates * h, size), "r": rand(2, gates * h, h), "b": rand(2, 2 * gates * h)}
    m = model([node(op, ["x", "w", "r", "b"], ["y", "yh"], hidden_size=h,
                    direction="bidirectional")],
              [tensor("x", ["t", "n", size])], [tensor("y", None), tensor("yh", None)],
              initializers=weights(**w), opset=14)
    check(m, {"x": rand(5, 2, size)})


def test_shape_arithmetic_stays_symbolic() -> None:
    """Flattening all but the batch the way exporters write it."""
    m = model([node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
               node("Unsqueeze", ["n", "axes"], ["n1"]),
               node("Concat", ["n1", "minus"], ["t"], axis=0), node("Reshape", ["x", "t"], ["y"])],
              [tensor("x", ["n", 3, 4])], [tensor("y", None)],
              initializers=weights(zero=np.int64(0), axes=np.int64([0]), minus=np.int64([-1])))
    _, network, _ = parse(m)
    assert [str(d) for d in network.graph.outputs[0].dims] == ["n", "12"]
    check(m, {"x": rand(2, 3, 4)})


def test_split_by_symbolic_sizes() -> None:
    m = model([node("Split", ["x", "s"], ["a", "b"], axis=0)],
              [tensor("x", ["n", 2]), tensor("s", [2], I64)],
              [tensor("a", None), tensor("b", None)])
    check(m, {"x": rand(5, 2), "s": np.int64([2, 3])})


def test_loop_over_a_symbolic_count() -> None:
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"]), node("Gather", ["x", "i"], ["row"], axis=0),
         node("Add", ["acc", "row"], ["sum"])], "b",
        [tensor("i", [], I64), tensor("c", [], TensorProto.BOOL), tensor("acc", [3])],
        [tensor("co", [], TensorProto.BOOL), tensor("sum", [3]), tensor("row", [3])])
    m = model([node("Shape", ["x"], ["s"], start=0, end=1), node("Squeeze", ["s"], ["t"]),
               node("Loop", ["t", "", "init"], ["y", "rows"], body=body)],
              [tensor("x", ["n", 3])], [tensor("y", None), tensor("rows", None)],
              initializers=weights(init=np.zeros(3, np.float32)), opset=15)
    check(m, {"x": rand(4, 3)})


def test_dtypes() -> None:
    for dt in (np.float64, np.float16, np.int32, np.int64, np.uint8):
        x = (RNG.integers(1, 9, (3, 4))).astype(dt)
        one("Mul", 14, {"x": x, "w": x[0]})
        one("Div", 14, {"x": x, "w": x[0]})

