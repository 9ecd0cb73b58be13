"""Engines, contexts, runtimes, inspectors: facts they tell and services they offer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from apikit import Log, Net, close, f32

import tactician as trt
from tactician.support.errors import ExecutionError, PlanError

K, D = trt.LayerInformationFormat, trt.ProfilingVerbosity


def small(**config):
    net = Net()
    for name, value in config.items():
        setattr(net.config, name, value)
    x = net.input(f32(3, 4), "x")
    e = net.network.add_unary(x, trt.UnaryOperation.EXP)
    e.name, e.metadata = "exponential", "source: line 3"
    s = net.network.add_softmax(e.get_output(0))
    s.name = "probabilities"
    return net, s.get_output(0)


def dynamic():
    net = Net()
    x = net.input(f32(3, 4), "x", (-1, 4))
    net.profile.set_shape("x", (1, 4), (3, 4), (64, 4))
    second = net.builder.create_optimization_profile()
    second.set_shape("x", (65, 4), (100, 4), (256, 4))
    net.config.add_optimization_profile(second)
    e = net.network.add_softmax(net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0))
    e.axes = 0b10
    return net, net.network.add_cumulative(
        e.get_output(0), net.const(np.int32(0)), trt.CumulativeOperation.SUM, False, False
    ).get_output(0)


class TestFacts:
    def test_tensors(self):
        net, y = small()
        engine = net.engine(y)
        for name in ("x", "y0"):
            assert engine.get_tensor_format(name) == trt.TensorFormat.LINEAR
            assert "FLOAT" in engine.get_tensor_format_desc(name)
            assert engine.get_tensor_bytes_per_component(name) == 4
            assert engine.get_tensor_components_per_element(name) == 1
            assert engine.get_tensor_vectorized_dim(name) == -1
        assert not engine.get_tensor_format_desc("z") and "'z'" in net.log.errors

    def test_bindings(self):
        net, y = dynamic()
        engine = net.engine(y)
        assert engine.num_bindings == len(engine) == 4
        assert [engine.get_binding_name(i) for i in range(4)] == [
            "x", "y0", "x [profile 1]", "y0 [profile 1]"]
        assert engine.get_binding_index("y0 [profile 1]") == 3
        assert "FLOAT" in engine.get_binding_format_desc(1)
        assert engine.get_binding_components_per_element(1) == 1
        assert engine.get_binding_vectorized_dim(1) == -1
        assert engine.is_execution_binding(0) and not engine.is_execution_binding(9)
        context = engine.create_execution_context()
        assert tuple(context.get_strides(0)) == (4, 1)

    def test_memory(self):
        net, y = dynamic()
        engine = net.engine(y)
        small_, large = (engine.get_device_memory_size_for_profile(i) for i in (0, 1))
        assert 0 < small_ < large == engine.device_memory_size == engine.device_memory_size_v2
        assert engine.get_device_memory_size_for_profile_v2(0) == small_
        assert engine.get_device_memory_size_for_profile(2) == 0 and "profile 2" in net.log.errors

    def test_configuration_is_remembered(self):
        net, y = small(profiling_verbosity=D.NONE)
        engine = net.engine(y)
        assert engine.profiling_verbosity == D.NONE
        assert engine.engine_capability == trt.EngineCapability.STANDARD
        assert engine.num_aux_streams == 0
        total = engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        assert total == 0 == engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE)

    @pytest.mark.parametrize("name", ["weight_streaming_budget", "weight_streaming_budget_v2"])
    def test_weights_are_never_streamed_on_cpus_which_the_log_says(self, name):
        net, y = small()
        net.config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        engine = net.engine(y)
        assert "WEIGHT_STREAMING has no effect" in net.log.text()
        assert engine.streamable_weights_size == engine.minimum_weight_streaming_budget == 0
        assert engine.weight_streaming_scratch_memory_size == 0
        assert engine.get_weight_streaming_automatic_budget() == 0
        assert getattr(engine, name) == 0
        setattr(engine, name, 1 << 20)
        assert getattr(engine, name) == 0
        assert "no weights that can be streamed" in net.log.errors


class TestInspector:
    @pytest.mark.parametrize("verbosity, keys", [
        (D.DETAILED, {"Name", "LayerType", "Inputs", "Outputs", "TacticName", "layers"}),
        (D.LAYER_NAMES_ONLY, {"Name", "TacticName"}),
    ])
    def test_layers(self, verbosity, keys):
        net, y = small(profiling_verbosity=verbosity)
        engine = net.engine(y)
        inspector = engine.create_engine_inspector()
        layer = json.loads(inspector.get_layer_information(0, K.JSON))
        assert keys <= layer.keys() and "exponential" in layer["Name"]
        if verbosity == D.DETAILED:
            assert layer["layers"] == ["exponential"] and layer["Metadata"] == "source: line 3"
        whole = json.loads(inspector.get_engine_information(K.JSON))
        assert len(whole["Layers"]) == engine.num_layers and whole["Bindings"] == ["x", "y0"]
        assert "exponential" in inspector.get_engine_information(K.ONELINE)

    def test_errors_and_none(self):
        net, y = small(profiling_verbosity=D.NONE)
        inspector = net.engine(y).create_engine_inspector()
        recorder = Recorder()
        inspector.error_recorder = recorder
        assert inspector.error_recorder is recorder
        assert inspector.get_layer_information(99, K.JSON) == ""
        assert recorder.num_errors() == 1 and "layer 99" in recorder.get_error_desc(0)
        assert json.loads(inspector.get_engine_information(K.JSON))["Layers"] == []

    def test_shapes_of_a_context(self):
        net, y = dynamic()
        net.config.profiling_verbosity = D.DETAILED
        engine = net.engine(y)
        inspector = engine.create_engine_inspector()
        context = engine.create_execution_context()
        assert context.engine is engine
        context.set_input_shape("x", (7, 4))
        context.infer_shapes()
        before = json.loads(inspector.get_layer_information(0, K.JSON))["Inputs"][0]
        assert before["Dimensions"] == ["x.0", 4]
        inspector.execution_context = context
        assert inspector.execution_context is context
        after = json.loads(inspector.get_layer_information(0, K.JSON))["Inputs"][0]
        assert after["Dimensions"] == [7, 4]


class Recorder(trt.IErrorRecorder):
    """Keeps at most two errors."""

    def __init__(self):
        trt.IErrorRecorder.__init__(self)
        self.errors, self.lost = [], 0

    def report_error(self, arg0, arg1):
        if len(self.errors) < 2:
            self.errors.append((arg0, arg1))
        else:
            self.lost += 1
        return True

    def num_errors(self):
        return len(self.errors)

    def get_error_code(self, arg0):
        return self.errors[arg0][0]

    def get_error_desc(self, arg0):
        return self.errors[arg0][1][:self.MAX_DESC_LENGTH]

    def has_overflowed(self):
        return self.lost > 0

    def clear(self):
        self.errors, self.lost = [], 0


class TestErrorRecorder:
    """Every object that has a recorder tells it what it logs."""

    def test_objects(self):
        net, y = small()
        engine = net.engine(y)
        recorder = Recorder()
        context, runtime = engine.create_execution_context(), trt.Runtime(Log())
        for thing in (engine, context, runtime, net.network, net.builder):
            thing.error_recorder = recorder
            assert thing.error_recorder is recorder
        engine.get_tensor_dtype("nothing")
        assert recorder.get_error_code(0) == trt.ErrorCodeTRT.INVALID_ARGUMENT
        assert "nothing" in recorder.get_error_desc(0) and recorder.MAX_DESC_LENGTH == 127
        assert not context.execute_async_v3(0)
        assert recorder.get_error_code(1) == trt.ErrorCodeTRT.INVALID_STATE
        assert not recorder.has_overflowed()
        with pytest.raises(PlanError):
            runtime.deserialize_cuda_engine(b"none")
        assert recorder.has_overflowed() and recorder.num_errors() == 2
        recorder.clear()
        assert recorder.num_errors() == 0
        net.network.get_layer(77)
        assert recorder.get_error_code(0) == trt.ErrorCodeTRT.INVALID_ARGUMENT
        empty = Net()
        empty.builder.error_recorder = recorder
        empty.fails()
        assert recorder.get_error_code(1) == trt.ErrorCodeTRT.INVALID_CONFIG

    def test_failing_runs(self):
        from tactician.driver import Stream

        net = Net()
        ok = net.input(np.array(False), "ok")
        net.network.add_assertion(ok, "must be true")
        engine = net.engine(net.network.add_identity(net.input(f32(2), "x")).get_output(0))
        context, recorder, y = engine.create_execution_context(), Recorder(), f32(2)
        context.error_recorder = recorder
        for name, array in (*net.feeds.items(), ("y0", y)):
            context.set_tensor_address(name, array.ctypes.data)
        stream = Stream()
        assert context.execute_async_v3(stream.handle)
        with pytest.raises(ExecutionError):
            stream.synchronize()
        assert not context.debug_sync
        context.debug_sync = True  # errors name their layer in any case
        with pytest.raises(ExecutionError, match="Assertion"):
            context.execute_async_v3(0)
        assert context.debug_sync
        assert recorder.get_error_code(0) == trt.ErrorCodeTRT.FAILED_EXECUTION
        assert "must be true" in recorder.errors[0][1]


class TestContext:
    @pytest.mark.parametrize("strategy", [
        trt.ExecutionContextAllocationStrategy.STATIC,
        trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE,
        trt.ExecutionContextAllocationStrategy.USER_MANAGED,
    ])
    def test_runtime_config(self, strategy):
        net, y = dynamic()
        engine = net.engine(y)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        assert config.get_execution_context_allocation_strategy() == strategy
        context = engine.create_execution_context(config)
        assert context.get_runtime_config() is config
        out = np.empty((3, 4), np.float32)
        assert context.set_input_shape("x", (3, 4))
        context.set_tensor_address("x", net.feeds["x"].ctypes.data)
        context.set_tensor_address("y0", out.ctypes.data)
        managed = strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if managed:
            assert not context.execute_async_v3(0) and "device memory" in net.log.errors
            need = context.update_device_memory_size_for_shapes()
            assert 0 < need < engine.device_memory_size_v2
            block = np.empty(need + 64, np.uint8)
            context.set_device_memory(block.ctypes.data + -block.ctypes.data % 64, need)
        assert context.execute_async_v3(0)
        e = np.exp(np.exp(f32(3, 4)))
        close(out, np.cumsum(e / e.sum(1, keepdims=True), 0))

    def test_memory_without_a_size(self):
        """`device_memory` of versions up to 10."""
        net, y = dynamic()
        engine = net.engine(y)
        context = engine.create_execution_context_without_device_memory()
        block = np.empty(engine.device_memory_size + 64, np.uint8)
        context.device_memory = block.ctypes.data + -block.ctypes.data % 64
        out = np.empty((3, 4), np.float32)
        context.set_input_shape("x", (3, 4))
        assert context.execute_v2([net.feeds["x"].ctypes.data, out.ctypes.data])
        assert out[0].sum() == pytest.approx(1, rel=1e-5)

    @pytest.mark.parametrize("name, value", [
        ("nvtx_verbosity", D.DETAILED), ("persistent_cache_limit", 1 << 20)])
    def test_settings_without_effect(self, name, value):
        net, y = small()
        context = net.engine(y).create_execution_context()
        assert "no effect" not in net.log.text()
        setattr(context, name, value)
        assert getattr(context, name) == value
        assert f"{name} has no effect" in net.log.text()

    def test_name_streams_and_communicator(self):
        net, y = small()
        context = net.engine(y).create_execution_context()
        context.name = "first"
        assert context.name == "first"
        context.get_tensor_shape("nothing")
        assert "context 'first': get_tensor_shape" in net.log.errors
        from tactician.driver import Stream
        from tactician.support.errors import UsageError

        stream = Stream()
        context.set_aux_streams([stream.handle])
        with pytest.raises(UsageError):
            context.set_aux_streams([1234567])
        assert not context.set_communicator(object()) and "multi-device" in net.log.errors

    def test_debug_listener_sees_what_fusion_left(self):
        class Listener(trt.IDebugListener):
            def __init__(self):
                trt.IDebugListener.__init__(self)
                self.seen = {}

            def process_debug_tensor(self, addr, location, type, shape, name, stream):
                import ctypes

                raw = ctypes.string_at(addr, int(np.prod(shape)) * 4)
                self.seen[name] = np.frombuffer(raw, np.float32).reshape(tuple(shape))
                return True

        net, y = dynamic()
        assert net.network.mark_unfused_tensors_as_debug_tensors()
        engine = net.engine(y)
        context, listener = engine.create_execution_context(), Listener()
        assert context.set_debug_listener(listener) and context.get_debug_listener() is listener
        context.unfused_tensors_debug_state = True
        assert context.unfused_tensors_debug_state
        out = np.empty((3, 4), np.float32)
        context.set_input_shape("x", (3, 4))
        assert context.execute_v2([net.feeds["x"].ctypes.data, out.ctypes.data])
        e = np.exp(np.exp(f32(3, 4)))
        want = e / e.sum(1, keepdims=True)
        assert any(v.shape == want.shape and np.allclose(v, want, 1e-5)
                   for v in listener.seen.values())
        plain, y = dynamic()
        other = plain.engine(y).create_execution_context()
        other.unfused_tensors_debug_state = True
        assert not other.unfused_tensors_debug_state
        assert "mark_unfused_tensors_as_debug_tensors" in plain.log.errors


class TestRuntime:
    def plan(self):
        net, y = small()
        y.name = "y0"
        net.network.mark_output(y)
        return net.builder.build_serialized_network(net.network, net.config)

    def test_facts(self):
        log = Log()
        runtime = trt.Runtime(log)
        assert runtime.logger is log and runtime.num_DLA_cores == 0
        assert runtime.get_plugin_registry() is trt.get_plugin_registry()

    @pytest.mark.parametrize("name, value", [
        ("DLA_core", 0), ("temporary_directory", "/tmp/x"),
        ("tempfile_control_flags", 1 << int(trt.TempfileControlFlag.ALLOW_TEMPORARY_FILES)),
        ("dla_workspace_allocation_strategy", 1),
    ])
    def test_settings_without_effect(self, name, value):
        log = Log()
        runtime = trt.Runtime(log)
        setattr(runtime, name, getattr(runtime, name))
        assert not log.lines
        setattr(runtime, name, value)
        assert getattr(runtime, name) == value and f"{name} has no effect" in log.text()

    def test_first_values(self):
        runtime = trt.Runtime(Log())
        files = trt.TempfileControlFlag
        assert runtime.tempfile_control_flags == (
            1 << files.ALLOW_IN_MEMORY_FILES | 1 << files.ALLOW_TEMPORARY_FILES)
        kind = trt.DLAWorkspaceAllocationStrategy
        assert runtime.dla_workspace_allocation_strategy == kind.SHARED_STATIC

    def test_machine_code_may_be_refused(self):
        log, plan = Log(), self.plan()
        runtime = trt.Runtime(log)
        assert runtime.engine_host_code_allowed
        runtime.engine_host_code_allowed = False
        with pytest.raises(PlanError, match="machine code"):
            runtime.deserialize_cuda_engine(plan)

    def test_other_runtimes_are_this_one(self):
        log = Log()
        other = trt.Runtime(log).load_runtime("libnvinfer_lean.so")
        assert "libnvinfer_lean.so" in log.text()
        assert other.deserialize_cuda_engine(self.plan()) is not None

    def test_threads(self):
        runtime = trt.Runtime(Log())
        runtime.max_threads = 1
        assert runtime.max_threads == 1
        assert runtime.deserialize_cuda_engine(self.plan())._core.threads == 1

    def test_stream_readers(self):
        plan = bytes(self.plan())

        class Reader(trt.IStreamReader):
            def __init__(self):
                trt.IStreamReader.__init__(self)
                self.at = 0

            def read(self, size):
                self.at += size
                return plan[self.at - size:self.at]

        class ReaderV2(trt.IStreamReaderV2):
            def __init__(self):
                trt.IStreamReaderV2.__init__(self)
                self.at, self.seeks = 5, []

            def read(self, num_bytes, stream):
                self.at += num_bytes
                return plan[self.at - num_bytes:self.at]

            def seek(self, offset, where):
                self.seeks.append(where)
                base = {trt.SeekPosition.SET: 0, trt.SeekPosition.CUR: self.at,
                        trt.SeekPosition.END: len(plan)}[where]
                self.at = base + offset
                return True

        runtime = trt.Runtime(Log())
        first = runtime.deserialize_cuda_engine(stream_reader=Reader())
        reader = ReaderV2()
        second = runtime.deserialize_cuda_engine(stream_reader_v2=reader)
        assert reader.seeks[0] == trt.SeekPosition.SET
        for engine in (first, second):
            assert bytes(engine.serialize()) == plan

    def test_stream_writer(self):
        class Writer(trt.IStreamWriter):
            def __init__(self, most=1 << 30):
                trt.IStreamWriter.__init__(self)
                self.data, self.most = b"", most

            def write(self, data):
                self.data += bytes(data)[:self.most]
                return min(len(data), self.most)

        net, y = small()
        y.name = "y0"
        net.network.mark_output(y)
        whole, short = Writer(), Writer(100)
        build = net.builder.build_serialized_network_to_stream
        assert build(net.network, net.config, whole)
        assert trt.Runtime(Log()).deserialize_cuda_engine(whole.data) is not None
        assert not build(net.network, net.config, short)
        assert "took 100 of" in net.log.errors

    def test_serialization_config(self):
        net, y = small()
        engine = net.engine(y)
        config = engine.create_serialization_config()
        flag = trt.SerializationFlag.EXCLUDE_LEAN_RUNTIME
        assert config.set_flag(flag) and config.get_flag(flag) and config.flags == 2
        assert engine.serialize_with_config(config) == engine.serialize()
        assert config.clear_flag(flag) and not config.get_flag(flag)


class TestRefitter:
    def build(self):
        net = Net()
        w = f32(4, 4)
        x = net.input(f32(2, 4), "x")
        n = trt.MatrixOperation.NONE
        k = net.network.add_constant((4, 4), w)
        y = net.network.add_matrix_multiply(x, n, k.get_output(0), n).get_output(0)
        assert net.network.set_weights_name(w, "w")
        net.config.set_flag(trt.BuilderFlag.REFIT)
        return net, net.engine(y), w

    def test_services(self):
        net, engine, w = self.build()
        refitter = trt.Refitter(engine, net.log)
        assert refitter.logger is net.log and refitter.get_missing_weights() == []
        assert refitter.get_weights_location("w") == trt.TensorLocation.HOST
        refitter.error_recorder = recorder = Recorder()
        assert not refitter.set_named_weights("w", w[:1]) and recorder.num_errors() == 1
        assert "got 4 elements" in recorder.get_error_desc(0)
        assert refitter.error_recorder is recorder
        refitter.max_threads, refitter.weights_validation = 2, False
        assert refitter.set_named_weights("w", 2 * w)
        assert refitter.unset_named_weights("w")
        assert not refitter.unset_named_weights("w") and "not set" in net.log.errors
        assert refitter.set_named_weights("w", 3 * w)
        refitter.release_refit_resources()
        assert refitter.get_named_weights("w").size == 0
        assert refitter.set_named_weights("w", np.full((4, 4), np.inf, np.float32))
        assert refitter.refit_cuda_engine()
        assert np.isinf(trt.Engine(engine)(net.feeds)["y0"]).any()

    def test_dynamic_ranges(self):
        """A smaller range clips; a larger one has coarser steps."""
        def build(flag):
            net = Net()
            n = trt.MatrixOperation.NONE
            x = net.input(4 * f32(8, 16), "x")
            layer = net.network.add_matrix_multiply(x, n, net.const(f32(16, 96)), n)
            y = layer.get_output(0)
            if flag:
                x.dynamic_range, y.dynamic_range = (-16, 16), (-64, 64)
                net.config.set_flag(trt.BuilderFlag.INT8)
            net.config.set_flag(trt.BuilderFlag.REFIT)
            return net, net.engine(y)

        net, engine = build(True)
        refitter = trt.Refitter(engine, net.log)
        assert sorted(refitter.get_tensors_with_dynamic_range()) == ["x", "y0"]
        assert refitter.get_dynamic_range("x") == (-16, 16)
        want = 4 * f32(8, 16) @ f32(16, 96)

        def error(limit):
            assert refitter.set_dynamic_range("x", (-limit, limit))
            assert refitter.get_dynamic_range("x") == (-limit, limit)
            assert refitter.refit_cuda_engine(), net.log.errors
            return abs(trt.Engine(engine)(net.feeds)["y0"] - want).max()

        clipped = np.clip(4 * f32(8, 16), -1, 1) @ f32(16, 96)
        assert error(16) < error(256)
        assert error(1) == pytest.approx(abs(clipped - want).max(), rel=0.05)
        assert not refitter.set_dynamic_range("x", (2, 1)) and "min <= max" in net.log.errors
        assert not refitter.set_dynamic_range("none", (-1, 1))
        plain, engine = build(False)
        refitter = trt.Refitter(engine, plain.log)
        assert refitter.get_tensors_with_dynamic_range() == []
        assert not refitter.set_dynamic_range("x", (-1, 1))
        assert "no dynamic range of 'x'" in plain.log.errors
        assert refitter.get_dynamic_range("x") == (-1, -1)


class TestProfiler:
    def test_times(self, capsys):
        net, y = dynamic()
        engine = net.engine(y)
        context = engine.create_execution_context()
        context.profiler = trt.Profiler()
        context.enqueue_emits_profile = False
        out = np.empty((3, 4), np.float32)
        context.set_input_shape("x", (3, 4))
        assert context.execute_v2([net.feeds["x"].ctypes.data, out.ctypes.data])
        assert capsys.readouterr().out == ""
        assert context.report_to_profiler()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == engine.num_layers and all(line.endswith("ms") for line in lines)
        trt.Profiler().report_layer_time("softmax", 1.5)
        assert capsys.readouterr().out == "softmax: 1.5ms\n"
