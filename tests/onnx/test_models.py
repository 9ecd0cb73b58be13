"""Pretrained models against the runs recorded with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import shared_path

import tactician as trt
from tactician.ir.verify import verify
from tactician.network.network import INetworkDefinition
from tactician.ops.interpreter import run_graph

MODELS = [
    "FastestDet", "basic_pitch_nmp", "magika_standard_v3_3", "micro_kws_m_static_fp32",
    "micro_kws_m_static_qdq", "mnist_8", "rawi_v2.int8", "silero_vad", "silero_vad_16k_sequence",
    "super_resolution_10", "ultraface_rfb_320",
]
# of the output's range; quantized models may be one step of 8 bits away
TOLERANCE = {"micro_kws_m_static_qdq": 1.05 / 255, "rawi_v2.int8": 1 / 255}


def parse(name: str) -> Any:
    network = INetworkDefinition()
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(shared_path("models", f"{name}.onnx"))), [
        str(parser.get_error(i)) for i in range(parser.num_errors)]
    verify(network.graph)
    return network


def recorded_runs(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    runs = []
    for suffix in (".npz", ".alt.npz"):
        path = shared_path("models", f"{name}.onnx.npz").with_name(f"{name}.onnx{suffix}")
        if path.exists():
            data = np.load(path)
            runs.append(tuple({k[len(kind):]: data[k] for k in data.files if k.startswith(kind)}
                              for kind in ("in::", "out::")))
    return runs  # type: ignore[return-value]


def error(actual: Any, expected: Any) -> float:
    """Largest difference, relative to the expected output's range (or size, if it is constant)."""
    span = max(float(np.ptp(expected)), float(np.abs(expected).max()), 1e-30)
    return float(np.abs(actual.astype(np.float64) - expected).max()) / span


@pytest.mark.models
@pytest.mark.parametrize("name", MODELS)
def test_interpreted(name: str) -> None:
    graph = parse(name).graph
    for feeds, expected in recorded_runs(name):
        with np.errstate(all="ignore"):
            results = run_graph(graph, feeds)
        for value, actual in zip(graph.outputs, results, strict=True):
            want = expected[value.name]
            assert actual.dtype == want.dtype and actual.shape == want.shape
            assert error(actual, want) <= TOLERANCE.get(name, 1e-4), value.name
            assert (actual.argmax(-1) == want.argmax(-1)).all()


@pytest.mark.models
def test_dimension_names_are_symbols() -> None:
    assert set(parse("rawi_v2.int8").graph.symbols) == {"batch", "seq"}
    assert parse("silero_vad").graph.symbols["input.1"].index == 1


@pytest.mark.models
def test_layers_carry_names_and_sources_of_nodes() -> None:
    network = parse("mnist_8")
    names = [network.get_layer(i).name for i in range(network.num_layers)]
    assert "Convolution28" in names and len(set(names)) == len(names)
    conv = next(n for n in network.graph.nodes if n.name == "Convolution28")
    assert conv.source == "onnx node 1 'Convolution28' (Conv)"
