"""Builder and its configuration, from networks made by hand to running engines."""

import numpy as np
import pytest
from networks import Log, conv_relu, conv_relu_numpy, scaled_sum

import tactician as trt
import tactician.driver as cuda
from tactician.builder.target import gpu_usable
from tactician.support.errors import UsageError

X = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def builder(log):
    return trt.Builder(log)


def run(engine, *arrays):
    context = engine.create_execution_context()
    for name, array in zip(engine, arrays, strict=False):
        assert context.set_input_shape(name, array.shape)
    out = np.zeros(tuple(context.get_tensor_shape(engine[len(arrays)])), np.float32)
    assert context.execute_v2([a.ctypes.data for a in (*arrays, out)])
    return out


def test_build_write_read_run(builder, log, tmp_path):
    """The main path of version 10."""
    network, config = conv_relu(builder), builder.create_builder_config()
    plan = builder.build_serialized_network(network, config)
    assert isinstance(plan, trt.IHostMemory), log.errors
    (tmp_path / "m.plan").write_bytes(plan)
    with open(tmp_path / "m.plan", "rb") as f, trt.Runtime(log) as runtime:
        engine = runtime.deserialize_cuda_engine(f.read())
    np.testing.assert_allclose(run(engine, X), conv_relu_numpy(X), rtol=1e-4, atol=1e-4)
    assert engine.serialize() == plan and not log.errors


def test_version_7_program(log):
    """Builder attributes, build_cuda_engine, bindings and execute_async."""
    with trt.Builder(log) as builder, conv_relu(builder) as network:
        builder.max_batch_size = 1
        builder.max_workspace_size = 1 << 20
        engine = builder.build_cuda_engine(network)
        assert engine is not None, log.errors
    assert engine.max_workspace_size == 1 << 20 and engine.max_batch_size == 1
    context = engine.create_execution_context()
    h_out = cuda.pagelocked_empty(trt.volume(context.get_binding_shape(1)), np.float32)
    d_in, d_out, stream = cuda.mem_alloc(X.nbytes), cuda.mem_alloc(h_out.nbytes), cuda.Stream()
    cuda.memcpy_htod_async(d_in, X, stream)
    context.execute_async(bindings=[int(d_in), int(d_out)], stream_handle=stream.handle)
    cuda.memcpy_dtoh_async(h_out, d_out, stream)
    stream.synchronize()
    np.testing.assert_allclose(
        h_out.reshape(1, 4, 4, 4), conv_relu_numpy(X), rtol=1e-4, atol=1e-4
    )


def test_version_8_program(builder, log):
    config = builder.create_builder_config()
    config.max_workspace_size = 1 << 28
    engine = builder.build_engine(conv_relu(builder), config)
    np.testing.assert_allclose(run(engine, X), conv_relu_numpy(X), rtol=1e-4, atol=1e-4)


def test_dynamic_shapes(builder, log):
    network, config = scaled_sum(builder), builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name in "ab":
        profile.set_shape(name, min=(1, 3), opt=(4, 3), max=(16, 3))
    assert config.add_optimization_profile(profile) == 0
    engine = builder.build_engine_with_config(network, config)
    assert engine is not None, log.errors
    for n in (1, 16, 5):
        a, b = np.random.default_rng(n).standard_normal((2, n, 3)).astype(np.float32)
        np.testing.assert_allclose(run(engine, a, b), np.exp(a) + b, rtol=1e-5, atol=1e-5)
    context = engine.create_execution_context()
    assert not context.set_input_shape("a", (17, 3)) and "(16, 3)" in log.errors


def test_inputs_that_disagree(builder, log):
    network, config = scaled_sum(builder), builder.create_builder_config()
    for name in "ab":
        network.get_input("ab".index(name)).set_dimension_name(0, "rows")
    profile = builder.create_optimization_profile()
    for name in "ab":
        profile.set_shape(name, (1, 3), (4, 3), (16, 3))
    config.add_optimization_profile(profile)
    engine = builder.build_engine_with_config(network, config)
    assert engine is not None, log.errors
    context = engine.create_execution_context()
    context.set_input_shape("a", (2, 3))
    context.set_input_shape("b", (3, 3))
    assert not context.execute_v2([64, 64, 64]) and "share dimension rows" in log.errors


