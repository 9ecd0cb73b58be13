"""Pretrained frozen graphs against TensorFlow's own runs."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import shared_path

import tactician as trt
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import optimize

CASES = {
    "kws_ds_cnn_s.pb": ({"Mfcc:0": (1, 49, 10)}, "labels_softmax", "out::Mfcc:0"),
    "tf_lstm_frozen.pb": ({"X": (-1, 784), "keep_prob": ()}, "output", "in::X:0"),
}


def parsed(name: str) -> tuple[trt.INetworkDefinition, dict[str, np.ndarray], np.ndarray]:
    inputs, output, first = CASES[name]
    network = trt.Builder(trt.Logger()).create_network(1)
    parser = trt.TensorFlowParser(network)
    assert parser.parse(shared_path("models", name), inputs=inputs, outputs=[output]), \
        [str(parser.get_error(i)) for i in range(parser.num_errors)]
    with np.load(shared_path("models", f"{name}.npz")) as z:
        feeds = {network.get_input(0).name: z[first]}
        feeds |= {k[4:-2]: z[k] for k in z if k == "in::keep_prob:0"}
        return network, feeds, z[f"out::{output}:0"]


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-4 * np.ptp(wanted)


@pytest.mark.parametrize("name", CASES)
def test_graph(name: str) -> None:
    network, feeds, wanted = parsed(name)
    close(run_graph(network.graph, feeds)[0], wanted)
    graph, _ = network.graph.clone()
    optimize(graph)
    close(run_graph(graph, feeds)[0], wanted)


@pytest.mark.parametrize("name", CASES)
def test_engine(name: str) -> None:
    network, feeds, wanted = parsed(name)
    close(trt.build(network, level=0)(feeds)[CASES[name][1]], wanted)
