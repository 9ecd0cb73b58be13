"""Quantization against onnxruntime, ONNX's reference and plain formulas."""

import ml_dtypes
import numpy as np
import pytest
import torch
from stage_checks import check, make, same
from test_indexing import ort_run

from tactician.ir import dtypes as T
from tactician.ops import OpError, evaluate

RNG = np.random.default_rng(3)


def x32(*shape):
    return RNG.normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("dt", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("axis,shape", [(1, ()), (1, (4,)), (0, (3,)), (-1, (2,))])
def test_quantize_and_back_as_onnxruntime(dt, axis, shape):
    x = np.concatenate([x32(3, 4, 1), np.full((3, 4, 1), 1e9, np.float32)], axis=2)
    scale = np.asarray(RNG.uniform(0.01, 0.1, shape), np.float32)
    zero = np.asarray(RNG.integers(0, 5, shape)).astype(dt)
    q = check("quantize", x, scale, zero, fixed=(1, 2), axis=axis)
    same(q, ort_run("QuantizeLinear", [x, scale, zero], opset=21, axis=axis)[0])
    y = check("dequantize", q, scale, zero, fixed=(1, 2), axis=axis)
    same(y, ort_run("DequantizeLinear", [q, scale, zero], opset=21, axis=axis)[0])


def test_quantize_rounds_half_to_even_and_saturates():
    x = np.array([-2.5, -0.5, 0.5, 1.5, 300, -300, np.inf], np.float32)
    got = check("quantize", x, np.float32(1), to=T.i8)
    assert got.tolist() == [-2, 0, 0, 2, 127, -128, 127]


@pytest.mark.parametrize("to", [T.i4, T.u4])
def test_four_bits(to):
    x = np.array([-20, -1.5, 0, 2.4, 6.6, 40], np.float32)
    zero = np.array(1).astype(to.np)
    q = check("quantize", x, np.float32(0.5), zero)
    low, high = (-8, 7) if to is T.i4 else (0, 15)
    expected = np.clip(np.rint(x / 0.5) + 1, low, high)
    assert q.astype(int).tolist() == expected.tolist()
    y = check("dequantize", q, np.float32(0.5), zero)
    same(y, ((expected - 1) * 0.5).astype(np.float32))


@pytest.mark.parametrize("to", [T.f8e4m3, T.f8e5m2, T.f4e2m1])
def test_small_floats(to):
    x = np.array([-1e6, -1.5, 0, 0.3, 2.4, 1e6], np.float32)
    q = check("quantize", x, np.float32(0.5), to=to)
    top = {T.f8e4m3: 448, T.f8e5m2: 57344, T.f4e2m1: 6}[to]
    same(q, np.clip(x / 0.5, -top, top).astype(to.np))
    same(check("dequantize", q, np.float32(0.5)), q.astype(np.float32) * np.float32(0.5))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dt", [np.int8, np.uint8])
def test_blocks(axis, dt):
    x = x32(6, 8)
    shape = (2, 8) if axis == 0 else (6, 2)
    block = 3 if axis == 0 else 4
    scale = RNG.uniform(0.05, 0.1, shape).astype(np.float32)
    zero = RNG.integers(0, 4, shape).astype(dt)
    fit = {"axis": axis, "block_size": block, "dynamic": False}
    q = check("quantize", x, scale, zero, **fit)
    attrs = {"axis": axis, "block_size": block}
    same(q, ort_run("QuantizeLinear", [x, scale, zero], opset=21, **attrs)[0])
    y = check("dequantize", q, scale, zero, **fit)
    same(y, ort_run("DequantizeLinear", [q, scale, zero], opset=21, **attrs)[0])


def test_blocks_of_two_axes_and_a_ragged_end():
    x, scale = x32(4, 6), RNG.uniform(0.1, 0.2, (2, 3)).astype(np.float32)
    q = check("quantize", x, scale, to=T.i8, dynamic=False)
    full = np.repeat(np.repeat(scale, 2, 0), 2, 1)
    same(q, np.rint(x / full).astype(np.int8))
    x, scale = x32(7), RNG.uniform(0.1, 0.2, 3).astype(np.float32)
    q = check("quantize", x, scale, to=T.i8, axis=0, block_size=3, dynamic=False)
    same(q, np.rint(x / np.repeat(scale, 3)[:7]).astype(np.int8))


def test_half_precision_scales():
    q = np.array([-100, 3, 127], np.int8)
    got = check("dequantize", q, np.float16(0.1))
    assert got.dtype == np.float16
    same(check("dequantize", q, np.float16(0.1), to=T.bf16).astype(np.float32).astype(np.float16),
         (q * np.float32(np.float16(0.1))).astype(ml_dtypes.bfloat16).astype(np.float16))


def test_i32_bias():
    x, scale = np.array([2**24 + 1, -7], np.int32), np.array([0.5, 0.25], np.float32)
    same(check("dequantize", x, scale, axis=0), x.astype(np.float32) * scale)


@pytest.mark.parametrize("shape", [(3, 4), (), (0,), (5,)])
def test_dynamic_quantize_linear(shape):
    x = np.asarray(x32(*shape))
    got = check("dynamic_quantize_linear", x)
    if x.size:
        expected = ort_run("DynamicQuantizeLinear", [x], n_out=3)
        for a, b in zip(got, expected, strict=True):
            same(a, b)


@pytest.mark.parametrize("x", [np.zeros(3, np.float32), np.full(3, 2.5, np.float32),
                               np.full(3, -2.5, np.float32)])  # fmt: skip
def test_dynamic_quantize_linear_of_flat_data(x):
    q, scale, zero = check("dynamic_quantize_linear", x)
    assert np.allclose((q.astype(float) - zero) * scale, x)


def test_dynamic_quantize_blocks():
    x = x32(2, 32)
    node = make("dynamic_quantize", x, np.float32(0.01), axis=-1, block_size=16)
    q, scale = evaluate(node, x, np.float32(0.01))
    assert q.shape == (2, 32) and scale.shape == (2, 2) and scale.dtype == T.f8e4m3.np
    back = q.astype(np.float32) * np.repeat(scale.astype(np.float32), 16, 1) * np.float32(0.01)
    # float4 has steps of 1/6 of the block's largest number at its coarsest
    limit = np.abs(x).reshape(2, 2, 16).max(2).repeat(16, 1) * 0.2
    assert (np.abs(back - x) <= limit).all()
    node = make("dynamic_quantize", x, block_size=32, to=T.f8e4m3, scale_to=T.f8e8m0)
    q, scale = evaluate(node, x)
    s = scale.astype(np.float32)
    assert (np.log2(s) % 1 == 0).all()
    back = torch.from_numpy(q.astype(np.float32) * np.repeat(s, 32, 1))
    assert torch.allclose(back, torch.from_numpy(x), rtol=0.07, atol=0.02)


@pytest.mark.parametrize("bad", [
    lambda: make("quantize", x32(3, 4), x32(3), axis=1, to=T.i8),
    lambda: make("quantize", x32(3, 4), x32(4), np.zeros(4, np.uint8), axis=1, to=T.i8),
    lambda: make("quantize", x32(3, 4), x32(3, 3), to=T.i8),
    lambda: make("quantize", x32(3), np.float32(1), to=T.f32),
    lambda: make("dequantize", np.zeros(3, np.int8), np.int32(1)),
    lambda: make("dynamic_quantize", x32(2, 20), block_size=16),
])  # fmt: skip
def test_wrong_operands(bad):
    with pytest.raises(OpError, match="layer"):
        bad()
