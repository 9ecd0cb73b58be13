"""normalization and lrn against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(2)
X = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)


def t(x):
    return torch.from_numpy(x)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dt", ["float32", "float16", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_layer_norm(n, dt):
    x = X.astype(dt)
    scale, bias = normal(*x.shape[-n:]).astype(dt), normal(*x.shape[-n:]).astype(dt)
    got = run_op("normalization", [x, scale, bias], dynamic={0: (0, 1, 2), 1: (), 2: ()},
                 axes=tuple(range(4 - n, 4)), epsilon=1e-3)
    close(got, F.layer_norm(t(x), x.shape[-n:], t(scale), t(bias), 1e-3).numpy())


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3)])
def test_group_norm(groups, axes):
    scale, bias = normal(1, 6, 1, 1), normal(1, 6, 1, 1)
    got = run_op("normalization", [X, scale, bias], dynamic={0: (0, 2, 3)}, axes=axes,
                 groups=groups)
    close(got, F.group_norm(t(X), groups, t(scale.ravel()), t(bias.ravel())).numpy())


def test_group_norm_scaled_by_group():
    scale, bias = normal(1, 3, 1, 1), normal(1, 3, 1, 1)
    got = run_op("normalization", [X, scale, bias], axes=(2, 3), groups=3)
    each = F.group_norm(t(X), 3, t(scale.ravel().repeat(2)), t(bias.ravel().repeat(2)))
    close(got, each.numpy())


def test_instance_norm_and_absent_operands():
    got = run_op("normalization", [X], dynamic={0: (0, 1, 2, 3)}, axes=(2, 3))
    close(got, F.instance_norm(t(X)).numpy())
    bias = normal(6, 1, 1)
    close(run_op("normalization", [X, None, bias], axes=(2, 3)),
          F.instance_norm(t(X)).numpy() + bias)


@pytest.mark.parametrize("dt", ["float32", "float16"])
def test_rms_norm(dt):
    x, scale = X.astype(dt), normal(4).astype(dt)
    got = run_op("normalization", [x, scale], dynamic={0: (0,)}, axes=(3,), rms=True, epsilon=1e-6)
    close(got, F.rms_norm(t(x), (4,), t(scale), 1e-6).numpy())


def test_variance_far_from_zero():
    """mean(x²) - mean(x)² would lose everything here."""
    x = (10000 + rng.standard_normal((3, 256)) * 0.1).astype(np.float32)
    want = F.layer_norm(t(x).double(), (256,), eps=1e-12).float().numpy()
    close(run_op("normalization", [x], axes=(1,), epsilon=1e-12), want, slack=500)


@pytest.mark.parametrize("inputs,attrs,text", [
    ([X], {}, "axes"),
    ([X], {"axes": (2, 3), "groups": 4}, "6 channels"),
    ([X, normal(6)], {"axes": (2, 3)}, "reshape"),
])  # fmt: skip
def test_normalization_refuses(inputs, attrs, text):
    with pytest.raises(OpError, match=text):
        build("normalization", inputs, **attrs)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_lrn(size):
    got = run_op("lrn", [X], dynamic={0: (0, 1, 2)}, size=size, alpha=0.3, beta=0.6, k=1.5)
    want = X.astype(np.float64)
    total = np.zeros_like(want)
    for c in range(6):
        window = want[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1]
        total[:, c] = (window**2).sum(axis=1)
    close(got, (want / (1.5 + 0.3 / size * total) ** 0.6).astype(np.float32))
    if size % 2:
        close(got, F.local_response_norm(t(X), size, 0.3, 0.6, 1.5).numpy())
