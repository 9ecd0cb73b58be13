"""Native loop kernels of every kind against the ops' numpy references."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import run_native_stages
from stage_checks import make, same

from tactician.ops import evaluate

RNG = np.random.default_rng(0)
BF16 = ml_dtypes.bfloat16


def f(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def i(*shape, dtype=np.int32, low=-100, high=100):
    return RNG.integers(low, high, shape).astype(dtype)


def check(op, *arrays, tol=2e-5, dynamic=True, unroll=2, **attrs):
    for symbolic in (False, True) if dynamic else (False,):
        node = make(op, *arrays, dynamic=symbolic, **attrs)
        got = run_native_stages(node, *arrays, unroll=unroll)
        assert got is not None, "refused"
        with np.errstate(all="ignore"):
            for a, b in zip(got, evaluate(node, *arrays), strict=True):
                same(a, b, tol, tol)


REDUCE = "sum prod max min mean l1 l2 log_sum log_sum_exp sum_square any all".split()


@pytest.mark.parametrize("axes", [(1,), (0,), (0, 1), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("fn", REDUCE)
def test_reduce(fn, axes):
    x = f(3, 5, 37)
    check("reduce", np.abs(x) + 0.5 if fn in ("log_sum", "prod") else x, fn=fn, axes=axes)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (1000,), (3, 1), (1, 3), (64, 64), (5, 0)])
def test_reduce_shapes(shape):
    check("reduce", f(*shape), fn="sum", axes=(len(shape) - 1,))
    check("reduce", f(*shape), fn="max", axes=(0,))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, BF16, np.int64, np.int32, np.int8,
                                   np.uint8, np.uint64])  # fmt: skip
@pytest.mark.parametrize("fn", ["sum", "max", "min", "mean"])
def test_reduce_types(fn, dtype):
    x = i(4, 50, low=0).astype(dtype)
    check("reduce", x, fn=fn, axes=(1,))
    check("reduce", x, fn=fn, axes=(0,))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fn", ["max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.float16])
def test_argreduce(fn, last, axis, dtype):
    check("argreduce", i(35, 37, low=0, high=9).astype(dtype), fn=fn, last=last, axis=axis)


def test_argreduce_corners():
    x = np.full((4, 33), -np.inf, np.float32)
    x[1, 5] = x[1, 20] = np.nan
    x[2, 30] = np.inf
    x[3] = 1.0
    for last in (False, True):
        node = make("argreduce", x, axis=1, last=last, keepdims=False)
        (got,) = run_native_stages(node, x)
        assert got.tolist() == ([32, 20, 30, 32] if last else [0, 5, 30, 0])


def test_extremes_propagate_nan():
    x = f(3, 40)
    x[1, 17] = np.nan
    check("reduce", x, fn="max", axes=(1,))
    check("reduce", x, fn="min", axes=(0,))


@pytest.mark.parametrize("shape,axes", [
    ((4, 37), (1,)), ((4, 37), (0,)), ((2, 5, 33), (1,)), ((2, 3, 4, 5), (1, 2, 3)),
    ((2, 3, 4, 5), (1, 3)), ((1, 1000), (1,)), ((3, 1), (1,)), ((7,), (0,)),
])  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_softmax(shape, axes, log):
    check("softmax", f(*shape) * 5, axes=axes, log=log)


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float64])
def test_softmax_types(dtype):
    check("softmax", f(4, 37).astype(dtype), axes=(1,))


@pytest.mark.parametrize("attrs", [
    {"axes": (2, 3)}, {"axes": (1, 2, 3)}, {"axes": (3,), "rms": True},
    {"axes": (2, 3), "groups": 3}, {"axes": (1,)},
])  # fmt: skip
def test_normalization(attrs):
    check("normalization", f(2, 6, 5, 7) * 3 + 1, **attrs)
    wide = (1, 6, 1, 1) if attrs["axes"] != (3,) else (1, 1, 1, 7)
    check("normalization", f(2, 6, 5, 7), f(*wide), f(*wide), **attrs)


@pytest.mark.parametrize("attrs", [
    {"window": (3, 3), "stride": (2, 2), "pre": (1, 1), "post": (1, 1)},
    {"window": (2, 2), "stride": (2, 2)},
    {"window": (3, 3), "stride": (1, 1), "pre": (1, 1), "post": (1, 1)},
    {"window": (5, 3), "stride": (3, 1), "dilation": (1, 2)},
    {"window": (3, 3), "stride": (2, 2), "ceil": True},
])  # fmt: skip
@pytest.mark.parametrize("fn", ["max", "average"])
def test_pooling(fn, attrs):
    check("pooling", f(2, 3, 19, 23), fn=fn, **{"pre": (0, 0), "post": (0, 0), **attrs})


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_pooling_types(dtype):
    check("pooling", i(1, 2, 20, 40).astype(dtype), fn="max", window=(3, 3), stride=(1, 1),
          pre=(1, 1), post=(1, 1))  # fmt: skip


@pytest.mark.parametrize("a,b", [((5, 40), (40, 33)), ((2, 5, 8), (8, 3)), ((3, 4, 7), (3, 7, 20)),
                                 ((8,), (8, 5)), ((1, 256), (256, 64))])  # fmt: skip
def test_matmul(a, b):
    check("matmul", f(*a), f(*b), ta="vector" if len(a) == 1 else "none", tol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups):
    x, w, bias = f(2, 4, 9, 11), f(6, 4 // groups, 3, 3), f(6)
    check("convolution", x, w, bias, dynamic=False, tol=1e-4, groups=groups, stride=(2, 1),
          pre=(1, 1), post=(1, 1))  # fmt: skip


def test_lrn_and_cumulative():
    check("lrn", f(2, 7, 5, 5), size=3, alpha=1e-2, beta=0.75, k=1.0)


@pytest.mark.parametrize("perm", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64, np.bool_])
def test_transpose(perm, dtype):
    check("transpose", i(5, 17, 33).astype(dtype), perm=perm)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat(axis):
    shapes = [[3, 4, 5] for _ in range(3)]
    for k, s in enumerate(shapes):
        s[axis] = 7 * k + 3
    check("concat", *(f(*s) for s in shapes), axis=axis, dynamic=False)


@pytest.mark.parametrize("unroll", [1, 2, 4])
@pytest.mark.parametrize("n", [0, 1, 7, 16, 33, 5000])
def test_lengths(n, unroll):
    check("binary", f(n), f(n), fn="add", unroll=unroll)


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float64, np.int64, np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(3, 5, 37), (70,)])
def test_pointwise_types(dtype, shape):
    a, b = i(*shape, low=1).astype(dtype), i(*shape, low=1, high=20).astype(dtype)
    for fn in ("add", "mul", "max", "div", "mod"):
        check("binary", a, b, fn=fn, dynamic=False)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint32])
@pytest.mark.parametrize("fn", ["div", "floordiv", "mod", "fmod", "truncdiv"])
def test_integer_division_never_traps(fn, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([5, low, high, low, 0, 7] * 6, dtype)
    b = np.array([0, -1 if low else 1, 0, 1, 0, 2] * 6, dtype)
    node = make("binary", a, b, fn=fn)
    (got,) = run_native_stages(node, a, b)
    assert (got[b == 0] == 0).all()
    assert (got[5::6] == {"mod": 1, "fmod": 1}.get(fn, 3)).all()
