"""Plugins: what is called when, aliases, tactics, resources, fields, expressions."""

from __future__ import annotations

import ctypes
import gc
import struct

import numpy as np
import pytest
from apikit import Log, Net, close, f32

import tactician as trt
import tactician.plugin as trtp

D = trt.DimensionOperation


def at(address, shape, kind=ctypes.c_float):
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * count).from_address(address)).reshape(tuple(shape))


class Calls(list):
    """Names of methods in the order they were called."""

    def first(self):
        return list(dict.fromkeys(self))


class V3(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
    """Adds ``amount``; in place if ``alias``."""

    def __init__(self, amount=1.0, alias=False, tactics=(), calls=None):
        for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2,
                     trt.IPluginV3OneRuntime):
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = "Plus", "1", ""
        self.num_outputs, self.format_combination_limit = 1, 2
        self.metadata_string, self.timing_cache_id = "adds", "plus"
        self.amount, self.alias, self.tactics = amount, alias, list(tactics)
        self.calls = Calls() if calls is None else calls
        self.tactic = None

    def get_capability_interface(self, type):
        return self

    def clone(self):
        other = V3(self.amount, self.alias, self.tactics, self.calls)
        other.tactic = self.tactic
        return other

    def destroy(self):
        self.calls.append("destroy")

    def get_output_datatypes(self, input_types):  # its name in 10.0 and 10.1
        return [input_types[0]]

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        return [trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, pos, in_out, num_inputs):
        self.calls.append("supports_format_combination")
        d = in_out[pos]
        assert tuple(d.min) == tuple(d.opt) == tuple(d.max) == tuple(d.desc.dims)
        return d.desc.type == trt.float32 and d.desc.format == trt.TensorFormat.LINEAR

    def configure_plugin(self, in_, out):
        self.calls.append("configure_plugin")

    def get_valid_tactics(self):
        return self.tactics

    def get_workspace_size(self, in_, out):
        return 4 * trt.volume(in_[0].desc.dims)

    def get_aliased_input(self, output_index):
        return 0 if self.alias else -1

    def set_tactic(self, tactic):
        self.tactic = tactic

    def attach_to_context(self, resource_context):
        self.calls.append("attach_to_context")
        allocator = resource_context.gpu_allocator
        block = allocator.allocate(64, 32, 0)
        assert block % 32 == 0 and allocator.deallocate(block)
        assert resource_context.error_recorder is None
        return self.clone()

    def on_shape_change(self, in_, out):
        self.calls.append("on_shape_change")
        self.shape = tuple(in_[0].dims)

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        self.calls.append(f"enqueue with tactic {self.tactic}")
        assert input_desc[0].type == trt.float32 and input_desc[0].scale == 0
        y = at(outputs[0], self.shape)
        if self.alias:
            assert inputs[0] == outputs[0]
            y += self.amount
            return
        scratch = at(workspace, self.shape)
        scratch[...] = at(inputs[0], self.shape)
        y[...] = scratch + self.amount

    def get_fields_to_serialize(self):
        return trt.PluginFieldCollection([
            trt.PluginField("amount", np.float64([self.amount]), trt.PluginFieldType.FLOAT64),
            trt.PluginField("alias", np.int32([self.alias]), trt.PluginFieldType.INT32),
            trt.PluginField("tactics", np.int64(self.tactics), trt.PluginFieldType.INT64)])


class V3Creator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "Plus", "1", ""
        self.field_names = trt.PluginFieldCollection([trt.PluginField("amount")])
        self.phases = []

    def create_plugin(self, name, field_collection, phase):
        self.phases.append(phase)
        got = {f.name: f.data for f in field_collection}
        return V3(float(got["amount"][0]), bool(got["alias"][0]), [int(t) for t in got["tactics"]])


def registered(creator):
    registry = trt.get_plugin_registry()
    assert registry.register_creator(creator, "")
    return registry


