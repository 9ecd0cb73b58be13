"""Convolutions of single taps on bytes with weights that stay, against numpy."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from contraction_kit import (
    DEVICE,
    Graph,
    check_kernel,
    emit,
    guarded,
    ptx_of,
    reference,
    run,
    stored,
    stored_last,
)

from tactician.ir.dtypes import f16, i8
from tactician.targets.cuda import requantize
from tactician.targets.cuda.code import overlapped
from tactician.targets.cuda.conv import Conv
from tactician.targets.cuda.stream import Stream, StreamTile

rng = np.random.default_rng(5)
TACTIC = Stream()
FACTOR, STEP = np.float32(0.013), np.float32(0.031)


def network(pixels, channels, filters, beside, zero, relu, stride=1):
    """``quantize(relu?(dequantize(conv(x, w)) + b + dequantize(z)?))``, inputs, and its result by
    numpy before it is rounded."""
    n, *size = pixels
    g, shape = Graph(), (n, channels, *size)
    x, given = g.add_input("x", i8, shape), {}
    given[x] = rng.integers(-128, 128, shape).astype(np.int8)
    w = rng.integers(-127, 128, (filters, channels, *[1] * len(size))).astype(np.int8)
    factors = rng.uniform(1e-4, 3e-4, filters).astype(np.float32)
    bias = rng.standard_normal(filters).astype(np.float32)
    operands = [x, g.constant(w)]
    if zero is not None:
        operands.append(g.constant(np.int8(zero)))
    y = emit(g, "int_conv", operands, stride=(stride,) * len(size)).output
    y = emit(g, "dequantize", [y, g.constant(factors)], axis=1).output
    y = emit(g, "binary", [y, g.constant(bias.reshape(-1, *[1] * len(size)))], fn="add").output
    each = given[x].astype(np.int32) - (zero or 0)
    each = each[(slice(None), slice(None), *[slice(None, None, stride)] * len(size))]
    sums = np.einsum("nc...,kc->nk...", each, w.reshape(filters, channels).astype(np.int32))
    wide = (-1, *[1] * len(size))
    want = sums * factors.astype(np.float64).reshape(wide) + bias.reshape(wide)
    if beside is not None:
        z = g.add_input("z", beside, y.dims)
        low = 0 if beside == "u8" else -128
        given[z] = rng.integers(low, low + 256, want.shape).astype(z.dtype.np)
        point = 3 if beside == "u8" else -5
        want += (given[z].astype(float) - point) * float(FACTOR)
        operands = [z, g.constant(FACTOR), g.constant(z.dtype.np.type(point))]
        z = emit(g, "dequantize", operands).output
        y = emit(g, "binary", [y, z], fn="add").output
    if relu:
        y, want = emit(g, "activation", [y], fn="relu").output, np.maximum(want, 0)
    g.outputs = [emit(g, "quantize", [y, g.constant(STEP)], to=i8).output]
    return g, given, want


@pytest.mark.parametrize(
    ("pixels", "channels", "filters", "tile", "beside", "zero", "relu", "stride"),
    [((2, 9, 7), 64, 128, StreamTile(64, 64, 64, 4, 3, wide=2, persistent=1), "i8", None, True, 1),
     ((2, 8, 8), 32, 192, StreamTile(128, 64, 32, 8, 2, wide=1, persistent=1), "i8", None, True, 1),
     ((3, 5, 4), 128, 64, StreamTile(128, 64, 128, 4, 2, persistent=2), None, None, False, 1),
     ((1, 130), 64, 256, StreamTile(64, 64, 64, 4, 2, wide=4, persistent=1), "u8", 7, False, 1),
     ((3, 14, 11), 32, 64, StreamTile(64, 64, 32, 4, 2, persistent=1), None, 3, False, 2)],
    ids=["two products", "three parts", "two bands", "zero points", "stride"],
)  # fmt: skip
def test_against_numpy(pixels, channels, filters, tile, beside, zero, relu, stride):
    g, given, want = network(pixels, channels, filters, beside, zero, relu, stride)
    region = stored_last(g, Conv())
    assert TACTIC.refuse_more(region) is None
    few = SimpleNamespace(sms=2, tf32=False)  # so that blocks go through several steps
    kernel = TACTIC.build(region, tile, few)
    (y,) = region.outputs
    back = {twin: v for v, twin in region.physical.items()}
    arrays = {v: stored(v, given[back.get(v, v)]) for v in region.inputs if back.get(v, v) in given}
    arrays |= {v: np.asarray(v.const) for v in kernel.args
               if not isinstance(v, np.ndarray) and v.const is not None}  # fmt: skip
    logical = y.meta["perm"]
    arrays[y], canaries = guarded([want.shape[p] for p in logical], np.int8)
    run(kernel, arrays)
    canaries()
    got = arrays[y].transpose(np.argsort(logical)).astype(int)
    scaled = want / float(STEP)
    right = np.clip(np.rint(scaled), -128, 127)
    off = np.abs(got - right)
    assert off.max() <= 1
    assert np.abs(scaled - np.floor(scaled) - 0.5)[off > 0].max(initial=0) < 2e-3  # halves only
    assert len(np.unique(right)) > 40


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    ("shape", "stride", "zero", "lines"),
    [((2, 32, 6, 52), 1, None, True), ((3, 32, 9, 7), 2, -3, False), ((1, 32, 3, 110), 2, 9, True)],
)  # fmt: skip
def test_windows(shape, stride, zero, lines, near):
    g = Graph()
    x = g.add_input("x", i8, shape)
    given = rng.integers(-128, 128, shape).astype(np.int8)
    w = rng.integers(-127, 128, (64, shape[1], 3, 3)).astype(np.int8)
    operands = [x, g.constant(w)] + ([] if zero is None else [g.constant(np.int8(zero))])
    attrs = {"stride": (stride,) * 2, "pre": (1, 1), "post": (1, 1)}
    y = emit(g, "int_conv", operands, **attrs).output
    g.outputs = [emit(g, "dequantize", [y, g.constant(np.float32(1e-6))], to=f16).output]
    region = stored_last(g, Conv())
    tile = StreamTile(64, 64, 32, 4, 2, persistent=1, taps=9, near=near)
    kernel = TACTIC.build(region, tile, SimpleNamespace(sms=2, tf32=False))
    assert ("tl.minimum(" in kernel.source) == lines
    check_kernel(g, kernel, {x: given}, tolerance=2e-3, region=region)
    image = np.pad(given.astype(int) - (zero or 0), [(0, 0), (0, 0), (1, 1), (1, 1)])
    views = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (2, 3))
    want = np.einsum("nchwij,kcij->nkhw", views[:, :, ::stride, ::stride], w.astype(int)) * 1e-6
    np.testing.assert_allclose(reference(g, {x: given})[0], want, rtol=1e-3, atol=1e-6)


def test_windows_whose_weights_fit():
    def tiles(channels, filters, size):
        g = Graph()
        x = g.add_input("x", i8, (128, channels, size, size))
        w = rng.integers(-127, 128, (filters, channels, 3, 3)).astype(np.int8)
        attrs = {"pre": (1, 1), "post": (1, 1)}
        g.outputs = [emit(g, "int_conv", [x, g.constant(w)], **attrs).output]
        y = g.outputs[0]
        g.outputs = [emit(g, "quantize", [emit(g, "dequantize", [
            y, g.constant(STEP)]).output, g.constant(STEP)], to=i8).output]  # fmt: skip
        region = stored_last(g, Conv())
        return TACTIC.refuse(region, DEVICE), region

    why, region = tiles(64, 64, 56)
    found = TACTIC.candidates(region, DEVICE)
    assert why is None and {t.near for t in found} == {True, False} and found[0].taps == 9
    assert "no room" in tiles(256, 256, 14)[0]


def test_results_are_stored_where_sums_are():
    """The sums of a thread are renamed, not exchanged: no shared memory behind the product."""
    g, _, _ = network((8, 16, 16), 64, 128, "i8", None, True)
    kernel = TACTIC.build(
        stored_last(g, Conv()), StreamTile(64, 64, 64, 4, 3, wide=2, persistent=2), DEVICE
    )
    text = ptx_of(kernel)
    last = text[text.rindex("wgmma.wait_group") :]
    assert "st.shared" not in last and "stmatrix" not in last
    assert re.search(r"st\.global(\.\w+)*\.v4\.b32", last) and "st.global.v2" not in last
    assert "cp.async.cg" in last  # of the steps to come


def test_weights_are_read_before_the_wait():
    g, _, _ = network((8, 16, 16), 64, 128, "i8", None, True)
    tile = StreamTile(64, 64, 64, 4, 3, wide=2, persistent=2)
    kernel = overlapped(TACTIC.build(stored_last(g, Conv()), tile, DEVICE))
    ahead, behind = kernel.source.split("tl.extra.cuda.gdc_wait()")
    constant = {f"p{k}" for k, v in enumerate(kernel.args)
                if isinstance(v, np.ndarray) or v.const is not None}  # fmt: skip
    assert set(re.findall(r"\bp\d\b", ahead.split("pid =")[1])) == constant
    assert "for tm in" in behind and ptx_of(kernel).index("griddepcontrol.wait") > 0


def test_assembly_is_what_numpy_says():
    """Permutations of bytes in the kernels' assembly, by a model of the instruction."""

    def prmt(a, b, selector):
        both = a.to_bytes(4, "little") + b.to_bytes(4, "little")
        return int.from_bytes(bytes(both[selector >> 4 * k & 7] for k in range(4)), "little")

    data = rng.integers(0, 256, 4).astype(np.uint8)
    word = int.from_bytes(data.tobytes(), "little")
    for text, flip in ((requantize._BYTES, 0), (requantize._SIGNED_BYTES, 0x80808080)):
        selectors = [int(s, 16) for s in re.findall(r"0x(74\d4)", text)]
        assert ("0x80808080" in text) == bool(flip)
        made = [prmt(word ^ flip, 0x47000000, s) for s in selectors]
        assert made == requantize.ASSEMBLY[text](data).tolist()
    numbers = rng.integers(0, 1 << 31, 4)
    (first, second, third) = [int(s, 16) for s in re.findall(r"0x([0-9a-f]{4})", requantize._JOIN)]
    a, b = (prmt(int(x), int(y), s) for x, y, s in
            ((*numbers[:2], first), (*numbers[2:], second)))  # fmt: skip
    joined = prmt(a, b, third).to_bytes(4, "little")
    assert list(joined) == requantize.ASSEMBLY[requantize._JOIN](numbers).tolist()


def test_what_is_refused():
    g, _, _ = network((1, 8, 8), 48, 64, None, None, False)
    assert "48 channels" in TACTIC.refuse(stored_last(g, Conv()), DEVICE)
    g, _, _ = network((1, 8, 8), 64, 72, None, None, False)
    assert "72 filters" in TACTIC.refuse(stored_last(g, Conv()), DEVICE)
    g, _, _ = network((1, 8, 8), 64, 64, None, None, False)
    assert "too few pixels" in TACTIC.refuse(stored_last(g, Conv()), DEVICE)


def test_candidates_fit():
    g, _, _ = network((128, 14, 14), 256, 1024, "i8", None, True)
    found = TACTIC.candidates(stored_last(g, Conv()), DEVICE)
    assert len(found) >= 3 and len(set(map(str, found))) == len(found)
    assert all(t.persistent >= 1 and 1024 % t.columns == 0 for t in found)
