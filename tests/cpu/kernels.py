"""Helpers for kernel tests: one region from a graph, one kernel run against the reference."""

import numpy as np

from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit, evaluate
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.regions.region import is_slice
from tactician.targets.cpu import native
from tactician.targets.cpu.device import CpuDevice

_pool = native.Pool(max_threads=4, spin_ns=20_000)


def region_of(graph):
    """The only region of a graph."""
    graph.toposort()
    regions = fuse(graph).regions
    assert len(regions) == 1, [r.describe() for r in regions]
    return regions[0]


def channels_last_region(graph, name=""):
    """The region of the node of that name, or else the first with an anchor; operands stored
    channels-last wherever they can be."""
    graph.toposort()
    fusion = assign_layouts(graph, fuse(graph), lambda r: True, lambda r: True)
    if not name:
        return next(r for r in fusion.regions if r.anchor is not None)
    return next(r for r in fusion.regions if any(n.name == name for n in r.nodes))


def run_region(region, kernel, feeds, env=None, threads=2):
    """Results of a region's kernel as they are stored, from operands stored channels-first."""
    arrays, checks = {}, []
    for v in region.outputs:
        arrays[v], check = guarded(tuple(D.evaluate(d, env or {}) for d in v.dims), v.dtype.np)
        arrays[v].view(np.uint8).fill(0xFF)
        checks.append(check)
    for a in kernel.args:
        if not isinstance(a, np.ndarray) and a not in arrays:
            logical = a.meta.get("logical", a)
            x = feeds[logical]
            arrays[a] = x if logical is a else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    run(kernel, arrays, env, threads)
    for check in checks:
        check()
    return [arrays[v] for v in region.outputs]


def reference(graph, inputs):
    """Outputs of a graph by numpy, in double precision where inputs are f32."""
    values = dict(inputs)
    for node in graph.nodes:
        ins = [None if v is None else values.get(v, v.const) for v in node.inputs]
        values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    return [values[v] for v in graph.outputs]


def run(kernel, arrays, env=None, threads=1, device=None):
    """Runs a kernel through the schedule walker; ``arrays`` maps values to arrays (slices of rows
    are passed as they are)."""
    env = env or {}
    device = device or CpuDevice()
    address = device.function(kernel)
    keep = [
        a if isinstance(a, np.ndarray) else arrays[a] if is_slice(a)
        else np.full(a.dims, 0xAB).astype(a.dtype.np) if a not in arrays  # shared while it runs
        else np.ascontiguousarray(arrays[a]) for a in kernel.args
    ]
    args = np.array([a.ctypes.data for a in keep], np.int64)
    dims = np.array([D.evaluate(d, env) for d in kernel.dims] or [0], np.int64)
    work = np.array([D.evaluate(kernel.work, env)], np.int64)
    stride = -(-D.evaluate(kernel.scratch, env) // 64) * 64 + 64
    guard = 64
    scratch = native.aligned(stride * threads + guard)
    scratch[:] = 0xAB  # kernels must not rely on zeros
    steps = np.zeros((2, 8), np.int64)
    steps[0] = [
        1, address, args.ctypes.data, dims.ctypes.data, work.ctypes.data, 1, 0, kernel.phase
    ]
    _pool.run(steps, threads=threads, scratch=scratch.ctypes.data, scratch_stride=stride)
    assert (scratch[stride * threads :] == 0xAB).all(), "wrote past its scratch"


def guarded(shape, dtype):
    """An output array with canaries around it, and a check that they are alive."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 256, 0xCD, np.uint8)
    array = raw[128 : 128 + size].view(dtype).reshape(shape)

    def check():
        assert (raw[:128] == 0xCD).all() and (raw[128 + size :] == 0xCD).all(), "out of bounds"

    return array, check


def check_kernel(graph, kernel, inputs, env=None, threads=1, tolerance=1e-5):
    """Runs the kernel and compares with numpy in double precision."""
    env = env or {}
    arrays = dict(inputs)
    checks = []
    for v in graph.outputs:
        shape = tuple(D.evaluate(d, env) for d in v.dims)
        arrays[v], check = guarded(shape, v.dtype.np)
        checks.append(check)
    for a in kernel.args:
        if not isinstance(a, np.ndarray) and a.const is not None:
            arrays[a] = a.const
    run(kernel, arrays, env, threads)
    for check in checks:
        check()
    for v, want in zip(graph.outputs, reference(graph, inputs), strict=True):
        got, want = arrays[v].astype(np.float64), np.asarray(want).astype(np.float64)
        scale = max(1e-30, np.abs(want).max(initial=0))
        error = np.abs(got - want).max(initial=0) / scale
        assert np.isfinite(got).all() and error <= tolerance, f"error {error:.2e}"


def random(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


__all__ = ["Graph", "check_kernel", "emit", "random", "reference", "region_of", "run"]
