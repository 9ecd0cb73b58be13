"""Broken, foreign and odd models: a clear error each, or the right result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import BOOL, F32, I64, errors, model, parse, tensor, weights
from onnx import TensorProto, helper, numpy_helper

import tactician as trt
from tactician.ops.interpreter import run_graph

node = helper.make_node


def relu_model(**kwargs: Any) -> Any:
    return model([node("Relu", ["x"], ["y"], name="r")], [tensor("x", [2, 3])],
                 [tensor("y", [2, 3])], **kwargs)


def run(m: Any, *feeds: Any) -> list[Any]:
    parser, network, _ = parse(m)
    assert not parser.num_errors, parser.get_error(0)
    return run_graph(network.graph, list(feeds))


# --- files ------------------------------------------------------------------------------------


def test_every_truncation_is_reported() -> None:
    m = relu_model(initializers=weights(w=np.ones((4, 4), np.float32)))
    data = m.SerializeToString()
    refused = 0
    for n in range(len(data)):
        parser, _, _ = parse(data[:n])
        refused += parser.num_errors > 0
        if parser.num_errors:
            assert parser.get_error(0).desc()
    assert refused >= len(data) - 8  # the last field only tells versions


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"not a model, just text", b"PK\x03\x04" * 9,
                                  bytes(range(256))])
def test_foreign_bytes(data: bytes) -> None:
    parser, _, _ = parse(data)
    assert parser.get_error(0).code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED


def test_missing_file(tmp_path: Path) -> None:
    parser, _, _ = parse(relu_model())
    assert not trt.OnnxParser(parser.network, None).parse_from_file(str(tmp_path / "no.onnx"))


@pytest.mark.parametrize("opset, words", [(999, "newest"), (0, "convert")])
def test_wrong_opset(opset: int, words: str) -> None:
    text = errors(relu_model(opset=opset))
    assert f"opset {opset}" in text and words in text


def test_no_opset() -> None:
    m = relu_model()
    del m.opset_import[:]
    assert "operator set" in errors(m)


# --- external data ----------------------------------------------------------------------------


def external(location: str, *, offset: int = 0, length: int = 24, dims: Any = (2, 3)) -> Any:
    w = TensorProto(name="w", data_type=F32, dims=dims, data_location=TensorProto.EXTERNAL)
    for k, v in (("location", location), ("offset", offset), ("length", length)):
        w.external_data.add(key=k, value=str(v))
    return model([node("Add", ["x", "w"], ["y"])], [tensor("x", [2, 3])], [tensor("y", [2, 3])],
                 initializers=[w])


def test_external_data(tmp_path: Path) -> None:
    w = np.arange(8, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    w.tofile(tmp_path / "sub" / "w.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(external("sub/w.bin", offset=8).SerializeToString())
    _, network, _ = parse(path.read_bytes(), str(path))
    (y,) = run_graph(network.graph, [np.zeros((2, 3), np.float32)])
    assert (y == w[2:].reshape(2, 3)).all()


@pytest.mark.parametrize("location, words", [
    ("w.bin", "no such file"), ("../w.bin", "outside"), ("/etc/passwd", "outside"),
    ("a/../../w.bin", "outside"), ("..\\w.bin", "outside"), ("C:\\w.bin", "outside"),
    ("link/w.bin", "link"), ("", "without a location"),
])
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    np.ones(6, np.float32).tofile(tmp_path / "w.bin")
    (folder / "link").symlink_to(tmp_path)
    text = errors(external(location), str(folder / "m.onnx"))
    assert words in text and "'w'" in text


@pytest.mark.parametrize("change", [{"length": 20}, {"offset": 4}, {"offset": -1},
                                    {"dims": (9, 9)}])
def test_external_data_of_wrong_length(tmp_path: Path, change: dict[str, Any]) -> None:
    np.ones(6, np.float32).tofile(tmp_path / "w.bin")
    assert "needs" in errors(external("w.bin", **change), str(tmp_path / "m.onnx"))


def test_external_data_without_a_folder() -> None:
    assert "parse_from_file" in errors(external("w.bin"))


def test_given_initializer() -> None:
    import ctypes

    w = np.arange(6, dtype=np.float32)
    parser, network, _ = parse(b"")
    parser.clear_errors()
    assert parser.load_model_proto(external("w.bin").SerializeToString())
    assert not parser.load_initializer("nobody", 0, 0)
    assert parser.load_initializer("w", w.ctypes.data_as(ctypes.c_void_p).value, w.nbytes)
    assert parser.parse_model_proto()
    (y,) = run_graph(network.graph, [np.zeros((2, 3), np.float32)])
    assert (y.ravel() == w).all()


def test_damaged_initializer() -> None:
    m = relu_model(initializers=weights(w=np.ones(5, np.float32)))
    m.graph.initializer[0].dims[0] = 7
    assert "needs 28 bytes but has 20" in errors(m)


# --- nodes ------------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    m = model(
        [node("Strange", ["x"], ["a"], name="one"), node("Relu", ["a"], ["b"]),
         node("Odd", ["b"], ["c"], name="two", domain="my"),
         node("MatMul", ["x", "x"], ["d"], name="three"),
         node("Relu", ["nowhere"], ["e"], name="four"),
         node("Conv", ["x"], ["f"], name="five")],
        [tensor("x", [2, 3])], [tensor("c", None)], domains=["my"])
    parser, _, logger = parse(m)
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    assert [e.node() for e in found] == [0, 2, 3, 4, 5]
    assert [e.node_name() for e in found] == ["one", "two", "three", "four", "five"]
    assert found[0].code() == trt.ErrorCode.UNSUPPORTED_NODE and found[0].line() > 0
    assert "f32[2, 3]" in found[2].desc() and "'nowhere'" in found[3].desc()
    assert "input 1 is missing" in found[4].desc()
    assert all(e.desc() in logger.text() for e in found)
    parser.clear_errors()
    assert parser.num_errors == 0


def test_mismatched_shapes() -> None:
    m = model([node("Add", ["x", "w"], ["y"], name="sum")], [tensor("x", [2, 3])],
              [tensor("y", None)], initializers=weights(w=np.ones(4, np.float32)))
    text = errors(m)
    assert "'sum' (Add)" in text and "[2, 3]" in text and "[4]" in text


def test_mismatched_types() -> None:
    m = model([node("Add", ["x", "w"], ["y"])], [tensor("x", [2])], [tensor("y", None)],
              initializers=weights(w=np.ones(2, np.int64)))
    assert "f32" in errors(m) and "i64" in errors(m)


def test_cycle() -> None:
    m = model([node("Add", ["x", "b"], ["a"], name="p"), node("Relu", ["a"], ["b"], name="q")],
              [tensor("x", [2])], [tensor("b", [2])])
    assert "cycle" in errors(m) and "'p'" in errors(m) and "'q'" in errors(m)


def test_any_order_of_nodes() -> None:
    m = model([node("Neg", ["a"], ["y"]), node("Relu", ["x"], ["a"])], [tensor("x", [2])],
              [tensor("y", [2])])
    assert run(m, np.float32([-1, 2]))[0].tolist() == [0, -2]


@pytest.mark.parametrize("nodes", [
    [node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], [node("Relu", ["x"], ["x"])],
])
def test_duplicate_names(nodes: Any) -> None:
    assert errors(model(nodes, [tensor("x", [2])], [tensor("y", [2])]))


def test_recursive_function() -> None:
    f = helper.make_function("my", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="my")],
                             [helper.make_opsetid("my", 1)])
    m = model([node("F", ["x"], ["y"], domain="my")], [tensor("x", [2])], [tensor("y", [2])],
              functions=[f], domains=["my"])
    assert "nested" in errors(m)


@pytest.mark.parametrize("kind", ["sequence", "string"])
def test_inputs_that_are_no_numbers(kind: str) -> None:
    info = (helper.make_tensor_sequence_value_info("x", F32, [2]) if kind == "sequence"
            else tensor("x", [2], TensorProto.STRING))
    assert kind in errors(model([node("Identity", ["x"], ["y"])], [info], [tensor("y", None)]))


def test_input_without_shape() -> None:
    m = relu_model()
    m.graph.input[0].type.tensor_type.ClearField("shape")
    assert "no shape" in errors(m)


def test_unused_attributes_are_told() -> None:
    m = model([node("Relu", ["x"], ["y"], colour=3)], [tensor("x", [2])], [tensor("y", [2])])
    _, _, logger = parse(m)
    assert "colour" in logger.text()


def test_wrongly_declared_output_is_told() -> None:
    m = relu_model()
    m.graph.output[0].CopyFrom(tensor("y", [7, 3]))
    parser, _, logger = parse(m)
    assert not parser.num_errors and "declared [7, 3]" in logger.text()


# --- odd, but right ---------------------------------------------------------------------------


def test_nan_weights_are_accepted_with_a_warning() -> None:
    m = model([node("Add", ["x", "w"], ["y"])], [tensor("x", [2])], [tensor("y", [2])],
              initializers=weights(w=np.float32([np.nan, 1])))
    parser, _, logger = parse(m)
    assert not parser.num_errors and "'w' hold 1 NaN" in logger.text()
    assert np.isnan(run(m, np.float32([1, 1]))[0]).tolist() == [True, False]


def test_zero_size_tensors() -> None:
    m = model([node("Concat", ["x", "w"], ["a"], axis=0), node("Relu", ["a"], ["y"]),
               node("ReduceSum", ["x"], ["s"], keepdims=0)],
              [tensor("x", [0, 3])], [tensor("y", None), tensor("s", None)],
              initializers=weights(w=np.zeros((0, 3), np.float32)))
    y, s = run(m, np.zeros((0, 3), np.float32))
    assert y.shape == (0, 3) and s == 0


def test_rank_0_tensors() -> None:
    m = model([node("Mul", ["x", "w"], ["a"]), node("Unsqueeze", ["a", "axes"], ["y"])],
              [tensor("x", [])], [tensor("y", [1]), tensor("a", [])],
              initializers=weights(w=np.float32(3), axes=np.int64([0])))
    y, a = run(m, np.float32(2))
    assert y.tolist() == [6] and a.shape == ()


def test_outputs_that_are_inputs_constants_or_doubles() -> None:
    m = model([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"])], [tensor("x", [2])],
              [tensor("x", [2]), tensor("w", [1]), tensor("a", [2]), tensor("b", [2])],
              initializers=weights(w=np.float32([5])))
    results = run(m, np.float32([-1, 1]))
    assert [r.tolist() for r in results] == [[-1, 1], [5], [0, 1], [0, 1]]


def test_sparse_initializer() -> None:
    m = model([node("Add", ["x", "w"], ["y"])], [tensor("x", [2, 2])], [tensor("y", [2, 2])])
    sparse = m.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([7]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([2]), "i"))
    sparse.dims.extend([2, 2])
    assert run(m, np.zeros((2, 2), np.float32))[0].tolist() == [[0, 0], [7, 0]]


def test_default_valued_input_is_a_constant() -> None:
    m = model([node("Add", ["x", "w"], ["y"])], [tensor("x", [2]), tensor("w", [2])],
              [tensor("y", [2])], initializers=weights(w=np.float32([1, 2])))
    assert run(m, np.zeros(2, np.float32))[0].tolist() == [1, 2]


def test_if_with_different_ranks_is_refused() -> None:
    def branch(op: str, name: str) -> Any:
        return helper.make_graph([node(op, ["x"], [name])], name, [], [tensor(name, None)])

    m = model([node("If", ["c"], ["y"], then_branch=branch("Neg", "t"),
                    else_branch=branch("Shape", "e"))],
              [tensor("c", [], BOOL), tensor("x", [2, 2])], [tensor("y", None)])
    assert errors(m)


def test_parse_needs_an_empty_network() -> None:
    parser, network, _ = parse(relu_model())
    assert not trt.OnnxParser(network, None).parse(relu_model().SerializeToString())
    assert parser.num_errors == 0


def test_data_as_axes_is_refused_with_advice() -> None:
    m = model([node("ReduceSum", ["x", "a"], ["y"])], [tensor("x", [2]), tensor("a", [1], I64)],
              [tensor("y", None)])
    assert "initializer" in errors(m)


def test_flipped_bytes_never_raise() -> None:
    body = helper.make_graph([node("Neg", ["x"], ["t"])], "then", [], [tensor("t", None)])
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "else", [], [tensor("e", None)])
    m = model([node("If", ["c"], ["y"], then_branch=body, else_branch=other),
               node("Conv", ["y", "w"], ["z"], pads=[1, 1, 1, 1]),
               node("Reshape", ["z", "s"], ["r"]), node("Softmax", ["r"], ["o"], axis=1)],
              [tensor("c", [], BOOL), tensor("x", ["n", 2, 4, 4])], [tensor("o", None)],
              initializers=weights(w=np.ones((3, 2, 3, 3), np.float32), s=np.int64([0, -1])))
    data = m.SerializeToString()
    assert not errors(data)
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            damaged[at] ^= 1 << int(rng.integers(0, 8))
        parser, _, _ = parse(bytes(damaged))
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        assert all(e.code() != trt.ErrorCode.INTERNAL_ERROR for e in found), found
        outcomes |= {e.code() for e in found}
    assert len(outcomes) >= 4
