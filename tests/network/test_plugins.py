"""Plugins written in Python: shapes, execution on host memory, serialization, registry."""

import ctypes

import numpy as np
import pytest
from netkit import const, network, run

import tactician as trt
import tactician.plugin as trtp
from tactician.network.plugins.fields import pack_fields, unpack_fields
from tactician.network.plugins.registry import IPluginRegistry
from tactician.ops.interpreter import run_graph


def array(address, desc):
    n = trt.volume(desc.dims)
    kind = {trt.float32: ctypes.c_float, trt.int64: ctypes.c_int64}[desc.type]
    return np.ctypeslib.as_array((kind * n).from_address(address))


class Append(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """Scales, and appends a row of sevens."""

    def __init__(self, fields=None, scale=2.0):
        for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild,
                     trt.IPluginV3OneRuntime):
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = "Append", "1", "test"
        self.num_outputs = 1
        self.scale = float(fields[0].data[0]) if fields is not None else scale
        self.configured = 0

    def get_capability_interface(self, type):
        return self

    def get_output_data_types(self, input_types):
        return [input_types[0]]

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        out = trt.DimsExprs(inputs[0])
        one = expr_builder.constant(1)
        out[0] = expr_builder.operation(trt.DimensionOperation.SUM, inputs[0][0], one)
        return [out]

    def configure_plugin(self, in_, out):
        self.configured += 1

    def supports_format_combination(self, pos, in_out, num_inputs):
        return in_out[pos].desc.type == trt.float32

    def get_fields_to_serialize(self):
        return trt.PluginFieldCollection([trt.PluginField(
            "scale", np.array([self.scale], np.float32), trt.PluginFieldType.FLOAT32)])

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        x, y = array(inputs[0], input_desc[0]), array(outputs[0], output_desc[0])
        y[:] = 7
        y[:x.size] = self.scale * x


class AppendCreator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "Append", "1", "test"
        self.field_names = trt.PluginFieldCollection([trt.PluginField("scale", np.array([]))])

    def create_plugin(self, name, field_collection, phase):
        return Append(field_collection)


@pytest.fixture
def creator():
    registry, made = trt.get_plugin_registry(), AppendCreator()
    assert registry.register_creator(made, "test")
    yield made
    assert registry.deregister_creator(made)


def test_version_3(creator):
    net = network()
    x = net.add_input("x", trt.float32, (-1, 3))
    plugin = Append(scale=5)
    layer = net.add_plugin_v3([x], [], plugin)
    out = layer.get_output(0)
    net.mark_output(out)
    assert out.shape == (-1, 3) and str(out._v.shape[0]) == "x.0 + 1" and layer.plugin is plugin
    assert layer.type is trt.LayerType.PLUGIN_V3 and net.check() == []
    (y,) = run(net, [np.ones((2, 3), np.float32)])
    assert y.tolist() == [[5] * 3, [5] * 3, [7] * 3] and plugin.configured


def test_version_3_from_its_state(creator):
    net = network()
    x = net.add_input("x", trt.float32, (2, 3))
    net.mark_output(net.add_plugin_v3([x], [], Append(scale=4)).get_output(0))
    graph = net.lower_control()
    for key in ("plugin", "plugin_ready"):  # as after reading a plan
        graph.nodes[0].meta.pop(key, None)
    (y,) = run_graph(graph, [np.ones((2, 3), np.float32)])
    assert y[0].tolist() == [4, 4, 4]
    graph.nodes[0].meta.pop("plugin")
    trt.get_plugin_registry().deregister_creator(creator)
    with pytest.raises(ValueError, match="no creator"):
        run_graph(graph, [np.ones((2, 3), np.float32)])
    trt.get_plugin_registry().register_creator(creator, "test")


def test_a_plugin_may_refuse_types():
    net = network()
    net.add_plugin_v3([net.add_input("x", trt.int32, (2,))], [], Append())
    assert "refuses" in net._logger.errors[0] and "cast" in net._logger.errors[0]
    assert net.add_plugin_v3([net.get_input(0)], [], None) is None
    assert net.add_plugin_v2([net.get_input(0)], None) is None


