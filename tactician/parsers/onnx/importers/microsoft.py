"""Operators of the domain com.microsoft that optimized and quantized exports use."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..errors import NodeProblem, Unsupported
from ..node import OnnxNode
from ..table import MICROSOFT, importer
from .activation import gelu
from .conv import conv
from .matmul import gemm
from .quantize import _scalar, dequantize_linear, quantize_linear
from .recurrent import _some, recurrent_attributes


@importer("DynamicQuantizeLSTM", domain=MICROSOFT,
          note="each sequence's state is quantized by itself")
def dynamic_quantize_lstm(c: Context, n: OnnxNode) -> list[Value | None]:
    whole = _integer_lstm(c, n)
    if whole is not None:
        return whole
    w, r = (_dequantized_weights(c, n[i], n[8 + 2 * k], n[9 + 2 * k])
            for k, i in enumerate((1, 2)))
    attrs = recurrent_attributes(n, "lstm")
    if "hidden_size" not in n.attributes:
        attrs["hidden"] = int(r.dims[2])  # type: ignore[call-overload]
    # the input is rounded as the operator rounds it; the recurrent state stays float
    rounded = c.ops("dynamic_quantize_linear", n[0])
    x = c.op("dequantize", *rounded, axis=0, to=T.f32)
    inputs = [x, w, r, *(n.get(i) for i in range(3, 8))]
    return _some(n, c.ops("rnn", *inputs, input_forget=n.flag("input_forget"), **attrs))


def _integer_lstm(c: Context, n: OnnxNode) -> list[Value | None] | None:
    """The operator with integer products; None if the weights don't allow that."""
    attrs = recurrent_attributes(n, "lstm")
    weights = [_signed_weights(n[i], n[8 + 2 * k], n[9 + 2 * k]) for k, i in enumerate((1, 2))]
    if attrs["layout"] or None in weights or n[0].dtype is not T.f32:
        return None
    (w, ws), (r, rs) = weights  # type: ignore[misc]
    attrs["hidden"] = r.shape[1]
    rounded, scale, zero = c.ops("dynamic_quantize_linear", n[0])
    columns = np.ascontiguousarray(w.transpose(1, 0, 2).reshape(w.shape[1], -1))
    total = c.op("int_matmul", rounded, c.const(columns, name=f"{n[1].name}/columns"), zero)
    real = c.op("cast", total, to=T.f32, saturate=False)
    gates = c.op("binary", c.op("binary", real, c.const(ws.reshape(-1)), fn="mul"), scale, fn="mul")
    if n.has(3):
        bias = n.const(3)
        if bias is None:
            return None
        half = bias.shape[1] // 2
        gates = c.add(gates, c.const((bias[:, :half] + bias[:, half:]).reshape(-1)))
    rest = [n.get(i) for i in range(4, 8)]
    outputs = c.ops("quantized_lstm", gates, c.const(r), c.const(rs), *rest,
                    input_forget=n.flag("input_forget"), **attrs)
    return _some(n, outputs)


def _signed_weights(q: Value, scale: Value, zero: Value) -> tuple[Any, Any] | None:
    """[directions, in, 4*hidden] weights as i8 without zero point, and a scale per column; None
    if they aren't constants or don't fit."""
    if any(v.const is None for v in (q, scale, zero)):
        return None
    assert q.const is not None and scale.const is not None and zero.const is not None
    shape = (q.const.shape[0], 1, -1)
    wide = q.const.astype(np.int32) - zero.const.astype(np.int32).reshape(shape)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return None
    scales = np.broadcast_to(scale.const.astype(np.float32).reshape(shape), (len(wide), 1,
                                                                             wide.shape[2]))
    return wide.astype(np.int8), np.ascontiguousarray(scales[:, 0])


def _dequantized_weights(c: Context, q: Value, scale: Value, zero: Value) -> Value:
    """[directions, in, 4*hidden] integers as floats in ONNX's order [directions, 4*hidden, in]."""
    arrays = [v.const for v in (q, scale, zero)]
    if any(a is None for a in arrays):
        raise Unsupported("quantized weights must be initializers", "UNSUPPORTED_NODE_INPUT")
    data, s, z = arrays
    assert data is not None and s is not None and z is not None
    wide = data.astype(np.int32)

    def shaped(p: Any) -> Any:
        return p.reshape(p.shape[0], 1, -1)

    real = (wide - shaped(z.astype(np.int32))) * shaped(s.astype(np.float32))
    return c.const(np.ascontiguousarray(real.transpose(0, 2, 1)).astype(np.float32),
                   name=f"{q.name}/real")


@importer("Gelu", domain=MICROSOFT)
def gelu_(c: Context, n: OnnxNode) -> Value:
    return gelu(c, n)


