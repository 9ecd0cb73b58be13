"""Convolutions and deconvolutions against numpy: geometry, layouts, groups, types, epilogues."""

from dataclasses import replace

import numpy as np
import pytest
from contraction_kit import (
    DEVICE,
    TYPES,
    Graph,
    check_kernel,
    convolution,
    emit,
    ptx_of,
    relu_residual,
    stored_last,
)

from tactician.regions.fuse import fuse
from tactician.targets.cuda import conv, depthwise
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.product import Tile

rng = np.random.default_rng(2)
TACTIC = conv.Conv()
SMALL = Tile(128, 16, 32, 4, 2)  # few blocks: the interpreter runs them one by one


def check(graph, inputs, tile=SMALL, env=None, tolerance=None, last=False, tactic=TACTIC):
    if last:
        region = stored_last(graph, TACTIC)
    else:
        graph.toposort()
        (region,) = fuse(graph).regions
    assert tactic.refuse(region, DEVICE) is None
    if tolerance is None:
        tolerance = TYPES.get(region.outputs[0].dtype.name, (0, 3e-6))[1]
    tile = tile or tactic.candidates(region, DEVICE)[0]
    kernel = tactic.build(region, tile, DEVICE)
    check_kernel(graph, kernel, inputs, env, tolerance, region)


CASES = [
    ((1, 3, 12, 20), (8, 3, 3, 3), {}),
    ((2, 5, 9, 9), (7, 5, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 11, 20), (6, 4, 3, 3), {"pre": (0, 2), "post": (1, 1)}),
    ((1, 4, 16, 27), (9, 4, 5, 3), {"stride": (2, 3), "pre": (2, 1), "post": (2, 1)}),
    ((1, 20, 12, 15), (9, 20, 3, 3), {"dilation": (2, 3), "pre": (2, 3), "post": (2, 3)}),
    ((1, 40, 7, 7), (13, 40, 1, 1), {}),
    ((2, 17, 8, 8), (10, 17, 1, 1), {}),
    ((1, 6, 9, 9), (10, 6, 1, 1), {"stride": (2, 2)}),
    ((1, 6, 9, 9), (10, 6, 1, 1), {"pre": (1, 0), "post": (0, 1)}),
    ((2, 12, 10, 10), (8, 3, 3, 3), {"groups": 4, "pre": (1, 1), "post": (1, 1)}),
    ((1, 64, 5, 5), (40, 32, 3, 3), {"groups": 2, "pre": (1, 1), "post": (1, 1)}),
    ((1, 3, 10, 13), (3, 1, 3, 3), {"groups": 3, "pre": (1, 1), "post": (1, 1)}),
    ((1, 5, 40), (6, 5, 7), {"pre": (3,), "post": (3,)}),
    ((1, 3, 5, 6, 9), (4, 3, 3, 3, 3), {"pre": (1, 1, 1), "post": (1, 1, 1)}),
    ((1, 36, 6, 6), (5, 36, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 3, 10, 11), (4, 3, 4, 4), {"padding_mode": "same_upper", "stride": (2, 2)}),
    ((1, 2, 1, 1), (3, 2, 1, 1), {}),
    ((3, 20, 1, 1), (5, 20, 1, 1), {}),
]  # fmt: skip


@pytest.mark.parametrize("how", ["first", "last", "runtime"])
@pytest.mark.parametrize(("x", "w", "attrs"), CASES)
def test_geometry(x, w, attrs, how):
    check(*convolution(x, w, const=how != "runtime", **attrs), last=how == "last")


DECONVOLUTIONS = [
    ((1, 5, 6, 7), (5, 4, 2, 2), {"stride": (2, 2)}),
    ((1, 20, 5, 6), (20, 4, 3, 3), {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 5, 20), (4, 6, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 5, 6), (4, 6, 3, 4), {"stride": (3, 2), "output_padding": (1, 1)}),
    ((1, 4, 5, 6), (4, 6, 3, 3), {"dilation": (2, 2), "stride": (2, 1)}),
    ((1, 8, 5, 6), (8, 3, 3, 3), {"groups": 4, "stride": (2, 2)}),
    ((1, 3, 9), (3, 2, 4), {"stride": (2,)}),
    ((1, 20, 5, 4), (20, 4, 4, 4), {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}),
    ((1, 36, 4, 4), (36, 4, 2, 2), {"groups": 2, "stride": (2, 2)}),
    ((1, 4, 5, 5), (4, 3, 2, 2), {"stride": (3, 3)}),
    ((2, 4, 5, 5), (4, 3, 5, 3), {"stride": (3, 1), "pre": (4, 0), "post": (1, 0)}),
    ((1, 2, 3, 4, 5), (2, 3, 2, 2, 2), {"stride": (2, 2, 2)}),
]


