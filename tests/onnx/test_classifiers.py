"""Classifiers name the class that onnxruntime names, on random images."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "argmax.py"


def check(network, inputs, level):
    command = [sys.executable, SCRIPT, network, "--inputs", str(inputs), "--level", str(level)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{network} | {inputs} / {inputs} |" in done.stdout


def test_few_inputs():
    check("squeezenet", 8, level=1)


@pytest.mark.slow
@pytest.mark.parametrize("network", [
    "resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0", "squeezenet", "vgg16",
    "densenet121", "vit_b16",
])
def test_hundred_inputs(network):
    check(network, 100, level=3)