def ranges(**given):
    profile = trt.Builder(Log()).create_optimization_profile()
    for name, triple in given.items():
        profile.set_shape(name, *triple)
    return profile


R = ((1, 3), (2, 3), (4, 3))


@pytest.mark.parametrize("profiles, reason", [
    ([], "'a' (-1, 3), 'b' (-1, 3) vary, but there is no optimization profile"),
    ([ranges(a=R)], "profile 0 has no range for input 'b'"),
    ([ranges(a=R, b=R), ranges(b=R)], "profile 1 has no range for input 'a'"),
    ([ranges(a=R, b=R, c=R)], "names 'c', which is no input"),
    ([ranges(a=R, b=((1,), (2,), (3,)))], "'b' has 2 dimensions (-1, 3), its range has 1"),
    ([ranges(a=R, b=((1, 3), (2, 4), (2, 5)))], "dimension 1 of input 'b' is 3 in the network"),
])
def test_profiles_that_do_not_fit(builder, log, profiles, reason):
    config = builder.create_builder_config()
    for p in profiles:
        config.add_optimization_profile(p)
    network = scaled_sum(builder)
    assert builder.is_network_supported(network, config) is False
    assert builder.build_serialized_network(network, config) is None
    assert reason in log.errors


def test_profiles_of_shared_dimensions(builder, log):
    network, config = scaled_sum(builder), builder.create_builder_config()
    for i in range(2):
        network.get_input(i).set_dimension_name(0, "n")
    config.add_optimization_profile(ranges(a=R, b=((1, 3), (2, 3), (5, 3))))
    assert builder.build_serialized_network(network, config) is None
    assert "share dimension n, but their ranges are (1, 2, 4) and (1, 2, 5)" in log.errors


@pytest.mark.parametrize("triple, reason", [
    (((2, 3), (1, 3), (4, 3)), "min <= opt <= max"), (((1, 3), (5, 3), (4, 3)), "min <= opt"),
    (((1,), (2, 3), (4, 3)), "same length"), (((-1, 3), (2, 3), (4, 3)), "at least 0"),
    ((("a", 3), (2, 3), (4, 3)), "set_shape"),
])
def test_ranges_that_make_no_sense(triple, reason):
    with pytest.raises(ValueError, match=reason):
        ranges(x=triple)


def test_profile_accessors():
    p = ranges(x=R)
    p.set_shape_input("s", [1], [2], [3])
    assert p.get_shape("x") == list(R) and p.get_shape("y") == []
    assert p.get_shape_input("s") == [[1], [2], [3]] and bool(p)


def test_network_problems_are_logged_by_layer(builder, log):
    class Recorder:
        seen = []

        def report_error(self, code, desc):
            self.seen.append(desc)

    builder.error_recorder = Recorder()
    network = builder.create_network(1)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "no outputs" in log.errors and "no outputs" in Recorder.seen[0]


def test_implicit_batch(log, monkeypatch):
    monkeypatch.setenv("TACTICIAN_TRT_VERSION", "7.2")
    builder = trt.Builder(log)
    builder.max_batch_size = 4
    network = conv_relu(builder, (2, 6, 6), flags=0)
    assert network.has_implicit_batch_dimension
    engine = builder.build_cuda_engine(network)
    assert engine is not None, log.errors
    assert engine.max_batch_size == 4 and engine.get_binding_shape(1) == (4, 4, 4)
    context = engine.create_execution_context()
    x = np.random.default_rng(1).standard_normal((4, 2, 6, 6)).astype(np.float32)
    for n in (1, 4, 3):
        y = np.zeros((4, 4, 4, 4), np.float32)
        assert context.execute(batch_size=n, bindings=[x.ctypes.data, y.ctypes.data])
        np.testing.assert_allclose(y[:n], conv_relu_numpy(x)[:n], rtol=1e-4, atol=1e-4)
        assert not y[n:].any()


