"""`CaffeParser`'s API, old ways of writing nets, phases, and how weights are stored."""

from __future__ import annotations

import re

import numpy as np
import pytest
from caffekit import (
    Quiet,
    inputs_text,
    layer_text,
    made_up,
    made_up_model,
    network,
    opencv,
    parse,
    relative,
    run,
    write_caffemodel,
)

import tactician as trt
from tactician.parsers.caffe.schema import weight_messages

X = inputs_text({"data": (2, 3, 8, 8)})
LENET = "\n".join([
    X,
    layer_text("conv1", "Convolution", ["data"], ["conv1"],
               "convolution_param { num_output: 4 kernel_size: 3 }"),
    layer_text("relu1", "ReLU", ["conv1"], ["conv1"]),
    layer_text("pool1", "Pooling", ["conv1"], ["pool1"],
               "pooling_param { kernel_size: 2 stride: 2 }"),
    layer_text("drop1", "Dropout", ["pool1"], ["drop1"]),
    layer_text("ip1", "InnerProduct", ["drop1"], ["ip1"],
               "inner_product_param { num_output: 5 }"),
    layer_text("prob", "Softmax", ["ip1"], ["prob"]),
])
MODEL = made_up_model(LENET)
FEED = {"data": made_up("lenet", (2, 3, 8, 8))}


# --- the API --------------------------------------------------------------------------------


def test_names_and_layers() -> None:
    net, found = parse(LENET, MODEL)
    assert found.results == ["prob"]
    for name, shape in (("data", (2, 3, 8, 8)), ("conv1", (2, 4, 6, 6)), ("pool1", (2, 4, 3, 3)),
                        ("drop1", (2, 4, 3, 3)), ("ip1", (2, 5)), ("prob", (2, 5))):
        assert found.find(name).name == name and tuple(found.find(name).shape) == shape
    kinds = {layer.name: layer.type for layer in net}
    assert kinds["conv1"] == trt.LayerType.CONVOLUTION and kinds["pool1"] == trt.LayerType.POOLING
    assert kinds["relu1"] == trt.LayerType.ACTIVATION
    assert kinds["ip1"] == trt.LayerType.FULLY_CONNECTED
    assert kinds["prob"] == trt.LayerType.SOFTMAX


def test_find_of_an_unknown_blob_is_logged() -> None:
    log = Quiet()
    net = network(False, log)
    found = trt.CaffeParser().parse_buffer(LENET, MODEL, net, trt.float32)
    assert found.find("conv9") is None
    assert "no blob 'conv9'" in log.messages[-1][1] and "conv1" in log.messages[-1][1]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_of_version_7(batch: int) -> None:
    """Implicit batch, a profile-less builder, bindings."""
    with trt.Builder(Quiet()) as builder, network(True) as net, trt.CaffeParser() as parser:
        builder.max_batch_size = 4
        tensors = parser.parse_buffer(LENET, MODEL, net, trt.float32)
        net.mark_output(tensors.find("prob"))
        assert tuple(net.get_input(0).shape) == (3, 8, 8)
        with builder.build_engine(net, builder.create_builder_config()) as engine:
            x = np.ascontiguousarray(FEED["data"][:batch])
            y = np.zeros((batch, 5), np.float32)
            bindings = [0, 0]
            bindings[engine.get_binding_index("data")] = x.ctypes.data
            bindings[engine.get_binding_index("prob")] = y.ctypes.data
            with engine.create_execution_context() as context:
                assert context.execute(batch, bindings)
    assert relative(y, run(LENET, MODEL, FEED, ["prob"])[0][:batch]) < 1e-5


def test_half_rounds_weights() -> None:
    net, parser = network(False), trt.CaffeParser()
    found = parser.parse_buffer(LENET, MODEL, net, trt.float16)
    layer = next(x for x in net if x.name == "conv1")
    exact = next(x for x in parse(LENET, MODEL)[0] if x.name == "conv1")
    assert found.find("prob").dtype == trt.float32
    np.testing.assert_array_equal(layer.kernel, exact.kernel.astype(np.float16).astype(np.float32))
    assert np.any(layer.kernel != exact.kernel)


def test_without_caffemodel_weights_are_made_up_and_said() -> None:
    log = Quiet()
    assert trt.CaffeParser().parse_buffer(LENET, None, network(False, log), trt.float32)
    assert any("weights are made up" in m for _, m in log.messages)


def test_parse_binary_proto(tmp_path) -> None:
    mean = made_up("mean", (1, 3, 4, 5))
    blob = weight_messages()["BlobProto"](num=1, channels=3, height=4, width=5,
                                          data=[mean.astype("<f4").tobytes()])
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    parser = trt.CaffeParser()
    np.testing.assert_array_equal(
        parser.parse_binary_proto(str(tmp_path / "mean.binaryproto")), mean)
    assert parser.parse_binary_proto(str(tmp_path / "none")) is None


