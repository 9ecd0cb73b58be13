"""Convolutions of few channels on padded images, against numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
from contraction_kit import (
    DEVICE,
    Graph,
    check_kernel,
    convolution,
    emit,
    ptx_of,
    reference,
    region_of,
    relu_residual,
    stored_last,
)

from tactician.ir import dtypes as T
from tactician.regions.chain import join_pairs
from tactician.regions.fuse import fuse
from tactician.targets.cuda.bench import TimingDevice
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.host import host_driver
from tactician.targets.cuda.stem import Stem, StemTile
from tactician.targets.cuda.stream import StreamTile

rng = np.random.default_rng(4)
TACTIC = Stem()
TOLERANCE = {"f16": 2e-3, "bf16": 1e-2}


def check(graph, inputs, tile, last=False, env=None, tolerance=2e-3):
    region = stored_last(graph, TACTIC) if last else region_of(graph)
    assert TACTIC.refuse(region, DEVICE) is None
    kernel = TACTIC.build(region, tile, DEVICE)
    assert len(kernel.before) == 1
    check_kernel(graph, kernel, inputs, env, tolerance, region)


CASES = [
    ((2, 3, 20, 24), (8, 3, 7, 7), {"stride": (2, 2), "pre": (3, 3), "post": (3, 3)}, 2, 32),
    ((1, 3, 15, 16), (8, 3, 3, 3), {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}, 2, 16),
    ((1, 3, 13, 12), (5, 3, 3, 3), {"pre": (0, 1), "post": (1, 0)}, 1, 32),
    ((1, 4, 16, 17), (9, 4, 4, 4), {"stride": (4, 4)}, 2, 16),
    ((2, 2, 9, 14), (4, 2, 5, 2), {"stride": (1, 2), "pre": (2, 0), "post": (2, 1)}, 1, 16),
    ((1, 1, 12, 14), (6, 1, 5, 5), {"stride": (2, 2), "pre": (2, 2), "post": (2, 2)}, 2, 16),
    ((1, 3, 40), (6, 3, 7), {"stride": (2,), "pre": (3,), "post": (3,)}, 1, 16),
]  # fmt: skip


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("x", "w", "attrs", "tall", "bk"), CASES)
def test_geometry(x, w, attrs, tall, bk, last):
    graph, inputs = convolution(x, w, dtype="f16", **attrs)
    check(graph, inputs, StemTile(64, 16, bk, 4, 2, tall=tall), last)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "tile", [StemTile(32, 16, 64, 4, 1, tall=2), StemTile(32, 64, 16, 4, 2)], ids=str
)
def test_epilogues(dtype, tile):
    attrs = {"stride": (2, 2), "pre": (3, 3), "post": (3, 3)}
    graph, inputs = convolution((1, 3, 16, 12), (12, 3, 7, 7), dtype=dtype, tail=relu_residual,
                                **attrs)  # fmt: skip
    check(graph, inputs, tile, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("tall", [1, 2])
@pytest.mark.parametrize("dtype", ["i8", "u8"])
@pytest.mark.parametrize("zero", [None, 7])
def test_bytes(dtype, zero, tall):
    g, shape = Graph(), (2, 3, 16, 18)
    x = g.add_input("x", dtype, shape)
    low = -128 if dtype == "i8" else 0
    inputs = {x: rng.integers(low, low + 256, shape).astype(x.dtype.np)}
    w = g.constant(rng.integers(-127, 128, (10, 3, 5, 5)).astype(np.int8))
    operands = [x, w] + ([] if zero is None else [g.constant(x.dtype.np.type(zero))])
    attrs = {"stride": (2, 2), "pre": (2, 2), "post": (2, 2)}
    g.outputs = [emit(g, "int_conv", operands, **attrs).output]
    check(g, inputs, StemTile(64, 32, 32, 4, 2, tall=tall), tolerance=0)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
@pytest.mark.parametrize(
    ("size", "lines", "zero"), [((6, 104), True, None), ((5, 210), True, 7), ((12, 14), False, 3)]
)
def test_windows_pass_weights_that_stay(size, lines, zero, dtype):
    g, shape = Graph(), (2, 3, *size)
    x = g.add_input("x", dtype, shape)
    low = -128 if dtype == "i8" else 0
    given = rng.integers(low, low + 256, shape).astype(x.dtype.np)
    w = rng.integers(-127, 128, (64, 3, 7, 7)).astype(np.int8)
    operands = [x, g.constant(w)] + ([] if zero is None else [g.constant(x.dtype.np.type(zero))])
    attrs = {"stride": (2, 2), "pre": (3, 3), "post": (3, 3)}
    y = emit(g, "int_conv", operands, **attrs).output
    g.outputs = [emit(g, "dequantize", [y, g.constant(np.float32(2e-6))], to=T.f16).output]
    region = region_of(g)
    few = SimpleNamespace(sms=1, tf32=False)
    kernel = TACTIC.build(region, StreamTile(64, 64, 256, 4, 2, persistent=2), few)
    assert ("o1 = tl.minimum(" in kernel.source) == lines
    check_kernel(g, kernel, {x: given}, tolerance=2e-3, region=region)
    image = np.pad(given.astype(int) - (zero or 0), [(0, 0), (0, 0), (3, 3), (3, 3)])
    views = np.lib.stride_tricks.sliding_window_view(image, (7, 7), (2, 3))[:, :, ::2, ::2]
    want = np.einsum("nchwij,kcij->nkhw", views, w.astype(int)) * 2e-6
    np.testing.assert_allclose(reference(g, {x: given})[0], want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tall", [1, 2])
@pytest.mark.parametrize("zero", [0, -9])
def test_images_quantized_where_they_are_padded(zero, tall):
    g, shape = Graph(), (2, 3, 16, 18)
    x = g.add_input("x", "f16", shape)
    step, w = np.float32(0.021), rng.integers(-127, 128, (10, 3, 5, 5)).astype(np.int8)
    whole = rng.integers(-150, 150, shape) + rng.uniform(-0.4, 0.4, shape)  # far from halves
    given = (whole * step).astype(np.float16)
    operands = [emit(g, "cast", [x], to=T.f32).output, g.constant(step), g.constant(np.int8(zero))]
    q = emit(g, "quantize", operands, to=T.i8).output
    attrs = {"stride": (2, 2), "pre": (2, 2), "post": (2, 2)}
    g.outputs = [emit(g, "int_conv", [q, g.constant(w), g.constant(np.int8(zero))], **attrs).output]
    g.toposort()
    fusion = fuse(g)
    assert len(fusion.regions) == 2
    takes = lambda a, b: TACTIC.takes_pair(a, b, DEVICE)  # noqa: E731
    (region,) = join_pairs(fusion, takes, lambda a, b: False, g.outputs).regions
    assert TACTIC.refuse(region, DEVICE) is None
    assert region.inputs[0] is x and q not in region.outputs
    kernel = TACTIC.build(region, StemTile(64, 32, 32, 4, 2, tall=tall), DEVICE)
    assert x in kernel.before[0].args and q not in kernel.before[0].args
    check_kernel(g, kernel, {x: given}, tolerance=0)
    image = np.clip(np.rint(given.astype(np.float32) / step) + zero, -128, 127) - zero
    image = np.pad(image, [(0, 0), (0, 0), (2, 2), (2, 2)])
    views = np.lib.stride_tricks.sliding_window_view(image, (5, 5), (2, 3))[:, :, ::2, ::2]
    want = np.einsum("nchwij,kcij->nkhw", views, w.astype(np.float64))
    np.testing.assert_array_equal(reference(g, {x: given})[0], want)


def test_batch_known_at_run_time():
    attrs = {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
    graph, inputs = convolution(("n", 3, 8, 10), (6, 3, 3, 3), dtype="f16", symbols={"n": 3},
                                **attrs)  # fmt: skip
    check(graph, inputs, StemTile(32, 16, 16, 4, 2, tall=2), env={"n": 3})


@pytest.mark.parametrize(
    ("x", "w", "attrs", "why"),
    [((1, 8, 9, 9), (4, 8, 3, 3), {}, "channels"), ((1, 3, 9, 9), (4, 3, 1, 1), {}, "windows"),
     ((1, 3, 9, 9), (4, 3, 3, 3), {"dilation": (2, 2)}, "dilated"),
     ((1, 1, 9, 9), (4, 1, 3, 3), {}, "odd")],
)  # fmt: skip
def test_refusals(x, w, attrs, why):
    graph, _ = convolution(x, w, dtype="f16", **attrs)
    assert why in TACTIC.refuse(region_of(graph), DEVICE)


def test_candidates_gather_whole_runs():
    attrs = {"stride": (2, 2), "pre": (3, 3), "post": (3, 3)}
    graph, _ = convolution((8, 3, 64, 64), (64, 3, 7, 7), dtype="f16", **attrs)
    region, device = region_of(graph), CudaDevice("sm_90")
    tiles = TACTIC.candidates(region, device)
    assert {t.tall for t in tiles} == {1, 2}
    for tile in tiles[:2]:
        kernel = TACTIC.build(region, tile, device)
        text = ptx_of(kernel)
        assert "ld.global.v4.b32" in text or "cp.async.cg.shared.global [ %r" in text, tile
        assert len(device.compile(kernel)[1]) > 1000 < len(device.compile(kernel.before[0])[1])


def test_timed_with_the_kernel_ahead():
    """The tuner times both kernels, on memory of their own."""
    attrs = {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
    graph, inputs = convolution((1, 3, 8, 10), (6, 3, 3, 3), dtype="f16", **attrs)
    region, device = region_of(graph), TimingDevice(host_driver("interpreter", 90))
    arrays = {v: np.asarray(inputs.get(v, v.const)) for v in region.inputs}
    arrays.update((v, np.zeros(tuple(v.dims), v.dtype.np)) for v in region.outputs)
    bench = device.bench(region, arrays, {}, 1e-3)
    assert bench.time(TACTIC.build(region, StemTile(32, 16, 16, 4, 2, tall=2), device)) > 0
    (got,) = bench.results(True).values()
    (want,) = reference(graph, inputs)
    np.testing.assert_allclose(got.astype("f"), want.astype("f"), rtol=1e-2, atol=1e-2)
    bench.close()
