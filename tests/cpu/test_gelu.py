"""GELU in half precision is one polynomial; what is fused in half precision is rounded once."""

import ml_dtypes
import numpy as np
import pytest
import torch
from kernels import Graph, check_kernel, emit, region_of, run
from torch.nn import functional as F

from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.loops import LoopTactic

TYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


def kernel_of(g):
    device = CpuDevice(threads=1)
    region, tactic = region_of(g), LoopTactic()
    assert tactic.refuse(region, device) is None
    return tactic.build(region, tactic.candidates(region, device)[0], device)


def result(g, *arrays):
    """What the only region computes."""
    out = np.zeros(tuple(int(d) for d in g.outputs[0].dims), g.outputs[0].dtype.np)
    run(kernel_of(g), {**dict(zip(g.inputs, arrays, strict=True)), g.outputs[0]: out})
    return out


def gelu_of(dtype, fn, n, behind=()):
    g = Graph("t")
    y = emit(g, "activation", [g.add_input("x", dtype, (n,))], fn=fn).output
    for op in behind:
        y = emit(g, "binary", [y, g.constant(np.asarray(2.0, TYPES[dtype]))], fn=op).output
    g.outputs = [y]
    return g


@pytest.mark.parametrize("fn, approximate", [("gelu_erf", "none"), ("gelu_tanh", "tanh")])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_number(dtype, fn, approximate):
    """All finite numbers of the type: within 4e-5, and a rounding."""
    x = np.arange(1 << 16, dtype=np.uint16).view(TYPES[dtype])
    with np.errstate(invalid="ignore"):
        x = x[np.isfinite(x.astype("f4")) & (np.abs(x.astype("f8")) < 1e37)]
    got = result(gelu_of(dtype, fn, x.size), x).astype("f8")
    want = F.gelu(torch.tensor(x.astype("f8")), approximate=approximate).numpy()
    step = {"bf16": 2.0**-8, "f16": 2.0**-11}[dtype]
    least = np.finfo(np.float16).smallest_subnormal if dtype == "f16" else 0
    assert (np.abs(got - want) <= 4e-5 + step * np.abs(want) + least).all()
    far = np.abs(x.astype("f4")) > 5
    exact = np.where(x.astype("f4") > 0, x, 0).astype("f8")
    assert (got[far] == exact[far]).all()


def test_nan_stays():
    x = np.array([np.nan, 1, np.inf, -3], TYPES["bf16"])
    got = result(gelu_of("bf16", "gelu_erf", 4), x).astype("f4")
    assert np.isnan(got[0]) and np.isposinf(got[2]) and np.isfinite(got[[1, 3]]).all()


@pytest.mark.parametrize("behind", [("add",), ("mul", "sub")])
def test_the_polynomial_is_used_below_sums_and_products(behind):
    g = gelu_of("bf16", "gelu_erf", 64, behind)
    assert "fdiv" not in kernel_of(g).source and "fdiv" in kernel_of(
        gelu_of("bf16", "gelu_erf", 64, ("max",))
    ).source
    x = np.linspace(-4, 4, 64).astype(TYPES["bf16"])
    check_kernel(g, kernel_of(g), {g.inputs[0]: x}, tolerance=1e-2)


def test_f32_keeps_its_digits():
    g = Graph("t")
    g.outputs = [emit(g, "activation", [g.add_input("x", "f32", (999,))], fn="gelu_erf").output]
    x = np.linspace(-6, 6, 999).astype("f4")
    want = F.gelu(torch.tensor(x.astype("f8"))).numpy()
    np.testing.assert_allclose(result(g, x), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_fused_stages_are_rounded_once(dtype):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(1000).astype(TYPES[dtype]) for _ in range(3))
    g = Graph("t")
    x, y, z = (g.add_input(n, dtype, (1000,)) for n in "abc")
    s = emit(g, "binary", [x, y], fn="add").output
    g.outputs = [emit(g, "binary", [s, z], fn="mul").output]
    once = ((a.astype("f4") + b.astype("f4")) * c.astype("f4")).astype(TYPES[dtype])
    assert (result(g, a, b, c) == once).all()
    twice = (a.astype("f4") + b.astype("f4")).astype(TYPES[dtype]).astype("f4") * c.astype("f4")
    assert (twice.astype(TYPES[dtype]) != once).any()


@pytest.mark.parametrize("dtype", TYPES)
def test_casts_of_the_network_round(dtype):
    x = np.random.default_rng(0).standard_normal(1000).astype("f4")
    g = Graph("t")
    y = emit(g, "cast", [g.add_input("x", "f32", (1000,))], to=dtype_of(dtype)).output
    y = emit(g, "cast", [y], to=dtype_of("f32")).output
    g.outputs = [emit(g, "unary", [y], fn="neg").output]
    assert (result(g, x) == -x.astype(TYPES[dtype]).astype("f4")).all()


def dtype_of(name):
    from tactician.ir import dtypes as T

    return {"bf16": T.bf16, "f16": T.f16, "f32": T.f32}[name]
