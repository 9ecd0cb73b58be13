"""Small networks built by hand, with their numpy twins."""

from __future__ import annotations

import numpy as np

import tactician as trt

RNG = np.random.default_rng(7)
W1 = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
B1 = RNG.standard_normal(4).astype(np.float32)


class Log(trt.ILogger):
    """Keeps messages."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, msg):
        self.lines.append((severity, msg))

    @property
    def errors(self):
        return "\n".join(m for s, m in self.lines if s <= trt.ILogger.ERROR)

    @property
    def warnings(self):
        return "\n".join(m for s, m in self.lines if s == trt.ILogger.WARNING)


def conv_relu(builder, shape=(1, 2, 6, 6), flags=1):
    """x -> convolution -> relu -> y"""
    network = builder.create_network(flags)
    x = network.add_input(name="x", dtype=trt.float32, shape=shape)
    conv = network.add_convolution_nd(
        input=x, num_output_maps=4, kernel_shape=(3, 3), kernel=W1, bias=B1
    )
    relu = network.add_activation(conv.get_output(0), trt.ActivationType.RELU)
    relu.get_output(0).name = "y"
    network.mark_output(tensor=relu.get_output(0))
    return network


def conv_relu_numpy(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,kcij->nkhw", windows, W1) + B1[:, None, None]
    return np.maximum(y, 0)


def scaled_sum(builder, shapes=((-1, 3), (-1, 3)), flags=1):
    """a, b -> y = exp(a) + b"""
    network = builder.create_network(flags)
    a, b = (network.add_input(n, trt.float32, s) for n, s in zip("ab", shapes, strict=True))
    e = network.add_unary(a, trt.UnaryOperation.EXP).get_output(0)
    s = network.add_elementwise(e, b, trt.ElementWiseOperation.SUM)
    s.get_output(0).name = "y"
    network.mark_output(s.get_output(0))
    return network
