"""bf16 and f16 convolutions and matrix products, against numpy on the same operands."""

from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, region_of
from test_int_conv import expected, run

from tactician.ir import dims as D
from tactician.ir.dtypes import dtype
from tactician.targets.cpu.bf16_conv import Bf16Contraction
from tactician.targets.cpu.conv_direct import DirectConvolution
from tactician.targets.cpu.conv_gemm import ConvGemm
from tactician.targets.cpu.conv_product import ProductConvolution
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import toolchain

RNG = np.random.default_rng(0)
HOST = Isa.host()
WIDE = {"vector_bits": 512, "vector_registers": 32, "masks": True, "bf16_dot": True}


def floats(shape, kind):
    return RNG.standard_normal(shape).astype("f4").astype(dtype(kind).np)


def check_conv(x_shape, w_shape, kind, tactic, dynamic=(), act="relu", **attrs):
    g = Graph("t")
    shape = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate(x_shape))
    x = g.add_input("x", kind, shape)
    feeds = {"x": floats(x_shape, kind)}
    w, b = floats(w_shape, kind), floats(w_shape[:1], kind)
    y = emit(g, "convolution", [x, g.constant(w), g.constant(b)], "conv", **attrs).output
    g.outputs = [emit(g, "activation", [y], fn=act).output]
    (got,), tactics = run(g, feeds, ops={"convolution"})
    assert tactics == {tactic}
    (want,) = expected(g, feeds)
    got, want = got.astype("f4"), np.asarray(want).astype("f4")
    np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())


@pytest.fixture
def with_dots(monkeypatch):
    """This machine as one with dot products of bf16, which are spelled out."""
    isa = replace(HOST, bf16_dot=True)
    monkeypatch.setattr(Isa, "host", staticmethod(lambda: isa))
    for other in (DirectConvolution, ConvGemm, ProductConvolution):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")


CASES = [
    ((1, 8, 7, 9), (16, 8, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((2, 5, 6, 13), (20, 5, 3, 3), {"pre": (1, 1), "post": (1, 1), "stride": (2, 2)}),
    ((1, 3, 16, 17), (9, 3, 5, 5), {"pre": (2, 2), "post": (2, 2), "stride": (2, 2)}),
    ((2, 16, 9, 10), (40, 16, 1, 1), {}),
    ((1, 12, 6, 7), (32, 6, 3, 3), {"groups": 2, "dilation": (2, 1)}),
    ((2, 8, 20), (16, 8, 5), {"dynamic": (0, 2)}),
]


@pytest.mark.parametrize("x, w, attrs", CASES, ids=str)
def test_dot_products(with_dots, x, w, attrs):
    check_conv(x, w, "bf16", "bf16_dot", **attrs)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("x, w, attrs", CASES, ids=str)
def test_narrow_storage(monkeypatch, kind, x, w, attrs):
    for other in (ConvGemm, ProductConvolution, Bf16Contraction):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")
    check_conv(x, w, kind, "conv_direct", **attrs)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("c", [8, 13])
def test_depthwise(monkeypatch, kind, c):
    monkeypatch.setattr(ConvGemm, "refuse", lambda *_: "switched off")
    check_conv((1, c, 9, 11), (c, 1, 3, 3), kind, "conv_direct", groups=c, pre=(1, 1),
               post=(1, 1))


def matmul(a_shape, b_shape, **attrs):
    g = Graph("t")
    a = g.add_input("a", "bf16", a_shape)
    y = emit(g, "matmul", [a, g.constant(floats(b_shape, "bf16"))], **attrs).output
    g.outputs = [emit(g, "activation", [y], fn="gelu_erf").output]
    return g, {a: floats(a_shape, "bf16")}


@pytest.mark.parametrize("shape", [WIDE, {"bf16_dot": True}], ids=["512", "256"])
@pytest.mark.parametrize(
    "a, b, attrs",
    [((30, 50), (50, 70), {}), ((2, 3, 33), (40, 33), {"tb": "transpose"}), ((1, 64), (64, 9), {}),
     ((5, 21), (21,), {"tb": "vector"}), ((21,), (21, 8), {"ta": "vector"})],
    ids=str,
)  # fmt: skip
def test_products(shape, a, b, attrs):
    device = type("Device", (), {"isa": replace(HOST, **shape), "threads": 2})
    graph, inputs = matmul(a, b, **attrs)
    region, tactic = region_of(graph), Bf16Contraction()
    assert tactic.refuse(region, device) is None
    for candidate in tactic.candidates(region, device):
        kernel = tactic.build(region, candidate, device)
        check_kernel(graph, kernel, inputs, threads=2, tolerance=1e-2)


@pytest.mark.parametrize(
    "cpu, instruction",
    [("znver4", "vdpbf16ps"), ("sapphirerapids", "vdpbf16ps"), ("neoverse-v1", "bfdot")],
)
def test_instructions(cpu, instruction):
    isa = Isa.named(cpu)
    device = type("Device", (), {"isa": isa, "threads": 2})
    region, tactic = region_of(matmul((30, 50), (50, 70))[0]), Bf16Contraction()
    kernel = tactic.build(region, tactic.candidates(region, device)[0], device)
    text = toolchain(isa).assembly(kernel.source)
    assert instruction in text
    assert isa.arch != "x86_64" or "vcvtneps2bf16" in text