class Positive(Append):
    """The positive elements: how many there are is known at run time."""

    def __init__(self):
        super().__init__(scale=1)
        self.plugin_name, self.num_outputs = "Positive", 2

    def get_output_data_types(self, input_types):
        return [trt.float32, trt.int64]

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        n = expr_builder.declare_size_tensor(1, expr_builder.constant(1), inputs[0][0])
        return [trt.DimsExprs([n]), trt.DimsExprs(0)]

    def supports_format_combination(self, pos, in_out, num_inputs):
        return True

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        x = array(inputs[0], input_desc[0])
        found = x[x > 0]
        array(outputs[0], output_desc[0])[:found.size] = found
        array(outputs[1], output_desc[1])[:] = found.size


def test_sizes_that_depend_on_data():
    net = network()
    layer = net.add_plugin_v3([net.add_input("x", trt.float32, (-1,))], [], Positive())
    for i in (0, 1):
        net.mark_output(layer.get_output(i))
    y, n = run(net, [np.float32([1, -1, 2, -2])])
    assert y.tolist() == [1, 2] and n == 2


class Doubler(trt.IPluginV2DynamicExt):
    def __init__(self):
        trt.IPluginV2DynamicExt.__init__(self)
        self.num_outputs, self.plugin_type, self.plugin_version = 1, "Doubler", "1"

    def get_output_datatype(self, index, input_types):
        return input_types[0]

    def get_output_dimensions(self, output_index, inputs, expr_builder):
        return inputs[0]

    def get_workspace_size(self, in_, out):
        return 4 * trt.volume(in_[0].dims)

    def serialize(self):
        return "state"  # text will do, as json modules give

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        work = array(workspace, input_desc[0])
        work[:] = array(inputs[0], input_desc[0])
        array(outputs[0], output_desc[0])[:] = 2 * work


def test_version_2_dynamic():
    net = network()
    layer = net.add_plugin_v2([net.add_input("x", trt.float32, (-1, 2))], Doubler())
    net.mark_output(layer.get_output(0))
    assert run(net, [np.ones((3, 2), np.float32)])[0].tolist() == [[2, 2]] * 3
    assert net.lower_control().nodes[0].attrs.data.tobytes() == b"state"


class Negate(trt.IPluginV2Ext):
    plugin_type = "Negate"

    def get_output_shape(self, index, input_shapes):
        return input_shapes[0]

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        desc = trt.PluginTensorDesc((batch_size, 2), trt.float32)
        array(outputs[0], desc)[:] = -array(inputs[0], desc)
        return 0


@pytest.mark.parametrize("batch", [1, 3])
def test_version_2_with_implicit_batch(batch):
    net = network(implicit_batch=True)
    layer = net.add_plugin_v2([net.add_input("x", trt.float32, (2,))], Negate())
    net.mark_output(layer.get_output(0))
    assert layer.get_output(0).shape == (2,)
    graph = net.lower_control()
    assert run_graph(graph, [np.ones((batch, 2))])[0].tolist() == [[-1, -1]] * batch


def test_fixed_shape_plugins_refuse_dynamic_shapes():
    net = network()
    net.add_plugin_v2([net.add_input("x", trt.float32, (-1,))], Negate())
    assert "fixed shapes" in net._logger.errors[0]


def test_old_spelling():
    net = network()
    x = net.add_input("x", trt.float32, (1, 2))
    assert net.add_plugin([x], Negate()).type is trt.LayerType.PLUGIN
    with pytest.raises(TypeError):
        net.add_plugin("Negate")


def test_registry():
    parent, made = IPluginRegistry(), AppendCreator()
    registry = IPluginRegistry(parent)
    assert parent.register_creator(made) and not parent.register_creator(AppendCreator())
    assert registry.get_creator("Append", "1", "test") is made and registry.all_creators == []
    registry.parent_search_enabled = False
    assert registry.get_creator("Append", "1", "test") is None
    assert registry.all_creators_recursive == [made] and registry.plugin_creator_list == []
    assert parent.deregister_creator(made) and not parent.deregister_creator(made)
    assert registry.load_library("/nowhere.so") is None
    assert trt.init_libnvinfer_plugins(None, "")