class TestVersion3:
    def run(self, plugin, x=None):
        net, x = Net(), f32(2, 3) if x is None else x
        layer = net.network.add_plugin_v3([net.input(x, "x")], [], plugin)
        assert layer.plugin is plugin and type(layer) is trt.IPluginV3Layer
        engine = net.engine(layer.get_output(0))
        run = trt.Engine(engine)
        out = [run(x)["y0"] for _ in range(2)]
        np.testing.assert_array_equal(*out)
        return out[0]

    def test_order_of_calls(self):
        plugin = V3(2.0)
        close(self.run(plugin), f32(2, 3) + 2)
        assert plugin.calls.first() == [
            "supports_format_combination", "configure_plugin", "attach_to_context",
            "on_shape_change", "enqueue with tactic 0"]
        assert plugin.calls.count("attach_to_context") == 1
        assert plugin.calls.count("enqueue with tactic 0") == 2
        info = plugin.interface_info
        assert info.kind and (info.major, info.minor) == (1, 0)
        assert plugin.api_language == trt.APILanguage.PYTHON

    def test_text_for_the_inspector(self):
        net = Net()
        net.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        layer = net.network.add_plugin_v3([net.input(f32(2), "x")], [], V3())
        inspector = net.engine(layer.get_output(0)).create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        assert '"Metadata": "adds"' in text

    def test_tactics(self):
        plugin = V3(2.0, tactics=[7, 3])
        close(self.run(plugin), f32(2, 3) + 2)
        assert {"enqueue with tactic 7", "enqueue with tactic 3"} <= set(plugin.calls)
        assert plugin.calls[-1] == plugin.calls[-2]  # the second run takes what the first chose
        net = Net()
        layer = net.network.add_plugin_v3([net.input(f32(2), "x")], [], V3(tactics=[0, 0]))
        assert "distinct positive" in net.fails(layer.get_output(0))

    def test_outputs_in_the_place_of_inputs(self):
        x = f32(2, 3)
        before = x.copy()
        close(self.run(V3(3.0, alias=True), x), before + 3)
        np.testing.assert_array_equal(x, before)  # others may read it

    def test_aliases_must_fit(self):
        class Wider(V3):
            def get_output_shapes(self, inputs, shape_inputs, expr_builder):
                return [trt.DimsExprs([expr_builder.constant(9)])]

        from tactician.support.errors import ExecutionError

        with pytest.raises(ExecutionError, match="share the memory of input 0"):
            self.run(Wider(alias=True))

    def test_plans(self):
        creator = V3Creator()
        registry = registered(creator)
        try:
            net = Net()
            layer = net.network.add_plugin_v3([net.input(f32(4), "x")], [], V3(5.0, False, [4]))
            plan = net.engine(layer.get_output(0)).serialize()
            engine = trt.Runtime(Log()).deserialize_cuda_engine(plan)
            close(trt.Engine(engine)(f32(4))["y0"], f32(4) + 5)
            assert set(creator.phases) == {trt.TensorRTPhase.RUNTIME}
            fields = V3(1.5).get_fields_to_serialize()
            made = creator.create_plugin("p", fields, trt.TensorRTPhase.BUILD)
            assert made.amount == 1.5 and trt.TensorRTPhase.BUILD in creator.phases
        finally:
            assert registry.deregister_creator(creator)

    def test_capabilities_by_type(self):
        asked = []

        class Split(V3):
            def get_capability_interface(self, type):
                asked.append(type)
                return self

        self.run(Split())
        kinds = trt.PluginCapabilityType
        assert set(asked) == {kinds.CORE, kinds.BUILD, kinds.RUNTIME}

    def test_destroy_is_the_programs(self):
        plugin = V3()
        assert plugin.DEFAULT_FORMAT_COMBINATION_LIMIT == 100
        plugin.clone().destroy()
        assert plugin.calls == ["destroy"]


