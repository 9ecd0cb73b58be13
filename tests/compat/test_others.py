"""Programs of others, unmodified: Polygraphy, and from checkouts torch2trt's tests and NVIDIA's
samples."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_programs import MODEL, ROOT, start

HERE = Path(__file__).parent
slow = pytest.mark.slow


def polygraphy(*args: object) -> str:
    """What Polygraphy prints; it must end well."""
    code = "import sys; from polygraphy.tools import main; sys.exit(main())"
    script = Path(os.environ["POLYGRAPHY_SCRIPT"])
    if not script.exists():
        script.write_text(code)
    done = start(script, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGRAPHY_SCRIPT", str(tmp_path / "tool.py"))
    monkeypatch.chdir(tmp_path)


def needs_polygraphy() -> None:
    pytest.importorskip("polygraphy")
    pytest.importorskip("onnxruntime")


def shapes() -> list[object]:
    """The digit model's batches: 1 to 4, 2 expected, 3 run."""
    import onnx

    name = onnx.load(MODEL).graph.input[0].name
    out: list[object] = []
    for option, n in (("trt-min-shapes", 1), ("trt-opt-shapes", 2), ("trt-max-shapes", 4),
                      ("input-shapes", 3)):
        out += [f"--{option}", f"{name}:[{n},1,28,28]"]
    return out


def test_polygraphy_compares_with_onnxruntime(tmp_path: Path) -> None:
    needs_polygraphy()
    said = polygraphy("run", MODEL, "--trt", "--onnxrt", *shapes(), "--save-engine", "e.plan",
                      "--builder-optimization-level", "1", "--atol", "1e-4")
    assert "PASSED" in said and "Pass Rate: 100.00%" in said
    said = polygraphy("inspect", "model", "e.plan", "--show", "layers")
    assert "(-1, 1, 28, 28)" in said and "1 Profile(s)" in said


def test_polygraphy_asks_what_is_supported(tmp_path: Path) -> None:
    needs_polygraphy()
    assert "fully supported" in polygraphy("inspect", "capability", MODEL)
    bad = tmp_path / "bad.onnx"
    import onnx

    model = onnx.load(MODEL)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, bad)
    said = polygraphy("inspect", "capability", bad)
    assert "NoSuchOperator" in said


@slow
def test_polygraphy_converts_and_calibrates(tmp_path: Path) -> None:
    needs_polygraphy()
    polygraphy("convert", MODEL, "--convert-to", "trt", "-o", "c.plan", "--fp16", *shapes()[:6])
    assert "PASSED" in polygraphy("run", "c.plan", "--model-type", "engine", "--trt",
                                  *shapes()[6:])
    said = polygraphy("run", MODEL, "--trt", "--int8", "--calibration-cache", "k.bin",
                      *shapes()[:6], "--input-shapes", *shapes()[7:])
    assert "PASSED" in said and Path("k.bin").read_bytes().startswith(b"TRT-")


@slow
def test_polygraphy_looks_for_a_precision(tmp_path: Path) -> None:
    needs_polygraphy()
    polygraphy("run", MODEL, "--onnxrt", *shapes()[6:], "--save-inputs", "i.json",
               "--save-outputs", "o.json")
    check = [sys.executable, "-m", "tactician.compat", os.environ["POLYGRAPHY_SCRIPT"]]
    said = polygraphy("debug", "precision", MODEL, "--fp16", "--mode", "linear", "--dir",
                      "forward", *shapes()[:6], "--artifacts", "polygraphy_debug.engine",
                      "--check", *check, "run", "polygraphy_debug.engine", "--model-type",
                      "engine", "--trt", "--load-inputs", "i.json", "--load-outputs", "o.json",
                      "--atol", "1e-2")
    assert re.search(r"Pass Rate: 100", said)


def checkout(variable: str, url: str, inside: str) -> Path:
    found = os.environ.get(variable, "")
    if not found:
        pytest.skip(f"{variable} names no checkout of {url}")
    if not (Path(found) / inside).exists():
        pytest.fail(f"{variable}={found} is no checkout of {url}: it has no {inside}")
    return Path(found).resolve()


@pytest.mark.parametrize("version", ["10.13", pytest.param("8.6", marks=slow)])
def test_a_part_of_torch2trts_tests(version: str) -> None:
    pytest.importorskip("torch")
    there = checkout("TORCH2TRT", "github.com/NVIDIA-AI-IOT/torch2trt", "torch2trt")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1",
           "TACTICIAN_TRT_VERSION": version, "TACTICIAN_CROSS_VALIDATE": "1e-3"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "torch2trt_conftest", "-p",
         "no:cacheprovider", "-p", "no:randomly", "tests/converter_tests",
         "-k", "relu or getitem or batch_norm"],
        cwd=there, env=env, capture_output=True, text=True, timeout=280)
    counted = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and counted and int(counted[1]) >= 10, done.stdout + done.stderr


def test_a_sample_of_nvidias(tmp_path: Path) -> None:
    needs_polygraphy()
    there = checkout("TENSORRT_SAMPLES", "github.com/NVIDIA/TensorRT", "samples/python")
    done = start(there / "samples/python/stream_writer/build.py")
    assert "Engine deserialized successfully" in done.stdout, done.stdout + done.stderr


@slow
def test_samples_of_nvidias_that_need_a_model(tmp_path: Path) -> None:
    needs_polygraphy()
    there = checkout("TENSORRT_SAMPLES", "github.com/NVIDIA/TensorRT", "samples/python")
    if not importlib.util.find_spec("PIL"):
        pytest.skip("the samples need Pillow")
    import sample_data

    sample_data.write(tmp_path)
    here = there / "samples" / "python"
    options = ["-d", tmp_path]
    for sample in ("introductory_parser_samples/onnx_resnet50.py",
                   "simple_progress_monitor/simple_progress_monitor.py"):
        done = start(here / sample, *options)
        assert "Correctly recognized" in done.stdout, done.stdout + done.stderr
    plans = ["--stripped_engine", "s.trt", "--normal_engine", "n.trt"]
    folder = here / "sample_weight_stripping"
    done = start(folder / "build_engines.py", *options,
                 *[x.replace("--", "--output_") for x in plans])
    assert done.returncode == 0, done.stdout + done.stderr
    done = start(folder / "refit_engine_and_infer.py", *options, *plans)
    error = re.search(r"MSE of the final layer output is ([\d.e-]+)", done.stdout)
    assert error and float(error[1]) < 1e-9 and np.isfinite(float(error[1])), done.stderr
