"""Recurrent layers as one kernel: cells, options, blocks that wait for each other, and the pass
that multiplies the inputs beforehand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as h
from search_kit import DEVICE, check, compile_for, kernel_of, node_of, region_of, tactic

import tactician
from tactician.ir import dims as D
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.recurrence import Tile

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
rng = np.random.default_rng(7)


def operands(cell, steps, batch, hidden, *, dirs=1, layout=0, lens=False, states=False,
             peep=False, rb=False, dt="f4"):  # fmt: skip
    def r(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(dt)

    n = GATES[cell]
    entry = (batch, dirs) if layout else (dirs, batch)
    times = (batch, steps) if layout else (steps, batch)
    return [
        r(*times, dirs * n * hidden),
        r(dirs, n * hidden, hidden, scale=hidden**-0.5),
        r(dirs, hidden) if rb else None,
        rng.integers(0, steps + 1, batch).astype("i4") if lens else None,
        r(*entry, hidden) if states else None,
        r(*entry, hidden) if states and cell == "lstm" else None,
        r(dirs, 3 * hidden) if peep else None,
    ]


def steps(cell, count, batch, hidden, *, direction="forward", layout=0, tile=None, dims=None,
          env=None, wanted=None, lens=False, states=False, peep=False, rb=False, dt="f4",
          **attrs):  # fmt: skip
    dirs = 2 if direction == "bidirectional" else 1
    arrays = operands(cell, count, batch, hidden, dirs=dirs, layout=layout, lens=lens,
                      states=states, peep=peep, rb=rb, dt=dt)  # fmt: skip
    return check(
        "recurrence", "recurrent_steps", arrays, candidate=tile, dims=dims, env=env, cell=cell,
        wanted=wanted, hidden=hidden, direction=direction, layout=layout, **attrs,
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_lstm_with_everything(direction, layout):
    steps("lstm", 3, 5, 20, direction=direction, layout=layout, lens=True, states=True, peep=True)


def test_lstm_options():
    steps("lstm", 3, 2, 20, input_forget=True, clip=0.5)
    steps("lstm", 3, 2, 20, wanted=[1])
    steps("lstm", 3, 2, 20, dt="f2")
    steps("lstm", 3, 2, 20, dt="f8")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("tile", [None, Tile(16, 16, 32)], ids=["one block", "blocks"])
def test_gru(before, tile):
    steps("gru", 3, 2, 20, direction="bidirectional", states=True, rb=True, lens=True, tile=tile,
          linear_before_reset=before)  # fmt: skip


@pytest.mark.parametrize("functions", [
    ("relu", "softplus"), ("leaky_relu", "elu"), ("hard_sigmoid", "softsign"),
    ("scaled_tanh", "thresholded_relu"), ("affine", "tanh"),
])  # fmt: skip
def test_activations_that_differ_by_direction(functions):
    steps("rnn", 2, 2, 16, direction="bidirectional", activations=functions,
          alpha=(0.3, 0.7), beta=(0.4, 0.2))  # fmt: skip


def test_blocks_that_wait_for_each_other():
    kernel = steps("lstm", 3, 20, 40, direction="bidirectional", lens=True, states=True,
                   tile=Tile(16, 16, 32))  # fmt: skip
    assert kernel.launch.cooperative and kernel.launch.grid == (12,)  # 2 x 2 x 3
    kernel = steps("lstm", 3, 2, 40, tile=Tile(16, 64, 32))
    assert not kernel.launch.cooperative


def test_symbolic_sizes():
    n = D.sym("n")
    for tile in (Tile(16, 32, 32), Tile(16, 16, 32)):
        steps("lstm", 4, 19, 24, tile=tile, dims={0: (D.sym("t"), n, 96)}, env={"t": 4, "n": 19})


def test_tiles_follow_sizes():
    def first(hidden, device=DEVICE):
        arrays = [np.zeros((1, 1, 4 * hidden), "f4"), np.zeros((1, 4 * hidden, hidden), "f4")]
        node = node_of("recurrent_steps", arrays, cell="lstm", hidden=hidden)
        return tactic("recurrence").candidates(region_of(node), device)

    assert first(32)[0].bu >= 32  # one block
    assert first(512)[0].bu == 16  # as many as there are
    for tile in first(1500, device=CudaDevice("sm_80", mode="interpreter")):
        assert -(-1500 // tile.bu) <= 108


@pytest.mark.parametrize("cell, dt, hidden", [
    ("lstm", "f4", 512), ("gru", "f2", 64),
    pytest.param("lstm", "f2", 64, marks=pytest.mark.slow),
    pytest.param("gru", "f4", 512, marks=pytest.mark.slow),
])  # fmt: skip
def test_machine_code(cell, dt, hidden):
    arrays = operands(cell, 5, 2, hidden, dt=dt)
    node = node_of("recurrent_steps", arrays, cell=cell, hidden=hidden)
    compile_for(kernel_of("recurrence", node), (90,))


@pytest.mark.slow
def test_machine_code_of_other_generations():
    arrays = operands("lstm", 5, 2, 512)
    node = node_of("recurrent_steps", arrays, cell="lstm", hidden=512)
    compile_for(kernel_of("recurrence", node), (80, 100))


def model(op, count, batch, size, hidden, biases=True, **attrs):
    gates, dirs = GATES[op.lower()], 2 if attrs.get("direction") == "bidirectional" else 1
    weights = {
        "w": rng.standard_normal((dirs, gates * hidden, size)) * size**-0.5,
        "r": rng.standard_normal((dirs, gates * hidden, hidden)) * hidden**-0.5,
    }
    if biases:
        weights["b"] = rng.standard_normal((dirs, 2 * gates * hidden))
    init = [numpy_helper.from_array(a.astype("f4"), n) for n, a in weights.items()]
    node = h.make_node(op, ["x", *weights], ["y", "h"], hidden_size=hidden, **attrs)
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, [count, batch, size])
    outs = [onnx.ValueInfoProto(name=n) for n in ("y", "h")]
    graph = h.make_graph([node], "g", [x], outs, init)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("op, attrs", [
    ("LSTM", {"direction": "bidirectional"}), ("GRU", {"linear_before_reset": 1}),
    pytest.param("GRU", {}, marks=pytest.mark.slow),
    pytest.param("RNN", {"direction": "reverse", "biases": False}, marks=pytest.mark.slow),
])  # fmt: skip
def test_layers_against_onnxruntime(op, attrs, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    data = model(op, 19, 3, 10, 24, **attrs).SerializeToString()
    x = rng.standard_normal((19, 3, 10)).astype("f4")
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    engine = tactician.build(data, device="gpu", level=0, tf32=False)
    steps = engine.cuda_engine._program.steps
    assert [s.kind for s in steps] == ["kernel", "kernel"], steps  # the product, then all steps
    for _ in range(3):
        got = engine(x)
        for name, w in zip(("y", "h"), want, strict=True):
            np.testing.assert_allclose(got[name], w, atol=2e-5)
