"""Operators and small nets against what TensorFlow computed (scripts/make_tf_references.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tactician as trt
from tactician.ir.graph import Graph
from tactician.ops.interpreter import run_graph
from tactician.parsers.tensorflow import load
from tactician.parsers.tensorflow.model import import_graph
from tactician.passes.pipeline import optimize

DATA = np.load(Path(__file__).parent / "references.npz")
NAMES = sorted(k.removesuffix(":graph") for k in DATA.files if k.endswith(":graph"))
# Each as an engine too: one of every kind of net.
ENGINES = ["net/attention", "net/conv1d", "net/lstm", "net/residual", "conv/space_to_batch",
           "scan/v1_batch", "while/v2_data", "cond/v1_nested", "transposed/SAME_s2"]


def arrays(name: str, what: str) -> list[Any]:
    keys = sorted((k for k in DATA.files if k.startswith(f"{name}:{what}")
                   and k.removeprefix(f"{name}:{what}").isdigit()),
                  key=lambda k: int(k.removeprefix(f"{name}:{what}")))
    return [DATA[k] for k in keys]


def outputs(name: str) -> list[str]:
    return str(DATA[f"{name}:outputs"]).split()


def imported(name: str) -> Graph:
    graph = Graph()
    state = import_graph(load(DATA[f"{name}:graph"].tobytes()), graph, outputs=outputs(name))
    assert not state.problems, "\n".join(p.text for p in state.problems)
    return graph


def close(name: str, got: list[Any], wanted: list[Any]) -> None:
    # TensorFlow's bicubic weights come from a table of 1024 steps
    tolerance = 2e-3 if "bicubic" in name else 2e-5
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_imported(name: str) -> None:
    graph = imported(name)
    feeds = dict(zip((f"x{i}" for i in range(9)), arrays(name, "in"), strict=False))
    feeds = {v.name: feeds[v.name] for v in graph.inputs}
    close(name, run_graph(graph, feeds), arrays(name, "out"))
    optimize(graph)
    close(name, run_graph(graph, feeds), arrays(name, "out"))


@pytest.mark.parametrize("name", ENGINES)
def test_engine(name: str) -> None:
    network = trt.Builder(trt.Logger()).create_network(1)
    parser = trt.TensorFlowParser(network)
    assert parser.parse(DATA[f"{name}:graph"].tobytes(), outputs=outputs(name))
    feeds = {f"x{i}": a for i, a in enumerate(arrays(name, "in"))}
    feeds = {k: v for k, v in feeds.items()
             if k in [network.get_input(i).name for i in range(network.num_inputs)]}
    found = trt.build(network, level=0)(feeds)
    close(name, [found[o] for o in outputs(name)], arrays(name, "out"))


def test_enough_cases() -> None:
    assert len(NAMES) >= 120


@pytest.mark.parametrize("name", ["net/residual", "net/conv1d", "conv/batch"])
def test_no_needless_transposes(name: str) -> None:
    """At most one at the input and one at an output with positions are left."""
    graph = imported(name)
    optimize(graph)
    left = [n for n in graph.nodes if n.op == "transpose"]
    ends = {"net/residual": 1}.get(name, 2)
    assert len(left) <= ends, [n.name for n in left]
