"""Convolutions and matrix products on tile registers, which are spelled out on this machine."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, region_of
from llvmlite import ir
from test_bf16_conv import check_conv, floats
from test_int_conv import check_conv as check_int_conv
from test_int_conv import ints, matmul_graph

from tactician.targets.cpu import isa as isa_module
from tactician.targets.cpu import tile_conv
from tactician.targets.cpu.bf16_conv import Bf16Contraction
from tactician.targets.cpu.conv_direct import DirectConvolution
from tactician.targets.cpu.conv_gemm import ConvGemm
from tactician.targets.cpu.conv_product import ProductConvolution
from tactician.targets.cpu.gemm import Gemm
from tactician.targets.cpu.int_conv import IntContraction
from tactician.targets.cpu.int_winograd import IntWinograd
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.tile_conv import TiledBf16, TiledBytes
from tactician.targets.cpu.tile_ir import TileUnit
from tactician.targets.cpu.toolchain import toolchain

HOST = Isa.host()
WIDE = {"vector_bits": 512, "vector_registers": 32, "masks": True, "amx": True}
SHAPES = {"512": WIDE, "own": {"amx": True}}


def device(**isa):
    return type("Device", (), {"isa": replace(HOST, **isa), "threads": 2})


def run_all(graph, inputs, tactic, where, tolerance):
    region = region_of(graph)
    assert tactic.refuse(region, where) is None
    for candidate in tactic.candidates(region, where):
        kernel = tactic.build(region, candidate, where)
        check_kernel(graph, kernel, inputs, threads=2, tolerance=tolerance)


def matmul(a_shape, b_shape, fn="gelu_erf", **attrs):
    g = Graph("t")
    a = g.add_input("a", "bf16", a_shape)
    y = emit(g, "matmul", [a, g.constant(floats(b_shape, "bf16"))], **attrs).output
    g.outputs = [emit(g, "activation", [y], fn=fn).output]
    return g, {a: floats(a_shape, "bf16")}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "a, b, attrs",
    [((30, 64), (64, 70), {}), ((2, 3, 33), (40, 33), {"tb": "transpose"}), ((3, 64), (64, 9), {}),
     ((5, 21), (21,), {"tb": "vector"}), ((49, 160), (160, 100), {}), ((100, 80), (80, 64), {}),
     ((49, 160), (160, 300), {}), ((50, 70), (70, 280), {}), ((2, 40, 96), (96, 256), {})],
    ids=str,
)  # fmt: skip
def test_products(shape, a, b, attrs):
    run_all(*matmul(a, b, **attrs), TiledBf16(), device(**shape), 1e-2)


def int_matmul(a_shape, b_shape, *args, limits=None, **kw):
    weights = ints(b_shape, "i8" if limits is None else "u8", *(limits or ()))
    return matmul_graph(a_shape, b_shape, *args, weights=weights, **kw)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("a_type", ["u8", "i8"])
@pytest.mark.parametrize("limits", [None, (0, 256)], ids=["s8", "u8"])
@pytest.mark.parametrize(
    "a, b", [((30, 64), (64, 70)), ((2, 9, 50), (50, 33)), ((17, 192), (192, 24)),
             ((35, 100), (100, 272))], ids=str
)
def test_integer_products(shape, a_type, limits, a, b):
    graph, inputs = int_matmul(a, b, a_type, zero=5, limits=limits)
    run_all(graph, inputs, TiledBytes(), device(**shape), 0.0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("to", ["u8", "i8"])
@pytest.mark.parametrize("n", [16, 40, 64, 72])
def test_requantized_products(shape, to, n):
    graph, inputs = int_matmul((35, 64), (n, 64), tail=to, tb="transpose")
    run_all(graph, inputs, TiledBytes(), device(**shape), 1.01 / 128)


def test_weights_that_are_no_bytes_are_refused():
    where = device(**WIDE)
    spread = np.array([0, -128, 127, 3, 5, -9], "i1")
    graph, _ = int_matmul((9, 24), (24, 6), w_zero=spread)
    assert "no bytes" in TiledBytes().refuse(region_of(graph), where)
    graph, _ = int_matmul((9, 24), (24, 6))
    assert TiledBytes().refuse(region_of(graph), where) is None
    assert "no tiles" in TiledBytes().refuse(region_of(graph), device(amx=False))
    graph, _ = int_matmul((1, 24), (24, 6))
    assert "one row" in TiledBytes().refuse(region_of(graph), where)


# --- convolutions ---------------------------------------------------------------------------


@pytest.fixture
def tiled(monkeypatch):
    """This machine as one with tiles, and without other tactics for what they do."""
    isa = replace(HOST, **WIDE)
    monkeypatch.setattr(Isa, "host", staticmethod(lambda: isa))
    others = (DirectConvolution, ConvGemm, ProductConvolution, Bf16Contraction, IntContraction)
    for other in (*others, IntWinograd, Gemm):
        monkeypatch.setattr(other, "refuse", lambda *_: "switched off")
    return isa


CASES = [
    ((1, 8, 7, 9), (16, 8, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((2, 32, 5, 20), (40, 32, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((2, 5, 6, 13), (20, 5, 3, 3), {"pre": (1, 1), "post": (1, 1), "stride": (2, 2)}),
    ((1, 3, 16, 17), (9, 3, 5, 5), {"pre": (2, 2), "post": (2, 2), "stride": (2, 2)}),
    ((1, 64, 9, 18), (16, 64, 3, 3), {}),
    ((1, 96, 8, 8), (33, 96, 3, 3), {"pre": (0, 1), "post": (2, 0), "stride": (1, 2)}),
    ((2, 16, 9, 10), (40, 16, 1, 1), {}),
    ((2, 72, 9, 10), (24, 72, 1, 1), {"stride": (2, 2)}),
    ((1, 13, 9, 10), (24, 13, 1, 1), {}),
    ((1, 96, 6, 7), (64, 48, 3, 3), {"groups": 2, "dilation": (2, 1), "pre": (1, 1)}),
    ((1, 40, 6, 7), (32, 20, 1, 1), {"groups": 2}),
    ((2, 8, 20), (16, 8, 5), {"dynamic": (0, 2)}),
    ((2, 40, 7, 19), (24, 40, 3, 3), {"dynamic": (0, 2, 3), "pre": (1, 1), "post": (1, 1)}),
    ((3, 32, 4, 5), (24, 32, 1, 1), {"dynamic": (0, 2, 3)}),
    ((3, 30, 4, 5), (24, 30, 1, 1), {"dynamic": (0,)}),
    ((1, 4, 5, 6, 7), (8, 4, 3, 2, 3), {"pre": (1, 0, 1), "post": (0, 0, 1)}),
    ((1, 16, 1, 20), (16, 16, 1, 7), {"pre": (0, 3), "post": (0, 3)}),
]  # fmt: skip


@pytest.mark.parametrize("x, w, attrs", CASES, ids=str)
def test_convolutions(tiled, x, w, attrs):
    check_conv(x, w, "bf16", "amx_bf16", **attrs)


@pytest.mark.parametrize("x, w, attrs", CASES, ids=str)
@pytest.mark.parametrize("kind", ["u8", "i8"])
def test_integer_convolutions(tiled, x, w, attrs, kind):
    zero = 100 if kind == "u8" else -3
    check_int_conv(x, w, kind, zero=zero, tactic="amx_int8", **attrs)


@pytest.mark.parametrize("c", [8, 32, 70])
@pytest.mark.parametrize("pad", [0, 1])
def test_zero_point_of_run_time(tiled, c, pad):
    check_int_conv((1, c, 7, 9), (40, c, 3, 3), runtime_zero=True, pre=(pad, pad),
                   post=(pad, pad), tactic="amx_int8")


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)])
@pytest.mark.parametrize("k", [16, 65])
def test_requantized(tiled, dynamic, residual, k):
    check_int_conv((2, 8, 7, 15), (k, 8, 3, 3), dynamic=dynamic, pre=(1, 1), post=(1, 1),
                   tail="u8", residual=residual, tactic="amx_int8")
    check_int_conv((2, 64, 7, 15), (k, 64, 1, 1), dynamic=dynamic, tail="i8", residual=residual,
                   tactic="amx_int8")


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("c, k, size, stride", [
    (32, 72, (5, 20), 1), (8, 16, (6, 33), 1), (70, 130, (9, 7), 1), (40, 48, (7, 7), 2),
])  # fmt: skip
def test_every_choice_of_blocks(tiled, monkeypatch, number, c, k, size, stride):
    every = tile_conv.blocks

    def one(*a):
        found = every(*a)
        return [found[number % len(found)]]

    monkeypatch.setattr(tile_conv, "blocks", one)
    attrs = {"pre": (1, 1), "post": (1, 1), "stride": (stride, stride)}
    check_conv((2, c, *size), (k, c, 3, 3), "bf16", "amx_bf16", **attrs)
    check_int_conv((2, c, *size), (k, c, 3, 3), tail="u8", tactic="amx_int8", **attrs)


def only(monkeypatch, wanted):
    """Blocks of one kind, which there have to be."""
    every = tile_conv.blocks

    def kind(*a):
        found = [t for t in every(*a) if wanted(t)]
        assert found
        return found[:1]

    monkeypatch.setattr(tile_conv, "blocks", kind)


@pytest.mark.parametrize("x, w, attrs", [
    ((1, 32, 7, 7), (48, 32, 3, 3), {"pre": (1, 1), "post": (1, 1)}),
    ((3, 40, 9, 6), (20, 40, 3, 2), {"pre": (0, 1), "post": (2, 0), "stride": (1, 2)}),
    ((1, 72, 14, 14), (64, 72, 1, 1), {"stride": (2, 2)}),
    ((1, 64, 9, 9), (32, 32, 3, 3), {"groups": 2, "dilation": (2, 2), "pre": (1, 1)}),
    ((2, 16, 4, 5, 6), (24, 16, 2, 3, 3), {"pre": (0, 1, 1), "post": (1, 1, 1)}),
], ids=str)  # fmt: skip
def test_gathered_pixels(tiled, monkeypatch, x, w, attrs):
    only(monkeypatch, lambda t: t.gathered)
    check_conv(x, w, "bf16", "amx_bf16", **attrs)
    check_int_conv(x, w, "u8", zero=100, tactic="amx_int8", **attrs)


def test_gathered_pixels_of_a_zero_point_of_run_time(tiled, monkeypatch):
    only(monkeypatch, lambda t: t.gathered)
    check_int_conv((1, 70, 7, 9), (40, 70, 3, 3), runtime_zero=True, pre=(1, 1), post=(1, 1),
                   tactic="amx_int8")


@pytest.mark.parametrize("c", [40, 64, 100])
def test_pixels_copied_into_tiles(tiled, monkeypatch, c):
    only(monkeypatch, lambda t: t.tiled)
    check_conv((2, c, 5, 9), (272, c, 1, 1), "bf16", "amx_bf16")
    check_int_conv((2, 2 * c, 5, 9), (272, 2 * c, 1, 1), "u8", zero=7, tactic="amx_int8")


@pytest.mark.parametrize("k", [16, 40, 56])
def test_residuals_are_asked_for_pixels_ahead(tiled, monkeypatch, k):
    only(monkeypatch, lambda t: t.rows == t.ms and not t.channels_first)
    check_int_conv((2, 64, 7, 15), (k, 64, 1, 1), tail="u8", residual=True, tactic="amx_int8")
    check_int_conv((1, 64, 12, 9), (k, 64, 1, 1), tail="i8", residual=True, tactic="amx_int8")


def test_weights_that_no_cache_keeps_are_asked_for_ahead(tiled, monkeypatch):
    where = device(**WIDE)
    for c, ahead in ((64, False), (1024, True)):
        region = region_of(matmul((40, c), (c, c))[0])
        assert any(t.ahead for t in TiledBf16().candidates(region, where)) == ahead
    only(monkeypatch, lambda t: t.ahead)
    check_conv((1, 256, 6, 20), (128, 256, 3, 3), "bf16", "amx_bf16", pre=(1, 1), post=(1, 1))


# --- machine code ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind, instruction", [("bf16", "tdpbf16ps"), ("u8", "tdpbusd"),
                                               ("i8", "tdpbssd")])  # fmt: skip
def test_instructions(kind, instruction):
    where = type("Device", (), {"isa": Isa.named("sapphirerapids"), "threads": 2})
    if kind == "bf16":
        graph, tactic = matmul((64, 128), (128, 64), fn="relu")[0], TiledBf16()
    else:
        graph, tactic = int_matmul((64, 128), (128, 64), kind)[0], TiledBytes()
    region = region_of(graph)
    kernel = tactic.build(region, tactic.candidates(region, where)[0], where)
    text = toolchain(where.isa).assembly(kernel.source)
    for name in (instruction, "ldtilecfg", "tileloadd", "tilestored", "tilerelease"):
        assert name in text
    assert "tile_load" not in text  # nothing is spelled out
    assert "vpslld" not in text  # results are rounded once
    if kind == "bf16":  # and two vectors at a time
        assert "vcvtne2ps2bf16" in text and "vcvtneps2bf16" not in text


def test_blocks_ask_for_the_next_panel():
    where = type("Device", (), {"isa": Isa.named("sapphirerapids"), "threads": 2})
    region = region_of(matmul((64, 1024), (1024, 512))[0])
    chosen = TiledBf16().candidates(region, where)[0]
    assert chosen.ahead
    for ahead in (True, False):
        kernel = TiledBf16().build(region, replace(chosen, ahead=ahead), where)
        assert ("prefetcht1" in toolchain(where.isa).assembly(kernel.source)) == ahead


def test_gelu_takes_one_polynomial():
    """Instructions of a vector: no division, few roundings."""
    where = type("Device", (), {"isa": Isa.named("sapphirerapids"), "threads": 2})
    region = region_of(matmul((64, 128), (128, 64))[0])
    kernel = TiledBf16().build(region, TiledBf16().candidates(region, where)[0], where)
    block = toolchain(where.isa).assembly(kernel.source).split("block_2x32:")[1]
    loop = block.split("vcvtne2ps2bf16")[0].rsplit("LBB", 1)[1].splitlines()[1:]
    assert "vdivps" not in block and len(loop) <= 2 * 18


def test_configuration_is_what_the_unit_takes():
    """Shapes of registers lie where the instruction reads them."""
    isa = Isa.named("sapphirerapids")
    module = ir.Module("t")
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "f")
    b = ir.IRBuilder(fn.append_basic_block())
    unit = TileUnit(isa, module)
    unit.configure(b, fn.args[0], [(ir.IntType(64)(14), 64), (ir.IntType(64)(7), 48)])
    unit.release(b)
    b.ret_void()
    assert "ldtilecfg" in toolchain(isa).assembly(str(module))
    emulated = TileUnit(replace(HOST, amx=True), ir.Module("e"))
    fn = ir.Function(emulated.module, fn.function_type, "f")
    b = ir.IRBuilder(fn.append_basic_block())
    emulated.configure(b, fn.args[0], [(ir.IntType(64)(14), 64), (ir.IntType(64)(7), 48)])
    b.ret_void()
    state = np.full(emulated.state_bytes + 64, 0xAB, np.uint8)
    code = toolchain().load(str(emulated.module))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("f"))(state.ctypes.data)
    config = state[:64]
    assert config[0] == 1 and config[1] == 0 and not config[2:16].any()
    assert config[16:48].view("<u2").tolist() == [64, 48] + [0] * 14
    assert config[48:64].tolist() == [14, 7] + [0] * 14
    assert not state[64:-64].any() and (state[-64:] == 0xAB).all()


def test_a_cleared_register_holds_zeros():
    unit = TileUnit(replace(HOST, amx=True), ir.Module("c"))
    fn = ir.Function(unit.module, ir.FunctionType(ir.VoidType(), [ir.PointerType()] * 2), "f")
    b = ir.IRBuilder(fn.append_basic_block())
    state, x = fn.args
    unit.configure(b, state, [(ir.IntType(64)(5), 64)] * 2)
    for tile in (0, 1):
        unit.load(b, state, tile, x, ir.IntType(64)(64))
    unit.clear(b, state, 1)
    for tile in (0, 1):
        to = b.gep(x, [ir.IntType(64)(1024 * (1 + tile))], source_etype=ir.IntType(8))
        unit.store(b, state, tile, to, ir.IntType(64)(64))
    b.ret_void()
    memory = np.full((3, 1024), 0xAB, np.uint8)
    state = np.zeros(unit.state_bytes, np.uint8)
    code = toolchain().load(str(unit.module))
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.address("f"))
    entry(state.ctypes.data, memory.ctypes.data)
    assert (memory[1] == 0xAB).all()
    assert not memory[2, : 5 * 64].any() and (memory[2, 5 * 64 :] == 0xAB).all()


# --- permission --------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_a_process_that_may_not_use_tiles_has_none(monkeypatch, allowed):
    told = {"triple": "x86_64-unknown-linux-gnu", "cpu": "sapphirerapids",
            "features": "amx-tile amx-int8 amx-bf16 avx512f avx512vl avx512bw avx512dq avx"}
    monkeypatch.setattr(isa_module, "_told", told)
    messages = []
    monkeypatch.setattr(isa_module, "log_verbose", messages.append)
    monkeypatch.setattr(isa_module, "_may_use_tiles", lambda: allowed)
    found = isa_module._host.__wrapped__()
    assert found.amx == found.tile_instructions == allowed
    assert ("+amx-tile" in found.features) == allowed
    assert found.vector_bits == 512
    assert ["AMX" in m for m in messages] == [True] * (not allowed)
