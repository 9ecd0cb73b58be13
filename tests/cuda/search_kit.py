"""Helpers for the tests of kernels that search, scan and scatter: one op through Triton's
interpreter, with the kernels before it and the sizes it finds, against numpy."""

import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph
from tactician.ops import emit, evaluate
from tactician.regions.region import Region
from tactician.support.tolerances import mismatch, tolerance
from tactician.tactics.tactic import tactics_for
from tactician.testing.triton_stages import guarded_array, launch_interpreted

pytest.importorskip("triton", reason="the CUDA target needs Triton")

from tactician.targets.cuda import load_tactics
from tactician.targets.cuda.device import CudaDevice

load_tactics()
DEVICE = CudaDevice("sm_90", mode="interpreter", tf32=False)


def node_of(op, arrays, const=(), dims=None, **attrs):
    """A node whose operands have the arrays' types.

    Args:
        const: Indices of operands that are constants.
        dims: Shapes of operands, where symbols take the place of sizes.
    """
    graph = Graph()
    values = []
    for k, a in enumerate(arrays):
        if a is None:
            values.append(None)
        elif k in const:
            values.append(graph.constant(np.asarray(a)))
        else:
            shape = (dims or {}).get(k, a.shape)
            values.append(graph.add_input(f"x{k}", dtype(a.dtype), shape))
    return emit(graph, op, values, "node", **attrs)


def region_of(node, wanted=None):
    region = Region([node], anchor=node)
    region.find_inputs()
    region.outputs = [v for k, v in enumerate(node.outputs) if wanted is None or k in wanted]
    return region


def tactic(name):
    return next(t for t in tactics_for("cuda") if t.name == name)


def kernel_of(name, node, wanted=None, device=DEVICE, candidate=None):
    """The kernel of a tactic's first candidate (or a given one)."""
    region = region_of(node, wanted)
    reason = tactic(name).refuse(region, device)
    assert reason is None, reason
    if candidate is None:
        candidate = tactic(name).candidates(region, device)[0]
    return tactic(name).build(region, candidate, device)


def run_chain(kernel, node, arrays, env=None, wanted=None):
    """Runs a kernel and those before it; returns the outputs asked for."""
    env, memory, guards = dict(env or {}), {}, {}
    for v, a in zip(node.inputs, arrays, strict=True):
        if v is not None:
            memory[v] = np.ascontiguousarray(a)
    outputs = [v for k, v in enumerate(node.outputs) if wanted is None or k in wanted]
    for k in (*kernel.before, kernel):
        for v in k.args:
            if not isinstance(v, np.ndarray) and v not in memory and v.const is None:
                shape = [D.evaluate(d, env) for d in v.dims]
                guards[v], memory[v] = guarded_array(shape, v.dtype)
        launch_interpreted(k, memory, env)
        if k.finds is not None:
            counts, sizes = k.finds
            env.update(zip(map(str, sizes), map(int, memory[counts]), strict=True))
    for v, raw in guards.items():
        assert (raw[:128] == 0xCD).all() and (raw[-128:] == 0xCD).all(), f"out of bounds: {v}"
    return [memory[v] for v in outputs]


def check(name, op, arrays, const=(), dims=None, env=None, wanted=None, device=DEVICE,
          candidate=None, slack=1.0, **attrs):  # fmt: skip
    """Builds, runs and compares one op; returns the kernel."""
    node = node_of(op, arrays, const, dims, **attrs)
    kernel = kernel_of(name, node, wanted, device, candidate)
    got = run_chain(kernel, node, arrays, env, wanted)
    with np.errstate(all="ignore"):
        expected = evaluate(node, *arrays)
    expected = [e for k, e in enumerate(expected) if wanted is None or k in wanted]
    for g, e in zip(got, expected, strict=True):
        base = tolerance(dtype(e.dtype).name)
        wrong = mismatch(g, e, base._replace(relative=base.relative * slack))
        assert wrong is None, wrong
    return kernel


def compile_for(kernel, archs=(80, 90, 100)):
    """Machine code of a kernel and those before it for several generations of GPUs."""
    for arch in archs:
        for k in (*kernel.before, kernel):
            _, blob = CudaDevice(f"sm_{arch}").compile(k)
            assert b"\x7fELF" in bytes(blob)
