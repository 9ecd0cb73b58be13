"""Operands that the tuner makes up."""

import numpy as np
import pytest

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.tactics.operands import random_arrays


def made(dtype, zero, np_type):
    g = Graph("t")
    x = g.add_input("x", dtype, (1, 8, 64, 64))
    inputs = [x, g.constant(np.ones((4, 8, 1, 1), np.int8))]
    if zero is not None:
        inputs.append(g.constant(np.array(zero, np_type)))
    g.outputs = [emit(g, "int_conv", inputs, "conv").output]
    g.toposort()
    (region,) = fuse(g).regions
    return next(a for v, a in random_arrays(region, {}).items() if v is x).astype(float)


@pytest.mark.parametrize(
    "dtype, zero, spread",
    [("u8", 128, 128 / 5), ("u8", 255, 51), ("i8", None, 128 / 5), ("i8", -128, 51)],
)
def test_quantized_numbers_are_around_the_zero_point(dtype, zero, spread):
    """Their range covers five standard deviations; kernels may be slower on extreme numbers."""
    x = made(dtype, zero, {"u8": np.uint8, "i8": np.int8}[dtype])
    middle = zero or 0
    assert abs(np.median(x) - middle) <= 1
    distance = np.sqrt(((x - middle) ** 2).mean())
    share = 1 if abs(middle) < 128 or middle == 128 else 0.5  # one side is cut off
    assert distance == pytest.approx(spread * np.sqrt(share), rel=0.05)
    assert (np.abs(x - middle) < 3.5 * spread).mean() > 0.999


def test_numbers_above_zero_alone():
    x = made("u8", None, np.uint8)
    assert (x == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert x.max() > 150 and (x > 168).mean() < 2e-3


def test_zero_points_known_at_run_time_are_arrays():
    g = Graph("t")
    x, zero = g.add_input("x", "u8", (1, 8, 4, 4)), g.add_input("zero", "u8", ())
    w = g.constant(np.ones((4, 8, 1, 1), np.int8))
    g.outputs = [emit(g, "int_conv", [x, w, zero], "conv").output]
    g.toposort()
    (region,) = fuse(g).regions
    arrays = random_arrays(region, {})
    assert all(isinstance(arrays[v], np.ndarray) for v in region.inputs)
    assert arrays[zero].shape == () and arrays[zero].dtype == np.uint8
