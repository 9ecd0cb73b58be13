"""Attention, rotary embedding, KV caches, mixtures of experts, collectives, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

Q, K, V = f32(2, 2, 3, 4), f32(2, 2, 5, 4, seed=1), f32(2, 2, 5, 4, seed=2)


def attention(q, k, v, seen=None, add=None):
    s = q.astype(float) @ k.swapaxes(2, 3)
    s = s if add is None else s + add
    s = s if seen is None else np.where(seen, s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v


class TestAttention:
    def layer(self, net, **kwargs):
        return net.network.add_attention(*(net.input(x) for x in (Q, K, V)),
                                         trt.AttentionNormalizationOp.SOFTMAX, **kwargs)

    def test_plain(self):
        net = Net()
        a = self.layer(net, causal=False)
        assert isinstance(a, trt.IAttention) and not a.causal and a.mask is None
        assert (a.num_inputs, a.num_outputs, a.num_ranks) == (3, 1, 1)
        assert [tuple(a.get_input(i).shape) for i in range(3)] == [Q.shape, K.shape, V.shape]
        assert a.get_input(3) is None
        a.name, a.metadata = "mha", "block 0"
        assert (a.name, a.metadata) == ("mha", "block 0")
        first, last = net.network.get_layer(0), net.network.get_layer(1)
        assert (first.type, last.type) == (trt.LayerType.ATTENTION_INPUT,
                                           trt.LayerType.ATTENTION_OUTPUT)
        assert last.name == "mha" and last.metadata == "block 0"
        assert first.attention is a and last.attention is a
        assert type(first) is trt.IAttentionInputLayer and type(last) is trt.IAttentionOutputLayer
        a.decomposable = True
        assert a.decomposable
        close(net.run(a.get_output(0)), attention(Q, K, V))

    @pytest.mark.parametrize("kind, offset", [
        (trt.CausalMaskKind.UPPER_LEFT, 0), (trt.CausalMaskKind.LOWER_RIGHT, 2),
        (trt.CausalMaskKind.NONE, 9),
    ])
    def test_causal_kinds(self, kind, offset):
        net = Net()
        a = net.network.add_attention_v2(*(net.input(x) for x in (Q, K, V)),
                                         trt.AttentionNormalizationOp.SOFTMAX,
                                         trt.CausalMaskKind.NONE)
        a.causal_kind = kind
        assert a.causal_kind == kind and a.causal is (kind != trt.CausalMaskKind.NONE)
        seen = np.arange(5) <= np.arange(3)[:, None] + offset
        close(net.run(a.get_output(0)), attention(Q, K, V, seen))

    def test_causal_flag(self):
        net = Net()
        a = self.layer(net, causal=False)
        a.causal = True
        assert a.causal_kind == trt.CausalMaskKind.UPPER_LEFT
        seen = np.arange(5) <= np.arange(3)[:, None]
        close(net.run(a.get_output(0)), attention(Q, K, V, seen))

    @pytest.mark.parametrize("boolean", [True, False])
    def test_mask(self, boolean):
        mask = f32(2, 1, 3, 5) > -0.5 if boolean else f32(2, 1, 3, 5)
        net = Net()
        a = self.layer(net)
        a.mask = net.input(mask)
        assert a.mask is not None
        want = attention(Q, K, V, mask) if boolean else attention(Q, K, V, add=mask)
        close(net.run(a.get_output(0)), want)

    def test_lengths_of_keys(self):
        lengths = np.array([2, 5], np.int32)
        net = Net()
        a = self.layer(net)
        a.key_value_lengths = net.input(lengths)
        assert a.key_value_lengths.name == "in3"
        seen = np.arange(5) < lengths[:, None, None, None]
        close(net.run(a.get_output(0)), attention(Q, K, V, seen))

    @pytest.mark.parametrize("kind", [trt.CausalMaskKind.UPPER_LEFT,
                                      trt.CausalMaskKind.LOWER_RIGHT])
    @pytest.mark.parametrize("masked", ["", "boolean", "float"])
    def test_lengths_of_keys_and_causal_masks(self, kind, masked):
        """Aligned LOWER_RIGHT, the last query sees the last valid key."""
        k_lens = np.array([4, 5], np.int32)
        net = Net()
        a = net.network.add_attention_v2(*(net.input(x) for x in (Q, K, V)),
                                         trt.AttentionNormalizationOp.SOFTMAX, kind)
        a.key_value_lengths = net.input(k_lens)
        mask = None
        if masked:
            mask = f32(2, 1, 3, 5) > -1 if masked == "boolean" else f32(2, 1, 3, 5)
            mask[..., 0] = masked == "boolean" or 0.5
            a.mask = net.input(mask)
        offset = (k_lens - 3)[:, None, None, None] if kind == trt.CausalMaskKind.LOWER_RIGHT else 0
        seen = np.arange(5) <= np.arange(3)[:, None] + offset
        seen = seen & (np.arange(5) < k_lens[:, None, None, None])
        add = mask if masked == "float" else None
        want = attention(Q, K, V, seen & mask if masked == "boolean" else seen, add)
        close(net.run(a.get_output(0)), want)

    def test_lengths_of_queries_that_are_padded_are_ignored(self):
        net = Net()
        a = self.layer(net)
        a.query_lengths = net.input(np.array([0, 3, 4], np.int32))
        assert a.query_lengths.name == "in3"
        close(net.run(a.get_output(0)), attention(Q, K, V))

    def test_without_softmax(self):
        net = Net()
        a = self.layer(net)
        a.norm_op = trt.AttentionNormalizationOp.NONE
        assert a.norm_op == trt.AttentionNormalizationOp.NONE
        close(net.run(a.get_output(0)), Q @ K.swapaxes(2, 3) @ V)

    @pytest.mark.parametrize("groups", [2, 1])
    def test_quantized_probabilities(self, groups):
        scale = np.float32(1 / 127)
        k, v = K[:, :groups], V[:, :groups]
        net = Net()
        a = net.network.add_attention(*(net.input(x) for x in (Q, k, v)),
                                      trt.AttentionNormalizationOp.SOFTMAX, causal=False)
        a.normalization_quantize_scale = net.const(scale)
        a.normalization_quantize_to_type = trt.int8
        assert a.normalization_quantize_to_type == trt.int8
        assert a.normalization_quantize_scale is not None
        s = Q.astype(float) @ k.swapaxes(2, 3)
        p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        close(net.run(a.get_output(0)), np.rint(p / scale) * scale @ v, 1e-2)

    def test_inputs_can_be_replaced(self):
        net = Net()
        a = self.layer(net)
        assert a.set_input(1, net.input(2 * K)) and not a.set_input(7, a.get_input(0))
        close(net.run(a.get_output(0)), attention(Q, 2 * K, V))

    def test_ranks_that_are_not_supported_say_so(self):
        net = Net()
        a = self.layer(net)
        a.num_ranks = 2
        assert a.num_ranks == 1 and "one device" in net.log.errors

    def test_packed_sequences_need_their_lengths(self):
        net = Net()
        a = self.layer(net)
        a.query_form = a.key_value_form = trt.AttentionIOForm.PACKED_NHD
        assert a.query_form == a.key_value_form == trt.AttentionIOForm.PACKED_NHD
        assert "PACKED_NHD needs [tokens, heads, size]" in net.fails(a.get_output(0))
        a.set_input(0, net.input(f32(6, 2, 4)))
        assert "needs query_lengths" in net.log.errors or "needs query_lengths" in net.fails()
        a.query_form = a.key_value_form = trt.AttentionIOForm.PADDED_BHND
        a.set_input(0, net.input(Q))
        close(net.run(a.get_output(0)), attention(Q, K, V))


@pytest.mark.parametrize("interleaved, dim", [(False, 0), (True, 0), (False, 4), (True, 4)])
def test_rotary_embedding(interleaved, dim):
    x = f32(2, 3, 5, 8)
    used = dim or 8
    angles = f32(5, used // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    net = Net()
    c, s = (net.input(np.broadcast_to(a, (2, *a.shape)).copy()) for a in (cos, sin))
    layer = net.network.add_rotary_embedding(net.input(x), c, s)
    layer.interleaved, layer.rotary_embedding_dim = interleaved, dim
    assert (layer.interleaved, layer.rotary_embedding_dim) == (interleaved, dim)
    part = x[..., :used]
    a, b = (part[..., ::2], part[..., 1::2]) if interleaved else np.split(part, 2, -1)
    ra, rb = a * cos - b * sin, a * sin + b * cos
    turned = np.stack([ra, rb], -1).reshape(part.shape) if interleaved else \
        np.concatenate([ra, rb], -1)
    close(net.run(layer.get_output(0)), np.concatenate([turned, x[..., used:]], -1))


def test_rotary_embedding_with_positions():
    x, table = f32(2, 1, 3, 4), f32(6, 2)
    ids = np.array([[5, 0, 1], [2, 2, 4]], np.int64)
    net = Net()
    layer = net.network.add_rotary_embedding(
        net.input(x), net.input(np.cos(table)), net.input(np.sin(table)))
    layer.set_input(3, net.input(ids))
    cos, sin = (f(table)[ids][:, None] for f in (np.cos, np.sin))
    a, b = np.split(x, 2, -1)
    close(net.run(layer.get_output(0)), np.concatenate([a * cos - b * sin, a * sin + b * cos], -1))


class TestKVCache:
    CACHE, NEW = f32(2, 2, 6, 3), f32(2, 2, 2, 3, seed=1)

    def build(self, net):
        cache, new = net.input(self.CACHE, "cache"), net.input(self.NEW, "new")
        at = net.input(np.array([0, 3], np.int32), "at")
        return net.network.add_kv_cache_update(cache, new, at, trt.KVCacheMode.LINEAR)

    def want(self, lengths=(2, 2)):
        out = self.CACHE.copy()
        for b, (start, n) in enumerate(zip((0, 3), lengths, strict=True)):
            out[b, :, start:start + n] = self.NEW[b, :, :n]
        return out

    def test_update(self):
        net = Net()
        layer = self.build(net)
        assert layer.cache_mode == trt.KVCacheMode.LINEAR and layer.update_lengths is None
        layer.cache_mode = trt.KVCacheMode.LINEAR
        np.testing.assert_array_equal(net.run(layer.get_output(0)), self.want())

    @pytest.mark.parametrize("lengths", [(2, 1), (0, 2), (1, 0)])
    def test_lengths(self, lengths):
        net = Net()
        layer = self.build(net)
        layer.update_lengths = net.input(np.array(lengths, np.int32))
        assert layer.update_lengths is not None
        np.testing.assert_array_equal(net.run(layer.get_output(0)), self.want(lengths))

    def test_padding_may_lie_beyond_the_cache(self):
        net = Net()
        layer = self.build(net)
        layer.update_lengths = net.input(np.array([1, 1], np.int32))
        net.feeds["at"] = np.array([5, 5], np.int32)
        want = self.CACHE.copy()
        want[:, :, 5] = self.NEW[:, :, 0]
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    @pytest.mark.parametrize("lengths", [False, True])
    def test_output_and_cache_may_share_memory(self, lengths):
        net = Net()
        layer = self.build(net)
        if lengths:
            layer.update_lengths = net.input(np.array([2, 1], np.int32), "lengths")
        engine = net.engine(layer.get_output(0))
        assert engine.get_aliased_input_tensor("y0") == "cache"
        assert engine.get_aliased_input_tensor("new") == ""
        context = engine.create_execution_context()
        arrays = {k: v.copy() for k, v in net.feeds.items()}
        for name, array in arrays.items():
            assert context.set_tensor_address(name, array.ctypes.data)
        assert context.set_tensor_address("y0", arrays["cache"].ctypes.data)
        for _ in range(2):
            assert context.execute_async_v3(0)
        np.testing.assert_array_equal(arrays["cache"], self.want((2, 1) if lengths else (2, 2)))

    def test_replaced_inputs_and_unsupported_forms(self):
        net = Net()
        layer = self.build(net)
        layer.set_input(2, net.input(np.array([1, 1], np.int32)))
        want = self.CACHE.copy()
        want[:, :, 1:3] = self.NEW
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)
        layer.update_form = trt.AttentionIOForm.PACKED_NHD
        assert layer.update_form == trt.AttentionIOForm.PACKED_NHD
        assert "the form PACKED_NHD needs a cache" in net.fails()


class TestMixtureOfExperts:
    X, SCORES = f32(5, 4), abs(f32(5, 2))
    CHOSEN = np.array([[0, 2], [1, 0], [2, 2], [1, 2], [0, 1]], np.int32)
    GATE, UP, DOWN = f32(3, 4, 6), f32(3, 4, 6, seed=1), f32(3, 6, 4, seed=2)

    def build(self, net, kind=trt.MoEActType.SILU):
        layer = net.network.add_moe(net.input(self.X), net.input(self.CHOSEN),
                                    net.input(self.SCORES))
        layer.set_gated_weights(*(net.input(w) for w in (self.GATE, self.UP, self.DOWN)), kind)
        return layer

    def want(self, act, biases=None, up=lambda u: u):
        out = np.zeros_like(self.X, float)
        for t in range(5):
            for k in range(2):
                e = self.CHOSEN[t, k]
                gb, ub, db = (b[e] for b in biases) if biases else (0, 0, 0)
                h = act(self.X[t] @ self.GATE[e] + gb) * up(self.X[t] @ self.UP[e] + ub)
                out[t] += self.SCORES[t, k] * (h @ self.DOWN[e] + db)
        return out

    def silu(self, x):
        return x / (1 + np.exp(-x))

    def test_activations(self):
        net = Net()
        layer = self.build(net, trt.MoEActType.NONE)
        layer.activation_type = trt.MoEActType.SILU
        assert layer.activation_type == trt.MoEActType.SILU
        close(net.run(layer.get_output(0)), self.want(self.silu), 1e-4)
        net = Net()
        close(net.run(self.build(net, trt.MoEActType.NONE).get_output(0)),
              self.want(lambda g: g), 1e-4)

    def test_biases(self):
        biases = f32(3, 6), f32(3, 6, seed=1), f32(3, 4)
        net = Net()
        layer = self.build(net)
        layer.set_gated_biases(*(net.input(b) for b in biases))
        close(net.run(layer.get_output(0)), self.want(self.silu, biases), 1e-4)

    @pytest.mark.parametrize("at_once", [True, False])
    def test_swiglu(self, at_once):
        net = Net()
        layer = self.build(net)
        if at_once:
            layer.set_swiglu_params(1.5, 1.7, 0.5)
        else:
            layer.swiglu_param_limit, layer.swiglu_param_alpha = 1.5, 1.7
            layer.swiglu_param_beta = 0.5
        assert (layer.swiglu_param_limit, layer.swiglu_param_alpha, layer.swiglu_param_beta) == (
            1.5, 1.7, 0.5)

        def act(g):
            g = np.minimum(g, 1.5)
            return g / (1 + np.exp(-1.7 * g))

        close(net.run(layer.get_output(0)),
              self.want(act, up=lambda u: np.clip(u, -1.5, 1.5) + 0.5), 1e-4)

    def test_inputs_can_be_replaced(self):
        net = Net()
        layer = self.build(net)
        layer.set_input(2, net.input(2 * self.SCORES))
        close(net.run(layer.get_output(0)), 2 * self.want(self.silu), 1e-4)

    @pytest.mark.parametrize("what", ["quantization_to_type", "quantization_block_shape",
                                      "dyn_q_output_scale_type", "static", "dynamic"])
    def test_quantization_of_activations_says_that_it_is_not_done(self, what):
        net = Net()
        layer = self.build(net)
        assert not net.log.text()
        if what == "static":
            layer.set_quantization_static(net.const(np.float32(1)), trt.int8)
        elif what == "dynamic":
            layer.set_quantization_dynamic_dbl_q(net.const(np.float32(1)), trt.fp8)
        else:
            value = (1, 16) if what.endswith("shape") else trt.fp8
            setattr(layer, what, value)
            got = getattr(layer, what)
            assert (tuple(got) if what.endswith("shape") else got) == value
        assert "quantization of their activations is not done" in net.log.text()
        close(net.run(layer.get_output(0)), self.want(self.silu), 1e-4)


@pytest.mark.parametrize("op", [
    trt.CollectiveOperation.ALL_REDUCE, trt.CollectiveOperation.ALL_GATHER,
    trt.CollectiveOperation.BROADCAST, trt.CollectiveOperation.REDUCE,
    trt.CollectiveOperation.REDUCE_SCATTER, trt.CollectiveOperation.ALL_TO_ALL,
    trt.CollectiveOperation.GATHER, trt.CollectiveOperation.SCATTER,
])
def test_collectives_of_one_device(op):
    x = f32(3)
    net = Net()
    layer = net.network.add_dist_collective(net.input(x), op, trt.ReduceOperation.SUM, 0, [0])
    assert type(layer) is trt.IDistCollectiveLayer
    assert layer.type == trt.LayerType.DIST_COLLECTIVE
    np.testing.assert_array_equal(net.run(layer.get_output(0)), x)
    more = net.network.add_dist_collective(layer.get_output(0), op, trt.ReduceOperation.NONE, 0,
                                           [0, 1])
    assert "one device" in net.fails(more.get_output(0))
