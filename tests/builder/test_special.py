"""Kernels for a profile's ``opt`` sizes beside the general ones: results at all sizes, and which of
them run. Compared with onnxruntime."""

import numpy as np
import pytest

import tactician as trt
from tactician.builder import compile as compiling
from tactician.plan.program import CONST
from tactician.runtime.easy import Engine

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)


class Log(trt.ILogger):
    def log(self, severity, msg):
        pass


def weights(*shape):
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def model(kind):
    """A network whose batch (and length) varies."""
    if kind == "conv":
        shape, w = ("n", 3, 20, 20), [weights(24, 3, 3, 3), weights(24), weights(16, 24, 1, 1)]
        nodes = [
            helper.make_node("Conv", ["x", "w0", "w1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["c", "w2"], ["d"]),
            helper.make_node("GlobalAveragePool", ["d"], ["y"]),
        ]
    else:
        shape, w = ("n", "t", 32), [weights(32, 96), weights(96), weights(96, 32)]
        nodes = [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("Add", ["a", "w1"], ["b"]),
            helper.make_node("Tanh", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "w2"], ["d"]),
            helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["d", "e"], ["f"]),
            helper.make_node("Softmax", ["f"], ["g"], axis=-1),
            helper.make_node("MatMul", ["g", "x"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(w)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SHAPES = {
    "conv": ((1, 3, 20, 20), (4, 3, 20, 20), (6, 3, 20, 20)),
    "attention": ((1, 2, 32), (2, 48, 32), (4, 64, 32)),
}


def engine_of(proto, shapes, level):
    builder = trt.Builder(Log())
    network = builder.create_network()
    parser = trt.OnnxParser(network, Log())
    assert parser.parse(proto.SerializeToString())
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    config.builder_optimization_level = level
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(Log()).deserialize_cuda_engine(plan)


def special_steps(engine, shape):
    context = engine.create_execution_context()
    assert context.set_input_shape("x", shape)
    steps = context._require_schedule()._steps
    general = engine._program.steps
    return sum(a is not b for a, b in zip(steps, general, strict=True))


def every_version(monkeypatch, times):
    """Keeps versions that take up to so many times as long as the general kernel."""
    for limit in ("_GAIN", "_NEAR", "_SAME"):
        monkeypatch.setattr(compiling, limit, times)


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_results_are_the_same_at_all_sizes(kind, level, monkeypatch):
    every_version(monkeypatch, 1e9)
    proto = model(kind)
    engine = engine_of(proto, SHAPES[kind], level)
    low, opt, high = SHAPES[kind]
    made = sum(s.special is not None for s in engine._program.steps)
    assert made >= 3
    assert special_steps(engine, opt) == made
    assert special_steps(engine, low) == special_steps(engine, high) == 0
    assert all(not s.special.dims for s in engine._program.steps if s.special)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    run = Engine(engine)
    for shape in (opt, low, high, opt, (3, *opt[1:])):
        x = RNG.standard_normal(shape).astype(np.float32)
        (want,) = session.run(None, {"x": x})
        got = run(x)["y"]
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-4 * np.ptp(want))


def test_versions_that_gain_nothing_are_left_out(monkeypatch):
    every_version(monkeypatch, 0.0)
    engine = engine_of(model("conv"), SHAPES["conv"], 3)
    assert all(s.special is None for s in engine._program.steps if "time_us" in s.info)


def test_shared_weights_where_another_gains_nothing(monkeypatch):
    """Versions for opt that read the general kernels' weights cost nothing but code."""
    monkeypatch.setattr(compiling, "_GAIN", 0.0)
    monkeypatch.setattr(compiling, "_NEAR", 1e9)
    monkeypatch.setattr(compiling, "_SAME", 1e9)
    engine = engine_of(model("conv"), SHAPES["conv"], 3)
    program = engine._program
    versions = [s for s in program.steps if "time_us" in s.info and s.special]
    assert versions
    for step in versions:
        assert step.special.info["tactic"] == step.info["tactic"]
        constants = {t for t in step.special.args if program.tensors[t].kind == "const"}
        assert constants <= set(step.args)


def test_level_0_makes_no_versions():
    engine = engine_of(model("conv"), SHAPES["conv"], 0)
    assert all(s.special is None for s in engine._program.steps)
    assert engine._program.opt == {}


def test_packed_weights_are_shared_where_they_are_the_same(monkeypatch):
    """A version with the same tile reads the general kernel's constants."""
    every_version(monkeypatch, 1e9)
    engine = engine_of(model("conv"), SHAPES["conv"], 1)
    program = engine._program
    steps = [s for s in program.steps if s.special is not None]
    assert any(program.tensors[t].kind == CONST for s in steps for t in s.special.args)
    for step in steps:
        numbers = {t for t in (*step.args, *step.special.args) if program.tensors[t].kind == CONST}
        arrays = [program.constants[program.tensors[t].ref] for t in numbers]
        assert len({(a.shape, a.dtype.str, a.tobytes()) for a in arrays}) == len(arrays)


def test_what_shares_constants_wins_within_a_band():
    """The tuner takes the general kernel's candidate while it is hardly slower."""
    from tactician.ir.graph import Graph
    from tactician.ops import emit
    from tactician.regions.fuse import fuse
    from tactician.tactics.tuner import Tuner, TunerSettings
    from tactician.targets.cpu import load_tactics
    from tactician.targets.cpu.device import CpuDevice

    load_tactics()
    graph = Graph()
    x = graph.add_input("x", "f32", (64, 96))
    graph.outputs = [emit(graph, "matmul", [x, graph.constant(weights(96, 128))], "m").output]
    (region,) = fuse(graph).regions
    tuner = Tuner(CpuDevice(threads=1), TunerSettings(level=5, cache={}, seconds=1e-4))
    first, second = list(tuner.choose(region).info["times_us"])[:2]
    entry = {"times": {first: 100.0, second: 104.0}}
    tuner.settings.cache[tuner.key(region)] = entry

    def label(like):
        choice = tuner.choose(region, like)
        return f"{choice.tactic}({choice.candidate})"

    assert label("") == first
    assert label(second) == second
    entry["times"][second] = 106.0
    assert label(second) == first
