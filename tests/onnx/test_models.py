"""Pretrained models against the runs recorded with onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
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
# of the output's range; quantized models may be one step of 8 bits away, and a little more
# after two LSTMs whose states are quantized anew every step
TOLERANCE = {"micro_kws_m_static_qdq": 1.05 / 255, "rawi_v2.int8": 1.1 / 255}


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


def compare(name: str, results: dict[str, Any], expected: dict[str, Any]) -> None:
    for k, want in expected.items():
        actual = results[k]
        assert actual.dtype == want.dtype and actual.shape == want.shape
        assert error(actual, want) <= TOLERANCE.get(name, 1e-4), k
        assert (actual.argmax(-1) == want.argmax(-1)).all()


@pytest.mark.models
@pytest.mark.parametrize("name", MODELS)
def test_interpreted(name: str) -> None:
    graph = parse(name).graph
    for feeds, expected in recorded_runs(name):
        with np.errstate(all="ignore"):
            results = run_graph(graph, feeds)
        compare(name, {v.name: r for v, r in zip(graph.outputs, results, strict=True)}, expected)


QUICK = ("mnist_8", "micro_kws_m_static_qdq", "silero_vad")
RUN_PLAN = """
import sys
import numpy as np
from tactician.runtime.easy import load
engine = load(sys.argv[1])
feeds = {k[4:]: a for k, a in np.load(sys.argv[2]).items() if k.startswith("in::")}
np.savez(sys.argv[3], **engine(feeds))
"""


@pytest.mark.models
@pytest.mark.parametrize("name", [
    pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in MODELS])
def test_engine_and_plan(name: str, tmp_path: Path) -> None:
    """Through an engine here, and through its plan in a new process."""
    engine = trt.build(str(shared_path("models", f"{name}.onnx")), level=0,
                       logger=trt.Logger(trt.Logger.ERROR))
    for feeds, expected in recorded_runs(name):
        compare(name, engine(feeds), expected)
    plan, out = tmp_path / "plan", tmp_path / "out.npz"
    engine.save(plan)
    run = shared_path("models", f"{name}.onnx.npz")
    subprocess.run([sys.executable, "-c", RUN_PLAN, str(plan), str(run), str(out)], check=True,
                   cwd=Path(__file__).resolve().parents[2])
    compare(name, dict(np.load(out)), recorded_runs(name)[0][1])


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
