"""What is wrong with a model is said by layer and line, all at once."""

from __future__ import annotations

import re

import caffecases as cases
import numpy as np
import pytest
from caffekit import (
    Quiet,
    inputs_text,
    layer_text,
    made_up_model,
    network,
    problems,
    write_caffemodel,
)

import tactician as trt

CASES = cases.every()
X = inputs_text({"x": (1, 3, 8, 8)})
CONV = layer_text("conv", "Convolution", ["x"], ["y"],
                  "convolution_param { num_output: 4 kernel_size: 3 }")
NET = f"{X}\n{CONV}"
WEIGHTS = made_up_model(NET)

# (layers behind the input in line 1, what the message must say)
LAYERS = {
    "unknown type": (layer_text("a", "Warp", ["x"], ["y"]), "line 2.*'a'.*no layer type 'Warp'"),
    "wrong case": (layer_text("a", "Relu", ["x"], ["y"]), "did you mean 'ReLU'"),
    "unknown bottom": (layer_text("a", "ReLU", ["z"], ["y"]), "reads 'z', which no layer"),
    "self loop": (layer_text("a", "ReLU", ["y"], ["y"]), "reads 'y'"),
    "cycle": (layer_text("a", "Eltwise", ["x", "q"], ["p"]) + "\n"
              + layer_text("b", "ReLU", ["p"], ["q"]), "cycle, p → q|cycle, q → p"),
    "order": (layer_text("a", "ReLU", ["q"], ["p"]) + "\n"
              + layer_text("b", "ReLU", ["x"], ["q"]), "'b' at line 3 gives only later"),
    "duplicate tops": (layer_text("a", "ReLU", ["x"], ["y"]) + "\n"
                       + layer_text("b", "TanH", ["x"], ["y"]), "'a' at line 2 gives already"),
    "top twice": (layer_text("a", "Split", ["x"], ["y", "y"]), "top 'y' twice"),
    "no top": (layer_text("a", "ReLU", ["x"], []), "no top"),
    "too few bottoms": (layer_text("a", "Eltwise", ["x"], ["y"]), "1 bottoms; Eltwise takes 2 or"),
    "too many tops": (layer_text("a", "ReLU", ["x"], ["y", "z"]), "2 tops; ReLU gives 1"),
    "no num_output": (layer_text("a", "Convolution", ["x"], ["y"],
                                 "convolution_param { kernel_size: 3 }"), "needs num_output"),
    "no kernel": (layer_text("a", "Convolution", ["x"], ["y"],
                             "convolution_param { num_output: 3 }"), "needs kernel_size"),
    "groups": (layer_text("a", "Convolution", ["x"], ["y"], "convolution_param { num_output: 4 "
                          "kernel_size: 1 group: 2 }"), "3 channels.*2 groups"),
    "window too big": (layer_text("a", "Convolution", ["x"], ["y"], "convolution_param { "
                                  "num_output: 4 kernel_size: 9 }"), "9"),
    "pooling size": (layer_text("a", "Pooling", ["x"], ["y"]), "needs kernel_size"),
    "stochastic": (layer_text("a", "Pooling", ["x"], ["y"], "pooling_param { kernel_size: 2 "
                              "pool: STOCHASTIC }"), "STOCHASTIC"),
    "reshape count": (layer_text("a", "Reshape", ["x"], ["y"], "reshape_param { shape { dim: 5 } "
                                 "}"), "192 elements"),
    "reshape two -1": (layer_text("a", "Reshape", ["x"], ["y"], "reshape_param { shape { dim: -1 "
                                  "dim: -1 } }"), "more than one -1"),
    "axis": (layer_text("a", "Softmax", ["x"], ["y"], "softmax_param { axis: 4 }"),
             "axis 4 is out of range: the bottom has 4"),
    "permute": (layer_text("a", "Permute", ["x"], ["y"], "permute_param { order: 1 order: 1 }"),
                "each once"),
    "slice points": (layer_text("a", "Slice", ["x"], ["y", "z"], "slice_param { slice_point: 3 }"),
                     "must rise between 0 and 3"),
    "slice parts": (layer_text("a", "Slice", ["x"], ["y", "z"]), "can't be cut into 2 equal"),
    "concat": (inputs_text({"w": (1, 3, 7, 8)}) + layer_text("a", "Concat", ["x", "w"], ["y"]),
               "only along axis 1"),
    "eltwise": (inputs_text({"w": (1, 1, 8, 8)}) + layer_text("a", "Eltwise", ["x", "w"], ["y"]),
                "all must have the same"),
    "coeff": (layer_text("a", "Eltwise", ["x", "x"], ["y"], "eltwise_param { coeff: 1 }"),
              "1 coeff for 2 bottoms"),
    "data layer": (layer_text("d", "Data", [], ["img"]) + "\n"
                   + layer_text("a", "ReLU", ["img"], ["y"]), "replace that layer by an Input"),
    "dropped layer": (layer_text("l", "EuclideanLoss", ["x", "x"], ["loss"]) + "\n"
                      + layer_text("a", "ReLU", ["loss"], ["y"]), "only training needs"),
    "input shape": ('layer { name: "i" type: "Input" top: "i" }', "has no shape"),
    "input size 0": (inputs_text({"i": (1, 0, 2)}), r"\[1, 0, 2\]"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    layers, want = LAYERS[name]
    found = problems(f"{X}\n{layers}")
    assert re.search(want, "\n".join(found)), found
    assert all("line " in text and "bottoms: " in text for text in found)
    assert not any("internal error" in text for text in found)


def test_all_problems_at_once() -> None:
    text = "\n".join([X, layer_text("a", "Warp", ["x"], ["p"]), CONV,
                      layer_text("b", "ReLU", ["p"], ["q"]),  # says nothing new
                      layer_text("c", "Softmax", ["x"], ["r"], "softmax_param { axis: 9 }"),
                      layer_text("d", "Bend", ["q"], ["s"])])
    found = problems(text, write_caffemodel("net", {"conv": [np.zeros((4, 3, 3, 3))]}))
    assert [re.search(r"layer '(\w)", t).group(1) for t in found] == ["a", "c", "c", "d"]
    assert "bottoms: x: f32[1, 3, 8, 8]" in found[1]


@pytest.mark.parametrize("keep", [1, 20, len(WEIGHTS) // 2, len(WEIGHTS) - 1])
def test_cut_off_caffemodel(keep: int) -> None:
    (found,) = problems(NET, WEIGHTS[:keep])
    assert "cut off" in found


@pytest.mark.parametrize(("model", "want"), [
    (b"", "holds no layers"), (b"not a model at all", "no caffemodel"),
    (write_caffemodel("n", {"conv": [np.zeros((4, 3, 3, 3))]}), r"bias \(4,\) are missing"),
    (write_caffemodel("n", {"conv": []}), r"weights \(4, 3, 3, 3\) are missing.*no blobs"),
    (write_caffemodel("n", {"conv": [np.zeros((4, 3, 5, 5)), np.zeros(4)]}),
     r"\(4, 3, 5, 5\) in the caffemodel, but the prototxt asks for \(4, 3, 3, 3\)"),
    (write_caffemodel("n", {"conv": [np.zeros((3, 4, 3, 3)), np.zeros(4)]}), r"\(3, 4, 3, 3\)"),
    (write_caffemodel("n", {"fc": [np.zeros((4, 3))]}), "has no blobs for layer 'conv'"),
], ids=["empty", "text", "no bias", "no blobs", "kernel", "transposed", "another net"])
def test_caffemodel(model: bytes, want: str) -> None:
    assert re.search(want, "\n".join(problems(NET, model)))


def test_blob_with_fewer_numbers_than_its_shape() -> None:
    good = write_caffemodel("n", {"conv": [np.zeros((4, 3, 3, 3)), np.zeros(4)]})
    shape = bytes([0x3A, 6, 0x0A, 4, 4, 3, 3, 3])  # field shape, packed dims
    assert good.count(shape) == 1
    (found,) = problems(NET, good.replace(shape, shape[:4] + bytes([5, 3, 3, 3])))
    assert re.search(r"blob 0 of layer 'conv' has shape \(5, 3, 3, 3\) but 108 numbers", found)


@pytest.mark.parametrize(("text", "want"), [
    (b"\x08\xff\xfe\x00", "it isn't text"), ("layer { name: ", "no prototxt"),
    ("layer { pooling_param { pool: MEDIAN } }", "MEDIAN"), ("", "has no layers"),
    ("hello: 1", "has no layers"), ("layer { name: 3 }", "no prototxt: 1:"),
    ('input: "x"', "line 1: input 'x' has no shape"),
    ('input: "x" input_dim: 1 input_dim: 3', "input 'x' has no shape"),
    (NET + '\nlayers { name: "v1" type: RELU }', "both 'layer' and 'layers'"),
], ids=["binary", "cut off", "enum", "empty", "no layers", "type", "shape", "dims", "mixed"])
def test_prototxt(text: str | bytes, want: str) -> None:
    assert any(want in p for p in problems(text)), problems(text)


def test_files_given_the_wrong_way_round() -> None:
    found = problems(WEIGHTS, NET.encode())
    assert len(found) == 2


def test_unknown_fields_are_warned_about_once() -> None:
    log = Quiet()
    text = NET + '\nlayer { name: "r" type: "ReLU" bottom: "y" top: "y" magic_param { a: 1 } }'
    assert trt.CaffeParser().parse_buffer(text, WEIGHTS, network(False, log), trt.float32)
    (warning,) = [m for s, m in log.messages if s == trt.Logger.WARNING]
    assert "line 3" in warning and "layer.magic_param" in warning


@pytest.mark.parametrize(("layer", "want"), [
    (layer_text("a", "Reduction", ["x"], ["y"]), "axis 0 mixes the images of a batch"),
    (layer_text("a", "Concat", ["x", "x"], ["y"], "concat_param { axis: 0 }"), "axis 0"),
    (layer_text("a", "Permute", ["x"], ["y"], "permute_param { order: 1 order: 0 }"), "batch"),
], ids=["reduction", "concat", "permute"])
def test_batch_needs_explicit_batch(layer: str, want: str) -> None:
    parser = trt.CaffeParser()
    assert parser.parse_buffer(f"{X}\n{layer}", None, network(True), trt.float32) is None
    assert want in parser.problems[0]


class Recorder(trt.IErrorRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def report_error(self, code: object, text: str) -> bool:
        self.texts.append(text)
        return False


def test_files(tmp_path) -> None:
    recorder = Recorder()
    parser = trt.CaffeParser()
    parser.error_recorder = recorder
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "net.caffemodel").write_bytes(WEIGHTS)
    deploy, model = (str(tmp_path / f"net.{x}") for x in ("prototxt", "caffemodel"))
    assert parser.parse(deploy, model + "x", network(False), trt.float32) is None
    assert "can't be read" in recorder.texts[0]
    parser.protobuf_buffer_size = 100
    assert parser.parse(deploy, model, network(False), trt.float32) is None
    assert "protobuf_buffer_size allows 100" in recorder.texts[1]
    parser.protobuf_buffer_size = 1 << 20
    assert parser.parse(deploy, model, network(False), trt.int8) is None
    assert "FLOAT or HALF" in recorder.texts[2]
    found = parser.parse(deploy, model, network(False), trt.float32)
    assert found is not None and found.find("nothing") is None


def damaged(case: cases.Case, rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A model with a wrong number, byte, word order or layer type."""
    text, model = case.prototxt, case.model
    kind = rng.integers(5)
    if kind == 0:
        numbers = list(re.finditer(r"(?<=: )-?\d+", text))
        m = numbers[rng.integers(len(numbers))]
        wrong = rng.choice([-3, -1, 0, 1, 2, 5, 100, 2**31 - 1])
        text = f"{text[: m.start()]}{wrong}{text[m.end() :]}"
    elif kind == 1:
        words = text.split(" ")
        i, j = rng.integers(len(words), size=2)
        words[i], words[j] = words[j], words[i]
        text = " ".join(words)
    elif kind == 2:
        other = CASES[rng.integers(len(CASES))]
        text = text.replace(f'type: "{case.type}"', f'type: "{other.type}" {other.params}')
    data = bytearray(text.encode())
    if kind == 3:
        data[rng.integers(len(data))] = rng.integers(256)
    weights = bytearray(model)
    if kind == 4:
        weights[rng.integers(min(len(weights), 60))] = rng.integers(256)
    return bytes(data), bytes(weights)


@pytest.mark.parametrize("seed", range(10))
def test_damaged_models_are_refused_or_parsed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(40):
        text, model = damaged(CASES[rng.integers(len(CASES))], rng)
        parser = trt.CaffeParser()
        found = parser.parse_buffer(text, model, network(bool(seed % 2)), trt.float32)
        assert (found is None) == bool(parser.problems)
        assert not [p for p in parser.problems if "internal error" in p]