def test_progress_monitor(builder):
    class Monitor(trt.IProgressMonitor):
        def __init__(self, limit=1 << 30):
            super().__init__()
            self.open, self.steps, self.limit = [], 0, limit

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.open.append(phase_name)

        def step_complete(self, phase_name, step):
            assert phase_name in self.open
            self.steps += 1
            return self.steps < self.limit

        def phase_finish(self, phase_name):
            self.open.remove(phase_name)

    config = builder.create_builder_config()
    config.progress_monitor = whole = Monitor()
    assert builder.build_serialized_network(conv_relu(builder), config) is not None
    assert whole.steps > 0 and not whole.open
    config.progress_monitor = stopped = Monitor(limit=1)
    assert builder.build_serialized_network(conv_relu(builder), config) is None
    assert stopped.steps == 1 and not stopped.open


@pytest.mark.parametrize("flag", ["WEIGHT_STREAMING", "SPARSE_WEIGHTS", "SAFETY_SCOPE",
                                  "GPU_FALLBACK", "DISTRIBUTIVE_INDEPENDENCE"])
def test_flags_without_effect_say_so(builder, log, flag):
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    config.set_flag(getattr(trt.BuilderFlag, flag))
    assert builder.build_serialized_network(conv_relu(builder), config) is not None
    assert f"BuilderFlag.{flag} has no effect" in log.warnings


@pytest.mark.parametrize("name, value", [
    ("avg_timing_iterations", 8), ("max_aux_streams", 2), ("DLA_core", 0), ("profile_stream", 7),
    ("engine_capability", trt.EngineCapability.SAFETY), ("plugins_to_serialize", ["a.so"]),
])  # fmt: skip
def test_settings_without_effect_are_logged(builder, log, name, value):
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    assert builder.build_serialized_network(conv_relu(builder), config) is not None
    assert "no effect" not in log.warnings
    setattr(config, name, value)
    assert builder.build_serialized_network(conv_relu(builder), config) is not None
    assert f"config.{name} has no effect" in log.warnings


def test_device_of_a_layer_is_logged(builder, log):
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    network = conv_relu(builder)
    config.set_device_type(network.get_layer(0), trt.DeviceType.DLA)
    assert builder.build_serialized_network(network, config) is not None
    assert "set_device_type has no effect" in log.warnings


@pytest.mark.skipif(gpu_usable(), reason="there is a GPU")
def test_gpu_as_device_is_logged(builder, log, monkeypatch):
    monkeypatch.delenv("TACTICIAN_GPU", raising=False)
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.GPU
    config.builder_optimization_level = 0
    assert builder.build_serialized_network(conv_relu(builder), config) is not None
    assert "DeviceType.GPU is not available" in log.warnings


def test_hardware_compatible_plans(builder, log):
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    plan = builder.build_serialized_network(conv_relu(builder), config)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    assert engine.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    np.testing.assert_allclose(run(engine, X), conv_relu_numpy(X), rtol=1e-4, atol=1e-4)


def test_stream_writer(builder):
    class Writer(trt.IStreamWriter):
        data = b""

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    class Short(Writer):
        def write(self, data):
            return 3

    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    writer = Writer()
    assert builder.build_serialized_network_to_stream(conv_relu(builder), config, writer)
    assert writer.data[:8] == b"TACTPLAN"
    assert not builder.build_serialized_network_to_stream(conv_relu(builder), config, Short())


def test_location_survives(builder, log):
    network = conv_relu(builder)
    network.get_output(0).location = trt.TensorLocation.HOST
    engine = builder.build_engine_with_config(network, builder.create_builder_config())
    assert engine.get_tensor_location("y") == trt.TensorLocation.HOST
    assert engine.get_tensor_location("x") == trt.TensorLocation.DEVICE


def test_one_timing_cache_same_bytes(builder, log):
    config = builder.create_builder_config()
    first = builder.build_serialized_network(conv_relu(builder), config)
    cache = config.get_timing_cache()
    assert len(cache) > 0
    again = builder.create_builder_config()
    again.set_timing_cache(again.create_timing_cache(cache.serialize()), False)
    again.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)  # nothing is measured again
    assert builder.build_serialized_network(conv_relu(builder), again) == first, log.errors


