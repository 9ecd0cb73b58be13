"""Attention is found in what exporters write, its heads are not transposed, results stay."""

import io
import math
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tactician.ir.graph import Graph
from tactician.onnx_backend import load_network
from tactician.ops import emit
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import optimize
from tactician.regions.fuse import fuse
from tactician.regions.heads import attention_operands

B, S, H, C = 2, 6, 4, 32


@pytest.fixture(autouse=True)
def check_contracts(monkeypatch):
    monkeypatch.setenv("TACTICIAN_CHECK", "1")


def heads(x):
    return x.view(x.shape[0], x.shape[1], H, -1).transpose(1, 2)


def merge(y):
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


class Separate(nn.Module):
    """Three projections, as BERT has them; scores are divided and a mask is added."""

    def __init__(self, width=C):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, n) for n in (width, width, C))

    def forward(self, x, m):
        s = heads(self.q(x)) @ heads(self.k(x)).transpose(-1, -2) / math.sqrt(C / H)
        s = s + (1.0 - m[:, None, None, :]) * torch.finfo(torch.float32).min
        return merge(s.softmax(-1) @ heads(self.v(x)))


class Timm(nn.Module):
    """One projection, cut after the heads were moved; q is scaled."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)

    def forward(self, x, m):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, C // H).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * (C // H) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return y.transpose(1, 2).reshape(b, n, C)


class Gpt2(nn.Module):
    """One projection, split; a causal mask selects scores."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).bool()[None, None])

    def forward(self, x, m):
        q, k, v = (heads(y) for y in self.qkv(x).split(C, 2))
        s = q @ k.transpose(-1, -2) / (v.size(-1) ** 0.5)
        n = s.size(-1)
        s = torch.where(self.bias[:, :, :n, :n], s, torch.full([], torch.finfo(s.dtype).min))
        return merge(s.softmax(-1) @ v)


