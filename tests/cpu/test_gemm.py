"""Matrix products: shapes, tails, flags, broadcasting, types, epilogues, threads, other CPUs."""

import ml_dtypes
import numpy as np
import pytest
from kernels import Graph, check_kernel, emit, random, region_of

from tactician.ir import dims as D
from tactician.ir.dtypes import i32 as D_I32
from tactician.targets.cpu import gemm, packing
from tactician.targets.cpu.contraction import Tile
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import Toolchain

rng = np.random.default_rng(1)
TACTIC = gemm.Gemm()


def product(a, b, ta="none", tb="none", const=True, dtype="f32", tail=None, symbols=None):
    """A graph of one product (and what ``tail`` adds), its region and its input arrays."""
    g = Graph()
    np_type = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[
        dtype
    ]
    real = [tuple((symbols or {}).get(d, d) for d in s) for s in (a, b)]
    dims = [tuple(D.sym(d) if isinstance(d, str) else d for d in s) for s in (a, b)]
    inputs = {}
    x = g.add_input("x", dtype, dims[0])
    inputs[x] = random(rng, real[0], np_type)
    if const:
        w = g.constant(random(rng, real[1], np_type))
    else:
        w = g.add_input("w", dtype, dims[1])
        inputs[w] = random(rng, real[1], np_type)
    y = emit(g, "matmul", [x, w], ta=ta, tb=tb).output
    if tail:
        y = tail(g, y, inputs)
    g.outputs = [y]
    return g, region_of(g), inputs


def check(graph, region, inputs, tile=None, threads=1, env=None, tolerance=2e-6):
    device = CpuDevice(threads=threads)
    assert TACTIC.refuse(region, device) is None
    tile = tile or TACTIC.candidates(region, device)[0]
    kernel = TACTIC.build(region, tile, device)
    check_kernel(graph, kernel, inputs, env, threads, tolerance)


SHAPES = [
    ((1, 1), (1, 1)), ((6, 16), (16, 16)), ((7, 33), (33, 19)), ((13, 5), (5, 47)),
    ((1, 100), (100, 77)), ((2, 30), (30, 40)), ((5, 1), (1, 9)), ((97, 61), (61, 101)),
]  # fmt: skip


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
    check(*product(a, b, const=const))


def tile(mr, nv, mb, nb, **more):
    """A tile of a block with ``nb`` columns where vectors have 8 lanes."""
    return Tile(mr, nv, mb, nb * Isa.host().lanes(32) // 8, **more)


TILES = [
    tile(6, 2, 12, 32), tile(4, 3, 8, 24, kc=16), tile(6, 2, 6, 16, kc=8, pack_a=True),
    tile(6, 2, 18, 32, kc=16, pack_b=True), tile(6, 2, 120, 512, kc=24, pack_a=True, pack_b=True),
    tile(4, 3, 40, 48, kc=16, rows_outer=True), tile(1, 4, 5, 64), tile(6, 2, 60, 64, unroll=1),
]  # fmt: skip


@pytest.mark.parametrize("blocks", TILES, ids=str)
@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
def test_blockings(blocks, const):
    check(*product((2, 31, 50), (50, 71), const=const), blocks)


@pytest.mark.parametrize("rows", [32, 40, 41])
@pytest.mark.parametrize("kc", [0, 64])
def test_panels_to_come_are_fetched(rows, kc):
    """Many row tiles of constants that are not tiny: the code prefetches, and computes the same."""
    columns = 192
    g, region, inputs = product((rows, 200), (200, columns), const=True)
    blocks = tile(8, 3, 40, 48, kc=kc)
    assert "llvm.prefetch" in gemm.build(region, blocks, Isa.host()).source
    check(g, region, inputs, blocks)
    few = product((9, 200), (200, columns), const=True)[1]
    assert "llvm.prefetch" not in gemm.build(few, tile(8, 3, 8, 48), Isa.host()).source
    tiny = product((rows, 50), (50, 48), const=True)[1]
    assert "llvm.prefetch" not in gemm.build(tiny, blocks, Isa.host()).source


def test_blocks_are_even_among_threads():
    """The thread with the most has no more columns than it must; here as many as the other."""
    _, region, _ = product((128, 768), (768, 3072), const=True)
    for t in gemm.tiles(gemm.problem(region.anchor), Isa.host(), 2):
        if t.mb >= 128:
            assert -(-3072 // t.nb) % 2 == 0


@pytest.mark.parametrize("blocks", TILES[:4], ids=str)
@pytest.mark.parametrize("tb", ["none", "transpose"])
def test_threads_share_the_work(blocks, tb):
    b = (3, 50, 71) if tb == "none" else (3, 71, 50)
    check(*product((3, 31, 50), b, "none", tb, False), blocks, threads=2)


@pytest.mark.parametrize("m", [1, 5, 6, 7, 40])
@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
def test_symbolic_rows(m, const):
    symbols = {"batch": m}
    g, region, inputs = product(("batch", 2, 20), (20, 33), const=const, symbols=symbols)
    check(g, region, inputs, env=symbols)


@pytest.mark.parametrize("tb", ["none", "transpose"])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 7), (20, 40, 60), (1, 17, 400), (8, 1, 33)])
def test_all_symbolic(m, n, k, tb):
    symbols = {"b": 2, "m": m, "n": n, "k": k}
    b = ("b", "k", "n") if tb == "none" else ("b", "n", "k")
    g, region, inputs = product(("b", "m", "k"), b, "none", tb, False, symbols=symbols)
    check(g, region, inputs, env=symbols)


