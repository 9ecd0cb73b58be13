"""A normalization and the product behind it in one kernel: which are joined, what they compute."""

import re

import numpy as np
import pytest
from contraction_kit import DEVICE, Graph, close, emit, guarded, ptx_of, run

from tactician.builder.compile import lay_out
from tactician.ir.dtypes import dtype
from tactician.ops import evaluate
from tactician.regions.fuse import fuse
from tactician.support.errors import RefusedError
from tactician.targets.cuda import load_tactics, norm_gemm
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.product import Tile

rng = np.random.default_rng(6)
load_tactics()


def network(shape=(2, 40), k=128, n=96, rms=False, affine=True, residual=True, dt="f16",
            offset=0.0, size=1.0):  # fmt: skip
    """``gelu(norm(x) w + b)``; with ``residual`` the normalized rows are read again."""
    g = Graph()
    x = g.add_input("x", dt, (*shape, k))
    np_type = dtype(dt).np
    given = [x]
    if affine:
        given.append(g.constant((1 + rng.standard_normal(k) / 4).astype(np_type)))
        given.append(None if rms else g.constant(rng.standard_normal(k).astype(np_type)))
    y = emit(g, "normalization", given, "norm", axes=(len(shape),), epsilon=1e-5, rms=rms).output
    w = g.constant((rng.standard_normal((k, n)) / np.sqrt(k)).astype(np_type))
    z = emit(g, "matmul", [y, w], "product").output
    z = emit(g, "binary", [z, g.constant(rng.standard_normal(n).astype(np_type))], fn="add").output
    z = emit(g, "activation", [z], fn="gelu_erf").output
    g.outputs = [z]
    if residual:
        back = g.constant((rng.standard_normal((n, k)) / np.sqrt(n)).astype(np_type))
        last = emit(g, "matmul", [z, back], "back").output
        g.outputs = [emit(g, "binary", [last, y], fn="add").output]
    g.toposort()
    values = rng.standard_normal(x.dims) * size * (1 + np.arange(k) % 3) + offset
    return g, {x: values.astype(np_type)}


def joined(g, device=DEVICE):
    return [r for r in lay_out(g, fuse(g), device, set()).regions if r.parts]


def check(g, inputs, region, tile, tolerance=4e-3):
    values = dict(inputs)
    with np.errstate(all="ignore"):
        for node in g.nodes:
            ins = [None if v is None else values.get(v, v.const) for v in node.inputs]
            values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    kernel = norm_gemm.NormGemm().build(region, tile, DEVICE)
    arrays = {v: np.asarray(values[v] if v.const is None else v.const) for v in region.inputs}
    checks = []
    for v in region.outputs:
        arrays[v], canaries = guarded(tuple(v.dims), v.dtype.np)
        checks.append(canaries)
    run(kernel, arrays)
    for canaries in checks:
        canaries()
    for v in region.outputs:
        close(arrays[v], values[v], tolerance)


@pytest.mark.parametrize(
    ("attrs", "tile"),
    [({}, Tile(32, 32, 64, 4, 3)), ({"rms": True}, Tile(16, 32, 32, 4, 2)),
     ({"affine": False, "residual": False}, Tile(64, 32, 64, 4, 2)),
     ({"shape": (3, 7, 5), "n": 40}, Tile(64, 64, 128, 4, 2)),
     ({"residual": False, "offset": 30.0}, Tile(32, 64, 64, 4, 2)),
     ({"k": 256, "n": 256, "size": 50.0}, Tile(128, 128, 64, 4, 3, persistent=1))],
    ids=str,
)  # fmt: skip
def test_both_results(attrs, tile):
    g, inputs = network(**attrs)
    (region,) = joined(g)
    assert len(region.outputs) == (2 if attrs.get("residual", True) else 1)
    check(g, inputs, region, tile)


def test_bf16():
    g, inputs = network(dt="bf16")
    (region,) = joined(g)
    check(g, inputs, region, Tile(32, 32, 64, 4, 3), 3e-2)


def test_results_of_the_network_are_written():
    g, _ = network(residual=False)
    y = next(n for n in g.nodes if n.op == "normalization").outputs[0]
    g.outputs.append(y)
    (region,) = joined(g)
    assert y in region.outputs


def test_what_is_not_joined():
    assert not joined(network(k=72)[0])  # no whole number of steps
    assert not joined(network(shape=(8,))[0])  # too few rows
    assert not joined(network(shape=(32, 512))[0])  # too many to go without timing


def test_weights_that_overflow():
    g, _ = network(residual=False)
    norm = next(n for n in g.nodes if n.op == "normalization")
    norm.inputs[1].const = np.full(128, 6e4, np.float16)
    product = next(n for n in g.nodes if n.op == "matmul")
    product.inputs[1].const = np.full((128, 96), 8, np.float16)
    (region,) = joined(g)
    with pytest.raises(RefusedError, match="outside the range of f16"):
        norm_gemm.NormGemm().build(region, Tile(32, 32, 64, 4, 3), DEVICE)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_machine_code(arch):
    (region,) = joined(network(shape=(128,), k=768, n=3072)[0])
    device = CudaDevice(arch)
    tactic = norm_gemm.NormGemm()
    tiles = tactic.candidates(region, device)
    assert len(tiles) >= 4
    kernel = tactic.build(region, tiles[0], device)
    assert len(device.compile(kernel)[1]) > 5_000
    if arch == "sm_90":
        kernel = tactic.build(region, Tile(64, 64, 64, 4, 4), device)
        assert ptx_of(kernel).count("wgmma.mma_async") >= 4


@pytest.mark.parametrize("rms", [False, True])
def test_the_products_tiles_are_read_by_nothing_else(rms):
    """Triton 3.6 keeps one buffer too few for a tile that is read beside the product."""
    g, _ = network(shape=(4, 64), k=128, n=128, rms=rms)
    (region,) = joined(g)
    source = norm_gemm.NormGemm().build(region, Tile(64, 64, 64, 4, 3), DEVICE).source
    uses = [line for line in source.splitlines() if re.search(r"\bat\b", line)]
    assert [line.split(" = ")[0].strip() for line in uses] == ["at", "acc"]
    with pytest.raises(RefusedError, match="by addresses"):
        norm_gemm.NormGemm().build(region, Tile(64, 64, 64, 4, 3, tma=True), DEVICE)
