"""Recurrent kernels against the numpy reference and torch."""

from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, random, region_of

from tactician.ir import dims as D
from tactician.targets.cpu import rnn, rnn_phases
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import Toolchain

TACTIC = rnn.Recurrent()
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def network(
    cell, steps=5, batch=3, size=7, hidden=10, dtype="f32", h0=True, lens=None, peep=False,
    bias=True, symbols=None, **attrs,
):  # fmt: skip
    rng = np.random.default_rng(0)
    np_type = {"f32": np.float32, "f64": np.float64}[dtype]
    g, inputs = Graph(), {}
    dirs = 2 if attrs.get("direction") == "bidirectional" else 1
    real = symbols or {}

    def array(*shape):
        return random(rng, tuple(real.get(d, d) for d in shape), np_type) * np_type(0.5)

    def given(name, kind, *shape):
        v = g.add_input(name, kind, tuple(D.sym(d) if isinstance(d, str) else d for d in shape))
        inputs[v] = array(*shape)
        return v

    order = (batch, steps) if attrs.get("layout") else (steps, batch)
    state = (batch, dirs, hidden) if attrs.get("layout") else (dirs, batch, hidden)
    operands = [given("x", dtype, *order, size)]
    rows = GATES[cell] * hidden
    operands += [g.constant(array(dirs, rows, size)), g.constant(array(dirs, rows, hidden))]
    operands.append(g.constant(array(dirs, 2 * rows)) if bias else None)
    operands.append(None)
    if lens is not None:
        operands[-1] = g.add_input("lens", "i32", (batch,))
        inputs[operands[-1]] = np.array(lens, np.int32)
    operands.append(given("h0", dtype, *state) if h0 else None)
    operands.append(given("c0", dtype, *state) if h0 and cell == "lstm" else None)
    operands.append(g.constant(array(dirs, 3 * hidden)) if peep else None)
    node = emit(g, "rnn", operands, cell=cell, hidden=hidden, **attrs)
    g.outputs = list(node.outputs)
    return g, region_of(g), inputs


def check(graph, region, inputs, rows=None, threads=1, env=None, tolerance=3e-6):
    device = CpuDevice()
    assert TACTIC.refuse(region, device) is None
    rows = rows or TACTIC.candidates(region, device)[0]
    check_kernel(graph, TACTIC.build(region, rows, device), inputs, env, threads, tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {}), ("gru", {}), ("rnn", {"batch": 1}), ("lstm", {"direction": "reverse"}),
        ("gru", {"direction": "bidirectional", "layout": 1}), ("lstm", {"steps": 37, "hidden": 33}),
        ("gru", {"linear_before_reset": True, "hidden": 24}), ("lstm", {"lens": [5, 2, 0]}),
        ("lstm", {"h0": False, "bias": False, "hidden": 16, "steps": 16}), ("lstm", {"peep": True}),
        ("lstm", {"steps": "T", "symbols": {"T": 35}}), ("rnn", {"dtype": "f64", "steps": 1}),
        ("lstm", {"hidden": 3, "direction": "bidirectional", "batch": 8}),
    ],
)  # fmt: skip
def test_units_divided_between_threads(cell, options, threads):
    graph, region, inputs = network(cell, **options)
    kernel = rnn_phases.RecurrentPhases().build(region, "panels", CpuDevice(threads=2))
    assert kernel.phase and kernel.scratch == 0
    env = options.get("symbols")
    check_kernel(graph, kernel, inputs, env, threads, 3e-6)


def test_small_states_are_not_divided():
    _, region, _ = network("lstm")
    assert "too long" in rnn_phases.RecurrentPhases().refuse(region, CpuDevice(threads=2))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_cells(cell, direction, layout):
    check(*network(cell, direction=direction, layout=layout), threads=2)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("gru", {"linear_before_reset": True}), ("lstm", {"input_forget": True}),
        ("lstm", {"peep": True}), ("lstm", {"clip": 0.3}), ("gru", {"clip": 0.3}),
        ("lstm", {"h0": False, "bias": False}), ("rnn", {"activations": ("relu",)}),
        ("lstm", {"lens": [5, 2, 0]}), ("gru", {"lens": [1, 5, 3], "direction": "bidirectional"}),
        ("lstm", {"hidden": 8, "batch": 1}), ("gru", {"hidden": 33, "size": 1, "batch": 5}),
        ("lstm", {"hidden": 3, "steps": 1}), ("lstm", {"dtype": "f64"}),
        ("lstm", {"steps": 37, "direction": "bidirectional"}), ("gru", {"steps": 33, "batch": 1}),
    ],
)  # fmt: skip
def test_options(cell, options):
    check(*network(cell, **options))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_rows_per_item(rows):
    check(*network("lstm", batch=5), rows)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("t", "n"), [(1, 1), (4, 5), (9, 2), (0, 2)])
def test_symbolic_sizes(cell, t, n):
    symbols = {"t": t, "n": n}
    for rows in (1, 2):
        check(*network(cell, "t", "n", symbols=symbols), rows, env=symbols)


def test_against_torch():
    torch = pytest.importorskip("torch")
    g, region, inputs = network("lstm", 6, 2, 5, 9, h0=False)
    x, w, r, b = (inputs.get(v, v.const) for v in g.nodes[0].inputs[:4])
    module = torch.nn.LSTM(5, 9)
    order = [0, 2, 3, 1]  # torch's gates: i f c o

    def gates(a):
        return torch.from_numpy(a.reshape(4, 9, -1)[order].reshape(36, -1).copy())

    with torch.no_grad():
        module.weight_ih_l0.copy_(gates(w[0]))
        module.weight_hh_l0.copy_(gates(r[0]))
        module.bias_ih_l0.copy_(gates(b[0, :36])[:, 0])
        module.bias_hh_l0.copy_(gates(b[0, 36:])[:, 0])
        want = module(torch.from_numpy(x))[0].numpy()
    from kernels import reference

    assert np.allclose(reference(g, inputs)[0][:, 0], want, atol=1e-5)
    check(g, region, inputs)


def test_refusals():
    device = CpuDevice()
    _, region, _ = network("rnn", activations=("softsign",))
    assert "softsign" in TACTIC.refuse(region, device)


@pytest.mark.parametrize("cpu", ["sapphirerapids", "neoverse-n1"])
def test_other_cpus(cpu):
    _, region, _ = network("lstm", hidden=20)
    kernel = TACTIC.build(region, 2, type("Device", (), {"isa": Isa.named(cpu)}))
    assert Toolchain(Isa.named(cpu)).compile(kernel.source)[:4] == b"\x7fELF"


def test_weights_larger_than_the_cache_are_asked_for_ahead():
    graph, region, inputs = network("lstm", hidden=24, size=24)
    small = replace(Isa.host(), l2=1024)
    kernel = rnn.Builder(region, 2, small).build()
    assert "llvm.prefetch" in kernel.source
    assert "llvm.prefetch" not in rnn.Builder(region, 2, Isa.host()).build().source
    check_kernel(graph, kernel, inputs, None, 2, 3e-6)
