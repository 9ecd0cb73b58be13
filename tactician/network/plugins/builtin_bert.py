"""Built-in plugins of BERT: embeddings, attention, products, normalized sums, GELU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Array, Fields, Kind
from .builtin_boxes import need
from .kit import Kit

F, I = DataType.FLOAT, DataType.INT32
_EPSILON = 1e-5
_MEGATRON = ("3", "5")  # versions of the embeddings


def floats(f: Fields, name: str, *shape: int) -> Array:
    """A field's numbers in a shape, in which one size may be -1.

    Raises:
        OpError: If they are none, or don't fit.
    """
    found = f.many(name).astype(np.float32)
    rest = int(np.prod([n for n in shape if n > 0])) or 1
    if not found.size or found.size % rest or (-1 not in shape and found.size != rest):
        raise ops.OpError(f"field {name!r} has {found.size} numbers, which are no tensor of "
                          f"{list(shape)}")
    return found.reshape(shape)


def numbers_of(k: Kit, lengths: Value, tokens: Value) -> Value:
    """Which sequence each of ``tokens`` (a vector of one integer) tokens belongs to, from the
    running sum of lengths [sequences + 1]."""
    token = k.unsqueeze(k.upto(tokens), 1)
    ends = k.unsqueeze(k.cast(k.part(lengths, 0, 1, 2**31 - 1), T.i64), 0)
    return k.reduce("sum", k.cast(k.binary("ge", token, ends), T.i64), 1)


def _attention(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Heads lie in the order head, (query, key, value), element."""
    k = Kit(g)
    size, heads = int(f.one("hidden_size")), int(f.one("num_heads"))
    if size % heads:
        raise ops.OpError(f"hidden_size {size} is not a multiple of num_heads {heads}")
    packed, masked = bool(f.one("var_seqlen", 0)), bool(f.one("has_mask", 0))
    x = inputs[0]
    rank = 4 if packed else 5
    if x.rank != rank or x.dims[rank - 3] != 3 * size:
        want = "[tokens, 3 * hidden_size, 1, 1]" if packed else "[length, N, 3 * hidden_size, 1, 1]"
        raise ops.OpError(f"its first input must be {want} with hidden_size {size}; got {x!r}")
    if len(inputs) != (4 if packed else 1 + masked):
        raise ops.OpError(f"it has {len(inputs)} inputs; has_mask is {masked:d}, var_seqlen "
                          f"{packed:d}: these need {4 if packed else 1 + masked}")
    lead = [k.size(x, a) for a in range(rank - 3)] if not packed else [k.size(x, 0), k.ints(1)]
    parts = k.reshape(x, *lead, heads, 3, size // heads)
    q, key, v = (k.transpose(k.squeeze(p, 3), 1, 2, 0, 3) for p in k.split(parts, 3))
    mask = None
    if packed:
        number = numbers_of(k, inputs[2], k.size(x, 0))
        mask = k.binary("eq", k.unsqueeze(number, 1), k.unsqueeze(number, 0))
        mask = k.unsqueeze(mask, 0, 1)
    elif masked:
        lengths = k.cast(k.reshape(inputs[1], -1, 1), T.i64)
        mask = k.binary("lt", k.unsqueeze(k.upto(k.size(x, 0)), 0), lengths)
        mask = k.unsqueeze(mask, 1, 2)
    y = k.transpose(k.op("attention", q, key, v, mask), 2, 0, 1, 3)
    return [k.reshape(y, *(lead[:1] if packed else lead), size, 1, 1)]


def _embeddings(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Sums of token, segment and position embeddings, normalized; and how many tokens of each
    sequence are valid (0 numbers where sequences are packed)."""
    k = Kit(g)
    packed = f.version not in ("1", "6")
    rank = 1 if packed else 2
    need(inputs[:3], [(rank,), (rank,), (rank,)],
         "ids, segments and running lengths of packed sequences" if packed
         else "ids, segments and mask [length, N]")
    names = ("word", "token_type", "position")
    scale, bias = (floats(f, f"bert_embeddings_layernorm_{n}", -1) for n in ("gamma", "beta"))
    size = len(scale)
    word, kind, place = (k.const(floats(f, f"bert_embeddings_{n}_embeddings", -1, size))
                         for n in names)
    ids, segments, third = inputs[:3]
    at = k.upto(k.size(ids, 0))
    if packed:
        begins = k.gather(k.cast(third, T.i64), numbers_of(k, third, k.size(ids, 0)), axis=0)
        positions = k.gather(place, k.sub(at, begins), axis=0)
        count = k.const(np.zeros(0, np.int32))
    else:
        positions = k.unsqueeze(k.gather(place, at, axis=0), 1)
        count = k.reshape(k.reduce("sum", k.cast(third, T.i32), 0), -1, 1)
    total = k.add(k.add(k.gather(word, ids, axis=0), k.gather(kind, segments, axis=0)), positions)
    y = k.op("normalization", total, k.const(scale), k.const(bias), axes=(rank,),
             epsilon=_EPSILON)
    if f.version in _MEGATRON:  # its second output is what the first layer's residual adds
        count = k.unsqueeze(total, rank + 1, rank + 2)
    return [k.unsqueeze(y, rank + 1, rank + 2), count]


def _product(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(5,)], "x [length, N, size, 1, 1]")
    k = Kit(g)
    width = int(f.one("out_dims"))
    weights = floats(f, "W", -1, width)
    x = k.squeeze(inputs[0], 3, 4)
    if x.dims[2] != len(weights):
        raise ops.OpError(f"W has {weights.size} numbers: [{len(weights)}, {width}], but "
                          f"{inputs[0]!r} has a size of {x.dims[2]}")
    return [k.unsqueeze(k.op("matmul", x, k.const(weights)), 3, 4)]


def _added(k: Kit, x: Value, f: Fields, axis: int) -> Value:
    """``x`` plus the field ``bias``, if there is one, along an axis."""
    bias = f.many("bias").astype(np.float32)
    return k.add(x, k.const(bias.reshape(-1, *(1,) * (x.rank - 1 - axis)))) if bias.size else x


def _gelu(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    (x,) = inputs
    k = Kit(g)
    return [k.op("activation", _added(k, x, f, min(2, x.rank - 1)), fn="gelu_tanh")]


def _skip_layer_norm(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Sum of both inputs (and a bias), normalized along the hidden axis."""
    need(inputs, [(3, 4, 5)] * 2, "input and skip, [length, N, size, 1, 1] or, packed, "
         "[tokens, size, 1, 1]")
    k = Kit(g)
    scale, bias = (floats(f, n, -1) for n in ("gamma", "beta"))
    rank = inputs[0].rank
    axis = 1 if rank == 4 and inputs[0].dims[1] == len(scale) else 2
    if inputs[0].dims[axis] != len(scale):
        raise ops.OpError(f"gamma has {len(scale)} numbers, but axis {axis} of {inputs[0]!r} has "
                          f"{inputs[0].dims[axis]} elements")
    x = _added(k, k.add(inputs[0], inputs[1]), f, axis)
    shape = (-1, *(1,) * (rank - 1 - axis))
    return [k.op("normalization", x, k.const(scale.reshape(shape)), k.const(bias.reshape(shape)),
                 axes=(axis,), epsilon=_EPSILON)]


_TABLES = ("bert_embeddings_layernorm_beta", "bert_embeddings_layernorm_gamma",
           "bert_embeddings_word_embeddings", "bert_embeddings_token_type_embeddings",
           "bert_embeddings_position_embeddings")
KINDS.update({
    "CustomQKVToContextPluginDynamic": Kind(
        ("type_id", "hidden_size", "num_heads", "has_mask", "dq_probs", "var_seqlen",
         "use_int8_scale_max"), (F,), _attention, inputs=(F, I, I, I),
        ignored=("type_id", "dq_probs", "use_int8_scale_max"), versions=("1", "2", "4", "5")),
    "CustomEmbLayerNormPluginDynamic": Kind(
        ("output_fp16", "full_mask", "mha_type_id", *_TABLES), (F, I), _embeddings,
        inputs=(I, I, I, I), ignored=("full_mask", "mha_type_id"), half="output_fp16",
        versions=("1", "2", "4", "6"), other=dict.fromkeys(_MEGATRON, Kind(
            ("output_fp16", *_TABLES), (F, F), _embeddings, inputs=(I, I, I, I),
            half="output_fp16"))),
    "CustomFCPluginDynamic": Kind(("out_dims", "type_id", "W"), (F,), _product,
                                  ignored=("type_id",)),
    "CustomGeluPluginDynamic": Kind(("type_id", "bias"), (F,), _gelu, ignored=("type_id",)),
    "CustomSkipLayerNormPluginDynamic": Kind(
        ("type_id", "ld", "beta", "gamma", "bias"), (F,), _skip_layer_norm,
        ignored=("type_id",), versions=("1", "2", "5", "6")),
})  # fmt: skip
