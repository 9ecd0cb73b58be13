"""Enum values that no other test needs: kinds of layers, formats, codes, old names, numbers."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Log, Net, f32
from onnx import TensorProto, helper

import tactician as trt

L, C = trt.LayerType, trt.ErrorCode


def layers():
    """One layer of each kind, with its type; they need not be complete."""
    net = Net()
    n, E = net.network, trt.ElementWiseOperation
    x = net.input(f32(1, 2, 4, 4), "x")
    m = net.input(f32(2, 2), "m")
    i = net.input(np.zeros((2, 2), np.int32), "i")
    b = net.input(np.array(True), "b")
    one = net.const(np.float32(1))
    loop, branch = n.add_loop(), n.add_if_conditional()
    trips = loop.add_trip_limit(net.const(np.int32(2)), trt.TripLimit.COUNT)
    recurrence = loop.add_recurrence(m)
    condition = branch.set_condition(b)
    inside = branch.add_input(m)
    none = trt.MatrixOperation.NONE
    w = f32(2, 2, 3, 3)
    made = [
        (L.ACTIVATION, n.add_activation(x, trt.ActivationType.RELU)),
        (L.ASSERTION, n.add_assertion(b, "b")), (L.CAST, n.add_cast(x, trt.float16)),
        (L.CONCATENATION, n.add_concatenation([m, m])), (L.CONDITION, condition),
        (L.CONDITIONAL_INPUT, inside),
        (L.CONDITIONAL_OUTPUT, branch.add_output(inside.get_output(0), inside.get_output(0))),
        (L.CONSTANT, n.add_constant((1,), np.ones(1, np.float32))),
        (L.CONVOLUTION, n.add_convolution_nd(x, 2, (3, 3), w)),
        (L.CUMULATIVE, n.add_cumulative(m, net.const(np.int32(0)), trt.CumulativeOperation.SUM,
                                        False, False)),
        (L.DECONVOLUTION, n.add_deconvolution_nd(x, 2, (3, 3), w)),
        (L.QUANTIZE, q := n.add_quantize(m, one)),
        (L.DEQUANTIZE, n.add_dequantize(q.get_output(0), one)),
        (L.DYNAMIC_QUANTIZE, n.add_dynamic_quantize(net.input(f32(2, 16), "d"), 1, 16, trt.fp8,
                                                    trt.float32)),
        (L.EINSUM, n.add_einsum([m, m], "ij,jk->ik")),
        (L.ELEMENTWISE, n.add_elementwise(m, m, E.SUM)),
        (L.FILL, n.add_fill((2,), trt.FillOperation.LINSPACE)), (L.GATHER, n.add_gather(m, i, 0)),
        (L.GRID_SAMPLE, n.add_grid_sample(x, net.input(f32(1, 3, 3, 2), "g"))),
        (L.IDENTITY, n.add_identity(m)), (L.ITERATOR, loop.add_iterator(m)),
        (L.KV_CACHE_UPDATE, n.add_kv_cache_update(x, x, net.input(np.zeros(1, np.int32), "k"))),
        (L.LOOP_OUTPUT, loop.add_loop_output(recurrence.get_output(0), trt.LoopOutput.LAST_VALUE)),
        (L.LRN, n.add_lrn(x, 3, 1.0, 0.5, 1.0)),
        (L.MATRIX_MULTIPLY, n.add_matrix_multiply(m, none, m, none)),
        (L.MOE, n.add_moe(m, i, m)), (L.NMS, n.add_nms(net.input(f32(1, 5, 4), "boxes"), net.input(
            f32(1, 5, 1), "scores"), net.const(np.int32(3)))),
        (L.NON_ZERO, n.add_non_zero(m)), (L.NORMALIZATION, n.add_normalization(m, m, m, 2)),
        (L.ONE_HOT, n.add_one_hot(i, net.const(np.float32([0, 1])), net.const(np.int32(3)), 0)),
        (L.PADDING, n.add_padding_nd(x, (1, 1), (1, 1))),
        (L.PARAMETRIC_RELU, n.add_parametric_relu(m, m)),
        (L.POOLING, n.add_pooling_nd(x, trt.PoolingType.MAX, (2, 2))),
        (L.RAGGED_SOFTMAX, n.add_ragged_softmax(net.input(f32(1, 2, 3), "r"), net.input(
            np.ones((1, 2, 1), np.int32), "bounds"))),
        (L.RECURRENCE, recurrence), (L.REDUCE, n.add_reduce(m, trt.ReduceOperation.SUM, 1, True)),
        (L.RESIZE, n.add_resize(x)),
        (L.REVERSE_SEQUENCE, n.add_reverse_sequence(m, net.const(np.int32([1, 2])))),
        (L.RNN_V2, n.add_rnn_v2(net.input(f32(1, 2, 3), "seq"), 1, 3, 2, trt.RNNOperation.GRU)),
        (L.ROTARY_EMBEDDING, n.add_rotary_embedding(x, m, m)),
        (L.SCALE, n.add_scale(x, trt.ScaleMode.UNIFORM, f32(1), None, None)),
        (L.SCATTER, n.add_scatter(m, i, m, trt.ScatterMode.ELEMENT)),
        (L.SELECT, n.add_select(net.input(np.ones((2, 2), bool), "s"), m, m)),
        (L.SHAPE, n.add_shape(m)), (L.SHUFFLE, n.add_shuffle(m)),
        (L.SLICE, n.add_slice(m, (0, 0), (1, 1), (1, 1))), (L.SOFTMAX, n.add_softmax(m)),
        (L.SQUEEZE, n.add_squeeze(x, net.const(np.int64([0])))),
        (L.TOPK, n.add_topk(m, trt.TopKOperation.MAX, 1, 1)), (L.TRIP_LIMIT, trips),
        (L.UNARY, n.add_unary(m, trt.UnaryOperation.EXP)),
        (L.UNSQUEEZE, n.add_unsqueeze(m, net.const(np.int64([0])))),
    ]
    return net, made


def test_types_of_layers():
    net, made = layers()
    # activations and pooling show their own type where they are known to be these
    views = [net.network.get_layer(k) for k in range(net.network.num_layers)]
    for kind, layer in made:
        view = next(v for v in views if v == layer)
        assert view.type == kind and view.name == layer.name


class TestPlugins:
    def test_types_of_plugin_layers(self):
        class Two(trt.IPluginV2DynamicExt):
            plugin_type = "Two"

            def get_output_dimensions(self, output_index, inputs, expr_builder):
                return inputs[0]

        class Three(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild,
                    trt.IPluginV3OneRuntime):
            plugin_name = "Three"

            def get_output_data_types(self, input_types):
                return list(input_types)

            def get_output_shapes(self, inputs, shape_inputs, expr_builder):
                return list(inputs)

        net = Net()
        x = net.input(f32(2), "x")
        assert net.network.add_plugin_v2([x], Two()).type == L.PLUGIN_V2
        assert net.network.add_plugin_v3([x], [], Three()).type == L.PLUGIN_V3

    def test_layouts_of_versions_5_and_6(self):
        old, new = trt.PluginFormat, trt.TensorFormat
        assert int(old.NCHW) == int(old.LINEAR) == int(new.LINEAR) == 0
        assert old.NC2HW2 is old.CHW2 and int(old.CHW2) == int(new.CHW2) == 1
        assert old.NHWC8 is old.HWC8 and int(old.HWC8) == int(new.HWC8) == 2
        assert [int(f) for f in (old.CHW4, old.CHW16, old.CHW32)] == [
            int(f) for f in (new.CHW4, new.CHW16, new.CHW32)] == [3, 4, 5]

    def test_numbers_that_programs_compare(self):
        kinds = trt.PluginCreatorVersion
        assert (int(kinds.V1), int(kinds.V1_PYTHON)) == (0, 64)
        types = trt.PluginArgDataType
        assert [int(t) for t in (types.INT8, types.INT16, types.INT32)] == [0, 1, 2]
        fields = trt.FieldType
        assert [int(f) for f in (fields.FLOAT, fields.INT32, fields.CHAR, fields.DIMS,
                                 fields.DATATYPE, fields.UNKNOWN)] == [0, 1, 2, 4, 5, 6]

    @pytest.mark.parametrize("request_, aot", [
        (trt.QuickPluginCreationRequest.UNKNOWN, False),
        (trt.QuickPluginCreationRequest.PREFER_JIT, False),
        (trt.QuickPluginCreationRequest.STRICT_JIT, False),
        (trt.QuickPluginCreationRequest.PREFER_AOT, True),
        (trt.QuickPluginCreationRequest.STRICT_AOT, True),
    ])
    def test_forms_of_quick_plugins(self, request_, aot):
        import tactician.plugin as trtp

        name = f"enumtest::form{int(request_)}"

        @trtp.register(name)
        def describe(x: trtp.TensorDesc) -> trtp.TensorDesc:
            return x.like()

        creator = trt.get_plugin_registry().get_creator(f"form{int(request_)}", "1", "enumtest")
        made = creator.create_plugin("p", "enumtest", trt.PluginFieldCollection(),
                                     trt.TensorRTPhase.BUILD, request_)
        assert made.aot is aot


@pytest.mark.parametrize("kind", [
    trt.TensorFormat.CHW2, trt.TensorFormat.HWC8, trt.TensorFormat.CHW4, trt.TensorFormat.CHW16,
    trt.TensorFormat.CHW32, trt.TensorFormat.DHWC8, trt.TensorFormat.CDHW32, trt.TensorFormat.HWC,
    trt.TensorFormat.DLA_LINEAR, trt.TensorFormat.DLA_HWC4, trt.TensorFormat.HWC16,
    trt.TensorFormat.DHWC,
])
def test_inputs_stay_linear_which_the_log_says(kind):
    net = Net()
    x = net.input(f32(1, 2, 2, 2), "x")
    x.allowed_formats = 1 << int(trt.TensorFormat.LINEAR) | 1 << int(kind)
    assert not net.log.text()
    x.allowed_formats = 1 << int(kind)
    assert x.allowed_formats == 1 << int(kind) and "LINEAR" in net.log.text()
    engine = net.engine(net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0))
    assert engine.get_tensor_format("x") == trt.TensorFormat.LINEAR


class TestErrorCodes:
    def parse(self, *nodes, data=None, dims=(2, 3), **inputs):
        graph = helper.make_graph(
            list(nodes), "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                  ir_version=8).SerializeToString()
        net = Net()
        parser = trt.OnnxParser(net.network, net.log)
        assert not parser.parse(model if data is None else data)
        return {parser.get_error(k).code() for k in range(parser.num_errors)}

    def test_what_is_no_model(self):
        assert self.parse(data=b"\xff" * 40) == {C.MODEL_DESERIALIZE_FAILED}

    def test_nodes(self):
        node = helper.make_node
        assert C.UNSUPPORTED_NODE in self.parse(node("Odd", ["x"], ["y"]))
        assert self.parse(node("Relu", ["nothing"], ["y"])) & {C.INVALID_GRAPH, C.INVALID_NODE}
        bad = self.parse(node("Concat", ["x", "x"], ["y"]))  # no axis
        assert bad & {C.INVALID_NODE, C.UNSUPPORTED_NODE_ATTR}

    def test_numbers(self):
        """Programs compare codes with numbers of the C++ interface."""
        assert [int(c) for c in (
            C.SUCCESS, C.INTERNAL_ERROR, C.MEM_ALLOC_FAILED, C.MODEL_DESERIALIZE_FAILED,
            C.INVALID_VALUE, C.INVALID_GRAPH, C.INVALID_NODE, C.UNSUPPORTED_GRAPH,
            C.UNSUPPORTED_NODE, C.UNSUPPORTED_NODE_ATTR, C.UNSUPPORTED_NODE_INPUT,
            C.UNSUPPORTED_NODE_DATATYPE, C.UNSUPPORTED_NODE_DYNAMIC, C.UNSUPPORTED_NODE_SHAPE,
            C.REFIT_FAILED)] == list(range(15))
        T = trt.ErrorCodeTRT
        assert [int(c) for c in (
            T.SUCCESS, T.UNSPECIFIED_ERROR, T.INTERNAL_ERROR, T.INVALID_ARGUMENT, T.INVALID_CONFIG,
            T.FAILED_ALLOCATION, T.FAILED_INITIALIZATION, T.FAILED_EXECUTION,
            T.FAILED_COMPUTATION, T.INVALID_STATE, T.UNSUPPORTED_STATE)] == list(range(11))


class TestConfiguration:
    def build(self, change):
        net = Net()
        y = net.network.add_unary(net.input(f32(2), "x"), trt.UnaryOperation.EXP).get_output(0)
        change(net.config)
        return net, net.engine(y)

    @pytest.mark.parametrize("flag", [
        trt.BuilderFlag.GPU_FALLBACK, trt.BuilderFlag.SPARSE_WEIGHTS, trt.BuilderFlag.SAFETY_SCOPE,
        trt.BuilderFlag.DIRECT_IO, trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME,
        trt.BuilderFlag.DISABLE_COMPILATION_CACHE, trt.BuilderFlag.WEIGHT_STREAMING,
        trt.BuilderFlag.MONITOR_MEMORY, trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE,
        trt.BuilderFlag.ENABLE_TACTIC_HEURISTIC, trt.BuilderFlag.DEBUG,
    ])
    def test_flags_without_effect(self, flag):
        net, _ = self.build(lambda c: c.set_flag(flag))
        assert f"{flag} has no effect" in net.log.text()

    @pytest.mark.parametrize("flag, name, value", [
        (trt.BuilderFlag.FP16, "precisions", {"f16"}),
        (trt.BuilderFlag.BF16, "precisions", {"bf16"}),
        (trt.BuilderFlag.INT8, "precisions", {"i8"}), (trt.BuilderFlag.FP8, "precisions", {"f8"}),
        (trt.BuilderFlag.INT4, "precisions", {"i4"}), (trt.BuilderFlag.FP4, "precisions", {"f4"}),
        (trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS, "precision_constraints", "obey"),
        (trt.BuilderFlag.STRICT_TYPES, "precision_constraints", "obey"),
        (trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS, "precision_constraints", "prefer"),
        (trt.BuilderFlag.DISABLE_TIMING_CACHE, "timing_cache", None),
        (trt.BuilderFlag.VERSION_COMPATIBLE, "version_compatible", True),
        (trt.BuilderFlag.REFIT_IDENTICAL, "refit", "identical"),
        (trt.BuilderFlag.REFIT_INDIVIDUAL, "refit", "individual"),
        (trt.BuilderFlag.WEIGHTLESS, "strip_weights", True),
    ])
    def test_flags_that_count(self, flag, name, value):
        config = trt.Builder(Log()).create_builder_config()
        assert getattr(config.settings(), name) != value
        config.set_flag(flag)
        assert config.get_flag(flag) and getattr(config.settings(), name) == value
        config.clear_flag(flag)
        assert not config.get_flag(flag)

    def test_tf32_is_on_at_first(self):
        config = trt.Builder(Log()).create_builder_config()
        assert config.get_flag(trt.BuilderFlag.TF32) and config.settings().tf32
        config.clear_flag(trt.BuilderFlag.TF32)
        assert not config.settings().tf32

    def test_nvidias_variable_rules_tf32_out(self, monkeypatch):
        config = trt.Builder(Log()).create_builder_config()
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        assert config.get_flag(trt.BuilderFlag.TF32) and not config.settings().tf32
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # never turns it on
        assert config.settings().tf32
        config.clear_flag(trt.BuilderFlag.TF32)
        assert not config.settings().tf32

    def test_weightless_is_another_name_of_strip_plan(self):
        assert trt.BuilderFlag.WEIGHTLESS is trt.BuilderFlag.STRIP_PLAN

    @pytest.mark.parametrize("name, value", [
        ("tiling_optimization_level", trt.TilingOptimizationLevel.FAST),
        ("tiling_optimization_level", trt.TilingOptimizationLevel.MODERATE),
        ("tiling_optimization_level", trt.TilingOptimizationLevel.FULL),
        ("engine_capability", trt.EngineCapability.SAFETY),
        ("engine_capability", trt.EngineCapability.DLA_STANDALONE),
        ("runtime_platform", trt.RuntimePlatform.WINDOWS_AMD64),
    ])
    def test_settings_without_effect(self, name, value):
        net, _ = self.build(lambda c: setattr(c, name, value))
        assert f"config.{name} has no effect" in net.log.text()

    def test_settings_at_first(self):
        config = trt.Builder(Log()).create_builder_config()
        assert config.tiling_optimization_level == trt.TilingOptimizationLevel.NONE
        assert config.runtime_platform == trt.RuntimePlatform.SAME_AS_BUILD
        kinds = trt.EngineCapability
        assert config.engine_capability == kinds.DEFAULT == kinds.STANDARD
        assert kinds.SAFE_GPU is kinds.SAFETY and kinds.SAFE_DLA is kinds.DLA_STANDALONE
        detail = trt.ProfilingVerbosity
        assert config.profiling_verbosity == detail.DEFAULT == detail.LAYER_NAMES_ONLY
        assert detail.VERBOSE is detail.DETAILED
        assert config.get_tactic_sources() == sum(1 << int(s) for s in (
            trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT, trt.TacticSource.CUDNN,
            trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS))
        assert config.get_device_type(None) in (trt.DeviceType.GPU, trt.DeviceType.CPU)

    def test_devices_of_layers(self):
        def change(config):
            config.set_device_type(object(), trt.DeviceType.GPU)

        net, _ = self.build(change)
        assert "set_device_type has no effect" in net.log.text()

    def test_old_names(self):
        assert trt.SampleMode.DEFAULT is trt.SampleMode.STRICT_BOUNDS
        assert trt.SliceMode is trt.SampleMode and trt.SliceMode.DEFAULT.name == "STRICT_BOUNDS"
        assert trt.ResizeMode is trt.InterpolationMode
        network = trt.Builder(Log()).create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_PRECISION))
        assert network.has_explicit_precision

    @pytest.mark.parametrize("mode, size", [
        (trt.PaddingMode.CAFFE_ROUND_DOWN, 2), (trt.PaddingMode.CAFFE_ROUND_UP, 3)])
    def test_caffes_rounding(self, mode, size):
        """Of 6 pixels, windows of 3 in steps of 2 fit 2.5 times; 7 are padded to 9 and lose one."""
        net = Net()
        layer = net.network.add_pooling_nd(net.input(f32(1, 1, 6, 6), "x"), trt.PoolingType.MAX,
                                           (3, 3))
        layer.stride_nd, layer.padding_mode = (2, 2), mode
        assert net.run(layer.get_output(0)).shape[2:] == (size, size)


class TestTypes:
    @pytest.mark.parametrize("kind, size", [
        (trt.DataType.FLOAT, 4), (trt.DataType.BF16, 2), (trt.DataType.INT8, 1),
        (trt.DataType.UINT8, 1), (trt.DataType.BOOL, 1), (trt.DataType.INT64, 8),
    ])
    def test_inputs_and_outputs(self, kind, size):
        net = Net()
        x = net.network.add_input("x", kind, (3,))
        engine = net.engine(net.network.add_identity(x).get_output(0))
        assert engine.get_tensor_dtype("x") == engine.get_tensor_dtype("y0") == kind
        assert engine.get_tensor_bytes_per_component("x") == size
        mode = trt.TensorIOMode
        assert [engine.get_tensor_mode(n) for n in ("x", "y0", "z")] == [
            mode.INPUT, mode.OUTPUT, mode.NONE]
        assert engine.get_tensor_location("x") == trt.TensorLocation.DEVICE

    @pytest.mark.parametrize("kind", [trt.DataType.INT4, trt.DataType.FP4])
    def test_narrow_weights(self, kind):
        import ml_dtypes

        numbers = np.array([[1, -2], [3, 4]], np.float32)
        narrow = {trt.DataType.INT4: ml_dtypes.int4, trt.DataType.FP4: ml_dtypes.float4_e2m1fn}
        net = Net()
        w = net.network.add_constant((2, 2), numbers.astype(narrow[kind]))
        assert w.get_output(0).dtype == kind
        scale = net.const(np.float32(0.5))
        back = net.network.add_dequantize(w.get_output(0), scale, trt.float32).get_output(0)
        y = net.network.add_elementwise(back, net.input(f32(2, 2), "x"),
                                        trt.ElementWiseOperation.SUM)
        np.testing.assert_allclose(net.run(y.get_output(0)), numbers / 2 + f32(2, 2), rtol=1e-6)

    def test_roles_of_weights(self):
        net = Net()
        x = net.input(f32(1, 2, 3, 3), "x")
        conv = net.network.add_convolution_nd(x, 2, (1, 1), f32(2, 2, 1, 1), f32(2))
        scale = net.network.add_scale(conv.get_output(0), trt.ScaleMode.CHANNEL, f32(2), f32(2),
                                      None)
        conv.name, scale.name = "conv", "scale"
        net.config.set_flag(trt.BuilderFlag.REFIT)
        refitter = trt.Refitter(net.engine(scale.get_output(0)), net.log)
        role = trt.WeightsRole
        assert set(zip(*refitter.get_all(), strict=True)) == {
            ("conv", role.KERNEL), ("conv", role.BIAS), ("scale", role.SHIFT),
            ("scale", role.SCALE)}
        assert not refitter.set_weights("conv", role.ANY, f32(2))

    @pytest.mark.parametrize("op, want", [
        (trt.DimensionOperation.SUM, 9), (trt.DimensionOperation.PROD, 14),
        (trt.DimensionOperation.MAX, 7), (trt.DimensionOperation.MIN, 2),
        (trt.DimensionOperation.SUB, 5), (trt.DimensionOperation.EQUAL, 0),
        (trt.DimensionOperation.LESS, 0), (trt.DimensionOperation.FLOOR_DIV, 3),
        (trt.DimensionOperation.CEIL_DIV, 4),
    ])
    def test_dimension_operations(self, op, want):
        b = trt.IExprBuilder()
        assert b.operation(op, b.constant(7), b.constant(2)).get_constant_value() == want


class TestLogging:
    @pytest.mark.parametrize("severity, least, shown", [
        (trt.Logger.Severity.INTERNAL_ERROR, trt.Logger.INTERNAL_ERROR, True),
        (trt.Logger.Severity.ERROR, trt.Logger.INTERNAL_ERROR, False),
        (trt.Logger.Severity.ERROR, trt.Logger.ERROR, True),
        (trt.Logger.Severity.WARNING, trt.Logger.WARNING, True),
        (trt.Logger.Severity.INFO, trt.Logger.WARNING, False),
        (trt.Logger.Severity.INFO, trt.Logger.INFO, True),
        (trt.Logger.Severity.VERBOSE, trt.Logger.INFO, False),
        (trt.Logger.Severity.VERBOSE, trt.Logger.VERBOSE, True),
    ])
    def test_least_severity(self, severity, least, shown, capfd):
        logger = trt.Logger(trt.Logger.WARNING)
        logger.min_severity = least
        assert logger.min_severity == least
        logger.log(severity, "a message")
        out = capfd.readouterr()
        assert ("a message" in out.out + out.err) is shown

    def test_severities_of_interfaces(self):
        kind = trt.ILogger.Severity
        assert [int(s) for s in (kind.INTERNAL_ERROR, kind.ERROR, kind.WARNING, kind.INFO,
                                 kind.VERBOSE)] == list(range(5))
        assert (trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING, trt.ILogger.VERBOSE) == (
            kind.INTERNAL_ERROR, kind.WARNING, kind.VERBOSE)
