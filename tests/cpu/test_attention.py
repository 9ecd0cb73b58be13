"""The blocked attention kernel against the op's reference, over layouts, masks and sizes."""

from dataclasses import replace

import numpy as np
import pytest
from kernels import run

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.regions.fuse import fuse
from tactician.targets.cpu.attention import Attention
from tactician.targets.cpu.attention_blocking import Blocking, blockings
from tactician.targets.cpu.attention_problem import Problem
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.tile_attention import TiledAttention
from tactician.targets.cpu.toolchain import toolchain

RNG = np.random.default_rng(0)
DEVICE = CpuDevice(threads=2)


def widths():
    host = Isa.host()
    return [host, *([replace(host, vector_bits=512, vector_registers=32)] if host.fma else [])]


def case(b=2, h=3, hk=None, s=10, t=None, d=8, dv=None, rows=(True, True, True), dtype="f32",
         mask=None, mask_dtype=None, sizes=None, merged=False, **attrs):
    """A graph with one attention node and arrays for its inputs."""
    hk, t, dv = hk or h, t or s, dv or d
    dims = sizes or {}
    sd, td, bd = dims.get("s", s), dims.get("t", t), dims.get("b", b)
    g = Graph("t")
    shapes = []
    for flat, heads, n, nd, size in zip(rows, (h, hk, hk), (s, t, t), (sd, td, td), (d, d, dv),
                                        strict=True):
        shapes.append(((b, n, heads * size), (bd, nd, heads * size)) if flat
                      else ((b, heads, n, size), (bd, heads, nd, size)))
    feeds = []
    if merged:
        total = sum(x[0][2] for x in shapes)
        x = g.add_input("x", dtype, (bd, sd, total))
        feeds.append(RNG.standard_normal((b, s, total)))
        operands, at = [], 0
        for shape, _ in shapes:
            ints = [g.constant(np.array([v], np.int64)) for v in (at, at + shape[2], 2)]
            operands.append(emit(g, "strided_slice", [x, *ints], "part").output)
            at += shape[2]
    else:
        operands = [g.add_input(n, dtype, dim) for n, (_, dim) in zip("qkv", shapes, strict=True)]
        feeds = [RNG.standard_normal(shape) for shape, _ in shapes]
    feeds = [f.astype(v.dtype.np) for f, v in zip(feeds, g.inputs, strict=True)]
    if mask is not None:
        full = [{"s": sd, "t": td, "b": bd, "h": h}.get(c, 1) for c in mask]
        m = g.add_input("m", mask_dtype or dtype, tuple(full))
        shape = [{"s": s, "t": t, "b": b, "h": h}.get(c, 1) for c in mask]
        array = RNG.standard_normal(shape)
        if m.dtype.name == "b1":
            array = array > 0
            array[..., 0] = True
        else:
            array[array > 1] = -np.inf
            array[..., 0] = 0
        feeds.append(array.astype(m.dtype.np))
        operands.append(m)
    heads = {"q_heads": h if rows[0] else 0, "kv_heads": hk if rows[1] or rows[2] else 0}
    g.outputs = [emit(g, "attention", operands, "attention", **heads, **attrs).output]
    env = {n: v for n, v in (("S", s), ("T", t), ("B", b)) if sizes}
    return g, feeds, env


def check(g, feeds, env, isa=None, blocking=None, tol=2e-5, tactic=None):
    want = run_graph(g, [f.astype(np.float64) if f.dtype == np.float32 else f for f in feeds])[0]
    fusion = fuse(g)
    (region,) = fusion.regions
    device = DEVICE if isa is None else CpuDevice(isa, threads=1)
    tactic = tactic or Attention()
    assert tactic.refuse(region, device) is None
    arrays = dict(zip(g.inputs, feeds, strict=True))
    for v, (base, start) in fusion.parts.items():
        arrays[v] = arrays[base][..., start : start + v.dims[-1]]
    out = g.outputs[0]
    choices = [blocking] if blocking else tactic.candidates(region, device)
    for how in choices:
        arrays[out] = np.full(want.shape, np.nan).astype(out.dtype.np)
        kernel = tactic.build(region, how, device)
        kernel.grain = 1  # however little there is to do
        run(kernel, arrays, env, threads=2, device=device)
        np.testing.assert_allclose(
            arrays[out].astype(np.float32), want.astype(np.float32), rtol=tol, atol=tol
        )


