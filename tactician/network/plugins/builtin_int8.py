"""Versions of BERT's plugins that work on INT8 numbers [1, channels, tokens, 1] of packed
sequences.

A tensor's dynamic range says what its numbers stand for. Where tensors are floats (as in a network
whose types the builder chooses), these are rounded to what INT8 can hold; INT8 tensors hold the
numbers themselves. Floats without a range stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Fields, Kind
from .builtin_bert import floats, numbers_of
from .builtin_boxes import need
from .kit import Kit

F, I = DataType.FLOAT, DataType.INT32
_EPSILON = float(np.finfo(np.float32).eps)
_HIDDEN = np.float32(-3e38)  # the score of a key that a query does not see


def _scale(f: Fields, side: int, index: int, field: str = "") -> float | None:
    """What a step of 8 bits stands for.

    Args:
        f: The fields.
        side: 0 for inputs, 1 for outputs.
        index: Which of them.
        field: Field that says it where ``use_explicit_int8`` is set.
    """
    if field and f.one("use_explicit_int8", 0):
        return float(f.one(field, 1.0))
    known = f.scales[side]
    return known[index] if index < len(known) else None


def _steps(k: Kit, x: Value, scale: float) -> Value:
    """How many steps of 8 bits numbers are, rounded to a whole one."""
    return k.clip(k.unary("round", k.div(x, np.float32(scale))), np.float32(-128), np.float32(127))


def _reals(k: Kit, x: Value, scale: float | None, name: str) -> Value:
    """The real numbers that a tensor stands for."""
    if x.dtype is T.i8:
        if scale is None:
            raise ops.OpError(f"INT8 {name} needs a scale: set the tensor's dynamic range")
        return k.mul(k.f32(x), np.float32(scale))
    return x if scale is None else k.mul(_steps(k, x, scale), np.float32(scale))


def _stored(k: Kit, y: Value, scale: float | None, like: Value, name: str) -> Value:
    """Real numbers as a tensor holds them: as INT8 where ``like`` is."""
    if scale is None:
        if like.dtype is T.i8:
            raise ops.OpError(f"INT8 {name} needs a scale: set the tensor's dynamic range")
        return y
    steps = _steps(k, y, scale)
    return k.cast(steps, T.i8) if like.dtype is T.i8 else k.mul(steps, np.float32(scale))


def _attention(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Channels lie in the order (query, key, value), head, element."""
    need(inputs, [(4,), (1,), (1,)], "x [1, 3 * hidden_size, tokens, 1], running lengths "
         "[sequences + 1] and a vector as long as the longest sequence")
    k = Kit(g)
    size, heads = int(f.one("hidden_size")), int(f.one("num_heads"))
    x = inputs[0]
    if size % heads or x.dims[1] != 3 * size:
        raise ops.OpError(f"axis 1 of {x!r} must have 3 * hidden_size ({3 * size}) elements, and "
                          f"hidden_size be a multiple of num_heads ({heads})")
    given = _scale(f, 0, 0, "input_qkv_scale")
    real = _reals(k, x, given, "input 0")
    parts = k.reshape(real, 3, heads, size // heads, k.size(x, 2))
    q, key, v = (k.transpose(p, 0, 1, 3, 2) for p in k.split(parts, 0))
    number = numbers_of(k, inputs[1], k.size(x, 2))
    seen = k.unsqueeze(k.binary("eq", k.unsqueeze(number, 1), k.unsqueeze(number, 0)), 0, 1)
    if given is None:
        y = k.op("attention", q, key, v, seen)
    else:
        scores = k.mul(k.op("matmul", q, key, tb="transpose"),
                       np.float32((size // heads) ** -0.5))
        share = k.op("softmax", k.where(seen, scores, _HIDDEN), axes=(3,))
        step = float(f.one("dq_probs", 1 / 127))
        y = k.op("matmul", k.mul(_steps(k, share, step), np.float32(step)), v)
    y = k.reshape(k.transpose(y, 0, 1, 3, 2), 1, size, k.size(x, 2), 1)
    return [_stored(k, y, _scale(f, 1, 0, "output_ctx_scale"), x, "output 0")]


def _sums(g: Graph, inputs: Sequence[Value], f: Fields) -> tuple[Kit, Value, Value]:
    """Sums of both inputs, and what they are normalized along the channels."""
    need(inputs, [(4,)] * 2, "input and skip [1, size, tokens, 1]")
    k = Kit(g)
    a, b = (_reals(k, x, _scale(f, 0, i), f"input {i}") for i, x in enumerate(inputs))
    total = k.add(a, b)
    gamma, beta = (floats(f, n, -1, 1, 1) for n in ("gamma", "beta"))
    if a.dims[1] != len(gamma) or len(beta) != len(gamma):
        raise ops.OpError(f"gamma and beta have {len(gamma)} and {len(beta)} numbers, but axis 1 "
                          f"of {inputs[0]!r} has {a.dims[1]} elements")
    return k, total, k.op("normalization", total, k.const(gamma), k.const(beta), axes=(1,),
                          epsilon=_EPSILON)


def _normalized(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    k, _, y = _sums(g, inputs, f)
    return [_stored(k, y, _scale(f, 1, 0), inputs[0], "output 0")]


def _normalized_and_sums(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Megatron's: the sums themselves are the second output."""
    k, total, y = _sums(g, inputs, f)
    return [_stored(k, v, _scale(f, 1, i), inputs[0], f"output {i}")
            for i, v in enumerate((y, total))]


def _add_versions(name: str, versions: Sequence[str], kind: Kind) -> None:
    KINDS[name] = replace(KINDS[name],
                          other={**KINDS[name].other, **dict.fromkeys(versions, kind)})


_add_versions("CustomQKVToContextPluginDynamic", ("3", "6"), Kind(
    ("hidden_size", "num_heads", "dq_probs", "use_int8_scale_max", "use_explicit_int8",
     "input_qkv_scale", "output_ctx_scale"), (F,), _attention, inputs=(F, I, I), bytes=True))
_add_versions("CustomSkipLayerNormPluginDynamic", ("3", "7"), Kind(
    ("beta", "gamma"), (F,), _normalized, bytes=True))
_add_versions("CustomSkipLayerNormPluginDynamic", ("4", "8"), Kind(
    ("beta", "gamma"), (F, F), _normalized_and_sums, bytes=True))
