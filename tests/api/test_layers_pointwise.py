"""Activations, element-wise layers, scaling, casts: attributes change what is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

A, E, U = trt.ActivationType, trt.ElementWiseOperation, trt.UnaryOperation
X = 3 * f32(3, 7)


def erf(x):
    return np.vectorize(math.erf)(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elu(x, a):
    return np.where(x > 0, x, a * np.expm1(x))


ACTIVATIONS = [
    (A.RELU, lambda x, a, b: np.maximum(x, 0)),
    (A.SIGMOID, lambda x, a, b: sigmoid(x)),
    (A.TANH, lambda x, a, b: np.tanh(x)),
    (A.LEAKY_RELU, lambda x, a, b: np.where(x > 0, x, a * x)),
    (A.ELU, lambda x, a, b: elu(x, a)),
    (A.SELU, lambda x, a, b: b * elu(x, a)),
    (A.SOFTSIGN, lambda x, a, b: x / (1 + abs(x))),
    (A.SOFTPLUS, lambda x, a, b: a * np.log(np.exp(b * x) + 1)),
    (A.CLIP, lambda x, a, b: np.clip(x, a, b)),
    (A.HARD_SIGMOID, lambda x, a, b: np.clip(a * x + b, 0, 1)),
    (A.SCALED_TANH, lambda x, a, b: a * np.tanh(b * x)),
    (A.THRESHOLDED_RELU, lambda x, a, b: np.where(x > a, x, 0)),
    (A.GELU_ERF, lambda x, a, b: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
    (A.GELU_TANH, lambda x, a, b: 0.5 * x * (
        1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
]


@pytest.mark.parametrize("kind, formula", ACTIVATIONS, ids=lambda x: getattr(x, "name", ""))
def test_activation(kind, formula):
    net = Net()
    layer = net.network.add_activation(net.input(X), trt.ActivationType.RELU)
    layer.type, layer.alpha, layer.beta = kind, 0.3, 0.75
    assert (layer.type, layer.alpha, layer.beta) == (kind, 0.3, 0.75)
    close(net.run(layer.get_output(0)), formula(X.astype(float), 0.3, 0.75))


UNARY = [
    (U.EXP, np.exp), (U.LOG, lambda x: np.log(x)), (U.SQRT, np.sqrt), (U.RECIP, lambda x: 1 / x),
    (U.ABS, abs), (U.NEG, np.negative), (U.SIN, np.sin), (U.COS, np.cos), (U.TAN, np.tan),
    (U.SINH, np.sinh), (U.COSH, np.cosh), (U.ASIN, np.arcsin), (U.ACOS, np.arccos),
    (U.ATAN, np.arctan), (U.ASINH, np.arcsinh), (U.ACOSH, lambda x: np.arccosh(x)),
    (U.ATANH, np.arctanh), (U.CEIL, np.ceil), (U.FLOOR, np.floor), (U.ERF, erf),
    (U.SIGN, np.sign), (U.ROUND, np.rint), (U.ISINF, np.isinf), (U.ISNAN, np.isnan),
]


@pytest.mark.parametrize("op, formula", UNARY, ids=lambda x: getattr(x, "name", ""))
def test_unary(op, formula):
    x = np.linspace(0.05, 0.95, 19, dtype=np.float32)
    if op is U.ACOSH:
        x = x + 1
    if op in (U.ISINF, U.ISNAN):
        x[3], x[4], x[5] = np.inf, np.nan, -np.inf
    if op in (U.ABS, U.NEG, U.SIGN, U.CEIL, U.FLOOR, U.ROUND):
        x = (x - 0.5) * 5
    net = Net()
    layer = net.network.add_unary(net.input(x), U.EXP)
    layer.op = op
    assert layer.op == op
    close(net.run(layer.get_output(0)), formula(x.astype(float)))


def test_not():
    net, x = Net(), np.array([True, False, True])
    layer = net.network.add_unary(net.input(x), trt.UnaryOperation.NOT)
    np.testing.assert_array_equal(net.run(layer.get_output(0)), ~x)


BINARY = [
    (E.SUM, np.add), (E.SUB, np.subtract), (E.PROD, np.multiply), (E.DIV, np.divide),
    (E.MAX, np.maximum), (E.MIN, np.minimum), (E.POW, np.power), (E.FLOOR_DIV, np.floor_divide),
    (E.EQUAL, np.equal), (E.GREATER, np.greater), (E.LESS, np.less),
]


@pytest.mark.parametrize("op, formula", BINARY, ids=lambda x: getattr(x, "name", ""))
def test_elementwise(op, formula):
    a = abs(f32(3, 4)) + 0.5
    b = abs(f32(3, 1, seed=1)) + 0.5
    a[0] = b[0]
    net = Net()
    layer = net.network.add_elementwise(net.input(a), net.input(b), E.SUM)
    layer.op = op
    assert layer.op == op
    close(net.run(layer.get_output(0)), formula(a, b))


@pytest.mark.parametrize("op, formula", [
    (E.AND, np.logical_and), (E.OR, np.logical_or), (E.XOR, np.logical_xor),
], ids=lambda x: getattr(x, "name", ""))
def test_logic(op, formula):
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    net = Net()
    layer = net.network.add_elementwise(net.input(a), net.input(b), op)
    np.testing.assert_array_equal(net.run(layer.get_output(0)), formula(a, b))


def test_cast():
    net = Net()
    layer = net.network.add_cast(net.input(X), trt.float16)
    assert layer.get_output(0).dtype == trt.DataType.HALF
    layer.to_type = trt.DataType.INT32
    assert layer.to_type == trt.int32 and layer.get_output(0).dtype == trt.int32
    np.testing.assert_array_equal(net.run(layer.get_output(0)), np.trunc(X).astype(np.int32))


def test_scale_modes():
    x = abs(f32(2, 3, 4, 5)) + 0.5
    shift, scale, power = f32(3), abs(f32(3, seed=1)) + 3, np.full(3, 2, np.float32)
    net = Net()
    layer = net.network.add_scale(net.input(x), trt.ScaleMode.CHANNEL, shift, scale, power)
    assert layer.mode == trt.ScaleMode.CHANNEL and layer.channel_axis == 1
    for name, array in (("shift", shift), ("scale", scale), ("power", power)):
        np.testing.assert_array_equal(getattr(layer, name), array)
    close(net.run(layer.get_output(0)),
          (x * scale[:, None, None] + shift[:, None, None]) ** 2)
    net = Net()
    layer = net.network.add_scale_nd(net.input(x), trt.ScaleMode.CHANNEL, f32(4), None, None, 2)
    assert layer.channel_axis == 2
    layer.shift = 2 * f32(4)
    close(net.run(layer.get_output(0)), x + 2 * f32(4)[:, None])
    net = Net()
    layer = net.network.add_scale(net.input(x), trt.ScaleMode.CHANNEL, f32(3), None, None)
    layer.mode, layer.shift = trt.ScaleMode.UNIFORM, np.array([0.5], np.float32)
    layer.scale, layer.power = np.array([2], np.float32), np.array([3], np.float32)
    close(net.run(layer.get_output(0)), (2 * x + 0.5) ** 3, 1e-4)
    net, whole = Net(), f32(3, 4, 5)
    layer = net.network.add_scale(net.input(x), trt.ScaleMode.ELEMENTWISE, whole, None, None)
    close(net.run(layer.get_output(0)), x + whole)


def test_channel_axis():
    x = f32(2, 3, 4, 5)
    net = Net()
    layer = net.network.add_scale_nd(net.input(x), trt.ScaleMode.CHANNEL, f32(5), None, None, 1)
    layer.channel_axis = 3
    close(net.run(layer.get_output(0)), x + f32(5))


def test_select_identity_and_slopes():
    a, b, c = f32(2, 3), f32(2, 3, seed=1), f32(2, 3, seed=2) > 0
    net = Net()
    ta, tb = net.input(a), net.input(b)
    select = net.network.add_select(net.input(c), ta, tb)
    same = net.network.add_identity(ta)
    slopes = net.network.add_parametric_relu(ta, net.const(f32(1, 3, seed=3)))
    outs = net.run(select.get_output(0), same.get_output(0), slopes.get_output(0))
    np.testing.assert_array_equal(outs[0], np.where(c, a, b))
    np.testing.assert_array_equal(outs[1], a)
    close(outs[2], np.where(a >= 0, a, a * f32(1, 3, seed=3)))
    assert [type(x) for x in (select, same, slopes)] == [
        trt.ISelectLayer, trt.IIdentityLayer, trt.IParametricReLULayer]


def test_assertions_stop_runs_with_their_message():
    from tactician.support.errors import ExecutionError

    net = Net()
    ok = net.input(np.array(True), "ok")
    layer = net.network.add_assertion(ok, "first")
    layer.message = "the input must be true"
    assert layer.message == "the input must be true" and layer.num_outputs == 0
    y = net.network.add_identity(net.input(X, "x")).get_output(0)
    engine = trt.Engine(net.engine(y))
    np.testing.assert_array_equal(engine(ok=np.array(True), x=X)["y0"], X)
    with pytest.raises(ExecutionError, match="the input must be true"):
        engine(ok=np.array(False), x=X)


def test_constants():
    net = Net()
    layer = net.network.add_constant((2, 3), np.zeros(6, np.float32))
    layer.weights = np.arange(6, dtype=np.float32)
    layer.shape = (3, 2)
    assert tuple(layer.shape) == (3, 2)
    np.testing.assert_array_equal(layer.weights.reshape(-1), np.arange(6))
    y = net.network.add_elementwise(layer.get_output(0), net.input(f32(3, 2)), E.SUM)
    close(net.run(y.get_output(0)), np.arange(6).reshape(3, 2) + f32(3, 2))