CASES = [
    {}, {"s": 1 + 16 * 2, "d": 16}, {"s": 7, "t": 19}, {"h": 4, "hk": 2}, {"d": 5, "dv": 11},
    {"rows": (False, False, False)}, {"rows": (True, False, False)}, {"rows": (False, True, True)},
    {"scale": 0.7, "softcap": 2.0}, {"causal": True, "s": 37}, {"s": 40, "left": 5, "right": 3},
    {"mask": "11st"}, {"mask": "b11t"}, {"mask": "bhst", "s": 21, "t": 13}, {"mask": "t"},
    {"mask": "1h1t", "mask_dtype": "b1"}, {"mask": "b1st", "mask_dtype": "b1", "s": 20},
    {"merged": True}, {"merged": True, "h": 4, "hk": 2, "d": 16, "s": 18},
    {"b": 1, "h": 1, "s": 64, "d": 64},
]


@pytest.mark.parametrize("isa", widths(), ids=lambda i: f"{i.vector_bits} bits")
@pytest.mark.parametrize("spec", CASES, ids=str)
def test_attention(spec, isa):
    check(*case(**spec), isa=isa)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "11st"])
def test_running_maximum_over_blocks(causal, mask):
    g, feeds, env = case(s=21, t=None if causal else 50, d=8, mask=mask, causal=causal)
    for copies in (False, True):
        check(g, feeds, env, blocking=Blocking(6, 2, 8, copies))


@pytest.mark.parametrize("isa", widths(), ids=lambda i: f"{i.vector_bits} bits")
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("spec", [
    {"s": 27}, {"s": 70, "t": 23}, {"s": 52, "causal": True}, {"h": 4, "hk": 2, "s": 66, "dv": 11},
    {"s": 69, "mask": "11st", "d": 20, "merged": True}, {"s": 27, "left": 3},
], ids=str)
def test_last_panels_and_copies(spec, copies, isa):
    for mr, nv in ((4, 3), (6, 2), (6, 4)):
        check(*case(**spec), isa=isa, blocking=Blocking(mr, nv, spec.get("t", 32), copies))


def test_not_a_number_stays():
    g, feeds, _ = case(s=20, b=1, h=1)
    feeds[0][0, 3, 0] = np.nan
    (region,) = fuse(g).regions
    arrays, out = dict(zip(g.inputs, feeds, strict=True)), g.outputs[0]
    arrays[out] = np.zeros((1, 20, 8), np.float32)
    run(Attention().build(region, Blocking(6, 2, 20), DEVICE), arrays)
    assert np.isnan(arrays[out]).any(axis=2)[0].nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("spec", [{}, {"merged": True, "d": 16}, {"mask": "11st"}], ids=str)
def test_half_precision(dtype, spec):
    check(*case(dtype=dtype, **spec), tol=4e-2 if dtype == "bf16" else 5e-3)


@pytest.mark.parametrize("spec", [{}, {"mask": "b1st"}, {"causal": True}, {"merged": True}])
@pytest.mark.parametrize("s,t", [(5, 9), (33, 300), (1, 1)])
def test_symbolic_lengths(spec, s, t):
    t = s if spec.get("causal") or spec.get("merged") else t
    same = D.sym("S") if t == s else D.sym("T")
    sizes = {"s": D.sym("S"), "t": same, "b": D.sym("B")}
    check(*case(s=s, t=t, sizes=sizes, **spec))


# --- tiles ----------------------------------------------------------------------------------


TILES = replace(Isa.host(), amx=True)
TILE_CASES = [
    *CASES, {"t": 1}, {"t": 15}, {"s": 197, "d": 64, "h": 1}, {"s": 20, "d": 32, "merged": True},
    {"s": 18, "d": 80, "t": 33}, {"s": 34, "d": 128, "h": 1}, {"s": 3, "t": 64, "d": 96},
    {"s": 50, "t": 33, "causal": True}, {"s": 33, "d": 40, "dv": 24, "scale": -0.3},
    {"s": 70, "d": 64, "h": 1, "b": 1, "causal": True, "mask": "11st"},
    {"b": 1, "h": 4, "hk": 2, "s": 64, "t": 50, "d": 64}, {"s": 100, "d": 64, "h": 2, "left": 9},
    {"s": 100, "t": 41, "d": 24, "dv": 53, "h": 2, "causal": True},
    {"s": 20, "mask": "11st", "mask_dtype": "f16"}, {"s": 20, "mask": "t", "mask_dtype": "f32"},
]


@pytest.mark.parametrize("spec", TILE_CASES, ids=str)
def test_tiles(spec):
    check(*case(dtype="bf16", **spec), isa=TILES, tol=4e-2, tactic=TiledAttention())


