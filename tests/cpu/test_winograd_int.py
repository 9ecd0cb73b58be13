"""Winograd convolution of bytes in integers: exact for all inputs that it takes."""

from dataclasses import replace

import numpy as np
import pytest
from int_layers import Layer

from tactician.targets.cpu import winograd_int
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.int_dot import Dot
from tactician.targets.cpu.int_problem import IntProblem
from tactician.targets.cpu.int_winograd import IntWinograd, _WholeBuilder
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import toolchain
from tactician.targets.cpu.winograd_int import WholeWinograd, whole
from tactician.targets.cpu.winograd_ir import Winograd

RNG = np.random.default_rng(0)


def check(layer, m, tiles=8, mr=4, nv=2, groups=1, threads=1, isa=None):
    isa = isa or Isa.host()
    candidate = WholeWinograd(m, tiles, mr, nv, isa.lanes(32), groups)
    kernel = _WholeBuilder(IntProblem(layer.region), candidate, isa).build()
    np.testing.assert_array_equal(layer.run(kernel, threads).astype(np.int64), layer.want)


@pytest.mark.parametrize("m", winograd_int.SIZES)
@pytest.mark.parametrize("signed", [False, True])
def test_matrices_are_exact(m, signed):
    f = whole(m)
    a, b = (np.array(x, np.int64) for x in (f.a, f.b))
    low, high = (-128, 127) if signed else (0, 255)
    for _ in range(50):
        d = RNG.choice([low, high, *RNG.integers(low, high + 1, 3)], (m + 2, m + 2))
        w = RNG.choice([-128, 127, *RNG.integers(-128, 128, 3)], (3, 3))
        v = b @ d @ b.T
        assert np.abs(v).max() <= f.inputs_within(low, high) <= 32767
        y = a @ (f.weights(w.reshape(9)).reshape(m + 2, m + 2) * v) @ a.T
        for i in range(m):
            for j in range(m):
                want = (d[i : i + 3, j : j + 3] * w).sum()
                assert y[i, j] == want * f.odd << f.shift(i, j)
    assert f.odd * f.inverse % (1 << 32) == 1


@pytest.mark.parametrize("m", winograd_int.SIZES)
@pytest.mark.parametrize("dtype, zero", [("u8", None), ("u8", 255), ("i8", None), ("i8", 127)])
@pytest.mark.parametrize("x, w", [("most", "most"), ("most", "least"), ("either", "either"),
                                  ("least", "least"), ("random", "random")])  # fmt: skip
def test_extremes(m, dtype, zero, x, w):
    check(Layer(1, 32, 6, 9, 16, 3, dtype, zero, x=x, w=w), m)


@pytest.mark.parametrize("m", winograd_int.SIZES)
@pytest.mark.parametrize("c, k", [(16, 17), (17, 24), (33, 70), (48, 64), (31, 128)])
def test_channels(m, c, k):
    check(Layer(1, c, 5, 6, k, 3, "u8", 5), m, nv=1)


@pytest.mark.parametrize("m", winograd_int.SIZES)
@pytest.mark.parametrize("h, w", [(1, 2), (2, 9), (7, 7), (13, 4)])
@pytest.mark.parametrize("groups, threads", [(1, 1), (2, 2)])
def test_sizes(m, h, w, groups, threads):
    layer = Layer(2, 16, h, w, 64, 3, "i8", 1)
    check(layer, m, tiles=6, mr=3, groups=groups, threads=threads)


@pytest.mark.parametrize("m", winograd_int.SIZES)
@pytest.mark.parametrize("bits", [128, 256, 512])
def test_vector_widths(m, bits):
    isa = replace(Isa.host(), vector_bits=bits)
    check(Layer(1, 40, 5, 6, 48, 3, "i8", 3, x="either", w="either"), m, isa=isa)


def test_results_beyond_what_fits_are_refused():
    """F(4, 3) keeps results below 2**25, F(2, 3) below 2**29."""
    ones = np.full((1, 1, 9), 127)
    for c, m, fits in ((114, 4, True), (116, 4, False), (1841, 2, True), (1843, 2, False)):
        w = np.repeat(ones, c, axis=1)
        assert (winograd_int.refuse(m, w, False) is None) == fits, (c, m)


@pytest.mark.parametrize("c", [112, 114])
def test_the_largest_results(c):
    """Sums just below 2**25, with which everything on the way leaves s32."""
    check(Layer(1, c, 6, 6, 16, 3, "u8", None, x="most", w="most"), 4)


def test_differences_of_bytes_as_weights_fit():
    w = RNG.choice([-255, 255], (4, 16, 9))
    assert all(winograd_int.refuse(m, w, False) is None for m in winograd_int.SIZES)


@pytest.mark.parametrize("cpu, exact", [("haswell", True), ("skylake-avx512", True),
                                        ("cascadelake", False)])  # fmt: skip
def test_who_takes_it(cpu, exact):
    layer = Layer(1, 64, 28, 28, 64, 3, "u8", None, floats=True)
    found = IntWinograd().candidates(layer.region, CpuDevice(Isa.named(cpu), 2))
    assert all(isinstance(f, WholeWinograd) == exact for f in found)
    if exact:
        assert found
        kernel = IntWinograd().build(layer.region, found[0], CpuDevice(Isa.named(cpu), 2))
        assert "vpmaddwd" in toolchain(Isa.named(cpu)).assembly(kernel.source)


def test_texts_of_candidates_differ():
    exact = WholeWinograd(4, 8, 4, 2, 8)
    assert str(exact) != str(Winograd(4, 8, 4, 2, 8))
    assert Dot("madd", 8, False, Isa.host()).weight_bytes == 8
