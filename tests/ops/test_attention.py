"""attention and rotary_embedding against torch and ONNX's reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ort_oracle import onnx_reference
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(7)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def operands(flat=False, heads=4, kv_heads=4, queries=5, keys=7, size=8, v_size=6, batch=2):
    if flat:
        return (normal(batch, queries, heads * size), normal(batch, keys, kv_heads * size),
                normal(batch, keys, kv_heads * v_size))
    return (normal(batch, heads, queries, size), normal(batch, kv_heads, keys, size),
            normal(batch, kv_heads, keys, v_size))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("past", [False, True])
def test_against_onnx(flat, kv_heads, mask, causal, past):
    q, k, v = operands(flat, kv_heads=kv_heads)
    keys = 10 if past else 7
    m = {"none": None, "bool": rng.random((5, keys)) > 0.3, "float": normal(2, 1, 5, keys)}[mask]
    pk, pv = (normal(2, kv_heads, 3, 8), normal(2, kv_heads, 3, 6)) if past else (None, None)
    heads = {"q_heads": 4, "kv_heads": kv_heads} if flat else {}
    onnx_heads = {"q_num_heads": 4, "kv_num_heads": kv_heads} if flat else {}
    inputs = [q, k, v, m, pk, pv]
    dynamic = {0: (0, 1) if flat else (0, 2)}
    got = run_op("attention", inputs, dynamic=dynamic, causal=causal, outputs=4, **heads)
    want = onnx_reference("Attention", inputs, 4, is_causal=int(causal), **onnx_heads)
    for a, b in zip(got, want, strict=True):
        close(a, b)


@pytest.mark.parametrize("kw,onnx", [
    ({"scale": 0.3}, {"scale": 0.3}), ({"softcap": 1.5}, {"softcap": 1.5}),
    ({"scores": 3, "outputs": 4}, {"qk_matmul_output_mode": 3}),
])  # fmt: skip
def test_options(kw, onnx):
    inputs = [*operands(), normal(4, 5, 7)]
    kw = {"outputs": 3, **kw}
    got = run_op("attention", inputs, **kw)
    want = onnx_reference("Attention", inputs, 4, **onnx)
    for a, b in zip(got, want, strict=False):
        close(a, b)


@pytest.mark.parametrize("scores", [1, 2])
def test_scores_before_softmax(scores):
    inputs = [*operands(), normal(4, 5, 7)]
    got = run_op("attention", inputs, native=False, softcap=2.0, outputs=4, scores=scores)
    want = onnx_reference("Attention", inputs, 4, softcap=2.0, qk_matmul_output_mode=scores,
                          opset=24)
    close(got[3], want[3])


def test_mask_shorter_than_keys_and_blind_rows():
    q, k, v = operands()
    mask = np.ones((5, 4), bool)
    mask[2] = False
    (got, *_) = run_op("attention", [q, k, v, mask], outputs=3)
    want = onnx_reference("Attention", [q, k, v, mask], 1, opset=24)[0]
    close(got, want)
    assert not got[:, :, 2].any()


def test_lengths_of_keys():
    inputs = [*operands(), None, None, None, np.array([3, 7])]
    for causal in (False, True):
        got = run_op("attention", inputs, dynamic={0: (0, 2), 6: (0,)}, causal=causal)
        (want,) = onnx_reference("Attention", inputs, 1, opset=24, is_causal=int(causal))
        if causal:  # query i sees key j if j <= i + length - queries
            q, k, v = inputs[:3]
            for b, n in enumerate((3, 7)):
                seen = np.arange(7) <= np.arange(5)[:, None] + n - 5
                y = F.scaled_dot_product_attention(
                    *(torch.from_numpy(x[b : b + 1]) for x in (q, k, v)),
                    attn_mask=torch.from_numpy(seen & (np.arange(7) < n)),
                ).nan_to_num(0)
                close(got[b], y[0].numpy())
        else:
            close(got, want)


def test_window():
    q, k, v = operands(queries=7)
    got = run_op("attention", [q, k, v], left=2, right=1)
    d = np.arange(7)[:, None] - np.arange(7)
    seen = torch.from_numpy((d <= 2) & (-d <= 1))
    want = F.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), attn_mask=seen)
    close(got, want.numpy())


@pytest.mark.parametrize("dt", ["float16", "float64"])
def test_types(dt):
    q, k, v = (x.astype(dt) for x in operands())
    got = run_op("attention", [q, k, v], scale=None)
    want = F.scaled_dot_product_attention(
        *(torch.from_numpy(x.astype(np.float64)) for x in (q, k, v)))
    close(got, want.numpy().astype(dt))


def test_without_softmax():
    q, k, v = operands()
    got = run_op("attention", [q, k, v], native=False, normalize=False, scale=1.0)
    close(got, q @ k.swapaxes(2, 3) @ v, slack=10)


def test_refuses():
    q, k, v = operands()
    with pytest.raises(OpError, match="multiple"):
        build("attention", [q, k[:, :3], v[:, :3]])
    with pytest.raises(OpError, match="head sizes"):
        build("attention", [q, k[..., :5], v])
    with pytest.raises(OpError, match="number of heads"):
        build("attention", [q[0], k[0], v[0]])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_rotary(interleaved, turned, flat, ids):
    x = normal(2, 5, 24) if flat else normal(2, 3, 5, 8)
    half = (turned or 8) // 2
    cos, sin = (normal(50, half), normal(50, half)) if ids else (normal(2, 5, half),) * 2
    position = rng.integers(0, 50, (2, 5)) if ids else None
    got = run_op("rotary_embedding", [x, cos, sin, position],
                 dynamic={0: (0, 1) if flat else (0, 2)}, interleaved=interleaved,
                 rotary_dim=turned, num_heads=3 if flat else 0)
    (want,) = onnx_reference("RotaryEmbedding", [x, cos, sin, position],
                             interleaved=int(interleaved), rotary_embedding_dim=turned,
                             num_heads=3 if flat else 0)
    close(got, want)