class V2(trt.IPluginV2Ext):
    """Doubles; for fixed shapes."""

    def __init__(self, calls=None):
        trt.IPluginV2Ext.__init__(self)
        self.num_outputs, self.plugin_type, self.plugin_version = 1, "Twice", "1"
        self.plugin_namespace = ""
        self.calls = Calls() if calls is None else calls

    def get_output_data_type(self, index, input_types):
        return input_types[0]

    def get_output_shape(self, index, input_shapes):
        self.shape = tuple(input_shapes[0])
        return input_shapes[0]

    def supports_format(self, dtype, format):
        return dtype == trt.float32 and format == trt.TensorFormat.LINEAR

    def configure_plugin(self, input_shapes, output_shapes, input_types, output_types,
                         input_is_broadcasted, output_is_broacasted, format, max_batch_size):
        assert list(input_types) == list(output_types) == [trt.float32]
        self.calls.append("configure_plugin")

    def initialize(self):
        self.calls.append("initialize")
        return 0

    def attach_to_context(self, cudnn, cublas, allocator):
        self.calls.append("attach_to_context")

    def detach_from_context(self):
        self.calls.append("detach_from_context")

    def get_workspace_size(self, max_batch_size):
        return 16 * max_batch_size

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        self.calls.append("execute_async")
        shape = (batch_size, *self.shape)
        at(outputs[0], shape)[...] = 2 * at(inputs[0], shape)
        return 0

    def serialize(self):
        return struct.pack("i", 2)

    def clone(self):
        return V2(self.calls)

    def terminate(self):
        self.calls.append("terminate")

    def destroy(self):
        self.calls.append("destroy")


