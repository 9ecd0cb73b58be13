"""Well-known networks as prototxts, written from their papers' tables.

``python tests/caffe/zoo.py NAME [SIZE]`` prints one. ``width`` divides the channels of the widest
layers, so that tests stay quick; the structure stays the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class Net:
    """Writes layers one after the other; methods give the name of the blob they make."""

    def __init__(self, name: str, size: int, channels: int = 3, batch: int = 1):
        self.lines = [
            f'name: "{name}"',
            f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: {batch} '
            f"dim: {channels} dim: {size} dim: {size} }} }} }}"]

    def layer(self, type: str, name: str, bottoms: str | Sequence[str], params: str = "",
              top: str = "") -> str:
        bottoms = [bottoms] if isinstance(bottoms, str) else bottoms
        ports = " ".join(f'bottom: "{b}"' for b in bottoms)
        self.lines.append(f'layer {{ name: "{name}" type: "{type}" {ports} '
                          f'top: "{top or name}" {params} }}')
        return top or name

    def conv(self, name: str, x: str, out: int, k: int, s: int = 1, p: int = 0, g: int = 1,
             bias: bool = True, relu: bool = True) -> str:
        group = f"group: {g} " if g > 1 else ""
        term = "" if bias else "bias_term: false "
        self.layer("Convolution", name, x, f"convolution_param {{ num_output: {out} {term}{group}"
                   f"kernel_size: {k} stride: {s} pad: {p} }}")
        return self.relu(name) if relu else name

    def relu(self, x: str) -> str:
        return self.layer("ReLU", f"relu_{x}", x, top=x)

    def norm(self, x: str, relu: bool = True) -> str:
        self.layer("BatchNorm", f"bn_{x}", x, "batch_norm_param { use_global_stats: true }", x)
        self.layer("Scale", f"scale_{x}", x, "scale_param { bias_term: true }", x)
        return self.relu(x) if relu else x

    def pool(self, name: str, x: str, k: int, s: int, p: int = 0, kind: str = "MAX") -> str:
        return self.layer("Pooling", name, x, f"pooling_param {{ pool: {kind} kernel_size: {k} "
                          f"stride: {s} pad: {p} }}")

    def global_pool(self, name: str, x: str) -> str:
        return self.layer("Pooling", name, x, "pooling_param { pool: AVE global_pooling: true }")

    def lrn(self, name: str, x: str) -> str:
        return self.layer("LRN", name, x, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def fc(self, name: str, x: str, out: int, relu: bool = False, drop: bool = False) -> str:
        self.layer("InnerProduct", name, x, f"inner_product_param {{ num_output: {out} }}")
        if relu:
            self.relu(name)
        if drop:
            self.layer("Dropout", f"drop_{name}", name, "dropout_param { dropout_ratio: 0.5 }",
                       name)
        return name

    def text(self, x: str) -> str:
        self.layer("Softmax", "prob", x)
        return "\n".join(self.lines) + "\n"


def _alex(name: str, size: int, width: int, norm_first: bool) -> str:
    n = Net(name, size)
    x = n.conv("conv1", "data", 96, 11, 4)
    for i, (out, k, p, g) in enumerate(((256, 5, 2, 2), (384, 3, 1, 1)), 1):
        if norm_first:
            x = n.pool(f"pool{i}", n.lrn(f"norm{i}", x), 3, 2)
        else:
            x = n.lrn(f"norm{i}", n.pool(f"pool{i}", x, 3, 2))
        x = n.conv(f"conv{i + 1}", x, out, k, 1, p, g)
    x = n.conv("conv4", x, 384, 3, 1, 1, 2)
    x = n.pool("pool5", n.conv("conv5", x, 256, 3, 1, 1, 2), 3, 2)
    x = n.fc("fc6", x, 4096 // width, True, True)
    x = n.fc("fc7", x, 4096 // width, True, True)
    return n.text(n.fc("fc8", x, 1000 // width))


def alexnet(size: int = 227, width: int = 1) -> str:
    """Krizhevsky, Sutskever, Hinton 2012: normalization before pooling."""
    return _alex("AlexNet", size, width, True)


def caffenet(size: int = 227, width: int = 1) -> str:
    """AlexNet with pooling before normalization."""
    return _alex("CaffeNet", size, width, False)


_INCEPTION = {  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj (table 1 of the paper)
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(size: int = 224, width: int = 1) -> str:
    """Szegedy et al. 2014, without the auxiliary classifiers."""
    n = Net("GoogLeNet", size)
    x = n.lrn("norm1", n.pool("pool1", n.conv("conv1", "data", 64, 7, 2, 3), 3, 2))
    x = n.conv("conv2", n.conv("conv2_reduce", x, 64, 1), 192, 3, 1, 1)
    x = n.pool("pool2", n.lrn("norm2", x), 3, 2)
    for name, (a, br, b, cr, c, d) in _INCEPTION.items():
        parts = [
            n.conv(f"{name}_1x1", x, a, 1),
            n.conv(f"{name}_3x3", n.conv(f"{name}_3x3_reduce", x, br, 1), b, 3, 1, 1),
            n.conv(f"{name}_5x5", n.conv(f"{name}_5x5_reduce", x, cr, 1), c, 5, 1, 2),
            n.conv(f"{name}_proj", n.pool(f"{name}_pool", x, 3, 1, 1), d, 1),
        ]
        x = n.layer("Concat", f"inception_{name}", parts)
        if name in ("3b", "4e"):
            x = n.pool(f"pool_{name}", x, 3, 2)
    x = n.global_pool("pool5", x)
    x = n.layer("Dropout", "drop", x, "dropout_param { dropout_ratio: 0.4 }", x)
    return n.text(n.fc("classifier", x, 1000 // width))


def vgg16(size: int = 224, width: int = 1) -> str:
    """Simonyan, Zisserman 2014, configuration D."""
    n, x = Net("VGG-16", size), "data"
    for i, (count, out) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for j in range(1, count + 1):
            x = n.conv(f"conv{i}_{j}", x, out // width, 3, 1, 1)
        x = n.pool(f"pool{i}", x, 2, 2)
    x = n.fc("fc6", x, 4096 // width, True, True)
    x = n.fc("fc7", x, 4096 // width, True, True)
    return n.text(n.fc("fc8", x, 1000 // width))


def resnet50(size: int = 224, width: int = 1) -> str:
    """He et al. 2015, 50 layers; the stride is in the first convolution of a block."""
    n = Net("ResNet-50", size)
    x = n.norm(n.conv("conv1", "data", 64 // width, 7, 2, 3, relu=False))
    x = n.pool("pool1", x, 3, 2)
    for stage, (count, mid) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 2):
        for i in range(count):
            name, s = f"res{stage}{'abcdef'[i]}", 2 if i == 0 and stage > 2 else 1
            m = mid // width
            short = x if i else n.norm(n.conv(f"{name}_1", x, 4 * m, 1, s, bias=False,
                                              relu=False), False)
            y = n.norm(n.conv(f"{name}_2a", x, m, 1, s, bias=False, relu=False))
            y = n.norm(n.conv(f"{name}_2b", y, m, 3, 1, 1, bias=False, relu=False))
            y = n.norm(n.conv(f"{name}_2c", y, 4 * m, 1, bias=False, relu=False), False)
            x = n.relu(n.layer("Eltwise", name, [short, y]))
    return n.text(n.fc("fc1000", n.global_pool("pool5", x), 1000 // width))


def mobilenet(size: int = 224, width: int = 1) -> str:
    """Howard et al. 2017."""
    n = Net("MobileNet", size)
    x = n.norm(n.conv("conv1", "data", 32 // width, 3, 2, 1, bias=False, relu=False))
    channels = 32 // width
    steps = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
             (1024, 2), (1024, 1))
    for i, (out, s) in enumerate(steps, 2):
        x = n.norm(n.conv(f"conv{i}_dw", x, channels, 3, s, 1, channels, False, False))
        channels = out // width
        x = n.norm(n.conv(f"conv{i}_sep", x, channels, 1, bias=False, relu=False))
    return n.text(n.conv("fc7", n.global_pool("pool6", x), 1000 // width, 1, relu=False))


def squeezenet(size: int = 227, width: int = 1) -> str:
    """Iandola et al. 2016, version 1.0."""
    n = Net("SqueezeNet", size)
    x = n.pool("pool1", n.conv("conv1", "data", 96, 7, 2), 3, 2)
    for i, (squeeze, out) in enumerate(((16, 64), (16, 64), (32, 128), (32, 128), (48, 192),
                                        (48, 192), (64, 256), (64, 256)), 2):
        s = n.conv(f"fire{i}_squeeze", x, squeeze, 1)
        x = n.layer("Concat", f"fire{i}", [n.conv(f"fire{i}_1x1", s, out, 1),
                                          n.conv(f"fire{i}_3x3", s, out, 3, 1, 1)])
        if i in (4, 8):
            x = n.pool(f"pool{i}", x, 3, 2)
    x = n.layer("Dropout", "drop9", x, top=x)
    return n.text(n.global_pool("pool10", n.conv("conv10", x, 1000 // width, 1)))


ZOO: dict[str, Callable[..., str]] = {f.__name__: f for f in (
    alexnet, caffenet, googlenet, vgg16, resnet50, mobilenet, squeezenet)}

if __name__ == "__main__":
    print(ZOO[sys.argv[1]](*map(int, sys.argv[2:])), end="")