def test_cache_miss_is_an_error_on_request(builder, log):
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    assert builder.build_serialized_network(conv_relu(builder), config) is None
    assert "no timing for" in log.errors


# --- configuration ------------------------------------------------------------------------


@pytest.fixture
def config(builder):
    return builder.create_builder_config()


def test_config_flags(config):
    assert config.get_flag(trt.BuilderFlag.TF32) and not config.get_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.FP16)
    assert config.flags == 1 << 6 | 1 and config.settings().precisions == {"f16"}
    config.clear_flag(trt.BuilderFlag.FP16)
    config.flags |= 1 << int(trt.BuilderFlag.INT8)
    assert config.settings().precisions == {"i8"}
    config.reset()
    assert config.flags == 1 << 6


@pytest.mark.parametrize("flags, refit", [
    ([], "none"), (["REFIT"], "all"), (["REFIT_INDIVIDUAL"], "individual"),
    (["STRIP_PLAN"], "identical"),
])
def test_config_refit(config, flags, refit):
    for f in flags:
        config.set_flag(getattr(trt.BuilderFlag, f))
    assert config.settings().refit == refit


@pytest.mark.parametrize("flag, constraints", [
    ("OBEY_PRECISION_CONSTRAINTS", "obey"), ("PREFER_PRECISION_CONSTRAINTS", "prefer"),
    ("STRICT_TYPES", "obey"),
])
def test_config_constraints(config, flag, constraints):
    config.set_flag(getattr(trt.BuilderFlag, flag))
    assert config.settings().precision_constraints == constraints


def test_config_pools(config):
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) > 0
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)
    assert config.max_workspace_size == config.settings().workspace == 1 << 20
    with pytest.raises(UsageError):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, -1)


def test_config_sources(config):
    assert config.settings().tactic_sources is None
    config.set_tactic_sources(1 << int(trt.TacticSource.CUDNN))
    assert config.get_tactic_sources() == 4 and config.settings().tactic_sources == {"CUDNN"}


def test_config_levels(config):
    config.builder_optimization_level = 5
    assert config.settings().optimization_level == 5
    with pytest.raises(UsageError, match="from 0 to 5"):
        config.builder_optimization_level = 6


def test_config_devices(config, builder):
    layer = conv_relu(builder).get_layer(0)
    assert config.get_device_type(layer) == trt.DeviceType.CPU
    assert not config.is_device_type_set(layer) and not config.can_run_on_DLA(layer)
    config.set_device_type(layer, trt.DeviceType.GPU)
    assert config.get_device_type(layer) == trt.DeviceType.GPU
    config.reset_device_type(layer)
    assert not config.is_device_type_set(layer)


def test_preview_features(config):
    feature = trt.PreviewFeature.PROFILE_SHARING_0806
    config.set_preview_feature(feature, True)
    assert config.get_preview_feature(feature)
    config.set_preview_feature(feature, False)
    assert not config.get_preview_feature(feature)


@pytest.mark.parametrize("old, new, value", [
    ("fp16_mode", "FP16", True), ("int8_mode", "INT8", True), ("refittable", "REFIT", True),
    ("strict_type_constraints", "STRICT_TYPES", True), ("debug_sync", "DEBUG", True),
])
def test_builder_flags_of_version_5(builder, old, new, value):
    assert getattr(builder, old) is False
    setattr(builder, old, value)
    assert getattr(builder, old) is value
    assert builder._config.get_flag(getattr(trt.BuilderFlag, new)) is value


def test_builder_settings_of_version_5(builder):
    builder.average_find_iterations, builder.min_find_iterations = 4, 2
    assert builder._config.settings().avg_timing_iterations == 4
    assert builder._config.settings().min_timing_iterations == 2
    assert isinstance(builder.platform_has_fast_fp16, bool) and not builder.platform_has_tf32
    with pytest.raises(UsageError):
        builder.max_batch_size = 0


# --- timing cache -------------------------------------------------------------------------


def cache(**times):
    return trt.ITimingCache({k: {"times": v} for k, v in times.items()})


