"""Convolutions of which several output rows share a vector, against torch."""

from dataclasses import replace

import numpy as np
import pytest
from convkit import RNG, check
from kernels import channels_last_region, guarded, run

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.targets.cpu.conv_common import Problem
from tactician.targets.cpu.conv_rows import RowConvolution, choices
from tactician.targets.cpu.isa import Isa

torch = pytest.importorskip("torch")
TACTIC = RowConvolution()
SHAPES = {
    "wide": {"vector_bits": 512, "vector_registers": 32, "masks": True},
    "host": {},
    "narrow": {"vector_bits": 128, "vector_registers": 32, "masks": False},
}


def device_of(shape="host", threads=2):
    isa = replace(Isa.host(), **SHAPES[shape])
    return type("Device", (), {"isa": isa, "threads": threads})


@pytest.fixture
def only_rows(monkeypatch):
    """Keeps the competing tactics out of the way."""
    from tactician.targets.cpu.conv_direct import DirectConvolution
    from tactician.targets.cpu.conv_dots import DotConvolution
    from tactician.targets.cpu.winograd import WinogradConvolution

    for other in (DirectConvolution, DotConvolution, WinogradConvolution):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")
        monkeypatch.setattr(other, "wants_channels_last", lambda *_: False)


def rows(*args, **kwargs):
    for level in (0, 1):
        check(*args, tactic="conv_rows", level=level, **kwargs)


class Case:
    """A convolution with ReLU whose result is stored channels-last, and its input if wanted."""

    def __init__(self, x_shape, w_shape, last=True, dynamic=(), **attrs):
        g = Graph("t")
        dims = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate(x_shape))
        self.env = {f"x.{i}": x_shape[i] for i in dynamic}
        x = given = g.add_input("x", "f32", dims)
        if last:  # made by something that stores it channels-last
            one = g.constant(np.ones((x_shape[1], x_shape[1], 1, 1), np.float32))
            x = emit(g, "convolution", [x, one], "before").output
        w, b = (RNG.standard_normal(s).astype("f4") for s in (w_shape, w_shape[:1]))
        y = emit(g, "convolution", [x, g.constant(w), g.constant(b)], "conv", **attrs).output
        y = emit(g, "activation", [y], "relu", fn="relu").output
        one = g.constant(np.ones((16, w_shape[0], 1, 1), np.float32))
        g.outputs = [emit(g, "convolution", [y, one], "behind").output]
        g.toposort()
        wants = lambda r: last or x is not given or r.anchor.inputs[0] is not given  # noqa: E731
        fusion = assign_layouts(g, fuse(g), lambda r: True, wants)
        self.region = next(r for r in fusion.regions if r.anchor and r.anchor.name == "conv")
        self.x = x
        self.data = RNG.standard_normal(x_shape).astype("f4")
        pre, post = attrs.get("pre", (0, 0)), attrs.get("post", (0, 0))
        padded = np.pad(self.data, [(0, 0), (0, 0), *zip(pre, post, strict=True)])
        self.want = torch.nn.functional.conv2d(
            torch.from_numpy(padded), torch.from_numpy(w), torch.from_numpy(b),
            stride=attrs.get("stride", 1), dilation=attrs.get("dilation", 1),
        ).relu().numpy()  # fmt: skip

    def check(self, device, candidate, threads=1):
        region = self.region
        kernel = TACTIC.build(region, candidate, device)
        (out,) = region.outputs
        stored = region.physical.get(self.x, self.x)
        x = self.data if stored is self.x else np.moveaxis(self.data, 1, -1)
        want = np.moveaxis(self.want, 1, -1) if "logical" in out.meta else self.want
        got, intact = guarded(want.shape, np.float32)
        got[...] = np.nan
        run(kernel, {stored: np.ascontiguousarray(x), out: got}, self.env, threads)
        intact()
        atol = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(got, want, atol=atol, err_msg=str(candidate))


