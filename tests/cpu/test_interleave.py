"""Pictures from planes to pixels of bytes, against numpy."""

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, region_of

from tactician.ir import expr as E
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.interleave import Interleave
from tactician.targets.cpu.isa import Isa

RNG = np.random.default_rng(0)


def picture(shape, to="u8", scale=0.05):
    g = Graph("t")
    x = g.add_input("x", "f32", shape)
    zero = g.constant(np.array(7, {"u8": np.uint8, "i8": np.int8}[to]))
    q = emit(g, "quantize", [x, g.constant(np.float32(scale)), zero]).output
    g.outputs = [emit(g, "transpose", [q], perm=(0, 2, 3, 1)).output]
    region = region_of(g)
    first, *more = region.stages
    for stage in more:  # one loop nest, as layouts make it
        first = E.Stage(stage.out, stage.vars, E.inline(stage.expr, first))
    region.stages = [first]
    return g, region, x


@pytest.mark.parametrize("isa", [Isa.host(), Isa.host().without("avx512f")], ids=["host", "avx2"])
@pytest.mark.parametrize("to", ["u8", "i8"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 70), (1, 2, 3, 33), (1, 4, 5, 64), (1, 3, 1, 17)])
def test_against_numpy(shape, to, isa):
    g, region, x = picture(shape, to)
    device = CpuDevice(isa, threads=2)
    tactic = Interleave()
    assert tactic.refuse(region, device) is None
    data = (RNG.standard_normal(shape) * 10).astype(np.float32)
    for candidate in tactic.candidates(region, device):
        kernel = tactic.build(region, candidate, device)
        check_kernel(g, kernel, {x: data}, threads=2, tolerance=0.0)


def test_what_it_leaves_to_loops():
    for shape, why in (((1, 5, 4, 70), "last extent"), ((1, 3, 4, 3), "shorter than a vector")):
        _, region, _ = picture(shape)
        assert why in Interleave().refuse(region, CpuDevice())
