"""Stages of reductions, norms, pooling, contractions and sampling as native kernels."""

import sys
from pathlib import Path

import numpy as np
import pytest
from run_op import build, close

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cpu"))
from native_stages import run_native_stages

from tactician import ops

rng = np.random.default_rng(11)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def bytes_(*shape):
    return rng.integers(0, 255, shape).astype(np.uint8)


SIZES = np.array([9, 4])
CASES = [
    ("reduce", [f(3, 4, 5)], {"fn": "log_sum_exp", "axes": (1,)}),
    ("reduce", [bytes_(3, 40)], {"fn": "mean", "axes": (1,)}),
    ("argreduce", [f(3, 4, 5)], {"axis": 1, "fn": "min", "last": True}),
    ("softmax", [f(3, 4, 5).astype(np.float16)], {"axes": (2,), "log": True}),
    ("ragged_softmax", [f(2, 5), np.array([[3], [0]], np.int32)], {}),
    ("normalization", [f(2, 6, 5, 4), f(1, 6, 1, 1)], {"axes": (2, 3), "groups": 3}),
    ("lrn", [f(2, 6, 5, 4)], {}),
    ("pooling", [f(2, 3, 11, 9)], {"fn": "average", "window": (3, 3), "stride": (2, 2),
                                   "pre": (1, 1), "post": (1, 1), "ceil": True}),
    ("matmul", [f(2, 3, 4), f(4, 5)], {}),
    ("int_matmul", [bytes_(3, 4), bytes_(4, 5), np.array(3, np.uint8)], {}),
    ("einsum", [f(3, 3, 4), f(4, 5)], {"equation": "iij,jk->ki"}),
    ("convolution", [f(2, 4, 7, 6), f(6, 2, 3, 3), f(6)],
     {"groups": 2, "pre": (1, 1), "post": (1, 1), "stride": (2, 1)}),
    ("deconvolution", [f(2, 4, 5, 5), f(4, 3, 3, 3)],
     {"groups": 2, "stride": (2, 2), "pre": (1, 1), "post": (1, 1)}),
    ("int_conv", [bytes_(1, 3, 5, 5), bytes_(2, 3, 3, 3), np.array(9, np.uint8)],
     {"pre": (1, 1), "post": (1, 1)}),
    ("deform_conv", [f(1, 4, 6, 6), f(4, 4, 3, 3), f(1, 18, 4, 4)], {}),
    ("masked_softmax", [f(2, 2, 3, 5), rng.random((3, 5)) > 0.4],
     {"causal": True, "softcap": 2.0}),
    ("rotary_embedding", [f(2, 3, 5, 8), f(2, 5, 4), f(2, 5, 4)], {}),
    ("grid_sample", [f(2, 3, 5, 6), f(2, 4, 4, 2)], {"mode": "cubic", "padding": "reflection"}),
    ("grid_sample", [f(2, 3, 5, 6), f(2, 4, 4, 2)], {}),
    ("roi_align", [f(2, 3, 10, 9), f(3, 4) * 4, np.array([0, 1, 1])],
     {"sampling_ratio": 2, "output_height": 2, "output_width": 2}),
    ("col2im", [f(2, 12, 20), np.array([5, 6]), np.array([2, 2])], {}),
    ("resize", [f(1, 2, 6, 8), SIZES], {"axes": (2, 3)}),
    ("resize", [f(1, 2, 6, 8), SIZES], {"axes": (2, 3), "mode": "linear"}),
    ("resize", [f(1, 2, 6, 8), SIZES], {"axes": (2, 3), "mode": "cubic", "antialias": True}),
]  # fmt: skip


@pytest.mark.parametrize("op,inputs,attrs", CASES, ids=[c[0] for c in CASES])
def test_native(op, inputs, attrs):
    const = {"resize": [1], "col2im": [1, 2]}.get(op, [])
    node = build(op, inputs, const, **attrs)
    got = run_native_stages(node, *inputs)
    assert got is not None
    for a, b in zip(got, ops.evaluate(node, *inputs), strict=True):
        close(a, b, slack=5)


def test_deconvolution_of_uneven_extents():
    xs = [f(1, 2, 5, 5), f(2, 3, 3, 3)]
    node = build("deconvolution", xs, stride=(2, 2), pre=(1, 0), post=(1, 1))
    (got,) = run_native_stages(node, *xs)
    close(got, ops.evaluate(node, *xs)[0], slack=5)


@pytest.mark.parametrize("op,count", [("matmul", 1), ("convolution", 1), ("grid_sample", 1),
                                      ("rnn", 2), ("attention", 2), ("int_conv", 1)])
def test_missing_operand_is_named(op, count):
    with pytest.raises(ops.OpError, match=f"input {count} is missing"):
        build(op, [f(2, 3, 4, 5)] * count)
