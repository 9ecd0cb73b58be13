"""Narrow types: where f32 networks compute in f16 or bf16, and where they don't."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import shared_path

import tactician as trt
from tactician.ir import dtypes as T
from tactician.ir.graph import Graph
from tactician.ir.verify import verify
from tactician.onnx_backend import load_network
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import narrow, optimize
from tactician.support.errors import BuildError
from tactician.targets.cpu import isa
from tactician.targets.cpu.device import CpuDevice

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """A CPU without products of bf16, whatever this one has."""
    host = replace(isa.Isa.host(), bf16_dot=False)
    monkeypatch.setattr(isa, "_host", lambda: host)


def randn(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype("f4")


class Net:
    """A graph under construction."""

    def __init__(self, *shape):
        self.g = Graph("t")
        self.x = self.g.add_input("x", "f32", shape)

    def op(self, name, *inputs, meta=None, **attrs):
        values = [self.g.constant(i) if isinstance(i, (np.ndarray, np.generic)) else i
                  for i in inputs]
        return emit(self.g, name, values, name, meta=meta, **attrs).outputs[0]

    def conv(self, x, k, scale=0.2, **kw):
        w = randn(k, x.dims[1], 3, 3, scale=scale)
        return self.op("convolution", x, w, randn(k), pre=(1, 1), post=(1, 1), **kw)

    def finish(self, y, to="f16", constraints="none", allowed=("f16", "bf16")):
        """Narrows; returns the ops, each with its result's type."""
        self.g.outputs = [y]
        y.name = "y"
        feed = randn(*self.x.dims)
        want = run_graph(self.g, [feed])[0]
        optimize(self.g)
        self.report = narrow(self.g, to and T.dtype(to), constraints, frozenset(allowed))
        verify(self.g)
        got = run_graph(self.g, [feed])[0]
        assert got.dtype == np.float32 and self.g.outputs[0].name == "y"
        assert np.abs(got - want).max() <= (2e-2 if to == "bf16" else 4e-3) * np.abs(want).max()
        return [f"{n.op} {n.outputs[0].dtype}" for n in self.g.nodes]


@pytest.mark.parametrize("to", ["f16", "bf16"])
def test_a_residual_block_is_narrow_throughout(to):
    n = Net(1, 4, 8, 8)
    a = n.op("activation", n.conv(n.x, 8), fn="relu")
    b = n.op("activation", n.conv(a, 8), fn="relu")
    c = n.op("pooling", n.op("binary", b, a, fn="add"), fn="max", window=(2, 2), stride=(2, 2))
    assert n.finish(n.conv(c, 4), to) == [
        f"cast {to}", *[f"convolution {to}", f"activation {to}"] * 2, f"binary {to}",
        f"pooling {to}", f"convolution {to}", "cast f32"]  # fmt: skip


def test_what_surrounds_contractions_stays_wide():
    n = Net(1, 4, 8, 8)
    before = n.op("binary", n.op("binary", n.x, np.float32(0.5), fn="sub"), n.x, fn="mul")
    y = n.op("activation", n.conv(before, 8), fn="sigmoid")
    assert n.finish(n.op("binary", y, np.float32(640), fn="mul")) == [
        "binary f32", "binary f32", "cast f16", "convolution f16", "cast f32", "activation f32",
        "binary f32"]  # fmt: skip


@pytest.mark.parametrize("weight,stays", [(1e5, True), (6e4, False)])
def test_weights_beyond_f16_keep_the_layer_wide(weight, stays):
    n = Net(2, 8)
    w = randn(8, 8, scale=0.1)
    w[0, 0] = weight
    ops = n.finish(n.op("matmul", n.x, w))
    assert ("matmul f32" in ops) is stays
    assert [layer for layer, why in n.report.kept if "beyond FP16" in why] == ["matmul"] * stays


def test_weights_of_any_size_fit_bf16():
    n = Net(2, 8)
    assert "matmul bf16" in n.finish(n.op("matmul", n.x, randn(8, 8) * 1e5), "bf16")


def test_small_and_large_constants_stay_wide():
    n = Net(2, 8)
    y = n.op("matmul", n.x, randn(8, 8))
    y = n.op("binary", y, np.float32(1e-7), fn="add")
    y = n.op("binary", y, np.float32(-1e30), fn="max")
    assert Counter(n.finish(n.op("matmul", y, randn(8, 8)))) == Counter(
        ["matmul f16"] * 2 + ["binary f32"] * 2 + ["cast f16"] * 2 + ["cast f32"] * 2
        + ["activation f32"])  # which clips what may be beyond f16


