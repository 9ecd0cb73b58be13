"""Builder and configuration: what each setting does, or says that it doesn't do."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Log, Net, close, f32

import tactician as trt
from tactician.support.errors import ExecutionError

F = trt.BuilderFlag


def conv_net(**size):
    net = Net()
    x = net.input(f32(1, 8, size.get("n", 10), 10), "x")
    layer = net.network.add_convolution_nd(x, 8, (3, 3), f32(8, 8, 3, 3), f32(8))
    layer.name = "conv"
    return net, layer.get_output(0)


def conv_step(engine):
    return next(s for s in engine._program.steps
                if "convolution" in s.info.get("ops", ()) and "times_us" in s.info)


class TestBuilder:
    def test_facts(self):
        from tactician.targets.cpu.isa import Isa

        builder = trt.Builder(Log())
        assert builder.num_DLA_cores == 0 and builder.max_DLA_batch_size == 0
        assert builder.platform_has_fast_int8 is bool(Isa.host().int8_dot)
        assert builder.platform_has_fast_fp16 is bool(Isa.host().f16_arith)
        assert builder.platform_has_tf32 is False

    def test_facts_of_gpus(self, monkeypatch):
        monkeypatch.setenv("TACTICIAN_DEVICE", "gpu")
        monkeypatch.setenv("TACTICIAN_GPU", "null")
        builder = trt.Builder(Log())
        assert builder.platform_has_tf32 and builder.platform_has_fast_fp16
        assert builder.platform_has_fast_int8

    def test_reset(self):
        builder = trt.Builder(Log())
        builder.max_threads, builder.max_batch_size, builder.fp16_mode = 3, 4, True
        builder.reset()
        assert (builder.max_threads, builder.max_batch_size) == (0, 1) and not builder.fp16_mode

    def test_registry(self):
        assert trt.init_libnvinfer_plugins(Log(), "")
        registry = trt.Builder(Log()).get_plugin_registry()
        assert registry is trt.get_plugin_registry()
        assert "EfficientNMS_TRT" in {c.name for c in registry.all_creators}

    def test_allocator_of_the_builder_serves_its_engines(self):
        class Heap(trt.IGpuAllocator):
            def __init__(self):
                trt.IGpuAllocator.__init__(self)
                self.blocks = {}

            def allocate(self, size, alignment, flags):
                block = np.empty(size + alignment, np.uint8)
                address = block.ctypes.data + -block.ctypes.data % alignment
                self.blocks[address] = block
                return address

            def deallocate(self, memory):
                return self.blocks.pop(memory, None) is not None

        net, y = conv_net()
        z = net.network.add_softmax(y).get_output(0)
        heap = net.builder.gpu_allocator = Heap()
        engine = net.engine(net.network.add_unary(z, trt.UnaryOperation.EXP).get_output(0))
        context = engine.create_execution_context()
        out = np.empty(tuple(engine.get_tensor_shape("y0")), np.float32)
        assert context.execute_v2([net.feeds["x"].ctypes.data, out.ctypes.data])
        assert sum(b.nbytes for b in heap.blocks.values()) >= engine.device_memory_size > 0
        del context
        assert not heap.blocks

    def test_calibrator_of_version_7(self):
        """`builder.int8_mode` and `int8_calibrator` quantize."""
        net = Net()
        x = net.input(f32(4, 16), "x")
        w = net.const(f32(16, 96))
        n = trt.MatrixOperation.NONE
        y = net.network.add_matrix_multiply(x, n, w, n).get_output(0)
        y.name = "y"
        net.network.mark_output(y)

        class Calibrator(trt.IInt8MinMaxCalibrator):
            def __init__(self):
                trt.IInt8MinMaxCalibrator.__init__(self)
                self.left, self.cache = 2, b""
                self.batch = f32(4, 16)

            def get_batch_size(self):
                return 4

            def get_batch(self, names):
                self.left -= 1
                return [self.batch.ctypes.data] if self.left >= 0 else None

            def read_calibration_cache(self):
                return None

            def write_calibration_cache(self, cache):
                self.cache = bytes(cache)

        calibrator = Calibrator()
        net.builder.int8_mode, net.builder.int8_calibrator = True, calibrator
        assert net.builder.int8_mode and net.builder.int8_calibrator is calibrator
        engine = net.builder.build_cuda_engine(net.network)
        assert engine is not None and b"x" in calibrator.cache
        assert calibrator.get_algorithm() == trt.CalibrationAlgoType.MINMAX_CALIBRATION
        y = trt.Engine(engine)(f32(4, 16))["y"]
        want = f32(4, 16) @ f32(16, 96)
        assert abs(y - want).max() < 0.1 * abs(want).max()


class TestProfiles:
    def test_count_and_calibration_profile(self):
        config = trt.Builder(Log()).create_builder_config()
        assert config.num_optimization_profiles == 0 and config.get_calibration_profile() is None
        profile = trt.Builder(Log()).create_optimization_profile()
        profile.set_shape("x", (1, 2), (3, 2), (5, 2))
        assert config.add_optimization_profile(profile) == 0
        assert config.num_optimization_profiles == 1
        assert config.set_calibration_profile(profile)
        assert config.get_calibration_profile() is profile
        assert config.settings().calibration_profile.shapes["x"][1] == (3, 2)

    def test_extra_memory_target_says_that_it_has_no_effect(self):
        net = Net()
        x = net.input(f32(3, 2), "x", (-1, 2))
        net.profile.extra_memory_target = 0.5
        assert net.profile.extra_memory_target == 0.5
        net.run(net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0))
        assert "extra_memory_target of profile 0 has no effect" in net.log.text()

    def test_several_profiles_and_shape_values(self):
        """Each profile has its own shapes and its own values of shape inputs."""
        net = Net()
        x = net.network.add_input("x", trt.float32, (-1, 4))
        to = net.network.add_input("to", trt.int64, (2,))
        layer = net.network.add_shuffle(x)
        layer.set_input(1, to)
        y = net.network.add_unary(layer.get_output(0), trt.UnaryOperation.NEG).get_output(0)
        ranges = [((1, 2), (2, 4), (4, 8)), ((5, 4), (6, 8), (9, 18))]
        for k, values in enumerate(ranges):
            profile = net.builder.create_optimization_profile()
            rows = [(1, 4), (2, 4), (4, 4)] if k == 0 else [(5, 4), (8, 4), (9, 4)]
            profile.set_shape("x", *rows)
            profile.set_shape_input("to", *values)
            assert profile.get_shape_input("to") == [list(v) for v in values]
            assert net.config.add_optimization_profile(profile) == k
        engine = net.engine(y)
        assert engine.num_optimization_profiles == 2
        assert engine.get_tensor_profile_values("to", 1) == [[5, 4], [6, 8], [9, 18]]
        assert [tuple(s) for s in engine.get_tensor_profile_shape("x", 1)][2] == (9, 4)
        assert engine.get_profile_shape_input(1, "to") == [[5, 4], [6, 8], [9, 18]]
        context = engine.create_execution_context()
        data = f32(8, 4)
        sizes, out = np.array([4, 8], np.int64), np.zeros((4, 8), np.float32)
        assert not context.set_input_shape("x", (8, 4))  # profile 0 ends at 4
        assert context.set_optimization_profile_async(1, 0)
        assert context.active_optimization_profile == 1
        assert context.set_input_shape("x", (8, 4))
        for name, array in (("x", data), ("to", sizes), ("y0", out)):
            assert context.set_tensor_address(name, array.ctypes.data)
        assert context.infer_shapes() == [] and tuple(context.get_tensor_shape("y0")) == (4, 8)
        assert context.execute_async_v3(0)
        np.testing.assert_array_equal(out, -data.reshape(4, 8))


class TestConfiguration:
    def test_quantization_flags(self):
        net, y = conv_net()
        flag = trt.QuantizationFlag.CALIBRATE_BEFORE_FUSION
        net.config.set_quantization_flag(flag)
        assert net.config.get_quantization_flag(flag) and net.config.quantization_flags == 1
        net.engine(y)
        assert "config.quantization_flags has no effect" in net.log.text()
        net.config.clear_quantization_flag(flag)
        assert not net.config.get_quantization_flag(flag)

    @pytest.mark.parametrize("feature, said", [
        (trt.PreviewFeature.MULTIDEVICE_RUNTIME_10_16, True),
        (trt.PreviewFeature.FASTER_DYNAMIC_SHAPES_0805, True),
        (trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, True),
        (trt.PreviewFeature.PROFILE_SHARING_0806, False),
        (trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, False),
        (trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, False),
    ])
    def test_preview_features(self, feature, said):
        net, y = conv_net()
        net.config.set_preview_feature(feature, True)
        assert net.config.get_preview_feature(feature)
        net.engine(y)
        assert (f"{feature} has no effect" in net.log.text()) is said
        net.config.set_preview_feature(feature, False)
        assert not net.config.get_preview_feature(feature)

    @pytest.mark.parametrize("pool", [
        trt.MemoryPoolType.DLA_MANAGED_SRAM, trt.MemoryPoolType.DLA_LOCAL_DRAM,
        trt.MemoryPoolType.DLA_GLOBAL_DRAM, trt.MemoryPoolType.TACTIC_DRAM,
        trt.MemoryPoolType.TACTIC_SHARED_MEMORY,
    ])
    def test_pools_that_limit_nothing_say_so(self, pool):
        net, y = conv_net()
        net.config.set_memory_pool_limit(pool, 4096)
        assert net.config.get_memory_pool_limit(pool) == 4096
        net.engine(y)
        assert f"set_memory_pool_limit({pool}) has no effect" in net.log.text()

    def test_workspace_limits_what_kernels_take(self):
        def scratch(limit):
            net = Net()
            q = net.input(f32(1, 1, 64, 32), "q")
            a = net.network.add_attention(q, q, q)
            if limit is not None:
                net.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
            engine = net.engine(a.get_output(0))
            y = trt.Engine(engine)(net.feeds)["y0"]
            return max(s.scratch for s in engine._program.steps), y

        free, want = scratch(None)
        least, got = scratch(0)
        assert free > 0 and least == 0
        close(got, want, 1e-4)

    def test_strict_nans_keep_nans_where_they_are(self):
        x = f32(1, 16, 24, 24)
        x[0, 3, 10, 10] = np.nan
        for flags in ((), (F.STRICT_NANS,)):
            net = Net()
            layer = net.network.add_convolution_nd(
                net.input(x, "x"), 16, (3, 3), f32(16, 16, 3, 3))
            for flag in flags:
                net.config.set_flag(flag)
            net.config.builder_optimization_level = 5
            net.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            engine = net.engine(layer.get_output(0))
            assert "has no effect" not in net.log.text()
            step = conv_step(engine)
            why = step.info.get("rejected", {}).get("conv_winograd", "")
            assert ("NaN and infinity" in why) is bool(flags)
            assert not any("winograd" in t for t in step.info["times_us"]) or not flags
            y = trt.Engine(engine)(x)["y0"]
            if flags:
                assert np.isnan(y[0]).any(0).sum() == 9

    def test_level_of_programs_that_set_none(self, monkeypatch):
        net, _ = conv_net()
        config = trt.Builder(net.log).create_builder_config()
        assert config.builder_optimization_level == 3
        monkeypatch.setenv("TACTICIAN_OPTIMIZATION_LEVEL", "0")
        config.reset()
        assert config.builder_optimization_level == 0
        config.builder_optimization_level = 1
        assert config.builder_optimization_level == 1
        monkeypatch.setenv("TACTICIAN_OPTIMIZATION_LEVEL", "6")
        with pytest.raises(ValueError, match="'6'; it goes from 0 to 5"):
            config.reset()

    def test_device_types_of_layers(self):
        net, _ = conv_net()
        layer = net.network.get_layer(0)
        assert not net.config.is_device_type_set(layer) and not net.config.can_run_on_DLA(layer)
        net.config.set_device_type(layer, trt.DeviceType.DLA)
        assert net.config.get_device_type(layer) == trt.DeviceType.DLA
        net.config.reset_device_type(layer)
        assert not net.config.is_device_type_set(layer)
        net.config.DLA_core = 1
        assert net.config.DLA_core == 1

    @pytest.mark.parametrize("name, value", [
        ("l2_limit_for_tiling", 1 << 20), ("remote_auto_tuning_config", "host:1")])
    def test_settings_without_effect(self, name, value):
        net, y = conv_net()
        setattr(net.config, name, value)
        assert getattr(net.config, name) == value
        net.engine(y)
        assert f"config.{name} has no effect" in net.log.text()

    def test_number_of_tactics(self):
        counts = []
        for most in (-1, 1):
            net, y = conv_net()
            assert net.config.max_num_tactics == -1
            net.config.max_num_tactics = most
            net.config.builder_optimization_level = 5
            counts.append(len(conv_step(net.engine(y)).info["times_us"]))
        assert counts[0] > counts[1] == 1

    def test_build_routes(self):
        net, y = conv_net()
        assert net.config.all_build_routes == [] and net.config.build_route == ""
        net.config.build_route = "fast"
        net.engine(y)
        assert "config.build_route has no effect" in net.log.text()

    def test_tactic_sources_are_kept_by_the_engine(self):
        net, y = conv_net()
        bits = 1 << int(trt.TacticSource.CUDNN) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
        assert net.config.set_tactic_sources(bits) and net.config.get_tactic_sources() == bits
        assert net.engine(y).tactic_sources == bits
        plain, y = conv_net()
        assert plain.engine(y).tactic_sources == plain.config.get_tactic_sources() == 31

    @pytest.mark.parametrize("level", [
        trt.HardwareCompatibilityLevel.NONE, trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY])
    def test_hardware_compatibility(self, level):
        net, y = conv_net()
        net.config.hardware_compatibility_level = level
        engine = net.engine(y)
        assert engine.hardware_compatibility_level == level
        from tactician.targets.cpu.isa import Isa

        if level != trt.HardwareCompatibilityLevel.NONE and Isa.host().triple.startswith("x86_64"):
            assert engine._program.device == Isa.named("haswell").fingerprint


class Selector(trt.IAlgorithmSelector):
    """Takes the slowest algorithm, and notes what it was shown."""

    def __init__(self, answer=None):
        trt.IAlgorithmSelector.__init__(self)
        self.answer, self.seen, self.chosen = answer, {}, []

    def select_algorithms(self, context, choices):
        self.seen[context.name] = context, choices
        if self.answer is not None:
            return self.answer
        return [max(range(len(choices)), key=lambda i: choices[i].timing_msec)]

    def report_algorithms(self, contexts, choices):
        self.chosen = list(zip(contexts, choices, strict=True))


class TestAlgorithmSelector:
    def build(self, selector, *flags):
        net, y = conv_net()
        net.config.builder_optimization_level = 5
        net.config.algorithm_selector = selector
        assert net.config.algorithm_selector is selector
        for flag in flags:
            net.config.set_flag(flag)
        y.name = "y"
        net.network.mark_output(y)
        return net, net.builder.build_engine_with_config(net.network, net.config)

    def test_it_sees_and_chooses(self):
        selector = Selector()
        net, engine = self.build(selector)
        assert engine is not None, net.log.errors
        name = next(n for n in selector.seen if n.startswith("conv"))
        context, choices = selector.seen[name]
        assert (context.num_inputs, context.num_outputs) == (3, 1)
        assert [tuple(s) for s in context.get_shape(0)] == [(1, 8, 10, 10)] * 3
        assert tuple(context.get_shape(3)[0]) == (1, 8, 8, 8)
        assert len(choices) > 1 and all(c.timing_msec > 0 for c in choices)
        assert all(c.workspace_size >= 0 for c in choices)
        variants = [(c.algorithm_variant.implementation, c.algorithm_variant.tactic)
                    for c in choices]
        assert len(set(variants)) == len(choices)
        info = choices[0].get_algorithm_io_info(0)
        strides = {trt.TensorFormat.LINEAR: (800, 100, 10, 1), trt.TensorFormat.HWC:
                   (800, 1, 80, 8)}[info.tensor_format]
        assert info.dtype == trt.float32 and tuple(info.strides) == strides
        weights = choices[0].get_algorithm_io_info(1)
        assert weights.tensor_format == trt.TensorFormat.LINEAR
        assert (info.vectorized_dim, info.components_per_element) == (-1, 1)
        assert choices[0].get_algorithm_io_info(9) is None
        slowest = max(choices, key=lambda c: c.timing_msec)
        got = {c.name: a for c, a in selector.chosen}[name]
        assert got.algorithm_variant.tactic == slowest.algorithm_variant.tactic
        close(trt.Engine(engine)(net.feeds)["y"].shape, (1, 8, 8, 8))

    def test_no_answer_leaves_the_choice_to_the_builder(self):
        net, engine = self.build(Selector([]))
        assert engine is not None and not net.log.errors

    def test_no_answer_may_fail_the_build(self):
        net, engine = self.build(Selector([]), F.REJECT_EMPTY_ALGORITHMS)
        assert engine is None and "left no algorithm for layer" in net.log.errors

    def test_wrong_answers_fail_the_build(self):
        net, engine = self.build(Selector([1000]))
        assert engine is None and "numbered from 0" in net.log.errors

    def test_by_default_everything_goes(self):
        class Plain(trt.IAlgorithmSelector):
            pass

        net, engine = self.build(Plain())
        assert engine is not None and not net.log.errors


class TestTimingCache:
    def test_editing(self):
        """With EDITABLE_TIMING_CACHE the log has the keys; `update` decides what builds take."""
        net, y = conv_net()
        net.config.builder_optimization_level = 5
        net.config.set_flag(F.EDITABLE_TIMING_CACHE)
        y.name = "y"
        net.network.mark_output(y)
        cache = net.config.create_timing_cache(b"")
        assert net.config.set_timing_cache(cache, False)
        assert net.config.get_timing_cache() is cache
        first = net.builder.build_engine_with_config(net.network, net.config)
        line = next(m for _, m in net.log.lines if "layer 'conv" in m and "cache key" in m)
        text = line.partition("cache key ")[2].partition(",")[0]
        key = trt.TimingCacheKey.parse(text)
        assert str(key) == text and key in cache.queryKeys()
        entry = cache.entries[text]["times"]
        from tactician.builder.timing_cache import tactic_hash

        chosen = conv_step(first).info
        other = next(t for t, us in entry.items()
                     if us is not None and t != f"{chosen['tactic']}({chosen['candidate']})")
        assert cache.query(key).timingMSec > 0
        assert cache.update(key, trt.TimingCacheValue(tactic_hash(other), 0.001))
        assert cache.query(key).tacticHash == tactic_hash(other)
        second = net.builder.build_engine_with_config(net.network, net.config)
        step = conv_step(second).info
        assert f"{step['tactic']}({step['candidate']})" == other
        merged = net.config.create_timing_cache(b"")
        assert merged.combine(cache, True) and merged.serialize() == cache.serialize()
        assert merged.reset() and merged.queryKeys() == []

    def test_a_build_may_insist_on_the_cache(self):
        net, y = conv_net()
        net.config.builder_optimization_level = 5
        net.config.set_flag(F.ERROR_ON_TIMING_CACHE_MISS)
        assert "ERROR_ON_TIMING_CACHE_MISS" in net.fails(y)


def test_broken_selectors_and_monitors_name_the_defect():
    """What a program's own callback raises reaches the log, not a crash."""
    class Broken(trt.IAlgorithmSelector):
        def select_algorithms(self, context, choices):
            raise KeyError("mine")

    net, y = conv_net()
    net.config.algorithm_selector = Broken()
    assert "mine" in net.fails(y)
    assert not issubclass(KeyError, ExecutionError)
