"""Parsers: models in parts, flags, errors, subgraphs; factories of Caffe and UFF plugins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from apikit import Net, close, f32
from onnx import TensorProto, helper, numpy_helper

import tactician as trt
from tactician import uff
from tactician.parsers.caffe.weights import write_caffemodel
from tactician.parsers.tensorflow.graph import new_graph, new_node

F = trt.OnnxParserFlag


def model(external=False, op="Relu", nodes=None):
    w = numpy_helper.from_array(f32(3, 4), "w")
    if external:
        w.ClearField("raw_data")
        w.data_location = TensorProto.EXTERNAL
        entry = w.external_data.add()
        entry.key, entry.value = "location", "elsewhere.bin"
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
                      helper.make_node(op, ["h"], ["y"], name="act")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [w])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def run(net):
    engine = net.builder.build_engine_with_config(net.network, net.config)
    assert engine is not None, net.log.errors
    return trt.Engine(engine)(f32(2, 3))["y"]


WANT = np.maximum(f32(2, 3) @ f32(3, 4), 0)


class TestOnnx:
    def test_in_parts(self):
        net = Net()
        with trt.OnnxParser(net.network, net.log) as parser:
            assert not parser.parse_model_proto() and parser.num_errors == 1
            assert "load_model_proto must succeed first" in parser.get_error(0).desc()
            parser.clear_errors()
            assert parser.num_errors == 0
            assert parser.load_model_proto(model(external=True))
            weights = f32(3, 4)
            assert not parser.load_initializer("v", weights.ctypes.data, weights.nbytes)
            assert parser.load_initializer("w", weights.ctypes.data, weights.nbytes)
            weights[...] = 0  # it was copied
            assert parser.parse_model_proto()
        close(run(net), WANT)

    def test_with_weight_descriptors_and_a_config(self):
        net = Net()
        parser = trt.OnnxParser(net.network, net.log)
        assert parser.set_builder_config(net.config)
        assert "set_builder_config has no effect" in net.log.text(trt.ILogger.INFO)
        assert parser.parse_with_weight_descriptors(model())
        tensor = parser.get_layer_output_tensor("product", 0)
        assert tensor.name == "h" and parser.get_layer_output_tensor("product", 1) is None
        names, layers, roles = parser.get_refit_map()
        assert (names, layers, roles) == (["w"], ["product"], [trt.WeightsRole.KERNEL])
        assert parser.get_used_vc_plugin_libraries() == []
        close(run(net), WANT)

    def test_errors_say_where(self):
        net = Net()
        parser = trt.OnnxParser(net.network, net.log)
        assert not parser.parse(model(op="NoSuchThing"))
        error = parser.get_error(parser.num_errors - 1)
        assert error.code() == trt.ErrorCode.UNSUPPORTED_NODE
        assert (error.node(), error.node_name(), error.node_operator()) == (
            1, "act", "NoSuchThing")
        assert "NoSuchThing" in error.desc() and error.file().endswith(".py")
        assert isinstance(error.line(), int) and isinstance(error.func(), str)
        assert error.local_function_stack() == [] and error.local_function_stack_size() == 0

    @pytest.mark.parametrize("flag, said", [
        (F.NATIVE_INSTANCENORM, False), (F.ENABLE_PLUGIN_OVERRIDE, False),
        (F.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA, True),
        (F.REPORT_CAPABILITY_DLA, True), (F.ADJUST_FOR_DLA, True),
    ])
    def test_flags(self, flag, said):
        net = Net()
        parser = trt.OnnxParser(net.network, net.log)
        parser.set_flag(flag)
        assert parser.get_flag(flag) and parser.flags >> int(flag) & 1
        assert (f"{flag} has no effect" in net.log.text()) is said
        parser.clear_flag(flag)
        assert not parser.get_flag(flag)
        parser.flags = 1 << int(flag)
        assert parser.get_flag(flag)

    def test_support(self):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
                 helper.make_node("NoSuchThing", ["h"], ["k"], name="odd"),
                 helper.make_node("Relu", ["k"], ["y"], name="act")]
        net = Net()
        parser = trt.OnnxParser(net.network, net.log)
        assert parser.supports_operator("MatMul") and not parser.supports_operator("NoSuchThing")
        assert not parser.supports_model_v2(model(nodes=nodes))
        graphs = [(parser.get_subgraph_nodes(i), parser.is_subgraph_supported(i))
                  for i in range(parser.num_subgraphs)]
        assert graphs[0] == ([0], True) and ([1], False) in graphs
        ok, collection = parser.supports_model(model())
        assert ok and [(list(n), good) for n, good in collection] == [([0, 1], True)]

    def test_refitting_in_parts(self):
        net = Net()
        assert trt.OnnxParser(net.network, net.log).parse(model())
        net.config.set_flag(trt.BuilderFlag.REFIT)
        engine = net.builder.build_engine_with_config(net.network, net.config)
        refitter = trt.Refitter(engine, net.log)
        parser = trt.OnnxParserRefitter(refitter, net.log)
        assert not parser.refit_model_proto() and parser.num_errors == 1
        assert "load_model_proto" in parser.get_error(0).desc()
        parser.clear_errors()
        assert parser.load_model_proto(model(external=True))
        weights = 2 * f32(3, 4)
        assert parser.load_initializer("w", weights.ctypes.data, weights.nbytes)
        assert parser.refit_model_proto() and refitter.refit_cuda_engine(), net.log.errors
        close(trt.Engine(engine)(f32(2, 3))["y"], 2 * WANT)
        assert parser.refit_from_bytes(model()) and refitter.refit_cuda_engine()
        close(trt.Engine(engine)(f32(2, 3))["y"], WANT)

    def test_version(self):
        major, minor, *_ = (int(x) for x in trt.__version__.split(".")[:2])
        assert trt.get_nv_onnx_parser_version() // 100 == major * 100 + minor


class TestCollections:
    """What `supports_model` gives are lists, under the names that bindings have for them."""

    @pytest.mark.parametrize("kind, items", [
        (trt.NodeIndices, [1, 2, 3]),
        (trt.SubGraphCollection, [([0, 1], True), ([2], False), ([3], True)]),
    ])
    def test_lists(self, kind, items):
        a, b, c = items
        x = kind([a])
        x.append(b)
        x.insert(0, c)
        assert list(x) == [c, a, b] and x.count(a) == 1 and x.pop() == b
        x.extend([b, a])
        x.remove(c)
        assert list(x) == [a, b, a] and len(x) == 3 and x.count(a) == 2 and x
        x.clear()
        assert not x


class Twice(trt.IPluginExt):
    """A plugin of version 7 as factories make it."""

    def __init__(self):
        trt.IPluginExt.__init__(self)

    def get_output_shape(self, index, input_shapes):
        self.count = int(np.prod(input_shapes[0]))
        return input_shapes[0]

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        import ctypes

        x, y = (np.ctypeslib.as_array((ctypes.c_float * (batch_size * self.count)).from_address(a))
                for a in (inputs[0], outputs[0]))
        y[...] = 2 * x
        return 0


NET = """
name: "net"
input: "data"
input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4
layer { name: "odd" type: "Strange" bottom: "data" top: "odd" }
layer { name: "relu" type: "ReLU" bottom: "odd" top: "relu" }
"""


class TestCaffe:
    def test_files_and_factories(self, tmp_path):
        class Factory(trt.ICaffePluginFactoryExt):
            def is_plugin_ext(self, layer_name):
                return layer_name == "odd"

            def create_plugin(self, layer_name, weights):
                return Twice()

        factory = Factory()
        assert factory.get_version() == 1
        deploy, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
        deploy.write_text(NET)
        weights.write_bytes(write_caffemodel("net", {"odd": []}))
        net = Net()
        with trt.CaffeParser() as parser:
            parser.plugin_factory_ext = factory
            assert parser.plugin_factory_ext is factory
            blobs = parser.parse(str(deploy), str(weights), net.network, trt.float32)
            assert blobs is not None, net.log.errors
            y = blobs.find("relu")
        net.feeds["data"] = x = f32(1, 2, 3, 4)
        close(net.run(y), np.maximum(2 * x, 0))


    def test_recorder_and_sizes(self, tmp_path):
        class Recorder(trt.IErrorRecorder):
            def report_error(self, arg0, arg1):
                self.seen = arg0, arg1
                return True

        parser, recorder, net = trt.CaffeParser(), Recorder(), Net()
        parser.error_recorder = recorder
        assert parser.error_recorder is recorder
        assert parser.parse_buffer(b"layer {", b"", net.network, trt.float32) is None
        assert recorder.seen[0] == trt.ErrorCodeTRT.INVALID_ARGUMENT and recorder.seen[1]
        model = write_caffemodel("net", {"odd": []})
        deploy, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
        deploy.write_text(NET.replace("Strange", "AbsVal"))
        weights.write_bytes(model)
        parser.protobuf_buffer_size = 10
        assert parser.parse(str(deploy), str(weights), net.network, trt.float32) is None
        assert parser.protobuf_buffer_size == 10 and "protobuf_buffer_size" in recorder.seen[1]
        parser.protobuf_buffer_size = 8 << 20
        text = NET.replace("Strange", "AbsVal")
        found = parser.parse_buffer(text.encode(), model, net.network, trt.float32)
        net.feeds["data"] = x = f32(1, 2, 3, 4)
        close(net.run(found.find("relu")), abs(x))


class TestUff:
    def test_oldest_version(self):
        parser = trt.UffParser()
        oldest = (parser.uff_required_version_major, parser.uff_required_version_minor,
                  parser.uff_required_version_patch)
        assert oldest == (0, 6, 9)
    @pytest.mark.parametrize("order, shape", [
        (trt.UffInputOrder.NCHW, (1, 28, 28)), (trt.UffInputOrder.NHWC, (28, 28, 1))])
    def test_files(self, order, shape):
        data = Path(trt.__file__).parent / "data"
        with np.load(data / "digits_test.npz") as z:
            images = (z["images"][:50, None] / 255).astype(np.float32)
            labels = z["labels"][:50]
        net = Net(implicit_batch=True)
        net.builder.max_batch_size = 50
        parser = trt.UffParser()
        assert parser.register_input("image", shape, order)
        assert parser.register_output("probabilities")
        assert parser.parse(str(data / "lenet_digits.uff"), net.network, trt.float32)
        engine = net.builder.build_engine_with_config(net.network, net.config)
        assert engine is not None and tuple(engine.get_binding_shape(0)) == shape, net.log.errors
        y = np.zeros((50, 10), np.float32)
        x = np.ascontiguousarray(images.reshape(50, *shape))
        assert engine.create_execution_context().execute(50, [x.ctypes.data, y.ctypes.data])
        assert (y.argmax(1) == labels).mean() > 0.9

    def test_factories(self, tmp_path):
        class Factory(trt.IUffPluginFactoryExt):
            def is_plugin_ext(self, layer_name):
                return "odd" in layer_name

            def create_plugin(self, layer_name, weights, field_collection):
                assert isinstance(field_collection, trt.FieldCollection)
                return Twice()

        assert Factory().get_version() == 1
        graph = new_graph()
        graph.node.append(new_node("x", "Placeholder", dtype=np.dtype(np.float32), shape=(-1, 4)))
        graph.node.append(new_node("odd", "_Odd", ["x"], factor=2.5))
        data = uff.from_tensorflow(graph, ["odd"], quiet=True)
        net = Net(implicit_batch=True)
        with trt.UffParser() as parser:
            parser.plugin_factory_ext, parser.plugin_namespace = Factory(), "mine"
            assert parser.plugin_namespace == "mine"
            parser.register_input("x", (4,), trt.UffInputOrder.NC)
            parser.register_output("odd")
            assert parser.parse_buffer(data, net.network), net.log.errors
        net.builder.max_batch_size = 3
        engine = net.builder.build_engine_with_config(net.network, net.config)
        x, y = f32(3, 4), np.zeros((3, 4), np.float32)
        assert engine.create_execution_context().execute(3, [x.ctypes.data, y.ctypes.data])
        close(y, 2 * x)

    def test_errors_reach_the_recorder(self):
        class Recorder(trt.IErrorRecorder):
            def report_error(self, arg0, arg1):
                self.seen = arg0, arg1
                return True

        parser, recorder = trt.UffParser(), Recorder()
        parser.error_recorder = recorder
        assert parser.error_recorder is recorder
        assert not parser.parse_buffer(b"junk", Net().network)
        assert recorder.seen[0] == trt.ErrorCodeTRT.INVALID_ARGUMENT