def distinct(case, device):
    """Candidates that differ in how many rows share vectors, in taps or in vectors of a tile."""
    found = {}
    for t in choices(Problem(case.region), device):
        found.setdefault((t.share, min(t.taps, 3), t.vectors), t)
    assert len({t.share for t in found.values()}) > 1
    return list(found.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k, c", [(2, 3), (12, 5), (16, 1), (19, 4)])
def test_every_kind_of_tile(shape, k, c):
    device = device_of(shape)
    case = Case((2, c, 11, 13), (k, c, 4, 3), pre=(1, 1), post=(2, 1))
    for candidate in distinct(case, device):
        case.check(device, candidate, threads=2)


@pytest.mark.parametrize("share", [1, 2, 4])
@pytest.mark.parametrize("attrs", [
    {}, {"pre": (2, 0), "post": (0, 3)}, {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)},
    {"stride": (1, 3), "dilation": (2, 1)}, {"dilation": (3, 2), "pre": (3, 4), "post": (3, 2)},
    {"pre": (7, 9), "post": (6, 8)},
], ids=str)
def test_geometry(share, attrs):
    device = device_of()
    for height, last in ((17, True), (12, False)):
        case = Case((1, 3, height, 21), (12, 3, 3, 5), last=last, **attrs)
        fit = [t for t in choices(Problem(case.region), device) if t.share == share]
        for candidate in fit[:: max(1, len(fit) // 3)]:
            case.check(device, candidate)


@pytest.mark.parametrize("rows_of_item", [1, 2, 3, 5])
def test_rows_of_an_item(rows_of_item):
    """Sharing rows that lie apart, and some that don't exist."""
    device = device_of()
    for height in (1, 2, 7, 10, 23):
        case = Case((1, 4, height, 9), (6, 4, 3, 3), pre=(1, 1), post=(1, 1))
        for t in distinct(case, device) if height > 1 else choices(Problem(case.region), device):
            case.check(device, replace(t, rows=rows_of_item), threads=3)


@pytest.mark.parametrize("dynamic", [(0,), (2,), (3,), (0, 2, 3)])
def test_sizes_known_at_run_time(dynamic):
    device = device_of()
    case = Case((2, 3, 9, 21), (12, 3, 3, 3), dynamic=dynamic, pre=(1, 1), post=(1, 1))
    for candidate in distinct(case, device):
        case.check(device, candidate, threads=2)


@pytest.mark.parametrize("x, w", [((2, 7, 90), (10, 7, 5)), ((1, 1, 1, 300), (12, 1, 1, 64))])
def test_one_dimension(only_rows, x, w):
    rows(x, w)
    n = len(x) - 2
    rows(x, w, pre=(0,) * (n - 1) + (9,), post=(0,) * (n - 1) + (9,), stride=(1,) * (n - 1) + (2,))


@pytest.mark.parametrize("width", [1, 2, 5, 8, 15, 16, 17, 31, 100])
def test_widths(only_rows, width):
    rows((1, 8, 6, width), (12, 8, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("act", ["relu", "swish", None])
def test_epilogues(only_rows, act):
    for residual, bias in ((True, True), (False, False), (True, False)):
        rows((2, 6, 9, 17), (13, 6, 3, 3), pre=(1, 1), post=(1, 1), act=act, residual=residual,
             bias=bias)


def test_weights_that_no_lane_uses_stay_out():
    """Infinite inputs reach only the windows that see them."""
    device = device_of()
    case = Case((1, 2, 8, 9), (3, 2, 3, 3))
    case.data[0, :, 4, 4] = np.inf
    seen = np.zeros((6, 7), bool)
    seen[2:5, 2:5] = True
    for candidate in distinct(case, device):
        kernel = TACTIC.build(case.region, candidate, device)
        (out,) = case.region.outputs
        got = np.zeros((1, 6, 7, 3), np.float32)
        x = np.ascontiguousarray(np.moveaxis(case.data, 1, -1))
        run(kernel, {case.region.physical[case.x]: x, out: got})
        assert np.isfinite(got[0][~seen]).all() and not np.isfinite(got[0][seen]).all()


def test_loads_are_few_where_registers_allow():
    """For the widest CPU the first choice reads an input once for all taps of a row."""
    case = Case((1, 16, 24, 20), (12, 16, 6, 6), pre=(2, 2), post=(3, 3))
    first = TACTIC.candidates(case.region, device_of("wide"))[0]
    assert (first.share, first.taps, first.vectors, first.pixels) == (4, 6, 1, 20)


@pytest.mark.parametrize("why, x, w, attrs", [
    ("many vectors", (1, 8, 6, 6), (80, 8, 3, 3), {}),
    ("groups", (1, 16, 6, 6), (16, 8, 3, 3), {"groups": 2}),
    ("several channels", (1, 8, 6, 9), (1, 8, 3, 3), {}),
    ("single tap", (1, 8, 6, 9), (8, 8, 1, 1), {}),
    ("spatial dimensions", (1, 8, 4, 4, 4), (8, 8, 3, 3, 3), {}),
    ("too long", (1, 64, 4, 5000), (8, 64, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
])
def test_refusals_say_why(why, x, w, attrs):
    g = Graph("t")
    weights = g.constant(RNG.standard_normal(w).astype("f4"))
    given = g.add_input("x", "f32", x)
    g.outputs = [emit(g, "convolution", [given, weights], "conv", **attrs).output]
    region = channels_last_region(g)
    assert why in (TACTIC.refuse(region, device_of()) or "")