def test_masks_of_attention_cause_no_infinities():
    n = Net(1, 2, 4, 8)
    mask = np.where(np.tri(4, dtype=bool), 0, -3e38).astype("f4")
    s = n.op("binary", n.op("matmul", n.x, n.x, tb="transpose"), mask, fn="add")
    y = n.op("matmul", n.op("softmax", s, axes=(3,)), n.x)
    ops = n.finish(y)
    assert "binary f32" in ops and ops.count("matmul f16") == 2


def test_statistics_and_logarithms_stay_wide():
    n = Net(2, 8)
    y = n.op("matmul", n.x, randn(8, 8))
    d = n.op("binary", y, y, fn="mul")
    y = n.op("unary", n.op("binary", n.op("activation", n.op("matmul", d, randn(8, 8)), fn="relu"),
                           np.float32(1), fn="add"), fn="log")
    ops = n.finish(y)
    assert ops.count("binary f32") == 2 and "unary f32" in ops


def test_bodies_of_conditionals_are_narrowed_too():
    model = onnx.load(shared_path("models", "silero_vad.onnx"))
    g = load_network(model).lower_control()
    optimize(g)
    assert narrow(g, T.f16).narrowed > 20 and verify(g) is None


CASES = [
    ("mnist_8.onnx", 2e-3, 2e-2), ("micro_kws_m_static_fp32.onnx", 2e-3, 2e-2),
    ("FastestDet.onnx", 2e-2, None), ("basic_pitch_nmp.onnx", 2e-2, 2e-2),
    ("magika_standard_v3_3.onnx", 2e-2, 2e-2), ("silero_vad_16k_sequence.onnx", 2e-2, None),
    ("ultraface_rfb_320.onnx", 2e-2, 2e-2),
]  # fmt: skip


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("name,f16,bf16", CASES, ids=[c[0] for c in CASES])
def test_real_models(name, f16, bf16, to):
    limit = {"f16": f16, "bf16": bf16}[to]
    if limit is None:
        pytest.skip("bf16 has too few digits for this model")
    path = shared_path("models", name)
    g = load_network(onnx.load(path)).lower_control()
    optimize(g)
    narrow(g, T.dtype(to))
    with np.load(f"{path}.npz") as run:
        got = run_graph(g, {k[4:]: run[k] for k in run if k.startswith("in::")})
        for v, y in zip(g.outputs, got, strict=True):
            want = run[f"out::{v.name}"]
            assert y.dtype == want.dtype
            assert np.abs(y - want).max() <= limit * np.abs(want).max()


# --- layers' own precisions -------------------------------------------------------------------


def two_layers(precision, weight=1.0):
    n = Net(2, 8)
    a = n.op("matmul", n.x, randn(8, 8) * np.float32(weight), meta={"precision": precision})
    return n, n.op("activation", a, fn="tanh")


@pytest.mark.parametrize("to", [None, "f16"])
def test_a_layer_asks_for_f32(to):
    n, y = two_layers(T.f32)
    assert "matmul f32" in n.finish(n.op("matmul", y, randn(8, 8)), to)


@pytest.mark.parametrize("constraints", ["prefer", "obey"])
def test_a_layer_asks_for_f16(constraints):
    n, y = two_layers(T.f16)
    assert n.finish(y, None, constraints) == ["cast f16", "matmul f16", "cast f32",
                                              "activation f32"]


def test_constraints_that_cannot_be_obeyed():
    n, y = two_layers(T.f16, weight=1e6)
    with pytest.raises(BuildError, match=r"layer 'matmul'.*weights reach"):
        n.finish(y, "f16", "obey")
    n, y = two_layers(T.f16)
    with pytest.raises(BuildError, match="FP16 is not set"):
        n.finish(y, None, "obey", allowed=())
    n, y = two_layers(T.f16)
    assert "matmul f32" in n.finish(y, None, "prefer", allowed=())


# --- whole builds -----------------------------------------------------------------------------


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, msg):
        self.lines.append(msg)


