"""`tactician.build`, `load` and engines as functions."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import shared_path
from networks import Log, conv_relu, conv_relu_numpy, scaled_sum

import tactician
import tactician as trt
from tactician.support.errors import BuildError, ExecutionError, PlanError, UsageError

X = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def fixed():
    return tactician.build(conv_relu(trt.Builder(Log())), level=0, logger=Log())


@pytest.fixture(scope="module")
def varying():
    return tactician.build(scaled_sum(trt.Builder(Log())), level=0, logger=Log())


def test_call(fixed):
    for out in (fixed({"x": X}), fixed(x=X), fixed(X), fixed(X.astype(np.float64)),
                fixed(X[:, ::-1][:, ::-1])):
        assert list(out) == ["y"] and out["y"].dtype == np.float32
        np.testing.assert_allclose(out["y"], conv_relu_numpy(X), rtol=1e-4, atol=1e-4)
    assert fixed.inputs == {"x": ((1, 2, 6, 6), np.dtype(np.float32))}
    assert "x: float32[1, 2, 6, 6] -> y: float32[1, 4, 4, 4]" in repr(fixed)


def test_results_are_new_arrays(fixed):
    first = fixed(X)["y"]
    kept = first.copy()
    fixed(X + 1)
    assert np.array_equal(first, kept)


def test_shapes_vary(varying):
    for n in (1, 7, 300):
        a, b = np.random.default_rng(n).standard_normal((2, n, 3)).astype(np.float32)
        y = varying({"a": a, "b": b})["y"]
        np.testing.assert_allclose(y, np.exp(a) + b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("feeds, reason", [
    ({}, "missing: ['x']"), ({"x": X, "q": X}, "unknown: ['q']"),
    ({"x": X[:, :1]}, "dimension 1 is 2 in the network"), ({"x": X[0]}, "4 dimensions"),
    ({"x": X.astype(np.complex64)}, "has type float32, got complex64"),
    ({"x": np.array(["a"])}, "float32"),
])
def test_wrong_feeds(fixed, feeds, reason):
    with pytest.raises(UsageError) as e:
        fixed(feeds)
    assert reason in str(e.value)


def test_wrong_feeds_of_two_inputs(varying):
    with pytest.raises(UsageError, match="pass a dict"):
        varying(X)
    with pytest.raises((UsageError, ExecutionError), match="3"):
        varying(a=np.zeros((2, 3), "f"), b=np.zeros((2, 4), "f"))


def test_threads_share_an_engine(varying):
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            a, b = rng.standard_normal((2, rng.integers(1, 9), 3)).astype(np.float32)
            if not np.allclose(varying(a=a, b=b)["y"], np.exp(a) + b, rtol=1e-5, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_save_and_load(fixed, tmp_path):
    path = tmp_path / "m.plan"
    fixed.save(path)
    assert [f.name for f in tmp_path.iterdir()] == ["m.plan"]
    again = tactician.load(path)
    assert np.array_equal(again(X)["y"], fixed(X)["y"])
    assert np.array_equal(tactician.load(path.read_bytes())(X)["y"], fixed(X)["y"])


def test_nothing_partial_is_left(fixed, tmp_path, monkeypatch):
    import os

    path = tmp_path / "m.plan"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        fixed.save(path)
    assert [f.name for f in tmp_path.iterdir()] == ["m.plan"] and path.read_bytes() == b"old"


def test_load_of_something_else(tmp_path):
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(PlanError, match="not a tactician plan"):
        tactician.load(tmp_path / "x", logger=Log())
    with pytest.raises(FileNotFoundError):
        tactician.load(tmp_path / "none")


def test_plan_runs_in_a_new_process(fixed, tmp_path):
    fixed.save(tmp_path / "m.plan")
    np.save(tmp_path / "x.npy", X)
    script = (
        "import sys, numpy as np, tactician\n"
        "engine = tactician.load('m.plan')\n"
        "np.save('y.npy', engine(np.load('x.npy'))['y'])\n"
        "assert not {'onnx', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path,
                   env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
    assert np.array_equal(np.load(tmp_path / "y.npy"), fixed(X)["y"])


def test_one_flipped_bit_of_code(fixed, tmp_path):
    plan = bytearray(fixed.cuda_engine.serialize())
    plan[plan.index(b"\x7fELF") + 100] ^= 4
    with pytest.raises(PlanError, match="content is damaged"):
        tactician.load(bytes(plan), logger=Log())


@pytest.mark.parametrize("model, reason", [
    ("nowhere.onnx", "no model file"), (b"\x00garbage", "can't be imported"),
])
def test_models_that_are_none(model, reason):
    with pytest.raises(BuildError, match=reason):
        tactician.build(model, logger=Log())


def test_wrong_arguments():
    with pytest.raises(UsageError, match="expected a path"):
        tactician.build(3)
    with pytest.raises(UsageError, match="name \\['q'\\]"):
        tactician.build(scaled_sum(trt.Builder(Log())), shapes={"q": (1,)}, logger=Log())
    with pytest.raises(BuildError, match="its range has 1"):
        tactician.build(scaled_sum(trt.Builder(Log())), shapes={"a": (1,)}, logger=Log())


def test_shapes_given(tmp_path):
    engine = tactician.build(
        scaled_sum(trt.Builder(Log())), level=0, logger=Log(), timing_cache=tmp_path / "t.timing",
        shapes={"a": (2, 3), "b": ((1, 3), (2, 3), (3, 3))},
    )
    assert (tmp_path / "t.timing").exists()
    assert engine.cuda_engine.get_tensor_profile_shape("a", 0) == [(2, 3)] * 3
    assert engine.cuda_engine.get_tensor_profile_shape("b", 0) == [(1, 3), (2, 3), (3, 3)]
    (tmp_path / "bad.timing").write_text("?")
    with pytest.raises(UsageError, match="no timing cache"):
        tactician.build(conv_relu(trt.Builder(Log())), timing_cache=tmp_path / "bad.timing",
                        logger=Log())


def test_implicit_batch(monkeypatch):
    monkeypatch.setenv("TACTICIAN_TRT_VERSION", "7.2")
    builder = trt.Builder(Log())
    builder.max_batch_size = 4
    engine = tactician.Engine(
        builder.build_cuda_engine(conv_relu(builder, (2, 6, 6), flags=0))
    )
    x = np.random.default_rng(1).standard_normal((3, 2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(engine(x)["y"], conv_relu_numpy(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="max_batch_size 4"):
        engine(np.zeros((5, 2, 6, 6), np.float32))


@pytest.mark.models
def test_pretrained_model_with_reloading():
    path = shared_path("models", "mnist_8.onnx")
    arrays = np.load(shared_path("models", "mnist_8.onnx.npz"))
    engine = tactician.build(path, level=0)
    out = engine(arrays["in::Input3"])
    expected = arrays["out::Plus214_Output_0"]
    np.testing.assert_allclose(out["Plus214_Output_0"], expected, atol=1e-4 * np.ptp(expected))
