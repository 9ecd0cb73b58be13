"""Programs made by hand: every node of a graph as one reference step."""

from __future__ import annotations

from collections.abc import Sequence

from tactician.ir import dims as D
from tactician.ir.dtypes import f32
from tactician.ir.graph import Graph, SymbolInfo, Value
from tactician.ir.serialize import stable_name
from tactician.memory.arena import lifetimes, plan_arena
from tactician.ops import emit
from tactician.plan.program import Profile, Program, Step, Tensor


def reference_program(graph: Graph, profiles: Sequence[Profile] = ()) -> Program:
    """Compiles a graph the slow and simple way, for tests of what runs programs."""
    p = Program(graph.name, "reference", "", symbols=dict(graph.symbols))
    ids: dict[Value, int] = {}

    def tensor(v: Value | None) -> int:
        if v is None:
            return -1
        if v not in ids:
            kind = "arena"
            ref = -1
            if v in graph.inputs:
                kind = "input"
            elif v.const is not None:
                kind, ref = "const", len(p.constants)
                p.constants.append(v.const)
            elif v in graph.outputs:
                kind = "output"
            elif any(s.startswith("%") for d in v.dims for s in D.symbols(d)):
                kind = "dynamic"
            ids[v] = len(p.tensors)
            p.tensors.append(Tensor(stable_name(v), v.dtype, v.dims, kind, ref))
        return ids[v]

    p.inputs = tuple(tensor(v) for v in graph.inputs)
    for i, node in enumerate(graph.nodes):
        ins, outs = (tuple(tensor(v) for v in vs) for vs in (node.inputs, node.outputs))
        info = {"layers": [node.name], "tactic": "reference"}
        p.steps.append(Step("reference", node.name, ins, outs, node=i, info=info))
    p.outputs = tuple(tensor(v) for v in graph.outputs)
    p.nodes = graph
    p.profiles = list(profiles) or [Profile({v.name: (v.dims,) * 3 for v in graph.inputs})]
    place(p)
    return p


def place(p: Program) -> None:
    """Plans the arena if every arena tensor is static."""
    arena = {i: t for i, t in enumerate(p.tensors) if t.kind == "arena"}
    if not all(D.is_static(*t.shape) for t in arena.values()):
        return
    sizes = {i: D.product(t.shape) * t.dtype.size for i, t in arena.items()}
    live = lifetimes([(s.inputs, s.outputs) for s in p.steps], {i: i for i in arena})
    offsets, p.arena_size = plan_arena(sizes, live)
    for i, offset in offsets.items():
        p.tensors[i].offset = offset


def exp_sum_graph(rows: int | str = 2, cols: int = 3) -> Graph:
    """y = exp(x) + w, with ``rows`` an int or the name of a symbol."""
    import numpy as np

    g = Graph("exp_sum")
    dim = D.sym(rows) if isinstance(rows, str) else rows
    x = g.add_input("x", f32, (dim, cols))
    if isinstance(rows, str):
        g.symbols[rows] = SymbolInfo(rows, "dim", "x", 0)
    w = g.constant(np.arange(cols, dtype=np.float32), "w")
    e = emit(g, "unary", [x], "exp", fn="exp").output
    y = emit(g, "binary", [e, w], "add", fn="add").output
    y.name = "y"
    g.outputs = [y]
    return g


def exp_sum_program(rows: int | str = 2, cols: int = 3) -> Program:
    profiles = []
    if isinstance(rows, str):
        profiles = [Profile({"x": ((1, cols), (4, cols), (8, cols))})]
    return reference_program(exp_sum_graph(rows, cols), profiles)
