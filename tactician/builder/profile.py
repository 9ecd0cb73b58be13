"""`IOptimizationProfile`: the ranges of shapes an engine is built for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ir import dims as D
from ..ir.graph import Graph, Value
from ..network.values import Dims, as_int
from ..support.errors import BuildError, UsageError
from .settings import Extents, ProfileSettings, Range


class IOptimizationProfile:
    """Ranges of input shapes and of the contents of shape inputs. Made by
    `Builder.create_optimization_profile`.

    Attributes:
        extra_memory_target: Without effect, which the builder logs: contexts take the memory
            that their shapes need.
    """

    extra_memory_target: float

    def __init__(self) -> None:
        self._shapes: dict[str, Range] = {}
        self._values: dict[str, Range] = {}
        self.extra_memory_target = 1.0

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """The range of an input's shape, and the shape kernels are tuned for.

        Raises:
            UsageError: (a ValueError) If the ranks differ or not ``min <= opt <= max``.
        """
        self._shapes[input] = _range(f"set_shape({input!r})", min, opt, max, least=0)

    def get_shape(self, input: str) -> list[Dims]:
        """[min, opt, max] of an input, [] if it was not set."""
        return [Dims(s) for s in self._shapes.get(input, ())]

    def set_shape_input(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """The range of the contents of a shape input.

        Raises:
            UsageError: (a ValueError) If the lengths differ or not ``min <= opt <= max``.
        """
        self._values[input] = _range(f"set_shape_input({input!r})", min, opt, max, least=None)

    def get_shape_input(self, input: str) -> list[list[int]]:
        """[min, opt, max] of a shape input, [] if it was not set."""
        return [list(s) for s in self._values.get(input, ())]

    def __bool__(self) -> bool:
        """Whether anything is set; ranges themselves are checked as they are set."""
        return True

    __nonzero__ = __bool__

    def __repr__(self) -> str:
        ranges = [f"{n}: {a} {b} {c}" for n, (a, b, c) in (self._shapes | self._values).items()]
        return f"<IOptimizationProfile {'; '.join(ranges) or 'empty'}>"


def _extents(what: str, x: Any) -> Extents:
    try:
        return tuple(as_int(d) for d in (x if isinstance(x, Iterable) else (x,)))
    except TypeError as e:
        raise UsageError(f"{what}: {e}") from None


def _range(what: str, lo: Any, opt: Any, hi: Any, least: int | None) -> Range:
    a, b, c = (_extents(what, x) for x in (lo, opt, hi))
    if not len(a) == len(b) == len(c):
        raise UsageError(f"{what}: min {a}, opt {b} and max {c} must have the same length")
    if any(not x <= y <= z for x, y, z in zip(a, b, c, strict=True)):
        raise UsageError(f"{what}: need min <= opt <= max everywhere, got {a}, {b}, {c}")
    if least is not None and any(x < least for x in a):
        raise UsageError(f"{what}: sizes must be at least {least}, got min {a}")
    return a, b, c


def settle_profiles(
    graph: Graph, profiles: list[IOptimizationProfile], max_batch: int
) -> tuple[ProfileSettings, ...]:
    """Checks profiles against a network's inputs and completes them.

    Args:
        graph: The network.
        profiles: As the user made them.
        max_batch: For implicit-batch networks the largest batch, else 0.

    Raises:
        BuildError: Naming every input that has no range, or one that doesn't fit.
    """
    if max_batch:
        shapes = {v.name: _batched(v, max_batch) for v in graph.inputs}
        return (ProfileSettings(shapes),)
    dynamic = [v for v in graph.inputs if not v.is_static]
    if not profiles:
        if dynamic:
            inputs = ", ".join(f"{v.name!r} {_shown(v)}" for v in dynamic)
            raise BuildError(
                f"inputs {inputs} vary, but there is no optimization profile; make one with "
                "builder.create_optimization_profile(), give it ranges with set_shape(name, min, "
                "opt, max) and add it with config.add_optimization_profile()"
            )
        return (ProfileSettings(_static(graph)),)
    problems: list[str] = []
    out = []
    for i, p in enumerate(profiles):
        problems += _problems(graph, i, p)
        out.append(ProfileSettings(_static(graph) | p._shapes, dict(p._values)))
    if problems:
        raise BuildError("\n".join(problems))
    return tuple(out)


def _static(graph: Graph) -> dict[str, Range]:
    return {v.name: (v.dims,) * 3 for v in graph.inputs if v.is_static}  # type: ignore[misc]


def _batched(v: Value, most: int) -> Range:
    rest = v.dims[1:]
    if not D.is_static(*rest):
        raise BuildError(f"input {v.name!r}: shapes can't vary in an implicit-batch network")
    if v.dims[0] == 1:  # one copy for the whole batch
        most = 1
    return (1, *rest), (most, *rest), (most, *rest)  # type: ignore[return-value, arg-type]


def _shown(v: Value) -> str:
    return str(tuple(-1 if isinstance(d, D.Dim) else d for d in v.dims))


def _problems(graph: Graph, index: int, p: IOptimizationProfile) -> list[str]:
    out = []
    inputs = {v.name: v for v in graph.inputs}
    for name in (*p._shapes, *p._values):
        if name not in inputs:
            known = ", ".join(map(repr, inputs))
            out.append(f"profile {index} names {name!r}, which is no input; inputs are {known}")
    for name, v in inputs.items():
        if name not in p._shapes:
            if not v.is_static:
                out.append(
                    f"profile {index} has no range for input {name!r}, whose shape {_shown(v)} "
                    f"varies; call profile.set_shape({name!r}, min, opt, max)"
                )
            continue
        triple = p._shapes[name]
        if len(triple[0]) != len(v.dims):
            out.append(
                f"profile {index}: input {name!r} has {len(v.dims)} dimensions {_shown(v)}, "
                f"its range has {len(triple[0])}: {triple}"
            )
            continue
        for k, d in enumerate(v.dims):
            if not isinstance(d, D.Dim) and any(t[k] != d for t in triple):
                out.append(
                    f"profile {index}: dimension {k} of input {name!r} is {d} in the network, "
                    f"its range is {triple}"
                )
    return out + _disagreements(inputs, index, p)


def _disagreements(inputs: dict[str, Value], index: int, p: IOptimizationProfile) -> list[str]:
    """Inputs that share a dimension must have one range for it."""
    out = []
    seen: dict[D.DimLike, tuple[str, Extents]] = {}
    for name, triple in p._shapes.items():
        if name not in inputs or len(triple[0]) != len(inputs[name].dims):
            continue
        for k, d in enumerate(inputs[name].dims):
            if isinstance(d, D.Dim):
                mine = tuple(t[k] for t in triple)
                first, theirs = seen.setdefault(d, (name, mine))
                if mine != theirs:
                    out.append(
                        f"profile {index}: inputs {first!r} and {name!r} share dimension {d}, "
                        f"but their ranges are {theirs} and {mine}"
                    )
    return out
