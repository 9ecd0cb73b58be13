"""Engines that carry their network: other weights, other machines."""

from pathlib import Path

import numpy as np
import pytest
from networks import B1, W1, Log, conv_relu, conv_relu_numpy

import tactician as trt
from tactician.plan.format import read_plan, write_plan
from tactician.support.errors import UsageError

X = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)


@pytest.fixture
def log():
    return Log()


def plan_with(log, *flags, mark=()):
    builder = trt.Builder(log)
    network, config = conv_relu(builder), builder.create_builder_config()
    network.get_layer(0).name = "conv"
    for name, array in (("W", W1), ("B", B1)):
        assert network.set_weights_name(array, name)
    for name in mark:
        assert network.mark_weights_refittable(name)
    config.builder_optimization_level = 1
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.errors
    return plan


def run(context):
    y = np.zeros((1, 4, 4, 4), np.float32)
    assert context.execute_v2([X.ctypes.data, y.ctypes.data])
    return y


def test_refit(log):
    engine = trt.Runtime(log).deserialize_cuda_engine(plan_with(log, "REFIT"))
    assert engine.refittable
    context = engine.create_execution_context()
    np.testing.assert_allclose(run(context), conv_relu_numpy(X), rtol=1e-4, atol=1e-4)
    refitter = trt.Refitter(engine, log)
    assert sorted(refitter.get_all_weights()) == ["B", "W"]
    assert set(zip(*refitter.get_all(), strict=True)) == {
        ("conv", trt.WeightsRole.KERNEL), ("conv", trt.WeightsRole.BIAS)}
    assert refitter.get_missing() == ([], [])
    assert refitter.get_weights_prototype("W").size == W1.size
    assert refitter.set_named_weights("W", trt.Weights(-W1))
    assert refitter.set_weights("conv", trt.WeightsRole.BIAS, np.zeros(4, np.float32))
    assert np.array_equal(refitter.get_named_weights("W").numpy(), -W1)
    assert refitter.refit_cuda_engine(), log.errors
    windows = np.lib.stride_tricks.sliding_window_view(X, (3, 3), axis=(2, 3))
    expected = np.maximum(np.einsum("nchwij,kcij->nkhw", windows, -W1), 0)
    for c in (context, engine.create_execution_context()):
        np.testing.assert_allclose(run(c), expected, rtol=1e-4, atol=1e-4)
    again = trt.Runtime(log).deserialize_cuda_engine(engine.serialize())
    np.testing.assert_allclose(run(again.create_execution_context()), expected, rtol=1e-4,
                               atol=1e-4)
    assert again.refittable and not log.errors


def test_refitting_with_the_same_weights_changes_nothing(log):
    plan = plan_with(log, "REFIT")
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    refitter = trt.Refitter(engine, log)
    refitter.set_named_weights("W", W1)
    assert refitter.refit_cuda_engine_async(0)
    assert engine.serialize() == plan


@pytest.mark.parametrize("name, weights, reason", [
    ("Q", W1, "no refittable weights 'Q'"), ("W", W1[:1], "got 18 elements"),
    ("W", W1.astype(np.float64), "DataType.FLOAT, got float64"), ("B", None, "got 0 elements"),
    ("B", np.full(4, np.nan, np.float32), "NaN or infinite"),
])
def test_wrong_weights(log, name, weights, reason):
    engine = trt.Runtime(log).deserialize_cuda_engine(plan_with(log, "REFIT"))
    assert trt.Refitter(engine, log).set_named_weights(name, weights) is False
    assert reason in log.errors


def test_only_marked_weights(log):
    engine = trt.Runtime(log).deserialize_cuda_engine(
        plan_with(log, "REFIT_INDIVIDUAL", mark=["B"])
    )
    refitter = trt.Refitter(engine, log)
    assert refitter.get_all_weights() == ["B"] and not refitter.set_named_weights("W", W1)


