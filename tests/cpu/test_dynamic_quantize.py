"""Dynamic quantization, against ONNX's formula in numpy."""

import numpy as np
import pytest
from kernels import Graph, emit, region_of, run

from tactician.ir import dims as D
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.dynamic_quantize import DynamicQuantizeParts
from tactician.targets.cpu.isa import Isa

RNG = np.random.default_rng(0)
INPUTS = {
    "normal": lambda n: RNG.standard_normal(n) * 3,
    "positive": lambda n: RNG.random(n) + 1,
    "negative": lambda n: -RNG.random(n) - 1,
    "zero": np.zeros,
}


def formula(x):
    low, high = min(0.0, x.min()), max(0.0, x.max())
    scale = np.float32(np.float32(high - low) / np.float32(255))
    zero = 0 if scale == 0 else int(np.clip(np.rint(-np.float32(low) / scale), 0, 255))
    y = x if scale == 0 else np.clip(np.rint(x / scale) + zero, 0, 255)
    return y.astype(np.uint8), scale, np.uint8(zero)


@pytest.mark.parametrize("isa", [Isa.host(), Isa.host().without("avx512f")], ids=["host", "avx2"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("shape, dynamic", [
    ((128, 300), False), ((7, 9), False), ((1,), False), ((30, 1111), True),
])  # fmt: skip
def test_against_formula(shape, dynamic, kind, threads, isa):
    g = Graph("t")
    dims = (D.sym("n"), *shape[1:]) if dynamic else shape
    x = g.add_input("x", "f32", dims)
    outputs = emit(g, "dynamic_quantize_linear", [x], "q").outputs
    g.outputs = list(outputs)
    region, device, tactic = region_of(g), CpuDevice(isa, threads=threads), DynamicQuantizeParts()
    assert tactic.refuse(region, device) is None
    kernel = tactic.build(region, tactic.candidates(region, device)[0], device)
    data = INPUTS[kind](int(np.prod(shape))).astype(np.float32).reshape(shape)
    arrays = {x: data} | {
        v: np.full(shape if k == 0 else (), 0x7F, v.dtype.np) for k, v in enumerate(outputs)
    }
    run(kernel, arrays, {"n": shape[0]}, threads, device)
    y, scale, zero = (arrays[v] for v in outputs)
    want = formula(data)
    gap = np.abs(y.astype(int) - want[0].astype(int))
    assert gap.max() <= 1 and (gap > 0).mean() < 1e-3  # a reciprocal may round otherwise
    assert scale == want[1] and zero == want[2]


def test_what_it_leaves_to_loops():
    g = Graph("t")
    x = g.add_input("x", "f32", (4, 5))
    y = emit(g, "activation", [x], fn="relu").output
    g.outputs = list(emit(g, "dynamic_quantize_linear", [y], "q").outputs)
    refused = DynamicQuantizeParts().refuse(region_of(g), CpuDevice())
    assert "by itself" in refused