class TestVersion2:
    def test_life(self):
        plugin = V2()
        net = Net(implicit_batch=True)
        net.builder.max_batch_size = 2
        layer = net.network.add_plugin_v2([net.network.add_input("x", trt.float32, (3,))], plugin)
        assert type(layer) is trt.IPluginV2Layer and layer.plugin is plugin
        engine = net.engine(layer.get_output(0))
        context, y = engine.create_execution_context(), np.zeros((2, 3), np.float32)
        x = f32(2, 3)
        for _ in range(2):
            assert context.execute(2, [x.ctypes.data, y.ctypes.data])
        close(y, 2 * x)
        assert plugin.calls.first()[:4] == [
            "configure_plugin", "initialize", "attach_to_context", "execute_async"]
        assert plugin.calls.count("initialize") == 1 and "terminate" not in plugin.calls
        del context, engine
        gc.collect()
        assert plugin.calls[-2:] == ["detach_from_context", "terminate"]
        assert plugin.serialization_size == 4 and plugin.tensorrt_version == 2
        copy = plugin.clone()
        copy.destroy()
        assert plugin.calls[-1] == "destroy"

    def test_failing_initialize(self):
        from tactician.support.errors import ExecutionError

        class Broken(V2):
            def initialize(self):
                return 5

        net = Net(implicit_batch=True)
        layer = net.network.add_plugin_v2([net.network.add_input("x", trt.float32, (3,))], Broken())
        context = net.engine(layer.get_output(0)).create_execution_context()
        x = f32(1, 3)
        with pytest.raises(ExecutionError, match="initialize returned 5"):
            context.execute(1, [x.ctypes.data, x.ctypes.data])

    def test_without_types_of_its_own(self):
        """`IPluginV2` itself is configured with one type and layout."""
        class Plain(trt.IPluginV2):
            def __init__(self):
                trt.IPluginV2.__init__(self)
                self.plugin_type, self.seen = "Plain", []

            def get_output_shape(self, index, input_shapes):
                self.shape = tuple(input_shapes[0])
                return input_shapes[0]

            def supports_format(self, dtype, format):
                self.seen.append((dtype, format))
                return True

            def configure_with_format(self, input_shapes, output_shapes, dtype, format,
                                      max_batch_size):
                assert dtype == trt.float32 and format == trt.TensorFormat.LINEAR
                self.configured = tuple(input_shapes[0]), tuple(output_shapes[0])

            def initialize(self):
                self.ready = True
                return 0

            def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
                at(outputs[0], self.shape)[...] = -at(inputs[0], self.shape)
                return 0

            def clone(self):
                return Plain()

            def terminate(self):
                self.ready = False

        plugin = Plain()
        net = Net()
        layer = net.network.add_plugin_v2([net.input(f32(3), "x")], plugin)
        engine = net.engine(layer.get_output(0))
        close(trt.Engine(engine)(f32(3))["y0"], -f32(3))
        assert plugin.configured == ((3,), (3,)) and plugin.ready
        assert (trt.float32, trt.TensorFormat.LINEAR) in plugin.seen
        assert type(plugin.clone()) is Plain

    def test_any_shapes(self):
        class Dynamic(trt.IPluginV2DynamicExt):
            def __init__(self):
                trt.IPluginV2DynamicExt.__init__(self)
                self.num_outputs, self.plugin_type, self.plugin_version = 1, "Halves", "1"
                self.calls = Calls()

            def get_output_datatype(self, index, input_types):
                return input_types[0]

            def get_output_dimensions(self, output_index, inputs, expr_builder):
                out = trt.DimsExprs(inputs[0])
                out[0] = expr_builder.operation(D.CEIL_DIV, out[0], expr_builder.constant(2))
                return out

            def supports_format_combination(self, pos, in_out, num_inputs):
                self.calls.append("supports")
                return in_out[pos].format == trt.TensorFormat.LINEAR

            def configure_plugin(self, pos, in_out):
                self.calls.append("configure")
                assert pos[0].desc.type == trt.float32 and len(in_out[0].max) == 2

            def initialize(self):
                self.calls.append("initialize")
                return 0

            def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
                x = at(inputs[0], input_desc[0].dims)
                at(outputs[0], output_desc[0].dims)[...] = x[::2]

            def serialize(self):
                return b"nothing"

            def clone(self):
                return Dynamic()

            def terminate(self):
                self.calls.append("terminate")

            def destroy(self):
                self.calls.append("destroy")

        plugin = Dynamic()
        assert plugin.get_serialization_size() == 7
        assert plugin.FORMAT_COMBINATION_LIMIT == 100
        net = Net()
        layer = net.network.add_plugin_v2([net.input(f32(5, 2), "x", (-1, 2))], plugin)
        engine = net.engine(layer.get_output(0))
        close(trt.Engine(engine)(f32(5, 2))["y0"], f32(5, 2)[::2])
        assert plugin.calls.first() == ["supports", "configure", "initialize"]
        del engine
        gc.collect()
        assert plugin.calls[-1] == "terminate"
        plugin.clone().destroy()

    def test_creators(self):
        class Creator(trt.IPluginCreator):
            def __init__(self):
                trt.IPluginCreator.__init__(self)
                self.name, self.plugin_version, self.plugin_namespace = "Twice", "1", ""
                self.field_names = trt.PluginFieldCollection()
                self.made = []

            def create_plugin(self, name, field_collection):
                self.made.append(name)
                return V2()

            def deserialize_plugin(self, name, serialized_plugin):
                assert struct.unpack("i", serialized_plugin) == (2,)
                self.made.append("deserialized")
                return V2()

        creator = Creator()
        assert creator.tensorrt_version == 2
        registry = registered(creator)
        try:
            assert registry.get_plugin_creator("Twice", "1", "") is creator
            assert creator in registry.plugin_creator_list
            net = Net()
            plugin = creator.create_plugin("mine", trt.PluginFieldCollection())
            layer = net.network.add_plugin_v2([net.input(f32(1, 3), "x")], plugin)
            plan = net.engine(layer.get_output(0)).serialize()
            engine = trt.Runtime(Log()).deserialize_cuda_engine(plan)
            y, x = np.zeros((1, 3), np.float32), f32(1, 3)
            plugin.shape = (3,)
            context = engine.create_execution_context()
            assert context.execute_v2([x.ctypes.data, y.ctypes.data])
            assert creator.made == ["mine", "deserialized"]
        finally:
            registry.deregister_creator(creator)


