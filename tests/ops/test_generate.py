"""Ops that make tensors: fill, range, eye, windows, random numbers."""

import ml_dtypes
import numpy as np
import pytest
import torch
from stage_checks import check, make, same

from tactician.ir import dims as D
from tactician.ir import dtypes as T
from tactician.ir.dtypes import f32
from tactician.ir.graph import Graph
from tactician.ops import OpError, emit, evaluate, get


def i(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("dt", [np.float32, np.float16, np.int32, np.bool_, np.uint8, np.float64])
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 2)])
def test_constant_fill(dt, shape):
    value = np.array(1, dt)
    same(check("fill", i(*shape), value, const=(0, 1), fn="constant"), np.full(shape, value))


def test_constant_fill_is_known():
    node = make("fill", i(2), np.array([7]), const=(0, 1), fn="constant")
    assert list(node.output.known_ints()) == [7, 7]


def test_linspace():
    a, b = np.float32(1.5), np.array([0.5, 2], np.float32)
    expected = 1.5 + 0.5 * np.arange(3)[:, None] + 2 * np.arange(4)
    same(check("fill", i(3, 4), a, b, const=(0,), fixed=(2,)), expected.astype(np.float32))
    same(check("fill", i(3), np.int32(5), np.int32(-2), const=(0, 1, 2)), np.array([5, 3, 1], "i4"))


def test_fill_of_symbolic_shape():
    g = Graph()
    shape = emit(g, "shape", [g.add_input("x", f32, (D.sym("n"), 3))]).output
    assert emit(g, "fill", [shape], fn="constant").output.dims == (D.sym("n"), 3)


@pytest.mark.parametrize("fn,alpha,beta,mean,std", [
    ("random_uniform", 2, 6, 4, 4 / 12**0.5), ("random_normal", 3, 0.5, 3, 0.5),
])  # fmt: skip
def test_random(fn, alpha, beta, mean, std):
    args = i(100, 100), np.float32(alpha), np.float32(beta)
    node = make("fill", *args, const=(0,), fn=fn, seed=5)
    (a,), (b,) = evaluate(node, *args), evaluate(node, *args)
    same(a, b)
    assert abs(a.mean() - mean) < 0.05 * std and abs(a.std() - std) < 0.05 * std
    free = make("fill", *args, const=(0,), fn=fn)
    assert (evaluate(free, *args)[0] != evaluate(free, *args)[0]).any()
    assert not get("fill").is_pure(free) and get("fill").stages(free) is None


@pytest.mark.parametrize("args", [(0, 5, 1), (5, 0, -2), (0, 0, 1), (3, 1, 1), (1, 9, 3)])
@pytest.mark.parametrize("dt", [np.int64, np.int32, np.float32, np.float64, np.int16])
def test_range(args, dt):
    vs = [np.array(v, dt) for v in args]
    same(check("range", *vs, const=(0, 1, 2)), np.arange(*args).astype(dt))


def test_range_of_fractions():
    vs = [np.float32(v) for v in (0.5, 2.1, 0.4)]
    same(check("range", *vs, const=(0, 1, 2)), np.arange(*vs).astype(np.float32))


def test_range_of_unknown_length():
    vs = [np.float32(v) for v in (0, 3, 1)]
    node = make("range", *vs)
    assert str(node.output.dims[0]) == f"%{node.id}.0"
    same(evaluate(node, *vs)[0], np.arange(3, dtype=np.float32))
    with pytest.raises(OpError, match="delta other than 0"):
        make("range", i(0)[0], i(3)[0], i(0)[0], const=(0, 1, 2))


@pytest.mark.parametrize("k", [0, 1, -2])
@pytest.mark.parametrize("to", [T.f32, T.i32, T.b1, T.bf16])
def test_eye(k, to):
    expected = np.eye(3, 4, k).astype(to.np)
    same(check("eye", np.zeros((3, 4), np.float64), k=k, to=to), expected)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("n", [2, 5, 10])
@pytest.mark.parametrize("fn,alpha", [("hann", ()), ("hamming", (25 / 46, 21 / 46)),
                                      ("blackman", ())])  # fmt: skip
def test_window(fn, alpha, periodic, n):
    f = {"hann": torch.hann_window, "hamming": torch.hamming_window,
         "blackman": torch.blackman_window}[fn]
    expected = f(n, periodic, *alpha, dtype=torch.float64).numpy().astype(np.float32)
    same(check("window", np.array(n), const=(0,), fn=fn, periodic=periodic), expected)


def test_multinomial_and_bernoulli():
    p = np.log(np.array([[0.7, 0.2, 0.1], [0.0001, 0.0001, 0.9998]], np.float32))
    (got,) = evaluate(make("multinomial", p, samples=4000, seed=1), p)
    assert got.shape == (2, 4000) and got.dtype == np.int32
    np.testing.assert_allclose(np.bincount(got[0]) / 4000, [0.7, 0.2, 0.1], atol=0.04)
    x = np.full(4000, 0.3, np.float32)
    (b,) = evaluate(make("bernoulli", x, seed=1, to=T.i32), x)
    assert b.dtype == np.int32 and abs(b.mean() - 0.3) < 0.03
    (h,) = evaluate(make("bernoulli", x.astype(ml_dtypes.bfloat16)), x.astype(ml_dtypes.bfloat16))
    assert set(h.astype(float)) == {0.0, 1.0}