def test_resources_are_shared_and_released():
    class Table(trt.IPluginResource):
        released = 0

        def clone(self):
            return Table()

        def release(self):
            Table.released += 1

    registry = IPluginRegistry()
    first = registry.acquire_plugin_resource("t", Table())
    assert registry.acquire_plugin_resource("t", Table()) is first
    assert registry.release_plugin_resource("t") == 0 and Table.released == 0
    assert registry.release_plugin_resource("t") == 0 and Table.released == 1
    assert registry.release_plugin_resource("t") == -1


def test_fields_survive_packing():
    fields = trt.PluginFieldCollection([
        trt.PluginField("a", np.arange(6, dtype=np.int32).reshape(2, 3)),
        trt.PluginField(b"text", "hello"), trt.PluginField("raw", b"\n\x00"),
        trt.PluginField("half", np.float16([1.5]), trt.PluginFieldType.FLOAT16)])
    got = unpack_fields(pack_fields(fields))
    assert [f.name for f in got] == ["a", "text", "raw", "half"]
    assert got[0].data.tolist() == [[0, 1, 2], [3, 4, 5]] and got[1].data.tobytes() == b"hello"
    assert got[2].data.tobytes() == b"\n\x00" and got[2].data[-1] == 0
    assert got[3].type is trt.PluginFieldType.FLOAT16
    assert got[0].type is trt.PluginFieldType.INT32 and got[1].type is trt.PluginFieldType.CHAR


def test_a_field_of_one_number_converts_to_it():
    f = trt.PluginField("n", np.array([4]), trt.PluginFieldType.INT32)
    assert int(f.data) == 4 and float(f.data) == 4.0 and f.data[0] == 4 and range(5)[f.data] == 4
    many = trt.PluginField("m", np.array([4, 5]))
    assert type(many.data) is np.ndarray  # json encoders and the like look at the type


def test_dimension_expressions():
    b, op = trt.IExprBuilder(), trt.DimensionOperation
    seven, two = b.constant(7), b.constant(2)
    values = {o: b.operation(o, seven, two).get_constant_value() for o in op}
    assert values == {op.SUM: 9, op.PROD: 14, op.MAX: 7, op.MIN: 2, op.SUB: 5, op.EQUAL: 0,
                      op.LESS: 0, op.FLOOR_DIV: 3, op.CEIL_DIV: 4}
    size = b.declare_size_tensor(0, two, seven)
    assert size.is_size_tensor() and not size.is_constant()
    with pytest.raises(RuntimeError):
        size.get_constant_value()


def test_interfaces_say_what_is_missing():
    for cls, call in [(trt.IProfiler, lambda x: x.report_layer_time("l", 1.0)),
                      (trt.IInt8EntropyCalibrator2, lambda x: x.get_batch(["x"])),
                      (trt.IStreamWriter, lambda x: x.write(b"")),
                      (trt.IProgressMonitor, lambda x: x.phase_start("a", None, 1)),
                      (trt.IGpuAsyncAllocator, lambda x: x.allocate(1, 1, 0))]:
        with pytest.raises(NotImplementedError, match="must implement"):
            call(type("Mine", (cls,), {})())
    calibrator = trt.IInt8MinMaxCalibrator()
    assert calibrator.get_algorithm() is trt.CalibrationAlgoType.MINMAX_CALIBRATION
    assert trt.IPluginV3().api_language is trt.APILanguage.PYTHON


def test_constant_inputs_reach_plugins():
    net = network()
    layer = net.add_plugin_v2([const(net, np.float32([[1, 2]]))], Doubler())
    net.mark_output(layer.get_output(0))
    assert run(net, [])[0].tolist() == [[2, 4]]


@trtp.register("kit::affine")
def describe_affine(x: trtp.TensorDesc, factor: float, bias: float = 1.0) -> trtp.TensorDesc:
    out = x.like()
    out.shape_expr[0] = x.shape_expr[0] * 2
    return out


