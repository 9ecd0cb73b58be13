"""Small definitions of well-known networks agree with eager torch, static and one dynamic."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch_check import agree  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] = nn.ReLU):
    norm = nn.BatchNorm2d(o)
    nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), norm, act())


class Bottleneck(nn.Module):
    def __init__(self, i: int, m: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(conv(i, m, 1), conv(m, m, 3, stride),
                                  conv(m, 4 * m, 1, act=nn.Identity))
        self.shortcut = conv(i, 4 * m, 1, stride, act=nn.Identity)

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), Bottleneck(16, 8, 1),
                         Bottleneck(32, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, 10))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, gate: type[nn.Module]):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c // 4, 1), nn.SiLU(),
                                  nn.Conv2d(c // 4, c, 1), gate())

    def forward(self, x):
        return x * self.gate(x)


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int, act: type[nn.Module], gate: type[nn.Module]):
        super().__init__()
        m = 4 * i
        self.body = nn.Sequential(conv(i, m, 1, act=act), conv(m, m, 3, stride, m, act),
                                  SqueezeExcite(m, gate), conv(m, o, 1, act=nn.Identity))
        self.same = stride == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


def inverted(act: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2, act=act), Inverted(8, 8, 1, act, gate),
                         Inverted(8, 12, 2, act, gate), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(0.2), nn.Linear(12, 10))


class ConvNext(nn.Module):
    def __init__(self, c: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, c, 4, 4)
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, 1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.gamma, self.head = nn.Parameter(torch.full((c,), 0.5)), nn.Linear(c, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))


class Attention(nn.Module):
    def __init__(self, c: int, heads: int):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(c, 3 * c), nn.Linear(c, c), heads

    def forward(self, x, mask=None, causal=False):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, c: int, heads: int, tanh: bool = False):
        super().__init__()
        self.n1, self.n2, self.attention = nn.LayerNorm(c), nn.LayerNorm(c), Attention(c, heads)
        gelu = nn.GELU("tanh" if tanh else "none")
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), gelu, nn.Linear(2 * c, c))

    def forward(self, x, mask=None, causal=False):
        x = x + self.attention(self.n1(x), mask, causal)
        return x + self.mlp(self.n2(x))


class Vit(nn.Module):
    def __init__(self, c: int = 24):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, c, 4, 4), nn.Parameter(torch.randn(1, 1, c))
        self.position = nn.Parameter(torch.randn(1, 17, c))
        self.block, self.norm, self.head = Block(c, 3), nn.LayerNorm(c), nn.Linear(c, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


class Swin(nn.Module):
    """Shifted windows with a relative position bias, then patch merging."""

    def __init__(self, c: int = 16, window: int = 4, heads: int = 2):
        super().__init__()
        self.patch, self.window, self.heads = nn.Conv2d(3, c, 2, 2), window, heads
        self.attention = Attention(c, heads)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window),
                                        indexing="ij")).flatten(1)
        off = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("where", off[..., 0] * (2 * window - 1) + off[..., 1])
        self.norm, self.merge = nn.LayerNorm(4 * c), nn.Linear(4 * c, 2 * c, bias=False)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        n = self.window
        y = torch.roll(x, (-2, -2), (1, 2)).view(b, h // n, n, w // n, n, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        bias = self.bias[self.where.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        y = self.attention(y, bias.unsqueeze(0)).view(b, h // n, w // n, n, n, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.merge(self.norm(torch.cat(parts, -1)))


class Bert(nn.Module):
    def __init__(self, c: int = 24):
        super().__init__()
        self.words, self.places = nn.Embedding(50, c), nn.Embedding(32, c)
        self.kinds, self.norm = nn.Embedding(2, c), nn.LayerNorm(c, 1e-12)
        self.block, self.pool = Block(c, 3), nn.Linear(c, c)

    def forward(self, ids, mask):
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.places(at) + self.kinds(torch.zeros_like(ids)))
        hidden = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        x = self.block(x, hidden)
        return x, torch.tanh(self.pool(x[:, 0]))


class Gpt(nn.Module):
    """One step of a decoder with a key and value cache."""

    def __init__(self, c: int = 24, heads: int = 3):
        super().__init__()
        self.words, self.places, self.heads = nn.Embedding(50, c), nn.Embedding(64, c), heads
        self.norm, self.qkv, self.out = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, ids, past_k, past_v):
        b, n = ids.shape
        past = past_k.shape[2]
        x = self.words(ids) + self.places(torch.arange(past, past + n))
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2)
                   for t in self.qkv(self.norm(x)).chunk(3, -1))
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        seen = torch.arange(past + n)[None] <= torch.arange(past, past + n)[:, None]
        scores = scores.masked_fill(~seen, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return (x + self.out(y)) @ self.words.weight.T, k, v


class CausalGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(50, 24), Block(24, 3, tanh=True)

    def forward(self, ids):
        return self.block(self.words(ids), causal=True)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = conv(3, 8), nn.Sequential(nn.MaxPool2d(2), conv(8, 16))
        self.up, self.end = nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = self.down(x)
        b = self.mid(a)
        y = self.end(torch.cat([a, self.up(b)], 1))
        z = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        near = F.interpolate(b, scale_factor=2)
        return self.last(y) + z.mean(1, keepdim=True) + near.amax(1, True)


class SegFormer(nn.Module):
    """Overlapping patches, attention over a reduced sequence, Mix-FFN, MLP decoder."""

    def __init__(self, c: int = 16):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, c, 7, 4, 3), nn.LayerNorm(c)
        self.reduce = nn.Conv2d(c, c, 2, 2)
        self.attention = nn.MultiheadAttention(c, 2, batch_first=True)
        self.up, self.dw = nn.Linear(c, 2 * c), nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=2 * c)
        self.down, self.head = nn.Linear(2 * c, c), nn.Conv2d(c, 5, 1)

    def forward(self, x):
        x = self.patch(x)
        b, c, h, w = x.shape
        s = self.norm(x.flatten(2).transpose(1, 2))
        r = self.reduce(s.transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
        s = s + self.attention(s, r, r, need_weights=False)[0]
        y = self.up(s)
        y = F.gelu(self.dw(y.transpose(1, 2).view(b, -1, h, w))).flatten(2).transpose(1, 2)
        s = (s + self.down(y)).transpose(1, 2).reshape(b, c, h, w)
        return F.interpolate(self.head(s), size=(32, 32), mode="bilinear", align_corners=False)


class T5Attention(nn.Module):
    """RMS norm and bucketed relative positions."""

    def __init__(self, c: int = 24, heads: int = 3):
        super().__init__()
        self.words, self.bias = nn.Embedding(50, c), nn.Embedding(8, heads)
        self.weight, self.qkv = nn.Parameter(torch.rand(c)), nn.Linear(c, 3 * c, bias=False)
        self.heads = heads

    def forward(self, ids):
        x = self.words(ids)
        b, n, c = x.shape
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        at = torch.arange(n)
        off = at[None] - at[:, None]
        far = 2 + (torch.log(off.abs().float().clamp(min=1) / 2) / math.log(8)).long().clamp(max=1)
        bucket = (off > 0).long() * 4 + torch.where(off.abs() < 2, off.abs(), far)
        bias = self.bias(bucket).permute(2, 0, 1).unsqueeze(0)
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        p = F.softmax((q @ k.transpose(2, 3) + bias).float(), dim=-1)
        return (p @ v).transpose(1, 2).reshape(b, n, c)


class Speech(nn.Module):
    """The front of wav2vec2 and Whisper: convolutions over time, group norm, positions."""

    def __init__(self, c: int = 16):
        super().__init__()
        self.a, self.norm = nn.Conv1d(1, c, 10, 5, bias=False), nn.GroupNorm(c, c)
        self.b, self.place = nn.Conv1d(c, c, 3, 2), nn.Conv1d(c, c, 4, padding=2, groups=4)
        self.block = nn.TransformerEncoderLayer(c, 2, 32, batch_first=True, activation="gelu")

    def forward(self, x):
        x = F.gelu(self.b(F.gelu(self.norm(self.a(x[:, None])))))
        x = (x + F.gelu(self.place(x)[:, :, :-1])).transpose(1, 2)
        return self.block(x)


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options):
        super().__init__()
        self.cell = getattr(nn, kind)(5, 6, **options)

    def forward(self, x):
        return self.cell(x)


def images(n: int, size: int = 16):
    return (torch.randn(n, 3, size, size),)


def words(n: int, length: int):
    return (torch.randint(0, 50, (n, length)),)


def masked(n: int, length: int):
    return (*words(n, length), (torch.arange(length) < length - 1).long().repeat(n, 1))


def cached(n: int, past: int):
    return torch.randint(0, 50, (n, 1)), torch.randn(n, 3, past, 8), torch.randn(n, 3, past, 8)


CASES = {
    "resnet": (resnet, images(2, 32), images(3, 32)),
    "mobilenet_v2": (lambda: inverted(nn.ReLU6, nn.Sigmoid), images(2), images(3)),
    "mobilenet_v3": (lambda: inverted(nn.Hardswish, nn.Hardsigmoid), images(2), images(3)),
    "efficientnet": (lambda: inverted(nn.SiLU, nn.Sigmoid), images(2), images(3)),
    "convnext": (ConvNext, images(2), images(3)),
    "vit": (Vit, images(2), images(3)),
    "swin": (Swin, images(2), images(3)),
    "segformer": (SegFormer, images(2, 32), images(3, 32)),
    "unet": (UNet, images(2), images(3, 16)),
    "bert": (Bert, masked(2, 7), masked(3, 9)),
    "gpt2": (CausalGpt, words(2, 7), words(3, 9)),
    "gpt2_step": (Gpt, cached(2, 5), cached(2, 9)),
    "t5": (T5Attention, words(2, 7), words(3, 9)),
    "speech": (Speech, (torch.randn(2, 160),), (torch.randn(3, 160),)),
    "lstm": (lambda: Recurrent("LSTM", num_layers=2, bidirectional=True, batch_first=True),
             (torch.randn(2, 4, 5),), (torch.randn(3, 4, 5),)),
    "gru": (lambda: Recurrent("GRU", num_layers=2, batch_first=True), (torch.randn(2, 4, 5),),
            (torch.randn(3, 4, 5),)),
    "rnn": (lambda: Recurrent("RNN", bidirectional=True, nonlinearity="relu"),
            (torch.randn(4, 2, 5),), (torch.randn(4, 3, 5),)),
    "lstm_one_sequence": (lambda: Recurrent("LSTM"), (torch.randn(4, 5),), None),
}


@pytest.mark.parametrize("name", CASES)
def test_static_sizes(name: str) -> None:
    torch.manual_seed(0)
    make, args, _ = CASES[name]
    agree(make(), *args)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c[2] is not None])
def test_dynamic_sizes(name: str) -> None:
    torch.manual_seed(0)
    make, args, other = CASES[name]
    agree(make(), *args, other=other)