@importer("FastGelu", domain=MICROSOFT)
def fast_gelu(c: Context, n: OnnxNode) -> Value:
    x = c.add(n[0], n[1]) if n.has(1) else n[0]
    return c.activation(x, "gelu_tanh")


@importer("BiasGelu", domain=MICROSOFT)
def bias_gelu(c: Context, n: OnnxNode) -> Value:
    return c.activation(c.add(n[0], n[1]), "gelu_erf")


@importer("QuickGelu", domain=MICROSOFT)
def quick_gelu(c: Context, n: OnnxNode) -> Value:
    return c.activation(n[0], "swish", alpha=n.attr("alpha", 1.702))


_FUSED = {"Relu": ("relu", 0.0, 0.0), "Sigmoid": ("sigmoid", 0.0, 0.0), "Tanh": ("tanh", 0.0, 0.0),
          "LeakyRelu": ("leaky_relu", 0.01, 0.0), "HardSigmoid": ("hard_sigmoid", 0.2, 0.5),
          "Clip": ("clip", -3.4e38, 3.4e38)}  # fmt: skip


def _then_activation(c: Context, n: OnnxNode, y: Value) -> Value:
    name = n.attr("activation", "")
    if not name:
        return y
    if name not in _FUSED:
        raise NodeProblem(f"fused activation {name!r} is not known")
    fn, alpha, beta = _FUSED[name]
    given = n.attr("activation_params", ())
    alpha, beta = (*given, *(alpha, beta)[len(given):])[:2]
    return c.activation(y, fn, alpha=alpha, beta=beta)


@importer("FusedConv", domain=MICROSOFT)
def fused_conv(c: Context, n: OnnxNode) -> Value:
    y = conv(c, n)
    if n.has(3):
        y = c.add(y, n[3])
    return _then_activation(c, n, y)


@importer("FusedGemm", domain=MICROSOFT)
def fused_gemm(c: Context, n: OnnxNode) -> Value:
    y = gemm(c, n)
    alpha, beta = n.attr("activation_alpha", None), n.attr("activation_beta", None)
    if alpha is None:
        return _then_activation(c, n, y)
    return c.activation(y, _FUSED[n.attr("activation")][0], alpha=alpha, beta=beta or 0.0)


@importer("FusedMatMul", domain=MICROSOFT)
def fused_matmul(c: Context, n: OnnxNode) -> Value:
    if n.flag("transBatchA") or n.flag("transBatchB"):
        raise Unsupported("transBatchA and transBatchB are not supported",
                          "UNSUPPORTED_NODE_ATTR")
    flags = []
    for i, name in enumerate(("transA", "transB")):
        flags.append("vector" if n[i].rank == 1 else
                     "transpose" if n.flag(name) else "none")
    y = c.matmul(n[0], n[1], *flags)
    alpha = n.attr("alpha", 1.0)
    return y if alpha == 1.0 else c.mul(y, c.like(alpha, y))


def _layer_norm(c: Context, n: OnnxNode, x: Value, scale: Value, bias: Value | None,
                rms: bool) -> Value:
    axis = axis_of(n.attr("axis", -1), x.rank)
    return c.op("normalization", x, scale, bias, axes=tuple(range(axis, x.rank)),
                epsilon=n.attr("epsilon", 1e-5), rms=rms)


@importer("SimplifiedLayerNormalization", domain=MICROSOFT)
@importer("SimplifiedLayerNormalization", note="written by onnxruntime's optimizer")
def simplified_layer_norm(c: Context, n: OnnxNode) -> Value:
    n.ignore("stash_type")
    return _layer_norm(c, n, n[0], n[1], None, rms=True)


