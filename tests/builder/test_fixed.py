"""Profiles whose minimum is their maximum: the engine is the one for fixed shapes, and answers like
one for shapes that vary. Results are compared with onnxruntime."""

import copy

import numpy as np
import pytest

import tactician as trt
from tactician.plan.check import check_program
from tactician.runtime.easy import Engine
from tactician.support.errors import PlanError, TacticianError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, msg):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(msg)


def weights(*shape):
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def proto(nodes, shape, constants=()):
    graph = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(constants)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


A = weights(32, 32)
W = [weights(24, 3, 3, 3), weights(24), np.array([0, -1], np.int64), weights(24 * 81, 10)]


def conv(*shape):
    """A network that flattens by the size of its input."""
    return proto([
        helper.make_node("Conv", ["x", "w0", "w1"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "w2"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["y"]),
    ], shape, W)  # fmt: skip


def attention(*shape):
    return proto([
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("Softmax", ["c"], ["d"], axis=-1),
        helper.make_node("MatMul", ["d", "x"], ["y"]),
    ], shape, [A])  # fmt: skip


def build(model, *profiles, level=1, flags=(), log=None, times=None):
    """A plan; profiles are (min, opt, max) of the input, times a list with what a build before
    measured, or an empty one."""
    log = log or Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    assert trt.OnnxParser(network, log).parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    config.builder_optimization_level = level
    if times is not None:
        config.set_timing_cache(config.create_timing_cache(times[0] if times else b""), False)
    for flag in flags:
        config.set_flag(flag)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *ranges)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if times is not None:
        times[:] = [bytes(config.get_timing_cache().serialize())]
    return plan


def load(plan, log=None):
    return trt.Runtime(log or Log()).deserialize_cuda_engine(plan)


def check_against_ort(model, engine, shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    (got,) = Engine(engine)({"x": x}).values()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1])
def test_code_of_the_static_engine(level):
    shape, times = (2, 3, 20, 20), []
    static = load(build(conv(*shape), level=level, times=times))
    fixed = load(build(conv("n", 3, "h", 20), (shape,) * 3, level=level, times=times))
    a, b = static._program, fixed._program
    assert [bytes(c) for c in a.code] == [bytes(c) for c in b.code]
    assert a.arena_size == b.arena_size > 0
    assert not b.symbols and not any(s.special for s in b.steps)
    check_against_ort(conv("n", 3, "h", 20), fixed, shape)


def test_answers_are_those_of_shapes_that_vary():
    shape, log = (2, 3, 20, 20), Log()
    engine = load(build(conv("n", 3, "h", 20), (shape,) * 3), log)
    assert tuple(engine.get_tensor_shape("x")) == (-1, 3, -1, 20)
    assert tuple(engine.get_tensor_shape("y")) == (-1, 10)
    assert [tuple(s) for s in engine.get_tensor_profile_shape("x", 0)] == [shape] * 3
    context = engine.create_execution_context()
    assert tuple(context.get_tensor_shape("x")) == (-1, 3, -1, 20)
    assert tuple(context.get_tensor_shape("y")) == (-1, 10)
    assert not context.all_binding_shapes_specified
    assert list(context.infer_shapes()) == ["x"]
    assert not context.set_input_shape("x", (1, 3, 20, 20))
    assert "profile 0" in log.errors[-1]
    assert not context.set_input_shape("x", (2, 4, 20, 20))
    assert context.set_input_shape("x", shape)
    assert tuple(context.get_tensor_shape("y")) == (2, 10)
    assert list(context.infer_shapes()) == []


def test_some_sizes_fixed():
    ranges = ((1, 48, 32), (1, 48, 32), (4, 48, 32))
    engine = load(build(attention("n", "t", 32), ranges))
    assert [s.kind for s in engine._program.symbols.values()] == ["dim"]
    assert tuple(engine.get_tensor_shape("x")) == (-1, -1, 32)
    for n in (1, 3, 4):
        check_against_ort(attention("n", "t", 32), engine, (n, 48, 32))
    with pytest.raises(TacticianError):
        Engine(engine)({"x": np.zeros((1, 47, 32), np.float32)})