class TestVersion1:
    """Plugins of version 5 to 7."""

    class Old(trt.IPlugin):
        def __init__(self):
            trt.IPlugin.__init__(self)
            self.num_outputs, self.calls = 1, Calls()

        def get_output_shape(self, index, input_shapes):
            self.shape = tuple(input_shapes[0])
            return input_shapes[0]

        def configure(self, input_shapes, output_shapes, max_batch_size):
            self.calls.append("configure")

        def initialize(self):
            self.calls.append("initialize")
            return 0

        def get_workspace_size(self, max_batch_size):
            return 4 * max_batch_size

        def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
            at(workspace, (1,))[...] = 3
            at(outputs[0], self.shape)[...] = at(inputs[0], self.shape) + at(workspace, (1,))
            return 0

        def serialize(self):
            return b"old"

        def terminate(self):
            self.calls.append("terminate")

    def test_plugin(self):
        plugin = self.Old()
        net = Net()
        layer = net.network.add_plugin([net.input(f32(3), "x")], plugin)
        assert type(layer) is trt.IPluginLayer and layer.plugin is plugin
        assert layer.type == trt.LayerType.PLUGIN
        engine = net.engine(layer.get_output(0))
        close(trt.Engine(engine)(f32(3))["y0"], f32(3) + 3)
        assert plugin.calls.first() == ["configure", "initialize"]
        assert plugin.serialization_size == 3
        del engine
        gc.collect()
        assert plugin.calls[-1] == "terminate"

    def test_plugin_that_chooses_layouts(self):
        class Ext(trt.IPluginExt):
            def __init__(self):
                trt.IPluginExt.__init__(self)
                self.asked = self.configured = None

            def get_output_shape(self, index, input_shapes):
                self.shape = tuple(input_shapes[0])
                return input_shapes[0]

            def supports_format(self, dtype, format):
                self.asked = dtype, format
                return format == trt.PluginFormat.NCHW or int(format) == 0

            def configure_with_format(self, input_shapes, output_shapes, dtype, format,
                                      max_batch_size):
                self.configured = dtype

            def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
                at(outputs[0], self.shape)[...] = at(inputs[0], self.shape) ** 2
                return 0

        plugin = Ext()
        assert plugin.tensorrt_version == 1
        net = Net()
        layer = net.network.add_plugin_ext([net.input(f32(3), "x")], plugin)
        engine = net.engine(layer.get_output(0))
        close(trt.Engine(engine)(f32(3))["y0"], f32(3) ** 2)
        assert plugin.asked[0] == trt.float32 and plugin.configured == trt.float32

    def test_factories_make_plugins_from_plans(self):
        """`deserialize_cuda_engine(plan, plugin_factory)` up to version 7."""
        old = self.Old

        class Factory(trt.IPluginFactory):
            def __init__(self):
                trt.IPluginFactory.__init__(self)
                self.asked = []

            def create_plugin(self, layer_name, serialized_plugin):
                self.asked.append((layer_name, bytes(serialized_plugin)))
                return old()

        net = Net()
        layer = net.network.add_plugin([net.input(f32(3), "x")], self.Old())
        layer.name = "plus three"
        plan = net.engine(layer.get_output(0)).serialize()
        factory = Factory()
        engine = trt.Runtime(Log()).deserialize_cuda_engine(plan, factory)
        close(trt.Engine(engine)(f32(3))["y0"], f32(3) + 3)
        assert factory.asked == [("plus three", b"old")]