@pytest.mark.parametrize("how", ["first", "last", "runtime"])
@pytest.mark.parametrize(("x", "w", "attrs"), DECONVOLUTIONS)
def test_deconvolution(x, w, attrs, how):
    case = convolution(x, w, const=how != "runtime", op="deconvolution", **attrs)
    check(*case, last=how == "last")


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("tile", [SMALL, Tile(32, 16, 32, 4, 3, split=3)], ids=str)
def test_types_and_epilogues(dtype, tile, last):
    attrs = {"pre": (1, 1), "post": (1, 1)}
    check(*convolution((1, 32, 7, 9), (20, 32, 3, 3), dtype=dtype, tail=relu_residual, **attrs),
          tile=tile, last=last)  # fmt: skip


@pytest.mark.parametrize("tile", [Tile(32, 32, 32, 4, 2, tma=True), Tile(16, 16, 32, split=2)],
                         ids=str)  # fmt: skip
def test_single_taps_read_the_image_as_a_matrix(tile):
    case = convolution((2, 64, 7, 7), (48, 64, 1, 1), dtype="f16", tail=relu_residual)
    check(*case, tile=tile, last=True)


def test_sizes_known_at_run_time():
    env = {"n": 2, "h": 9}
    attrs = {"pre": (1, 1), "post": (1, 1), "stride": (2, 2)}
    for last in (False, True):
        check(*convolution(("n", 20, "h", 11), (8, 20, 3, 3), symbols=env, **attrs), env=env,
              last=last)  # fmt: skip
        check(*convolution(("n", 20, "h", 11), (8, 20, 1, 1), symbols=env), env=env, last=last)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("window", "pre"), [(7, 3), (3, 1), (5, 2), (4, 0)])
def test_stems_load_pairs(window, pre, turned):
    attrs = {"stride": (2, 2), "pre": (pre, pre), "post": (pre, pre)}
    case = convolution((2, 3, 20, 24), (8, 3, window, window), dtype="f16", **attrs)
    check(*case, tile=Tile(32, 16, 32, 4, 2, turned=turned))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero point"])
def test_stems_of_integers_load_pairs(zero, turned):
    g = Graph()
    x = g.add_input("x", "u8", (1, 3, 12, 16))
    inputs = {x: integers((1, 3, 12, 16), np.uint8)}
    given = [x, g.constant(integers((8, 3, 5, 5), np.int8)), g.constant(np.uint8(7))]
    if zero:
        given.append(g.constant(np.int8(3)))
    g.outputs = [emit(g, "int_conv", given, stride=(2, 2), pre=(2, 2), post=(2, 2)).output]
    check(g, inputs, tile=replace(SMALL, turned=turned and not zero), tolerance=0)