def test_refit_by_layer_name() -> None:
    net, found = parse(LENET, MODEL)
    net.mark_output(found.find("ip1"))
    builder = trt.Builder(Quiet())
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    config.set_flag(trt.BuilderFlag.REFIT)
    engine = trt.Runtime(Quiet()).deserialize_cuda_engine(
        builder.build_serialized_network(net, config))
    refitter = trt.Refitter(engine, Quiet())
    pairs = list(zip(*refitter.get_all(), strict=True))
    assert ("conv1", trt.WeightsRole.KERNEL) in pairs and ("ip1", trt.WeightsRole.BIAS) in pairs


class Double(trt.IPluginV2Ext):
    """Twice the input, times a weight."""

    plugin_type, plugin_version, num_outputs = "Double", "1", 1

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def get_output_shape(self, index, input_shapes):
        return input_shapes[0]

    def clone(self) -> Double:
        return Double(self.weight)


class Factory(trt.ICaffePluginFactoryV2):
    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def is_plugin_v2(self, layer_name: str) -> bool:
        return layer_name == "mine"

    def create_plugin(self, layer_name: str, weights) -> Double:
        self.asked.append((layer_name, len(weights)))
        return Double(float(weights[0].numpy()[0]))


def test_plugin_factory() -> None:
    text = X + layer_text("mine", "Whatever", ["data"], ["y"])
    model = write_caffemodel("n", {"mine": [np.float32([3.0])]})
    parser = trt.CaffeParser()
    parser.plugin_factory_v2 = factory = Factory()
    parser.plugin_namespace = "own"
    net = network(False)
    found = parser.parse_buffer(text, model, net, trt.float32)
    assert found is not None, parser.problems
    assert factory.asked == [("mine", 1)]
    assert tuple(found.find("y").shape) == (2, 3, 8, 8)
    assert net.get_layer(0).plugin.plugin_namespace == "own"


class Old(trt.IPluginExt):
    """A plugin of version 7 that keeps shapes."""

    def get_output_shape(self, index, input_shapes):
        return input_shapes[0]


class OldFactory(trt.ICaffePluginFactoryExt):
    def is_plugin(self, layer_name: str) -> bool:
        return layer_name == "mine"

    def is_plugin_ext(self, layer_name: str) -> bool:
        return layer_name == "mine"

    def create_plugin(self, layer_name: str, weights) -> Old:
        assert weights == []
        return Old()


@pytest.mark.parametrize("which", ["plugin_factory", "plugin_factory_ext"])
def test_plugin_factories_of_version_7(which: str) -> None:
    text = "\n".join([X, layer_text("mine", "Whatever", ["data"], ["y"]),
                      layer_text("other", "ReLU", ["y"], ["y"])])
    parser, net = trt.CaffeParser(), network(True)
    setattr(parser, which, OldFactory())
    found = parser.parse_buffer(text, write_caffemodel("n", {"mine": []}), net, trt.float32)
    assert found is not None, parser.problems
    assert tuple(found.find("y").shape) == (3, 8, 8)
    assert [layer.name for layer in net] == ["mine", "other"]


# --- how nets are written -----------------------------------------------------------------------

