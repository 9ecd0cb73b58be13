"""The quantized LSTM's kernel against its definition, and the operator against onnxruntime."""

from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, region_of

from tactician.targets.cpu.int_rnn import IntRecurrent
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import toolchain

RNG = np.random.default_rng(1)
WIDE = {"vector_bits": 512, "vector_registers": 32, "masks": True, "int8_dot": True}


def case(steps, batch, hidden, direction="forward", lens=None, states=False, peep=False):
    g, dirs = Graph(), 2 if direction == "bidirectional" else 1
    gates = g.add_input("gates", "f32", (steps, batch, dirs * 4 * hidden))
    inputs = {gates: RNG.standard_normal(gates.dims).astype("f4")}
    r = RNG.integers(-128, 128, (dirs, hidden, 4 * hidden)).astype("i1")
    scale = (RNG.random((dirs, 4 * hidden)) * 4e-3).astype("f4")
    values = [gates, g.constant(r), g.constant(scale), None, None, None, None]
    if lens is not None:
        values[3] = g.add_input("lens", "i32", (batch,))
        inputs[values[3]] = np.array(lens, np.int32)
    if states:
        for k in (4, 5):
            values[k] = g.add_input(f"s{k}", "f32", (dirs, batch, hidden))
            inputs[values[k]] = RNG.standard_normal((dirs, batch, hidden)).astype("f4")
    if peep:
        values[6] = g.constant(RNG.standard_normal((dirs, 3 * hidden)).astype("f4"))
    g.outputs = list(emit(g, "quantized_lstm", values, hidden=hidden, direction=direction).outputs)
    return g, inputs


def run_all(graph, inputs, isa):
    region, tactic = region_of(graph), IntRecurrent()
    device = type("Device", (), {"isa": isa, "threads": 2})
    assert tactic.refuse(region, device) is None
    for candidate in tactic.candidates(region, device):
        kernel = tactic.build(region, candidate, device)
        # a state on the border of two integers may be rounded to the other one
        check_kernel(graph, kernel, inputs, threads=2, tolerance=1e-2)


@pytest.mark.parametrize("hidden", [1, 8, 16, 19, 37])
@pytest.mark.parametrize("batch", [1, 3])
def test_sizes(hidden, batch):
    run_all(*case(5, batch, hidden), Isa.host())


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_lengths_and_states(direction):
    run_all(*case(6, 3, 12, direction, lens=[6, 2, 4], states=True, peep=True), Isa.host())


@pytest.mark.parametrize("shape", [WIDE, {"int8_dot": True}, {"vector_bits": 128}],
                         ids=["512", "dot", "128"])
def test_other_vectors(shape):
    run_all(*case(4, 2, 21), replace(Isa.host(), **shape))


@pytest.mark.parametrize("cpu, instruction", [("icelake-server", "vpdpbusd"),
                                              ("neoverse-n1", "sdot")])
def test_instructions(cpu, instruction):
    isa = Isa.named(cpu)
    device = type("Device", (), {"isa": isa, "threads": 2})
    kernel = IntRecurrent().build(region_of(case(4, 1, 32)[0]), 1, device)
    assert instruction in toolchain(isa).assembly(kernel.source)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_against_onnxruntime(direction):
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    import tactician

    steps, size, hidden, dirs = 7, 12, 16, 1 + (direction == "bidirectional")
    weights = {
        "w": RNG.integers(-64, 65, (dirs, size, 4 * hidden)).astype("i1"),
        "r": RNG.integers(-64, 65, (dirs, hidden, 4 * hidden)).astype("i1"),
        "b": RNG.standard_normal((dirs, 8 * hidden)).astype("f4"),
        "ws": np.full(dirs, 5e-3, "f4"), "wz": np.zeros(dirs, "i1"),
        "rs": np.full(dirs, 4e-3, "f4"), "rz": np.zeros(dirs, "i1"),
    }  # fmt: skip
    node = helper.make_node(
        "DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"],
        ["y", "h", "c"], domain="com.microsoft", hidden_size=hidden, direction=direction,
    )
    io = [helper.make_tensor_value_info(n, 1, s) for n, s in
          (("x", (steps, 1, size)), ("y", (steps, dirs, 1, hidden)))]
    graph = helper.make_graph([node], "t", io[:1], io[1:],
                              [numpy_helper.from_array(a, n) for n, a in weights.items()])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    x = RNG.standard_normal((steps, 1, size)).astype("f4")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    got = tactician.build(model)(x)
    got = next(iter(got.values())) if isinstance(got, dict) else got
    assert np.abs(np.asarray(got) - want).max() < 2e-2
