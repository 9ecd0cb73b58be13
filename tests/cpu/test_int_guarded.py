"""Dot products by saturating pairs, guarded: exact whatever operands and weights are."""

from dataclasses import replace

import numpy as np
import pytest
from int_layers import Layer, extremes
from test_int_conv import check_conv

from tactician.targets.cpu.dot_guard import block_of
from tactician.targets.cpu.int_conv import DotBuilder, IntContraction, IntTile
from tactician.targets.cpu.int_dot import methods, pair_limits, pairs_fit
from tactician.targets.cpu.int_problem import IntProblem
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import toolchain

RNG = np.random.default_rng(0)
AVX2 = Isa.named("haswell")


def check(layer, mr=3, nv=2, channels_first=False, isa=None):
    isa = isa or Isa.host()
    p = IntProblem(layer.region)
    tile = IntTile(mr, nv, isa.lanes(32), 1, channels_first, 1, "guarded")
    got = layer.run(DotBuilder(p, tile, isa).build())
    np.testing.assert_array_equal(got, layer.want)


@pytest.mark.parametrize("dtype, zero", [("u8", None), ("u8", 255), ("i8", None), ("i8", -128)])
@pytest.mark.parametrize("x", ["most", "least", "either", "random"])
@pytest.mark.parametrize("w", ["most", "least", "either", "random"])
def test_extremes(dtype, zero, x, w):
    check(Layer(1, 32, 5, 7, 24, 3, dtype, zero, x=x, w=w))


@pytest.mark.parametrize("c", [16, 32, 48, 64, 80, 96])
@pytest.mark.parametrize("k", [1, 8, 17, 40])
def test_channels(c, k):
    check(Layer(2, c, 3, 4, k, 1, "u8", 3, x="either", w="random"))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 13])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_first", [True, False])
def test_pixels(width, stride, channels_first):
    layer = Layer(1, 32, 4, width, 16, 3, "u8", 9, stride=stride, x="either", w="either")
    check(layer, channels_first=channels_first)


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_vector_widths(bits):
    isa = replace(Isa.host(), vector_bits=bits)
    check(Layer(1, 96, 4, 5, 40, 3, "i8", 3, x="either", w="either"), isa=isa)


def test_single_large_number_decides_for_its_block():
    """A pair that saturates in one pixel and one block of channels, small numbers elsewhere."""
    for place in range(64):
        layer = Layer(1, 64, 1, 9, 16, 1, "u8", None, x="small", w="most")
        layer.x[0, place // 2 * 2 : place // 2 * 2 + 2, 0, place % 9] = 255
        layer.update()
        check(layer)


@pytest.mark.parametrize("x", [128, 129, 130])
def test_at_the_limit(x):
    """127 + 127 times 129 fits s16, times 130 does not."""
    layer = Layer(1, 32, 2, 5, 16, 1, "u8", None, x="least", w="most")
    layer.x[:] = x
    layer.update()
    check(layer)
    assert pair_limits(np.full((1, 2, 1), 127)).tolist() == [129]


@pytest.mark.parametrize(
    "pair, limit",
    [((127, 127), 129), ((-128, -128), 128), ((127, -128), 255), ((64, 64), 255), ((64, 65), 254),
     ((-64, -65), 254), ((0, 0), 255)],
)  # fmt: skip
def test_limits(pair, limit):
    w = np.array(pair).reshape(1, 2, 1)
    assert pair_limits(w).tolist() == [limit]
    assert pairs_fit(w) == (limit == 255)
    products = np.arange(256)[:, None] * w.reshape(-1)
    fits = np.abs(products.sum(1) + 0.5) < 32768
    assert fits[: limit + 1].all() and (limit == 255 or not fits[limit + 1])


def test_who_takes_it():
    large, small = RNG.integers(-127, 128, (8, 32, 1)), RNG.integers(-50, 51, (8, 32, 1))

    def names(isa, w):
        return [m.name for m in methods(isa, False, w)]

    assert names(AVX2, large) == ["guarded", "madd"]
    assert names(AVX2, small) == ["maddubs", "madd"]
    assert names(AVX2, large[:, :20]) == ["madd"]
    assert names(Isa.named("skylake-avx512"), large) == ["guarded", "madd"]
    assert names(Isa.named("cascadelake"), large) == ["dot"]
    assert names(Isa.named("neoverse-n1"), large) == ["dot"]


@pytest.mark.parametrize("channels, width, block", [(64, 32, 32), (48, 32, 16), (96, 64, 32)])
def test_blocks(channels, width, block):
    assert block_of(channels, width) == block


@pytest.mark.parametrize("cpu", ["haswell", "skylake-avx512"])
def test_compiles_for_others_with_the_instruction(cpu):
    isa = Isa.named(cpu)
    layer = Layer(1, 64, 5, 7, 64, 1, "u8", None)
    device = type("Device", (), {"isa": isa, "threads": 1})
    tile = IntContraction().candidates(layer.region, device)[0]
    assert tile.dot == "guarded"
    kernel = DotBuilder(IntProblem(layer.region), tile, isa).build()
    text = toolchain(isa).assembly(kernel.source)
    assert "vpmaddubsw" in text and "vpmaddwd" in text


def test_extremes_are_such():
    assert extremes("most", "u8", 3).tolist() == [255] * 3
    assert extremes("least", "i8", 2).tolist() == [-128] * 2


@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)])
@pytest.mark.parametrize("x_type", ["u8", "i8"])
def test_zero_points_found_at_run_time(dynamic, x_type):
    """In whole programs, whose kernels also have to serve sizes that vary."""
    check_conv((2, 32, 5, 9), (24, 32, 3, 3), x_type, zero=3, runtime_zero=True, dynamic=dynamic,
               pre=(1, 1), post=(1, 1))  # fmt: skip