V1 = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 convolution_param { num_output: 4 kernel_size: 3 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { kernel_size: 2 stride: 2 } }
layers { name: "drop1" type: DROPOUT bottom: "pool1" top: "drop1" dropout_param { } }
layers { name: "ip1" type: INNER_PRODUCT bottom: "drop1" top: "ip1"
  inner_product_param { num_output: 5 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip1" bottom: "label" top: "loss"
  include: { phase: TRAIN } }
layers { name: "prob" type: SOFTMAX bottom: "ip1" top: "prob" }
"""
V0 = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layers { layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 3 stride: 1 }
  bottom: "data" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 2 stride: 2 }
  bottom: "conv1" top: "pool1" }
layers { layer { name: "drop1" type: "dropout" dropout_ratio: 0.5 } bottom: "pool1" top: "drop1" }
layers { layer { name: "ip1" type: "innerproduct" num_output: 5 } bottom: "drop1" top: "ip1" }
layers { layer { name: "prob" type: "softmax" } bottom: "ip1" top: "prob" }
"""


@pytest.mark.parametrize("text", [V1, V0], ids=["V1", "V0"])
def test_old_forms(text: str) -> None:
    np.testing.assert_array_equal(run(text, MODEL, FEED, ["prob"])[0],
                                  run(LENET, MODEL, FEED, ["prob"])[0])


def test_v1_against_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 and later read no Caffe models")
    tested = re.sub(r'layers { name: "loss".*?} }', "", V1, flags=re.S)
    assert relative(run(V1, MODEL, FEED, ["prob"])[0],
                    opencv(tested, MODEL, FEED, ["prob"])[0]) < 1e-5


def test_v0_padding_layers() -> None:
    old = """input: "data" input_dim: 1 input_dim: 1 input_dim: 5 input_dim: 5
    layers { layer { name: "p" type: "padding" pad: 1 } bottom: "data" top: "p" }
    layers { layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 } bottom: "p" top: "c" }"""
    new = inputs_text({"data": (1, 1, 5, 5)}) + layer_text(
        "c", "Convolution", ["data"], ["c"],
        "convolution_param { num_output: 2 kernel_size: 3 pad: 1 }")
    model, feed = made_up_model(new), {"data": made_up("pad", (1, 1, 5, 5))}
    np.testing.assert_array_equal(run(old, model, feed, ["c"])[0], run(new, model, feed, ["c"])[0])


@pytest.mark.parametrize("shape", [
    'input: "data" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }',
    'input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8',
    'layer { name: "m" type: "MemoryData" top: "data" memory_data_param { batch_size: 2 '
    'channels: 3 height: 8 width: 8 } }',
    'layer { name: "d" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 '
    'dim: 8 dim: 8 } } }',
    "layer{name:'i',type:'Input' top:'data' input_param:<shape:{dim:2,dim:3 dim:8;dim:8}>} # end",
], ids=["input_shape", "input_dim", "MemoryData", "DummyData", "other punctuation"])
def test_inputs(shape: str) -> None:
    net, _ = parse(f'{shape}\n{layer_text("r", "ReLU", ["data"], ["y"])}', None)
    assert net.num_inputs == 1 and tuple(net.get_input(0).shape) == (2, 3, 8, 8)


def test_dynamic_batch() -> None:
    text = LENET.replace("dim: 2", "dim: -1", 1)
    _, found = parse(text, MODEL)
    assert tuple(found.find("prob").shape) == (-1, 5)


@pytest.mark.parametrize(("rule", "taken"), [
    ("include { phase: TEST }", True), ("include { phase: TRAIN }", False),
    ("exclude { phase: TEST }", False), ("exclude { phase: TRAIN }", True),
    ("include { phase: TRAIN } include { phase: TEST }", True),
    ('include { stage: "deploy" }', False), ('include { not_stage: "deploy" }', True),
    ("include { min_level: 1 }", False), ("exclude { min_level: 1 }", True),
    ("include { phase: TEST max_level: 0 }", True), ("", True),
])
def test_phases(rule: str, taken: bool) -> None:
    _, found = parse(X + layer_text("r", "ReLU", ["data"], ["data"]) + layer_text(
        "t", "TanH", ["data"], ["y"], rule), None)
    assert ("y" in found.results) is taken


def test_state_of_the_net() -> None:
    rule = 'include { stage: "deploy" min_level: 2 }'
    _, found = parse('state { level: 2 stage: "deploy" }' + X + layer_text(
        "t", "TanH", ["data"], ["y"], rule), None)
    assert found.results == ["y"]


def test_train_val_net() -> None:
    """What only training needs is left out; softmax with loss is a softmax."""
    text = "\n".join([
        'layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN } }', X,
        layer_text("ip", "InnerProduct", ["data"], ["ip"], "inner_product_param{num_output: 5}"),
        layer_text("acc", "Accuracy", ["ip", "label"], ["acc"], "include { phase: TEST }"),
        layer_text("loss", "SoftmaxWithLoss", ["ip", "label"], ["loss"]),
    ])
    with_labels = text.replace(X, X + "\n" + inputs_text({"label": (2,)}))
    _, found = parse(with_labels, None)
    assert found.results == ["loss"] and tuple(found.find("loss").shape) == (2, 5)
    replaced = text.replace('top: "data" top: "label"', 'top: "x" top: "label"').replace(
        "TRAIN", "TEST")
    _, found = parse(replaced, None)  # labels come from files: the softmax does without
    assert found.results == ["loss"]


# --- how weights are stored ---------------------------------------------------------------------

ARRAY = made_up("stored", (3, 1, 1, 2))


def _stored(how: str) -> bytes:
    messages = weight_messages()
    if how == "V1":
        net = messages["NetWeights"]()
        blob = net.layers.add(name="c").blobs.add(data=[ARRAY.tobytes()], num=3, channels=1)
        blob.height, blob.width = 1, 2
        return net.SerializeToString()
    if how == "V0":
        net = messages["NetWeights"]()
        inner = net.layers.add().layer
        inner.name = "c"
        inner.blobs.add(data=[ARRAY.tobytes()], num=3, channels=1, height=1, width=2)
        return net.SerializeToString()
    net = messages["NetWeights"]()
    blob = net.layer.add(name="c").blobs.add(shape={"dim": [3, 1, 1, 2]})
    if how == "double":
        blob.double_data.append(ARRAY.astype("<f8").tobytes())
    elif how == "half":
        blob.raw_data_type, blob.raw_data = 2, ARRAY.astype("<f2").tobytes()
    elif how == "chunks":
        blob.data.extend([ARRAY.tobytes()[:12], ARRAY.tobytes()[12:]])
    else:
        blob.MergeFromString(messages["UnpackedBlob"](data=ARRAY.ravel()).SerializeToString())
    return net.SerializeToString()


@pytest.mark.parametrize("how", ["V1", "V0", "double", "half", "chunks", "one by one"])
def test_storage(how: str) -> None:
    text = inputs_text({"x": (1, 1, 2, 3)}) + layer_text(
        "c", "Convolution", ["x"], ["y"],
        "convolution_param { num_output: 3 kernel_h: 1 kernel_w: 2 bias_term: false }")
    net, _ = parse(text, _stored(how))
    want = ARRAY.astype(np.float16) if how == "half" else ARRAY
    np.testing.assert_array_equal(net[0].kernel, want.ravel())


# --- masks of pooling


@pytest.mark.parametrize("pad", [0, 1])
def test_pooling_mask_and_upsampling_by_it(pad: int) -> None:
    torch = pytest.importorskip("torch")
    text = "\n".join([
        inputs_text({"x": (2, 3, 6, 8)}),
        layer_text("p", "Pooling", ["x"], ["p", "mask"],
                   f"pooling_param {{ kernel_size: 2 stride: 2 pad: {pad} }}"),
        layer_text("u", "Upsample", ["p", "mask"], ["u"],
                   "upsample_param { upsample_h: 6 upsample_w: 8 }")])
    x = made_up("mask", (2, 3, 6, 8))
    ours = run(text, None, {"x": x}, ["p", "mask", "u"])
    pool = torch.nn.functional.max_pool2d(torch.from_numpy(x), 2, 2, pad, return_indices=True,
                                          ceil_mode=True)
    want = [*pool, torch.zeros(2, 3, 48).scatter_(2, pool[1].flatten(2), pool[0].flatten(2))]
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b.numpy())


