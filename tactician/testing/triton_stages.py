"""Runs the stages of one node as a Triton kernel in its interpreter, for comparing with the
node's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import DType
from ..ir.graph import Node, Value
from ..ops import get
from ..ops.stage_eval import bind_symbols
from ..tactics.kernel import Kernel

Array = np.ndarray[Any, Any]
_GUARD = 128  # bytes around outputs that must stay untouched
_CANARY = 0xCD


def run_triton_stages(
    node: Node, *inputs: Any, sizes: Mapping[str, int] | None = None, sms: int = 132
) -> tuple[Array, ...] | None:
    """Outputs of a node through a loop-nest kernel, or None if it has no stages or no such
    kernel can be made of them.

    Args:
        sms: Multiprocessors the kernel is cut for.

    Raises:
        AssertionError: If the kernel wrote outside of its outputs.
    """
    from ..targets.cuda.loops import build_loops, refusal

    stages = get(node.op).stages(node)
    if stages is None or refusal(stages, node.outputs) is not None:
        return None
    return run_triton_kernel(
        build_loops(stages, node.outputs, sms, pairs=True), node, inputs, sizes
    )


def run_triton_kernel(
    kernel: Kernel, node: Node, inputs: Any, sizes: Mapping[str, int] | None = None
) -> tuple[Array, ...]:
    """Runs a kernel that computes a node's outputs; see `run_triton_stages`."""
    arrays = [None if a is None else np.ascontiguousarray(a).reshape(np.shape(a)) for a in inputs]
    env = {**bind_symbols(node.inputs, arrays), **(sizes or {})}
    memory: dict[Value, Array] = {
        v: a for v, a in zip(node.inputs, arrays, strict=True) if v is not None and a is not None
    }
    guarded = {v: guarded_array([D.evaluate(d, env) for d in v.dims], v.dtype)
               for v in node.outputs}  # fmt: skip
    memory.update({v: data for v, (_, data) in guarded.items()})
    launch_interpreted(kernel, memory, env)
    for v, (raw, _) in guarded.items():
        assert (raw[:_GUARD] == _CANARY).all(), f"wrote before {v}"
        assert (raw[-_GUARD:] == _CANARY).all(), f"wrote behind {v}"
    return tuple(guarded[v][1] for v in node.outputs)


def guarded_array(shape: Any, dtype: DType) -> tuple[Array, Array]:
    """An array amidst bytes that must not change: all the memory, and the array in it."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.size
    raw = np.full(size + 2 * _GUARD, _CANARY, np.uint8)
    return raw, raw[_GUARD : _GUARD + size].view(dtype.np).reshape(tuple(shape))


def launch_interpreted(
    kernel: Kernel, memory: Mapping[Value, Array], env: Mapping[str, int]
) -> None:
    """Runs a kernel once in this process.

    Args:
        memory: The array of every value that is no constant.
        env: Values of symbols.

    Raises:
        AssertionError: If the kernel did not leave its counters at zero.
    """
    from ..targets.cuda.interpret import interpret

    launch = kernel.launch
    assert launch is not None
    data = [
        a if isinstance(a, np.ndarray)
        else np.ascontiguousarray(a.const) if a.const is not None else memory[a]
        for a in kernel.args
    ]
    space = np.full(D.evaluate(launch.workspace, env), _CANARY, np.uint8)
    counters = np.zeros(D.evaluate(launch.counters, env), np.int32)
    pointers = [a.ctypes.data for a in data]
    pointers += [a.ctypes.data for a in (space, counters) if a.size]
    grid = [D.evaluate(d, env) for d in launch.grid]
    values = [*pointers, *(D.evaluate(d, env) for d in kernel.dims)]
    interpret(kernel.source, kernel.symbol, launch.types, grid, values, kernel.symbol,
              together=launch.cooperative)
    assert not counters.any(), "the kernel's counters are not zero afterwards"
