"""Matrix products: shapes, tails, flags, broadcasting, types, epilogues, splits."""

import ml_dtypes
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
    region_of,
    run,
)

from tactician.ir import dims as D
from tactician.ir import dtypes
from tactician.targets.cuda import conv, gemm
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.product import Tile, to_tf32

rng = np.random.default_rng(1)
GEMM, GEMV = gemm.Gemm(), gemm.Gemv()
TYPES = {"f32": (np.float32, 2e-6), "f16": (np.float16, 2e-3), "bf16": (ml_dtypes.bfloat16, 1e-2),
         "f8e4m3": (ml_dtypes.float8_e4m3fn, 2e-2)}  # fmt: skip


def product(a, b, ta="none", tb="none", const=True, dtype="f32", tail=None, symbols=None, to=None):
    """A graph of one product (and what ``tail`` adds), its region and its input arrays."""
    g = Graph()
    np_type = TYPES[dtype][0]
    real = [tuple((symbols or {}).get(d, d) for d in s) for s in (a, b)]
    dims = [tuple(D.sym(d) if isinstance(d, str) else d for d in s) for s in (a, b)]
    inputs = {}
    x = g.add_input("x", dtype, dims[0])
    inputs[x] = rng.standard_normal(real[0]).astype(np_type)
    if const:
        w = g.constant(rng.standard_normal(real[1]).astype(np_type))
    else:
        w = g.add_input("w", dtype, dims[1])
        inputs[w] = rng.standard_normal(real[1]).astype(np_type)
    extra = {} if to is None else {"to": to}
    y = emit(g, "matmul", [x, w], ta=ta, tb=tb, **extra).output
    if tail:
        y = tail(g, y, inputs)
    g.outputs = [y]
    return g, region_of(g), inputs


def check(graph, region, inputs, tile=None, env=None, tolerance=None, tactic=GEMM):
    assert tactic.refuse(region, DEVICE) is None
    if tolerance is None:
        tolerance = TYPES.get(region.outputs[0].dtype.name, (0, 2e-6))[1]
    tile = tile or tactic.candidates(region, DEVICE)[0]
    check_kernel(graph, tactic.build(region, tile, DEVICE), inputs, env, tolerance)


SHAPES = [
    ((1, 1), (1, 1)), ((6, 16), (16, 16)), ((7, 33), (33, 19)), ((13, 5), (5, 47)),
    ((1, 100), (100, 77)), ((2, 30), (30, 40)), ((5, 1), (1, 9)), ((97, 61), (61, 101)),
]  # fmt: skip
SMALL = Tile(32, 16, 16, 1, 1)


@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_shapes(a, b, const):
    check(*product(a, b, const=const))


@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
@pytest.mark.parametrize("ta", ["none", "transpose", "vector"])
@pytest.mark.parametrize("tb", ["none", "transpose", "vector"])
def test_flags(ta, tb, const):
    a = {"none": (3, 11, 21), "transpose": (3, 21, 11), "vector": (3, 21)}[ta]
    b = {"none": (3, 21, 18), "transpose": (3, 18, 21), "vector": (3, 21)}[tb]
    check(*product(a, b, ta, tb, const))


@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 7, 9), (9, 20)), ((2, 3, 7, 9), (3, 9, 20)), ((3, 1, 7, 9), (2, 9, 20)),
        ((7, 9), (4, 9, 20)), ((2, 1, 3, 5, 9), (2, 1, 9, 6)), ((4, 7, 9), (1, 9, 1)),
    ],
)  # fmt: skip
def test_batches_broadcast(a, b, const):
    check(*product(a, b, const=const), tile=SMALL)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("tb", ["none", "transpose"])
def test_types(dtype, tb):
    b = (72, 40) if tb == "none" else (40, 72)
    check(*product((35, 72), b, tb=tb, dtype=dtype, to=dtypes.f32 if dtype == "f8e4m3" else None))


