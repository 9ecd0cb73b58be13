"""A transformer exported by torch with dynamic batch and length has no size left unknown."""

import io
import warnings

import numpy as np
import onnx
import pytest
import torch

from tactician.onnx_backend import load_network
from tactician.ops.interpreter import run_graph


class Block(torch.nn.Module):
    """Embedding, causal attention, and the slices and expands that exporters write."""

    def __init__(self):
        super().__init__()
        self.token, self.position = torch.nn.Embedding(50, 32), torch.nn.Embedding(64, 32)
        self.qkv = torch.nn.Linear(32, 96)
        self.register_buffer("mask", torch.tril(torch.ones(64, 64))[None, None])

    def forward(self, ids):
        b, t = ids.shape
        x = self.token(ids) + self.position(torch.arange(t))[None]
        x = torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, (32,)))
        q, k, v = (y.view(b, t, 4, 8).transpose(1, 2) for y in self.qkv(x).split(32, 2))
        a = (q @ k.transpose(-2, -1)) / 8**0.5
        a = a.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")).softmax(-1)
        y = (a @ v).transpose(1, 2).contiguous().view(b, t, 32)
        return y.mean(1), y[:, -1].unsqueeze(1).expand(-1, t, -1), torch.cat([y, y[:, 1:]], 1)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    net = Block().eval()
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(2, 7, dtype=torch.int64),), data, dynamo=False,
                          opset_version=17, input_names=["ids"],
                          dynamic_axes={"ids": {0: "b", 1: "t"}})
    return net, load_network(onnx.load_from_string(data.getvalue())).graph


def test_all_sizes_are_known(exported):
    _, graph = exported
    shapes = [", ".join(map(str, v.dims)) for v in graph.outputs]
    assert shapes == ["b, 32", "b, t, 32", "b, 2*t + -1, 32"]
    symbols = {s for v in graph.values() for d in v.dims for s in getattr(d, "symbols", set)()}
    assert symbols == {"b", "t"}


@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (3, 20)])
def test_matches_torch(exported, shape):
    net, graph = exported
    ids = torch.randint(0, 50, shape)
    with torch.no_grad():
        expected = net(ids)
    for got, want in zip(run_graph(graph, [ids.numpy()]), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)
