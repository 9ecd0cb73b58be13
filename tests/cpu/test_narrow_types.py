"""8- and 4-bit floats and 4-bit integers in native kernels, every code and every rounding."""

import numpy as np
import pytest

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings
from tactician.ir import dtypes as T
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.runtime.easy import Engine
from tactician.runtime.engine import ICudaEngine
from tactician.targets.cpu.native import equip

RNG = np.random.default_rng(0)
EDGES = [0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 465, 479, 480, -464.01, 57344, 61440, 61439,
         1e30, 2**-9, 2**-10, 2**-10 * 1.0001, 3 * 2**-11, 2**-17, 2**-16]  # fmt: skip
VALUES = np.concatenate(
    [RNG.standard_normal(4000) * 10.0 ** RNG.uniform(-6, 6, 4000), EDGES]).astype("f4")
SMALL = [T.f8e4m3, T.f8e5m2, T.f4e2m1]


def native(make, x):
    """A one-input graph's results by native code alone, and by numpy."""
    g = Graph()
    g.outputs = make(g, g.add_input("x", x.dtype, x.shape))
    for i, v in enumerate(g.outputs):
        v.name = f"y{i}"
    want = run_graph(g, [x])
    program, report = compile_network(g, BuildSettings(optimization_level=0))
    assert not report.reference
    equip(program)
    return list(Engine(ICudaEngine(program))(x=x).values()), want


def cast(to, **kw):
    return lambda g, x: [emit(g, "cast", [x], to=to, **kw).output]


@pytest.mark.parametrize("dt", SMALL)
def test_every_code_is_decoded(dt):
    codes = np.arange(1 << dt.bits, dtype=np.uint8).view(dt.np)
    (got,), _ = native(cast(T.f32), codes)
    np.testing.assert_array_equal(got, codes.astype("f4"))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("dt", SMALL)
def test_rounding(dt, saturate):
    (got,), (want,) = native(cast(dt, saturate=saturate), VALUES)
    np.testing.assert_array_equal(got.astype("f4"), want.astype("f4"))


@pytest.mark.parametrize("dt", [*SMALL, T.i4, T.u4, T.i8, T.u8])
def test_quantize_and_back(dt):
    def make(g, x):
        scale = g.constant(np.float32(0.3))
        q = emit(g, "quantize", [x, scale], to=dt).output
        return [q, emit(g, "dequantize", [q, scale]).output]

    got, want = native(make, VALUES[np.isfinite(VALUES)])
    np.testing.assert_array_equal(got[0].view("u1"), want[0].view("u1"))
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("to,scale", [(T.f4e2m1, T.f8e4m3), (T.f8e4m3, T.f32)])
def test_blocks_are_quantized_by_their_own_range(to, scale, axis):
    def make(g, x):
        double = g.constant(np.float32(0.25))
        node = emit(g, "dynamic_quantize", [x, double], axis=axis, block_size=8, to=to,
                    scale_to=scale)
        return list(node.outputs)

    x = RNG.standard_normal((16, 24)).astype("f4")
    x[:8, :8] = 0
    for got, want in zip(*native(make, x), strict=True):
        np.testing.assert_array_equal(got.view("u1"), want.view("u1"))
