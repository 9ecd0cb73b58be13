"""One-call checks of op declarations, for this project's tests and for those of plugins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import dtype
from ..ir.graph import Graph, Node
from ..ops import emit, get
from ..ops.interpreter import run_graph
from ..support.tolerances import Tolerance, mismatch, tolerance

Arrays = Sequence["np.ndarray[Any, Any]"]


def check_op(
    op: str,
    inputs: Arrays,
    expected: Callable[..., Any] | Any,
    *,
    dynamic: bool = True,
    native: bool = True,
    tol: Tolerance | None = None,
    **attrs: Any,
) -> None:
    """Check an op against something that is not its own declaration.

    Compares shapes, element types and values of (1) the numpy reference, (2) the same with every
    input dimension symbolic, and (3) native code made from ``stages``, run as an engine.

    Args:
        op: Name of a declared op.
        inputs: One array per input.
        expected: The right outputs: an array, a tuple of them, or a function of the inputs.
        dynamic: Also infer with symbolic dimensions; a dimension of size 1 stays 1, because it
            may broadcast.
        native: Also compile the op for this CPU, without falling back to numpy.
        tol: Instead of the table's tolerance for the output's type.
        **attrs: Attributes of the op.

    Raises:
        AssertionError: What differs, and in which of the three.
    """
    wanted = expected(*inputs) if callable(expected) else expected
    wanted = [np.asarray(w) for w in (wanted if isinstance(wanted, tuple) else (wanted,))]
    fixed = _graph(op, inputs, attrs, symbolic=False)
    _compare("reference", fixed, run_graph(fixed, list(inputs)), wanted, tol)
    if dynamic:
        open_ = _graph(op, inputs, attrs, symbolic=True)
        _check_shapes(open_, inputs, wanted)
        _compare("reference, dynamic shapes", open_, run_graph(open_, list(inputs)), wanted, tol)
    if native and get(op).stages(fixed.nodes[0]) is not None:
        _compare("native code", fixed, run_native(fixed, inputs), wanted, tol)


def _graph(op: str, inputs: Arrays, attrs: dict[str, Any], symbolic: bool) -> Graph:
    graph = Graph(op)
    values = []
    for k, array in enumerate(inputs):
        shape: tuple[D.DimLike, ...] = array.shape
        if symbolic:
            shape = tuple(d if d == 1 else D.sym(f"in{k}.{i}") for i, d in enumerate(shape))
        values.append(graph.add_input(f"in{k}", dtype(array.dtype), shape))
    graph.outputs = list(emit(graph, op, values, op, **attrs).outputs)
    return graph


def _compare(
    what: str, graph: Graph, actual: Arrays, wanted: Arrays, tol: Tolerance | None
) -> None:
    node: Node = graph.nodes[0]
    assert len(actual) == len(wanted), f"{what}: {len(actual)} outputs instead of {len(wanted)}"
    for value, a, w in zip(graph.outputs, actual, wanted, strict=True):
        why = mismatch(a, w, tol or tolerance(value.dtype.name))
        assert why is None, f"{what} of {node.describe()}: {why}"
        assert a.dtype == value.dtype.np, f"{what}: {a.dtype} instead of {value.dtype}"


def _check_shapes(graph: Graph, inputs: Arrays, wanted: Arrays) -> None:
    env = {f"in{k}.{i}": d for k, a in enumerate(inputs) for i, d in enumerate(a.shape)}
    for value, w in zip(graph.outputs, wanted, strict=True):
        sizes = tuple(D.substitute(d, env) for d in value.dims)
        known = [s if isinstance(s, int) else w.shape[i] for i, s in enumerate(sizes)]
        assert tuple(known) == w.shape, f"inferred {value}, which gives {sizes}, not {w.shape}"


def run_native(graph: Graph, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
    """Build a graph for this CPU, without reference steps, and run it once.

    Raises:
        AssertionError: A step would run in numpy; the message says why.
    """
    from ..builder.compile import compile_network
    from ..builder.settings import BuildSettings
    from ..plan.format import write_plan
    from ..runtime.easy import load

    program, report = compile_network(graph, BuildSettings(optimization_level=1, threads=1))
    assert not report.reference, f"runs in numpy: {report.reference}"
    feeds = {v.name: a for v, a in zip(graph.inputs, inputs, strict=True)}
    results = load(write_plan(program))(feeds)
    return [results[v.name] for v in graph.outputs]
