"""Elementwise ops against numpy and torch, and their stages against their references."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from stage_checks import check, make, same

from tactician.ir import dtypes as T
from tactician.ir.dtypes import all_dtypes
from tactician.ops import OpError, evaluate
from tactician.ops import _math as M

RNG = np.random.default_rng(0)
FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
INTS = [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]


def x32(*shape):
    return RNG.normal(size=shape).astype(np.float32) * 2


NUMPY_UNARY = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "sign": np.sign,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": np.vectorize(math.erf),
    "lgamma": np.vectorize(math.lgamma),
}  # fmt: skip
POSITIVE = {"log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: x**-0.5, "recip": lambda x: 1 / x}
UNIT = {"asin": np.arcsin, "acos": np.arccos, "atanh": np.arctanh}


@pytest.mark.parametrize("fn", [*NUMPY_UNARY, *POSITIVE, *UNIT, "acosh"])
def test_unary(fn):
    x = x32(3, 5)
    if fn in POSITIVE:
        x = np.abs(x) + 0.1
    elif fn in UNIT:
        x = np.tanh(x)
    elif fn == "acosh":
        x = np.abs(x) + 1
    table = {**NUMPY_UNARY, **POSITIVE, **UNIT, "acosh": np.arccosh}
    got = check("unary", x, fn=fn)
    np.testing.assert_allclose(got, table[fn](x.astype(np.float64)), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("dt", FLOATS)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 3)])
def test_unary_types_and_shapes(dt, shape):
    assert check("unary", np.ones(shape, dt), fn="exp").dtype == dt


@pytest.mark.parametrize("dt", INTS)
@pytest.mark.parametrize("fn", ["neg", "abs", "sign", "floor", "round", "bitnot"])
def test_unary_integers(dt, fn):
    x = np.array([-3, 0, 5]).astype(dt)
    expected = {"neg": -x, "abs": np.abs(x), "sign": np.sign(x), "bitnot": ~x}.get(fn, x)
    same(check("unary", x, fn=fn), expected)


def test_round_is_half_to_even():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert check("unary", x, fn="round").tolist() == [-2, -2, 0, 0, 2, 2]


def test_predicates():
    x = np.array([0, np.inf, -np.inf, np.nan, 1], np.float32)
    assert check("unary", x, fn="isinf").tolist() == [False, True, True, False, False]
    assert check("unary", x, fn="isnan").tolist() == [False, False, False, True, False]
    assert check("unary", np.array([True, False]), fn="not").tolist() == [False, True]


def test_erf_is_accurate():
    x = np.concatenate([np.linspace(-7, 7, 4001), np.logspace(-300, 0, 200), [np.inf, -np.inf]])
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(M.erf(x), expected, rtol=2e-15)
    assert np.isnan(M.erf(np.nan))


BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum,
    "max": np.maximum, "floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod,
    "atan2": np.arctan2, "eq": np.equal, "lt": np.less, "ge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("fn", BINARY)
def test_binary_broadcasts(fn):
    a, b = x32(2, 1, 4), x32(3, 1)
    np.testing.assert_allclose(check("binary", a, b, fn=fn), BINARY[fn](a, b), rtol=1e-6)


@pytest.mark.parametrize("dt", [*FLOATS, *INTS])
@pytest.mark.parametrize("fn", ["add", "sub", "mul", "max", "gt"])
def test_binary_types(dt, fn):
    a, b = np.array([1, 2, 7]).astype(dt), np.array([3, 2, 1]).astype(dt)
    got = check("binary", a, b, fn=fn)
    table = {"add": a + b, "sub": a - b, "mul": a * b, "max": np.maximum(a, b), "gt": a > b}
    same(got, table[fn])


def test_integer_division_and_remainder():
    a, b = np.array([-7, 7, -7, 7, 5]), np.array([2, -2, -2, 2, 0])
    assert check("binary", a, b, fn="div").tolist() == [-3, -3, 3, 3, 0]
    assert check("binary", a, b, fn="truncdiv").tolist() == [-3, -3, 3, 3, 0]
    a, b = a[:4], b[:4]
    assert check("binary", a, b, fn="floordiv").tolist() == [-4, -4, 3, 3]
    assert check("binary", a, b, fn="mod").tolist() == [1, -1, -1, 1]
    assert check("binary", a, b, fn="fmod").tolist() == [-1, 1, -1, 1]


def test_integer_power():
    a, b = np.array([2, -1, -1, 3, 1]), np.array([10, -3, -2, -1, -5])
    assert check("binary", a, b, fn="pow").tolist() == [1024, -1, 1, 0, 1]


@pytest.mark.parametrize("a,b", [(np.float32, np.int64), (np.int64, np.float32),
                                 (np.int32, np.float64), (np.int32, np.int64)])  # fmt: skip
def test_power_of_mixed_types(a, b):
    x, y = np.array([1, 2, 3]).astype(a), np.array([4, 5, 2]).astype(b)
    same(check("binary", x, y, fn="pow"), np.array([1, 32, 9]).astype(a))


def test_shifts_and_bits():
    a, b = np.array([1, 128, 255], np.uint8), np.array([1, 2, 3], np.uint8)
    assert check("binary", a, b, fn="shl").tolist() == [2, 0, 248]
    assert check("binary", a, b, fn="shr").tolist() == [0, 32, 31]
    assert check("binary", a, b, fn="bitxor").tolist() == [0, 130, 252]


def test_min_max_propagate_nan():
    a, b = np.array([np.nan, 1], np.float32), np.array([1, np.nan], np.float32)
    assert np.isnan(check("binary", a, b, fn="min")).all()
    assert np.isnan(check("binary", a, b, fn="max")).all()


@pytest.mark.parametrize("fn,table", [("and", [1, 0, 0, 0]), ("or", [1, 1, 1, 0]),
                                      ("xor", [0, 1, 1, 0])])  # fmt: skip
def test_logic(fn, table):
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert check("binary", a, b, fn=fn).tolist() == [bool(t) for t in table]


def test_select_broadcasts():
    c, a, b = np.array([[True], [False]]), x32(3), x32(2, 3)
    same(check("select", c, a, b), np.where(c, a, b))


@pytest.mark.parametrize("bad", [
    lambda: make("binary", np.zeros(2, np.float32), np.zeros(3, np.float32), fn="add"),
    lambda: make("binary", np.zeros(2, np.float32), np.zeros(2, np.int32), fn="add"),
    lambda: make("unary", np.zeros(2, np.int32), fn="exp"),
    lambda: make("unary", np.zeros(2, np.float32), fn="no_such"),
    lambda: make("binary", np.zeros(2, np.float32), np.zeros(2, np.float32), fn="and"),
    lambda: make("select", np.zeros(2, np.float32), x32(2), x32(2)),
    lambda: make("activation", np.zeros(2, np.int32), fn="sigmoid"),
    lambda: make("prelu", x32(2, 3), x32(4)),
])  # fmt: skip
def test_wrong_operands(bad):
    with pytest.raises(OpError, match="layer"):
        bad()


# --- cast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [d for d in all_dtypes() if d.kind != "c" and d is not T.f8e8m0])
@pytest.mark.parametrize("source", [np.float32, np.float16, np.int32, np.uint8, np.bool_])
def test_cast_small_numbers(source, to):
    x = np.array([0, 1, 2, 3, 6]).astype(source)
    expected = x.astype(np.bool_) if to is T.b1 else x.astype(np.int64).astype(to.np)
    same(check("cast", x, to=to), expected)


def test_cast_truncates_and_wraps():
    x = np.array([-1.9, -0.5, 0.5, 2.9], np.float32)
    assert check("cast", x, to=T.i32).tolist() == [-1, 0, 0, 2]
    assert check("cast", np.array([200, -200, 256]), to=T.i8).tolist() == [-56, 56, 0]
    assert check("cast", np.array([0.0, 0.1, -2, np.nan], np.float32), to=T.b1).tolist() == [
        False, True, True, True]  # fmt: skip


@pytest.mark.parametrize("to", [T.f8e4m3, T.f8e5m2])
@pytest.mark.parametrize("saturate", [True, False])
def test_cast_to_float8_as_onnx(to, saturate):
    x = np.array([0, 1.06, 448, 470, 1e5, -1e9, np.inf, -np.inf, np.nan], np.float32)
    top = M.limits(to)[1]
    expected = np.clip(x, -top, top).astype(to.np) if saturate else x.astype(to.np)
    same(check("cast", x, to=to, saturate=saturate), expected)


def test_cast_to_e8m0_rounds_up():
    x = np.array([1.0, 1.5, 3.0, 0.3], np.float32)
    got = evaluate(make("cast", x, to=T.f8e8m0), x)[0].astype(np.float32)
    assert got.tolist() == [1, 2, 4, 0.5]


def test_saturating_conversion_at_the_limits():
    x = np.array([-1e20, -0.9, 0.9, 2.0**63, 1e20, np.nan])
    assert M.convert(x, T.i64, True).tolist() == [-(2**63), 0, 0, 2**63 - 1, 2**63 - 1, 0]
    assert M.convert(x, T.u8, True).tolist() == [0, 0, 0, 255, 255, 0]
    assert M.convert(np.array([300, -300]), T.i8, True).tolist() == [127, -128]


# --- activations ----------------------------------------------------------------------------

F = torch.nn.functional
TORCH = {
    "relu": ({}, F.relu), "sigmoid": ({}, torch.sigmoid), "tanh": ({}, torch.tanh),
    "leaky_relu": ({"alpha": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "selu": ({"alpha": 1.6732632423543772, "beta": 1.0507009873554805}, F.selu),
    "softsign": ({}, F.softsign),
    "softplus": ({"alpha": 1.0, "beta": 1.0}, F.softplus),
    "clip": ({"alpha": -1.0, "beta": 0.5}, lambda x: x.clamp(-1, 0.5)),
    "hard_sigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    "scaled_tanh": ({"alpha": 2.0, "beta": 0.3}, lambda x: 2 * torch.tanh(0.3 * x)),
    "thresholded_relu": ({"alpha": 0.8}, lambda x: F.threshold(x, 0.8, 0)),
    "gelu_erf": ({}, F.gelu), "gelu_tanh": ({}, lambda x: F.gelu(x, approximate="tanh")),
    "hard_swish": ({}, F.hardswish), "mish": ({}, F.mish),
    "swish": ({"alpha": 1.3}, lambda x: x * torch.sigmoid(1.3 * x)),
    "celu": ({"alpha": 0.6}, lambda x: F.celu(x, 0.6)),
    "shrink": ({"alpha": 0.5, "beta": 0.5}, lambda x: F.softshrink(x, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("fn", TORCH)
@pytest.mark.parametrize("dt", [np.float32, np.float64, np.float16])
def test_activation(fn, dt):
    attrs, f = TORCH[fn]
    x = np.concatenate([x32(50), [0, -30, 30]]).astype(dt)
    got = check("activation", x, fn=fn, **attrs)
    expected = f(torch.from_numpy(x.astype(np.float64))).numpy()
    tol = 2e-3 if dt == np.float16 else 2e-6
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=tol, atol=tol)


def test_activations_do_not_overflow():
    x = np.array([-1e4, 1e4], np.float32)
    assert check("activation", x, fn="softplus", alpha=1.0, beta=1.0).tolist() == [0, 1e4]
    assert check("activation", x, fn="mish").tolist() == [0, 1e4]
    assert check("activation", x, fn="swish", alpha=1.0).tolist() == [0, 1e4]


def test_relu_and_clip_of_integers():
    x = np.array([-5, 0, 300], np.int32)
    assert check("activation", x, fn="relu").tolist() == [0, 0, 300]
    assert check("activation", x, fn="clip", alpha=-2.0, beta=1e12).tolist() == [-2, 0, 300]


@pytest.mark.parametrize("slope", [(3, 1, 1), (1,), (2, 3, 4, 4)])
def test_prelu(slope):
    x, s = x32(2, 3, 4, 4), x32(*slope)
    same(check("prelu", x, s), np.where(x < 0, x * s, x))


@pytest.mark.parametrize("axis,shape", [(1, (3,)), (-1, ()), (-1, (2, 3, 4)), (2, (4,)), (1, (1,))])
def test_scale(axis, shape):
    x, shift, scale = x32(2, 3, 4), x32(*shape), x32(*shape)
    power = np.full(shape, 2, np.float32)
    tail = [1] * (2 - axis) if axis >= 0 and shape else []
    a, b = (p.reshape((*shape, *tail)) for p in (scale, shift))
    got = check("scale", x, shift, scale, power, axis=axis)
    np.testing.assert_allclose(got, (x * a + b) ** 2, rtol=1e-5)
    np.testing.assert_allclose(check("scale", x, None, scale, axis=axis), x * a, rtol=1e-6)


def test_assertion():
    node = make("assertion", np.array([True]), message="sizes")
    assert evaluate(node, np.array([True])) == ()
    with pytest.raises(AssertionError, match="sizes"):
        evaluate(node, np.array([False]))
    with pytest.raises(OpError, match="sizes"):
        make("assertion", np.array([False]), const=(0,), message="sizes")
