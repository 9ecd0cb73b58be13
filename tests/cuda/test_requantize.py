"""Rounding to bytes in epilogues of integer convolutions, and text that overlaps kernels."""

import numpy as np
import pytest
from contraction_kit import DEVICE, Graph, emit, guarded, ptx_of, region_of, run

from tactician.ir.dtypes import dtype as named
from tactician.ops import evaluate
from tactician.targets.cuda import conv, gemm
from tactician.targets.cuda.code import EARLY, LAUNCH, WAIT, overlapped
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.product import Tile

rng = np.random.default_rng(8)


def quantized(dtype, zero, scale, relu=False, shape=(1, 32, 9, 8), beside=None):
    """``quantize(relu(dequantize(conv(x, w)) + b + dequantize(z)))``; ``beside``: type of ``z``."""
    g = Graph()
    x = g.add_input("x", "i8", shape)
    c = shape[1]
    w = g.constant(rng.integers(-127, 128, (24, c, 1, 1)).astype(np.int8))
    y = emit(g, "int_conv", [x, w]).output
    factors = g.constant(rng.uniform(1e-4, 3e-4, 24).astype(np.float32))
    y = emit(g, "dequantize", [y, factors], axis=1).output
    bias = rng.standard_normal((1, 24, 1, 1)).astype(np.float32)
    y = emit(g, "binary", [y, g.constant(bias)], fn="add").output
    inputs = {x: rng.integers(-128, 128, shape).astype(np.int8)}
    if beside is not None:
        z = g.add_input("z", beside, y.dims)
        low = 0 if beside == "u8" else -128
        inputs[z] = rng.integers(low, low + 256, tuple(y.dims)).astype(z.dtype.np)
        point = g.constant(z.dtype.np.type(9))
        z = emit(g, "dequantize", [z, g.constant(np.float32(0.013)), point]).output
        y = emit(g, "binary", [y, z], fn="add").output
    if relu:
        y = emit(g, "activation", [y], fn="relu").output
    given = [y, g.constant(np.float32(scale))]
    if zero is not None:
        given.append(g.constant(named(dtype).np.type(zero)))
    g.outputs = [emit(g, "quantize", given, to=named(dtype)).output]
    return g, inputs


@pytest.mark.parametrize(
    ("dtype", "zero", "scale", "relu", "beside"),
    [("i8", None, 0.031, False, None), ("i8", 0, 0.02, True, None), ("u8", 128, 0.011, False, None),
     ("u8", 0, 0.017, True, None), ("i8", -5, 0.001, False, None), ("i8", 7, 3e4, False, None),
     ("i8", 0, 0.02, True, "i8"), ("u8", 3, 0.019, False, "u8"), ("i8", -5, 0.03, True, "u8")],
)  # fmt: skip
def test_bytes(dtype, zero, scale, relu, beside):
    g, inputs = quantized(dtype, zero, scale, relu, beside=beside)
    region = region_of(g)
    kernel = conv.Conv().build(region, Tile(32, 32, 32, 4, 2), DEVICE)
    assert "_low_byte(" in kernel.source and " / " not in kernel.source.split("e1 =")[1]
    if beside is not None:  # is asked for before the sums, and becomes floats without conversions
        text = kernel.source.split("def conv")[1]
        place = kernel.args.index(next(v for v in inputs if v.name == "z"))
        assert text.index("_byte(") > text.index("tl.dot") > text.index(f"tl.load(p{place} + ")
    values = dict(inputs)
    for node in g.nodes:
        ins = [None if v is None else values.get(v, v.const) for v in node.inputs]
        values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    (y,) = g.outputs
    arrays = {v: np.asarray(values.get(v, v.const)) for v in region.inputs}
    arrays[y], canaries = guarded(tuple(y.dims), y.dtype.np)
    run(kernel, arrays)
    canaries()
    far = np.abs(arrays[y].astype(int) - values[y].astype(int))
    assert far.max() <= 1 and (far > 0).mean() < 2e-3  # halves may fall on the other side
    assert len(np.unique(values[y])) > 20 or scale > 1


def product(m=128, n=768, k=768):
    g = Graph()
    x = g.add_input("x", "f16", (m, k))
    w = g.constant(rng.standard_normal((k, n)).astype(np.float16))
    g.outputs = [emit(g, "matmul", [x, w]).output]
    return region_of(g)


def test_kernels_fetch_constants_before_they_wait():
    region = product()
    plain = gemm.build(region, Tile(32, 32, 64, 4, 4), DEVICE)
    assert WAIT in plain.source and LAUNCH in plain.source
    kernel = overlapped(plain)
    assert EARLY not in kernel.source and ("launch_pdl", True) in kernel.launch.options
    assert overlapped(kernel) is kernel
    text = ptx_of(kernel)
    places = [text.index(x) for x in ("prefetch.global.L2", "griddepcontrol.wait", "cp.async.cg",
                                      "griddepcontrol.launch_dependents", "st.global")]  # fmt: skip
    assert places == sorted(places)
    assert text.rindex("prefetch.global.L2") < places[1]


def test_zero_points_known_at_run_time_are_read_after_the_wait():
    g = Graph()
    operands = [g.add_input("x", "u8", (1, 64, 7, 7)),
                g.constant(rng.integers(-127, 128, (16, 64, 3, 3)).astype(np.int8)),
                g.add_input("zero", "u8", ())]  # fmt: skip
    attrs = {"pre": (1, 1), "post": (1, 1)}
    g.outputs = [emit(g, "int_conv", operands, **attrs).output]
    plain = conv.Conv().build(region_of(g), Tile(32, 16, 64, 4, 3), DEVICE)
    text = overlapped(plain).source.split("def conv")[1]
    assert "zx = tl.load(" in text and text.index("gdc_wait") < text.index("tl.load(")


def test_large_products_wait_first():
    plain = gemm.build(product(4096, 4096, 1024), Tile(128, 128, 64, 8, 3), DEVICE)
    assert WAIT not in plain.source
    text = ptx_of(overlapped(plain))
    assert "prefetch.global" not in text and text.count("griddepcontrol.wait") == 1
    assert text.index("griddepcontrol.wait") < text.index("cp.async.cg")


def test_split_sums_overlap():
    device = CudaDevice("sm_90")
    device.overlap = True
    kernel = gemm.build(product(k=3072), Tile(64, 64, 64, 4, 4, split=4), device)
    assert len(device.compile(kernel)[1]) > 5_000
