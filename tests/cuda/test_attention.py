"""Attention in one pass against numpy: layouts, masks, windows, grouped heads, lengths, parts."""

import ml_dtypes
import numpy as np
import pytest
from contraction_kit import DEVICE, Graph, check_kernel, emit, ptx_of

from tactician.ir import dims as D
from tactician.regions.fuse import fuse
from tactician.targets.cuda import attention
from tactician.targets.cuda.attention import Tile
from tactician.targets.cuda.device import CudaDevice

rng = np.random.default_rng(3)
TACTIC = attention.Attention()
TYPES = {"f32": (np.float32, 1e-5), "f16": (np.float16, 3e-3), "bf16": (ml_dtypes.bfloat16, 2e-2)}
SMALL = Tile(64, 16, 4, 2)


def case(queries, keys, size, heads=2, kv_heads=2, v_size=0, dtype="f32", flat=False, mask=None,
         lens=None, batch=2, symbols=None, **attrs):  # fmt: skip
    """A graph of one attention node and its input arrays."""
    g, inputs, np_type = Graph(), {}, TYPES[dtype][0]
    env = symbols or {}

    def operand(name, shape, dt=None, array=None):
        real = tuple(env.get(d, d) for d in shape)
        v = g.add_input(
            name, dt or dtype, tuple(D.sym(d) if isinstance(d, str) else d for d in shape)
        )
        inputs[v] = rng.standard_normal(real).astype(np_type) if array is None else array
        return v

    shapes = [(batch, heads, queries, size), (batch, kv_heads, keys, size),
              (batch, kv_heads, keys, v_size or size)]  # fmt: skip
    if flat:
        shapes = [(b, n, h * d) for b, h, n, d in shapes]
        attrs |= {"q_heads": heads, "kv_heads": kv_heads}
    given = [operand(n, s) for n, s in zip("qkv", shapes, strict=True)]
    if mask is not None:
        kind, shape = mask
        real = tuple(env.get(d, d) for d in shape)
        if kind == "b1":
            given.append(operand("m", shape, "b1", rng.random(real) < 0.6))
        else:
            given.append(operand("m", shape))
    if lens is not None:
        given += [None] * (6 - len(given))
        given.append(operand("n", (batch,), "i32", np.array(lens, np.int32)))
    g.outputs = [emit(g, "attention", given, **attrs).output]
    return g, inputs


def check(graph, inputs, tile=SMALL, env=None):
    graph.toposort()
    (region,) = fuse(graph).regions
    assert TACTIC.refuse(region, DEVICE) is None
    tile = tile or TACTIC.candidates(region, DEVICE)[0]
    tolerance = TYPES[region.outputs[0].dtype.name][1]
    check_kernel(graph, TACTIC.build(region, tile, DEVICE), inputs, env, tolerance)


CASES = [
    {}, {"causal": True}, {"kv_heads": 1}, {"v_size": 24}, {"softcap": 1.5}, {"scale": 0.3},
    {"scale": -0.3}, {"mask": ("b1", (40,))}, {"mask": ("b1", (2, 1, 37, 40))},
    {"mask": ("f", (37, 40))}, {"mask": ("f", (1, 2, 1, 40))}, {"mask": ("f", (37, 20))},
    {"mask": ("f", (2, 1, 37, 1))}, {"left": 5}, {"right": 3}, {"left": 9, "right": 9},
    {"lens": (40, 11)}, {"lens": (33, 5), "causal": True}, {"causal": True, "left": 7},
]  # fmt: skip


@pytest.mark.parametrize("flat", [False, True], ids=["heads", "rows"])
@pytest.mark.parametrize("attrs", CASES, ids=str)
def test_options(attrs, flat):
    check(*case(37, 40, 16, flat=flat, **attrs))


@pytest.mark.parametrize(
    "tile",
    [Tile(16, 32, 4, 2, split=2), Tile(32, 16, 4, 2, split=4), Tile(16, 16, 4, 2, tma=True),
     Tile(64, 64, 4, 2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("attrs", [{}, {"causal": True}, {"mask": ("b1", (40, 70))}], ids=str)
def test_tiles(tile, attrs):
    check(*case(40, 70, 32, dtype="f16", **attrs), tile=tile)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("size", [20, 64])
def test_types(dtype, size):
    check(*case(33, 48, size, dtype=dtype, flat=True), tile=None)


def test_decoding_shares_keys_between_blocks():
    graph, inputs = case(1, 300, 64, heads=8, kv_heads=2, dtype="f16", lens=(300, 70), batch=2)
    graph.toposort()
    tile = TACTIC.candidates(fuse(graph).regions[0], DEVICE)[0]
    assert tile.split > 1
    check(graph, inputs, tile)


def test_sizes_known_at_run_time():
    env = {"b": 2, "n": 19, "m": 21}
    for attrs in ({}, {"causal": True}, {"mask": ("f", ("b", 1, "n", "m"))}):
        check(*case("n", "m", 16, batch="b", symbols=env, **attrs), env=env)
        check(*case("n", "m", 16, batch="b", symbols=env, flat=True, **attrs), env=env)


def test_parts_of_merged_rows():
    """Queries, keys and values side by side in one row."""
    g = Graph()
    x = g.add_input("x", "f16", (2, 24, 96))
    inputs = {x: rng.standard_normal((2, 24, 96)).astype(np.float16)}
    product = emit(g, "unary", [x], fn="neg").output
    parts = []
    for i in range(3):
        at = [g.constant(np.array([v], np.int64)) for v in (32 * i, 32 * i + 32, 2)]
        parts.append(emit(g, "strided_slice", [product, *at]).output)
    g.outputs = [emit(g, "attention", parts, q_heads=2, kv_heads=2).output]
    g.toposort()
    region = next(r for r in fuse(g).regions if r.anchor is not None)
    kernel = TACTIC.build(region, SMALL, DEVICE)
    whole = -inputs[x]
    arrays = {v: whole.reshape(-1)[32 * i :] for i, v in enumerate(parts)}
    out = np.zeros((2, 24, 32), np.float16)
    from contraction_kit import close, reference, run

    run(kernel, {**arrays, g.outputs[0]: out})
    close(out, reference(g, inputs)[0], 3e-3)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_machine_code(arch):
    graph, _ = case(128, 128, 64, heads=12, kv_heads=12, dtype="f16", flat=True)
    graph.toposort()
    device = CudaDevice(arch)
    kernel = TACTIC.build(fuse(graph).regions[0], Tile(64, 64, 4, 3), device)
    assert len(device.compile(kernel)[1]) > 5_000


def test_hopper_multiplies_by_warp_groups():
    graph, _ = case(2048, 2048, 64, heads=16, kv_heads=16, dtype="f16")
    graph.toposort()
    region = fuse(graph).regions[0]
    for tile in (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2, tma=True)):
        assert "wgmma.mma_async" in ptx_of(TACTIC.build(region, tile, CudaDevice("sm_90")))
