"""Edges at which kernels that aren't ours would begin early, over a driver that is made up."""

from types import SimpleNamespace

import pytest

from tactician.support.errors import ExecutionError
from tactician.targets.cuda.edges import close_early

OURS, THEIRS = 0x10, 0x20


class Edge(SimpleNamespace):
    def __init__(self, type=0):
        super().__init__(type=type)


class Bindings:
    """A graph of kernels (by the function each runs; None: no kernel) with edges between them."""

    CUgraphDependencyType = SimpleNamespace(CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC=1)
    CUgraphNodeType = SimpleNamespace(CU_GRAPH_NODE_TYPE_KERNEL="kernel")
    CUgraphEdgeData = Edge

    def __init__(self, functions, edges, fails=""):
        self.functions, self.fails = functions, fails
        self.edges = {(a, b): Edge(kind) for a, b, kind in edges}

    def _reply(self, name, *values):
        return (SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE"),) if name == self.fails else (
            0, *values)

    def cuGraphGetEdges(self, graph, count=0):
        pairs = list(self.edges)[: count or None]
        parts = [[a for a, _ in pairs], [b for _, b in pairs], list(self.edges.values())]
        return self._reply("get", *(parts if count else [None] * 3), len(self.edges))

    def cuGraphNodeGetType(self, node):
        return self._reply("type", "memset" if self.functions[node] is None else "kernel")

    def cuGraphKernelNodeGetParams(self, node):
        return self._reply("params", SimpleNamespace(func=self.functions[node]))

    def cuGraphRemoveDependencies(self, graph, sources, targets, data, count):
        for a, b, e in zip(sources, targets, data, strict=True):
            assert self.edges.pop((a, b)) is e
        return self._reply("remove")

    def cuGraphAddDependencies(self, graph, sources, targets, data, count):
        assert count == len(sources)
        self.edges.update(zip(zip(sources, targets, strict=True), data, strict=True))
        return self._reply("add")


def kinds(d):
    return {pair: e.type for pair, e in d.edges.items()}


def test_only_edges_into_kernels_of_others_are_closed():
    d = Bindings([OURS, THEIRS, THEIRS, OURS, None],
                 [(0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 4, 0), (0, 3, 0)])
    assert close_early(d, None, {OURS}) == 2
    assert kinds(d) == {(0, 1): 0, (1, 2): 0, (2, 3): 1, (3, 4): 0, (0, 3): 0}


def test_what_waits_already_stays():
    d = Bindings([THEIRS, OURS], [(0, 1, 1)])
    assert close_early(d, None, {OURS}) == 0 and kinds(d) == {(0, 1): 1}
    assert close_early(Bindings([THEIRS], []), None, ()) == 0


def test_bindings_with_two_functions_of_each():
    d = Bindings([OURS, THEIRS], [(0, 1, 1)])
    for name in ("GetEdges", "RemoveDependencies", "AddDependencies"):
        setattr(d, f"cuGraph{name}_v2", getattr(d, f"cuGraph{name}"))
        setattr(d, f"cuGraph{name}", None)
    assert close_early(d, None, {OURS}) == 1 and kinds(d) == {(0, 1): 0}


@pytest.mark.parametrize("call", ["get", "type", "params", "remove", "add"])
def test_a_refusal_is_an_error(call):
    d = Bindings([OURS, THEIRS], [(0, 1, 1)], fails=call)
    with pytest.raises(ExecutionError, match="edges of a graph: CUDA_ERROR_INVALID_VALUE"):
        close_early(d, None, {OURS})
