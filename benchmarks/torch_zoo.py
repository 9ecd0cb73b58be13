"""Well-known networks with random weights, small and at their real size.

Image networks are written out here as timm has them; language, speech and detection networks come
from ``transformers``, which has to be installed for these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Network:
    """A network and calls of it.

    Attributes:
        make: Gives the module; True: of its real size.
        call: Arguments for a batch; True: of their real size.
        transformers: Whether it needs that package.
    """

    make: Callable[[bool], nn.Module]
    call: Callable[[int, bool], tuple[Any, ...]]
    transformers: bool = False

    def module(self, real: bool = False) -> nn.Module:
        """The module in eval mode, with weights that keep activations in a usual range."""
        torch.manual_seed(0)
        module = self.make(real).eval()
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_mean, -0.2, 0.2)
                nn.init.uniform_(m.running_var, 0.5, 1.5)
            elif isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out" if m.groups == 1 else "fan_in")
        return module


NETWORKS: dict[str, Network] = {}


def network(call: Callable[[int, bool], tuple[Any, ...]], transformers: bool = False) -> Any:
    """Registers a function that makes a module."""
    def register(make: Callable[[bool], nn.Module]) -> Callable[[bool], nn.Module]:
        NETWORKS[make.__name__] = Network(make, call, transformers)
        return make

    return register


def images(small: int, real: int = 224) -> Callable[[int, bool], tuple[Any, ...]]:
    return lambda n, full: (torch.randn(n, 3, *(real if full else small,) * 2),)


def tokens(n: int, length: int, words: int) -> torch.Tensor:
    return torch.randint(3, words, (n, length))


def masks(n: int, length: int) -> torch.Tensor:
    return (torch.arange(length) < length - 2).long().repeat(n, 1)


# --- convolutions ---------------------------------------------------------------------------------


def unit(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(nn.Conv2d(i, o, k, s, (k - 1) // 2, groups=g, bias=False),
                         nn.BatchNorm2d(o), act())


class Bottleneck(nn.Module):
    def __init__(self, i: int, m: int, stride: int):
        super().__init__()
        self.a, self.b = unit(i, m, 1), unit(m, m, 3, stride)
        self.c, self.act = unit(m, 4 * m, 1, act=nn.Identity), nn.ReLU(inplace=True)
        same = stride == 1 and i == 4 * m
        self.shortcut = nn.Identity() if same else unit(i, 4 * m, 1, stride, act=nn.Identity)

    def forward(self, x):
        return self.act(self.c(self.b(self.a(x))) + self.shortcut(x))


@network(images(64))
def resnet50(real: bool) -> nn.Module:
    w = 64 if real else 8
    layers: list[nn.Module] = [unit(3, w, 7, 2), nn.MaxPool2d(3, 2, 1)]
    i = w
    for k, depth in enumerate((3, 4, 6, 3) if real else (1, 2, 1, 1)):
        for d in range(depth):
            layers.append(Bottleneck(i, w << k, 2 if k and not d else 1))
            i = 4 * (w << k)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 1000))


class Squeeze(nn.Module):
    def __init__(self, c: int, inner: int, act: Any, gate: Any):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x):
        return x * self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, expand: float, k: int, s: int, act: Any, squeeze: int = 0,
                 gate: Any = nn.Sigmoid, inner_act: Any = nn.ReLU):
        super().__init__()
        m = int(i * expand)
        parts = [unit(i, m, 1, act=act)] if expand != 1 else []
        parts.append(unit(m, m, k, s, m, act))
        if squeeze:
            parts.append(Squeeze(m, squeeze, inner_act, gate))
        self.body = nn.Sequential(*parts, unit(m, o, 1, act=nn.Identity))
        self.same = s == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


def head(i: int, m: int, act: Any) -> list[nn.Module]:
    return [unit(i, m, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(m, 1000)]


@network(images(32))
def mobilenet_v2(real: bool) -> nn.Module:
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [unit(3, 32, 3, 2, act=nn.ReLU6)]
    i = 32
    for t, c, n, s in rows if real else rows[:3]:
        for k in range(n):
            layers.append(Inverted(i, c, t, 3, s if not k else 1, nn.ReLU6))
            i = c
    return nn.Sequential(*layers, *head(i, 1280, nn.ReLU6))


@network(images(32))
def mobilenet_v3(real: bool) -> nn.Module:
    re, hs = nn.ReLU, nn.Hardswish
    rows = ((3, 1, 16, 0, re, 1), (3, 4, 24, 0, re, 2), (3, 3, 24, 0, re, 1), (5, 3, 40, 1, re, 2),
            (5, 3, 40, 1, re, 1), (5, 3, 40, 1, re, 1), (3, 6, 80, 0, hs, 2),
            (3, 2.5, 80, 0, hs, 1), (3, 2.3, 80, 0, hs, 1), (3, 2.3, 80, 0, hs, 1),
            (3, 6, 112, 1, hs, 1), (3, 6, 112, 1, hs, 1), (5, 6, 160, 1, hs, 2),
            (5, 6, 160, 1, hs, 1), (5, 6, 160, 1, hs, 1))
    layers: list[nn.Module] = [unit(3, 16, 3, 2, act=hs)]
    i = 16
    for k, t, c, se, act, s in rows if real else rows[:7:2]:
        layers.append(Inverted(i, c, t, k, s, act, int(i * t) // 4 * se, nn.Hardsigmoid))
        i = c
    return nn.Sequential(*layers, *head(i, 960, hs))


@network(images(32))
def efficientnet(real: bool) -> nn.Module:
    rows = ((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2),
            (6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1))
    layers: list[nn.Module] = [unit(3, 32, 3, 2, act=nn.SiLU)]
    i = 32
    for t, k, c, n, s in rows if real else rows[:3]:
        for d in range(n):
            layers.append(Inverted(i, c, t, k, 1 if d else s, nn.SiLU, max(i // 4, 4),
                                   inner_act=nn.SiLU))
            i = c
    return nn.Sequential(*layers, *head(i, 1280, nn.SiLU))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias,
                         self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, 1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.gamma = nn.Parameter(torch.full((c,), 0.1))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


@network(images(64))
def convnext(real: bool) -> nn.Module:
    depths, w = ((3, 3, 9, 3), 96) if real else ((1, 1, 2, 1), 8)
    layers: list[nn.Module] = []
    i = 3
    for k, depth in enumerate(depths):
        c = w << k
        layers += [nn.Conv2d(3, c, 4, 4), ChannelNorm(c, 1e-6)] if not k else \
            [ChannelNorm(i, 1e-6), nn.Conv2d(i, c, 2, 2)]
        layers += [ConvNextBlock(c) for _ in range(depth)]
        i = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), ChannelNorm(i, 1e-6), nn.Flatten(),
                         nn.Linear(i, 1000))


class UNet(nn.Module):
    def __init__(self, w: int, depth: int):
        super().__init__()
        sizes = [w << k for k in range(depth)]
        pairs = zip([3, *sizes], sizes, strict=False)
        self.down = nn.ModuleList(self.double(i, o) for i, o in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in sizes[-2::-1])
        self.join = nn.ModuleList(self.double(2 * c, c) for c in sizes[-2::-1])
        self.last = nn.Conv2d(w, 2, 1)

    @staticmethod
    def double(i: int, o: int) -> nn.Module:
        return nn.Sequential(unit(i, o), unit(o, o))

    def forward(self, x):
        held = []
        for block in self.down:
            x = block(x if not held else F.max_pool2d(x, 2))
            held.append(x)
        for up, join, skip in zip(self.up, self.join, held[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.last(x)


@network(images(32, 256))
def unet(real: bool) -> nn.Module:
    return UNet(32 if real else 4, 5 if real else 3)


class Recurrent(nn.Module):
    def __init__(self, kind: str, i: int, hidden: int):
        super().__init__()
        self.cell = getattr(nn, kind)(i, hidden, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 10)

    def forward(self, x):
        y, state = self.cell(x)
        return self.head(y[:, -1]), state


def sequences(n: int, real: bool) -> tuple[Any, ...]:
    return (torch.randn(n, 64 if real else 5, 128 if real else 6),)


@network(sequences)
def lstm(real: bool) -> nn.Module:
    return Recurrent("LSTM", *((128, 256) if real else (6, 8)))


@network(sequences)
def gru(real: bool) -> nn.Module:
    return Recurrent("GRU", *((128, 256) if real else (6, 8)))


# --- transformers ---------------------------------------------------------------------------------


class Plain(nn.Module):
    """A module of ``transformers`` that takes positional tensors and gives a tuple of some."""

    def __init__(self, inner: nn.Module, names: tuple[str, ...], results: tuple[str, ...],
                 **fixed: Any):
        super().__init__()
        self.inner, self.names, self.results, self.fixed = inner, names, results, fixed

    def forward(self, *args):
        out = self.inner(**dict(zip(self.names, args, strict=True)), **self.fixed)
        return tuple(getattr(out, r) for r in self.results)


def made(model: str, config: str, results: str = "last_hidden_state", names: str = "input_ids",
         fixed: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    package = import_module("transformers")
    inner = getattr(package, model)(getattr(package, config)(**options))
    return Plain(inner, tuple(names.split()), tuple(results.split()), **(fixed or {}))


def words(n: int, real: bool) -> tuple[Any, ...]:
    length = 128 if real else 8
    return tokens(n, length, 20000 if real else 100), masks(n, length)


def sizes(real: bool, **names: str) -> dict[str, int]:
    """The usual four sizes, under the names a configuration has for them."""
    usual = {"hidden": (32, 768), "layers": (2, 12), "heads": (4, 12), "inner": (64, 3072),
             "words": (100, 20000)}
    return {names.get(k, k): v[real] for k, v in usual.items() if names.get(k, k)}


_BERT = {"hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
         "inner": "intermediate_size", "words": "vocab_size"}
_VISION = {**_BERT, "words": ""}


@network(words, True)
def bert(real: bool) -> nn.Module:
    return made("BertModel", "BertConfig", "last_hidden_state pooler_output",
                "input_ids attention_mask", **sizes(real, **_BERT))


@network(words, True)
def roberta(real: bool) -> nn.Module:
    return made("RobertaModel", "RobertaConfig", names="input_ids attention_mask",
                **sizes(real, **_BERT))


@network(words, True)
def distilbert(real: bool) -> nn.Module:
    return made("DistilBertModel", "DistilBertConfig", names="input_ids attention_mask",
                **{**sizes(real, hidden="dim", layers="n_layers", heads="n_heads",
                           inner="hidden_dim", words="vocab_size"), "n_layers": 6 if real else 2})


@network(words, True)
def t5_encoder(real: bool) -> nn.Module:
    return made("T5EncoderModel", "T5Config", names="input_ids attention_mask",
                d_kv=64 if real else 8, **sizes(real, hidden="d_model", layers="num_layers",
                                               heads="num_heads", inner="d_ff", words="vocab_size"))


class Gpt2Step(nn.Module):
    """One step of GPT-2 with a key and value cache: tensors in, tensors out."""

    def __init__(self, real: bool):
        super().__init__()
        package = import_module("transformers")
        self.inner = package.GPT2LMHeadModel(package.GPT2Config(
            n_positions=1024 if real else 64, **sizes(
                real, hidden="n_embd", layers="n_layer", heads="n_head", inner="",
                words="vocab_size")))
        self.cache = package.DynamicCache

    def forward(self, ids, past):
        held = self.cache()
        for i, (keys, values) in enumerate(past):
            held.update(keys, values, i)
        out = self.inner(input_ids=ids, past_key_values=held, use_cache=True)
        return out.logits, tuple((x.keys, x.values) for x in out.past_key_values.layers)


def step(n: int, real: bool) -> tuple[Any, ...]:
    layers, heads, past, width = (12, 12, 127, 64) if real else (2, 4, 7, 8)
    cache = tuple((torch.randn(n, heads, past, width), torch.randn(n, heads, past, width))
                  for _ in range(layers))
    return tokens(n, 1, 100), cache


@network(step, True)
def gpt2_step(real: bool) -> nn.Module:
    return Gpt2Step(real)


@network(lambda n, real: (tokens(n, 128 if real else 8, 100),), True)
def gpt2(real: bool) -> nn.Module:
    return made("GPT2LMHeadModel", "GPT2Config", "logits", fixed={"use_cache": False},
                n_positions=1024 if real else 64,
                **sizes(real, hidden="n_embd", layers="n_layer", heads="n_head", inner="",
                        words="vocab_size"))


@network(images(32), True)
def vit(real: bool) -> nn.Module:
    return made("ViTModel", "ViTConfig", names="pixel_values", image_size=224 if real else 32,
                patch_size=16 if real else 8, **sizes(real, **_VISION))


@network(images(32), True)
def swin(real: bool) -> nn.Module:
    small = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 4}
    return made("SwinModel", "SwinConfig", names="pixel_values", **({} if real else small))


@network(images(64, 256), True)
def segformer(real: bool) -> nn.Module:
    small = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
             "num_attention_heads": [1, 2, 3, 4]}
    return made("SegformerForSemanticSegmentation", "SegformerConfig", "logits", "pixel_values",
                **({} if real else small))


@network(images(64, 320), True)
def detr(real: bool) -> nn.Module:
    package = import_module("transformers")
    small = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
    wide = {} if real else {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "num_queries": 10}
    backbone = package.ResNetConfig(out_features=["stage4"], **({} if real else small))
    return made("DetrForObjectDetection", "DetrConfig", "logits pred_boxes", "pixel_values",
                use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                backbone_config=backbone, **wide)


@network(lambda n, real: (torch.randn(n, 80 if real else 20, 3000 if real else 100),), True)
def whisper_encoder(real: bool) -> nn.Module:
    package = import_module("transformers")
    small = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
             "encoder_ffn_dim": 64, "max_source_positions": 50, "num_mel_bins": 20}
    kind = import_module("transformers.models.whisper.modeling_whisper").WhisperEncoder
    return Plain(kind(package.WhisperConfig(**({} if real else small))), ("input_features",),
                 ("last_hidden_state",))


@network(lambda n, real: (torch.randn(n, 16000 if real else 1000),), True)
def wav2vec2(real: bool) -> nn.Module:
    small = {"conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
             "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
             "num_conv_pos_embedding_groups": 4, "vocab_size": 32, **sizes(False, **_VISION)}
    return made("Wav2Vec2Model", "Wav2Vec2Config", names="input_values", mask_time_prob=0.0,
                **({} if real else small))


def clip_call(n: int, real: bool) -> tuple[Any, ...]:
    length = 77 if real else 8
    ids = tokens(n, length, 100)
    return ids, torch.randn(n, 3, *(224 if real else 32,) * 2), torch.ones_like(ids)


@network(clip_call, True)
def clip(real: bool) -> nn.Module:
    small = {
        "text_config": {"eos_token_id": 2, "bos_token_id": 1, "max_position_embeddings": 16,
                        **sizes(False, **_BERT)},
        "vision_config": {"image_size": 32, "patch_size": 8, **sizes(False, **_VISION)},
        "projection_dim": 16}
    return made("CLIPModel", "CLIPConfig", "logits_per_image text_embeds image_embeds",
                "input_ids pixel_values attention_mask", **({} if real else small))