@pytest.mark.parametrize("spec", [
    {}, {"mask": "b1st"}, {"mask": "b11t"}, {"causal": True}, {"merged": True}, {"d": 32},
    {"d": 64, "causal": True},
])
@pytest.mark.parametrize("s,t", [(5, 9), (70, 77), (17, 32), (1, 1)])
def test_symbolic_lengths_on_tiles(spec, s, t):
    t = s if spec.get("causal") or spec.get("merged") else t
    same = D.sym("S") if t == s else D.sym("T")
    sizes = {"s": D.sym("S"), "t": same, "b": D.sym("B")}
    g, feeds, env = case(s=s, t=t, sizes=sizes, dtype="bf16", **spec)
    check(g, feeds, env, isa=TILES, tol=4e-2, tactic=TiledAttention())


@pytest.mark.parametrize("mask", [np.finfo(np.float32).min, -np.inf])
def test_hidden_rows_on_tiles(mask):
    g, feeds, env = case(mask="11st", mask_dtype="f32", dtype="bf16", s=20)
    feeds[-1][..., 3, :] = mask
    check(g, feeds, env, isa=TILES, tol=4e-2, tactic=TiledAttention())


def test_not_a_number_stays_on_tiles():
    g, feeds, _ = case(dtype="bf16", s=20, b=1, h=1)
    feeds[0][0, 3, 0] = np.nan
    (region,) = fuse(g).regions
    device, tactic, out = CpuDevice(TILES, threads=1), TiledAttention(), g.outputs[0]
    arrays = dict(zip(g.inputs, feeds, strict=True))
    arrays[out] = np.zeros((1, 20, 8), out.dtype.np)
    kernel = tactic.build(region, tactic.candidates(region, device)[0], device)
    run(kernel, arrays, device=device)
    lost = np.isnan(arrays[out].astype(np.float32)).any(axis=2)[0]
    assert lost.nonzero()[0].tolist() == [3]


def test_what_tiles_refuse():
    tactic, tiles = TiledAttention(), CpuDevice(TILES, threads=1)
    (region,) = fuse(case(dtype="bf16")[0]).regions
    assert tactic.refuse(region, tiles) is None
    assert "no tiles" in tactic.refuse(region, CpuDevice(replace(TILES, amx=False)))
    (region,) = fuse(case(dtype="f32")[0]).regions
    assert "f32" in tactic.refuse(region, tiles)
    (region,) = fuse(case(dtype="bf16", t=100_000, d=8, h=1, b=1)[0]).regions
    assert "100000 keys" in tactic.refuse(region, tiles)


@pytest.mark.parametrize("d", [64, 80])
def test_tile_instructions(d):
    isa = Isa.named("sapphirerapids")
    (region,) = fuse(case(dtype="bf16", s=197, d=d, causal=True)[0]).regions
    device, tactic = CpuDevice(isa, threads=2), TiledAttention()
    for how in tactic.candidates(region, device):
        text = toolchain(isa).assembly(tactic.build(region, how, device).source)
        for name in ("tdpbf16ps", "tilezero", "tileloadd", "tilestored", "tilerelease",
                     "vcvtneps2bf16"):  # fmt: skip
            assert name in text
        assert "tile_load" not in text  # nothing is spelled out


def test_rows_that_see_nothing_are_zero():
    g, feeds, env = case(mask="11st", mask_dtype="b1")
    feeds[-1][..., 3, :] = False
    check(g, feeds, env)


def test_very_low_masks_leave_the_mean():
    g, feeds, env = case(mask="11st")
    feeds[-1][..., 3, :] = np.finfo(np.float32).min
    check(g, feeds, env)


def test_blockings_fit_the_lengths():
    p = Problem.of(case(s=128, d=64)[0].nodes[-1])
    assert all(b.block == 128 for b in blockings(p, Isa.host()))
    assert blockings(p, Isa.host())[0].copies
    few = Problem.of(case(s=9, t=128, d=64)[0].nodes[-1])
    assert not any(b.copies for b in blockings(few, Isa.host()))


@pytest.mark.parametrize("spec,why", [
    ({"s": 1}, "few queries"), ({"dtype": "f64"}, "f64"), ({"normalize": False}, "plain"),
    ({"outputs": 3}, "plain"),
])
def test_refusals(spec, why):
    g, _, _ = case(**{k: v for k, v in spec.items() if k != "outputs"})
    if "outputs" in spec:
        g.nodes[-1].attrs = replace(g.nodes[-1].attrs, outputs=3)
        g.nodes[-1].outputs += g.nodes[-1].outputs * 2
    (region,) = fuse(g).regions
    assert why in Attention().refuse(region, DEVICE)
