"""The model that ships with the package is what its documentation says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tactician" / "data"


def held_out() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "digits_test.npz") as data:
        return data["images"], data["labels"]


def training_script() -> ModuleType:
    for need in ("torch", "sklearn"):
        pytest.importorskip(need)
    spec = importlib.util.spec_from_file_location("train_lenet", ROOT / "scripts/train_lenet.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_small() -> None:
    assert (DATA / "lenet_digits.onnx").stat().st_size < 500_000
    assert (DATA / "digits_test.npz").stat().st_size < 200_000


def test_held_out_set() -> None:
    images, labels = held_out()
    assert images.shape == (360, 28, 28) and images.dtype == np.uint8
    assert labels.dtype == np.uint8 and set(np.bincount(labels)) <= {35, 36, 37}


@pytest.mark.parametrize("batch", [1, 7, 360])
def test_accuracy_by_onnxruntime(batch: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    images, labels = held_out()
    session = ort.InferenceSession(DATA / "lenet_digits.onnx", providers=["CPUExecutionProvider"])
    x = (images[:, None] / 255).astype(np.float32)
    parts = [
        session.run(["probabilities"], {"image": x[i : i + batch]})[0]
        for i in range(0, len(x), batch)
    ]
    p = np.concatenate(parts)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert int((p.argmax(1) == labels).sum()) == 357  # 99.2 %, as the README says


def test_images_come_from_the_documented_interpolation() -> None:
    script = training_script()
    import torch
    from sklearn.datasets import load_digits

    raw = load_digits().images
    ours = script.enlarge(raw)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(raw)[:, None], size=(28, 28), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(ours, theirs[:, 0].numpy(), atol=1e-9)
    every = {image.tobytes() for image in script.digits()[0]}
    assert all(image.tobytes() in every for image in held_out()[0])
