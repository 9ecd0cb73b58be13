"""Programs in the manner of each era of TensorRT, unmodified, through ``python -m
tactician.compat``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
MODEL = ROOT / "tactician" / "data" / "lenet_digits.onnx"


def start(*args: object, version: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("TACTICIAN_TRT_VERSION", None)
    if version:
        env["TACTICIAN_TRT_VERSION"] = version
    command = [sys.executable, "-m", "tactician.compat", *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def passes(name: str, *args: object, version: str = "") -> None:
    done = start(PROGRAMS / name, *args, version=version)
    assert done.returncode == 0 and done.stdout.endswith("OK\n"), done.stdout + done.stderr


def expected(n: int, seed: int) -> np.ndarray:
    """The digit model's answer by onnxruntime to what the programs feed it."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(MODEL))
    x = np.random.default_rng(seed).random((n, 1, 28, 28), np.float32)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("version", ["5.1.5", "7.2", "8.6"])
def test_implicit_batch(version: str) -> None:
    passes("era5_implicit_batch.py", version=version)


@pytest.mark.parametrize("version", ["7.2", "8.6"])
def test_onnx_and_bindings(tmp_path: Path, version: str) -> None:
    passes("era7_onnx_profile.py", MODEL, tmp_path / "p", version=version)
    for n in (1, 3, 8):
        np.testing.assert_allclose(
            np.load(tmp_path / f"p.{n}.npy"), expected(n, n), rtol=1e-3, atol=1e-5)


def test_calibrator(tmp_path: Path) -> None:
    passes("era8_calibrator.py", tmp_path / "cache", version="8.6")


def test_plugin_of_version_2() -> None:
    passes("era8_plugin_v2.py", version="8.6")


def test_cuda_python(tmp_path: Path) -> None:
    passes("era10_cuda_python.py", MODEL, tmp_path / "y.npy")
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), expected(3, 10), rtol=1e-3, atol=1e-5)


def test_libcudart_through_ctypes() -> None:
    passes("ctypes_cudart.py")


def test_ways_to_load_libcudart() -> None:
    done = start("--cuda", "host", PROGRAMS / "ctypes_forms.py")
    assert done.returncode == 0 and done.stdout == "OK\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["no-such-program"], "no file and no command"),
        (["--trt-version", "new", "x.py"], "expected numbers and points"),
        (["ls"], "is no Python program"),
    ],
)
def test_wrong_use(args: list[str], says: str) -> None:
    done = start(*args)
    assert done.returncode != 0 and says in done.stderr


def test_program_sees_its_own_arguments_and_folder(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "p.py").write_text(
        "import sys, neighbour, tensorrt\n"
        "print(sys.argv[1:], neighbour.VALUE, __name__, tensorrt.__version__)\n")
    done = start("--trt-version", "8.6.1", tmp_path / "p.py", "--flag", "x")
    assert done.stdout == "['--flag', 'x'] 7 __main__ 8.6.1\n", done.stderr


def test_module(tmp_path: Path) -> None:
    done = start("-m", "timeit", "-n1", "-r1", "import tensorrt.plugin")
    assert done.returncode == 0 and "1 loop" in done.stdout, done.stderr
