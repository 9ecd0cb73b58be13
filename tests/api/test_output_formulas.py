"""Output size formulas of version 7, against torch and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Formula(trt.IOutputDimensionsFormula):
    """Gives what a function of one dimension's numbers says; remembers what it was asked."""

    def __init__(self, of):
        super().__init__()
        self.of, self.asked = of, []

    def compute(self, input_shape, kernel_shape, stride, padding, dilation, layer_name):
        args = [tuple(x) for x in (input_shape, kernel_shape, stride, padding, dilation)]
        assert all(isinstance(x, trt.DimsHW) for x in (input_shape, stride, padding, dilation))
        self.asked.append((*args, layer_name))
        return trt.DimsHW([self.of(*(a[i] for a in args)) for i in (0, 1)])


def up(x, k, s, p, d):
    return -(-(x + 2 * p - k) // s) + 1


def fixed(h, w):
    sizes = iter([h, w] * 99)
    return lambda *_: next(sizes)


def torch_of(x):
    return torch.tensor(x)


X = f32(2, 3, 9, 8)


def test_the_default_formula():
    plain = trt.IOutputDimensionsFormula()
    out = plain.compute(trt.DimsHW(9, 8), trt.DimsHW(3, 3), trt.DimsHW(2, 2), trt.DimsHW(1, 1),
                        trt.DimsHW(1, 1), "conv")
    assert (out.h, out.w) == (5, 4) and isinstance(out, trt.DimsHW)
    net = Net()
    for kind in ("pooling", "convolution", "deconvolution"):
        name = f"{kind}_output_dimensions_formula"
        assert getattr(net.network, name) is None
        setattr(net.network, name, plain)
        assert getattr(net.network, name) is plain
        setattr(net.network, name, None)
        assert getattr(net.network, name) is None


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_pooling_rounded_up(average, exclusive):
    net, formula = Net(), Formula(up)
    net.network.pooling_output_dimensions_formula = formula
    kind = trt.PoolingType.AVERAGE if average else trt.PoolingType.MAX
    p = net.network.add_pooling(net.input(X), kind, (3, 3))
    p.stride, p.padding, p.average_count_excludes_padding = (2, 2), (1, 1), exclusive
    p.name = "pool"
    assert tuple(p.get_output(0).shape) == (2, 3, 5, 5)
    assert formula.asked[-1] == ((9, 8), (3, 3), (2, 2), (1, 1), (1, 1), "pool")
    x = torch_of(X)
    if not average:
        want = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    elif exclusive:
        want = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
    else:  # what lies behind the padding is not counted, the padding is
        want = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
    close(net.run(p.get_output(0)), want)


@pytest.mark.parametrize("h, w", [(3, 2), (4, 3), (1, 1), (2, 4)])
def test_pooling_of_other_sizes(h, w):
    """Padding behind the input grows or windows at the end are left out."""
    net = Net()
    p = net.network.add_pooling(net.input(X), trt.PoolingType.MAX, (3, 3))
    p.stride = (3, 3)
    net.network.pooling_output_dimensions_formula = Formula(fixed(h, w))  # set after the layer
    full = np.full((2, 3, 12, 12), -np.inf, np.float32)
    full[:, :, :9, :8] = X
    want = F.max_pool2d(torch_of(full), 3, 3).numpy()
    if (h, w) == (2, 4):
        assert "the last window starts at (3, 9), behind an input of (9, 8)" in net.fails(
            p.get_output(0))
        return
    if h == 4:
        assert "behind an input" in net.fails(p.get_output(0))
        return
    close(net.run(p.get_output(0)), want[:, :, :h, :w])


def conv(net, x, dilation=(1, 1), deep=False):
    w, b = f32(3, 4, 3, 2) if deep else f32(4, 3, 3, 2), f32(4)
    add = net.network.add_deconvolution if deep else net.network.add_convolution
    layer = add(x, 4, (3, 2), w, b)
    layer.stride, layer.padding = (2, 2), (1, 0)
    if not deep:
        layer.dilation = dilation
    return layer, torch_of(w), torch_of(b)


@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 2), (-1, -2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_convolution(more, dilation):
    net, wider = Net(), iter(more * 99)
    formula = Formula(lambda x, k, s, p, d: (x + 2 * p - k) // s + 1 + next(wider))
    net.network.convolution_output_dimensions_formula = formula
    layer, w, b = conv(net, net.input(X), dilation)
    plain = F.conv2d(torch_of(X), w, b, 2, (1, 0), dilation)
    size = [n + m for n, m in zip(plain.shape[2:], more, strict=True)]
    assert tuple(layer.get_output(0).shape) == (2, 4, *size)
    reach = (3 - 1) * dilation[0] + 1
    assert formula.asked[-1][:5] == ((9, 8), (reach, 2), (2, 2), (1, 0), dilation)
    padded = F.pad(torch_of(X), (0, 9, 1, 9))
    want = F.conv2d(padded, w, b, 2, 0, dilation)[:, :, :size[0], :size[1]]
    close(net.run(layer.get_output(0)), want, 1e-4)


@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 3), (-2, -1)])
def test_deconvolution(more):
    net, wider = Net(), iter(more * 99)
    net.network.deconvolution_output_dimensions_formula = Formula(
        lambda x, k, s, p, d: (x - 1) * s + k - 2 * p + next(wider))
    layer, w, b = conv(net, net.input(X), deep=True)
    full = F.conv_transpose2d(torch_of(X), w, None, 2)  # 19 x 16, of which rows from 1 on stay
    size = [n + m for n, m in zip((17, 16), more, strict=True)]
    assert tuple(layer.get_output(0).shape) == (2, 4, *size)
    want = F.pad(full, (0, 9, 0, 9))[:, :, 1:1 + size[0], :size[1]] + b[:, None, None]
    close(net.run(layer.get_output(0)), want, 1e-4)


