"""reduce, argreduce, softmax, ragged_softmax, cumulative against numpy, torch, onnxruntime."""

import ml_dtypes
import numpy as np
import pytest
import torch
from ort_oracle import ort_run
from run_op import build, close, run_op

from tactician import ops
from tactician.ir import dims as D
from tactician.ir.graph import Graph

rng = np.random.default_rng(1)
X = rng.standard_normal((3, 4, 5)).astype(np.float32)
ONNX_NAME = {
    "sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin",
    "mean": "ReduceMean", "l1": "ReduceL1", "l2": "ReduceL2", "log_sum": "ReduceLogSum",
    "log_sum_exp": "ReduceLogSumExp", "sum_square": "ReduceSumSquare",
}  # fmt: skip


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("fn", ONNX_NAME)
def test_reduce(fn, axes, keepdims):
    x = np.abs(X) + 0.1 if fn == "log_sum" else X
    got = run_op("reduce", [x], dynamic={0: (0, 2)} if axes != (0, 1, 2) and axes else None,
                 fn=fn, axes=axes, keepdims=keepdims)
    onnx_axes = np.array(axes, np.int64) if axes else None
    (want,) = ort_run(ONNX_NAME[fn], [x, onnx_axes], keepdims=int(keepdims))
    close(got, want)


@pytest.mark.parametrize("dt", [np.int32, np.int64])
@pytest.mark.parametrize("fn", ONNX_NAME)
def test_reduce_integers(fn, dt):
    x = rng.integers(-6, 7, (3, 4)).astype(dt)
    x = np.abs(x) + 1 if fn.startswith("log") else x
    got = run_op("reduce", [x], fn=fn, axes=(1,))
    if dt is np.int32:
        (want,) = ort_run(ONNX_NAME[fn], [x, np.array([1])])
        close(got, want)


def test_mean_of_small_integers_does_not_overflow():
    x = np.array([[100, 120, 127], [-100, -100, -101]], np.int8)
    got = run_op("reduce", [x], fn="mean", axes=(1,), keepdims=False)
    close(got, np.array([115, -100], np.int8))


@pytest.mark.parametrize("fn,f", [("any", np.any), ("all", np.all)])
@pytest.mark.parametrize("dt", [bool, np.float32, np.int32])
def test_any_all(fn, f, dt):
    x = rng.integers(0, 2, (4, 2)).astype(dt)
    close(run_op("reduce", [x], fn=fn, axes=(1,), keepdims=False), f(x != 0, axis=1))


def test_sum_of_halves_is_kept_in_f32():
    x = np.full(4096, 1 + 2**-10, np.float16)
    assert run_op("reduce", [x], fn="sum") == np.float16(4096 + 4)
    y = np.full((2, 1000), 1, ml_dtypes.bfloat16)
    close(run_op("reduce", [y], fn="sum", axes=(1,), keepdims=False),
          np.full(2, 1000, ml_dtypes.bfloat16))


def test_doubles_stay_doubles():
    x = rng.standard_normal(1000)
    close(run_op("reduce", [x], fn="sum", keepdims=False), x.sum())


@pytest.mark.parametrize("fn,identity", [("sum", 0), ("prod", 1), ("max", -np.inf),
                                         ("min", np.inf), ("log_sum_exp", -np.inf)])
def test_nothing_to_reduce(fn, identity):
    x = np.zeros((2, 0), np.float32)
    close(run_op("reduce", [x], fn=fn, axes=(1,), keepdims=False),
          np.full(2, identity, np.float32))


def test_log_sum_exp_of_large_and_infinite():
    x = np.array([[1000, 1000], [-np.inf, -np.inf], [-np.inf, 3]], np.float32)
    want = torch.logsumexp(torch.from_numpy(x), 1).numpy()
    close(run_op("reduce", [x], fn="log_sum_exp", axes=(1,), keepdims=False), want)


