"""Attention and other layers of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...ops import OpError
from ...support import logger as log
from ..core import NetworkCore
from ..enums import (
    AttentionIOForm,
    AttentionNormalizationOp,
    CausalMaskKind,
    CollectiveOperation,
    DataType,
    KVCacheMode,
    LayerType,
    MoEActType,
    ReduceOperation,
    to_ir,
)
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import Dims, as_int, dims
from .contraction import dims_attr
from .ragged import (
    before,
    both,
    counting,
    length_of,
    mask_of,
    per_batch,
    tokens,
    write_packed,
)


class IAttentionBoundaryLayer(ILayer):
    """Where tensors enter or leave an attention.

    Attributes:
        attention: The attention.
    """

    @property
    def attention(self) -> IAttention:
        """The attention it belongs to."""
        return self._state["attention"]


class IAttentionInputLayer(IAttentionBoundaryLayer):
    """Queries, keys and values; it computes nothing by itself."""

    _layer_type = LayerType.ATTENTION_INPUT
    _title = "AttentionInput"
    _default_outputs = 0

    def _emit(self, e: Emitter) -> Sequence[Value]:
        return []


_QKV = 3
_MASK, _QUERY_LENGTHS, _KV_LENGTHS, _QUANTIZE_SCALE = range(3, 7)


class IAttentionOutputLayer(IAttentionBoundaryLayer):
    """The result of an attention."""

    _layer_type = LayerType.ATTENTION_OUTPUT
    _title = "AttentionOutput"

    def _max_inputs(self) -> int:
        return _QUANTIZE_SCALE

    def _optional(self, i: int) -> Value | None:
        return None if self._in(i) is None else self._x(i)

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        q, k, v = self._x(0), self._x(1), self._x(2)
        if AttentionIOForm.PACKED_NHD in (s["query_form"], s["key_value_form"]):
            return [self._of_packed(e, q, k, v)]
        if any(x.rank != 4 for x in (q, k, v)):
            raise OpError(f"it needs [batch, heads, length, size], got {q!r}, {k!r}, {v!r}")
        causal, lens = self._causal(e, k)
        mask = self._optional(_MASK)
        if lens is not None and s["causal_kind"] is CausalMaskKind.UPPER_LEFT:
            mask = both(e, before(e, q, k), mask)
        return [self._weighted(e, q, k, v, mask, lens, causal)]

    def _of_packed(self, e: Emitter, q: Value, k: Value, v: Value) -> Value:
        s = self._state
        queries = tokens(e, q, s["query_form"], self._optional(_QUERY_LENGTHS)
                         if s["query_form"] is AttentionIOForm.PACKED_NHD else None,
                         "query_lengths")
        keys = tokens(e, k, s["key_value_form"], self._optional(_KV_LENGTHS),
                      "key_value_lengths")
        if v.rank != k.rank:
            raise OpError(f"keys and values have one form, but are {k!r}, {v!r}")
        mask = mask_of(e, queries, keys, s["causal_kind"], self._optional(_MASK))
        operands = (queries.joined(e, q), keys.joined(e, k), keys.joined(e, v))
        return queries.parted(e, self._weighted(e, *operands, mask, None, False))

    def _weighted(self, e: Emitter, q: Value, k: Value, v: Value, mask: Value | None,
                  lens: Value | None, causal: bool) -> Value:
        """The attention of operands [batch, heads, length, size]."""
        s = self._state
        normalize = s["norm_op"] is AttentionNormalizationOp.SOFTMAX
        operands = (q, k, v, mask, None, None, lens)
        if self._in(_QUANTIZE_SCALE) is None:
            return e.value("attention", *operands, scale=1.0, causal=causal, normalize=normalize)
        p = e.op("attention", *operands, scale=1.0, causal=causal, normalize=normalize, outputs=4,
                 scores=3).outputs[3]
        scale = self._x(_QUANTIZE_SCALE)
        codes = e.value("quantize", p, scale, None, to=to_ir(s["quantize_to"]), axis=0)
        p = e.value("dequantize", codes, scale, None, to=p.dtype, axis=0)
        heads, groups = q.dims[1], k.dims[1]
        if heads == groups:
            return e.value("matmul", p, v, ta="none", tb="none")
        if not D.is_static(heads, groups):
            raise OpError(f"the heads of {q!r} and {k!r} must be known where scores are quantized")
        # query heads that share keys become rows of one product
        rows = e.value("reshape", p, e.ints([0, int(groups), -1, 0]), zero_copies=True)
        y = e.value("matmul", rows, v, ta="none", tb="none")
        return e.value("reshape", y, e.ints([0, int(heads), -1, 0]), zero_copies=True)

    def _causal(self, e: Emitter, k: Value) -> tuple[bool, Value | None]:
        """Whether it is causal, and the lengths of keys that align the mask."""
        kind, lens = self._state["causal_kind"], self._optional(_KV_LENGTHS)
        if kind is CausalMaskKind.NONE:
            return False, lens
        if kind is CausalMaskKind.UPPER_LEFT:
            # with lengths the op aligns the last query and the last key
            return lens is None, lens
        if lens is None:
            shape = e.value("shape", k)
            batch = e.value("gather", shape, e.ints([0]), axis=0, batch_dims=0)
            length = e.value("gather", shape, e.ints([2]), axis=0, batch_dims=0)
            lens = e.value("expand", length, batch)
        return True, lens


class IAttention:
    """``norm_op(q kᵀ + mask) v``, with q, k, v as [batch, heads, length, size], or as the tokens
    of all sequences without padding, [tokens, heads, size] (PACKED_NHD), in any combination.

    The scores are not scaled: scale the queries first. Heads of q may be a multiple of those of k
    and v. Places in masks are those within sequences.

    Attributes:
        norm_op: SOFTMAX or NONE.
        causal: Whether each query sees only keys up to its own position.
        causal_kind: How the causal mask is aligned.
        mask: Boolean (true: seen) or added to the scores; or None.
        decomposable: Whether it may be computed by several kernels; always allowed here.
        query_form, key_value_form: Whether queries, and keys and values, are packed.
        query_lengths: Where queries are packed: running sum of the lengths [sequences + 1].
            Ignored where they are not.
        key_value_lengths: Where keys are packed: running sum of the lengths; else, or None, the
            valid keys of each sequence [batch].
        name, metadata: Name and free text of its layers.
    """

    def __init__(self, network: NetworkCore, first: IAttentionInputLayer,
                 last: IAttentionOutputLayer):
        self._net, self._first, self._last = network, first, last
        self._decomposable = False

    def _attr(key: str, convert: Any, doc: str) -> Any:  # type: ignore[misc]
        def get(self: IAttention) -> Any:
            return self._last._state[key]

        def put(self: IAttention, value: Any) -> None:
            self._last._state[key] = convert(value)
            self._last._changed()

        return property(get, put, doc=doc)

    def _tensor(index: int, doc: str) -> Any:  # type: ignore[misc]
        return property(lambda s: s._last.get_input(index),
                        lambda s, t: s._last.set_input(index, t), doc=doc)

    norm_op = _attr("norm_op", AttentionNormalizationOp, "SOFTMAX or NONE.")
    causal_kind = _attr("causal_kind", CausalMaskKind, "How the causal mask is aligned.")
    query_form = _attr("query_form", AttentionIOForm, "Layout of queries.")
    key_value_form = _attr("key_value_form", AttentionIOForm, "Layout of keys and values.")
    normalization_quantize_to_type = _attr(
        "quantize_to", DataType, "Type that normalized scores are quantized to.")
    mask = _tensor(_MASK, "The mask, or None.")
    query_lengths = _tensor(_QUERY_LENGTHS, "Running lengths of packed queries, or None.")
    key_value_lengths = _tensor(_KV_LENGTHS, "Lengths of keys, or None.")
    normalization_quantize_scale = _tensor(
        _QUANTIZE_SCALE, "Scale that normalized scores are quantized with, or None.")

    @property
    def causal(self) -> bool:
        """Whether each query sees only keys up to its own position."""
        return self.causal_kind is not CausalMaskKind.NONE

    @causal.setter
    def causal(self, on: bool) -> None:
        self.causal_kind = CausalMaskKind.UPPER_LEFT if on else CausalMaskKind.NONE

    @property
    def decomposable(self) -> bool:
        """Whether several kernels may compute it; allowed in any case."""
        return self._decomposable

    @decomposable.setter
    def decomposable(self, on: bool) -> None:
        self._decomposable = bool(on)

    @property
    def name(self) -> str:
        """Name of the attention."""
        return self._last.name

    @name.setter
    def name(self, name: str) -> None:
        self._last.name = name
        self._first.name = f"{name}_input"

    @property
    def metadata(self) -> str:
        """Free text."""
        return self._last.metadata

    @metadata.setter
    def metadata(self, text: str) -> None:
        self._last.metadata = text

    @property
    def num_ranks(self) -> int:
        """Number of devices that compute it: always 1."""
        return 1

    @num_ranks.setter
    def num_ranks(self, n: int) -> None:
        self._last.num_ranks = n

    @property
    def num_inputs(self) -> int:
        """Queries, keys, values."""
        return _QKV

    @property
    def num_outputs(self) -> int:
        return 1

    def get_input(self, index: int) -> ITensor | None:
        """Queries (0), keys (1) or values (2)."""
        return self._last.get_input(index) if 0 <= as_int(index) < _QKV else None

    def get_output(self, index: int) -> ITensor | None:
        """The result."""
        return self._last.get_output(index)

    def set_input(self, index: int, input: ITensor) -> bool:
        """Replaces queries (0), keys (1) or values (2)."""
        if not 0 <= as_int(index) < _QKV:
            self._net._error(f"attention {self.name!r} has no input {index}")
            return False
        self._last.set_input(index, input)
        self._first.set_input(index, input)
        return True


class IRotaryEmbeddingLayer(ILayer):
    """Rotates pairs of elements by their position; input 3 gives positions.

    Attributes:
        interleaved: Whether pairs are neighbours (else they lie half apart).
        rotary_embedding_dim: Leading elements that are rotated; 0: all.
    """

    _layer_type = LayerType.ROTARY_EMBEDDING
    _title = "RotaryEmbedding"
    interleaved = Attr(bool, "Whether pairs are neighbours.")
    rotary_embedding_dim = Attr(as_int, "Leading elements that are rotated.")

    def _max_inputs(self) -> int:
        return 3

    def _emit(self, e: Emitter) -> Sequence[Value]:
        ids = self._x(3) if self._in(3) is not None else None
        return [e.value("rotary_embedding", self._x(0), self._x(1), self._x(2), ids,
                        interleaved=self.interleaved, rotary_dim=self.rotary_embedding_dim)]


class IKVCacheUpdateLayer(ILayer):
    """Writes new keys or values [batch, heads, length, size] into a cache, from index
    ``write_indices[batch]`` on.

    Attributes:
        cache_mode: LINEAR.
        update_form: Layout of the update: PADDED_BHND, or PACKED_NHD: [tokens, heads, size].
        update_lengths: Where it is packed: running sum of the lengths [batch + 1]. Else valid
            entries of each update, or None (more than TensorRT takes).
    """

    _layer_type = LayerType.KV_CACHE_UPDATE
    _title = "KVCacheUpdate"
    cache_mode = Attr(KVCacheMode, "How the cache is written.")
    update_form = Attr(AttentionIOForm, "Layout of the update.")

    @property
    def update_lengths(self) -> ITensor | None:
        """Lengths of the updates; see the class."""
        return self.get_input(3)

    @update_lengths.setter
    def update_lengths(self, lengths: ITensor | None) -> None:
        self.set_input(3, lengths)

    def _max_inputs(self) -> int:
        return 3

    def _emit(self, e: Emitter) -> Sequence[Value]:
        cache, new, start = self._x(0), self._x(1), self._x(2)
        if self.update_form is AttentionIOForm.PACKED_NHD:
            return [write_packed(e, cache, new, start,
                                 None if self._in(3) is None else self._x(3))]
        if cache.rank != 4 or new.rank != 4 or start.rank != 1:
            raise OpError(f"it needs cache and update [batch, heads, length, size] and indices"
                          f" [batch], got {cache!r}, {new!r}, {start!r}")
        base = per_batch(e, start)
        if self._in(3) is not None:
            return [self._of_lengths(e, cache, new, base, per_batch(e, self._x(3)))]
        steps = e.value("reshape", counting(e, new, 2), e.ints([1, 1, -1, 1]), zero_copies=False)
        at = e.value("expand", e.value("binary", base, steps, fn="add"), e.value("shape", new))
        return [e.value("scatter_elements", cache, at, new, axis=2, reduction="none")]

    @staticmethod
    def _of_lengths(e: Emitter, cache: Value, new: Value, base: Value, lengths: Value) -> Value:
        """Each entry of the cache from the update where that covers it."""
        places = e.value("reshape", counting(e, cache, 2), e.ints([1, 1, -1, 1]),
                         zero_copies=False)
        source = e.value("binary", places, base, fn="sub")
        zero = e.const(np.zeros((), np.int64))
        covered = e.value("binary", e.value("binary", source, zero, fn="ge"),
                          e.value("binary", source, lengths, fn="lt"), fn="and")
        last = e.value("binary", length_of(e, new, 2), e.const(np.ones((), np.int64)), fn="sub")
        inside = e.value("binary", e.value("binary", source, zero, fn="max"), last, fn="min")
        at = e.value("expand", inside, e.value("shape", cache))
        moved = e.value("gather_elements", new, at, axis=2)
        return e.value("select", covered, moved, cache)


class Unquantized(Attr):
    """An attribute about quantizing activations, which is not done."""

    def __set__(self, layer: Any, value: Any) -> None:
        super().__set__(layer, value)
        layer._no_quantization()


class IMoELayer(ILayer):
    """Mixture of experts: each token's selected experts, weighted by their scores.

    Inputs: hidden states [..., H], selected experts [..., K], scores [..., K]. An expert computes
    ``(act(x gate) * (x up)) down``.

    Attributes:
        activation_type: SILU or NONE.
        swiglu_param_alpha, swiglu_param_beta, swiglu_param_limit: ``g * sigmoid(alpha * g) *
            (u + beta)``, with g at most and u within the limit.
        quantization_to_type, quantization_block_shape, dyn_q_output_scale_type: Without effect,
            which is logged; experts compute in the weights' type.
    """

    _layer_type = LayerType.MOE
    _title = "MoE"
    _incomplete = True
    activation_type = Attr(MoEActType, "Activation of the gate.")
    swiglu_param_alpha = Attr(float, "Factor inside the sigmoid.")
    swiglu_param_beta = Attr(float, "Added to the up projection.")
    swiglu_param_limit = Attr(float, "Bound of gate and up projection.")
    quantization_to_type = Unquantized(DataType, "Without effect, which is logged.")
    quantization_block_shape = Unquantized(dims_attr, "Without effect, which is logged.")
    dyn_q_output_scale_type = Unquantized(DataType, "Without effect, which is logged.")

    def _max_inputs(self) -> int:
        return 8

    def set_gated_weights(self, fc_gate_weights: ITensor, fc_up_weights: ITensor,
                          fc_down_weights: ITensor, activation_type: MoEActType) -> None:
        """Sets the experts' weights: gate and up [E, H, I], down [E, I, H]."""
        for i, t in enumerate((fc_gate_weights, fc_up_weights, fc_down_weights)):
            self.set_input(3 + i, t) if len(self._inputs) >= 3 + i else None
        self.activation_type = activation_type

    def set_gated_biases(self, fc_gate_biases: ITensor, fc_up_biases: ITensor,
                         fc_down_biases: ITensor) -> None:
        """Sets the experts' biases: gate and up [E, I], down [E, H]. Set weights first."""
        for i, t in enumerate((fc_gate_biases, fc_up_biases, fc_down_biases)):
            self.set_input(6 + i, t)

    def set_swiglu_params(self, limit: float, alpha: float, beta: float) -> None:
        """Sets the parameters of the activation."""
        self._state.update(swiglu_param_limit=float(limit), swiglu_param_alpha=float(alpha),
                           swiglu_param_beta=float(beta))
        self._changed()

    def _no_quantization(self) -> None:
        log.warning(f"layer {self.name!r}: experts compute in the type of their weights;"
                    " quantization of their activations is not done", self._net._logger)

    def set_quantization_static(self, *args: Any, **kwargs: Any) -> None:
        """Accepted with a warning: activations are not quantized."""
        self._no_quantization()

    def set_quantization_dynamic_dbl_q(self, *args: Any, **kwargs: Any) -> None:
        """Accepted with a warning: activations are not quantized."""
        self._no_quantization()

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, chosen, scores = self._x(0), self._x(1), self._x(2)
        gate, up, down = (self._x(i) for i in (3, 4, 5))
        flat = e.value("reshape", x, self._tail(e, x), zero_copies=False)
        g, u = (self._project(e, flat, w, b) for w, b in ((gate, 6), (up, 7)))
        hidden = e.value("binary", self._activate(e, g), self._shifted(e, u), fn="mul")
        y = self._project(e, hidden, down, 8)
        picks = e.value("one_hot", e.value("reshape", chosen, self._tail(e, chosen),
                                           zero_copies=False),
                        e.ints([as_int(gate.dims[0])]), e.const(np.array([0, 1], x.dtype.np)),
                        axis=-1)
        weights = e.value("reshape", scores, self._tail(e, scores), zero_copies=False)
        mixed = e.value("einsum", picks, weights, y, equation="tke,tk,eth->th")
        return [e.value("reshape", mixed, e.value("shape", x), zero_copies=False)]

    @staticmethod
    def _tail(e: Emitter, x: Value) -> Value:
        return e.ints([-1, as_int(x.dims[-1])])

    def _project(self, e: Emitter, x: Value, w: Value, bias: int) -> Value:
        y = e.value("matmul", x, w, ta="none", tb="none")
        if self._in(bias) is None:
            return y
        b = e.value("unsqueeze", self._x(bias), e.ints([1]))
        return e.value("binary", y, b, fn="add")

    def _clipped(self, e: Emitter, v: Value, both: bool) -> Value:
        limit = self.swiglu_param_limit
        if not math.isfinite(limit):
            return v
        low = -limit if both else -float(np.finfo(np.float32).max)
        return e.value("activation", v, fn="clip", alpha=low, beta=limit)

    def _activate(self, e: Emitter, g: Value) -> Value:
        g = self._clipped(e, g, both=False)
        if self.activation_type is MoEActType.NONE:
            return g
        return e.value("activation", g, fn="swish", alpha=self.swiglu_param_alpha, beta=0.0)

    def _shifted(self, e: Emitter, u: Value) -> Value:
        u = self._clipped(e, u, both=True)
        if not self.swiglu_param_beta:
            return u
        return e.value("binary", u, e.const(np.asarray(self.swiglu_param_beta, u.dtype.np)),
                       fn="add")


