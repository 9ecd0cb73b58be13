"""Winograd convolution against torch: every tile size, edges, tails, epilogues, symbolic sizes."""

import kernels
import numpy as np
import pytest

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings, ProfileSettings
from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.tactics.tuner import Tuner, TunerSettings
from tactician.targets.cpu import load_tactics, winograd
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.winograd import Winograd, WinogradConvolution
from tactician.targets.cpu.winograd_math import transforms

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
DEVICE = CpuDevice(threads=2)
LANES = DEVICE.isa.lanes(32)
TACTIC = WinogradConvolution()
load_tactics()


def last(a):
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1))


class Case:
    """One convolution with an optional epilogue, between two that keep it channels-last."""

    def __init__(self, n, c, h, w, k, *, pre=(1, 1), post=(1, 1), dynamic=(), bias=True,
                 residual=False, act=None, **attrs):
        g = Graph("t")
        shape = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate((n, c, h, w)))
        self.env = {f"x.{i}": (n, c, h, w)[i] for i in dynamic}
        x = g.add_input("x", "f32", shape)
        weights = RNG.standard_normal((k, c, 3, 3)).astype("f4")
        biases = RNG.standard_normal(k).astype("f4")
        inputs = [x, g.constant(weights)] + ([g.constant(biases)] if bias else [])
        y = emit(g, "convolution", inputs, "conv", pre=pre, post=post, **attrs).output
        self.feeds = {x: RNG.standard_normal((n, c, h, w)).astype("f4")}
        padded = np.pad(self.feeds[x], [(0, 0), (0, 0), (pre[0], post[0]), (pre[1], post[1])])
        self.want = torch.nn.functional.conv2d(
            torch.from_numpy(padded.astype("f8")), torch.from_numpy(weights.astype("f8")),
            torch.from_numpy(biases.astype("f8")) if bias else None,
            **{a: attrs[a] for a in attrs if a in ("stride", "dilation", "groups")},
        ).numpy()
        if residual:
            r = g.add_input("r", "f32", y.dims)
            self.feeds[r] = RNG.standard_normal(self.want.shape).astype("f4")
            y = emit(g, "binary", [y, r], "sum", fn="add").output
            self.want = self.want + self.feeds[r]
        if act:
            y = emit(g, "activation", [y], "act", fn=act, alpha=1.0).output
            swish = self.want / (1 + np.exp(-self.want))
            self.want = np.maximum(self.want, 0) if act == "relu" else swish
        one = g.constant(np.ones((8, k, 1, 1), "f4"))
        g.outputs = [emit(g, "convolution", [y, one], "next").output]
        self.region = kernels.channels_last_region(g, "conv")

    def error(self, candidate, threads=1):
        """Largest error of a candidate, relative to the range."""
        kernel = TACTIC.build(self.region, candidate, DEVICE)
        (out,) = self.region.outputs
        shape = last(self.want).shape
        got, intact = kernels.guarded(shape, "f4")
        got[:] = np.nan
        arrays = {out: got}
        for a in kernel.args:
            if not isinstance(a, np.ndarray) and a is not out:
                logical = a.meta.get("logical", a)
                arrays[a] = self.feeds[logical] if logical is a else last(self.feeds[logical])
        kernels.run(kernel, arrays, self.env, threads)
        intact()
        return np.abs(got - last(self.want)).max() / np.abs(self.want).max()


def candidate(m, tiles=8, mr=4, nv=2, groups=1):
    return Winograd(m, tiles, mr, nv, LANES, groups)


@pytest.mark.parametrize("m", [2, 4, 6])
def test_matrices_compute_a_correlation(m):
    f = transforms(m)
    d, w = RNG.standard_normal((m + 2, m + 2)), RNG.standard_normal((3, 3))
    a, b = (np.array(x, float) for x in (f.a, f.b))
    u = f.weights(w).reshape(f.t, f.t)
    got = a @ (u * (b @ d @ b.T)) @ a.T
    want = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(m)] for i in range(m)]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("h, w", [(1, 2), (3, 8), (5, 6), (7, 7), (13, 9)])
def test_sizes(m, h, w):
    assert Case(2, 16, h, w, 16).error(candidate(m)) < 3e-5