def build(builder_flags, precision=None, **kw):
    log = Log()
    builder = trt.Builder(log)
    net = builder.create_network(**kw)
    x = net.add_input("x", trt.float32, (1, 3, 8, 8))
    conv = net.add_convolution_nd(x, 4, (3, 3), randn(4, 3, 3, 3), randn(4))
    if precision is not None:
        conv.precision = precision
    net.mark_output(net.add_activation(conv.get_output(0), trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    for f in builder_flags:
        config.set_flag(f)
    return builder.build_engine_with_config(net, config), log.lines


def test_cpus_say_once_that_they_compute_in_f32():
    engine, lines = build([trt.BuilderFlag.FP16, trt.BuilderFlag.BF16])
    assert engine is not None
    assert len([x for x in lines if "FP16 and BF16 may be used, but is not faster" in x]) == 1


def run(engine, x):
    y = np.empty(tuple(engine.get_tensor_shape(engine.get_tensor_name(1))), np.float32)
    assert engine.create_execution_context().execute_v2([x.ctypes.data, y.ctypes.data])
    return y


@pytest.mark.parametrize("flag,name", [("FP16", "f16"), ("BF16", "bf16")])
def test_engines_compute_in_narrow_types(monkeypatch, flag, name):
    global RNG
    x, results = randn(1, 3, 8, 8), []
    for precisions in ({"i8"}, {name}):
        RNG = np.random.default_rng(1)  # equal weights
        monkeypatch.setattr(CpuDevice, "precisions", frozenset(precisions))
        engine, _ = build([getattr(trt.BuilderFlag, flag)])
        assert engine.get_tensor_dtype("x") == trt.float32
        results.append(run(engine, x))
    error = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
    assert 1e-5 < error < (2e-2 if name == "bf16" else 4e-3)


def test_obeyed_precisions_fail_by_name():
    flags = [trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS]
    engine, lines = build(flags, trt.float16)
    assert engine is None and any("FP16 is not set" in x for x in lines)
    engine, lines = build([*flags, trt.BuilderFlag.FP16], trt.float16)
    assert engine is not None


def typed_layers(network, kind):
    """A network whose layers were given output types; the constant has none."""
    x = network.add_input("x", trt.float32, (1, 3, 8, 8))
    rng = np.random.default_rng(2)
    w = [rng.standard_normal((4, c, 3, 3)).astype("f4") for c in (3, 4)]
    y = x
    for c in w:
        layer = network.add_convolution_nd(y, 4, (3, 3), c)
        layer.precision = kind
        layer.set_output_type(0, kind)
        y = layer.get_output(0)
    one = network.add_constant((1, 4, 1, 1), np.ones((1, 4, 1, 1), "f4")).get_output(0)
    total = network.add_elementwise(y, one, trt.ElementWiseOperation.SUM).get_output(0)
    network.mark_output(total)
    return total


@pytest.mark.parametrize("kind", [trt.float16, trt.float32])
def test_output_types_of_layers_are_mixed_freely(kind):
    builder = trt.Builder(Log())
    network = builder.create_network()
    typed_layers(network, kind)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    got = run(builder.build_engine_with_config(network, config), x := randn(1, 3, 8, 8))
    plain = builder.create_network()
    typed_layers(plain, trt.float32)
    want = run(builder.build_engine_with_config(plain, builder.create_builder_config()), x)
    assert np.abs(got - want).max() <= (4e-3 if kind == trt.float16 else 1e-5) * np.abs(want).max()


def test_strongly_typed_networks_are_not():
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    for flags, problems in ((0, 0), (1 << int(flag), 1)):
        network = trt.Builder(Log()).create_network(flags)
        x = network.add_input("x", trt.float16, (2, 3))
        y = network.add_input("y", trt.float32, (2, 3))
        network.mark_output(
            network.add_elementwise(x, y, trt.ElementWiseOperation.SUM).get_output(0))
        assert len(network.check()) == problems


def test_outputs_take_the_type_that_is_asked_for():
    builder = trt.Builder(Log())
    network = builder.create_network()
    typed_layers(network, trt.float32).dtype = trt.float16
    engine = builder.build_engine_with_config(network, builder.create_builder_config())
    assert engine.get_tensor_dtype(engine.get_tensor_name(1)) == trt.float16


def test_casts_there_and_back_vanish():
    n = Net(1, 3, 8, 8)
    half = n.op("cast", n.x, to=T.f16)
    y = n.op("activation", n.op("cast", n.op("cast", half, to=T.f32), to=T.f16), fn="relu")
    n.g.outputs = [y]
    optimize(n.g)
    assert [x.op for x in n.g.nodes] == ["cast", "activation"]


def test_strongly_typed_networks_are_left_alone(monkeypatch):
    monkeypatch.setattr(CpuDevice, "precisions", frozenset({"f16"}))
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    engine, _ = build([trt.BuilderFlag.FP16], flags=1 << int(flag))
    ops = [op for s in engine._program.steps for op in s.info["ops"]]
    assert ops[:2] == ["convolution", "activation"] and "cast" not in ops
    engine, _ = build([trt.BuilderFlag.FP16])
    assert "cast" in [op for s in engine._program.steps for op in s.info["ops"]]
