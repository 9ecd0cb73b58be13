"""`IAlgorithmSelector`: programs choose between the autotuner's correct candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import dims as D
from ..ir.graph import Value
from ..network.enums import TensorFormat, from_ir
from ..network.interfaces import (
    IAlgorithm,
    IAlgorithmContext,
    IAlgorithmIOInfo,
    IAlgorithmVariant,
)
from ..network.values import Dims, as_int
from ..regions.region import Region
from ..support.errors import BuildError
from ..tactics.tuner import Option
from .settings import ProfileSettings
from .timing_cache import tactic_hash


class Selection:
    """Asks a program's selector during one build, and tells it what was chosen.

    Args:
        selector: `IAlgorithmSelector`.
        refuse_empty: Whether choosing nothing fails the build; else the builder chooses then.
        symbols: The graph's symbols.
        profile: The profile that shapes are shown with.
    """

    def __init__(
        self, selector: Any, refuse_empty: bool, symbols: Any, profile: ProfileSettings | None
    ):
        self._selector = selector
        self._refuse_empty = refuse_empty
        ranges = profile.dim_ranges(symbols) if profile else {}
        self._ranges = ranges
        self._asked: dict[Region, tuple[IAlgorithmContext, dict[tuple[str, str], IAlgorithm]]] = {}
        self._contexts: list[IAlgorithmContext] = []
        self._chosen: list[IAlgorithm] = []

    def select(self, region: Region, options: Sequence[Option]) -> Sequence[int] | None:
        """What the tuner asks; see `tactics.tuner.Select`.

        Raises:
            BuildError: If the answer makes no sense, or is empty where that is forbidden.
        """
        tensors = [*region.inputs, *region.outputs]
        context = IAlgorithmContext(
            region.name, [self._shapes(v) for v in tensors], len(region.inputs)
        )
        choices = [self._algorithm(o, tensors) for o in options]
        self._asked[region] = context, {
            (o.tactic, o.candidate): a for o, a in zip(options, choices, strict=True)
        }
        given = self._selector.select_algorithms(context, choices)
        picked = [as_int(i) for i in (() if given is None else given)]
        if any(not 0 <= i < len(choices) for i in picked):
            raise BuildError(
                f"the algorithm selector gave {picked} for layer {region.name!r}, which has "
                f"{len(choices)} algorithms, numbered from 0"
            )
        if picked:
            return picked
        if self._refuse_empty:
            raise BuildError(
                f"the algorithm selector left no algorithm for layer {region.name!r}, and "
                "REJECT_EMPTY_ALGORITHMS is set"
            )
        return None

    def took(self, region: Region, tactic: str, candidate: str) -> None:
        """Notes the kernel that the engine has."""
        context, known = self._asked.get(region, (None, {}))
        algorithm = known.get((tactic, candidate))
        if context is not None and algorithm is not None:
            self._contexts.append(context)
            self._chosen.append(algorithm)

    def report(self) -> None:
        """Tells the selector all choices, in the order of the schedule."""
        self._selector.report_algorithms(self._contexts, self._chosen)

    def _shapes(self, v: Value) -> list[Dims]:
        """Least, optimal and largest shape; 4 stands for sizes that only runs can tell."""
        out = []
        for k in range(3):
            dims = v.meta.get("logical", v).dims
            env = {s: self._ranges[s][k] if s in self._ranges else 4
                   for d in dims for s in D.symbols(d)}
            out.append(Dims(D.evaluate(d, env) for d in dims))
        return out

    def _io(self, v: Value) -> IAlgorithmIOInfo:
        """Type and layout; strides count along the tensor's own dimensions."""
        shape = tuple(self._shapes(v)[1])
        order = v.meta["perm"] if "logical" in v.meta else tuple(range(len(shape)))
        strides, step = [1] * len(shape), 1
        for i in reversed(order):
            strides[i], step = step, step * shape[i]
        moved = order != tuple(range(len(shape)))
        layout = TensorFormat.HWC if moved else TensorFormat.LINEAR
        return IAlgorithmIOInfo(from_ir(v.dtype), Dims(strides), tensor_format=layout)

    def _algorithm(self, o: Option, tensors: Sequence[Value]) -> IAlgorithm:
        variant = IAlgorithmVariant(
            tactic_hash(o.tactic), tactic_hash(f"{o.tactic}({o.candidate})")
        )
        return IAlgorithm(variant, o.seconds * 1e3, o.workspace, [self._io(v) for v in tensors])