class IDistCollectiveLayer(ILayer):
    """An exchange between devices; one device computes here, so its result is its input."""

    _layer_type = LayerType.DIST_COLLECTIVE
    _title = "DistCollective"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        groups = self._state["groups"]
        if any(len(set(g)) > 1 for g in groups):
            raise OpError(f"groups {groups} name several devices; networks run on one device")
        return [e.value("identity", self._x())]


class TransformerAdders(NetworkCore):
    """``add_*`` methods of transformer layers."""

    def add_attention(self, query: ITensor, key: ITensor, value: ITensor,
                      norm_op: AttentionNormalizationOp = AttentionNormalizationOp.SOFTMAX,
                      causal: bool = False) -> IAttention | None:
        """Adds an attention."""
        kind = CausalMaskKind.UPPER_LEFT if causal else CausalMaskKind.NONE
        return self.add_attention_v2(query, key, value, norm_op, kind)

    def add_attention_v2(self, query: ITensor, key: ITensor, value: ITensor,
                         norm_op: AttentionNormalizationOp = AttentionNormalizationOp.SOFTMAX,
                         causal_kind: CausalMaskKind = CausalMaskKind.NONE
                         ) -> IAttention | None:
        """Adds an attention, with a choice of the causal mask's alignment."""
        first = self._add(IAttentionInputLayer, [query, key, value], attention=None)
        if first is None:
            return None
        last = self._add(
            IAttentionOutputLayer, [query, key, value], attention=None,
            norm_op=AttentionNormalizationOp(norm_op), causal_kind=CausalMaskKind(causal_kind),
            query_form=AttentionIOForm.PADDED_BHND, key_value_form=AttentionIOForm.PADDED_BHND,
            quantize_to=DataType.FP8)
        attention = IAttention(self, first, last)
        first._state["attention"] = last._state["attention"] = attention
        return attention

    def add_rotary_embedding(self, input: ITensor, cos_cache: ITensor, sin_cache: ITensor,
                             interleaved: bool = False,
                             rotary_embedding_dim: int = 0) -> IRotaryEmbeddingLayer:
        """Adds a rotary embedding."""
        return self._add(IRotaryEmbeddingLayer, [input, cos_cache, sin_cache],
                         interleaved=bool(interleaved),
                         rotary_embedding_dim=as_int(rotary_embedding_dim))

    def add_kv_cache_update(self, cache: ITensor, update: ITensor, write_indices: ITensor,
                            cache_mode: KVCacheMode = KVCacheMode.LINEAR) -> IKVCacheUpdateLayer:
        """Adds an update of a key or value cache."""
        return self._add(IKVCacheUpdateLayer, [cache, update, write_indices],
                         cache_mode=KVCacheMode(cache_mode),
                         update_form=AttentionIOForm.PADDED_BHND)

    def add_moe(self, hidden_states: ITensor, selected_experts_for_tokens: ITensor,
                scores_for_selected_experts: ITensor) -> IMoELayer:
        """Adds a mixture of experts; give weights with `IMoELayer.set_gated_weights`."""
        return self._add(
            IMoELayer, [hidden_states, selected_experts_for_tokens, scores_for_selected_experts],
            activation_type=MoEActType.NONE, swiglu_param_alpha=1.0, swiglu_param_beta=0.0,
            swiglu_param_limit=math.inf, quantization_to_type=DataType.FLOAT,
            quantization_block_shape=Dims(), dyn_q_output_scale_type=DataType.FLOAT)

    def add_dist_collective(self, input: ITensor, op: CollectiveOperation,
                            reduce_op: ReduceOperation = ReduceOperation.NONE, root: int = -1,
                            groups: Any = ()) -> IDistCollectiveLayer:
        """Adds an exchange between devices; only groups of one device are possible."""
        nested = [dims(g) for g in groups] if len(groups) and not isinstance(
            groups[0], int) else [dims(groups)]
        return self._add(IDistCollectiveLayer, [input], op=CollectiveOperation(op),
                         reduce_op=ReduceOperation(reduce_op), root=as_int(root), groups=nested)
