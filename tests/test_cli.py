"""The command line: what it prints, writes and returns, in use and in misuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from tactician.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
LENET = ROOT / "tactician" / "data" / "lenet_digits.onnx"
VERBS = ("build", "run", "bench", "compare", "inspect", "demo", "doctor")
QUICK = ("--level", "0")


def run(*args: Any, code: int = 0) -> Any:
    """Run a command in this process; gives click's result."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{args}\n{result.output}\n{result.exception!r}"
    return result


def run_json(*args: Any) -> Any:
    return json.loads(run(*args, "--json").stdout)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "lenet.plan"
    run("build", LENET, "-o", path, "--max-shapes", "16x1x28x28", *QUICK)
    return path


def digits(count: int) -> np.ndarray:
    with np.load(LENET.parent / "digits_test.npz") as data:
        return data["images"][:count, None].astype(np.float32) / 255


def test_help_names_every_verb() -> None:
    text = run("--help").stdout
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_json_and_debug(verb: str) -> None:
    text = run(verb, "--help").stdout
    assert "--json" in text and "--debug" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["build", "absent.onnx"], "absent.onnx"),
        (["build", LENET, "--level", "9"], "--level"),
        (["build", LENET, "--precision", "fp17"], "fp17"),
        (["build", LENET, "--shapes", "nothing:1x1x28x28"], "nothing"),
        (["build", LENET, "--shapes", "1x1xa"], "1x1xa"),
        (["build", LENET, "--shapes", "1x3x28x28"], "does not fit"),
        (["build", LENET, "--min-shapes", "9x1x28x28", "--max-shapes", "2x1x28x28"], "min"),
        (["run", LENET, "--input", "absent.npy"], "absent.npy"),
        (["bench", LENET, "--compare", "crystal-ball"], "crystal-ball"),
        (["frobnicate"], "frobnicate"),
        (["build", LENET, "--frobnicate"], "--frobnicate"),
    ],
    ids=lambda v: "-".join(str(a) for a in v[-2:]) if isinstance(v, list) else "",
)
def test_wrong_use_exits_with_2(args: list[Any], says: str) -> None:
    result = run(*args, code=2)
    assert says in result.stderr and "Traceback" not in result.output


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(LENET.read_bytes()[:5000])
    return path


def test_failure_exits_with_1_and_one_message(damaged: Path) -> None:
    result = run("build", damaged, code=1)
    assert "damaged.onnx" in result.stderr and "Traceback" not in result.output
    assert not result.stdout and not damaged.with_suffix(".plan").exists()


def test_debug_shows_the_traceback(damaged: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tactician", "build", str(damaged), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Traceback" in done.stderr and not done.stdout


def test_damaged_plan(plan: Path, tmp_path: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    bad = tmp_path / "bad.plan"
    bad.write_bytes(data)
    assert "bad.plan" in run("run", bad, code=1).stderr


def test_version_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tactician", "--version"],
        capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("tactician 0.")


def test_build_reports_in_json(tmp_path: Path) -> None:
    out = tmp_path / "a.plan"
    report = run_json("build", LENET, "-o", out, *QUICK)
    assert report["plan"] == str(out) and report["bytes"] == out.stat().st_size > 10_000


def test_build_refuses_a_plan(plan: Path) -> None:
    assert "is a plan already" in run("build", plan, code=1).stderr


def test_same_timing_cache_gives_the_same_plan(tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    for name in ("a.plan", "b.plan"):
        run("build", LENET, "-o", tmp_path / name, "--shapes", "1x1x28x28", "--timing-cache", cache)
    assert cache.stat().st_size > 0
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()


def test_timing_cache_that_is_none(tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    cache.write_text("this is no cache")
    result = run("build", LENET, "-o", tmp_path / "a.plan", "--timing-cache", cache, code=1)
    assert "timings" in result.stderr


@pytest.mark.parametrize("source", ["plan", "model"])
def test_run_agrees_with_onnxruntime(source: str, plan: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    x = digits(5)
    np.savez(tmp_path / "in.npz", image=x)
    model = plan if source == "plan" else LENET
    extra = [] if source == "plan" else QUICK
    out = tmp_path / "out.npz"
    text = run("run", model, "-i", tmp_path / "in.npz", "-o", out, *extra).stdout
    assert "probabilities" in text and "[5, 10]" in text
    session = ort.InferenceSession(LENET, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"image": x})[0]
    with np.load(out) as results:
        np.testing.assert_allclose(results["probabilities"], wanted, atol=1e-5)


def test_run_takes_one_npy(plan: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits(3))
    for spelled in (tmp_path / "x.npy", f"image={tmp_path / 'x.npy'}"):
        report = run_json("run", plan, "-i", spelled)
        assert report["outputs"]["probabilities"]["shape"] == [3, 10]
    assert "wrong" in run("run", plan, "-i", f"wrong={tmp_path / 'x.npy'}", code=2).stderr


def test_random_inputs_follow_seed_and_shapes(plan: Path) -> None:
    def first(*args: str) -> Any:
        return run_json("run", plan, "--shapes", "2x1x28x28", *args)["inputs"]["image"]

    assert first() == first() != first("--seed", "1")
    assert first()["shape"] == [2, 1, 28, 28]


def test_inspect_plan(plan: Path) -> None:
    report = run_json("inspect", plan)
    image = next(t for t in report["tensors"] if t["name"] == "image")
    assert image["mode"] == "input" and image["profile"]["max"] == [16, 1, 28, 28]
    assert report["bytes"] == plan.stat().st_size and report["steps"]
    assert report["reference_steps"] == 0
    text = run("inspect", plan).stdout
    assert "image" in text and "conv1" in text


def test_inspect_network() -> None:
    report = run_json("inspect", LENET, "--network")
    assert [t["name"] for t in report["inputs"]] == ["image"]
    kinds = [(layer["op"] or layer["type"]).lower() for layer in report["layers"]]
    assert kinds.count("convolution") == 2
    assert "convolution" in run("inspect", LENET, "--network").stdout


def test_bench(plan: Path) -> None:
    report = run_json("bench", plan, "--rounds", 2, "--seconds", 0.02)
    t = report["microseconds"]["tactician"]
    assert 0 < t["best"] <= t["median"] <= t["p90"] <= t["p99"] and t["calls"] >= 6


def test_bench_compares(plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    args = ("--compare", "onnxruntime", "--rounds", 2, "--seconds", 0.02, "--threads", 1)
    report = run_json("bench", plan, "--model", LENET, *args)
    times = report["microseconds"]
    ratio = times["onnxruntime"]["median"] / times["tactician"]["median"]
    assert report["ratio"] == pytest.approx(ratio, abs=1e-3)
    assert "--model" in run("bench", plan, *args, code=2).stderr


def test_demo() -> None:
    report = run_json("demo")
    assert report["tactician"]["correct"] == 357
    assert all(r["images"] == 360 for r in report.values())


def test_demo_draws_digits() -> None:
    text = run("demo", "--samples", 4).stdout
    assert "█" in text and "357 of 360" in text


def test_doctor() -> None:
    findings = run_json("doctor")
    states = {f["what"]: f["state"] for f in findings}
    assert states["engine"] == states["code"] == states["packages"] == "PASS"
    assert "GFLOP/s" in next(f["detail"] for f in findings if f["what"] == "speed")