DEPTHWISE = [
    ((2, 5, 10, 13), (5, 1, 3, 3), {"groups": 5, "pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 9, 9), (8, 1, 5, 5), {"groups": 4, "stride": (2, 2), "pre": (2, 2), "post": (2, 2)}),
    ((1, 6, 30), (6, 1, 7), {"groups": 6, "dilation": (2,)}),
    ((1, 3, 8, 8), (3, 1, 9, 9), {"groups": 3, "pre": (4, 4), "post": (4, 4)}),
]


@pytest.mark.parametrize("how", ["first", "last", "runtime"])
@pytest.mark.parametrize(("x", "w", "attrs"), DEPTHWISE)
def test_depthwise(x, w, attrs, how):
    case = convolution(x, w, const=how != "runtime", dtype="f16", tail=relu_residual, **attrs)
    check(*case, tile=None, last=how == "last", tactic=depthwise.Depthwise())


def test_depthwise_deconvolution():
    attrs = {"groups": 6, "stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
    case = convolution((1, 6, 5, 6), (6, 1, 3, 3), op="deconvolution", **attrs)
    check(*case, tile=None, last=True, tactic=depthwise.Depthwise())


def test_depthwise_integers():
    g = Graph()
    x, zx = g.add_input("x", "u8", (1, 20, 6, 7)), g.add_input("zx", "u8", ())
    inputs = {x: integers((1, 20, 6, 7), np.uint8), zx: integers((), np.uint8)}
    weights = [g.constant(integers(s, np.int8)) for s in ((20, 1, 3, 3), (20,))]
    y = emit(g, "int_conv", [x, weights[0], zx, weights[1]], groups=20, pre=(1, 1), post=(1, 1))
    g.outputs = [y.output]
    check(g, inputs, tile=None, tolerance=0, last=True, tactic=depthwise.Depthwise())


def integers(shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("x_type", [np.int8, np.uint8])
@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
@pytest.mark.parametrize("zeros", ["none", "scalar", "filters"])
@pytest.mark.parametrize("how", ["first", "last", "runtime"])
def test_integers(x_type, w_type, zeros, how):
    g = Graph()
    names = {np.int8: "i8", np.uint8: "u8"}
    channels = 3 if how == "first" else 20
    v = g.add_input("x", names[x_type], (1, channels, 6, 7))
    inputs = {v: integers((1, channels, 6, 7), x_type)}
    weights = integers((10, channels, 3, 3), w_type)
    if how == "runtime":
        w = g.add_input("w", names[w_type], weights.shape)
        inputs[w] = weights
    else:
        w = g.constant(weights)
    rest = []
    if zeros != "none":
        zx = g.add_input("zx", names[x_type], ())
        inputs[zx] = integers((), x_type)
        rest = [zx]
    if zeros == "filters":
        rest.append(g.constant(integers((10,), w_type)))
    y = emit(g, "int_conv", [v, w, *rest], pre=(1, 1), post=(1, 1)).output
    if zeros == "scalar":
        y = emit(g, "dequantize", [y, g.constant(rng.random(10).astype(np.float32))], axis=1).output
        y = emit(g, "activation", [y], fn="relu").output
    g.outputs = [y]
    check(g, inputs, tolerance=1e-6 if zeros == "scalar" else 0, last=how == "last")


def resnet(shape, weights, **attrs):
    g = Graph()
    x = g.add_input("x", "f16", shape)
    w = g.constant(np.zeros(weights, np.float16))
    g.outputs = [emit(g, "convolution", [x, w], **attrs).output]
    return stored_last(g, TACTIC)


def test_hopper_multiplies_by_warp_groups():
    region = resnet((8, 128, 28, 28), (128, 128, 3, 3), pre=(1, 1), post=(1, 1))
    ptx = ptx_of(TACTIC.build(region, Tile(128, 128, 64, 4, 3), CudaDevice("sm_90")))
    assert "wgmma.mma_async" in ptx and "cp.async.cg.shared.global" in ptx


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_machine_code(arch):
    device = CudaDevice(arch)
    region = resnet((1, 512, 7, 7), (512, 512, 3, 3), pre=(1, 1), post=(1, 1))
    tile = TACTIC.candidates(region, device)[0]
    assert tile.split > 1
    assert len(device.compile(TACTIC.build(region, tile, device))[1]) > 5_000


def test_windows_through_the_first_level_cache():
    g = Graph()
    x = g.add_input("x", "i8", (4, 64, 57, 56))
    w = g.constant(rng.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8))
    attrs = {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
    g.outputs = [emit(g, "int_conv", [x, w], **attrs).output]
    region = stored_last(g, conv.Conv())
    tile = Tile(64, 64, 64, 4, 3, near=True)
    text = ptx_of(conv.Conv().build(region, tile, DEVICE))
    assert "cp.async.ca.shared.global" in text and "cp.async.cg.shared.global" in text
    plain = ptx_of(conv.Conv().build(region, replace(tile, near=False), DEVICE))
    assert "cp.async.ca.shared.global" not in plain

    small = Graph()
    x = small.add_input("x", "i8", (2, 32, 6, 5))
    w = small.constant(rng.integers(-127, 128, (16, 32, 3, 3)).astype(np.int8))
    small.outputs = [emit(small, "int_conv", [x, w], **attrs).output]
    region = stored_last(small, conv.Conv())
    kernel = conv.Conv().build(region, Tile(16, 16, 32, 4, 2, near=True), DEVICE)
    inputs = {x: rng.integers(-128, 128, tuple(x.dims)).astype(np.int8)}
    check_kernel(small, kernel, inputs, tolerance=0, region=region)
