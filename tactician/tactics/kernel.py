"""What a tactic builds: code for one region and how to call it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
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