def test_cache_round_trip(config):
    c = cache(a={"t(1)": 2.0, "t(2)": None})
    back = config.create_timing_cache(c.serialize())
    assert back.entries == c.entries and back.serialize() == c.serialize()
    assert len(config.create_timing_cache(b"")) == 0


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b'{"format": '
                                  b'"tactician timing cache", "version": 1, "entries": {"a": 3}}',
                                  b'{"format": "tactician timing cache", "version": 99}'])
def test_cache_of_other_bytes(config, log, data):
    assert config.create_timing_cache(data) is None and "timing cache" in log.errors


def test_cache_editing():
    c = cache(k={"fast(1)": 10.0, "slow(1)": 30.0})
    (key,) = c.queryKeys()
    assert trt.TimingCacheKey.parse(str(key)) == key
    best = c.query(key)
    assert best.timingMSec == 0.01
    slow = trt.TimingCacheValue(0, 0.03)
    assert not c.update(key, slow)
    from tactician.builder.timing_cache import tactic_hash

    assert c.update(key, trt.TimingCacheValue(tactic_hash("slow(1)"), 0.03))
    assert c.query(key).tacticHash == tactic_hash("slow(1)") != best.tacticHash
    assert c.query(trt.TimingCacheKey("x")).timingMSec == float("inf")


def test_cache_combine_and_reset():
    a, b = cache(k={"x(1)": 1.0}), cache(k={"x(1)": 2.0}, m={"y(1)": 3.0})
    assert a.combine(b, ignore_mismatch=False)
    assert a.entries["k"] == {"times": {"x(1)": 1.0}} and "m" in a.entries
    assert a.reset() and not len(a)


def test_caches_of_other_devices_are_combined_when_asked():
    a, b = cache(**{"cpu/x86/k": {"x(1)": 1.0}}), cache(**{"cuda/H100/k": {"x(1)": 2.0}})
    assert not a.combine(b, False) and len(a) == 1
    assert a.combine(b, ignore_mismatch=True) and len(a) == 2
    assert a.combine(b, False)  # now both have the device


def test_debug_tensors_survive_fusion(builder, log):
    shown = {}

    class Listener(trt.IDebugListener):
        def process_debug_tensor(self, addr, location, type, shape, name, stream):
            shown[name] = cuda.from_device(addr, tuple(shape), np.float32)

    network = conv_relu(builder)
    mid = network.get_layer(0).get_output(0)
    mid.name = "mid"
    assert network.mark_debug(mid)
    engine = builder.build_engine_with_config(network, builder.create_builder_config())
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["x", "y"]
    assert engine.is_debug_tensor("mid")
    engine = trt.Runtime(log).deserialize_cuda_engine(engine.serialize())
    context, y = engine.create_execution_context(), np.zeros((1, 4, 4, 4), np.float32)
    context.set_debug_listener(Listener())
    assert context.set_all_tensors_debug_state(True)
    assert context.execute_v2([X.ctypes.data, y.ctypes.data]) and list(shown) == ["mid"]
    np.testing.assert_array_equal(np.maximum(shown["mid"], 0), y)
    np.testing.assert_allclose(y, conv_relu_numpy(X), rtol=1e-4, atol=1e-4)


def test_numbers_of_an_input_as_offsets(builder, log):
    """An input decides where a slice starts but no shape: it still is read at every run."""
    network = builder.create_network(1)
    x = network.add_input("x", trt.float32, (6,))
    start = network.add_input("start", trt.int32, (1,))
    cut = network.add_slice(x, (0,), (2,), (1,))
    cut.set_input(1, start)
    cut.get_output(0).name = "y"
    network.mark_output(cut.get_output(0))
    engine = builder.build_engine_with_config(network, builder.create_builder_config())
    assert engine is not None, log.errors
    context = engine.create_execution_context()
    x, y, start = np.arange(6, dtype=np.float32), np.zeros(2, np.float32), np.zeros(1, np.int32)
    for i in (3, 0, 4):
        start[:] = i
        assert context.execute_v2([x.ctypes.data, start.ctypes.data, y.ctypes.data])
        assert y.tolist() == [i, i + 1]
