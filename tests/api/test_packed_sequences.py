"""Attention, caches and mixtures of experts on packed sequences, against one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32
from packed import GROUPS, HEADS, K_LENS, Q_LENS, SIZE, ends, sequences, wanted

import tactician as trt

PACKED, PADDED = trt.AttentionIOForm.PACKED_NHD, trt.AttentionIOForm.PADDED_BHND
KINDS = {
    trt.CausalMaskKind.NONE: None,
    trt.CausalMaskKind.UPPER_LEFT: lambda q, k: 0,
    trt.CausalMaskKind.LOWER_RIGHT: lambda q, k: k - q,
}
LONGEST = 6


def tensor(lengths, heads, packed, seed, tail=0):
    """Tokens of sequences; packed ones may have a tail that belongs to none."""
    shape = (sum(lengths) + tail, heads, SIZE) if packed else (len(lengths), heads, LONGEST, SIZE)
    return f32(*shape, seed=seed)


def build(net, forms, q, k, v, kind=trt.CausalMaskKind.NONE, free=False, lengths=(Q_LENS, K_LENS)):
    def given(x, name):
        return net.input(x, name, (-1, *x.shape[1:]) if free else None)

    a = net.network.add_attention_v2(given(q, "q"), given(k, "k"), given(v, "v"),
                                     trt.AttentionNormalizationOp.SOFTMAX, kind)
    a.query_form, a.key_value_form = (PACKED if p else PADDED for p in forms)
    if forms[0]:
        a.query_lengths = given(ends(lengths[0]), "q_ends")
    k_lens = ends(lengths[1]) if forms[1] else np.array(lengths[1], np.int32)
    a.key_value_lengths = given(k_lens, "k_ends")
    return a


def check(y, want, q_lens, packed, tol=2e-5):
    for got, w in zip(sequences(y, q_lens, packed), want, strict=True):
        close(got, w, tol)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forms", [(True, True), (True, False), (False, True)])
def test_attention(forms, kind, free):
    q_lens = Q_LENS if forms[0] else (LONGEST,) * 3
    q = tensor(q_lens, HEADS, forms[0], 0)
    k, v = (tensor(K_LENS, GROUPS, forms[1], s) for s in (1, 2))
    net = Net()
    y = net.run(build(net, forms, q, k, v, kind, free).get_output(0))
    assert y.shape == q.shape
    check(y, wanted(q, k, v, q_lens, K_LENS, forms, KINDS[kind]), q_lens, forms[0])


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (3, 1, 4, 5), (1, HEADS, 4, 5), (3, HEADS, 1, 5),
                                   (3, HEADS, 4, 1)])
def test_masks_are_by_places_within_sequences(shape, boolean):
    q = tensor(Q_LENS, HEADS, True, 0)
    k, v = (tensor(K_LENS, GROUPS, True, s) for s in (1, 2))
    mask = f32(*shape)
    mask = mask > -0.7 if boolean else mask
    if boolean:
        mask[..., 0] = True
    net = Net()
    a = build(net, (True, True), q, k, v)
    a.mask = net.input(mask)
    full = np.broadcast_to(mask, (*shape[:2], 4, 5))
    check(net.run(a.get_output(0)),
          wanted(q, k, v, Q_LENS, K_LENS, (True, True), mask=full), Q_LENS, True)


def test_tokens_behind_the_last_sequence_disturb_nothing():
    q = tensor(Q_LENS, HEADS, True, 0, tail=2)
    k, v = (tensor(K_LENS, GROUPS, True, s, tail=3) for s in (1, 2))
    net = Net()
    y = net.run(build(net, (True, True), q, k, v).get_output(0))
    assert y.shape == q.shape and np.isfinite(y).all()
    check(y, wanted(q, k, v, Q_LENS, K_LENS, (True, True)), Q_LENS, True)


def test_one_engine_takes_other_sequences():
    q = tensor((9,), HEADS, True, 0)
    k, v = (tensor((11,), GROUPS, True, s) for s in (1, 2))
    net = Net()
    a = build(net, (True, True), q, k, v, trt.CausalMaskKind.LOWER_RIGHT, True, ((9,), (11,)))
    for name in ("q_ends", "k_ends"):
        net.profile.set_shape(name, (2,), (2,), (5,))
    run = trt.Engine(net.engine(a.get_output(0)))
    for q_lens, k_lens in (((9,), (11,)), ((4, 5), (5, 6)), ((1, 0, 8), (2, 1, 8)),
                           ((2, 3, 3, 1), (2, 3, 4, 2))):
        y = run({"q": q, "k": k, "v": v, "q_ends": ends(q_lens), "k_ends": ends(k_lens)})["y0"]
        check(y, wanted(q, k, v, q_lens, k_lens, (True, True), lambda a, b: b - a), q_lens, True)


def test_quantized_probabilities():
    scale = np.float32(1 / 127)
    q = tensor(Q_LENS, HEADS, True, 0)
    k, v = (tensor(K_LENS, GROUPS, True, s) for s in (1, 2))
    net = Net()
    a = build(net, (True, True), q, k, v)
    a.normalization_quantize_scale, a.normalization_quantize_to_type = net.const(scale), trt.int8
    want = []
    for x, y, z in zip(sequences(q, Q_LENS, True), sequences(k, K_LENS, True),
                       sequences(v, K_LENS, True), strict=True):
        s = x.astype(float) @ np.repeat(y, 2, 0).swapaxes(1, 2)
        p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        want.append(np.rint(p / scale) * scale @ np.repeat(z, 2, 0))
    check(net.run(a.get_output(0)), want, Q_LENS, True, 1e-2)


@pytest.mark.parametrize("free", [False, True])
def test_caches_take_packed_updates(free):
    cache, new = f32(3, GROUPS, 7, SIZE), f32(sum(Q_LENS), GROUPS, SIZE, seed=1)
    start = np.array([0, 6, 2], np.int32)
    net = Net()
    layer = net.network.add_kv_cache_update(
        net.input(cache, "cache", (-1, *cache.shape[1:]) if free else None),
        net.input(new, "new", (-1, *new.shape[1:]) if free else None),
        net.input(start, "at", (-1,) if free else None), trt.KVCacheMode.LINEAR)
    layer.update_form = PACKED
    layer.update_lengths = net.input(ends(Q_LENS), "ends", (-1,) if free else None)
    assert layer.update_form == PACKED and layer.update_lengths.name == "ends"
    want = cache.copy()
    for i, x in enumerate(sequences(new, Q_LENS, True)):
        want[i, :, start[i]:start[i] + x.shape[1]] = x
    np.testing.assert_array_equal(net.run(layer.get_output(0)), want)


@pytest.mark.parametrize("change, message", [
    ("no lengths", "needs key_value_lengths, the running sum"),
    ("rank of values", "keys and values have one form"),
    ("mask", "a mask of packed sequences must be"),
])
def test_errors_say_what_is_expected(change, message):
    q = tensor(Q_LENS, HEADS, True, 0)
    k, v = (tensor(K_LENS, GROUPS, True, s) for s in (1, 2))
    net = Net()
    a = build(net, (True, True), q, k, v)
    a.name = "mha"
    if change == "no lengths":
        a.key_value_lengths = None
    elif change == "mask":
        a.mask = net.input(f32(4, 5))
    else:
        a.set_input(2, net.input(v[None]))
    text = net.fails(a.get_output(0))
    assert message in text and "mha" in text


def test_mixture_of_experts_of_packed_tokens():
    """Hidden states without padding are [tokens, size]; one without a token's batch changes
    nothing for the others."""
    x, scores = f32(8, 4), abs(f32(8, 2))
    chosen = np.random.default_rng(0).integers(0, 3, (8, 2)).astype(np.int32)
    gate, up, down = f32(3, 4, 6), f32(3, 4, 6, seed=1), f32(3, 6, 4, seed=2)
    net = Net()
    layer = net.network.add_moe(*(net.input(a, n, (-1, a.shape[1]))
                                  for a, n in ((x, "x"), (chosen, "chosen"), (scores, "scores"))))
    layer.set_gated_weights(*(net.const(w) for w in (gate, up, down)), trt.MoEActType.SILU)
    want = np.zeros((8, 4))
    for t in range(8):
        for e, s in zip(chosen[t], scores[t], strict=True):
            g = x[t] @ gate[e]
            want[t] += s * ((g / (1 + np.exp(-g)) * (x[t] @ up[e])) @ down[e])
    close(net.run(layer.get_output(0)), want, 1e-4)
