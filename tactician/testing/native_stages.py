"""Runs the stages of one node as a kernel of this CPU, for comparing with its reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Node, Value
from ..ops import get
from ..ops.stage_eval import bind_symbols

Array = np.ndarray[Any, Any]
_GUARD = 128  # bytes around outputs that must stay untouched
_CANARY = 0xCD


@functools.cache
def _machine() -> tuple[Any, Any]:
    from ..targets.cpu import native
    from ..targets.cpu.device import CpuDevice

    return CpuDevice(), native.Pool(max_threads=1, spin_ns=20_000)


def run_native_stages(
    node: Node, *inputs: Any, sizes: Mapping[str, int] | None = None
) -> tuple[Array, ...] | None:
    """Outputs of a node through a loop-nest kernel, or None if it has no stages or no such
    kernel can be made of them.

    Raises:
        AssertionError: If the kernel wrote outside of its outputs.
    """
    from ..targets.cpu.loops import LoopCandidate, build_loops, refusal

    stages = get(node.op).stages(node)
    if stages is None or refusal(stages) is not None:
        return None
    device, _ = _machine()
    arrays = [None if a is None else np.ascontiguousarray(a).reshape(np.shape(a)) for a in inputs]
    env = {**bind_symbols(node.inputs, arrays), **(sizes or {})}
    kernel = build_loops(stages, node.outputs, device.isa, LoopCandidate(2))
    memory: dict[Value, Array] = {
        v: a for v, a in zip(node.inputs, arrays, strict=True) if v is not None and a is not None
    }
    guarded = {v: _guarded(v, env) for v in node.outputs}
    memory.update({v: data for v, (_, data) in guarded.items()})
    _launch(kernel, memory, env)
    for v, (raw, _) in guarded.items():
        assert (raw[:_GUARD] == _CANARY).all(), f"wrote before {v}"
        assert (raw[-_GUARD:] == _CANARY).all(), f"wrote behind {v}"
    return tuple(guarded[v][1] for v in node.outputs)


def _guarded(v: Value, env: Mapping[str, int]) -> tuple[Array, Array]:
    shape = tuple(D.evaluate(d, env) for d in v.dims)
    size = int(np.prod(shape, dtype=np.int64)) * v.dtype.size
    raw = np.full(size + 2 * _GUARD, _CANARY, np.uint8)
    return raw, raw[_GUARD : _GUARD + size].view(v.dtype.np).reshape(shape)


def _launch(kernel: Any, memory: Mapping[Value, Array], env: Mapping[str, int]) -> None:
    device, pool = _machine()
    data = [
        a if isinstance(a, np.ndarray) else a.const if a.const is not None else memory[a]
        for a in kernel.args
    ]
    args = np.array([a.ctypes.data for a in data], np.int64)
    dims = np.array([D.evaluate(d, env) for d in kernel.dims] or [0], np.int64)
    work = np.array([D.evaluate(kernel.work, env)], np.int64)
    scratch = np.empty(D.evaluate(kernel.scratch, env) + 128, np.uint8)
    start = scratch.ctypes.data + -scratch.ctypes.data % 64
    steps = np.zeros((2, 8), np.int64)
    steps[0] = [1, device.function(kernel), args.ctypes.data, dims.ctypes.data, work.ctypes.data,
                1, 0, 0]
    pool.run(steps, threads=1, scratch=start, scratch_stride=scratch.nbytes)
