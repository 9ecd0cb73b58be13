"""Converting modules and comparing with eager torch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

import tactician as trt
from tactician.ops.interpreter import run_graph
from tactician.torch import lower_program
from tactician.torch.calls import export

torch.set_num_threads(1)


def graph_of(module: torch.nn.Module, args: tuple[Any, ...], highest: Any = None) -> Any:
    """The graph of a module and what the conversion says. Dimensions in which ``highest`` shapes
    differ from the arguments' vary."""
    leaves = pytree.tree_leaves((args, {}))
    ranges = [(tuple(x.shape),) * 3 for x in leaves]
    if highest is not None:
        ranges = [(r[0], r[0], tuple(h)) for r, h in zip(ranges, highest, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(module.eval(), args, {}, ranges)
        network = trt.Builder(trt.Logger()).create_network(1)
        done = lower_program(program, network)
    return network.lower_control(), done


def run(graph: Any, done: Any, args: tuple[Any, ...]) -> list[Any]:
    """Results of the graph in numpy."""
    leaves = pytree.tree_leaves((args, {}))
    return run_graph(graph, [leaves[p].numpy() for p in done.inputs])


def agree(module: torch.nn.Module, *args: Any, other: tuple[Any, ...] | None = None,
          tol: float = 1e-4) -> Any:
    """Compares a module with its graph; with ``other``, arguments of other sizes, the graph is
    made with the dimensions that differ dynamic and compared on both. Gives the graph."""
    highest = None
    if other is not None:
        shapes = [(a.shape, b.shape) for a, b in zip(
            pytree.tree_leaves(args), pytree.tree_leaves(other), strict=True)]
        highest = [tuple(max(i, j) for i, j in zip(a, b, strict=True)) for a, b in shapes]
    graph, done = graph_of(module, args, highest)
    if other is not None:
        assert graph.symbols, "the module fixed its sizes"
    for call in filter(None, (args, other)):
        with torch.no_grad():
            expected = pytree.tree_leaves(module(*call))
        for got, want in zip(run(graph, done, call), expected, strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=tol, atol=tol)
    return graph
