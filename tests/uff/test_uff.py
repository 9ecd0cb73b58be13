"""UFF: the format, conversion from TensorFlow, the parser with TensorRT's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tactician as trt
from tactician import uff
from tactician.cli.convert_to_uff import main
from tactician.graphsurgeon import DynamicGraph
from tactician.ops.interpreter import run_graph
from tactician.parsers.tensorflow import load
from tactician.parsers.tensorflow.graph import constant, new_graph, new_node
from tactician.parsers.uff.file import from_text, to_bytes, to_text
from tactician.parsers.uff.file import load as load_uff
from tactician.parsers.uff.schema import get_data, messages, set_data

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tactician" / "data"
REFERENCES = np.load(ROOT / "tests" / "tensorflow" / "references.npz")
F32 = np.dtype(np.float32)


def digits(count: int = 12) -> np.ndarray:
    with np.load(DATA / "digits_test.npz") as z:
        return (z["images"][:count, None] / 255).astype(np.float32)


def network(implicit: bool = False) -> trt.INetworkDefinition:
    return trt.INetworkDefinition(0, trt.Logger(trt.Logger.INTERNAL_ERROR),
                                  implicit_batch=implicit)


def errors(parser: Any) -> str:
    return "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))


@pytest.fixture(scope="module")
def by_onnx() -> np.ndarray:
    return trt.build(str(DATA / "lenet_digits.onnx"), level=0)({"image": digits()})["probabilities"]


# --- the digits -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_lenet_is_the_onnx_one(order: str, by_onnx: np.ndarray) -> None:
    net, parser = network(), trt.UffParser()
    x = digits() if order == "NCHW" else digits().transpose(0, 2, 3, 1)
    parser.register_input("image", x.shape[1:], trt.UffInputOrder[order])
    parser.register_output("probabilities")
    assert parser.parse(str(DATA / "lenet_digits.uff"), net), errors(parser)
    engine = trt.build(net, level=0)
    np.testing.assert_allclose(engine({"image": x})["probabilities"], by_onnx, atol=1e-5)


def test_lenet_with_implicit_batch(by_onnx: np.ndarray) -> None:
    """As programs of TensorRT 5 write it."""
    net = network(implicit=True)
    with trt.UffParser() as parser:
        parser.register_input("image", (1, 28, 28))
        parser.register_output("probabilities")
        assert parser.parse_buffer((DATA / "lenet_digits.uff").read_bytes(), net), errors(parser)
    assert tuple(net.get_input(0).shape) == (1, 28, 28)
    assert tuple(net.get_output(0).shape) == (10,)
    np.testing.assert_allclose(run_graph(net.graph, [digits()])[0], by_onnx, atol=1e-5)


def test_lenet_as_frozen_graph(by_onnx: np.ndarray) -> None:
    net = trt.Builder(trt.Logger()).create_network(1)
    assert trt.TensorFlowParser(net).parse(DATA / "lenet_digits.pb")
    engine = trt.build(net, level=0)
    got = engine({"image": digits().transpose(0, 2, 3, 1)})["probabilities"]
    np.testing.assert_allclose(got, by_onnx, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet_digits.pb", "lenet_digits.uff"])
def test_files_are_small(name: str) -> None:
    assert (DATA / name).stat().st_size < 500_000


# --- the format -------------------------------------------------------------------------------


def test_text_form_round_trips() -> None:
    meta = load_uff(DATA / "lenet_digits.uff")
    assert to_bytes(from_text(to_text(meta))) == (DATA / "lenet_digits.uff").read_bytes()


def test_field_numbers() -> None:
    """The bytes on the wire, by hand."""
    meta = messages()["MetaGraph"](version=1)
    node = meta.graphs.add(id="g").nodes.add(id="a", operation="Input")
    set_data(node.fields["dtype"], F32)
    field = "0a056474797065" "1205" "a806a08008"
    body = "0a0161" "1a05496e707574" "220e" + field
    assert to_bytes(meta).hex() == "0801" "221f" "0a0167" "121a" + body
    blob = node.fields["dtype"].SerializeToString()
    assert blob == b"\xa8\x06\xa0\x80\x08"  # field 101, 0x20020


@pytest.mark.parametrize("value", [1, 2.5, True, "text", b"blob", [1, 2], [0.5, 1.5], ["a", "b"],
                                   [True, False], []])
def test_values_of_fields(value: Any) -> None:
    data = messages()["Data"]()
    set_data(data, value)
    assert get_data(data) == (tuple(value) if isinstance(value, list) else value)


# --- conversion -------------------------------------------------------------------------------

CONVERTIBLE = sorted(
    k.removesuffix(":graph") for k in REFERENCES.files if k.endswith(":graph")
    and k.split("/")[0] in ("act", "conv", "depthwise", "transposed", "pool", "norm", "net",
                            "dense", "resize", "reduce", "move")
    and k.removesuffix(":graph") not in (
        "norm/training",  # UFF has inference only
        "reduce/any", "reduce/all",  # no bool
        "conv/explicit",  # different padding on both sides
        "net/attention"))


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_converted_graph_computes_the_same(name: str) -> None:
    graph = load(REFERENCES[f"{name}:graph"].tobytes())
    outputs = str(REFERENCES[f"{name}:outputs"]).split()
    names = [o.removesuffix(":0") for o in outputs]
    if any(":" in n for n in names) or len(set(names)) != len(names):
        pytest.skip("outputs of UFF are nodes")
    data = uff.from_tensorflow(graph, names, quiet=True)
    net, parser = network(), trt.UffParser()
    feeds = []
    for n in graph.node:
        if n.op == "Placeholder":
            x = REFERENCES[f"{name}:in{n.name[1:]}"]
            parser.register_input(n.name, x.shape or (1,), trt.UffInputOrder.NHWC)
            feeds.append(x)
    if any(x.ndim == 0 for x in feeds):
        pytest.skip("inputs of UFF have dimensions")
    assert parser.parse_buffer(data, net), errors(parser)
    for k, got in enumerate(run_graph(net.graph, feeds)):
        tolerance = 2e-3 if "bicubic" in name else 2e-5
        np.testing.assert_allclose(got, REFERENCES[f"{name}:out{k}"], rtol=tolerance,
                                   atol=tolerance)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "pre.py"
    script.write_text("def preprocess(graph):\n"
                      "    graph.forward_inputs(graph.find_nodes_by_op('Softmax'))\n")
    out = tmp_path / "lenet.uff"
    code = main([str(DATA / "lenet_digits.pb"), "-o", str(out), "-O", "fc2/BiasAdd", "-t",
                 "--write_preprocessed", "-p", str(script), "-d",
                 "-I", "image,Placeholder,float32,-1,28,28,1"])
    assert code == 0 and "conv1/Conv2D" in capsys.readouterr().out
    meta = load_uff(out)
    assert [n.id for n in meta.graphs[0].nodes if n.operation == "Input"] == ["Placeholder"]
    assert meta.graphs[0].nodes[-1].operation == "MarkOutput"
    assert to_bytes(load_uff(tmp_path / "lenet.pbtxt")) == out.read_bytes()
    assert not DynamicGraph(tmp_path / "lenet.preprocessed.pb").find_nodes_by_op("Softmax")


def test_command_line_lists_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "lenet_digits.pb"), "-l"]) == 0
    assert 'Placeholder: "image"' in capsys.readouterr().out


def test_command_line_quiet_and_default_output(tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.pb"
    source.write_bytes((DATA / "lenet_digits.pb").read_bytes())
    assert main([str(source), "-q"]) == 0
    assert not capsys.readouterr().out
    assert (tmp_path / "net.uff").read_bytes() == (DATA / "lenet_digits.uff").read_bytes()


def test_command_line_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.pb")]) == 1
    assert "can't be read" in capsys.readouterr().err


# --- plugins ----------------------------------------------------------------------------------


def test_plugin_node_by_factory() -> None:
    graph = new_graph()
    graph.node.append(new_node("x", "Placeholder", dtype=F32, shape=(-1, 4)))
    graph.node.append(constant("k", np.ones(3, np.float32)))
    graph.node.append(new_node("mine", "_Mine", ["x", "k"], factor=2.5, sizes=[1, 2], mode="fast"))
    data = uff.from_tensorflow(graph, ["mine"], quiet=True)
    asked: list[Any] = []

    class Factory(trt.IUffPluginFactory):
        def is_plugin(self, layer_name: str) -> bool:
            return layer_name == "mine"

        def create_plugin(self, layer_name: str, weights: Any, field_collection: Any) -> Any:
            fields = {f.name: f.data for f in field_collection.fields}
            asked.append((layer_name, len(weights), fields))

    parser = trt.UffParser()
    parser.plugin_factory = Factory()
    parser.register_input("x", (4,), trt.UffInputOrder.NC)
    assert not parser.parse_buffer(data, network())
    assert asked and asked[0] == ("mine", 1, {"factor": 2.5, "mode": "fast", "sizes": (1, 2)})


# --- bad input --------------------------------------------------------------------------------


def bad(parser: Any, data: bytes, *parts: str) -> None:
    assert not parser.parse_buffer(data, network())
    for p in parts:
        assert p in errors(parser), errors(parser)


def lenet() -> Any:
    return load_uff(DATA / "lenet_digits.uff")


def ready(**inputs: Any) -> Any:
    parser = trt.UffParser()
    for name, shape in (inputs or {"image": (1, 28, 28)}).items():
        parser.register_input(name, shape)
    parser.register_output("probabilities")
    return parser


def test_cut_off_file() -> None:
    bad(ready(), (DATA / "lenet_digits.uff").read_bytes()[:9000], "cut off")


def test_no_uff_file() -> None:
    bad(ready(), b"\x00\x01\x02", "no UFF file")


def test_unregistered_input_and_unknown_names() -> None:
    parser = ready(wrong=(1, 28, 28))
    parser.register_output("nothing")
    bad(parser, to_bytes(lenet()), "'image' [-1, 28, 28, 1] is not registered",
        "no input 'wrong'", "no node 'nothing'")


def test_wrong_dims() -> None:
    bad(ready(image=(28, 28)), to_bytes(lenet()), "registered with shape [28, 28]")


def test_all_problems_at_once() -> None:
    meta = lenet()
    nodes = {n.id: n for n in meta.graphs[0].nodes}
    nodes["fc1/Relu"].fields["func"].s = "wavy"
    nodes["pool2/MaxPool"].operation = "Puddle"
    nodes["fc2/kernel"].fields["values"].ref = "gone"
    bad(ready(), to_bytes(meta), "'wavy' is not known", "Puddle", "'gone'")


def test_damaged_weights() -> None:
    meta = lenet()
    meta.referenced_data["weights_fc2/kernel"].blob = b"1234"
    bad(ready(), to_bytes(meta), "fc2/kernel", "needs 4800 bytes but has 4")


def test_cycle() -> None:
    meta = lenet()
    nodes = {n.id: n for n in meta.graphs[0].nodes}
    nodes["conv1/Conv2D"].inputs[0] = "fc1/Relu"
    bad(ready(), to_bytes(meta), "cycle", "conv1/Conv2D")


def test_error_recorder_is_told() -> None:
    told: list[str] = []

    class Recorder(trt.IErrorRecorder):
        def report_error(self, arg0: Any, arg1: str) -> bool:
            told.append(arg1)
            return True

    parser = trt.UffParser()
    parser.error_recorder = Recorder()
    assert not parser.parse("none.uff", network())
    assert told and "can't be read" in told[0]


def test_bad_registration() -> None:
    assert not trt.UffParser().register_input("x", (0, 3))


def test_images_leave_in_the_order_they_enter() -> None:
    def outputs(order: str, implicit: bool) -> np.ndarray:
        net, parser = network(implicit), trt.UffParser()
        x = digits(2) if order == "NCHW" else digits(2).transpose(0, 2, 3, 1)
        parser.register_input("image", x.shape[1:], trt.UffInputOrder[order])
        parser.register_output("pool2/MaxPool")
        assert parser.parse(str(DATA / "lenet_digits.uff"), net), errors(parser)
        return run_graph(net.graph, [x])[0]

    first = outputs("NCHW", False)
    assert first.shape == (2, 24, 4, 4)
    np.testing.assert_allclose(outputs("NHWC", False).transpose(0, 3, 1, 2), first, rtol=1e-6)
    np.testing.assert_array_equal(outputs("NCHW", True), first)


def test_half_weights_are_rounded(by_onnx: np.ndarray) -> None:
    net, parser = network(), ready()
    data = (DATA / "lenet_digits.uff").read_bytes()
    assert parser.parse_buffer(data, net, trt.DataType.HALF), errors(parser)
    got = run_graph(net.graph, [digits()])[0]
    assert 0 < np.abs(got - by_onnx).max() < 0.02
    assert not ready().parse_buffer(data, network(), trt.DataType.INT8)
