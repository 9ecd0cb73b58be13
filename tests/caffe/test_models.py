"""Pretrained Caffe models that others made."""

from __future__ import annotations

import numpy as np
import pytest
from caffekit import network, relative
from conftest import shared_path

import tactician as trt
from tactician.ops.interpreter import run_graph

pytestmark = pytest.mark.models
NAMES = ("yoloface-50k", "ultraface_rfb_320")


def reference(name: str) -> tuple[dict, dict]:
    with np.load(shared_path("models", f"{name}.npz")) as data:
        arrays = {k: data[k] for k in data}
    return tuple({k.split("::", 1)[1]: v for k, v in arrays.items() if k.startswith(p)}
                 for p in ("in::", "out::"))  # type: ignore[return-value]


def files(name: str) -> tuple[str, str]:
    return tuple(str(shared_path("models", f"{name}.{x}"))
                 for x in ("prototxt", "caffemodel"))  # type: ignore[return-value]


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
@pytest.mark.parametrize("name", NAMES)
def test_matches_opencv(name: str, implicit: bool) -> None:
    feeds, want = reference(f"{name}.caffemodel")
    net = network(implicit)
    with trt.CaffeParser() as parser:
        found = parser.parse(*files(name), network=net, dtype=trt.float32)
    assert found is not None and set(want) <= set(found.results)
    for blob in want:
        net.mark_output(found.find(blob))
    for ours, theirs in zip(run_graph(net.graph, list(feeds.values())), want.values(), strict=True):
        assert relative(ours, theirs) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_engine_matches_opencv(name: str) -> None:
    feeds, want = reference(f"{name}.caffemodel")
    engine = trt.build(files(name)[0], weights=files(name)[1], level=0)
    results = engine(next(iter(feeds.values())))
    for blob, theirs in want.items():
        assert relative(results[blob], theirs) <= 1e-4


def decode(offsets: np.ndarray) -> np.ndarray:
    """Corners from offsets to the detector's prior boxes, which only the ONNX twin contains."""
    priors = []
    sizes = ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256)))
    for stride, boxes in sizes:
        rows, columns = -(-240 // stride), -(-320 // stride)
        priors += [((x + 0.5) / columns, (y + 0.5) / rows, b / 320, b / 240)
                   for y in range(rows) for x in range(columns) for b in boxes]
    center, size = np.split(np.clip(np.array(priors), 0, 1), 2, axis=1)
    center = offsets[..., :2] * 0.1 * size + center
    size = np.exp(offsets[..., 2:] * 0.2) * size
    return np.concatenate([center - size / 2, center + size / 2], axis=-1)


def test_twins_agree() -> None:
    """The same detector as Caffe and as ONNX."""
    feeds, _ = reference("ultraface_rfb_320.onnx")
    x = next(iter(feeds.values()))
    caffe = trt.build(files("ultraface_rfb_320")[0], weights=files("ultraface_rfb_320")[1], level=0)
    onnx = trt.build(str(shared_path("models", "ultraface_rfb_320.onnx")), level=0)
    a, b = caffe(x), onnx(x)
    assert relative(a["scores"], b["scores"]) <= 1e-4
    assert relative(decode(a["boxes"]), b["boxes"]) <= 1e-4