def test_nan_wins():
    x = np.array([[1, np.nan, 3]], np.float32)
    for fn in ("max", "min", "sum"):
        assert np.isnan(run_op("reduce", [x], fn=fn, axes=(1,))).all()


def test_shape_arithmetic_stays_symbolic():
    g = Graph()
    x = g.add_input("x", "f32", (D.sym("n"), 4, D.sym("m")))
    shape = ops.emit(g, "shape", [x]).output
    total = ops.emit(g, "reduce", [shape], fn="prod", axes=(0,), keepdims=False).output
    assert total.known_ints().item() == D.sym("n") * 4 * D.sym("m")
    largest = ops.emit(g, "reduce", [shape], fn="max", axes=(0,)).output
    assert largest.known_ints()[0] == D.dim_max(D.sym("n"), 4, D.sym("m"))


@pytest.mark.parametrize("attrs,text", [
    ({"fn": "median"}, "median"), ({"axes": (3,)}, "out of range"), ({"axes": (1, -2)}, "twice"),
])  # fmt: skip
def test_reduce_refuses(attrs, text):
    with pytest.raises(ops.OpError, match=text):
        build("reduce", [X], **attrs)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("fn", ["max", "min"])
def test_argreduce(fn, axis, last, keepdims):
    x = rng.integers(0, 3, (3, 4, 5)).astype(np.float32)  # many ties
    got = run_op("argreduce", [x], dynamic={0: (0, 1, 2)}, fn=fn, axis=axis, last=last,
                 keepdims=keepdims)
    (want,) = ort_run("Arg" + fn.title(), [x], axis=axis, select_last_index=int(last),
                      keepdims=int(keepdims))
    close(got, want)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("dt", ["float32", "float16", "float64"])
def test_softmax(axes, log, dt):
    x = (X * 20).astype(dt)
    got = run_op("softmax", [x], dynamic={0: (0, 1, 2)}, axes=axes, log=log)
    t = torch.from_numpy(np.moveaxis(x, axes, range(-len(axes), 0)))
    flat = t.reshape(*t.shape[: 3 - len(axes)], -1)
    f = torch.log_softmax if log else torch.softmax
    want = np.moveaxis(f(flat, -1).reshape(t.shape).numpy(), range(-len(axes), 0), axes)
    close(got, want)


def test_softmax_needs_floats():
    with pytest.raises(ops.OpError, match="floating-point"):
        build("softmax", [np.arange(3)])


def test_ragged_softmax():
    x = rng.standard_normal((2, 3, 6)).astype(np.float32)
    bounds = np.array([[1, 6, 0], [3, 2, 5]], np.int32)[..., None]
    got = run_op("ragged_softmax", [x, bounds], dynamic={0: (0, 1, 2), 1: (0, 1)})
    for i, j in np.ndindex(2, 3):
        n = bounds[i, j, 0]
        close(got[i, j, :n], torch.softmax(torch.from_numpy(x[i, j, :n]), 0).numpy())
        assert not got[i, j, n:].any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumulative_sum(axis, exclusive, reverse):
    got = run_op("cumulative", [X, np.array(axis)], const=[1], dynamic={0: (0,)},
                 native=axis != 0, exclusive=exclusive, reverse=reverse)
    (want,) = ort_run("CumSum", [X, np.array(axis)], exclusive=int(exclusive),
                      reverse=int(reverse))
    close(got, want)


def test_cumulative_product():
    x = rng.integers(-3, 4, (2, 5)).astype(np.int32)
    close(run_op("cumulative", [x, np.array([1])], const=[1], fn="prod"),
          np.cumprod(x, axis=1, dtype=np.int32))
    y = run_op("cumulative", [x, np.array([1])], const=[1], fn="prod", exclusive=True)
    close(y, np.cumprod(np.c_[np.ones((2, 1), np.int32), x[:, :-1]], axis=1, dtype=np.int32))
