"""graphsurgeon: looking at graphs and changing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tactician.graphsurgeon as gs
from tactician.parsers.tensorflow.graph import new_graph

F32 = np.dtype(np.float32)
LENET = Path(__file__).resolve().parents[2] / "tactician" / "data" / "lenet_digits.pb"


def sample() -> Any:
    """x → a → post/b, post/c (reads post/b and k) → out"""
    g = new_graph()
    g.node.extend([
        gs.create_node("x", "Placeholder", dtype=F32, shape=(None, 3)),
        gs.create_node("k", "Const", dtype=F32, value=np.ones(3, np.float32)),
        gs.create_node("a", "Relu", inputs=["x", "^k"]),
        gs.create_node("post/b", "Neg", inputs="a"),
        gs.create_node("post/c", "AddV2", inputs=["post/b:0", "k", ]),
        gs.create_node("out", "Identity", inputs=["post/c:0"]),
    ])
    return gs.DynamicGraph(g)


def links(graph: gs.StaticGraph) -> dict[str, list[str]]:
    return {n.name: list(n.input) for n in graph}


def test_finding() -> None:
    g = sample()
    assert [n.name for n in g.find_nodes_by_op({"Neg", "Relu"})] == ["a", "post/b"]
    assert [n.op for n in g.find_nodes_by_name("k")] == ["Const"]
    assert [n.name for n in g.find_nodes_by_path("post")] == ["post/b", "post/c"]
    chains = g.find_node_chains_by_op(["Relu", ["Neg", "Exp"], "AddV2"])
    assert [[n.name for n in c] for c in chains] == [["a", "post/b", "post/c"]]
    assert [n.name for n in g.graph_inputs] == ["x"]
    assert [n.name for n in g.graph_outputs] == ["out"]
    c = g.node_map["post/c"]
    assert [n.name for n in g.find_node_inputs_by_op(c, "Const")] == ["k"]
    assert [n.name for n in g.find_node_inputs_by_name(c, "post/b")] == ["post/b"]
    assert [n.name for n in g.node_outputs["k"]] == ["a", "post/c"]


def test_collapsing_a_namespace() -> None:
    g = sample()
    nms = gs.create_plugin_node("NMS", op="NMS_TRT", topK=100, variances=[0.1, 0.2], share=True)
    g.collapse_namespaces({"post": nms})
    assert links(g) == {"x": [], "k": [], "a": ["x", "^k"], "out": ["NMS:0"], "NMS": ["a", "k"]}
    made = g.node_map["NMS"]
    assert made.op == "_NMS_TRT" and made.attr["topK"].i == 100 and made.attr["share"].b
    assert list(made.attr["variances"].list.f) == pytest.approx([0.1, 0.2])


def test_collapsing_but_for_some() -> None:
    g = sample()
    g.collapse_namespaces({"post": gs.create_plugin_node("P")}, exclude_nodes=["post/c"])
    assert links(g)["post/c"] == ["P:0", "k"] and links(g)["P"] == ["a"]


def test_replacing_an_input() -> None:
    g = sample()
    g.collapse_namespaces({"x": gs.create_node("Input", "Placeholder", dtype=F32, shape=(1, 3))})
    assert "x" not in g.node_map and links(g)["a"] == ["Input", "^k"]


def test_removing_and_forwarding() -> None:
    g = sample()
    g.forward_inputs(g.find_nodes_by_op("Neg"))
    assert links(g)["post/c"] == ["a", "k"]
    g.remove("out")
    assert [n.name for n in g.graph_outputs] == ["post/c"]
    g.remove(["post/c"], remove_exclusive_dependencies=True)
    assert len(g) == 0


def test_appending() -> None:
    g = sample()
    g.append(gs.create_node("more", "Exp", inputs=["out"]))
    assert [n.name for n in g.graph_outputs] == ["more"]
    with pytest.raises(ValueError, match="'more' already"):
        g.extend([gs.create_node("more", "Exp")])
    with pytest.raises(ValueError, match="no node 'nothing'"):
        g.remove("nothing")


def test_copies_are_independent_and_files_round_trip(tmp_path: Path) -> None:
    g = gs.DynamicGraph(LENET)
    copy = gs.DynamicGraph(g)
    copy.remove("probabilities")
    assert len(g) == len(copy) + 1
    copy.write(tmp_path / "net.pb")
    read = gs.StaticGraph()
    read.read(tmp_path / "net.pb")
    assert read.as_graph_def() == copy.as_graph_def()
