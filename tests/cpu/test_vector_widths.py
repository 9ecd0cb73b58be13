"""The code for other vector widths, run here: LLVM splits or pads what this CPU lacks.

The instruction set stays this machine's; only the shape of the code is that of a CPU with wider
or narrower vectors and more or fewer registers.
"""

from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, random, region_of

from tactician.targets.cpu.contraction import register_tiles
from tactician.targets.cpu.conv_gemm import ConvGemm
from tactician.targets.cpu.gemm import Gemm
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.rnn import Recurrent

SHAPES = {
    "wide": {"vector_bits": 512, "vector_registers": 32, "masks": True},
    "narrow": {"vector_bits": 128, "vector_registers": 32, "masks": False},
    "few": {"vector_bits": 128, "vector_registers": 16, "masks": False, "fma": False},
    "scalar": {"vector_bits": 32, "vector_registers": 16, "masks": False, "fma": False},
}


@pytest.fixture(params=SHAPES)
def device(request):
    isa = replace(Isa.host(), **SHAPES[request.param])
    return type("Device", (), {"isa": isa, "threads": 2})


def graph_of(op, operands, tail=None, **attrs):
    """``operands``: shapes; the first is an input, constants follow unless a list says so."""
    rng = np.random.default_rng(3)
    g, inputs, values = Graph(), {}, []
    for k, shape in enumerate(operands):
        array = random(rng, shape)
        if k == 0 or attrs.get("ta"):
            v = g.add_input(f"x{k}", "f32", shape)
            inputs[v] = array
        else:
            v = g.constant(array)
        values.append(v)
    outputs = emit(g, op, values, **attrs).outputs
    if tail:
        outputs = [emit(g, "activation", outputs, fn=tail).output]
    g.outputs = list(outputs)
    return g, region_of(g), inputs


def run_all(tactic, device, case, threads=1):
    graph, region, inputs = case
    for candidate in tactic.candidates(region, device)[:2]:
        kernel = tactic.build(region, candidate, device)
        check_kernel(graph, kernel, inputs, threads=threads, tolerance=5e-6)


@pytest.mark.parametrize("shapes", [((45, 70), (70, 83)), ((1, 40), (40, 100))], ids=str)
def test_constant_products(device, shapes):
    run_all(Gemm(), device, graph_of("matmul", shapes, "gelu_erf"), threads=2)


@pytest.mark.parametrize("tb", ["none", "transpose"])
@pytest.mark.parametrize("ta", ["none", "transpose"])
def test_run_time_products(device, ta, tb):
    a = (2, 45, 70) if ta == "none" else (2, 70, 45)
    b = (2, 70, 51) if tb == "none" else (2, 51, 70)
    run_all(Gemm(), device, graph_of("matmul", (a, b), ta=ta, tb=tb))


@pytest.mark.parametrize("op", ["convolution", "deconvolution"])
@pytest.mark.parametrize("taps", [1, 3])
def test_convolutions(device, op, taps):
    pad = (taps // 2,) * 2
    shapes = ((1, 20, 9, 41), (20, 20, taps, taps), (20,))
    run_all(ConvGemm(), device, graph_of(op, shapes, "relu", pre=pad, post=pad))


def test_recurrent(device):
    shapes = ((4, 3, 10), (1, 76, 10), (1, 76, 19), (1, 152))
    run_all(Recurrent(), device, graph_of("rnn", shapes, cell="lstm", hidden=19))


@pytest.mark.parametrize("registers", [16, 32])
def test_register_tiles_fit(registers):
    from tactician.ir.dtypes import f32

    for masks in (False, True):
        isa = replace(Isa.host(), vector_registers=registers, masks=masks)
        for mr, nv in register_tiles(isa, f32):
            assert mr * nv + nv < isa.vector_registers
