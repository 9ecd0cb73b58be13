"""The digit classifier as a Caffe model gives the answers of the ONNX one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from caffekit import network, opencv, relative

import tactician as trt
from tactician.passes.pipeline import optimize

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tactician" / "data"
FILES = DATA / "lenet_digits.prototxt", DATA / "lenet_digits.caffemodel"


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "digits_test.npz") as data:
        return (data["images"][:count, None] / 255).astype(np.float32), data["labels"][:count]


def test_files_are_small_and_made_by_the_script() -> None:
    assert sum(f.stat().st_size for f in FILES) < 500_000
    spec = importlib.util.spec_from_file_location("lenet_to_caffe",
                                                  ROOT / "scripts" / "lenet_to_caffe.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    prototxt, caffemodel = script.convert(DATA / "lenet_digits.onnx")
    assert FILES[0].read_text() == prototxt and FILES[1].read_bytes() == caffemodel


def test_same_answers_as_onnx() -> None:
    images, labels = digits(360)
    caffe = trt.build(FILES[0].read_bytes().replace(b"dim: 1 ", b"dim: -1 ", 1), weights=FILES[1],
                      level=0)
    onnx = trt.build(str(DATA / "lenet_digits.onnx"), level=0)
    ours, theirs = (e(images)["probabilities"] for e in (caffe, onnx))
    assert relative(ours, theirs) < 1e-6
    assert int((ours.argmax(1) == labels).sum()) == 357


def test_nothing_more_to_compute_than_for_onnx() -> None:
    """Both routes end in the same kernels, so engines are equally fast."""
    onnx, caffe = network(False), network(False)
    assert trt.OnnxParser(onnx).parse_from_file(str(DATA / "lenet_digits.onnx"))
    found = trt.CaffeParser().parse(*map(str, FILES), caffe, trt.float32)
    caffe.mark_output(found.find("probabilities"))
    for net in (onnx, caffe):
        optimize(net.graph)
    ours, theirs = (Counter(n.op for n in net.graph.nodes) for net in (caffe, onnx))
    assert ours <= theirs and ours["convolution"] == ours["matmul"] == 2


def test_same_answers_as_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 and later read no Caffe models")
    image, _ = digits(1)
    ours = trt.build(FILES[0], weights=FILES[1], level=0)(image)["probabilities"]
    theirs = opencv(FILES[0].read_text(), FILES[1].read_bytes(), {"image": image}, ["softmax"])[0]
    assert relative(ours, theirs) < 1e-5


def test_command_line_and_build_find_the_weights_beside(tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    image, _ = digits(1)
    deploy = tmp_path / FILES[0].name
    want = trt.build(deploy, level=0)(image)["probabilities"]
    command = [sys.executable, "-m", "tactician", "build", deploy.name, "--level", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    plan = trt.load(tmp_path / "lenet_digits.plan")
    np.testing.assert_array_equal(plan(image)["probabilities"], want)
    (tmp_path / FILES[1].name).unlink()
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert failed.returncode == 1 and "lenet_digits.caffemodel" in failed.stderr
