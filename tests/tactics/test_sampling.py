"""Elements of large contractions, computed alone, are those of the whole result."""

import numpy as np
import pytest

from tactician.builder.compile import lay_out
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.regions.fuse import fuse
from tactician.tactics import tuner as tuning
from tactician.tactics.operands import random_arrays
from tactician.tactics.sampling import sampled
from tactician.tactics.tuner import Tuner, TunerSettings
from tactician.targets.cpu import load_tactics
from tactician.targets.cpu.device import CpuDevice

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def network(kind):
    g = Graph()
    if kind == "matmul":
        x = g.add_input("x", "f32", (3, 9, 16))
        y = emit(g, "matmul", [x, g.constant(normal(16, 24))], "m").output
        y = emit(g, "binary", [y, g.constant(normal(24))], "bias", fn="add").output
    else:
        x = g.add_input("x", "f32", (2, 16, 9, 8))
        w = g.constant(normal(24, 16, 3, 3))
        y = emit(g, "convolution", [x, w, g.constant(normal(24))], "c", pre=(1, 1), post=(1, 1),
                 stride=(2, 2)).output
    g.outputs = [emit(g, "activation", [y], "a", fn="relu").output]
    load_tactics()
    fusion = lay_out(g, fuse(g), CpuDevice(threads=1), set())
    (region,) = [r for r in fusion.regions if r.anchor is not None]
    return g, region


@pytest.mark.parametrize("kind", ["matmul", "convolution"])
def test_elements(kind):
    g, region = network(kind)
    arrays = random_arrays(region, {})
    found = sampled(region, arrays, {})
    (out,) = region.outputs
    index, got = found[out]
    whole = run_graph(g, [arrays[g.inputs[0]]])[0]
    if "logical" in out.meta:
        whole = whole.transpose(out.meta["perm"])
    np.testing.assert_allclose(got, whole[index], rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.stack(index), axis=1).T) > 100


@pytest.mark.parametrize("kind", ["matmul", "convolution"])
def test_wrong_kernels_of_large_layers_lose(kind, monkeypatch):
    _, region = network(kind)
    monkeypatch.setattr(tuning, "_CHECK_FLOPS", 0)
    monkeypatch.setattr(tuning, "_CHECK_MATRIX_FLOPS", 0)
    device = CpuDevice(threads=1)
    settings = TunerSettings(level=5, seconds=0.0)
    assert Tuner(device, settings).choose(region).kernel is not None
    time = device.time_kernel

    def spoil(kernel, arrays, env, seconds):
        took = time(kernel, arrays, env, seconds)
        arrays[-1][...] *= 1.01
        return took

    monkeypatch.setattr(device, "time_kernel", spoil)
    choice = Tuner(device, settings).choose(region)
    assert choice.kernel is None and "accuracy" in str(choice.info["rejected"])
