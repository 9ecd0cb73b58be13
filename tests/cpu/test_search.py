"""Non-zero, compress and non-maximum suppression as native kernels: against numpy's references
(kernels by themselves) and onnxruntime (whole models, whose sizes depend on data)."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import device, sizes
from stage_checks import make

import tactician as trt
from tactician.ir import dims as D
from tactician.ops import evaluate
from tactician.regions.region import Region
from tactician.runtime.easy import Engine
from tactician.targets.cpu.search import SearchTactic

RNG = np.random.default_rng(0)


def run(op, *arrays, const=(), dynamic=False, **attrs):
    """What the kernel finds, as it lies in the memory for the most there can be."""
    node = make(op, *arrays, const=const, dynamic=dynamic, **attrs)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    tactic = SearchTactic()
    why = tactic.refuse(region, device())
    assert why is None, why
    kernel = tactic.build(region, "", device())
    env = sizes(node, arrays)
    memory = dict(zip(node.inputs, arrays, strict=True))
    for v in (*node.outputs, *kernel.found.values(), *(kernel.finds or ())[:1]):
        if v is not None and v in kernel.args:
            shape = [D.evaluate(d, env) for d in v.dims]
            memory[v] = np.full(shape, 99, v.dtype.np)
    given = [np.ascontiguousarray(memory[a]) for a in kernel.args]
    device().run_kernel(kernel, given, env)
    results = dict(zip(kernel.args, given, strict=True))
    if not kernel.found:
        return results[node.outputs[0]]
    (n,) = results[kernel.finds[0]]
    wanted = evaluate(node, *arrays)[0]
    packed = results[kernel.found[node.outputs[0]]].reshape(-1)
    per_element = wanted.size // max(1, wanted.shape[node.outputs[0].dims.index(_late(node))])
    return n, packed[: n * per_element]


def _late(node):
    return next(d for d in node.outputs[0].dims if not isinstance(d, int) and "%" in str(d))


def check(op, *arrays, const=(), **attrs):
    for dynamic in (False, True):
        wanted = evaluate(make(op, *arrays, const=const, **attrs), *arrays)[0]
        got = run(op, *arrays, const=const, dynamic=dynamic, **attrs)
        if isinstance(got, tuple):
            n, got = got
            assert n in wanted.shape
        np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("shape", [(5,), (64,), (67,), (3, 50), (2, 3, 4, 65)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int8, np.bool_])
def test_non_zero(shape, dtype):
    x = (RNG.random(shape) < 0.4).astype(dtype) * np.asarray(RNG.integers(1, 3, shape), dtype)
    check("non_zero", x)


def test_non_zero_takes_nan_and_leaves_negative_zero():
    x = np.array([0.0, -0.0, np.nan, 1e-40, -1, np.inf] * 7, np.float32)
    check("non_zero", x)
    check("non_zero", np.zeros((3, 70), np.float32))


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_compress(axis):
    x = RNG.standard_normal((4, 5, 70)).astype(np.float32)
    length = x.size if axis is None else x.shape[axis]
    cond = RNG.random(length) < 0.5
    node = make("compress", x, cond, axis=axis)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    assert SearchTactic().refuse(region, device()) is None
    for c in (cond, cond[: length // 2], np.zeros(length, bool)):
        wanted = np.compress(c, x, axis)
        n, got = run("compress", x, c, axis=axis)
        assert n == c.sum()
        np.testing.assert_array_equal(got[: wanted.size].reshape(wanted.shape), wanted)


def test_compress_by_a_constant_has_a_fixed_size():
    x = RNG.standard_normal((6, 3)).astype(np.float32)
    cond = np.array([True, False, True, True, False, False])
    got = run("compress", x, cond, const=(1,), axis=0)
    np.testing.assert_array_equal(got, x[cond])


def boxes(n, count, center):
    at = RNG.random((n, count, 2), np.float32) * 10
    size = RNG.random((n, count, 2), np.float32) * 3
    both = [at, size] if center else [at + size, at]  # corners in any order
    return np.concatenate(both, -1)


def limits(most, iou, score):
    return (np.array([most], np.int64), np.array([iou], np.float32),
            np.array([score], np.float32))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    "most,iou,score", [(3, 0.5, 0.3), (100, 0.0, 0.0), (100, 0.7, 2.0), (0, 0.5, 0.1), (7, 1.0, -9)]
)
def test_nms(center, most, iou, score):
    b = boxes(2, 83, center)
    s = RNG.random((2, 3, 83), np.float32)
    s[:, :, ::4] = s[:, :, 1:2]  # equal scores come in order of index
    check("nms", b, s, *limits(most, iou, score), const=(2, 3, 4), center_box=center)


def test_nms_scores_of_any_kind():
    """Negative, both zeros, infinite; NaN comes last where no score must be exceeded."""
    b = boxes(1, 40, False)
    s = RNG.standard_normal((1, 2, 40)).astype(np.float32)
    s[0, 0, :6] = [np.inf, -np.inf, 0.0, -0.0, np.nan, 1e-42]
    check("nms", b, s, *limits(40, 0.2, 0)[:2], const=(2, 3))
    check("nms", b, s, *limits(40, 0.2, -1), const=(2, 3, 4))


def test_kernels_refuse_what_they_cannot_bound():
    x = RNG.random((4, 8)).astype(np.float32)
    node = make("nms", boxes(1, 5, False).astype(np.float64), np.ones((1, 1, 5)), *limits(1, 1, 0))
    region = Region([node], anchor=node, outputs=list(node.outputs))
    assert "must be f32" in SearchTactic().refuse(region, device())
    node = make("non_zero", x)
    node.meta["data_dims"] = dict.fromkeys(node.meta["data_dims"])
    region = Region([node], anchor=node, outputs=list(node.outputs))
    assert "depends on data" in SearchTactic().refuse(region, device())


# --- in whole models ----------------------------------------------------------------------


def model(nodes, inputs, outputs):
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    kinds = {np.float32: onnx.TensorProto.FLOAT, np.int64: onnx.TensorProto.INT64}
    return helper.make_model(
        helper.make_graph(
            nodes, "m",
            [helper.make_tensor_value_info(n, kinds[t], s) for n, t, s in inputs],
            [helper.make_tensor_value_info(n, kinds[t], None) for n, t in outputs],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, msg):
        self.lines.append(msg)


def engine_of(proto, level, **shapes):
    builder = trt.Builder(Log())
    network = builder.create_network()
    parser = trt.OnnxParser(network, Log())
    assert parser.parse(proto.SerializeToString()), parser.get_error(0)
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    config.builder_optimization_level = level
    if shapes:
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(Log()).deserialize_cuda_engine(plan)


def kinds(engine):
    return [s.kind for s in engine._program.steps]


def compare(proto, engine, feeds):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = list(Engine(engine)(feeds).values())
    for a, b in zip(got, session.run(None, feeds), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [0, 3])
def test_detections_are_selected_natively(level):
    """Boxes kept, gathered and scaled behind NMS: no step in numpy, with another number of boxes
    at each run."""
    from onnx import helper, numpy_helper

    def const(name, array):
        value = numpy_helper.from_array(np.asarray(array))
        return helper.make_node("Constant", [], [name], value=value)

    nodes = [
        const("most", np.int64(20)), const("iou", np.float32(0.4)), const("least", np.float32(0.5)),
        helper.make_node("NonMaxSuppression", ["b", "s", "most", "iou", "least"], ["found"]),
        const("two", np.array([2], np.int64)), const("two_", np.int64(2)),
        helper.make_node("Gather", ["found", "two_"], ["which"], axis=1),
        const("zero", np.array([0], np.int64)),
        helper.make_node("Squeeze", ["b", "zero"], ["flat"]),
        helper.make_node("Gather", ["flat", "which"], ["picked"], axis=0),
        const("scale", np.array([1, 2, 3, 4], np.float32)),
        helper.make_node("Mul", ["picked", "scale"], ["y"]),
    ]
    proto = model(
        nodes, [("b", np.float32, (1, 90, 4)), ("s", np.float32, (1, 2, 90))],
        [("found", np.int64), ("y", np.float32)],
    )
    engine = engine_of(proto, level)
    assert "reference" not in kinds(engine) and "learn" in kinds(engine)
    for high in (1.0, 0.2, 0.7, 1.0):  # 0.2: nothing is found
        s = RNG.random((1, 2, 90), np.float32) * np.float32(high)
        compare(proto, engine, {"b": boxes(1, 90, False), "s": s})


def test_masks_become_indices_of_varying_inputs():
    from onnx import helper, numpy_helper

    zero = numpy_helper.from_array(np.zeros((), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("Greater", ["x", "zero"], ["m"]),
        helper.make_node("NonZero", ["m"], ["at"]),
        helper.make_node("Transpose", ["at"], ["rows"], perm=[1, 0]),
        helper.make_node("GatherND", ["x", "rows"], ["y"]),
        helper.make_node("Exp", ["y"], ["z"]),
    ]
    proto = model(
        nodes, [("x", np.float32, ("n", 33))], [("at", np.int64), ("z", np.float32)]
    )
    engine = engine_of(proto, 0, x=((1, 33), (4, 33), (9, 33)))
    assert "reference" not in kinds(engine)
    for n in (4, 1, 9, 4):
        compare(proto, engine, {"x": RNG.standard_normal((n, 33)).astype(np.float32)})
