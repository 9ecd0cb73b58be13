"""`TensorFlowParser`: inputs, outputs, constants, files, and what is said about bad graphs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tactician as trt
from tactician.ops.interpreter import run_graph
from tactician.parsers.onnx.errors import ModelProblem
from tactician.parsers.tensorflow import load, support
from tactician.parsers.tensorflow.graph import constant, new_graph, new_node
from tactician.parsers.tensorflow.schema import messages

ROOT = Path(__file__).resolve().parents[2]
LENET = ROOT / "tactician" / "data" / "lenet_digits.pb"
F32 = np.dtype(np.float32)


def graph(*nodes: Any) -> Any:
    g = new_graph()
    g.node.append(new_node("x", "Placeholder", dtype=F32, shape=(2, 3)))
    g.node.extend(nodes)
    return g


def parse(model: Any, **options: Any) -> Any:
    network = trt.INetworkDefinition(0, trt.Logger(trt.Logger.INTERNAL_ERROR),
                                     implicit_batch=False)
    parser = trt.TensorFlowParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    parser.ok = parser.parse(model, **options)  # type: ignore[attr-defined]
    return parser


def errors(parser: Any) -> str:
    assert not parser.ok and parser.num_errors
    return "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))


def results(parser: Any, *feeds: Any) -> list[Any]:
    assert parser.ok, errors(parser)
    return run_graph(parser.network.graph, feeds)


X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


# --- what parse takes ---------------------------------------------------------------------------


def test_outputs_are_nodes_that_nothing_reads() -> None:
    p = parse(graph(new_node("a", "Relu", "x"), new_node("b", "Neg", "a"),
                    new_node("c", "Exp", "a")))
    assert [v.name for v in p.network.graph.outputs] == ["b", "c"]


def test_numbered_outputs_and_inner_nodes() -> None:
    split = new_node("s", "Split", ["axis", "x"], num_split=3)
    p = parse(graph(constant("axis", np.int32(1)), split, new_node("y", "Neg", "s:2")),
              outputs=["s:1", "y"])
    a, b = results(p, X)
    np.testing.assert_array_equal(a, X[:, 1:2])
    np.testing.assert_array_equal(b, -X[:, 2:])


def test_any_node_can_be_an_input() -> None:
    p = parse(graph(new_node("a", "DecodeWav", "x"), new_node("b", "Relu", "a:0", T=F32)),
              inputs={"a:0": (2, 3)})
    np.testing.assert_array_equal(results(p, X)[0], np.maximum(X, 0))


def test_constants_fold_conditionals() -> None:
    g = graph(new_node("train", "Placeholder", dtype=np.dtype(bool), shape=()),
              new_node("s", "Switch", ["x", "train"]), new_node("off", "Neg", "s"),
              new_node("on", "Relu", "s:1"), new_node("m", "Merge", ["off", "on"]))
    p = parse(g, constants={"train": False}, outputs=["m"])
    np.testing.assert_array_equal(results(p, X)[0], -X)
    assert [v.name for v in p.network.graph.inputs] == ["x"]


def test_unknown_sizes() -> None:
    p = parse(graph(new_node("y", "Relu", "x")), inputs={"x": (-1, 3)})
    assert tuple(p.network.get_input(0).shape) == (-1, 3)


def test_layers_by_node_name() -> None:
    p = parse(LENET)
    assert tuple(p.get_layer_output_tensor("conv1/Conv2D", 0).shape) == (-1, 12, 24, 24)
    assert p.get_layer_output_tensor("nothing", 0) is None


def test_text_form_and_folders(tmp_path: Path) -> None:
    from google.protobuf import text_format

    g = load(LENET)
    (tmp_path / "net.pbtxt").write_text(text_format.MessageToString(g))
    saved = messages()["SavedModel"]()
    saved.meta_graphs.add().graph_def.CopyFrom(g)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert load(tmp_path / "net.pbtxt") == load(tmp_path) == g


@pytest.mark.parametrize("name", ["lenet_digits.pb", "lenet_digits.uff"])
def test_build_takes_the_file(name: str) -> None:
    run = trt.build(LENET.with_name(name), level=0)
    assert run({"image": np.zeros((2, 28, 28, 1), np.float32)})["probabilities"].shape == (2, 10)


# --- bad graphs ---------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    p = parse(graph(
        new_node("a", "Frobnicate", "x"), new_node("b", "Blub", "a"),
        constant("w", np.zeros((4, 5), np.float32)), new_node("c", "MatMul", ["x", "w"]),
        constant("axis", np.int32(7)), new_node("d", "Sum", ["x", "axis"]),
        new_node("e", "AddN", ["b", "c", "d"]), new_node("f", "Neg", "gone")))
    text = errors(p)
    for part in ("'a' (Frobnicate)", "'b' (Blub)", "'c' (MatMul)", "x: f32[2, 3]", "'d' (Sum)",
                 "axis", "no node 'gone', which 'f' reads"):
        assert part in text, text
    assert "(AddN)" not in text  # only follows from the others


def test_cycle() -> None:
    text = errors(parse(graph(new_node("a", "AddV2", ["x", "b"]), new_node("b", "Neg", "a")),
                        outputs=["b"]))
    assert "cycle" in text and "'a' (AddV2)" in text and "'b' (Neg)" in text


@pytest.mark.parametrize("node, says", [
    (new_node("y", "DecodeWav", "x"), "make this node's output an input"),
    (new_node("y", "VariableV2"), "freeze it first"),
    (new_node("y", "Conv2D", ["x", "x"], strides=[1, 1, 1, 1], padding="SAME"), "rank 2"),
    (new_node("y", "Relu"), "input 0 is missing"),
    (new_node("y", "Split", ["x", "x"], num_split=2), "must be known while parsing"),
    (new_node("y", "Reshape", ["x", "x"]), "y"),
    (new_node("y", "MaxPool", ["x"]), "rank 2"),
    (new_node("y", "PartitionedCall", ["x"]), "'f' is missing"),
    (new_node("y", "Exit", ["x"]), "leaves no while-loop"),
    (new_node("y", "Merge", ["x", "x"]), "no Switch"),
])
def test_node_problems(node: Any, says: str) -> None:
    text = errors(parse(graph(node), outputs=["y"]))
    assert says in text and "'y'" in text and "INTERNAL" not in text, text


@pytest.mark.parametrize("options, says", [
    ({"outputs": ["nothing"]}, "no node 'nothing'"),
    ({"outputs": ["y:3"]}, "output 3"),
    ({"inputs": {"z": (1,)}}, "no node 'z'; its placeholders are 'x'"),
    ({"inputs": {"x": (2, 3, 4)}, "outputs": ["d"]}, "'d' (MatMul)"),
    ({"inputs": {"x": None}, "outputs": ["u"]}, "does not say its rank"),
])
def test_option_problems(options: Any, says: str) -> None:
    g = graph(new_node("y", "Relu", "x"), constant("w", np.zeros((3, 5), np.float32)),
              new_node("d", "MatMul", ["x", "w"]), new_node("p", "Placeholder", dtype=F32),
              new_node("u", "Neg", "p"))
    g.node[3 + 1].attr["shape"].shape.unknown_rank = True
    assert says in errors(parse(g, **options))


def test_cut_off_file() -> None:
    data = LENET.read_bytes()
    for size in (0, 1, 10, 1000, len(data) - 7):
        assert errors(parse(data[:size]))


def test_missing_file() -> None:
    with pytest.raises(ModelProblem, match="can't be read"):
        load("none.pb")


def test_damaged_reference() -> None:
    text = errors(parse(graph(new_node("y", "Relu", "x:0:z"), new_node("z", "Relu", "x:q"))))
    assert "no node 'x:0:z', which 'y' reads" in text and "'x:q'" in text


def test_damaged_constant() -> None:
    g = graph(constant("w", np.zeros(3, np.float32)), new_node("y", "AddV2", ["x", "w"]))
    g.node[1].attr["value"].tensor.tensor_content = b"12345"
    assert "needs 12 bytes but has 5" in errors(parse(g))


def test_saved_model_with_variables_needs_its_folder() -> None:
    saved = messages()["SavedModel"]()
    saved.meta_graphs.add().graph_def.node.append(new_node("v", "VarHandleOp"))
    assert "give the folder's path" in errors(parse(saved.SerializeToString()))


def test_function_that_calls_itself() -> None:
    g = graph(new_node("y", "f", "x"))
    f = g.library.function.add()
    f.signature.name = "f"
    f.signature.input_arg.add(name="a")
    f.signature.output_arg.add(name="r")
    f.node_def.append(new_node("again", "f", "a"))
    f.ret["r"] = "again:r:0"
    assert "nested" in errors(parse(g))


def test_page_is_up_to_date() -> None:
    from tactician.parsers.uff import support as uff_support

    for name, page in (("tensorflow", support.page()), ("uff", uff_support.page())):
        assert (ROOT / "docs" / f"{name}.md").read_text() == page, "run scripts/support_matrix.py"


@pytest.mark.parametrize("name", ["lenet_digits.pb", "lenet_digits.uff"])
def test_command_line_takes_the_file(name: str, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    from tactician.cli import main

    plan = tmp_path / "net.plan"
    words = ["tactician", "build", str(LENET.with_name(name)), "-o", str(plan), "--level", "0"]
    monkeypatch.setattr("sys.argv", words)
    with contextlib.suppress(SystemExit):
        main()
    out = trt.load(plan)({"image": np.zeros((1, 28, 28, 1), np.float32)})
    assert out["probabilities"].shape == (1, 10)