def test_engines_without_the_flag(log):
    engine = trt.Runtime(log).deserialize_cuda_engine(plan_with(log))
    assert not engine.refittable and engine._program.network is None
    with pytest.raises(UsageError, match=r"BuilderFlag\.REFIT"):
        trt.Refitter(engine, log)


def test_version_compatible_plans_rebuild_themselves(log):
    program = read_plan(plan_with(log, "VERSION_COMPATIBLE"))
    program.device = "x86_64-elsewhere-v512-000000000000"
    engine = trt.Runtime(log).deserialize_cuda_engine(bytes(write_plan(program)))
    assert "building it again now" in log.warnings
    got = run(engine.create_execution_context())
    np.testing.assert_allclose(got, conv_relu_numpy(X), rtol=1e-4, atol=1e-4)


def test_refit_from_another_model(log, tmp_path):
    """`OnnxParserRefitter` gives an engine the weights of a retrained model."""
    onnx = pytest.importorskip("onnx")

    from onnx import numpy_helper

    source = Path(trt.__file__).parent / "data" / "lenet_digits.onnx"
    model = onnx.load(source)
    for t in model.graph.initializer:
        array = numpy_helper.to_array(t)
        if array.dtype == np.float32:
            t.CopyFrom(numpy_helper.from_array(array * np.float32(0.9), t.name))
    onnx.save(model, tmp_path / "new.onnx")
    builder = trt.Builder(log)
    network, config = builder.create_network(1), builder.create_builder_config()
    assert trt.OnnxParser(network, log).parse_from_file(str(source))
    config.builder_optimization_level = 0
    config.set_flag(trt.BuilderFlag.REFIT)
    profile, name = builder.create_optimization_profile(), network.get_input(0).name
    profile.set_shape(name, *[(1, 1, 28, 28)] * 3)
    config.add_optimization_profile(profile)
    engine = builder.build_engine_with_config(network, config)
    assert engine is not None, log.errors
    parser = trt.OnnxParserRefitter(trt.Refitter(engine, log), log)
    assert parser.refit_from_file(str(tmp_path / "new.onnx")), log.errors
    assert parser.refitter.refit_cuda_engine()
    x = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    got = trt.Engine(engine)(x)
    fresh = trt.build(tmp_path / "new.onnx", level=0, logger=log)(x)
    for key, value in fresh.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)


