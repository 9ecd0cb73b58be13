"""Edges of a captured CUDA graph that let a library's kernel begin too early.

A kernel launched programmatically dependent begins before the one ahead of it has ended, and must
wait before it reads what that one writes. Ours do. Some of cuDNN's (9.19, convolutions fused with
a residual, on an H200) read an operand of their epilogue before they wait, so that every other run
of a network gave other results. In a graph such a launch is an edge between two kernels, which can
be replaced by one that waits for the end.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ...support.errors import ExecutionError


def close_early(d: Any, graph: Any, ours: Container[int]) -> int:
    """Makes kernels other than ours wait for the end of all that they come after.

    Args:
        d: Module `cuda.bindings.driver`.
        graph: A captured graph, not instantiated yet.
        ours: Handles of the functions that may begin early.

    Returns:
        How many edges were replaced.

    Raises:
        ExecutionError: If the driver refuses.
    """
    sources, targets, data = _edges(d, graph)
    early = [
        k for k, e in enumerate(data)
        if int(e.type) == int(d.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        and not _is_one_of(d, targets[k], ours)
    ]
    if not early:
        return 0
    remove = _newest(d, "cuGraphRemoveDependencies")
    add = _newest(d, "cuGraphAddDependencies")
    before, after = [sources[k] for k in early], [targets[k] for k in early]
    _check(remove(graph, before, after, [data[k] for k in early], len(early)))
    _check(add(graph, before, after, [d.CUgraphEdgeData() for _ in early], len(early)))
    return len(early)


def _edges(d: Any, graph: Any) -> tuple[list[Any], list[Any], list[Any]]:
    get = _newest(d, "cuGraphGetEdges")
    count = _check(get(graph))[-1]
    if not count:
        return [], [], []
    sources, targets, data, _ = _check(get(graph, count))
    return list(sources), list(targets), list(data)


def _is_one_of(d: Any, node: Any, functions: Container[int]) -> bool:
    if _check(d.cuGraphNodeGetType(node))[0] != d.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL:
        return False
    return int(_check(d.cuGraphKernelNodeGetParams(node))[0].func) in functions


def _newest(d: Any, name: str) -> Any:
    """A function that takes data of edges: bindings before version 13 have two of each."""
    return getattr(d, f"{name}_v2", None) or getattr(d, name)


def _check(reply: tuple[Any, ...]) -> tuple[Any, ...]:
    if reply[0]:
        raise ExecutionError(f"changing the edges of a graph: {reply[0].name}")
    return reply[1:]
