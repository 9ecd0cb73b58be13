"""What a tactic builds: code for one region and how to call it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.dims import Dim, DimLike
from ..ir.graph import Value


@dataclass(frozen=True)
class Launch:
    """How a GPU runs a kernel (CUDA target).

    A kernel is either Triton source or a call into a library. Triton functions take the pointers
    of ``Kernel.args``, then that of the workspace and that of the counters if there are any, then
    one integer for each of ``Kernel.dims`` and nothing else: static sizes and block sizes are
    literals in the source. Pointers are 16-byte aligned.

    Attributes:
        types: Triton types of the function's parameters in order, such as ``*fp16`` or ``i32``.
        grid: Blocks along x, y and z.
        warps, stages: Triton's ``num_warps`` and ``num_stages``.
        options: Further compiler options, such as ``(("maxnreg", 128),)``.
        library: ``cudnn`` or ``cublaslt`` for a library call, else "".
        payload: What the library needs to make the same call again: a serialized plan.
        workspace: Bytes of device memory the kernel uses while it runs; contents don't matter.
        counters: 32-bit integers of the step's own that are zero before the first run, and that
            each run leaves zero (how blocks that split a sum find out which of them is last).
    """

    types: tuple[str, ...] = ()
    grid: tuple[DimLike, ...] = (1,)
    warps: int = 4
    stages: int = 3
    options: tuple[tuple[str, Any], ...] = ()
    library: str = ""
    payload: bytes = b""
    workspace: DimLike = 0
    counters: DimLike = 0

    @property
    def cooperative(self) -> bool:
        """Whether all blocks run at once, so that they may wait for each other."""
        return ("launch_cooperative_grid", True) in self.options


@dataclass
class Kernel:
    """A kernel in its target's source form, with its calling convention filled in.

    Attributes:
        symbol: Name of the function in ``source``. Kernels with equal ``source`` are emitted once.
        source: LLVM IR text (CPU target), or Python text that defines the Triton function
            ``symbol`` (CUDA target).
        args: What the pointer arguments are, in order: region inputs and outputs, arrays
            packed at build time (the plan stores these as constants), or values of the kernel's
            own: memory that all its work items share while it runs.
        dims: The scalar arguments: symbolic sizes the code needs at run time.
        work: Number of independent work items.
        grain: Least number of items worth a thread of its own.
        phase: Items of a phase, or 0 for one phase. Items of a phase are done before any of the
            next begins; ``work`` is a multiple (CPU target).
        scratch: Bytes of per-thread scratch memory.
        flops: Floating-point operations, for reports and the cost model (0: unknown).
        fast_math: Whether the optimizer may use relaxed floating-point semantics.
        launch: How a GPU runs it; None for other targets.
        before: Kernels that run ahead of it, in order; what they leave for it is in values of
            the kernel's own (GPUs).
        finds: A value of i64 that this kernel writes, and the sizes that its elements are: the
            host reads them before anything that depends on them runs.
        found: With ``finds``, for results of such sizes: the value of the kernel's own that takes
            the elements, packed, and has room for the most there can be. Results are views of it.
    """

    symbol: str
    source: str
    args: tuple[Value | np.ndarray[Any, Any], ...]
    dims: tuple[DimLike, ...] = ()
    work: DimLike = 1
    grain: int = 1
    scratch: DimLike = 0
    flops: DimLike = 0
    fast_math: bool = False
    launch: Launch | None = None
    phase: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    before: tuple[Kernel, ...] = ()
    finds: tuple[Value, tuple[Dim, ...]] | None = None
    found: dict[Value, Value] = field(default_factory=dict)


class SourceCache:
    """Generated code by what it depends on: equal regions with other weights share it."""

    def __init__(self, limit: int = 512):
        self._limit = limit
        self._known: OrderedDict[str, tuple[str, tuple[DimLike, ...]]] = OrderedDict()

    def get(
        self, key: str, generate: Callable[[], tuple[str, tuple[DimLike, ...]]]
    ) -> tuple[str, tuple[DimLike, ...]]:
        """(source, scalar arguments) for ``key``, generated if need be."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = generate()
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return found
