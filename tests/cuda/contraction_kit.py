"""Helpers for the tests of contractions: one region from a graph, its kernel in the interpreter."""

import ml_dtypes
import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit, evaluate
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.regions.region import is_slice, pitch

pytest.importorskip("triton", reason="the CUDA target needs Triton")

from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.interpret import interpret
from tactician.targets.cuda.worker import define

DEVICE = CudaDevice("sm_90", mode="interpreter", tf32=False)


def region_of(graph):
    """The only region of a graph."""
    graph.toposort()
    regions = fuse(graph).regions
    assert len(regions) == 1, [r.describe() for r in regions]
    return regions[0]


def run(kernel, arrays, env=None):
    """Runs a kernel, after those ahead of it; ``arrays`` maps values to arrays. Workspaces
    start as garbage."""
    env, launch = env or {}, kernel.launch
    for first in kernel.before:
        run(first, arrays, env)
    keep = [a if isinstance(a, np.ndarray) else arrays[a] for a in kernel.args]
    values = [a.ctypes.data for a in keep]
    if D.evaluate(launch.workspace, env):
        keep.append(np.full(D.evaluate(launch.workspace, env), 0xFF, np.uint8))
        values.append(keep[-1].ctypes.data)
    counters = np.zeros(D.evaluate(launch.counters, env), np.int32)
    if counters.size:
        values.append(counters.ctypes.data)
    values += [D.evaluate(d, env) for d in kernel.dims]
    grid = [D.evaluate(d, env) for d in launch.grid]
    interpret(kernel.source, kernel.symbol, launch.types, grid, values)
    assert not counters.any(), "counters are not left zero"


def guarded(shape, dtype):
    """An output array with canaries around it, and a check that they are alive."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 256, 0xCD, np.uint8)
    array = raw[128 : 128 + size].view(dtype).reshape(shape)

    def check():
        assert (raw[:128] == 0xCD).all() and (raw[128 + size :] == 0xCD).all(), "out of bounds"

    return array, check


def reference(graph, inputs):
    """Outputs of a graph by numpy."""
    values = dict(inputs)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            ins = [None if v is None else values.get(v, v.const) for v in node.inputs]
            values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    return [values[v] for v in graph.outputs]


def stored(v, logical):
    """An array as the value stores it (channels-last, or a slice of longer rows)."""
    if "perm" in v.meta:
        logical = logical.transpose(v.meta["perm"])
    if not is_slice(v):
        return np.ascontiguousarray(logical)
    whole = np.zeros((*logical.shape[:-1], int(pitch(v))), logical.dtype)
    whole[..., : logical.shape[-1]] = logical
    return whole


def check_kernel(graph, kernel, inputs, env=None, tolerance=1e-5, region=None):
    """Runs the kernel and compares with numpy; operands are stored as ``region`` says."""
    env = env or {}
    physical = dict(region.physical) if region is not None else {}
    back = {twin: v for v, twin in physical.items()}
    arrays, checks = dict(inputs), []
    outs = {v: physical.get(v, v) for v in graph.outputs}
    for v, twin in outs.items():
        shape = tuple(D.evaluate(d, env) for d in v.dims)
        if twin is not v:
            shape = tuple(shape[p] for p in twin.meta["perm"])
        if is_slice(twin):
            shape = (*shape[:-1], int(pitch(twin)))
        arrays[twin], check = guarded(shape, v.dtype.np)
        checks.append(check)
    for a in [a for k in (*kernel.before, kernel) for a in k.args]:
        if isinstance(a, np.ndarray) or a in arrays:
            continue
        v = back.get(a, a)
        if v.const is None and v not in inputs:  # the kernel's own: starts as garbage
            shape = tuple(D.evaluate(d, env) for d in v.dims)
            arrays[a] = np.full(shape, 0xCD, np.uint8).astype(v.dtype.np)
            continue
        arrays[a] = stored(a, np.asarray(v.const if v.const is not None else inputs[v]))
    arrays = {v: x if not isinstance(x, np.ndarray) or x.flags.c_contiguous
              else np.ascontiguousarray(x) for v, x in arrays.items()}
    run(kernel, arrays, env)
    for check in checks:
        check()
    for v, want in zip(graph.outputs, reference(graph, inputs), strict=True):
        got, twin = arrays[outs[v]], outs[v]
        if is_slice(twin):
            got = got[..., : twin.dims[-1]]
        if twin is not v:
            got = got.transpose(np.argsort(twin.meta["perm"]))
        close(got, want, tolerance)


def close(got, want, tolerance):
    if got.dtype.kind in "iub":
        difference = np.abs(got.astype(np.int64) - np.asarray(want).astype(np.int64)).max(initial=0)
        assert difference <= tolerance, f"{difference} off"
        return
    got, want = got.astype(np.float64), np.asarray(want).astype(np.float64)
    scale = max(1e-30, np.abs(want).max(initial=0))
    error = np.abs(got - want).max(initial=0) / scale
    assert np.isfinite(got).all() and error <= tolerance, f"error {error:.2e}"


def ptx_of(kernel, arch=90):
    """The kernel's PTX, compiled in this process."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn, launch = define(kernel.source, kernel.symbol, kernel.symbol), kernel.launch
    pointers = [i for i, t in enumerate(launch.types) if t.startswith("*")]
    source = ASTSource(
        fn, dict(zip(fn.arg_names, launch.types, strict=True)), {},
        {(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, GPUTarget("cuda", arch, 32), options).asm["ptx"]


__all__ = ["DEVICE", "Graph", "check_kernel", "emit", "ptx_of", "reference", "region_of", "run"]


rng = np.random.default_rng(2)
TYPES = {"f32": (np.float32, 3e-6), "f16": (np.float16, 2e-3), "bf16": (ml_dtypes.bfloat16, 1e-2)}


def convolution(
    x, w, bias=True, const=True, dtype="f32", tail=None, symbols=None, op="convolution", **attrs
):
    """A graph of one convolution (and what ``tail`` adds) and its input arrays."""
    g, np_type = Graph(), TYPES[dtype][0]
    real = tuple((symbols or {}).get(d, d) for d in x)
    v = g.add_input("x", dtype, tuple(D.sym(d) if isinstance(d, str) else d for d in x))
    inputs = {v: rng.standard_normal(real).astype(np_type)}
    weights = rng.standard_normal(w).astype(np_type)
    if const:
        weights = g.constant(weights)
    else:
        inputs[node := g.add_input("w", dtype, w)], weights = weights, None
        weights = node
    operands = [v, weights]
    if bias:
        channels = w[0] if op == "convolution" else w[1] * attrs.get("groups", 1)
        operands.append(g.constant(rng.standard_normal(channels).astype(np_type)))
    y = emit(g, op, operands, **attrs).output
    if tail:
        y = tail(g, y, inputs)
    g.outputs = [y]
    return g, inputs


def stored_last(graph, tactic):
    """The region with all operands channels-last, as in the middle of a network."""
    graph.toposort()
    fusion = fuse(graph)
    wants = lambda r: tactic.wants_channels_last(r, DEVICE)  # noqa: E731
    regions = assign_layouts(graph, fusion, wants, lambda r: True).regions
    return next(r for r in regions if r.anchor is not None)


def relu_residual(g, y, inputs):
    r = g.add_input("r", y.dtype, y.dims)
    inputs[r] = rng.standard_normal(y.dims).astype(y.dtype.np)
    return emit(g, "activation", [emit(g, "binary", [y, r], fn="add").output], fn="relu").output
