"""8-bit convolutions and matrix products, exactly as numpy's integers."""

from dataclasses import replace

import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, region_of

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings, ProfileSettings
from tactician.ir import dims as D
from tactician.ops import evaluate
from tactician.runtime.core import EngineCore
from tactician.runtime.schedule import Schedule
from tactician.targets.cpu import int_depthwise_dot, int_winograd
from tactician.targets.cpu.int_conv import IntContraction
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import toolchain

RNG = np.random.default_rng(0)
LIMITS = {"u8": (0, 256, np.uint8), "i8": (-128, 128, np.int8)}


def ints(shape, dtype="u8", low=None, high=None):
    lo, hi, np_type = LIMITS[dtype]
    return RNG.integers(low or lo, high or hi, shape).astype(np_type)


def run(graph, feeds, level=1, ops=frozenset({"int_conv", "int_matmul"})):
    """Compiles for the CPU and runs once; returns (outputs, tactics of some ops)."""
    ranges = {v.name: range_of(v, feeds[v.name].shape) for v in graph.inputs}
    settings = BuildSettings(optimization_level=level, profiles=(ProfileSettings(ranges),))
    program, _ = compile_network(graph, settings)
    core = EngineCore(program)
    layout = core.layout({i: feeds[program.tensors[i].name].shape for i in program.inputs}, {})
    arena = np.zeros(layout.arena + 64, np.uint8)
    schedule = Schedule(core, layout, -(-arena.ctypes.data // 64) * 64, keep=arena)
    arrays = {i: np.ascontiguousarray(feeds[program.tensors[i].name]) for i in program.inputs}
    arrays |= {
        i: np.zeros(layout.shapes[i], v.dtype.np)
        for i, v in zip(program.outputs, graph.outputs, strict=True)
    }
    schedule.bind({i: a.ctypes.data for i, a in arrays.items()})
    schedule.run()
    tactics = {
        s.info.get("tactic") for s in program.steps
        if ops & set(s.info["ops"])
    }
    return [arrays[i] for i in program.outputs], tactics


def range_of(v, shape):
    """Least, usual and largest shape of an input: symbolic sizes really vary, and kernels for the
    usual ones don't fit."""
    free = [isinstance(d, D.Dim) for d in v.dims]

    def wider(by):
        return tuple(n + by if f else n for n, f in zip(shape, free, strict=True))

    return tuple(max(1, n) for n in wider(-1)), wider(1), wider(3)


def expected(graph, feeds):
    values = {v: feeds[v.name] for v in graph.inputs}
    for node in graph.nodes:
        ins = [None if v is None else values.get(v, v.const) for v in node.inputs]
        values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    return [values[v] for v in graph.outputs]


def requantized(g, y, k, axis, to="u8", residual=None, act="relu"):
    """The usual epilogue: dequantize, bias, residual, activation, quantize."""
    scale = g.constant((RNG.random(k) * 1e-4 + 1e-5).astype("f4"))
    y = emit(g, "dequantize", [y, scale], axis=axis).output
    shape = [1] * y.rank
    shape[axis] = k
    bias = g.constant(RNG.standard_normal(shape).astype("f4"))
    y = emit(g, "binary", [y, bias], fn="add").output
    if residual is not None:
        r = emit(g, "dequantize", [residual, g.constant(np.float32(0.02))]).output
        y = emit(g, "binary", [y, r], fn="add").output
    if act:
        y = emit(g, "activation", [y], fn=act).output
    zero = g.constant(np.array(3, LIMITS[to][2]))
    return emit(g, "quantize", [y, g.constant(np.float32(0.03)), zero]).output


def check_conv(
    x_shape, w_shape, x_type="u8", w_type="i8", zero=7, w_zero=None, small=False, dynamic=(),
    runtime_zero=False, tail=None, residual=False, tactic="int_dot", **attrs
):  # fmt: skip
    g = Graph("t")
    shape = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate(x_shape))
    x = g.add_input("x", x_type, shape)
    feeds = {"x": ints(x_shape, x_type)}
    w = g.constant(ints(w_shape, w_type, *((-64, 65) if small else ())))
    inputs = [x, w]
    zero_array = np.array(zero, LIMITS[x_type][2])
    if runtime_zero:
        inputs.append(g.add_input("z", x_type, ()))
        feeds["z"] = zero_array
    elif zero is not None:
        inputs.append(g.constant(zero_array))
    if w_zero is not None:
        inputs += [None] * (3 - len(inputs))
        inputs.append(g.constant(np.asarray(w_zero, LIMITS[w_type][2])))
    y = emit(g, "int_conv", inputs, "conv", **attrs).output
    if tail:
        r = None
        if residual:
            r = g.add_input("r", "i8", y.dims)
            out = tuple(D.evaluate(d, {f"x.{i}": n for i, n in enumerate(x_shape)})
                        for d in y.dims)  # fmt: skip
            feeds["r"] = ints(out, "i8")
        y = requantized(g, y, w_shape[0], 1, tail, r)
    g.outputs = [y]
    (got,), tactics = run(g, feeds)
    assert tactics == {tactic}
    (want,) = expected(g, feeds)
    if tail:
        assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
        assert (got != want).mean() < 1e-2
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("x_type", ["u8", "i8"])
@pytest.mark.parametrize("w_type, w_zero", [("i8", None), ("u8", 128), ("u8", 77)])
@pytest.mark.parametrize("small", [True, False])
def test_types(x_type, w_type, w_zero, small):
    check_conv((1, 8, 7, 9), (16, 8, 3, 3), x_type, w_type, w_zero=w_zero,
               small=small and w_type == "i8", pre=(1, 1), post=(1, 1))


def test_zero_points_of_weights_by_channel():
    check_conv((1, 8, 5, 6), (6, 8, 3, 3), "u8", "u8", w_zero=[0, 255, 128, 3, 77, 200])


@pytest.mark.parametrize("k", [1, 5, 8, 16, 20, 33])
def test_output_channels(k):
    check_conv((1, 6, 7, 9), (k, 6, 3, 3), pre=(1, 1), post=(1, 1))
    check_conv((1, 6, 7, 9), (k, 6, 3, 3), pre=(1, 1), post=(1, 1), tail="u8")


@pytest.mark.parametrize("c", [1, 2, 3, 4, 8, 17, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_input_channels(c, stride):
    check_conv((2, c, 6, 13), (16, c, 3, 3), pre=(1, 1), post=(1, 1), stride=(stride, stride))


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 12, 29])
def test_widths(width):
    check_conv((1, 8, 3, width), (16, 8, 3, 3), pre=(1, 1), post=(1, 1), small=True)
    check_conv((1, 3, 3, width + 4), (16, 3, 3, 5), pre=(1, 2), post=(1, 2))


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
@pytest.mark.parametrize("c", [3, 6])
def test_geometry(attrs, c):
    check_conv((2, c, 11, 14), (24, c, 3, 3), **attrs)


@pytest.mark.parametrize("x, w", [((2, 8, 20), (16, 8, 5)), ((1, 4, 5, 6, 7), (8, 4, 3, 2, 3))])
def test_one_and_three_dimensions(x, w):
    check_conv(x, w)


@pytest.mark.parametrize("runtime_zero", [False, True])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("window, attrs", [
    ((1, 1), {"post": (0, 1)}), ((2, 1), {"post": (1, 3)}), ((1, 1), {"post": (2, 0)}),
    ((1, 1), {"stride": (2, 2), "padding_mode": "explicit_up"}),
    ((3, 3), {"stride": (2, 2), "padding_mode": "explicit_up"}),
])  # fmt: skip
def test_padding_behind(window, attrs, groups, runtime_zero):
    """Windows of one have no column in front of the input, but may have one behind it."""
    check_conv((2, 8, 6, 8), (16 if groups == 1 else 8, 8 // groups, *window), groups=groups,
               runtime_zero=runtime_zero, **attrs)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise(stride):
    check_conv((2, 16, 9, 10), (40, 16, 1, 1), stride=(stride, stride), tail="i8")


@pytest.mark.parametrize("k, groups", [(32, 2), (16, 2), (64, 4)])
def test_groups(k, groups):
    check_conv((1, 12, 6, 7), (k, 12 // groups, 3, 3), groups=groups, pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("c", [2, 8, 13, 16, 30])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("x_type", ["u8", "i8"])
def test_depthwise(c, stride, x_type):
    check_conv((1, c, 9, 11), (c, 1, 3, 3), x_type, groups=c, pre=(1, 1), post=(1, 1),
               stride=(stride, stride))


@pytest.mark.skipif(Isa.host().intrinsic("dot_u8s8") is None, reason="needs VNNI")
@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("window, stride, dilation", [(3, 1, 1), (3, 2, 1), (5, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("c, size, dynamic", [
    (16, (9, 11), ()), (40, (4, 30), (0,)), (64, (7, 7), ()), (100, (6, 9), (0, 2, 3)),
])  # fmt: skip
def test_depthwise_dots(monkeypatch, c, size, dynamic, window, stride, dilation, number):
    """Windows whose rows are interleaved."""
    kind = "u8" if number % 2 else "i8"
    tiles = int_depthwise_dot._tiles
    monkeypatch.setattr(int_depthwise_dot, "_tiles", lambda *a: [tiles(*a)[number:], tiles(*a)][
        number >= len(tiles(*a))])
    monkeypatch.setattr(IntContraction, "refuse", lambda *_: "switched off")
    pad = (dilation, window // 2 * dilation)
    check_conv((2, c, *size), (c, 1, 3, window), kind, zero=-3 if kind == "i8" else 100, groups=c,
               dynamic=dynamic, stride=(stride, stride), dilation=(1, dilation),
               pre=(1, pad[1]), post=(1, pad[1]), tail="u8" if c != 40 else "i8",
               tactic="int_depthwise")  # fmt: skip


@pytest.mark.parametrize("c, groups", [(8, 1), (3, 1), (8, 8)])
def test_zero_point_of_run_time(c, groups):
    check_conv((1, c, 7, 9), (8, c // groups, 3, 3), runtime_zero=True, groups=groups,
               pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dynamic", [(), (0,), (3,), (0, 2, 3)])
def test_requantized(dynamic, residual):
    check_conv((2, 8, 7, 15), (16, 8, 3, 3), dynamic=dynamic, pre=(1, 1), post=(1, 1), tail="u8",
               residual=residual)
    check_conv((2, 8, 7, 15), (16, 8, 1, 1), dynamic=dynamic, tail="i8", residual=residual)


@pytest.mark.parametrize("x_type", ["u8", "i8"])
@pytest.mark.parametrize("size, dynamic", [((12, 17), ()), ((9, 8), (0, 2, 3)), ((5, 31), ())])
def test_winograd(monkeypatch, x_type, size, dynamic):
    monkeypatch.setattr(IntContraction, "refuse", lambda *_: "switched off")
    monkeypatch.setitem(int_winograd._SPEED, "dot", 1.0)  # dot products are faster than it
    check_conv((2, 40, *size), (33, 40, 3, 3), x_type, zero=-3 if x_type == "i8" else 100,
               dynamic=dynamic, pre=(1, 1), post=(1, 1), tail="u8", tactic="int_winograd")


@pytest.mark.parametrize("k", [16, 40, 64, 65])
@pytest.mark.parametrize("first, last", [("u8", "u8"), ("i8", "u8"), ("u8", "i8")])
@pytest.mark.parametrize("low", [0, 17])
def test_quantized_before_the_sum(k, first, last, low):
    """Results that are quantized, dequantized, added and quantized again, as exporters write it:
    rounding and saturation of both quantizations count."""
    g = Graph("t")
    x = g.add_input("x", "u8", (1, 8, 5, 9))
    y = emit(g, "int_conv", [x, g.constant(ints((k, 8, 1, 1), "i8"))], "conv").output
    scale = g.constant((RNG.random(k) * 1e-3 + 1e-4).astype("f4"))
    y = emit(g, "dequantize", [y, scale], axis=1).output
    y = emit(g, "binary", [y, g.constant(ints((1, k, 1, 1)).astype("f4"))], fn="add").output
    zeros = [g.constant(np.array(z, LIMITS[t][2])) for z, t in ((low, first), (low + 3, last))]
    step = g.constant(np.float32(0.7))
    y = emit(g, "quantize", [y, step, zeros[0]]).output
    y = emit(g, "dequantize", [y, step, zeros[0]]).output
    r = g.add_input("r", "u8", y.dims)
    real = emit(g, "dequantize", [r, g.constant(np.float32(0.5)), g.constant(np.uint8(9))]).output
    y = emit(g, "activation", [emit(g, "binary", [y, real], fn="add").output], fn="relu").output
    g.outputs = [emit(g, "quantize", [y, g.constant(np.float32(1.1)), zeros[1]]).output]
    feeds = {"x": ints(x.dims), "r": ints(r.dims)}
    (got,), tactics = run(g, feeds)
    assert tactics == {"int_dot"}
    gap = np.abs(got.astype(int) - expected(g, feeds)[0].astype(int))
    assert gap.max() <= 1 and (gap > 0).mean() < 1e-2


def test_swish_of_a_quantized_result():
    """A result that is dequantized for two readers which then meet again; untimed, so nothing
    is compared while building."""
    g = Graph("t")
    x = g.add_input("x", "u8", (1, 8, 5, 9))
    y = emit(g, "int_conv", [x, g.constant(ints((24, 8, 1, 1), "i8"))], "conv").output
    y = emit(g, "dequantize", [y, g.constant(np.float32(1e-4))]).output

    def stepped(v, scale, zero):
        pair = [g.constant(np.float32(scale)), g.constant(np.uint8(zero))]
        q = emit(g, "quantize", [v, *pair]).output
        return emit(g, "dequantize", [q, *pair]).output

    y = stepped(y, 0.05, 118)
    s = stepped(emit(g, "activation", [y], fn="sigmoid").output, 1 / 255, 0)
    product = emit(g, "binary", [y, s], fn="mul").output
    pair = [g.constant(np.float32(0.04)), g.constant(np.uint8(40))]
    g.outputs = [emit(g, "quantize", [product, *pair]).output]
    feeds = {"x": ints(x.dims)}
    (got,), tactics = run(g, feeds, level=0)
    assert tactics == {"int_dot"}
    assert np.abs(got.astype(int) - expected(g, feeds)[0].astype(int)).max() <= 2


# --- matrix products ------------------------------------------------------------------------


def matmul_graph(a_shape, b_shape, a_type="u8", zero=9, tail=None, w_zero=None, small=False,
                 weights=None, **kw):
    g = Graph("t")
    a = g.add_input("a", a_type, a_shape)
    if weights is None:
        weights = ints(b_shape, "i8", *((-64, 65) if small else ()))
    b = g.constant(weights)
    inputs = [a, b, g.constant(np.array(zero, LIMITS[a_type][2]))]
    if w_zero is not None:
        inputs.append(g.constant(w_zero))
    y = emit(g, "int_matmul", inputs, "product", **kw).output
    if tail:
        y = requantized(g, y, int(y.dims[-1]), y.rank - 1, tail)
    g.outputs = [y]
    return g, {a: ints(a_shape, a_type)}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    "a, b",
    [((1, 64), (64, 40)), ((5, 33), (33, 17)), ((2, 3, 70), (70, 24)), ((37,), (37, 9)),
     ((9, 21), (21,)), ((3, 16), (16, 1))],
    ids=str,
)  # fmt: skip
def test_products(a, b, small):
    graph, inputs = matmul_graph(a, b, small=small)
    run_all(graph, inputs, Isa.host())


@pytest.mark.parametrize("rows", [7, 40])
def test_many_weights(rows):
    """Weights of which each tile asks for a part of the next panel."""
    graph, inputs = matmul_graph((rows, 512), (512, 200))
    run_all(graph, inputs, Isa.host())
    check_conv((1, 192, 5, rows), (136, 192, 3, 3), pre=(1, 1), post=(1, 1))


@pytest.mark.parametrize("a_type", ["u8", "i8"])
def test_transposed_and_requantized(a_type):
    graph, inputs = matmul_graph((19, 50), (33, 50), a_type, zero=-5 if a_type == "i8" else 99,
                                 tb="transpose", tail="i8")
    run_all(graph, inputs, Isa.host(), tolerance=1.01 / 128)


def test_products_of_three_dimensions_stay_row_major():
    g = Graph("t")
    a = g.add_input("a", "u8", (2, 9, 24))
    y = emit(g, "int_matmul", [a, g.constant(ints((24, 20), "i8"))], "product").output
    g.outputs = [requantized(g, y, 20, 2)]
    feeds = {"a": ints((2, 9, 24))}
    (got,), tactics = run(g, feeds)
    assert tactics == {"int_dot"}
    assert np.abs(got.astype(int) - expected(g, feeds)[0].astype(int)).max() <= 1


def test_zero_points_by_column():
    graph, inputs = matmul_graph((9, 24), (24, 6), w_zero=np.array([0, -128, 127, 3, 5, -9], "i1"))
    run_all(graph, inputs, Isa.host())


def run_all(graph, inputs, isa, tolerance=0.0):
    region = region_of(graph)
    device = type("Device", (), {"isa": isa, "threads": 2})
    tactic = IntContraction()
    assert tactic.refuse(region, device) is None
    for candidate in tactic.candidates(region, device):
        kernel = tactic.build(region, candidate, device)
        check_kernel(graph, kernel, inputs, threads=2, tolerance=tolerance)


WIDE = {"vector_bits": 512, "vector_registers": 32, "masks": True, "int8_dot": True}
NARROW = {"vector_bits": 128, "vector_registers": 32}


@pytest.mark.parametrize("shape", [WIDE, NARROW, {"int8_dot": True}], ids=["512", "128", "dot"])
@pytest.mark.parametrize("a_type", ["u8", "i8"])
def test_other_vectors(shape, a_type):
    """The code of CPUs with dot products and other vectors, spelled out for this one."""
    isa = replace(Isa.host(), **shape)
    graph, inputs = matmul_graph((30, 50), (50, 70), a_type, zero=5)
    run_all(graph, inputs, isa)


@pytest.mark.parametrize(
    "cpu, instruction",
    [("cascadelake", "vpdpbusd"), ("sapphirerapids", "vpdpbusd"), ("znver4", "vpdpbusd"),
     ("haswell", "vpmaddwd"), ("skylake-avx512", "vpmaddwd"), ("neoverse-n1", "sdot")],
)  # fmt: skip
def test_instructions(cpu, instruction):
    isa = Isa.named(cpu)
    graph, _ = matmul_graph((30, 50), (50, 70))
    region = region_of(graph)
    device = type("Device", (), {"isa": isa, "threads": 2})
    kernel = IntContraction().build(region, IntContraction().candidates(region, device)[0], device)
    assert instruction in toolchain(isa).assembly(kernel.source)
