"""Sizes that vary in a network but in no optimization profile: they are known when it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph
from ..ops.registry import infer_node
from ..plan.program import Program
from ..support.errors import BuildError
from .settings import ProfileSettings


def fixed_sizes(graph: Graph, profiles: Sequence[ProfileSettings]) -> dict[str, int]:
    """Symbols of input dimensions whose minimum and maximum are the same in every profile."""
    ranges = [p.dim_ranges(graph.symbols) for p in profiles]
    out = {}
    for name, info in graph.symbols.items():
        found = {n for r in ranges for n in r.get(name, (-1,))}
        if info.kind == "dim" and len(found) == 1 and min(found) > 0:
            (out[name],) = found
    return out


def with_fixed_sizes(graph: Graph, profiles: Sequence[ProfileSettings]) -> Graph:
    """A graph in which such symbols have their values everywhere.

    Returns:
        A copy; the graph itself if there are no such sizes, or if a branch makes no sense for
        them: it isn't taken then, but would be compiled.

    Raises:
        BuildError: If layers contradict these sizes.
    """
    given, sizes = graph, fixed_sizes(graph, profiles)
    if not sizes:
        return given
    graph = graph.clone()[0]
    if not _substitute(graph, sizes):
        return given
    problems: list[str] = []
    _infer(graph, problems)
    if problems:
        shown = ", ".join(f"{name} = {n}" for name, n in sizes.items())
        raise BuildError("\n".join([f"for the only sizes of the profiles ({shown}):", *problems]))
    for name in sizes:
        del graph.symbols[name]
    return graph


def _substitute(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether all sizes make sense."""
    sound = True
    for v in graph.values():
        if v.shape is not None:
            v.shape = tuple(D.substitute(d, sizes) for d in v.shape)
            sound = sound and all(isinstance(d, D.Dim) or d >= 0 for d in v.shape)
        if v.content is not None:
            content = np.empty(v.content.size, object)
            content[:] = [D.substitute(d, sizes) for d in v.content.reshape(-1).tolist()]
            v.content = content.reshape(v.content.shape)
    return all([sound, *(_substitute(b, sizes) for n in graph.nodes for b in n.subgraphs)])


def _infer(graph: Graph, problems: list[str] | None) -> None:
    """Types once more, as more may follow from sizes that are known.

    Args:
        problems: Where errors go; None: in a branch, which may not be taken for such sizes.
    """
    for node in graph.nodes:
        if node.subgraphs:
            for body in node.subgraphs:
                _infer(body, None)
            continue
        before = [(v.shape, v.content) for v in node.outputs]
        # a plugin's shapes are its author's code, which was asked before
        if node.op == "plugin" or any(shape is None for shape, _ in before):
            continue
        infer_node(node)
        if node.error is None:
            continue
        if problems is not None:
            problems.append(node.error)
        node.error = None
        for v, (shape, content) in zip(node.outputs, before, strict=True):
            v.shape, v.content = shape, content


def declare(program: Program, graph: Graph) -> None:
    """Notes the shapes that a program's inputs and outputs have in the network, with -1 where they
    vary, as far as they do not in the program."""
    declared = {}
    for v in (*graph.inputs, *graph.outputs):
        shape = tuple(-1 if isinstance(d, D.Dim) else int(d) for d in v.dims)
        t = next(
            (program.tensors[i] for i in (*program.inputs, *program.outputs)
             if program.tensors[i].name == v.name), None,
        )
        if t is not None and any(
            n == -1 and not isinstance(d, D.Dim) for n, d in zip(shape, t.shape, strict=True)
        ):
            declared[v.name] = shape
    if declared:
        program.settings["declared"] = declared
