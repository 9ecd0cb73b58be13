"""Runs passes over a graph, checking their contracts.

A pass is a class with a name and ``run(graph) -> bool`` (whether it changed anything), one pass a
file. It ensures that `verify` holds after it and that graph inputs and outputs keep their names,
order, types and shapes; the manager checks both when ``TACTICIAN_CHECK=1`` (tests set it).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..ir.graph import Graph
from ..ir.verify import InvalidGraph, verify


class Pass:
    """Base class of passes.

    Attributes:
        name: Shown in traces.
        requires: Names of passes that must have run before in the same pipeline.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, graph: Graph) -> bool:
        """Rewrites ``graph`` in place; returns whether anything changed."""
        raise NotImplementedError


@dataclass
class PassTrace:
    """What a pipeline did, for reports: (pass name, changed, seconds, nodes after)."""

    entries: list[tuple[str, bool, float, int]] = field(default_factory=list)


class PassManager:
    """Runs passes in order, repeatedly until nothing changes or ``max_rounds`` is reached."""

    def __init__(self, passes: Sequence[Pass], max_rounds: int = 1):
        self.passes = list(passes)
        self.max_rounds = max_rounds

    def run(
        self, graph: Graph, trace: PassTrace | None = None,
        dump: Callable[[str, Graph], None] | None = None,
    ) -> bool:
        """Applies the pipeline; subgraphs are rewritten before the graph that holds them.

        Raises:
            InvalidGraph: If a pass broke its contract, naming it and the passes before it.
        """
        changed = False
        for node in graph.nodes:
            for sub in node.subgraphs:
                changed |= self.run(sub)
        for _ in range(self.max_rounds):
            progress = False
            for p in self.passes:
                progress |= self._run_one(p, graph, trace, dump)
            changed |= progress
            if not progress:
                break
        return changed

    def _run_one(
        self, p: Pass, graph: Graph, trace: PassTrace | None,
        dump: Callable[[str, Graph], None] | None,
    ) -> bool:
        missing = set(p.requires) - {q.name for q in self.passes}
        if missing:
            raise InvalidGraph(f"pass {p.name} needs {', '.join(sorted(missing))} before it")
        signature = _signature(graph) if checking() else None
        start = time.perf_counter()
        changed = p.run(graph)
        seconds = time.perf_counter() - start
        if trace is not None:
            trace.entries.append((p.name, changed, seconds, len(graph.nodes)))
        if dump is not None and changed:
            dump(p.name, graph)
        if signature is not None:
            try:
                verify(graph)
            except InvalidGraph as e:
                raise InvalidGraph(f"after pass {p.name}: {e}") from None
            if _signature(graph) != signature:
                raise InvalidGraph(f"pass {p.name} changed the graph's inputs or outputs")
        return changed


def checking() -> bool:
    """Whether contracts are checked (``TACTICIAN_CHECK=1``)."""
    return os.environ.get("TACTICIAN_CHECK", "0") not in ("", "0")


def _signature(graph: Graph) -> tuple[object, ...]:
    outs = tuple((v.dtype, v.shape) for v in graph.outputs)
    return tuple((v.name, v.dtype, v.shape) for v in graph.inputs), outs