# --- recurrent layers -----------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _recurrent(type: str, x, go_on, fixed, w, start=(0, 0)) -> list[np.ndarray]:
    """Caffe's recurrences, step by step: results, and the state at the end."""
    w, part = list(w), np.einsum("tni,oi->tno", x, w[0]) + w[1]
    w = w[2:]
    if fixed is not None:
        part = part + fixed @ w.pop(0).T
    h, c = (np.zeros((x.shape[1], w[0].shape[1])) + v for v in start)
    out = []
    for z, keep in zip(part, go_on[..., None], strict=True):
        z = z + (keep * h) @ w[0].T
        if type == "RNN":
            h = np.tanh(z)
            out.append(np.tanh(h @ w[1].T + w[2]))
            continue
        i, f, o, g = np.split(z, 4, axis=1)
        c = keep * _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return [np.stack(out), h[None], c[None]]


@pytest.mark.parametrize("exposed", [False, True], ids=["", "exposed"])
@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_recurrent(type: str, static: bool, exposed: bool) -> None:
    gates, states = (4, ["h", "c"]) if type == "LSTM" else (1, ["h"])
    states = states if exposed else []
    shapes = {"x": (5, 2, 3), "cont": (5, 2), **({"fixed": (2, 6)} if static else {}),
              **dict.fromkeys(states, (1, 2, 4))}
    tops = ["y", *(f"{s}_end" for s in states)]
    text = inputs_text(shapes) + layer_text(
        "r", type, list(shapes), tops,
        f"recurrent_param {{ num_output: 4 expose_hidden: {str(exposed).lower()} }}")
    weights = [(4 * gates, 3), (4 * gates,), *([(4 * gates, 6)] if static else []),
               (4 * gates, 4), *([(4, 4), (4,)] if type == "RNN" else [])]
    blobs = [made_up((type, static, i), s) for i, s in enumerate(weights)]
    feeds = {n: made_up((type, n), s) for n, s in shapes.items()}
    feeds["cont"] = np.float32([[0, 1], [1, 1], [1, 0], [1, 1], [0, 1]])
    ours = run(text, write_caffemodel("n", {"r": blobs}), feeds, tops)
    start = [feeds[s][0] if s in feeds else 0 for s in ("h", "c")]
    want = _recurrent(type, feeds["x"], feeds["cont"], feeds.get("fixed"), blobs, start)
    for a, b in zip(ours, want[: len(tops)], strict=True):
        assert relative(a, b) < 1e-5