@pytest.mark.parametrize("c, k", [(16, 17), (17, 24), (20, 40), (33, 70), (19, 1)])
def test_channel_tails(c, k):
    assert Case(1, c, 9, 10, k).error(candidate(4)) < 1e-5


@pytest.mark.parametrize("pre, post", [((0, 0), (0, 0)), ((2, 0), (0, 1)), ((3, 2), (2, 3))])
def test_padding(pre, post):
    assert Case(1, 16, 8, 11, 16, pre=pre, post=post).error(candidate(4)) < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_groups_of_output_channels_and_threads(groups, threads):
    tile = candidate(4, tiles=5, mr=5, nv=1, groups=groups)
    assert Case(3, 24, 11, 9, 5 * LANES - 3).error(tile, threads) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "relu", "swish"])
@pytest.mark.parametrize("k", [16, 21])
def test_epilogues(bias, act, k):
    assert Case(2, 16, 7, 9, k, bias=bias, act=act, residual=True).error(candidate(4)) < 1e-5


@pytest.mark.parametrize("dynamic", [(0,), (2,), (3,), (0, 2, 3)])
def test_symbolic_sizes(dynamic):
    case = Case(2, 16, 7, 10, 24, dynamic=dynamic, residual=True, act="relu")
    assert case.error(candidate(4), threads=2) < 1e-5
    assert case.error(TACTIC.candidates(case.region, DEVICE)[0]) < 3e-5


@pytest.mark.parametrize("m, most", [(2, 2e-6), (4, 6e-6), (6, 3e-5)])
def test_error_with_many_channels(m, most):
    assert Case(1, 512, 12, 12, 32).error(candidate(m, tiles=36)) < most


@pytest.mark.parametrize(
    "attrs, why",
    [
        ({"k": 8}, "fewer than"),
        ({"stride": (2, 2)}, "stride"),
        ({"dilation": (2, 2)}, "dilation"),
        ({"h": 3, "w": 3, "c": 512, "k": 512}, "as many cycles"),
    ],
)
def test_refusals(attrs, why):
    case = Case(1, attrs.pop("c", 16), attrs.pop("h", 12), attrs.pop("w", 12),
                attrs.pop("k", 16), **attrs)
    assert why in TACTIC.refuse(case.region, DEVICE)


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v2", "neoverse-n1"])
def test_compiles_for_other_processors(name):
    device = CpuDevice(Isa.named(name), threads=4)
    region = Case(1, 40, 20, 21, 72, residual=True, act="relu").region
    for best in TACTIC.candidates(region, device):
        symbol, code = device.compile(TACTIC.build(region, best, device))
        assert symbol.encode() in code and best.lanes == device.isa.lanes(32)


def test_chosen_in_a_network():
    g = Graph("t")
    y = x = g.add_input("x", "f32", (1, 64, 32, 32))
    for i in range(2):
        w = (RNG.standard_normal((64, 64, 3, 3)) / 24).astype("f4")
        y = emit(g, "convolution", [y, g.constant(w)], f"c{i}", pre=(1, 1), post=(1, 1)).output
    g.outputs = [y]
    ranges = ProfileSettings({x.name: ((1, 64, 32, 32),) * 3})
    program, _ = compile_network(g, BuildSettings(optimization_level=1, profiles=(ranges,)))
    chosen = {s.info["tactic"] for s in program.steps if "convolution" in s.info["ops"]}
    assert chosen == {"conv_winograd"}


@pytest.mark.parametrize("wrong", [False, True])
def test_tuner_compares_with_direct_convolution(monkeypatch, wrong):
    """Also where numpy would take too long for a reference."""
    monkeypatch.setattr("tactician.tactics.tuner._CHECK_FLOPS", 0.0)
    if wrong:
        pack = winograd.pack_weights
        monkeypatch.setattr(winograd, "pack_weights", lambda *a: pack(*a) * np.float32(1.001))
    settings = TunerSettings(level=3, seconds=1e-4)
    choice = Tuner(DEVICE, settings).choose(Case(1, 32, 24, 24, 32).region)
    rejected = [k for k, why in choice.info["rejected"].items() if why.startswith("accuracy")]
    timed = [k for k in choice.info["times_us"] if k.startswith("conv_winograd")]
    assert timed and rejected == (timed if wrong else [])