@importer("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(c: Context, n: OnnxNode) -> list[Value | None]:
    rms = n.op.startswith("SkipSimplified")
    total = c.add(n[0], n[1])
    beta, bias = (None, n.get(3)) if rms else (n.get(3), n.get(4))
    if bias is not None:
        total = c.add(total, bias)
    return [_layer_norm(c, n, total, n[2], beta, rms), None, None, total]


@importer("QuantizeLinear", domain=MICROSOFT)
def quantize(c: Context, n: OnnxNode) -> Value:
    return quantize_linear(c, n)


@importer("DequantizeLinear", domain=MICROSOFT)
def dequantize(c: Context, n: OnnxNode) -> Value:
    return dequantize_linear(c, n)


def _real(c: Context, x: Value, scale: Value, zero: Value | None) -> Value:
    return c.op("dequantize", x, _scalar(c, scale), None if zero is None else _scalar(c, zero),
                axis=0, to=T.f32)


def _quantized(c: Context, y: Value, scale: Value, zero: Value | None, to: T.DType) -> Value:
    return c.op("quantize", y, _scalar(c, scale), None if zero is None else _scalar(c, zero),
                axis=0, to=to)


@importer("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(c: Context, n: OnnxNode) -> Value:
    a, b = _real(c, n[0], n[1], n.get(2)), _real(c, n[3], n[4], n.get(5))
    y = c.add(a, b) if n.op == "QLinearAdd" else c.mul(a, b)
    return _quantized(c, y, n[6], n.get(7), n[0].dtype)


@importer("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool",
          "QLinearAveragePool", domain=MICROSOFT)
def qlinear_unary(c: Context, n: OnnxNode) -> Value:
    from .pool import _window

    x = _real(c, n[0], n[1], n.get(2))
    if n.flag("channels_last"):
        raise Unsupported("channels_last is not supported", "UNSUPPORTED_NODE_ATTR")
    if n.op == "QLinearSigmoid":
        y = c.activation(x, "sigmoid")
    elif n.op == "QLinearLeakyRelu":
        y = c.activation(x, "leaky_relu", alpha=n.attr("alpha", 0.01))
    elif n.op == "QLinearGlobalAveragePool":
        y = c.reduce(x, "mean", range(2, x.rank))
    else:
        y = c.op("pooling", x, fn="average", count_include_pad=n.flag("count_include_pad"),
                 **_window(n))
    return _quantized(c, y, n[3], n.get(4), n[0].dtype)


@importer("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Context, n: OnnxNode) -> Value:
    parts = [_real(c, n[i], n[i + 1], n.get(i + 2)) for i in range(2, len(n), 3)]
    y = c.op("concat", *parts, axis=axis_of(n.attr("axis"), parts[0].rank))
    return _quantized(c, y, n[0], n[1], n[1].dtype)


@importer("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(c: Context, n: OnnxNode) -> Value:
    total = c.op("int_matmul", n[0], n[1], n.get(4), n.get(5))
    y = c.mul(c.cast(total, T.f32), c.mul(_scalar(c, n[2]), _scalar(c, n[3])))
    return c.add(y, n[6]) if n.has(6) else y


@importer("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(c: Context, n: OnnxNode) -> Value:
    q, scale, zero = c.ops("dynamic_quantize_linear", n[0])
    total = c.op("int_matmul", q, n[1], zero, n.get(3))
    y = c.mul(c.cast(total, T.f32), c.mul(scale, _scalar(c, n[2])))
    return c.add(y, n[4]) if n.has(4) else y


@importer("QGemm", domain=MICROSOFT)
def qgemm(c: Context, n: OnnxNode) -> Value:
    ta, tb = ("transpose" if n.flag(f) else "none" for f in ("transA", "transB"))
    total = c.op("int_matmul", n[0], n[3], _scalar(c, n[2]), _scalar(c, n[5]), ta=ta, tb=tb)
    if n.has(6):
        total = c.add(total, n[6])
    y = c.mul(c.cast(total, T.f32), c.mul(_scalar(c, n[1]), _scalar(c, n[4])))
    alpha = n.attr("alpha", 1.0)
    y = y if alpha == 1.0 else c.mul(y, c.like(alpha, y))
    return _quantized(c, y, n[7], n.get(8), n[0].dtype) if n.has(7) else y


@importer("MatMulNBits", domain=MICROSOFT, note="constant 4- and 8-bit weights")
def matmul_nbits(c: Context, n: OnnxNode) -> Value:
    if n.has(4):
        raise Unsupported("g_idx is not supported", "UNSUPPORTED_NODE_INPUT")
    n.ignore("accuracy_level")
    weights = _unpacked_weights(n)
    y = c.matmul(n[0], c.const(weights.astype(n[0].dtype.np), name=f"{n[1].name}/real"))
    return c.add(y, n[5]) if n.has(5) else y


def _unpacked_weights(n: OnnxNode) -> Any:
    """Block-quantized weights as a [K, N] float matrix."""
    columns, rows, block = n.attr("N"), n.attr("K"), n.attr("block_size")
    bits = n.attr("bits", 4)
    packed, scales, zeros = n.const(1), n.const(2), n.const(3)
    if packed is None or scales is None or bits not in (4, 8) or (n.has(3) and zeros is None):
        raise Unsupported("weights must be initializers of 4 or 8 bits",
                          "UNSUPPORTED_NODE_INPUT")
    blocks = -(-rows // block)
    q = _nibbles(packed.reshape(columns, blocks, -1), bits)[..., :block].astype(np.float32)
    zero: Any = float(1 << (bits - 1))
    if zeros is not None and zeros.dtype == np.uint8:
        zero = _nibbles(zeros.reshape(columns, -1), bits)[:, :blocks, None].astype(np.float32)
    elif zeros is not None:
        zero = zeros.reshape(columns, blocks, 1).astype(np.float32)
    real = (q - zero) * scales.reshape(columns, blocks, 1).astype(np.float32)
    return real.reshape(columns, -1)[:, :rows].T


def _nibbles(packed: Any, bits: int) -> Any:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
