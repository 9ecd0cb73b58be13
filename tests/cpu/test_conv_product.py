"""Convolutions of single pixels as matrix products, against torch."""

from dataclasses import replace

import kernels
import numpy as np
import pytest
from convkit import check, run

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.targets.cpu import gemm
from tactician.targets.cpu.conv_product import ProductConvolution, product_of
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def only_product(monkeypatch):
    """Keeps the competing tactics out of the way."""
    from tactician.targets.cpu.conv_direct import DirectConvolution
    from tactician.targets.cpu.conv_dots import DotConvolution
    from tactician.targets.cpu.conv_gemm import ConvGemm

    for other in (ConvGemm, DirectConvolution, DotConvolution):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")


def product(*args, level=3, **kw):
    check(*args, tactic="conv_product", level=level, **kw)


@pytest.mark.parametrize("k", [1, 3, 8, 16, 24, 33, 130])
@pytest.mark.parametrize("pixels", [(2, 2), (5, 7), (14, 14)], ids=str)
def test_sizes(k, pixels):
    product((1, 12, *pixels), (k, 12, 1, 1))


@pytest.mark.parametrize("c", [1, 5, 64, 300])
def test_input_channels(c):
    product((1, c, 6, 5), (20, c, 1, 1), bias=False)


def residual_block(shape, act, dynamic=()):
    """Two convolutions whose results are added, activated and convolved; all of one pixel."""
    g = Graph("t")
    dims = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate(shape))
    x = g.add_input("x", "f32", dims)
    w = [RNG.standard_normal(s).astype("f4") for s in ((44, shape[1]), (44, shape[1]), (12, 44))]
    b = RNG.standard_normal(44).astype("f4")
    one, two = (
        emit(g, "convolution", [x, g.constant(a[:, :, None, None]), g.constant(b)]).output
        for a in w[:2]
    )
    y = emit(g, "binary", [one, two], fn="add").output
    if act:
        y = emit(g, "activation", [y], fn=act, alpha=1.0).output
    g.outputs = [emit(g, "convolution", [y, g.constant(w[2][:, :, None, None])]).output]
    xs = RNG.standard_normal(shape).astype("f4")
    (got,), tactics = run(g, {"x": xs}, 3)
    assert tactics == {"conv_product"}
    y = np.einsum("kc,nchw->nkhw", w[0] + w[1], xs.astype("f8")) + 2 * b[:, None, None]
    y = {None: y, "relu": np.maximum(y, 0), "swish": y / (1 + np.exp(-y))}[act]
    want = np.einsum("kc,nchw->nkhw", w[2], y)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("act", [None, "relu", "swish"])
def test_epilogues(act):
    residual_block((1, 40, 9, 9), act)


@pytest.mark.parametrize(
    "shape", [(3, 8, 4, 4), (2, 8, 9), (2, 8, 3, 4, 5), (64, 8, 1, 1)], ids=str
)
def test_images_and_ranks(shape):
    n = len(shape) - 2
    product(shape, (20, 8, *(1,) * n), act="relu")


@pytest.mark.parametrize("dynamic", [(0,), (2, 3), (0, 2, 3)], ids=str)
def test_sizes_known_at_run_time(dynamic):
    residual_block((2, 24, 7, 6), "relu", dynamic)


def test_every_blocking_with_vectors_of_all_widths():
    """Also those that no tuner would come to, among them blocks of the inner dimension."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 96, 13, 13))
    w, b = RNG.standard_normal((200, 96, 1, 1)).astype("f4"), RNG.standard_normal(200).astype("f4")
    y = emit(g, "convolution", [x, g.constant(w), g.constant(b)], "conv").output
    one = g.constant(np.ones((8, 200, 1, 1), "f4"))
    y = emit(g, "activation", [y], fn="relu").output
    g.outputs = [emit(g, "convolution", [y, one], "next").output]
    region = kernels.channels_last_region(g, "conv")
    xs = RNG.standard_normal(x.shape).astype("f4")
    want = np.einsum("kc,nchw->nhwk", w[:, :, 0, 0], xs) + b
    for isa in (Isa.host(), replace(Isa.host(), vector_bits=512, vector_registers=32, masks=True)):
        device = type("Device", (), {"isa": isa, "threads": 2})
        tactic = ProductConvolution()
        tiles = list(tactic.candidates(region, device))
        first = tiles[0]
        tiles += [
            replace(first, kc=32), replace(first, pack_a=True), replace(first, rows_outer=True),
            replace(first, kc=48, pack_a=True, mb=2 * first.mr, nb=first.nv * isa.lanes(32)),
        ]
        for tile in tiles:
            kernel = tactic.build(region, tile, device)
            (got,) = kernels.run_region(region, kernel, {x: xs})
            np.testing.assert_allclose(got, np.maximum(want, 0), atol=1e-4 * np.abs(want).max())


def test_refuses_what_is_no_product():
    device = CpuDevice(threads=2)
    for attrs, w in (({"stride": (2, 2)}, (8, 8, 1, 1)), ({"groups": 2}, (16, 4, 1, 1)),
                     ({"pre": (1, 1)}, (8, 8, 1, 1)), ({}, (8, 8, 3, 3))):
        g = Graph("t")
        x = g.add_input("x", "f32", (1, 8, 6, 6))
        y = emit(g, "convolution", [x, g.constant(np.ones(w, "f4"))], "conv", **attrs).output
        one = g.constant(np.ones((8, w[0], 1, 1), "f4"))
        g.outputs = [emit(g, "convolution", [y, one], "next").output]
        assert ProductConvolution().refuse(kernels.channels_last_region(g, "conv"), device)


def test_slices_of_wider_pixels():
    """A concatenation's parts are written and read where they lie."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 16, 6, 7))
    parts, wants, xs = [], [], RNG.standard_normal((1, 16, 6, 7)).astype("f4")
    for k in (8, 24):
        w = RNG.standard_normal((k, 16, 1, 1)).astype("f4")
        parts.append(emit(g, "convolution", [x, g.constant(w)], f"part{k}").output)
        wants.append(np.einsum("kc,nchw->nkhw", w[:, :, 0, 0], xs))
    y = emit(g, "concat", parts, axis=1).output
    w = RNG.standard_normal((12, 32, 1, 1)).astype("f4")
    g.outputs = [emit(g, "convolution", [y, g.constant(w)], "last").output]
    (got,), tactics = run(g, {"x": xs})
    assert tactics == {"conv_product"}
    want = np.einsum("kc,nchw->nkhw", w[:, :, 0, 0], np.concatenate(wants, 1))
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_first_blockings_share_the_work_evenly():
    """Both threads get whole blocks of about the same size."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 256, 14, 14))
    y = emit(g, "convolution", [x, g.constant(np.ones((1024, 256, 1, 1), "f4"))], "conv").output
    g.outputs = [emit(g, "convolution", [y, g.constant(np.ones((8, 1024, 1, 1), "f4"))]).output]
    region = kernels.channels_last_region(g, "conv")
    from tactician.targets.cpu.conv_common import Problem

    p = product_of(Problem(region))
    assert (p.m, p.n, p.k) == (196, 1024, 256)
    for tile in gemm.tiles(p, Isa.host(), 2)[:2]:
        rows, columns = -(-196 // tile.mb), -(-1024 // tile.nb)
        assert rows * columns % 2 == 0