@pytest.mark.parametrize("const", [True, False], ids=["const", "runtime"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f64", 1e-14), ("f16", 1e-3), ("bf16", 1e-2)])
def test_types(dtype, tolerance, const):
    check(*product((2, 13, 30), (30, 21), const=const, dtype=dtype), tolerance=tolerance)
    if not const:
        args = product((2, 13, 30), (2, 21, 30), "none", "transpose", False, dtype)
        check(*args, tolerance=tolerance)


def relu(g, y, inputs):
    return emit(g, "activation", [y], fn="relu").output


def gelu(g, y, inputs):
    return emit(g, "activation", [y], fn="gelu_erf").output


def bias(g, y, inputs):
    return emit(g, "binary", [y, g.constant(random(rng, y.dims[-1:]))], fn="add").output


def residual(g, y, inputs):
    r = g.add_input("r", "f32", y.dims)
    inputs[r] = random(rng, r.dims)
    return relu(g, emit(g, "binary", [bias(g, y, inputs), r], fn="add").output, inputs)


def per_row(g, y, inputs):
    r = g.add_input("r", "f32", (*y.dims[:-1], 1))
    inputs[r] = random(rng, r.dims)
    return emit(g, "binary", [y, r], fn="mul").output


def halved(g, y, inputs):
    from tactician.ir.dtypes import dtype

    return emit(g, "cast", [y], to=dtype("f16")).output


@pytest.mark.parametrize("tail", [relu, gelu, bias, residual, per_row, halved])
@pytest.mark.parametrize("a", [(2, 15, 24), (1, 24)], ids=str)
def test_epilogues(tail, a):
    tolerance = 1e-3 if tail is halved else 2e-6
    check(*product(a, (24, 37), tail=tail), tolerance=tolerance)


def test_refusals():
    device = CpuDevice()
    _, region, _ = product((4, 8), (8, 4))
    region.anchor.inputs[0].dtype = D_I32
    assert "i32" in TACTIC.refuse(region, device)
    g = Graph()
    x = g.add_input("x", "f32", (0, 4))
    g.outputs = [emit(g, "matmul", [x, g.constant(random(rng, (4, 4)))]).output]
    assert "zero" in TACTIC.refuse(region_of(g), device)


@pytest.mark.parametrize("cpu", ["sapphirerapids", "neoverse-n1", "x86-64", "haswell"])
def test_other_cpus(cpu):
    isa = Isa.named(cpu)
    _, region, _ = product((50, 64), (64, 70), tail=residual)
    for tile in TACTIC.candidates(region, type("Device", (), {"isa": isa, "threads": 4})):
        kernel = gemm.build(region, tile, isa)
        text = Toolchain(isa).assembly(kernel.source)
        expected = {"sapphirerapids": "zmm", "neoverse-n1": "fmla", "haswell": "vfmadd"}
        assert expected.get(cpu, "mulps") in text


@pytest.mark.parametrize(("n", "nr", "lanes"), [(1, 16, 8), (16, 16, 8), (23, 16, 8), (50, 24, 8)])
def test_packing_keeps_every_element(n, nr, lanes):
    b = random(rng, (2, 5, n))
    packed = packing.pack_columns(b, nr, lanes)
    assert packed.shape == (2, packing.packed_columns(n, nr, lanes) * 5)
    assert np.isclose(packed.sum(), b.sum(), atol=1e-4)
    a = random(rng, (2, n, 5))
    assert sorted(packing.pack_rows(a, 6).ravel()) == sorted(a.ravel())


def test_transposition_in_registers():
    g, region, inputs = product((64, 64), (64, 64), "none", "transpose", False)
    check(g, region, inputs, tile(6, 2, 66, 64, pack_b=True))
