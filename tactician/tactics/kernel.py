"""What a tactic builds: code for one region and how to call it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.dims import DimLike
from ..ir.graph import Value


@dataclass
class Kernel:
    """A kernel in its target's source form, with its calling convention filled in.

    Attributes:
        symbol: Name of the function in ``source``. Kernels with equal ``source`` are emitted once.
        source: LLVM IR text (CPU target).
        args: What the pointer arguments are, in order: region inputs and outputs, or arrays
            packed at build time (the plan stores these as constants).
        dims: The scalar arguments: symbolic sizes the code needs at run time.
        work: Number of independent work items.
        grain: Least number of items worth a thread of its own.
        scratch: Bytes of per-thread scratch memory.
        flops: Floating-point operations, for reports and the cost model (0: unknown).
        fast_math: Whether the optimizer may use relaxed floating-point semantics.
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
    notes: dict[str, Any] = field(default_factory=dict)