def test_formulas_override_same_padding_and_their_removal_restores_it():
    net = Net()
    layer, w, b = conv(net, net.input(X))
    layer.padding_mode = trt.PaddingMode.SAME_UPPER
    assert tuple(layer.get_output(0).shape) == (2, 4, 5, 4)
    net.network.convolution_output_dimensions_formula = Formula(fixed(4, 3))
    assert tuple(layer.get_output(0).shape) == (2, 4, 4, 3)
    want = F.conv2d(F.pad(torch_of(X), (0, 0, 1, 1)), w, b, 2)
    close(net.run(layer.get_output(0)), want[:, :, :4, :3], 1e-4)
    net.network.convolution_output_dimensions_formula = None
    assert tuple(layer.get_output(0).shape) == (2, 4, 5, 4)


def test_formulas_are_for_layers_of_two_dimensions():
    net, formula = Net(), Formula(fixed(1, 1))
    net.network.pooling_output_dimensions_formula = formula
    p = net.network.add_pooling_nd(net.input(f32(1, 2, 4, 4, 4)), trt.PoolingType.MAX, (2, 2, 2))
    p.stride_nd = (2, 2, 2)
    assert tuple(p.get_output(0).shape) == (1, 2, 2, 2, 2) and not formula.asked


@pytest.mark.parametrize("of, message", [
    (lambda *_: 0, "gave (0, 0); it must give a height and a width of at least 1"),
    (lambda *_: 1 // 0, "failed: ZeroDivisionError"),
])
def test_errors_name_the_layer(of, message):
    net = Net()
    net.network.convolution_output_dimensions_formula = Formula(of)
    layer, *_ = conv(net, net.input(X))
    layer.name = "stem"
    text = net.fails(layer.get_output(0))
    assert "stem" in text and f"convolution_output_dimensions_formula {message}" in text


def test_sizes_must_be_known():
    net = Net()
    net.network.pooling_output_dimensions_formula = trt.IOutputDimensionsFormula()
    p = net.network.add_pooling(net.input(X, "x", (2, 3, -1, 8)), trt.PoolingType.MAX, (2, 2))
    assert "needs an input of fixed height and width" in net.fails(p.get_output(0))


def test_implicit_batch():
    net = Net(implicit_batch=True)
    net.network.pooling_output_dimensions_formula = Formula(up)
    x = net.network.add_input("x", trt.float32, (3, 9, 8))
    p = net.network.add_pooling(x, trt.PoolingType.MAX, (2, 2))
    p.stride = (2, 2)
    assert tuple(p.get_output(0).shape) == (3, 5, 4)
