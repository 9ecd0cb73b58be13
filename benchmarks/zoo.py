"""Well-known networks as ONNX models with random weights, for measuring speed.

Each follows its paper's table; nothing is downloaded. ``python benchmarks/zoo.py NAME OUT.onnx``
writes one; `MODELS` lists them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Writes an ONNX graph; methods take and return value names."""

    def __init__(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT):
        self.name = name
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.count = 0
        self.rng = np.random.default_rng(0)
        self.inputs = [helper.make_tensor_value_info("x", dtype, list(shape))]

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.count += 1
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=f"{kind}_{self.count}", **attrs)
        )
        return names[0] if outputs == 1 else names

    def const(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, fan: int | None = None) -> str:
        fan = fan if fan is not None else int(np.prod(shape[1:]))
        w = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan))
        return self.const(w)

    def vector(self, n: int, value: float = 0.0, noise: float = 0.05) -> str:
        return self.const((value + noise * self.rng.standard_normal(n)).astype(np.float32))

    def conv(
        self, x: str, c: int, k: int, size: int, stride: int = 1, groups: int = 1,
        pad: int | None = None, act: str | None = None, bias: bool = True,
    ) -> str:
        pad = size // 2 if pad is None else pad
        inputs = [x, self.weight(k, c // groups, size, size)]
        if bias:
            inputs.append(self.vector(k))
        y = self.op("Conv", *inputs, kernel_shape=[size, size], strides=[stride, stride],
                    pads=[pad] * 4, group=groups)
        return self.act(y, act)

    def conv_bn(
        self, x: str, c: int, k: int, size: int, act: str | None = "Relu", **kw: Any
    ) -> str:
        y = self.conv(x, c, k, size, bias=False, **kw)
        y = self.op("BatchNormalization", y, self.vector(k, 1.0), self.vector(k),
                    self.vector(k), self.vector(k, 1.0, 0.0))
        return self.act(y, act)

    def act(self, x: str, act: str | None) -> str:
        if act is None:
            return x
        if act == "Relu6":
            return self.op("Clip", x, self.const(np.float32(0)), self.const(np.float32(6)))
        if act == "Swish":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return str(self.op(act, x))

    def linear(self, x: str, c: int, k: int) -> str:
        return str(self.op("Add", self.op("MatMul", x, self.weight(c, k, fan=c)), self.vector(k)))

    def pool(self, x: str, size: int, stride: int, pad: int = 0, kind: str = "MaxPool") -> str:
        return str(self.op(kind, x, kernel_shape=[size, size], strides=[stride, stride],
                           pads=[pad] * 4))

    def head(self, x: str, c: int, classes: int = 1000) -> str:
        x = self.op("Flatten", self.op("GlobalAveragePool", x))
        w = self.weight(classes, c, fan=c)
        return str(self.op("Gemm", x, w, self.vector(classes), transB=1))

    def norm(self, x: str, c: int) -> str:
        return str(self.op("LayerNormalization", x, self.vector(c, 1.0), self.vector(c), axis=-1))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def model(self, *outputs: str) -> onnx.ModelProto:
        outs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, outs, self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )


def resnet50(batch: int = 1) -> onnx.ModelProto:
    """He et al., 2015, with the stride in the 3x3 convolution."""
    n = Net("resnet50", (batch, 3, 224, 224))
    x = n.pool(n.conv_bn("x", 3, 64, 7, stride=2), 3, 2, 1)
    c = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            s = stride if i == 0 else 1
            y = n.conv_bn(x, c, width, 1)
            y = n.conv_bn(y, width, width, 3, stride=s)
            y = n.conv_bn(y, width, 4 * width, 1, act=None)
            if i == 0:
                x = n.conv_bn(x, c, 4 * width, 1, stride=s, act=None)
            x = n.op("Relu", n.op("Add", y, x))
            c = 4 * width
    return n.model(n.head(x, c))


def vgg16(batch: int = 1) -> onnx.ModelProto:
    """Simonyan & Zisserman, 2014, configuration D."""
    n = Net("vgg16", (batch, 3, 224, 224))
    x, c = "x", 3
    for k, reps in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(reps):
            x, c = n.conv(x, c, k, 3, act="Relu"), k
        x = n.pool(x, 2, 2)
    x = n.op("Flatten", x)
    for c, k, act in ((25088, 4096, "Relu"), (4096, 4096, "Relu"), (4096, 1000, None)):
        x = n.act(n.op("Gemm", x, n.weight(k, c, fan=c), n.vector(k), transB=1), act)
    return n.model(x)


def mobilenet_v2(batch: int = 1) -> onnx.ModelProto:
    """Sandler et al., 2018."""
    n = Net("mobilenet_v2", (batch, 3, 224, 224))
    x, c = n.conv_bn("x", 3, 32, 3, stride=2, act="Relu6"), 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
             (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, k, reps, stride in table:
        for i in range(reps):
            h, s = c * expand, stride if i == 0 else 1
            y = n.conv_bn(x, c, h, 1, act="Relu6") if expand > 1 else x
            y = n.conv_bn(y, h, h, 3, stride=s, groups=h, act="Relu6")
            y = n.conv_bn(y, h, k, 1, act=None)
            x, c = (n.op("Add", x, y) if s == 1 and c == k else y), k
    return n.model(n.head(n.conv_bn(x, c, 1280, 1, act="Relu6"), 1280))


def efficientnet_b0(batch: int = 1) -> onnx.ModelProto:
    """Tan & Le, 2019."""
    n = Net("efficientnet_b0", (batch, 3, 224, 224))
    x, c = n.conv_bn("x", 3, 32, 3, stride=2, act="Swish"), 32
    table = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
             (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
    for expand, k, reps, stride, size in table:
        for i in range(reps):
            h, s = c * expand, stride if i == 0 else 1
            y = n.conv_bn(x, c, h, 1, act="Swish") if expand > 1 else x
            y = n.conv_bn(y, h, h, size, stride=s, groups=h, act="Swish")
            g = n.op("GlobalAveragePool", y)
            g = n.conv(n.conv(g, h, c // 4, 1, act="Swish"), c // 4, h, 1, act="Sigmoid")
            y = n.conv_bn(n.op("Mul", y, g), h, k, 1, act=None)
            x, c = (n.op("Add", x, y) if s == 1 and c == k else y), k
    return n.model(n.head(n.conv_bn(x, c, 1280, 1, act="Swish"), 1280))


def squeezenet(batch: int = 1) -> onnx.ModelProto:
    """Iandola et al., 2016, version 1.1."""
    n = Net("squeezenet", (batch, 3, 224, 224))
    x = n.pool(n.conv("x", 3, 64, 3, stride=2, pad=0, act="Relu"), 3, 2)
    c = 64
    for i, (s, e) in enumerate(((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192),
                                (64, 256), (64, 256))):
        y = n.conv(x, c, s, 1, act="Relu")
        x = n.op("Concat", n.conv(y, s, e, 1, act="Relu"), n.conv(y, s, e, 3, act="Relu"), axis=1)
        c = 2 * e
        if i in (1, 3):
            x = n.pool(x, 3, 2)
    return n.model(n.op("Flatten", n.op("GlobalAveragePool", n.conv(x, c, 1000, 1, act="Relu"))))


def densenet121(batch: int = 1) -> onnx.ModelProto:
    """Huang et al., 2016."""
    n = Net("densenet121", (batch, 3, 224, 224))
    x, c = n.pool(n.conv_bn("x", 3, 64, 7, stride=2), 3, 2, 1), 64

    def bn_relu(v: str, k: int) -> str:
        v = n.op("BatchNormalization", v, n.vector(k, 1.0), n.vector(k), n.vector(k),
                 n.vector(k, 1.0, 0.0))
        return str(n.op("Relu", v))

    for stage, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            y = n.conv_bn(bn_relu(x, c), c, 128, 1)
            x = n.op("Concat", x, n.conv(y, 128, 32, 3, bias=False), axis=1)
            c += 32
        if stage < 3:
            x = n.conv(bn_relu(x, c), c, c // 2, 1, bias=False)
            x, c = n.pool(x, 2, 2, kind="AveragePool"), c // 2
    return n.model(n.head(bn_relu(x, c), c))


def _encoder(n: Net, x: str, layers: int, seq: int, batch: int, pre_norm: bool) -> str:
    """Transformer encoder of width 768 with 12 heads, attention written out in parts."""
    c, heads = 768, 12

    def split(v: str, perm: list[int]) -> str:
        v = n.op("Reshape", v, n.ints(batch, seq, heads, c // heads))
        return str(n.op("Transpose", v, perm=perm))

    def attention(v: str) -> str:
        q, k, val = (n.linear(v, c, c) for _ in range(3))
        s = n.op("MatMul", split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))
        s = n.op("Div", s, n.const(np.float32(8)))
        y = n.op("MatMul", n.op("Softmax", s, axis=-1), split(val, [0, 2, 1, 3]))
        y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(batch, seq, c))
        return n.linear(y, c, c)

    def mlp(v: str) -> str:
        return n.linear(_gelu(n, n.linear(v, c, 4 * c)), 4 * c, c)

    for _ in range(layers):
        if pre_norm:
            x = n.op("Add", x, attention(n.norm(x, c)))
            x = n.op("Add", x, mlp(n.norm(x, c)))
        else:
            x = n.norm(n.op("Add", x, attention(x)), c)
            x = n.norm(n.op("Add", x, mlp(x)), c)
    return x


def bert_base(batch: int = 1, seq: int = 128) -> onnx.ModelProto:
    """Devlin et al., 2018: embeddings and 12 layers."""
    n = Net("bert_base", (batch, seq), TensorProto.INT64)
    table = n.const(n.rng.standard_normal((30522, 768), dtype=np.float32) * np.float32(0.02))
    x = n.op("Gather", table, "x")
    x = n.op("Add", x, n.weight(1, seq, 768, fan=2500))
    return n.model(_encoder(n, n.norm(x, 768), 12, seq, batch, pre_norm=False))


def vit_b16(batch: int = 1) -> onnx.ModelProto:
    """Dosovitskiy et al., 2020."""
    n = Net("vit_b16", (batch, 3, 224, 224))
    x = n.op("Conv", "x", n.weight(768, 3, 16, 16), n.vector(768), kernel_shape=[16, 16],
             strides=[16, 16])
    x = n.op("Transpose", n.op("Reshape", x, n.ints(batch, 768, 196)), perm=[0, 2, 1])
    x = n.op("Concat", n.weight(batch, 1, 768, fan=2500), x, axis=1)
    x = n.op("Add", x, n.weight(1, 197, 768, fan=2500))
    x = n.norm(_encoder(n, x, 12, 197, batch, pre_norm=True), 768)
    x = n.op("Gather", x, n.const(np.int64(0)), axis=1)
    return n.model(n.linear(x, 768, 1000))


def unet(batch: int = 1) -> onnx.ModelProto:
    """Ronneberger et al., 2015, padded, 256x256, base width 32."""
    n = Net("unet", (batch, 3, 256, 256))

    def double(v: str, c: int, k: int) -> str:
        return n.conv_bn(n.conv_bn(v, c, k, 3), k, k, 3)

    x, c, skips = "x", 3, []
    for k in (32, 64, 128, 256):
        x, c = double(x, c, k), k
        skips.append((x, k))
        x = n.pool(x, 2, 2)
    x, c = double(x, c, 512), 512
    for skip, k in reversed(skips):
        x = n.op("ConvTranspose", x, n.weight(c, k, 2, 2), n.vector(k), kernel_shape=[2, 2],
                 strides=[2, 2])
        x, c = double(n.op("Concat", skip, x, axis=1), 2 * k, k), k
    return n.model(n.conv(x, c, 2, 1))


def lstm(batch: int = 1, seq: int = 64) -> onnx.ModelProto:
    """Two LSTM layers of width 512."""
    n = Net("lstm", (seq, batch, 256))
    x, c = "x", 256
    for _ in range(2):
        w = [n.weight(1, 2048, c, fan=c), n.weight(1, 2048, 512, fan=512), n.vector(4096)]
        w[2] = n.const((0.05 * n.rng.standard_normal((1, 4096))).astype(np.float32))
        y = n.op("LSTM", x, *w, outputs=3, hidden_size=512)[0]
        x, c = n.op("Squeeze", y, n.ints(1)), 512
    return n.model(x)


def mobilenet_v3(batch: int = 1) -> onnx.ModelProto:
    """Howard et al., 2019, large."""
    n = Net("mobilenet_v3", (batch, 3, 224, 224))
    x, c = n.conv_bn("x", 3, 16, 3, stride=2, act="HardSwish"), 16
    table = (  # window, expanded, out, squeeze and excite, activation, stride
        (3, 16, 16, 0, "Relu", 1), (3, 64, 24, 0, "Relu", 2), (3, 72, 24, 0, "Relu", 1),
        (5, 72, 40, 1, "Relu", 2), (5, 120, 40, 1, "Relu", 1), (5, 120, 40, 1, "Relu", 1),
        (3, 240, 80, 0, "HardSwish", 2), (3, 200, 80, 0, "HardSwish", 1),
        (3, 184, 80, 0, "HardSwish", 1), (3, 184, 80, 0, "HardSwish", 1),
        (3, 480, 112, 1, "HardSwish", 1), (3, 672, 112, 1, "HardSwish", 1),
        (5, 672, 160, 1, "HardSwish", 2), (5, 960, 160, 1, "HardSwish", 1),
        (5, 960, 160, 1, "HardSwish", 1),
    )
    for size, h, k, excite, act, stride in table:
        y = n.conv_bn(x, c, h, 1, act=act) if h != c else x
        y = n.conv_bn(y, h, h, size, stride=stride, groups=h, act=act)
        if excite:
            less = -(-h // 4 // 8) * 8
            g = n.conv(n.op("GlobalAveragePool", y), h, less, 1, act="Relu")
            g = n.op("HardSigmoid", n.conv(g, less, h, 1), alpha=1 / 6, beta=0.5)
            y = n.op("Mul", y, g)
        y = n.conv_bn(y, h, k, 1, act=None)
        x, c = (n.op("Add", x, y) if stride == 1 and c == k else y), k
    x = n.op("GlobalAveragePool", n.conv_bn(x, c, 960, 1, act="HardSwish"))
    x = n.conv(x, 960, 1280, 1, act="HardSwish")
    return n.model(n.conv(x, 1280, 1000, 1))


def _gelu(n: Net, v: str) -> str:
    e = n.op("Erf", n.op("Div", v, n.const(np.float32(np.sqrt(2)))))
    e = n.op("Mul", v, n.op("Add", e, n.const(np.float32(1))))
    return str(n.op("Mul", e, n.const(np.float32(0.5))))


def convnext_t(batch: int = 1) -> onnx.ModelProto:
    """Liu et al., 2022, tiny: normalization and products with channels last."""
    n = Net("convnext_t", (batch, 3, 224, 224))

    def norm_first(v: str, c: int) -> str:
        v = n.norm(n.op("Transpose", v, perm=[0, 2, 3, 1]), c)
        return str(n.op("Transpose", v, perm=[0, 3, 1, 2]))

    x = norm_first(n.conv("x", 3, 96, 4, stride=4, pad=0), 96)
    c = 96
    for k, blocks in ((96, 3), (192, 3), (384, 9), (768, 3)):
        if k != c:
            x, c = n.conv(norm_first(x, c), c, k, 2, stride=2, pad=0), k
        for _ in range(blocks):
            y = n.op("Transpose", n.conv(x, c, c, 7, groups=c), perm=[0, 2, 3, 1])
            y = n.linear(_gelu(n, n.linear(n.norm(y, c), c, 4 * c)), 4 * c, c)
            y = n.op("Transpose", n.op("Mul", y, n.vector(c, 0.1, 0.01)), perm=[0, 3, 1, 2])
            x = n.op("Add", x, y)
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.model(n.linear(n.norm(x, c), c, 1000))


def swin_t(batch: int = 1) -> onnx.ModelProto:
    """Liu et al., 2021, tiny: attention in windows of 7 x 7, every other time shifted by 3."""
    n = Net("swin_t", (batch, 3, 224, 224))
    x = n.op("Reshape", n.conv("x", 3, 96, 4, stride=4, pad=0), n.ints(batch, 96, 56 * 56))
    x = n.norm(n.op("Transpose", x, perm=[0, 2, 1]), 96)
    c, size = 96, 56
    for stage, (blocks, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        if stage:
            x = _merge_patches(n, x, batch, size, c)
            c, size = 2 * c, size // 2
        for i in range(blocks):
            shift = 3 if i % 2 and size > 7 else 0
            x = n.op("Add", x, _window_attention(n, n.norm(x, c), batch, size, c, heads, shift))
            y = n.linear(_gelu(n, n.linear(n.norm(x, c), c, 4 * c)), 4 * c, c)
            x = n.op("Add", x, y)
    x = n.op("ReduceMean", n.norm(x, c), axes=[1], keepdims=0)
    return n.model(n.linear(x, c, 1000))


def _merge_patches(n: Net, x: str, batch: int, size: int, c: int) -> str:
    x = n.op("Reshape", x, n.ints(batch, size, size, c))
    far = n.ints(1 << 30, 1 << 30)
    parts = [
        n.op("Slice", x, n.ints(i, j), far, n.ints(1, 2), n.ints(2, 2))
        for j in (0, 1) for i in (0, 1)
    ]
    x = n.op("Reshape", n.op("Concat", *parts, axis=-1), n.ints(batch, size * size // 4, 4 * c))
    return str(n.op("MatMul", n.norm(x, 4 * c), n.weight(4 * c, 2 * c, fan=4 * c)))


def _rolled(n: Net, x: str, by: int) -> str:
    for axis in (1, 2):
        far = n.ints(1 << 30)
        first = n.op("Slice", x, n.ints(by), far, n.ints(axis))
        x = n.op("Concat", first, n.op("Slice", x, n.ints(0), n.ints(by), n.ints(axis)), axis=axis)
    return x


def _window_attention(
    n: Net, x: str, batch: int, size: int, c: int, heads: int, shift: int
) -> str:
    w, many, d = 7, size // 7, c // heads
    windows = batch * many * many
    x = n.op("Reshape", x, n.ints(batch, size, size, c))
    x = _rolled(n, x, shift) if shift else x
    x = n.op("Reshape", x, n.ints(batch, many, w, many, w, c))
    x = n.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = n.linear(n.op("Reshape", x, n.ints(windows, w * w, c)), c, 3 * c)
    x = n.op("Reshape", x, n.ints(windows, w * w, 3, heads, d))
    x = n.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (n.op("Gather", x, n.const(np.int64(i)), axis=0) for i in range(3))
    q = n.op("Mul", q, n.const(np.float32(d**-0.5)))
    s = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    s = n.op("Add", s, n.weight(1, heads, w * w, w * w, fan=2500))  # relative positions
    if shift:
        mask = np.where(n.rng.random((1, many * many, 1, w * w, w * w)) < 0.2, -100, 0)
        shape = (batch, many * many, heads, w * w, w * w)
        s = n.op("Add", n.op("Reshape", s, n.ints(*shape)), n.const(mask.astype(np.float32)))
        s = n.op("Reshape", s, n.ints(windows, heads, w * w, w * w))
    y = n.op("Transpose", n.op("MatMul", n.op("Softmax", s, axis=-1), v), perm=[0, 2, 1, 3])
    y = n.linear(n.op("Reshape", y, n.ints(windows, w * w, c)), c, c)
    y = n.op("Reshape", y, n.ints(batch, many, many, w, w, c))
    y = n.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    y = n.op("Reshape", y, n.ints(batch, size, size, c))
    y = _rolled(n, y, size - shift) if shift else y
    return str(n.op("Reshape", y, n.ints(batch, size * size, c)))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (resnet50, mobilenet_v2, mobilenet_v3, efficientnet_b0, vgg16, densenet121,
              squeezenet, convnext_t, vit_b16, swin_t, bert_base, unet, lstm)
}


if __name__ == "__main__":
    onnx.save(MODELS[sys.argv[1]](), sys.argv[2])
