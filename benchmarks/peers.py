"""The other runtimes: each makes a function that does one inference, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tactician.cli.measure import Call, onnxruntime_call

Feeds = Mapping[str, np.ndarray]
Made = tuple[Call, list[np.ndarray]]

PRECISION = "f32"  # that OpenVINO infers with


def feeds_of(model: Path) -> dict[str, np.ndarray]:
    """The inputs that are kept beside a model, if any are."""
    npz = model.with_name(model.name + ".npz")
    if not npz.is_file():
        return {}
    with np.load(npz) as data:
        return {k.removeprefix("in::"): data[k] for k in data.files if k.startswith("in::")}


def onnxruntime(model: Path, feeds: Feeds, threads: int) -> Made:
    """onnxruntime with all graph optimizations and bound buffers."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    outputs = [np.asarray(a) for a in session.run(None, dict(feeds))]
    return onnxruntime_call(str(model), feeds, threads), outputs


def openvino(model: Path, feeds: Feeds, threads: int) -> Made:
    """OpenVINO's CPU plugin, tuned for latency, in `PRECISION`."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(str(model))
    network.reshape({name: list(a.shape) for name, a in feeds.items()})
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISION}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    request = core.compile_model(network, "CPU", config).create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, ov.Tensor(np.ascontiguousarray(array), shared_memory=True))
    request.infer()
    outputs = [np.array(t.data) for t in request.output_tensors]
    return request.infer, outputs


def torch(model: Path, feeds: Feeds, threads: int) -> Made:
    """torch in inference mode; only for the shipped model, whose module is known."""
    import onnx
    import torch
    from onnx import numpy_helper
    from torch import nn

    if model.name != "lenet_digits.onnx":
        raise LookupError("no torch module for this model")
    w = {
        i.name: torch.from_numpy(numpy_helper.to_array(i).copy())
        for i in onnx.load(model).graph.initializer
    }
    pool = nn.functional.max_pool2d
    x = torch.from_numpy(np.ascontiguousarray(feeds["image"]))
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        y = pool(nn.functional.conv2d(x, w["conv1.weight"], w["conv1.bias"]), 2)
        y = pool(nn.functional.conv2d(y, w["conv2.weight"], w["conv2.bias"]), 2).flatten(1)
        y = torch.relu(nn.functional.linear(y, w["fc1.weight"], w["fc1.bias"]))
        return nn.functional.linear(y, w["fc2.weight"], w["fc2.bias"]).softmax(1)

    return call, [call().numpy()]


PEERS: dict[str, Callable[[Path, Any, int], Made]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
}


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Greatest difference of any element, relative to the range of its output."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.size:
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            worst = max(worst, float(gap / (np.ptp(b.astype(np.float64)) or 1.0)))
    return worst