def test_profiles_that_differ():
    one, two = ((1, 3, 20, 20),) * 3, ((2, 3, 20, 20),) * 3
    engine = load(build(conv("n", 3, 20, 20), one, two))
    assert engine._program.symbols
    context = engine.create_execution_context()
    assert context.set_input_shape("x", one[0]) and not context.set_input_shape("x", two[0])
    assert context.set_optimization_profile_async(1, 0)
    assert context.set_input_shape("x", two[0])
    assert tuple(context.get_tensor_shape("y")) == (2, 10)
    same = load(build(conv("n", 3, 20, 20), one, one))
    assert not same._program.symbols


def branches():
    """Two ways to go, by what is in the input."""
    def body(name, *nodes, shape):
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        )

    shape = ["n", 6]
    return proto([
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "w0"], ["c"]),
        helper.make_node(
            "If", ["c"], ["y"],
            then_branch=body("p", helper.make_node("Mul", ["x", "w1"], ["p"]), shape=shape),
            else_branch=body("q", helper.make_node("Slice", ["x", "w2", "w3", "w2"], ["t"]),
                             helper.make_node("Concat", ["t", "x"], ["u"], axis=0),
                             helper.make_node("Slice", ["u", "w2", "w4", "w2"], ["q"]),
                             shape=["m", 6]),
        ),
    ], shape, [np.float32(0), weights(6), np.array([0], np.int64), np.array([1], np.int64),
               np.array([1 << 30], np.int64)])  # fmt: skip


def test_branches():
    model = branches()
    engine = load(build(model, ((3, 6),) * 3))
    for sign in (1, -1):
        x = sign * np.abs(RNG.standard_normal((3, 6))).astype(np.float32)
        (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
        (got,) = Engine(engine)({"x": x}).values()
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_refit_keeps_the_answers():
    shape = (2, 3, 20, 20)
    model = conv("n", 3, 20, 20)
    engine = load(build(model, (shape,) * 3, flags=[trt.BuilderFlag.REFIT]))
    refitter = trt.Refitter(engine, Log())
    parser = trt.OnnxParserRefitter(refitter, Log())
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(24, 3, 3, 3), "w0"))
    assert parser.refit_from_bytes(changed.SerializeToString())
    assert refitter.refit_cuda_engine()
    assert tuple(engine.get_tensor_shape("x")) == (-1, 3, 20, 20)
    check_against_ort(changed, engine, shape)


def test_implicit_batch_of_one():
    log = Log()
    builder = trt.Builder(log)
    builder.max_batch_size = 1
    network = trt.INetworkDefinition(0, log, builder, implicit_batch=True)
    x = network.add_input("x", trt.float32, (8, 6, 6))
    y = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    engine = load(builder.build_serialized_network(network, config))
    assert not engine._program.symbols
    assert tuple(engine.get_tensor_shape("x")) == (8, 6, 6)
    x = RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)
    (got,) = Engine(engine)({"x": x}).values()
    np.testing.assert_array_equal(got, np.maximum(x, 0))


def test_sizes_that_contradict_the_network():
    model = proto([helper.make_node("Add", ["x", "w0"], ["y"])], ["n"], [weights(5)])
    log = Log()
    assert build(model, ((4,),) * 3, log=log) is None
    assert any("4" in e and "5" in e for e in log.errors)
    assert any("the only sizes of the profiles (n = 4)" in e for e in log.errors)


@pytest.mark.parametrize(
    ("name", "shape"), [("x", (-1, 3)), ("x", (-1, 3, 20, 21)), ("z", (-1, 3, 20, 20))]
)
def test_damaged_declarations(name, shape):
    program = copy.copy(load(build(conv("n", 3, 20, 20), ((2, 3, 20, 20),) * 3))._program)
    check_program(program)
    program.settings = {**program.settings, "declared": {name: shape}}
    with pytest.raises(PlanError, match="declared shape"):
        check_program(program)
