"""Convolutions with few output channels, whose sums run along vectors, against torch."""

import numpy as np
import pytest
from convkit import RNG, check, run
from kernels import channels_last_region

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.tactics.tactic import tactics_for
from tactician.targets.cpu.conv_dots import DotConvolution
from tactician.targets.cpu.device import CpuDevice

HALF = CpuDevice().isa.lanes(32) // 2


@pytest.fixture(autouse=True)
def only_dots(monkeypatch):
    """Keeps the competing tactics out of the way."""
    from tactician.targets.cpu.conv_direct import DirectConvolution
    from tactician.targets.cpu.conv_rows import RowConvolution
    from tactician.targets.cpu.winograd import WinogradConvolution

    for other in (DirectConvolution, RowConvolution, WinogradConvolution):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")


def dots(*args, **kwargs):
    for level in (0, 1):
        check(*args, tactic="conv_dots", level=level, **kwargs)


@pytest.mark.parametrize("k", [k for k in (1, 2, 3, 4, 7, 8) if k <= HALF])
def test_output_channels(k):
    dots((2, 8, 7, 19), (k, 8, 3, 3), pre=(1, 1), post=(1, 1), act="relu")


@pytest.mark.parametrize("c", [5, 8, 17, 33])
def test_input_channels(c):
    dots((1, c, 6, 13), (1, c, 3, 3), pre=(1, 1), post=(1, 1))
    dots((1, c, 6, 13), (2, c, 3, 3))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 100, 513, 1030])
def test_widths(width):
    for k in (1, 2):
        dots((1, 8, 3, width), (k, 8, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("attrs", [
    {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)},
    {"stride": (2, 1), "pre": (0, 2), "post": (1, 0)},
    {"stride": (1, 3), "dilation": (2, 1)},
    {"dilation": (3, 1), "pre": (3, 0), "post": (3, 0)},
    {"pre": (5, 7), "post": (4, 9)},
    {"stride": (2, 2)},
], ids=str)
def test_geometry(attrs):
    dots((2, 6, 11, 14), (1, 6, 3, 5), **attrs)
    dots((2, 6, 40, 14), (3, 6, 3, 5), **attrs)


@pytest.mark.parametrize("attrs", [{}, {"stride": (2,)}, {"pre": (9,), "post": (9,)}], ids=str)
def test_one_dimension(attrs):
    dots((2, 1, 700), (1, 1, 64), **attrs)
    dots((1, 5, 70), (2, 5, 3), **attrs)


def test_a_long_row_of_one_channel():
    dots((1, 1, 1, 5000), (1, 1, 1, 256), stride=(1, 2))
    dots((1, 1, 5000, 1), (1, 1, 256, 1), stride=(2, 1), pre=(3, 0), post=(5, 0))


def test_single_taps():
    dots((2, 24, 5, 9), (1, 24, 1, 1), act="swish")
    dots((1, 40, 6, 7), (2, 40, 1, 1), residual=True)


@pytest.mark.parametrize("dynamic", [(0,), (2,), (3,), (0, 2, 3)])
@pytest.mark.parametrize("k", [1, 3])
def test_sizes_known_at_run_time(dynamic, k):
    dots((2, 8, 9, 21), (k, 8, 3, 3), dynamic=dynamic, pre=(1, 1), post=(1, 1), act="relu")
    dots((2, 8, 9, 21), (k, 8, 3, 3), dynamic=dynamic, residual=True)


@pytest.mark.parametrize("act", ["relu", "swish", None])
@pytest.mark.parametrize("residual", [True, False])
def test_epilogues(act, residual):
    for bias in (True, False):
        dots((2, 6, 5, 37), (1, 6, 3, 3), pre=(1, 1), post=(1, 1), act=act, residual=residual,
             bias=bias)
        dots((2, 6, 5, 37), (2, 6, 3, 3), pre=(1, 1), post=(1, 1), act=act, residual=residual,
             bias=bias)


def test_infinities_behind_a_run_stay_out():
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 5, 4, 9))
    w = np.ones((1, 5, 1, 3), "f4")
    g.outputs = [emit(g, "convolution", [x, g.constant(w)], "conv").output]
    data = np.ones((1, 5, 4, 9), "f4")
    data[..., 5] = np.inf
    (got,), tactics = run(g, {"x": data})
    assert tactics == {"conv_dots"}
    reached = np.isinf(got)
    assert reached[..., 3:6].all() and reached.sum() == 4 * 3 and (got[~reached] == 15).all()


@pytest.mark.parametrize("why, x, w, attrs", [
    ("fill vectors of", (1, 8, 6, 6), (HALF + 1, 8, 3, 3), {}),
    ("groups", (1, 4, 6, 6), (2, 2, 3, 3), {"groups": 2}),
    ("side by side", (1, 8, 6, 9), (1, 8, 3, 3), {"dilation": (1, 2)}),
    ("spatial dimensions", (1, 8, 4, 4, 4), (1, 8, 3, 3, 3), {}),
    ("hardly better", (1, 1, 9, 9), (HALF, 1, 2, 2), {}),
])
def test_refusals_say_why(why, x, w, attrs):
    g = Graph("t")
    weights = g.constant(RNG.standard_normal(w).astype("f4"))
    g.outputs = [
        emit(g, "convolution", [g.add_input("x", "f32", x), weights], "conv", **attrs).output
    ]
    region = channels_last_region(g)
    device = CpuDevice()
    tactic = next(t for t in tactics_for("cpu") if isinstance(t, DotConvolution))
    reason = tactic.refuse(region, device)
    assert reason is not None and (why in reason or "groups" in why)