@trtp.impl("kit::affine")
def affine(x: trtp.Tensor, factor: float, bias: float, outputs, stream):
    a = factor * np.asarray(x) + bias
    np.asarray(outputs[0])[...] = np.concatenate([a, -a])


@trtp.register("kit::nonzero")
def describe_nonzero(x: trtp.TensorDesc):
    count = trtp.size_tensor(x.numel() // 2, x.numel())
    return trtp.from_shape_expr((count.expr(), 1), trt.float32), count


@trtp.impl("kit::nonzero")
def nonzero(x, outputs, stream):
    found = np.asarray(x)[np.asarray(x) != 0]
    np.asarray(outputs[0]).reshape(-1)[:found.size] = found
    np.asarray(outputs[1])[...] = found.size


def test_quick_plugins():
    net = network()
    x = net.add_input("x", trt.float32, (-1, 2))
    layer = net.add_plugin(trtp.op.kit.affine(x, factor=3.0), aot=False)
    net.mark_output(layer.get_output(0))
    assert str(layer.get_output(0)._v.shape[0]) == "2*x.0"
    assert run(net, [np.float32([[1, 2]])])[0].tolist() == [[4, 7], [-4, -7]]
    graph = net.lower_control()
    graph.nodes[0].meta.pop("plugin")  # as after reading a plan
    assert run_graph(graph, [np.float32([[0, 0]])])[0].tolist() == [[1, 1], [-1, -1]]


def test_quick_plugins_with_sizes_from_data():
    net = network()
    layer = net.add_plugin(trtp.op.kit.nonzero(net.add_input("x", trt.float32, (4,))))
    for i in (0, 1):
        net.mark_output(layer.get_output(i))
    y, n = run(net, [np.float32([0, 5, 0, 6])])
    assert y.tolist() == [[5], [6]] and n == 2


def test_quick_plugins_name_mistakes():
    with pytest.raises(ValueError, match="namespace::name"):
        trtp.register("noname")(lambda x: x)
    with pytest.raises(ValueError, match="not registered"):
        trtp.impl("kit::unknown")(affine)
    net = network()
    x = net.add_input("x", trt.float32, (2,))
    with pytest.raises(TypeError, match="factor"):
        trtp.op.kit.affine(x)
    with pytest.raises(TypeError, match="no attribute other"):
        trtp.op.kit.affine(x, factor=1.0, other=2)


@pytest.mark.parametrize("takes_attributes", [False, True])
def test_functions_that_tune_may_leave_attributes_out(takes_attributes):
    seen = []

    @trtp.register(f"kit::tuned{takes_attributes}")
    def describe(x: trtp.TensorDesc, factor: float) -> trtp.TensorDesc:
        return x.like()

    if takes_attributes:
        @trtp.autotune(f"kit::tuned{takes_attributes}")
        def tune(x, factor, outputs):
            seen.append(factor)
            return [trtp.AutoTuneCombination("FP32, FP32", "LINEAR", [5, 6])]
    else:
        @trtp.autotune(f"kit::tuned{takes_attributes}")
        def tune(x, outputs):
            seen.append(outputs[0].dtype)
            return [trtp.AutoTuneCombination("FP32, FP32", "LINEAR", [5, 6])]

    @trtp.impl(f"kit::tuned{takes_attributes}")
    def compute(x, factor, outputs, stream, tactic):
        assert tactic in (5, 6)
        np.asarray(outputs[0])[...] = factor * np.asarray(x)

    net = network()
    op = getattr(trtp.op.kit, f"tuned{takes_attributes}")
    layer = net.add_plugin(op(net.add_input("x", trt.float32, (3,)), factor=2.0))
    net.mark_output(layer.get_output(0))
    assert run(net, [np.float32([1, 2, 3])])[0].tolist() == [2, 4, 6]
    assert set(seen) == ({2.0} if takes_attributes else {trt.float32})


def test_tuning_combinations():
    c = trtp.AutoTuneCombination("FP32|FP16, FP16", "LINEAR", [3])
    assert c.allows(0, trt.float16) and not c.allows(1, trt.float32) and c.allows(2, trt.int8)
    assert not trtp.AutoTuneCombination("FP32", "HWC8").allows(0, trt.float32)
