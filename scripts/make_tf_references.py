"""Writes the graphs and results that tests of the TensorFlow importer compare with.

Runs TensorFlow (``pip install tensorflow-cpu``) on single operators and small nets of random
numbers and keeps the frozen graphs, inputs and outputs in one compressed file. Tests only read it.

    python scripts/make_tf_references.py tests/tensorflow/references.npz

Writes SavedModels with variables and their results beside it, too, into ``saved/``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

v1 = tf.compat.v1
raw = tf.raw_ops
RNG = np.random.default_rng(7)
CASES: dict[str, tuple[Callable[..., Any], list[np.ndarray], str]] = {}


def x(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def ints(*shape: int, high: int = 5) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(np.int32)


def case(name: str, fn: Callable[..., Any], *inputs: np.ndarray, how: str = "") -> None:
    """Adds a case. ``how``: ``batch`` first axes unknown, ``v1`` 1.x control flow."""
    assert name not in CASES, name
    CASES[name] = (fn, list(inputs), how)


def unary_ops() -> None:
    plain = "abs ceil cos erf exp floor negative round sign sin sinh cosh tan tanh sigmoid atan"
    for op in [*plain.split(), "asinh", "square"]:
        case(f"unary/{op}", getattr(tf.math, op), x(2, 3, 4))
    for op in "log sqrt rsqrt reciprocal log1p lgamma".split():
        case(f"unary/{op}", getattr(tf.math, op), x(2, 5, low=0.2, high=3))
    for op in "acos asin atanh".split():
        case(f"unary/{op}", getattr(tf.math, op), x(2, 5, low=-0.9, high=0.9))
    case("unary/acosh", tf.math.acosh, x(2, 5, low=1.1, high=3))
    case("unary/expm1", tf.math.expm1, x(2, 5) / 100)
    for op in "relu relu6 elu selu softplus softsign leaky_relu swish gelu".split():
        case(f"act/{op}", getattr(tf.nn, op), 4 * x(2, 3, 4))
    case("act/leaky_relu_03", lambda a: tf.nn.leaky_relu(a, 0.3), x(2, 7))
    case("act/softmax", tf.nn.softmax, x(3, 5))
    case("act/log_softmax", tf.nn.log_softmax, x(3, 5))
    case("act/softmax_axis1", lambda a: tf.nn.softmax(a, axis=1), x(2, 3, 4))
    case("unary/isnan", lambda a: tf.math.is_nan(tf.math.log(a)), x(3, 4))
    case("unary/is_finite", lambda a: tf.math.is_finite(1 / tf.nn.relu(a)), x(3, 4))
    case("unary/logical_not", lambda a: tf.logical_not(a > 0), x(3, 4))
    case("unary/cast_int", lambda a: tf.cast(a * 3, tf.int32), x(3, 4))
    case("unary/cast_bool", lambda a: tf.cast(tf.cast(a, tf.bool), tf.float32), ints(3, 4, high=2))
    case("unary/fake_quant", lambda a: tf.quantization.fake_quant_with_min_max_args(
        a, -1.5, 1.2, 8, False), x(4, 6))
    per_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel
    case("unary/fake_quant_vars", lambda a: per_channel(
        a, tf.constant([-1.0, -2, -0.3]), tf.constant([1.0, 0.2, 2]), 4, True), x(4, 3))


def binary_ops() -> None:
    for op in "add subtract multiply divide maximum minimum squared_difference floordiv floormod " \
              "less less_equal greater greater_equal equal not_equal divide_no_nan atan2".split():
        case(f"binary/{op}", getattr(tf.math, op), x(2, 3, 4), x(3, 1))
    case("binary/pow", tf.pow, x(2, 3, low=0.1), x(3,))
    for op in "truncatediv truncatemod floordiv floormod".split():
        f = getattr(tf, op, None) or getattr(tf.math, op)
        case(f"binary/int_{op}", f, ints(3, 4, high=20) - 10, ints(4, high=4) + 1)
    case("binary/logical", lambda a, b: tf.logical_or(tf.logical_and(a > 0, b > 0), a < b),
         x(3, 4), x(3, 4))
    case("binary/bitwise", lambda a, b: tf.bitwise.bitwise_xor(
        tf.bitwise.bitwise_and(a, b), tf.bitwise.left_shift(a, b)), ints(8), ints(8))
    case("binary/xlogy", lambda a, b: tf.math.xlogy(tf.nn.relu(a), b), x(3, 4), x(3, 4, low=0.1))
    case("binary/xdivy", lambda a, b: tf.math.xdivy(tf.nn.relu(a), b), x(3, 4), x(3, 4, low=0.1))
    case("binary/addn", lambda a, b: tf.add_n([a, b, a]), x(3, 4), x(3, 4))
    case("binary/where", lambda a, b: tf.where(a > 0, a, b), x(3, 4), x(4,))
    case("binary/select_rows", lambda a, b: raw.Select(condition=tf.constant([True, False, True]),
                                                       x=a, y=b), x(3, 4), x(3, 4))
    case("binary/clip", lambda a: raw.ClipByValue(t=a, clip_value_min=-0.5, clip_value_max=0.75),
         x(3, 4))


def convolutions() -> None:
    for pad in ("SAME", "VALID"):
        for stride in (1, 2):
            case(f"conv/{pad}_s{stride}",
                 lambda a, p=pad, s=stride: tf.nn.conv2d(a, w_conv(3, 3, 4, 6), s, p),
                 x(2, 9, 8, 4))
            case(f"depthwise/{pad}_s{stride}", lambda a, p=pad, s=stride: tf.nn.depthwise_conv2d(
                a, w_conv(3, 3, 4, 2), [1, s, s, 1], p), x(2, 9, 8, 4))
            grown = [(k - 1) * stride + (3 if pad == "VALID" else stride) for k in (4, 5)]
            case(f"transposed/{pad}_s{stride}",
                 lambda a, p=pad, s=stride, g=grown: tf.nn.conv2d_transpose(
                     a, w_conv(3, 3, 5, 4), [2, *g, 5], s, p), x(2, 4, 5, 4))
    case("conv/dilated", lambda a: tf.nn.conv2d(a, w_conv(3, 3, 4, 6), 1, "SAME", dilations=2),
         x(1, 9, 8, 4))
    case("conv/explicit", lambda a: tf.nn.conv2d(a, w_conv(3, 2, 4, 6), 1,
                                                 [[0, 0], [1, 2], [0, 1], [0, 0]]), x(1, 6, 6, 4))
    case("conv/grouped", lambda a: tf.nn.conv2d(a, w_conv(3, 3, 2, 6), 1, "SAME"), x(1, 5, 6, 4))
    case("conv/batch", lambda a: tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(
        a, w_conv(3, 3, 4, 6), 1, "SAME"), w_conv(6))), x(3, 5, 6, 4), how="batch")
    case("conv/1d", lambda a: tf.nn.conv1d(a, w_conv(3, 4, 6), 1, "SAME"), x(2, 9, 4))
    case("conv/3d", lambda a: tf.nn.conv3d(a, w_conv(2, 3, 3, 2, 4), [1] * 5, "SAME"),
         x(1, 4, 5, 5, 2))
    case("conv/space_to_batch", lambda a: tf.batch_to_space(tf.nn.conv2d(
        tf.space_to_batch(a, [2, 2], [[2, 3], [2, 2]]), w_conv(3, 3, 4, 5), 1, "VALID"), [2, 2],
        [[0, 1], [0, 0]]), x(1, 7, 8, 4))
    case("conv/transposed_dynamic", lambda a: tf.nn.conv2d_transpose(
        a, w_conv(2, 2, 5, 4), tf.stack([tf.shape(a)[0], 8, 10, 5]), 2, "SAME"), x(2, 4, 5, 4),
        how="batch")


def w_conv(*shape: int) -> Any:
    return tf.constant(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


def pooling_and_norm() -> None:
    for op, f in (("max_pool2d", tf.nn.max_pool2d), ("avg_pool2d", tf.nn.avg_pool2d)):
        for pad in ("SAME", "VALID"):
            case(f"pool/{op}_{pad}", lambda a, f=f, p=pad: f(a, 3, 2, p),
                 x(2, 8, 7, 3))
    case("pool/asymmetric", lambda a: tf.nn.max_pool2d(a, (2, 3), (2, 1), "VALID"), x(1, 6, 7, 3))
    case("pool/v2", lambda a: raw.MaxPoolV2(input=a, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1],
                                            padding="SAME"), x(1, 5, 5, 3))
    case("pool/3d", lambda a: tf.nn.avg_pool3d(a, 2, 2, "VALID"), x(1, 4, 4, 4, 2))
    for v in ("", "V2", "V3"):
        case(f"norm/fused{v}", lambda a, v=v: getattr(raw, f"FusedBatchNorm{v}")(
            x=a, scale=[1.5, 0.5, 2.0], offset=[0.1, 0.2, 0.3], mean=[0.5, -0.5, 0.0],
            variance=[1.0, 2.0, 0.5], epsilon=1e-3, is_training=False)[0], x(2, 4, 5, 3))
    case("norm/training", lambda a: raw.FusedBatchNormV3(
        x=a, scale=[1.5, 0.5, 2.0], offset=[0.1, 0.2, 0.3], mean=np.zeros(0, np.float32),
        variance=np.zeros(0, np.float32), epsilon=1e-3, is_training=True)[0], x(2, 4, 5, 3))
    case("norm/moments", lambda a: tf.nn.batch_normalization(
        a, *tf.nn.moments(a, [1], keepdims=True), 0.3, 1.2, 1e-3), x(2, 6))
    case("norm/lrn", lambda a: tf.nn.lrn(a, 2, 1.0, 0.1, 0.75), x(1, 3, 4, 9))
    case("norm/l2_normalize", lambda a: tf.nn.l2_normalize(a, -1), x(3, 5))
    case("norm/l2_loss", tf.nn.l2_loss, x(3, 5))


def dense() -> None:
    case("dense/matmul", tf.matmul, x(3, 4), x(4, 5))
    case("dense/transposed", lambda a, b: tf.matmul(a, b, transpose_a=True, transpose_b=True),
         x(4, 3), x(5, 4))
    case("dense/batched", tf.matmul, x(2, 3, 4), x(2, 4, 5))
    case("dense/broadcast", tf.matmul, x(2, 1, 3, 4), x(3, 4, 5))
    case("dense/adjoint", lambda a, b: tf.matmul(a, b, adjoint_b=True), x(2, 3, 4), x(2, 5, 4))
    case("dense/einsum", lambda a, b: tf.einsum("bij,bkj->bik", a, b), x(2, 3, 4), x(2, 5, 4))
    case("dense/bias", lambda a: tf.nn.bias_add(tf.matmul(a, w_conv(4, 3)), w_conv(3)), x(2, 4))


def moves() -> None:
    case("move/reshape", lambda a: tf.reshape(a, [2, -1]), x(2, 3, 4))
    case("move/reshape_dynamic", lambda a: tf.reshape(a, [tf.shape(a)[0], -1]), x(2, 3, 4),
         how="batch")
    case("move/transpose", lambda a: tf.transpose(a, [2, 0, 1]), x(2, 3, 4))
    case("move/squeeze", tf.squeeze, x(2, 1, 3, 1))
    case("move/squeeze_axis", lambda a: tf.squeeze(a, [-1]), x(2, 1, 3, 1))
    case("move/expand", lambda a: tf.expand_dims(a, -2), x(2, 3))
    case("move/concat", lambda a, b: tf.concat([a, b, a], -1), x(2, 3), x(2, 4))
    case("move/stack", lambda a, b: tf.stack([a, b], 1), x(2, 3), x(2, 3))
    case("move/unstack", lambda a: tf.unstack(a, axis=1), x(2, 3, 2))
    case("move/split", lambda a: tf.split(a, 2, 1), x(2, 6))
    case("move/split_sizes", lambda a: tf.split(a, [1, 3, -1], 1), x(2, 6))
    case("move/slice", lambda a: tf.slice(a, [0, 1, 2], [1, -1, 2]), x(2, 3, 5))
    case("move/index", lambda a: a[1], x(3, 4))
    case("move/index_last", lambda a: a[:, -1, ::2], x(3, 4, 5))
    case("move/index_reverse", lambda a: a[..., ::-1], x(3, 4))
    case("move/index_new", lambda a: a[:, tf.newaxis, 1:3, ..., 0], x(2, 4, 3, 2))
    case("move/index_dynamic", lambda a, i: a[i], x(4, 3), np.array(2, np.int32))
    case("move/index_range", lambda a, i: tf.shape(a[i:])[0] + 0 * i, x(4, 3),
         np.array(1, np.int32))
    case("move/tile", lambda a: tf.tile(a, [2, 1, 3]), x(2, 3, 1))
    case("move/pad", lambda a: tf.pad(a, [[0, 1], [2, 0]]), x(2, 3))
    case("move/pad_value", lambda a: tf.pad(a, [[0, 1], [2, 0]], constant_values=3.0), x(2, 3))
    case("move/reflect", lambda a: tf.pad(a, [[1, 1], [2, 0]], "REFLECT"), x(3, 4))
    case("move/symmetric", lambda a: tf.pad(a, [[1, 2], [2, 0]], "SYMMETRIC"), x(3, 4))
    case("move/reverse", lambda a: tf.reverse(a, [0, 2]), x(2, 3, 4))
    case("move/reverse_sequence", lambda a: tf.reverse_sequence(a, [2, 4, 1], 1), x(3, 4, 2))
    case("move/broadcast", lambda a: tf.broadcast_to(a, [4, 2, 3]), x(2, 1))
    case("move/depth_to_space", lambda a: tf.nn.depth_to_space(a, 2), x(1, 2, 3, 8))
    case("move/space_to_depth", lambda a: tf.nn.space_to_depth(a, 2), x(1, 4, 6, 3))
    case("move/space_to_batch", lambda a: tf.space_to_batch(a, [2, 3], [[1, 0], [0, 1]]),
         x(1, 3, 5, 2))
    case("move/batch_to_space", lambda a: tf.batch_to_space(a, [2, 2], [[0, 1], [1, 0]]),
         x(4, 3, 3, 2))
    case("make/fill", lambda a: tf.fill(tf.shape(a), 2.5) + a, x(2, 3), how="batch")
    case("make/range", lambda a: tf.cast(tf.range(tf.shape(a)[0]), tf.float32)[:, None] + a,
         x(4, 2), how="batch")
    case("make/zeros_like", lambda a: tf.zeros_like(a) + tf.ones_like(a), x(2, 3))
    case("make/one_hot", lambda a: tf.one_hot(a, 4, 2.0, -1.0), ints(2, 3, high=6) - 1)
    case("make/one_hot_axis", lambda a: tf.one_hot(a, 4, axis=0), ints(2, 3))
    case("make/size_rank", lambda a: tf.size(a) + tf.rank(a), x(2, 3))
    case("make/linspace", lambda a, b: tf.linspace(a, b, 5), np.float32(1.0), np.float32(3.0))


def reductions() -> None:
    for op in "sum mean max min prod euclidean_norm".split():
        f = getattr(tf.math, f"reduce_{op}")
        case(f"reduce/{op}", lambda a, f=f: f(a, axis=[-1, 0]), x(2, 3, 4))
    case("reduce/keep", lambda a: tf.reduce_mean(a, [1, 2], keepdims=True), x(2, 3, 4, 5))
    case("reduce/all_axes", tf.reduce_max, x(2, 3))
    case("reduce/any", lambda a: tf.reduce_any(a > 1, 1), x(3, 4))
    case("reduce/all", lambda a: tf.reduce_all(a > -1, 1), x(3, 4))
    case("reduce/logsumexp", lambda a: tf.reduce_logsumexp(a, 1), x(3, 4))
    case("reduce/argmax", lambda a: tf.argmax(a, -1), x(3, 4))
    case("reduce/argmin", lambda a: tf.argmin(a, 0, tf.int32), x(3, 4))
    case("reduce/cumsum", lambda a: tf.cumsum(a, 1, True, True), x(3, 4))
    case("reduce/cumprod", lambda a: tf.math.cumprod(a, 0), x(3, 4))


def indexing() -> None:
    case("index/gather", lambda a, i: tf.gather(a, i), x(5, 3), ints(2, 2))
    case("index/gather_axis", lambda a, i: tf.gather(a, i, axis=1), x(2, 5, 3), ints(4))
    case("index/gather_batch", lambda a, i: tf.gather(a, i, axis=1, batch_dims=1), x(2, 5, 3),
         ints(2, 4))
    case("index/gather_nd", tf.gather_nd, x(5, 5, 2), ints(3, 2))
    case("index/embedding", lambda i: tf.nn.embedding_lookup(w_conv(5, 4), i), ints(2, 3))
    case("index/scatter_nd", lambda i, u: tf.scatter_nd(i, u, [6, 3]), ints(4, 1), x(4, 3))
    case("index/scatter_update", tf.tensor_scatter_nd_update, x(5, 3),
         np.array([[3], [1]], np.int32), x(2, 3))
    case("index/top_k", lambda a: tf.math.top_k(a, 3), x(2, 7))
    case("index/where", lambda a: tf.where(a > 0), x(3, 4))
    case("index/boolean_mask", lambda a: tf.boolean_mask(a, a[:, 0] > 0), x(5, 3))
    boxes = np.sort(x(8, 2, 2, low=0, high=1), axis=1).reshape(8, 4)
    scores = x(8, low=0, high=1)
    case("nms/plain", lambda b, s: tf.image.non_max_suppression(b, s, 4, 0.3), boxes, scores)
    case("nms/scores", lambda b, s: tf.image.non_max_suppression(b, s, 6, 0.3, 0.4), boxes, scores)
    case("nms/padded", lambda b, s: raw.NonMaxSuppressionV4(
        boxes=b, scores=s, max_output_size=8, iou_threshold=0.3, score_threshold=0.4,
        pad_to_max_output_size=True), boxes, scores)
    case("nms/v5", lambda b, s: raw.NonMaxSuppressionV5(
        boxes=b, scores=s, max_output_size=8, iou_threshold=0.3, score_threshold=0.4,
        soft_nms_sigma=0.0, pad_to_max_output_size=False), boxes, scores)


def images() -> None:
    size = [7, 5]
    for name, op in (("bilinear", v1.image.resize_bilinear),
                     ("nearest", v1.image.resize_nearest_neighbor)):
        case(f"resize/{name}", lambda a, f=op: f(a, size), x(1, 4, 6, 3))
        case(f"resize/{name}_corners", lambda a, f=op: f(a, size, align_corners=True),
             x(1, 4, 6, 3))
        case(f"resize/{name}_half", lambda a, f=op: f(a, size, half_pixel_centers=True),
             x(1, 4, 6, 3))
    case("resize/bicubic_half", lambda a: v1.image.resize_bicubic(
        a, [8, 12], half_pixel_centers=True), x(1, 4, 6, 3))
    case("resize/v2", lambda a: tf.image.resize(a, [8, 12]), x(1, 4, 6, 3))
    case("resize/dynamic", lambda a: tf.image.resize(a, tf.shape(a)[1:3] * 2), x(2, 3, 4, 2),
         how="batch")
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [-0.2, 0.0, 1.3, 0.7]], np.float32)
    for method in ("bilinear", "nearest"):
        case(f"crop/{method}", lambda a, b, m=method: tf.image.crop_and_resize(
            a, b, [1, 0], [3, 4], m, 0.5), x(2, 6, 7, 3), boxes)
    case("crop/one", lambda a, b: tf.image.crop_and_resize(a, b, [1, 0], [1, 1]), x(2, 6, 7, 3),
         boxes)


def scan(a: Any) -> Any:
    """A running state over time, into a tensor array."""
    def step(t: Any, state: Any, out: Any) -> Any:
        new = tf.tanh(tf.matmul(a[:, t], w_conv(3, 4)) + state)
        return t + 1, new, out.write(t, new)

    steps = tf.shape(a)[1]
    array = tf.TensorArray(tf.float32, steps)
    _, last, array = tf.while_loop(lambda t, *_: t < steps, step,
                                   (0, tf.zeros([tf.shape(a)[0], 4]), array))
    return last, array.stack()


def control() -> None:
    for how in ("", "v1"):
        tag = how or "v2"
        case(f"cond/{tag}", lambda a: tf.cond(tf.reduce_sum(a) > 0, lambda: a * 2, lambda: a - 1),
             x(3, 4), how=how)
        case(f"cond/{tag}_other", lambda a: tf.cond(tf.reduce_sum(a) > 1e3, lambda: (a * 2, a),
                                                    lambda: (a - 1, tf.exp(a))), x(3, 4), how=how)
        case(f"cond/{tag}_nested", lambda a: tf.cond(
            tf.reduce_sum(a) > 1e3, lambda: a * 2, lambda: tf.cond(
                a[0, 0] > -9, lambda: a + 1, lambda: a * 7)), x(3, 4), how=how)
        case(f"while/{tag}", lambda a: tf.while_loop(
            lambda i, s: i < 5, lambda i, s: (i + 1, s * 0.5 + a), (0, a))[1], x(3, 4), how=how)
        case(f"while/{tag}_data", lambda a: tf.while_loop(
            lambda s: tf.reduce_max(s) < 50, lambda s: (s * 1.5,), (tf.abs(a),))[0], x(3, 4),
            how=how)
        case(f"while/{tag}_nested", lambda a: tf.while_loop(
            lambda i, s: i < 3, lambda i, s: (i + 1, tf.while_loop(
                lambda j, r: j < i + 1, lambda j, r: (j + 1, r + a * tf.cast(j, tf.float32)),
                (0, s))[1]), (0, a))[1], x(2, 3), how=how)
        case(f"scan/{tag}", scan, x(2, 5, 3), how=how)
        case(f"scan/{tag}_batch", scan, x(2, 5, 3), how=f"batch {how}")
    case("call/function", lambda a: tf.function(lambda b: tf.nn.relu(b) + 1)(a) * 2, x(3, 4))


def nets() -> None:
    def lstm(a: Any) -> Any:
        h = c = tf.zeros([tf.shape(a)[0], 4])
        for t in range(3):
            gates = tf.matmul(tf.concat([a[:, t], h], 1), w_conv(7, 16)) + w_conv(16)
            i, j, f, o = tf.split(gates, 4, 1)
            c = c * tf.sigmoid(f + 1) + tf.sigmoid(i) * tf.tanh(j)
            h = tf.tanh(c) * tf.sigmoid(o)
        return h

    def residual(a: Any) -> Any:
        y = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(a, w_conv(3, 3, 4, 8), 1, "SAME"), w_conv(8)))
        z = tf.nn.depthwise_conv2d(y, w_conv(3, 3, 8, 1), [1, 1, 1, 1], "SAME")
        z = tf.nn.conv2d(tf.nn.relu6(z + w_conv(8)), w_conv(1, 1, 8, 8), 1, "SAME") + y
        gate = tf.sigmoid(tf.matmul(tf.reduce_mean(z, [1, 2]), w_conv(8, 8)))
        z = z * gate[:, None, None, :]
        z = tf.concat([tf.nn.max_pool2d(z, 2, 2, "SAME"), tf.nn.avg_pool2d(z, 2, 2, "SAME")], -1)
        z = tf.pad(z, [[0, 0], [1, 1], [1, 1], [0, 0]])
        z = tf.nn.conv2d(z, w_conv(3, 3, 16, 4), 2, "VALID")
        return tf.nn.softmax(tf.matmul(tf.reshape(z, [-1, 3 * 3 * 4]), w_conv(36, 5)))

    def attention(a: Any) -> Any:
        q, k, v = (tf.transpose(tf.reshape(tf.einsum("btc,cd->btd", a, w_conv(8, 8 + i)[:, :8]),
                                           [-1, 6, 2, 4]), [0, 2, 1, 3]) for i in range(3))
        p = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * 0.5)
        y = tf.reshape(tf.transpose(tf.matmul(p, v), [0, 2, 1, 3]), [-1, 6, 8]) + a
        mean, var = tf.nn.moments(y, [-1], keepdims=True)
        return tf.nn.batch_normalization(y, mean, var, 0.1, 1.1, 1e-5)

    def conv1d(a: Any) -> Any:
        y = tf.nn.relu(tf.nn.conv1d(a, w_conv(3, 4, 6), 1, "SAME") + w_conv(6))
        return tf.nn.conv1d(y, w_conv(3, 6, 5), 2, "VALID")

    case("net/lstm", lstm, x(2, 3, 3), how="batch")
    case("net/residual", residual, x(2, 10, 10, 4), how="batch")
    case("net/attention", attention, x(2, 6, 8), how="batch")
    case("net/conv1d", conv1d, x(2, 9, 4))


def audio() -> None:
    sound = 0.4 * x(1600, 1)
    for squared in (True, False):
        case(f"audio/spectrogram_{squared}", lambda a, s=squared: raw.AudioSpectrogram(
            input=a, window_size=480, stride=320, magnitude_squared=s), sound)
    case("audio/spectrogram_stereo", lambda a: raw.AudioSpectrogram(
        input=a, window_size=256, stride=100), x(700, 2))
    case("audio/mfcc", lambda a: raw.Mfcc(
        spectrogram=raw.AudioSpectrogram(input=a, window_size=640, stride=320,
                                         magnitude_squared=True),
        sample_rate=16000, dct_coefficient_count=10), sound)
    case("audio/mfcc_bands", lambda a: raw.Mfcc(
        spectrogram=raw.AudioSpectrogram(input=a, window_size=400, stride=160,
                                         magnitude_squared=True),
        sample_rate=8000, upper_frequency_limit=3600.0, lower_frequency_limit=125.0,
        filterbank_channel_count=20, dct_coefficient_count=13), sound)


def frozen(fn: Callable[..., Any], inputs: list[np.ndarray], how: str) -> tuple[Any, list[Any]]:
    """The graph, and what TensorFlow computes."""
    use_v2 = "v1" not in how
    (v1.enable_control_flow_v2 if use_v2 else v1.disable_control_flow_v2)()
    if not use_v2:
        return frozen_v1(fn, inputs, how)
    specs = [tf.TensorSpec([None, *a.shape[1:]] if "batch" in how else a.shape, a.dtype, f"x{i}")
             for i, a in enumerate(inputs)]
    function = tf.function(fn).get_concrete_function(*specs)
    function = convert_variables_to_constants_v2(function, lower_control_flow=False)
    results = tf.nest.flatten(function(*map(tf.constant, inputs)))
    return (function.graph.as_graph_def(), [t.name for t in function.outputs]), \
        [r.numpy() for r in results]


def frozen_v1(fn: Callable[..., Any], inputs: list[np.ndarray], how: str) -> tuple[Any, list[Any]]:
    with tf.Graph().as_default() as graph:
        fed = [v1.placeholder(a.dtype, [None, *a.shape[1:]] if "batch" in how else a.shape,
                              name=f"x{i}") for i, a in enumerate(inputs)]
        outputs = tf.nest.flatten(fn(*fed))
        with v1.Session(graph=graph) as session:
            results = session.run(outputs, dict(zip(fed, inputs, strict=True)))
    return (graph.as_graph_def(), [t.name for t in outputs]), results


def main(path: str) -> None:
    for group in (unary_ops, binary_ops, convolutions, pooling_and_norm, dense, moves, reductions,
                  indexing, images, control, nets, audio):
        group()
    out: dict[str, np.ndarray] = {}
    for name, (fn, inputs, how) in CASES.items():
        try:
            (graph, outputs), results = frozen(fn, inputs, how)
        except Exception as e:
            raise SystemExit(f"{name}: {e}") from e
        out[f"{name}:graph"] = np.frombuffer(graph.SerializeToString(), np.uint8)
        out[f"{name}:outputs"] = np.array(" ".join(outputs))
        out |= {f"{name}:in{i}": a for i, a in enumerate(inputs)}
        out |= {f"{name}:out{i}": np.asarray(r) for i, r in enumerate(results)}
    np.savez_compressed(path, **out)
    print(f"{path}: {len(CASES)} cases, {os.path.getsize(path):,} bytes")


def saved_models(folder: str) -> None:
    """SavedModels of both generations with variables, and what they compute."""
    import shutil

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(w_conv(3, 3, 2, 4), name="w")
            self.b = tf.Variable(w_conv(4))
            self.d = tf.Variable(w_conv(4, 5), name="w")
            self.table = tf.Variable(w_conv(7, 5), name="table")

        @tf.function
        def __call__(self, image: Any, token: Any) -> dict[str, Any]:
            h = tf.nn.relu(tf.nn.conv2d(image, self.w, 1, "SAME") + self.b)
            y = tf.reduce_mean(h, [1, 2]) @ self.d
            return {"logits": y + tf.nn.embedding_lookup(self.table, token)}

    shutil.rmtree(folder, ignore_errors=True)
    module = Module()
    call = module.__call__.get_concrete_function(
        tf.TensorSpec([None, 6, 6, 2], tf.float32, "image"),
        tf.TensorSpec([None], tf.int32, "token"))
    tf.saved_model.save(module, f"{folder}/functions", signatures=call)
    feeds = {"image": x(2, 6, 6, 2), "token": ints(2)}
    logits = module(**feeds)["logits"].numpy()
    np.savez_compressed(f"{folder}/functions.npz", **feeds, logits=logits)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_resource_variables()
        a = v1.placeholder(tf.float32, [None, 4], name="a")
        w, r = v1.get_variable("w", [4, 3]), v1.get_variable("r", [3], use_resource=True)
        y = tf.nn.tanh(tf.matmul(a, w) + r, name="y")
        session.run(v1.global_variables_initializer())
        given = x(2, 4)
        np.savez_compressed(f"{folder}/session.npz", a=given, result=session.run(y, {a: given}))
        v1.saved_model.simple_save(session, f"{folder}/session", {"a": a}, {"result": y})
    for kind in ("functions", "session"):
        (Path(folder) / kind / "fingerprint.pb").unlink(missing_ok=True)


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "tests/tensorflow/references.npz"
    main(target)
    saved_models(str(Path(target).with_name("saved")))
