"""Programs that carry their network can be built again: with other weights, or elsewhere.

With a refit flag or ``VERSION_COMPATIBLE`` a plan holds the network it was made from, the
settings, and the timings behind its choices. Building it again with these measures nothing and
takes a fraction of the first build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph, Value
from ..plan.program import Program
from ..plan.strip import stripped, weights_name
from ..support.errors import BuildError
from ..targets.cpu.native import equip
from .compile import compile_network
from .debug_tensors import expose, hide
from .settings import BuildSettings, ProfileSettings

Array = np.ndarray[Any, Any]

# Build settings that a later build of the same network repeats.
_KEPT = (
    "tf32", "strongly_typed", "precision_constraints", "optimization_level", "max_num_tactics",
    "workspace", "threads", "refit", "version_compatible", "hardware_compatible", "hardware_level",
    "strict_nans", "verbosity", "max_batch_size",
)  # fmt: skip
# Settings of a program that its compiler doesn't set.
_CARRIED = ("locations", "aliases", "debug_tensors", "workspace", "unfused_debug",
            "weight_streaming")


class UsedTimings(MutableMapping[str, Any]):
    """A timing cache that remembers which entries a build used."""

    def __init__(self, entries: MutableMapping[str, Any] | None):
        self.entries = {} if entries is None else entries
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.used.add(key)
        return self.entries[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.used.add(key)
        self.entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def report(self) -> dict[str, Any]:
        """The entries used, by sorted key."""
        return {k: dict(self.entries[k]) for k in sorted(self.used) if k in self.entries}


@dataclass(frozen=True)
class Refittable:
    """Weights that may be replaced.

    Attributes:
        value: The constant in the program's network.
        layer, role: The layer that owns them and what for: ``kernel``, ``bias``, … or ``any``.
    """

    value: Value
    layer: str
    role: str


def refittable(graph: Graph) -> dict[str, Refittable]:
    """Weights by name: named constants of a floating-point or 8-bit type. Others (shapes, axes)
    decide what the network is and can't be replaced."""
    out: dict[str, Refittable] = {}
    seen: dict[str, Value] = {}
    for node in graph.nodes:
        for v in node.present_inputs():
            if v.const is None or not (v.dtype.is_float or v.dtype.bits <= 8):
                continue
            name = weights_name(v)
            if seen.setdefault(name, v) is not v:
                out.pop(name, None)  # two constants of one name: neither can be meant
                continue
            role = str(v.meta.get("weights_role", "any"))
            out.setdefault(name, Refittable(v, v.meta.get("weights_layer", node.name), role))
    return out


def plain_constants(graph: Graph) -> None:
    """Turns ``constant`` nodes into constant values, as other weights are; outputs stay."""
    for node in list(graph.nodes):
        kept = node.op == "constant" and (
            node.output.meta.get("debug") or any(o is node.output for o in graph.outputs))
        if node.op != "constant" or kept:
            continue
        given = node.meta.get("weights_name")
        v = graph.constant(np.asarray(node.attrs.value), str(given or f"{node.name}.weights"))
        v.meta.update(weights_role="weights", weights_layer=node.name)
        if given:
            v.meta["weights_name"] = given
        graph.replace_uses(node.output, v)
        graph.remove(node)


def keep_network(
    program: Program, graph: Graph, settings: BuildSettings, timings: UsedTimings,
    marked: frozenset[str] | None = None,
) -> None:
    """Makes a program carry what it takes to build it again.

    Args:
        graph: The network it was compiled from.
        timings: The timing cache of that build.
        marked: Names of weights that may be replaced; None: all.
    """
    plain_constants(graph)
    program.network = graph
    program.settings["rebuild"] = {
        **{name: getattr(settings, name) for name in _KEPT},
        "precisions": tuple(sorted(settings.precisions)),
        "tactic_sources":
            None if settings.tactic_sources is None else tuple(sorted(settings.tactic_sources)),
        "timings": timings.report(),
    }
    if settings.refit != "none":
        program.weights = {
            name: (w.layer, w.role) for name, w in refittable(graph).items()
            if (name in marked if marked is not None else is_finite(w.value))
        }


def is_finite(v: Value) -> bool:
    """Whether weights have only finite numbers. Constants with infinities (masks) are what the
    network is, and nobody would give them anew."""
    array = v.const
    assert array is not None
    return not v.dtype.is_float or v.dtype.bits < 16 or bool(
        np.isfinite(array if v.dtype.bits > 16 else array.astype(np.float32)).all()
    )


def rebuild(
    program: Program, weights: Mapping[str, Array] | None = None, threads: int | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Program:
    """Builds a program's network again for this machine.

    Args:
        program: One that carries its network.
        weights: Weights to replace, of the old ones' types and shapes.
        threads: Threads to use; None: as before.
        ranges: Dynamic ranges to replace, by tensor.

    Raises:
        BuildError: If the network can't be built here, or weights are missing.
    """
    assert program.network is not None
    missing = stripped(program).keys() - (weights or {}).keys()
    if missing:
        raise BuildError(
            f"the plan holds no weights; give all of them: {', '.join(sorted(missing))} are missing"
        )
    graph, twin = program.network.clone()
    named = refittable(program.network)
    for name, array in (weights or {}).items():
        twin[named[name].value].const = array
    for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outputs)):
        if ranges and v.name in ranges:
            v.meta["dynamic_range"] = ranges[v.name]
    given = dict(program.settings["rebuild"])
    timings = UsedTimings(given.pop("timings"))
    sources = given.pop("tactic_sources")
    settings = BuildSettings(
        target=program.target,
        precisions=frozenset(given.pop("precisions")),
        tactic_sources=None if sources is None else frozenset(sources),
        profiles=tuple(ProfileSettings(p.shapes, p.values) for p in program.profiles),
        timing_cache=timings,
        **given,
    )
    _, added = expose(graph)
    new, _ = compile_network(graph, settings, program.name)
    hide(new, added)
    graph.outputs = graph.outputs[: len(graph.outputs) - len(added)]
    new.implicit_batch = program.implicit_batch
    for name in _CARRIED:
        if name in program.settings:
            new.settings[name] = program.settings[name]
    if threads is not None:
        new.threads = threads
    if new.target == "cpu":
        equip(new)
    marked = frozenset(program.weights) if program.weights else None
    keep_network(new, graph, settings, timings, marked)
    return new