class TestStrippedPlans:
    """STRIP_PLAN leaves out what a refitter can give again."""

    def test_weights_are_left_out_and_given_again(self, log):
        full, plan = plan_with(log, "REFIT"), plan_with(log, "STRIP_PLAN")
        assert W1.tobytes() in bytes(full) and W1.tobytes() not in bytes(plan)
        assert B1.tobytes() not in bytes(plan)
        engine = trt.Runtime(log).deserialize_cuda_engine(plan)
        assert engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) == W1.nbytes + B1.nbytes
        context = engine.create_execution_context()
        y = np.zeros((1, 4, 4, 4), np.float32)
        assert not context.execute_v2([X.ctypes.data, y.ctypes.data])
        assert "stripped of its weights" in log.errors and not y.any()
        refitter = trt.Refitter(engine, log)
        assert sorted(refitter.get_missing_weights()) == ["B", "W"]
        assert set(zip(*refitter.get_missing(), strict=True)) == {
            ("conv", trt.WeightsRole.KERNEL), ("conv", trt.WeightsRole.BIAS)}
        assert refitter.set_named_weights("W", W1)
        assert refitter.get_missing_weights() == ["B"]
        assert not refitter.refit_cuda_engine() and "B are missing" in log.errors
        assert refitter.set_named_weights("B", B1) and refitter.get_missing() == ([], [])
        assert refitter.refit_cuda_engine()
        np.testing.assert_allclose(run(context), conv_relu_numpy(X), rtol=1e-4, atol=1e-4)
        assert engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) == 0

    def test_engines_write_plans_without_weights(self, log):
        engine = trt.Runtime(log).deserialize_cuda_engine(plan_with(log, "REFIT"))
        config = engine.create_serialization_config()
        assert config.set_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        plan = engine.serialize_with_config(config)
        assert W1.tobytes() not in bytes(plan) and W1.tobytes() in bytes(engine.serialize())
        again = trt.Runtime(log).deserialize_cuda_engine(plan)
        refitter = trt.Refitter(again, log)
        assert refitter.set_named_weights("W", W1) and refitter.set_named_weights("B", B1)
        assert refitter.refit_cuda_engine(), log.errors
        got = run(again.create_execution_context())
        np.testing.assert_allclose(got, conv_relu_numpy(X), rtol=1e-4, atol=1e-4)
        assert config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        assert config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        assert engine.serialize_with_config(config) == engine.serialize()
        fixed = trt.Runtime(log).deserialize_cuda_engine(plan_with(log))
        config.set_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        assert fixed.serialize_with_config(config) == fixed.serialize()
        assert "can't be refitted, so it holds its weights" in log.warnings

    def test_a_model_fills_its_plan(self, log):
        source = Path(trt.__file__).parent / "data" / "lenet_digits.onnx"
        plans = {}
        for flag in (None, trt.BuilderFlag.STRIP_PLAN):
            builder = trt.Builder(log)
            network, config = builder.create_network(1), builder.create_builder_config()
            assert trt.OnnxParser(network, log).parse_from_file(str(source))
            config.builder_optimization_level = 0
            profile = builder.create_optimization_profile()
            profile.set_shape(network.get_input(0).name, *[(1, 1, 28, 28)] * 3)
            config.add_optimization_profile(profile)
            if flag is not None:
                config.set_flag(flag)
            plans[flag] = builder.build_serialized_network(network, config)
        full, bare = plans.values()
        assert len(bare) < len(full) / 4
        engine = trt.Runtime(log).deserialize_cuda_engine(bare)
        refitter = trt.Refitter(engine, log)
        assert trt.OnnxParserRefitter(refitter, log).refit_from_file(str(source)), log.errors
        assert refitter.refit_cuda_engine()
        x = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
        want = trt.Engine(trt.Runtime(log).deserialize_cuda_engine(full))(x)
        for name, value in trt.Engine(engine)(x).items():
            np.testing.assert_array_equal(value, want[name])

    def test_constants_and_masks(self, log):
        """Constant layers have weights, too; what isn't finite is no weight."""
        builder = trt.Builder(log)
        network, config = builder.create_network(1), builder.create_builder_config()
        weights = np.arange(6, dtype=np.float32).reshape(2, 3)
        mask = np.array([0, -np.inf, 0], np.float32)
        x = network.add_input("x", trt.float32, (2, 3))
        k = network.add_constant((2, 3), weights)
        m = network.add_constant((1, 3), mask)
        network.set_weights_name(weights, "K")
        network.set_weights_name(mask, "M")
        y = network.add_elementwise(x, k.get_output(0), trt.ElementWiseOperation.SUM)
        y = network.add_elementwise(y.get_output(0), m.get_output(0), trt.ElementWiseOperation.SUM)
        network.mark_output(y.get_output(0))
        config.builder_optimization_level = 0
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        engine = builder.build_engine_with_config(network, config)
        refitter = trt.Refitter(engine, log)
        assert refitter.get_all() == ([k.name], [trt.WeightsRole.CONSTANT])
        assert refitter.get_weights_location("K") == trt.TensorLocation.HOST
        assert refitter.set_weights(k.name, trt.WeightsRole.CONSTANT, weights * 10)
        assert refitter.unset_named_weights("K") and refitter.get_missing_weights() == ["K"]
        assert refitter.set_weights(k.name, trt.WeightsRole.CONSTANT, weights * 10)
        assert refitter.refit_cuda_engine(), log.errors
        a, b = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
        assert engine.create_execution_context().execute_v2([a.ctypes.data, b.ctypes.data])
        np.testing.assert_array_equal(b, 1 + weights * 10 + mask)