@pytest.mark.parametrize(
    "tile",
    [SMALL, Tile(32, 16, 32, 4, 3), Tile(16, 32, 16, 4, 2, split=3),
     Tile(32, 32, 16, 4, 2, group=1), Tile(16, 16, 16, 4, 2, split=8),
     Tile(32, 16, 16, persistent=1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_tiles(tile, batch):
    check(*product((*batch, 70, 130), (*batch, 130, 50), const=False, dtype="f16"), tile=tile)


@pytest.mark.parametrize(("ta", "tb"), [("none", "none"), ("none", "transpose"),
                                        ("transpose", "none"), ("transpose", "transpose")])
def test_descriptors(ta, tb):
    a = (2, 40, 72) if ta == "none" else (2, 72, 40)
    b = (2, 72, 56) if tb == "none" else (2, 56, 72)
    tile = Tile(32, 32, 32, 4, 2, tma=True)
    check(*product(a, b, ta, tb, const=False, dtype="f16"), tile=tile)


def bias_relu(g, y, inputs):
    bias = g.constant(rng.standard_normal(y.dims[-1]).astype(y.dtype.np))
    y = emit(g, "binary", [y, bias], fn="add").output
    return emit(g, "activation", [y], fn="relu").output


def residual_gelu(g, y, inputs):
    r = g.add_input("r", y.dtype, y.dims)
    inputs[r] = rng.standard_normal(y.dims).astype(y.dtype.np)
    y = emit(g, "activation", [y], fn="gelu_erf").output
    return emit(g, "binary", [y, r], fn="add").output


def row_factor(g, y, inputs):
    shape = (*y.dims[:-1], 1)
    r = g.add_input("r", y.dtype, shape)
    inputs[r] = rng.standard_normal(shape).astype(y.dtype.np)
    return emit(g, "binary", [y, r], fn="mul").output


@pytest.mark.parametrize("tail", [bias_relu, residual_gelu, row_factor])
@pytest.mark.parametrize("tile", [SMALL, Tile(16, 32, 16, split=2)], ids=str)
def test_epilogues(tail, tile):
    check(*product((2, 19, 40), (40, 37), tail=tail, dtype="f16"), tile=tile)
    check(*product((2, 19, 40), (2, 40, 37), tail=tail, const=False), tile=tile)


def test_sizes_known_at_run_time():
    env = {"n": 3, "s": 21}
    for b, const in (((24, 40), True), (("n", 24, "s"), False)):
        case = product(("n", "s", 24), b, const=const, symbols=env, tail=None)
        check(*case, tile=SMALL, env=env)
    case = product(("n", 16, "s"), ("n", "s", 24), const=False, symbols=env)
    check(*case, tile=Tile(16, 16, 16, split=2), env=env)


def test_unknown_broadcast_is_refused():
    _, region, _ = product(("n", 4, 8), ("m", 8, 4), const=False, symbols={"n": 1, "m": 2})
    assert "broadcast" in GEMM.refuse(region, DEVICE)


@pytest.mark.parametrize(
    ("a", "b", "ta", "tb"),
    [((1, 100), (100, 77), "none", "none"), ((3, 64), (50, 64), "none", "transpose"),
     ((40, 70), (70,), "none", "vector"), ((70,), (70, 33), "vector", "none"),
     ((5, 40, 24), (5, 24, 1), "none", "none"), ((90,), (90,), "vector", "vector"),
     ((4, 1, 33), (4, 33, 20), "none", "none")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
def test_few_rows(a, b, ta, tb, dtype, const):
    tail = bias_relu if "vector" not in (ta, tb) else None
    check(*product(a, b, ta, tb, const, dtype, tail), tactic=GEMV)


def integers(shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("a_type", [np.int8, np.uint8])
@pytest.mark.parametrize("b_type", [np.int8, np.uint8])
@pytest.mark.parametrize("zeros", ["none", "scalar", "lines"])
@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
def test_integers(a_type, b_type, zeros, const):
    g, inputs = Graph(), {}

    def operand(name, array, constant=False):
        if constant:
            return g.constant(array)
        v = g.add_input(name, {"int8": "i8", "uint8": "u8"}[array.dtype.name], array.shape)
        inputs[v] = array
        return v

    a = operand("a", integers((2, 21, 37), a_type))
    b = operand("b", integers((37, 25), b_type), const)
    rest = []
    if zeros != "none":
        rest = [operand("za", integers(() if zeros == "scalar" else (21, 1), a_type)),
                operand("zb", integers(() if zeros == "scalar" else (25,), b_type), const)]
    y = emit(g, "int_matmul", [a, b, *rest]).output
    if zeros == "scalar":
        scale = g.constant(rng.random(25).astype(np.float32))
        y = emit(g, "dequantize", [y, scale], axis=2).output
        y = emit(g, "activation", [y], fn="relu").output
    g.outputs = [y]
    region = region_of(g)
    check(g, region, inputs, tile=SMALL, tolerance=0 if zeros != "scalar" else 1e-6)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_machine_code(arch):
    _, region, _ = product((512, 512), (512, 512), dtype="f16", tail=bias_relu)
    device = CudaDevice(arch)
    kernel = GEMM.build(region, Tile(128, 128, 64, 4, 3), device)
    assert len(device.compile(kernel)[1]) > 10_000


def test_hopper_multiplies_by_warp_groups():
    _, region, _ = product((2048, 2048), (2048, 2048), const=False, dtype="f16")
    ptx = ptx_of(GEMM.build(region, Tile(128, 128, 64, 4, 3, tma=True), CudaDevice("sm_90")))
    assert "wgmma.mma_async" in ptx and "cp.async.bulk.tensor" in ptx


def nearest(x):
    """Mantissas of 10 bits (and the one in front), halves away from zero, by scaling."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    exponent = np.maximum(exponent, -125)  # below, the steps stay as they are
    mantissa = np.ldexp(x.astype(np.float64), -exponent)
    rounded = np.copysign(np.floor(np.abs(mantissa) * 2048 + 0.5), mantissa) / 2048
    return np.ldexp(rounded, exponent)


def test_tf32_is_the_nearest():
    x = rng.standard_normal(5000).astype(np.float32) * 10.0 ** rng.integers(-44, 38, 5000)
    x = x.astype(np.float32)
    x[:6] = 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-11 - 2.0**-23, 0.0, -0.0, 2.0 - 2.0**-23
    x[6:12] = np.float32(1e-45), -3e-39, 2.0**-126, 65504.0, 1 + 3 * 2.0**-11, 1 + 2.0**-10
    np.testing.assert_array_equal(to_tf32(x), nearest(x))
    assert to_tf32(x)[:3].tolist() == [1 + 2.0**-10, -1 - 2.0**-10, 1.0]
    assert not (to_tf32(x).view(np.uint32) & 0x1FFF).any()
    odd = np.array([np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38], np.float32)
    made = to_tf32(odd)
    assert made[:2].tolist() == [np.inf, -np.inf] and np.isnan(made[2])
    assert np.isfinite(made[3:]).all() and made[3] == -made[4] > 3.4e38


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize(("op", "ta", "tb"), [("matmul", "none", "transpose"),
                                              ("matmul", "transpose", "none"),
                                              ("convolution", "", "")])  # fmt: skip
def test_constants_become_tf32_where_they_are_used_so(op, ta, tb, tf32):
    g = Graph()
    shape = (1, 32, 5, 4) if op == "convolution" else (24, 32) if ta == "none" else (32, 24)
    x = g.add_input("x", "f32", shape)
    given = nearest(rng.standard_normal(shape).astype(np.float32)).astype(np.float32)
    size = (16, 32, 1, 1) if op == "convolution" else (16, 32) if tb == "transpose" else (32, 16)
    w = rng.standard_normal(size).astype(np.float32)
    attrs = {} if op == "convolution" else {"ta": ta, "tb": tb}
    g.outputs = [emit(g, op, [x, g.constant(w)], **attrs).output]
    region, device = region_of(g), CudaDevice("sm_90", mode="interpreter", tf32=tf32)
    tactic = conv.Conv() if op == "convolution" else GEMM
    kernel = tactic.build(region, Tile(16, 16, 16, 4, 2), device)
    assert ('"tf32"' in kernel.source, '"tf32x3"' in kernel.source) == (tf32, not tf32)
    used = nearest(w) if tf32 else w.astype(np.float64)
    used = used.astype(np.float32).reshape(size)
    right = Graph()
    y = right.add_input("x", "f32", shape)
    right.outputs = [emit(right, op, [y, right.constant(used)], **attrs).output]
    (want,) = reference(right, {y: given})
    arrays = {v: np.ascontiguousarray(given) if v is x else np.asarray(v.const)
              for v in kernel.args if not isinstance(v, np.ndarray) and v not in region.outputs}
    (out,) = region.outputs
    arrays[out], canaries = guarded(tuple(out.dims), np.float32)
    run(kernel, arrays)
    canaries()
    np.testing.assert_allclose(arrays[out], want, rtol=2e-5, atol=2e-5)
    if tf32:
        assert np.abs(want - reference(g, {x: given})[0]).max() > 1e-3
