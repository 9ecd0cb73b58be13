"""Keeps tensors that are marked for debugging: as outputs while the network is compiled, so that
fusion leaves them, and as ordinary tensors afterwards."""

from __future__ import annotations

from ..ir import dims as D
from ..ir.graph import Graph
from ..memory.arena import alignment_for
from ..plan.program import ARENA, DYNAMIC, Program


def expose(graph: Graph) -> tuple[list[str], list[str]]:
    """Makes marked values outputs of a lowered graph.

    Returns:
        Names of all marked values that an engine can show, and of those added as outputs.
    """
    marked = [v for n in graph.nodes for v in n.outputs if v.meta.get("debug")]
    added = [v for v in marked if all(v is not o for o in graph.outputs)]
    graph.outputs = [*graph.outputs, *added]
    return sorted(v.name for v in marked), [v.name for v in added]


def hide(program: Program, names: list[str]) -> None:
    """Turns the outputs that `expose` added into tensors in the context's memory."""
    if not names:
        return
    for i in program.outputs[-len(names) :]:
        t = program.tensors[i]
        program.settings.get("declared", {}).pop(t.name, None)  # of inputs and outputs alone
        data = {s for d in t.shape for s in D.symbols(d) if program.symbols[s].kind == "data"}
        t.kind = DYNAMIC if data else ARENA
        if program.arena_size >= 0:
            size = D.product(t.shape)
            assert isinstance(size, int)
            t.offset = program.arena_size
            alignment = alignment_for(program.target)
            program.arena_size += -(-size * t.dtype.size // alignment) * alignment
    program.outputs = program.outputs[: -len(names)]
