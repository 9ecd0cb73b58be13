"""Direct convolution on channels-last tensors, against torch."""

from dataclasses import replace

import numpy as np
import pytest
from convkit import check, run
from kernels import channels_last_region

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings, ProfileSettings
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.targets.cpu import conv_direct, isa

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def only_direct(monkeypatch):
    """Keeps the competing tactics out of the way."""
    from tactician.targets.cpu.conv_dots import DotConvolution
    from tactician.targets.cpu.conv_product import ProductConvolution
    from tactician.targets.cpu.conv_rows import RowConvolution
    from tactician.targets.cpu.winograd import WinogradConvolution

    for other in (DotConvolution, ProductConvolution, RowConvolution, WinogradConvolution):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")


@pytest.mark.parametrize("k", [1, 5, 8, 16, 20, 33])
def test_output_channels(k):
    check((1, 5, 7, 9), (k, 5, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("dynamic", [(), (2, 3)])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("window, post", [((1, 1), (0, 1)), ((2, 1), (1, 3)), ((1, 1), (2, 0))])
def test_padding_behind_windows_of_one(window, post, groups, dynamic):
    """Such windows have no column in front of the input, but may have one behind it."""
    check((2, 8, 5, 8), (16 // (1 + (groups > 1)), 8 // groups, *window), post=post,
          groups=groups, dynamic=dynamic)


@pytest.mark.parametrize("c", [1, 3, 4, 8, 17])
def test_input_channels(c):
    check((2, c, 6, 13), (16, c, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 12, 13, 29])
def test_widths(width):
    check((1, 8, 3, width), (16, 8, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize(
    "attrs",
    [
        {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)},
        {"stride": (2, 1), "pre": (0, 2), "post": (1, 0)},
        {"dilation": (2, 3), "pre": (2, 3), "post": (2, 3)},
        {"stride": (3, 2), "dilation": (1, 2)},
        {"pre": (3, 3), "post": (3, 3)},
    ],
    ids=str,
)
def test_geometry(attrs):
    check((2, 6, 11, 14), (24, 6, 3, 3), **attrs)


@pytest.mark.parametrize("x, w", [((2, 8, 20), (16, 8, 5)), ((1, 4, 5, 6, 7), (8, 4, 3, 2, 3))])
def test_one_and_three_dimensions(x, w):
    check(x, w)


@pytest.mark.parametrize("residual", [True, False])
def test_trailing_axis_of_one_position(residual):
    check((2, 8, 20, 1), (16, 8, 5, 1), pre=(2, 0), post=(1, 0), residual=residual, act="relu")
    check((1, 5, 4, 9, 1), (16, 5, 3, 3, 1), dynamic=(0,), residual=residual)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution(stride):
    check((2, 16, 9, 10), (40, 16, 1, 1), stride=(stride, stride), act="relu")


@pytest.mark.parametrize("residual", [True, False])
def test_last_tile_overlaps(residual, monkeypatch):
    """190 pixels are 31.7 tiles of six: the last one begins early instead of being another kind."""
    kinds = []
    tile = conv_direct.Builder._tile
    monkeypatch.setattr(
        conv_direct.Builder, "_tile", lambda self, *a: kinds.append(a) or tile(self, *a)
    )
    monkeypatch.setattr(
        conv_direct, "_shapes", lambda p, i: [(6, 2 if i.vector_registers < 32 else 4)]
    )
    conv_direct._SOURCES._known.clear()
    check((1, 24, 1, 190), (32, 24, 1, 1), residual=residual, act="relu")
    assert [pixels for pixels, _ in kinds] == [6] * len(kinds)
    assert kinds


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("dynamic", [(), (0,)])
def test_images_of_one_pixel(k, dynamic):
    check((13, 16, 1, 1), (k, 16, 1, 1), act="relu", residual=True, dynamic=dynamic)


@pytest.mark.parametrize("k, groups", [(32, 2), (64, 2), (64, 4)])  # whole vectors a group
def test_groups(k, groups):
    check((1, 12, 6, 7), (k, 12 // groups, 3, 3), groups=groups, pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("x", [(1, 20, 9, 13), (2, 24, 7, 7), (3, 18, 14, 5)], ids=str)
@pytest.mark.parametrize(("window", "attrs"), [
    ((3, 3), {"pre": (1, 1), "post": (1, 1)}), ((3, 3), {"pre": (1, 1), "stride": (2, 2)}),
    ((5, 3), {"pre": (4, 2), "post": (4, 2), "dilation": (2, 2)}), ((1, 1), {}),
    ((1, 1), {"stride": (2, 2)}),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_weights_beyond_the_cache(monkeypatch, x, window, attrs, bias):
    """Several passes with sums kept between them, and weights and operands asked for early."""
    small = replace(isa.Isa.host(), l2=4096)
    monkeypatch.setattr(isa, "_host", lambda: small)
    monkeypatch.setattr(conv_direct, "_NEAR_BYTES", 0)
    check(x, (70, x[1], *window), residual=True, bias=bias, **attrs)


@pytest.mark.parametrize(
    ("l2", "passes", "ahead"), [(1 << 30, 1, False), (1 << 20, 1, True), (200 << 10, 3, True)]
)
def test_stream_by_cache(l2, passes, ahead):
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 128, 14, 14))
    w = g.constant(np.zeros((128, 128, 3, 3), "f4"))
    g.outputs = [emit(g, "convolution", [x, w], "c", pre=(1, 1), post=(1, 1)).output]
    region = channels_last_region(g)
    tile = conv_direct.Tile(4, 2, 8, 4)
    stream = conv_direct.Builder(
        conv_direct.Problem(region), tile, replace(isa.Isa.host(), l2=l2)
    ).stream
    assert (stream.passes, stream.ahead > 0) == (passes, ahead)


@pytest.mark.parametrize("c", [2, 8, 13, 16, 30])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(c, stride):
    check((2, c, 9, 11), (c, 1, 3, 3), groups=c, pre=(1, 1), post=(1, 1),
          stride=(stride, stride), act="relu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "relu", "swish"])
def test_epilogues(bias, act):
    check((1, 8, 6, 6), (24, 8, 3, 3), residual=True, act=act, bias=bias)


@pytest.mark.parametrize("dynamic", [(0,), (2,), (3,), (0, 2, 3)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_symbolic_sizes(dynamic, kernel):
    p = (kernel // 2,) * 2
    check((2, 8, 7, 15), (16, 8, kernel, kernel), dynamic=dynamic, pre=p, post=p, residual=True)


def test_chain_of_convolutions_keeps_its_layout():
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 8, 10, 10))
    feeds = {"x": RNG.standard_normal((1, 8, 10, 10)).astype("f4")}
    y, want = x, torch.from_numpy(feeds["x"])
    for i in range(3):
        w = RNG.standard_normal((8, 8, 3, 3)).astype("f4")
        y = emit(g, "convolution", [y, g.constant(w)], f"c{i}", pre=(1, 1), post=(1, 1)).output
        y = emit(g, "pooling", [y], f"p{i}", fn="max", window=(2, 2), stride=(1, 1)).output
        want = torch.nn.functional.conv2d(want, torch.from_numpy(w), padding=1)
        want = torch.nn.functional.max_pool2d(want, 2, 1)
    g.outputs = [y]
    ranges = ProfileSettings({})
    program, report = compile_network(g, BuildSettings(optimization_level=1, profiles=(ranges,)))
    reformats = [s for s in program.steps if s.name.startswith("reformat")]
    assert len(reformats) <= 2 and not report.reference
    (got,), _ = run(g, feeds)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4 * float(want.abs().max()))