class TestFields:
    def test_collections_are_lists(self):
        a, b, c = (trt.PluginField(n, np.float32([i])) for i, n in enumerate("abc"))
        fields = trt.PluginFieldCollection([a])
        fields.append(b)
        fields.insert(0, c)
        assert [f.name for f in fields] == ["c", "a", "b"] and fields.pop().name == "b"
        fields.extend([b, c])
        assert [f.name for f in fields] == ["c", "a", "b", "c"] and len(fields[1:3]) == 2
        fields.clear()
        assert len(fields) == 0 and type(fields) is trt.PluginFieldCollection
        assert issubclass(trt.PluginFieldCollection_, trt.PluginFieldCollection)

    @pytest.mark.parametrize("array, kind", [
        (np.float16([1]), trt.PluginFieldType.FLOAT16),
        (np.float32([1]), trt.PluginFieldType.FLOAT32),
        (np.float64([1]), trt.PluginFieldType.FLOAT64),
        (np.int8([1]), trt.PluginFieldType.INT8), (np.int16([1]), trt.PluginFieldType.INT16),
        (np.int32([1]), trt.PluginFieldType.INT32), (np.int64([1]), trt.PluginFieldType.INT64),
        (b"text", trt.PluginFieldType.CHAR),
    ])
    def test_types_follow_from_data(self, array, kind):
        field = trt.PluginField("x", array)
        assert field.type == kind and field.size == len(array)
        field.type = trt.PluginFieldType.DIMS
        assert field.type == trt.PluginFieldType.DIMS
        field.name, field.data = "y", np.float32([1, 2])
        assert field.name == "y" and field.size == 2 and field.data.tolist() == [1, 2]

    @pytest.mark.parametrize("name, kind", [
        ("bfloat16", trt.PluginFieldType.BF16), ("float8_e4m3fn", trt.PluginFieldType.FP8),
        ("int4", trt.PluginFieldType.INT4), ("float4_e2m1fn", trt.PluginFieldType.FP4),
    ])
    def test_narrow_types(self, name, kind):
        import ml_dtypes

        assert trt.PluginField("x", np.zeros(2, getattr(ml_dtypes, name))).type == kind
        assert trt.PluginField("x").type == trt.PluginFieldType.UNKNOWN

    def test_fallback_strings(self):
        assert trt.FallbackString(b"caf\xc3\xa9") == "café" and trt.FallbackString("x") == "x"
        assert trt.FallbackString(b"\xff") == "\ufffd"


class TestExpressions:
    def test_names_of_version_9(self):
        builder = trt.IExprBuilder()
        seven = builder.constant(7)
        assert seven.isConstant() and seven.getConstantValue() == 7
        assert seven.is_constant() and seven.get_constant_value() == 7

    def test_kernel_parameters(self):
        params = trt.KernelLaunchParams()
        for name, value in (("grid_x", 4), ("grid_y", 3), ("grid_z", 2), ("block_x", 128),
                            ("block_y", 2), ("block_z", 1), ("shared_mem", 1024)):
            setattr(params, name, value)
            assert int(getattr(params, name)) == value
        assert trtp.KernelLaunchParams is trt.KernelLaunchParams

    def test_symbolic_expressions(self):
        one = trt.ISymExpr()
        one.type, one.dtype = trt.PluginArgType.INT, trt.PluginArgDataType.INT16
        one.expr = trt.IExprBuilder().constant(3)
        several = trt.ISymExprs(2)
        assert several.nbSymExprs == 2


class TestRegistry:
    def test_libraries(self, tmp_path):
        import ctypes.util

        registry = trt.get_builder_plugin_registry(trt.EngineCapability.STANDARD)
        assert registry is trt.get_plugin_registry()
        name = ctypes.util.find_library("c")
        handle = registry.load_library(name)
        assert handle is not None
        registry.deregister_library(handle)
        assert registry.load_library(str(tmp_path / "none.so")) is None

    def test_recorder(self):
        registry = trt.get_plugin_registry()
        class Recorder(trt.IErrorRecorder):
            def report_error(self, arg0, arg1):
                self.seen = arg0, arg1
                return True

        before = registry.error_recorder
        registry.error_recorder = recorder = Recorder()
        assert registry.error_recorder is recorder
        assert registry.release_plugin_resource("nothing") == -1
        assert recorder.seen[0] == trt.ErrorCodeTRT.INVALID_ARGUMENT
        assert "nothing" in recorder.seen[1]
        registry.error_recorder = before
