"""Convolutions and deconvolutions against numpy: geometry, groups, ranks, types, epilogues."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, random, region_of

from tactician.ir import dims as D
from tactician.targets.cpu import conv_gemm
from tactician.targets.cpu.contraction import Tile
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import Toolchain

rng = np.random.default_rng(2)
TACTIC = conv_gemm.ConvGemm()
NP = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def convolution(
    x, w, bias=True, const=True, dtype="f32", tail=None, symbols=None, op="convolution", **attrs
):
    """A graph of one convolution (and what ``tail`` adds), its region and its input arrays."""
    g = Graph()
    real = tuple((symbols or {}).get(d, d) for d in x)
    v = g.add_input("x", dtype, tuple(D.sym(d) if isinstance(d, str) else d for d in x))
    inputs = {v: random(rng, real, NP[dtype])}
    if const:
        weights = g.constant(random(rng, w, NP[dtype]))
    else:
        weights = g.add_input("w", dtype, w)
        inputs[weights] = random(rng, w, NP[dtype])
    operands = [v, weights]
    if bias:
        channels = w[0] if op == "convolution" else w[1] * attrs.get("groups", 1)
        operands.append(g.constant(random(rng, (channels,), NP[dtype])))
    y = emit(g, op, operands, **attrs).output
    if tail:
        y = tail(g, y, inputs)
    g.outputs = [y]
    return g, region_of(g), inputs


def check(graph, region, inputs, tile=None, threads=1, env=None, tolerance=3e-6):
    device = CpuDevice(threads=threads)
    assert TACTIC.refuse(region, device) is None
    tile = tile or TACTIC.candidates(region, device)[0]
    kernel = TACTIC.build(region, tile, device)
    check_kernel(graph, kernel, inputs, env, threads, tolerance)


CASES = [
    ((1, 3, 12, 40), (8, 3, 3, 3), {}),
    ((2, 5, 9, 9), (7, 5, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 11, 50), (6, 4, 3, 3), {"pre": (0, 2), "post": (1, 1)}),
    ((1, 4, 16, 37), (9, 4, 5, 3), {"stride": (2, 3), "pre": (2, 1), "post": (2, 1)}),
    ((1, 4, 20, 45), (9, 4, 3, 3), {"dilation": (2, 3), "pre": (2, 3), "post": (2, 3)}),
    ((1, 40, 7, 7), (13, 40, 1, 1), {}),
    ((2, 17, 8, 8), (10, 17, 1, 1), {}),
    ((1, 6, 9, 9), (10, 6, 1, 1), {"stride": (2, 2)}),
    ((1, 6, 9, 9), (10, 6, 1, 1), {"pre": (1, 0), "post": (0, 1)}),
    ((2, 12, 10, 10), (8, 3, 3, 3), {"groups": 4, "pre": (1, 1), "post": (1, 1)}),
    ((1, 9, 10, 33), (9, 1, 3, 3), {"groups": 9, "pre": (1, 1), "post": (1, 1)}),
    ((1, 5, 70), (6, 5, 7), {"pre": (3,), "post": (3,)}),
    ((1, 3, 5, 6, 20), (4, 3, 3, 3, 3), {"pre": (1, 1, 1), "post": (1, 1, 1)}),
    ((1, 70, 6, 6), (5, 70, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 3, 10, 11), (4, 3, 4, 4), {"padding_mode": "same_upper", "stride": (2, 2)}),
    ((1, 2, 1, 1), (3, 2, 1, 1), {}),
]


@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
@pytest.mark.parametrize(("x", "w", "attrs"), CASES)
def test_geometry(x, w, attrs, const):
    check(*convolution(x, w, const=const, **attrs))


DECONVOLUTIONS = [
    ((1, 5, 6, 7), (5, 4, 2, 2), {"stride": (2, 2)}),
    ((2, 5, 6, 7), (5, 4, 3, 3), {"stride": (2, 2), "pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 5, 20), (4, 6, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((1, 4, 5, 6), (4, 6, 3, 4), {"stride": (3, 2), "output_padding": (1, 1)}),
    ((1, 4, 5, 6), (4, 6, 3, 3), {"dilation": (2, 2), "stride": (2, 1)}),
    ((1, 8, 5, 6), (8, 3, 3, 3), {"groups": 4, "stride": (2, 2)}),
    ((1, 3, 9), (3, 2, 4), {"stride": (2,)}),
    ((1, 2, 3, 4, 5), (2, 3, 2, 2, 2), {"stride": (2, 2, 2)}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), DECONVOLUTIONS)
def test_deconvolution(x, w, attrs):
    check(*convolution(x, w, op="deconvolution", **attrs))


def test_oracle_agrees_with_torch():
    """The numpy reference used here against an implementation that isn't ours."""
    torch = pytest.importorskip("torch")
    from kernels import reference

    attrs = {"stride": (2, 1), "pre": (1, 2), "post": (1, 2), "dilation": (1, 2), "groups": 2}
    g, _, inputs = convolution((2, 6, 9, 11), (4, 3, 3, 3), **attrs)
    x, w, b = (inputs.get(v, v.const) for v in g.nodes[0].inputs)
    want = torch.nn.functional.conv2d(
        *map(torch.from_numpy, (x, w, b)), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2
    )
    assert np.allclose(reference(g, inputs)[0], want.numpy(), atol=1e-4)
    g, _, inputs = convolution(
        (1, 4, 5, 6), (4, 6, 3, 4), op="deconvolution", stride=(3, 2), output_padding=(1, 1)
    )
    x, w, b = (inputs.get(v, v.const) for v in g.nodes[0].inputs)
    want = torch.nn.functional.conv_transpose2d(
        *map(torch.from_numpy, (x, w, b)), stride=(3, 2), output_padding=(1, 1)
    )
    assert np.allclose(reference(g, inputs)[0], want.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "tile",
    [Tile(6, 2, 6, 16, kc=18), Tile(4, 3, 8, 48, kc=9, rows_outer=True), Tile(2, 1, 4, 8, kc=27)],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_blockings(tile, threads):
    tile = replace(tile, nb=tile.nb * Isa.host().lanes(32) // 8)  # written for 8 lanes
    attrs = {"pre": (1, 1), "post": (1, 1)}
    panel = tile.nv * Isa.host().lanes(32)
    tile = replace(tile, nb=-(-tile.nb // panel) * panel)
    check(*convolution((2, 7, 10, 21), (13, 7, 3, 3), **attrs), tile, threads)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 5, 20), (3, 8, 9), (2, 1, 33)])
@pytest.mark.parametrize("taps", [1, 3])
def test_symbolic_sizes(n, h, w, taps):
    symbols = {"n": n, "h": h, "w": w}
    pad = taps // 2
    g, region, inputs = convolution(
        ("n", 4, "h", "w"), (6, 4, taps, taps), symbols=symbols, pre=(pad, pad), post=(pad, pad)
    )
    check(g, region, inputs, env=symbols)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f64", 1e-14), ("f16", 2e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("taps", [1, 3])
def test_types(dtype, tolerance, taps):
    args = convolution((1, 6, 10, 20), (5, 6, taps, taps), dtype=dtype)
    check(*args, tolerance=tolerance)


def relu(g, y, inputs):
    return emit(g, "activation", [y], fn="relu").output


def residual(g, y, inputs):
    r = g.add_input("r", "f32", y.dims)
    inputs[r] = random(rng, r.dims)
    return relu(g, emit(g, "binary", [y, r], fn="add").output, inputs)


def per_channel(g, y, inputs):
    s = g.constant(random(rng, (1, y.dims[1], 1, 1)))
    return emit(g, "binary", [y, s], fn="mul").output


def per_column(g, y, inputs):
    s = g.constant(random(rng, (1, 1, 1, y.dims[3])))
    return emit(g, "binary", [y, s], fn="mul").output


def per_position(g, y, inputs):
    s = g.constant(random(rng, (1, 1, *y.dims[2:])))
    return emit(g, "binary", [y, s], fn="mul").output


def swish(g, y, inputs):
    return emit(g, "activation", [y], fn="swish").output


@pytest.mark.parametrize("tail", [relu, residual, per_channel, per_column, per_position, swish])
@pytest.mark.parametrize("groups", [1, 2])
def test_epilogues(tail, groups):
    attrs = {"pre": (1, 1), "post": (1, 1), "groups": groups}
    check(*convolution((2, 4, 6, 21), (14, 4 // groups, 3, 3), tail=tail, **attrs))


@pytest.mark.parametrize("cpu", ["sapphirerapids", "neoverse-n1", "x86-64"])
@pytest.mark.parametrize("op", ["convolution", "deconvolution"])
def test_other_cpus(cpu, op):
    isa = Isa.named(cpu)
    _, region, _ = convolution((1, 16, 10, 20), (16, 16, 3, 3), op=op, tail=residual)
    tile = TACTIC.candidates(region, type("Device", (), {"isa": isa, "threads": 4}))[0]
    code = Toolchain(isa).compile(conv_gemm.build(region, tile, isa).source)
    assert code[:4] == b"\x7fELF"
