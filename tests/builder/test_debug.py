"""The debug ladder prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import numpy as np, tactician
engine = tactician.build(r"{model}", level=1)
engine({{"image": np.zeros((1, 1, 28, 28), np.float32)}})
"""


@pytest.mark.parametrize(
    "level, seen, not_seen",
    [
        ("0", [], ["==="]),
        ("1", ["steps (", "arena"], ["GFLOP/s"]),
        ("2", ["GFLOP/s", "conv_"], ["not gemm"]),
        ("3", ["not gemm: not a matrix product"], ["graph "]),
        ("5", ["after import", "graph ", "define void", "GB/s"], []),
    ],
)
def test_ladder(level, seen, not_seen):
    code = PROGRAM.format(model=ROOT / "tactician" / "data" / "lenet_digits.onnx")
    env = os.environ | {"TACTICIAN_DEBUG": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [t for t in seen if t not in done.stderr] == []
    assert [t for t in not_seen if t in done.stderr] == []