class Sdpa(Separate):
    """torch's own function: q and k are both scaled by a root of the scale."""

    def forward(self, x, m):
        mask = (m[:, None, None, :] > 0.5).expand(-1, 1, x.shape[1], -1)
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        return merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class SdpaCausal(Separate):
    def forward(self, x, m):
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        return merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Module(nn.Module):
    """nn.MultiheadAttention: batched matrices of rank 3, batch and heads run together."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(C, H)

    def forward(self, x, m):
        return self.mha(x, x, x, need_weights=False)[0]


class Grouped(nn.Module):
    """Two key heads for four query heads, repeated by expand."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, C // 2), nn.Linear(C, C // 2)

    def forward(self, x, m):
        b, n, _ = x.shape

        def repeat(y):
            y = y.view(b, n, 2, C // H).transpose(1, 2)
            return y[:, :, None].expand(b, 2, 2, n, C // H).reshape(b, H, n, C // H)

        s = heads(self.q(x)) @ repeat(self.k(x)).transpose(2, 3) * 0.3
        return merge(s.softmax(-1) @ repeat(self.v(x)))


class Windows(Timm):
    """Attention in shifted windows, as Swin has it: batch entries are windows, two masks."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(H, S, S))
        self.register_buffer("mask", torch.where(torch.rand(B, S, S) < 0.3, -100.0, 0.0))

    def forward(self, x, m):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, C // H).permute(2, 0, 3, 1, 4)
        s = (q * (C // H) ** -0.5) @ k.transpose(-2, -1) + self.bias[None]
        s = s.view(b // B, B, H, n, n) + self.mask[None, :, None]
        y = s.view(-1, H, n, n).softmax(-1) @ v
        return y.transpose(1, 2).reshape(b, n, C)


def exported(net, dynamic=False):
    torch.manual_seed(0)
    net = net.eval()
    feed = (torch.randn(B, S, C), (torch.rand(B, S) > 0.3).float())
    feed[1][:, 0] = 1
    data = io.BytesIO()
    axes = {"x": {0: "b", 1: "s"}, "m": {0: "b", 1: "s"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, feed, data, dynamo=False, opset_version=17,
                          input_names=["x", "m"], dynamic_axes=axes)
    graph = load_network(onnx.load_from_string(data.getvalue())).graph
    feeds = {"x": feed[0].numpy(), "m": feed[1].numpy()}
    with torch.no_grad():
        want = net(*feed).numpy()
    return graph, [feeds[v.name] for v in graph.inputs], want


NETS = {
    "separate": (Separate, 1), "timm": (Timm, 1), "gpt2": (Gpt2, 1), "sdpa": (Sdpa, 1),
    "causal": (SdpaCausal, 1), "module": (Module, None), "grouped": (Grouped, 1),
    "windows": (Windows, 1),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", NETS)
def test_found(name, dynamic):
    if name == "windows" and dynamic:
        pytest.skip("the number of windows is fixed")
    kind, products = NETS[name]
    graph, feeds, want = exported(kind(), dynamic)
    optimize(graph, takes=lambda node: True)
    (node,) = [n for n in graph.nodes if n.op == "attention"]
    got = run_graph(graph, feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    fusion = fuse(graph)  # of what has to be computed
    ops = [n.op for r in fusion.regions for n in r.nodes]
    if products is not None:
        assert ops.count("matmul") == products and "transpose" not in ops, ops
        assert node.attrs.q_heads == H and node.attrs.kv_heads == (2 if name == "grouped" else H)
    if products == 1:
        parts = fusion.parts
        assert [parts[v][1] for v in node.inputs[:3]] == [0, C, C * 3 // 2 if name == "grouped"
                                                          else 2 * C]
        q, *_ = attention_operands(node)
        assert q.strides[2] == sum(v.dims[2] for v in node.inputs[:3])
    if name == "gpt2" or (name == "causal" and not dynamic):
        assert node.attrs.causal and len(node.inputs) == 3


@pytest.mark.parametrize("causal", [False, True])
def test_operands_of_attention_nodes_are_straightened(causal):
    g = Graph("t")
    x = g.add_input("x", "f32", (B, S, C))
    rng = np.random.default_rng(0)
    operands = []
    for name in "qkv":
        w = g.constant(rng.standard_normal((C, C)).astype("f4"))
        y = emit(g, "matmul", [x, w], name).output
        y = emit(g, "reshape", [y, g.constant(np.array([B, S, H, -1]))], name).output
        operands.append(emit(g, "transpose", [y], name, perm=(0, 2, 1, 3)).output)
    y = emit(g, "attention", operands, "a", causal=causal).output
    y = emit(g, "transpose", [y], "y", perm=(0, 2, 1, 3)).output
    g.outputs = [emit(g, "reshape", [y, g.constant(np.array([B, S, C]))], "y").output]
    feed = rng.standard_normal((B, S, C)).astype("f4")
    (want,) = run_graph(g, [feed])
    optimize(g, takes=lambda node: True)
    assert [n.op for n in g.nodes if n.op != "strided_slice"] == ["matmul", "attention"]
    np.testing.assert_allclose(run_graph(g, [feed])[0], want, rtol=1e-4, atol=1e-5)


def test_weights_that_are_read_keep_the_parts():
    graph, _, _ = exported(Separate())
    softmax = next(n for n in graph.nodes if n.op == "softmax")
    graph.outputs.append(softmax.output)
    optimize(graph, takes=lambda node: True)
    assert "attention" not in [n.op for n in graph.nodes]


def test_refused_attention_stays_in_parts():
    graph, feeds, want = exported(Separate())
    optimize(graph, takes=lambda node: False)
    ops = [n.op for n in graph.nodes]
    assert "attention" not in ops and "softmax" in ops
    np.testing.assert_allclose(run_graph(graph, feeds)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["mask below scale", "scores of other axis", "low mask"])
def test_what_only_looks_like_attention(what):
    g = Graph("t")
    q, k, v = (g.add_input(n, "f32", (1, 2, 4, 8)) for n in "qkv")
    s = emit(g, "matmul", [q, k], "qk", tb="transpose").output
    mask = g.add_input("m", "f32", (1, 1, 4, 4))
    two = g.constant(np.array(2, "f4"))
    if what == "mask below scale":
        s = emit(g, "binary", [s, mask], "mask", fn="add").output
        s = emit(g, "binary", [s, two], "scale", fn="mul").output
    elif what == "low mask":  # a low number that is no stand-in for minus infinity
        cond = emit(g, "binary", [mask, two], "cond", fn="gt").output
        s = emit(g, "select", [cond, s, g.constant(np.array(-5, "f4"))], "where").output
    w = emit(g, "softmax", [s], "softmax", axes=(2 if "axis" in what else 3,)).output
    g.outputs = [emit(g, "matmul", [w, v], "y").output]
    optimize(g, takes=lambda node: True)
    assert "attention" not in [n.op for n in g.nodes]
