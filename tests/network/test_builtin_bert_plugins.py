"""Plugins of BERT against torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from plugin_kit import run

torch = pytest.importorskip("torch")

F, I = np.float32, np.int32
rng = np.random.default_rng(3)
LENGTH, BATCH, HEADS, HEAD = 7, 3, 4, 8
SIZE = HEADS * HEAD
LENGTHS = I([7, 4, 1])


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(F)


def close(got: np.ndarray, want: Any, limit: float = 1e-4) -> None:
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(got.astype(F), np.asarray(want, F), rtol=limit, atol=limit)


def attended(qkv: np.ndarray, mask: Any = None) -> np.ndarray:
    """torch's attention of heads in the plugin's order: [length, N, 3 * size] to [.., size]."""
    parts = torch.tensor(qkv).reshape(*qkv.shape[:2], HEADS, 3, HEAD).permute(3, 1, 2, 0, 4)
    y = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
    return y.permute(2, 0, 1, 3).reshape(*qkv.shape[:2], SIZE).numpy()


FIELDS = {"type_id": I(0), "hidden_size": I(SIZE), "num_heads": I(HEADS)}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("version", ["1", "4"])
def test_attention(masked: bool, version: str) -> None:
    x = normal(LENGTH, BATCH, 3 * SIZE)
    feeds, mask = [x[..., None, None]], None
    if masked:
        feeds.append(LENGTHS)
        mask = torch.arange(LENGTH)[None] < torch.tensor(LENGTHS)[:, None]
        mask = mask[:, None, None]
    [y] = run("CustomQKVToContextPluginDynamic", FIELDS | {"has_mask": I(masked)}, *feeds,
              version=version, native=True)
    close(y, attended(x, mask)[..., None, None])


def test_attention_of_packed_sequences() -> None:
    ends = np.cumsum([0, *LENGTHS]).astype(I)
    x = normal(int(ends[-1]), 1, 3 * SIZE)
    [y] = run("CustomQKVToContextPluginDynamic", FIELDS | {"has_mask": I(1), "var_seqlen": I(1)},
              x[:, 0, :, None, None], I([0]), ends, np.zeros(7, I), version="2", native=True)
    want = np.concatenate([attended(x[a:b]) for a, b in pairwise(ends)])
    close(y, want[:, 0, :, None, None])


def table() -> tuple[dict[str, np.ndarray], Any]:
    words, kinds, places = normal(20, SIZE), normal(2, SIZE), normal(16, SIZE)
    gamma, beta = normal(SIZE), normal(SIZE)
    fields = {"bert_embeddings_layernorm_gamma": gamma, "bert_embeddings_layernorm_beta": beta,
              "bert_embeddings_word_embeddings": words.ravel(),
              "bert_embeddings_token_type_embeddings": kinds.ravel(),
              "bert_embeddings_position_embeddings": places.ravel()}

    def want(ids: np.ndarray, segments: np.ndarray, at: np.ndarray) -> np.ndarray:
        total = torch.tensor(words[ids] + kinds[segments] + places[at])
        norm = torch.nn.functional.layer_norm(
            total, (SIZE,), torch.tensor(gamma), torch.tensor(beta), 1e-5)
        return norm.numpy()

    return fields, want


@pytest.mark.parametrize("half", [0, 1])
def test_embeddings(half: int) -> None:
    fields, want = table()
    shape = LENGTH, BATCH
    ids, segments = rng.integers(0, 20, shape).astype(I), rng.integers(0, 2, shape).astype(I)
    mask = (np.arange(LENGTH)[:, None] < LENGTHS).astype(I)
    y, count = run("CustomEmbLayerNormPluginDynamic", fields | {"output_fp16": I(half)}, ids,
                   segments, mask, native=True)
    assert y.dtype == (np.float16 if half else F)
    at = np.arange(LENGTH)[:, None] + np.zeros(shape, int)
    close(y, want(ids, segments, at)[..., None, None], 5e-3 if half else 1e-4)
    assert count[:, 0].tolist() == LENGTHS.tolist()


def test_embeddings_of_packed_sequences() -> None:
    fields, want = table()
    ends = np.cumsum([0, *LENGTHS]).astype(I)
    ids = rng.integers(0, 20, ends[-1]).astype(I)
    segments = rng.integers(0, 2, ends[-1]).astype(I)
    y, _ = run("CustomEmbLayerNormPluginDynamic", fields | {"output_fp16": I(0)}, ids, segments,
               ends, np.zeros(7, I), version="2", native=True)
    at = np.concatenate([np.arange(n) for n in LENGTHS])
    close(y, want(ids, segments, at)[..., None, None])


def test_products() -> None:
    x, w = normal(LENGTH, BATCH, SIZE, 1, 1), normal(SIZE, 5)
    [y] = run("CustomFCPluginDynamic", {"out_dims": I(5), "type_id": I(0), "W": w.ravel()}, x,
              native=True)
    close(y, (x[..., 0, 0] @ w)[..., None, None])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [F, np.float16])
def test_normalized_sums(packed: bool, kind: Any) -> None:
    shape = (LENGTH, SIZE, 1, 1) if packed else (LENGTH, BATCH, SIZE, 1, 1)
    x, skip = (normal(*shape).astype(kind) for _ in range(2))
    gamma, beta, bias = normal(SIZE), normal(SIZE), normal(SIZE)
    [y] = run("CustomSkipLayerNormPluginDynamic", {
        "type_id": I(0), "ld": I(SIZE), "gamma": gamma, "beta": beta, "bias": bias}, x, skip,
        version="2" if packed else "1", native=True)
    assert y.dtype == kind
    total = torch.tensor((x.astype(F) + skip.astype(F))[..., 0, 0] + bias)
    want = torch.nn.functional.layer_norm(
        total, (SIZE,), torch.tensor(gamma), torch.tensor(beta), 1e-5)
    close(y, want.numpy()[..., None, None], 1e-4 if kind is F else 1e-2)


def test_embeddings_of_megatron() -> None:
    fields, want = table()
    ends = np.cumsum([0, *LENGTHS]).astype(I)
    ids = rng.integers(0, 20, ends[-1]).astype(I)
    segments = rng.integers(0, 2, ends[-1]).astype(I)
    at = np.concatenate([np.arange(n) for n in LENGTHS])
    names = ("word", "token_type", "position")
    total = sum(fields[f"bert_embeddings_{n}_embeddings"].reshape(-1, SIZE)[i]
                for n, i in zip(names, (ids, segments, at), strict=True))
    for version, half in (("3", 0), ("5", 1)):
        y, residual = run("CustomEmbLayerNormPluginDynamic", fields | {"output_fp16": I(half)}, ids,
                          segments, ends, np.zeros(7, I), version=version, native=True)
        assert y.dtype == residual.dtype == (np.float16 if half else F)
        close(y, want(ids, segments, at)[..., None, None], 5e-3 if half else 1e-4)
        close(residual, total[..., None, None], 5e-3 if half else 1e-4)


def rounded(x: np.ndarray, step: float) -> np.ndarray:
    """Numbers of 8 bits."""
    return np.clip(np.rint(x / F(step)), -128, 127).astype(np.int8)


def stepped(x: np.ndarray, step: float) -> np.ndarray:
    return rounded(x, step).astype(F) * F(step)


def packed_attention(qkv: np.ndarray, ends: np.ndarray, step: float | None) -> np.ndarray:
    """Attention of packed sequences, with shares of 8 bits where there is a step:
    [3 * size, tokens] to [size, tokens]."""
    parts = qkv.astype(np.float64).reshape(3, HEADS, HEAD, -1)
    out = np.zeros(parts.shape[1:])
    for a, b in pairwise(ends):
        q, k, v = parts[..., a:b]
        e = np.einsum("hds,hdt->hst", q, k) / np.sqrt(HEAD)
        e = np.exp(e - e.max(-1, keepdims=True))
        share = e / e.sum(-1, keepdims=True)
        if step is not None:
            share = np.rint(share / step).clip(-128, 127) * step
        out[..., a:b] = np.einsum("hst,hdt->hds", share, v)
    return out.reshape(SIZE, -1)


ENDS = np.cumsum([0, *LENGTHS]).astype(I)
PLACE = (1, -1, int(ENDS[-1]), 1)


@pytest.mark.parametrize("version", ["3", "6"])
def test_attention_of_8_bits(version: str) -> None:
    qkv, step = normal(3 * SIZE, int(ENDS[-1])), 1 / 100
    fields = {"hidden_size": I(SIZE), "num_heads": I(HEADS), "dq_probs": F(step)}
    feeds = [ENDS, np.zeros(7, I)]
    want = packed_attention(stepped(qkv, 0.03), ENDS, step).reshape(PLACE)
    explicit = fields | {"use_explicit_int8": I(1), "input_qkv_scale": F(0.03),
                         "output_ctx_scale": F(0.02)}
    # floats whose ranges say the steps, floats and bytes whose steps are fields
    for given, x, ranges in ((fields, qkv, {"x0": 0.03 * 127, "y0": 0.02 * 127}),
                             (explicit, qkv, {}), (explicit, rounded(qkv, 0.03), {})):
        [y] = run("CustomQKVToContextPluginDynamic", given, x.reshape(PLACE), *feeds,
                  version=version, native=True, ranges=ranges)
        assert y.dtype == x.dtype
        steps = y.astype(F) / (1 if y.dtype == np.int8 else F(0.02))
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        apart = np.abs(steps - rounded(want, 0.02))
        assert apart.max() < 1.01 and (apart > 0.5).mean() < 0.02  # a tie may round either way
    # without ranges nothing is rounded
    [y] = run("CustomQKVToContextPluginDynamic", fields, qkv.reshape(PLACE), *feeds,
              version=version, native=True)
    close(y, packed_attention(qkv, ENDS, None).reshape(PLACE))


@pytest.mark.parametrize("version", ["3", "4", "7", "8"])
@pytest.mark.parametrize("kind", [F, np.int8])
def test_normalized_sums_of_8_bits(version: str, kind: Any) -> None:
    x, skip = (normal(SIZE, 12) for _ in range(2))
    gamma, beta = normal(SIZE), normal(SIZE)
    steps = {"x0": 0.03, "x1": 0.02, "y0": 0.04, "y1": 0.05}
    total = (stepped(x, 0.03) + stepped(skip, 0.02)).T
    norm = torch.nn.functional.layer_norm(
        torch.tensor(total), (SIZE,), torch.tensor(gamma), torch.tensor(beta), 1e-7)
    wants = [norm.numpy().T, total.T][:1 + (version in "48")]
    feeds = [v if kind is F else rounded(v, steps[n]) for n, v in (("x0", x), ("x1", skip))]
    got = run("CustomSkipLayerNormPluginDynamic", {"gamma": gamma, "beta": beta},
              *(v.reshape(1, SIZE, 12, 1) for v in feeds), version=version, native=True,
              ranges={n: s * 127 for n, s in steps.items()})
    assert len(got) == len(wants)
    for i, (y, want) in enumerate(zip(got, wants, strict=True)):
        assert y.dtype == kind and y.shape == (1, SIZE, 12, 1)
        have = y[0, :, :, 0].astype(F) / (1 if kind is np.int8 else F(steps[f"y{i}"]))
        apart = np.abs(have - rounded(want, steps[f"y{i}"]))
        assert apart.max() < 1.01 and (apart > 0.5).mean() < 0.02
    assert not np.array_equal(got[0], got[-1]) or len(got) == 1


def test_bytes_without_a_scale_are_refused() -> None:
    x = rounded(normal(1, SIZE, 12, 1), 0.03)
    fields = {"gamma": normal(SIZE), "beta": normal(SIZE)}
    with pytest.raises(Exception, match="INT8 input 1 needs a scale"):
        run("CustomSkipLayerNormPluginDynamic", fields, x, x, version="3",
            ranges={"x0": 3.0, "y0": 4.0})
