"""Convolutions, products, pooling, padding: every attribute changes numbers, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

X = f32(1, 4, 7, 8)
W, B = f32(6, 2, 3, 3), f32(6)


def conv(x, w, b=None, stride=(1, 1), pre=(0, 0), post=(0, 0), dilation=(1, 1), groups=1):
    """Direct convolution in double precision."""
    x = np.pad(x.astype(float), [(0, 0), (0, 0), *zip(pre, post, strict=True)])
    k = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], dilation, strict=True)]
    out = [(n - m) // s + 1 for n, m, s in zip(x.shape[2:], k, stride, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per_in, per_out = w.shape[1], w.shape[0] // groups
    for o in range(w.shape[0]):
        for c in range(per_in):
            plane = x[:, o // per_out * per_in + c]
            for i in range(w.shape[2]):
                for j in range(w.shape[3]):
                    rows = slice(i * dilation[0], i * dilation[0] + (out[0] - 1) * stride[0] + 1,
                                 stride[0])
                    cols = slice(j * dilation[1], j * dilation[1] + (out[1] - 1) * stride[1] + 1,
                                 stride[1])
                    y[:, o] += w[o, c, i, j] * plane[:, rows, cols]
    return y if b is None else y + b[:, None, None]


def deconv(x, w, b=None, stride=(1, 1), pre=(0, 0), post=(0, 0), dilation=(1, 1), groups=1):
    """Scatters each input pixel times the kernel; w is [channels, maps / groups, window…]."""
    n, c, h, width = x.shape
    k = [(m - 1) * d + 1 for m, d in zip(w.shape[2:], dilation, strict=True)]
    full = [(a - 1) * s + m for a, s, m in zip((h, width), stride, k, strict=True)]
    y = np.zeros((n, w.shape[1] * groups, *full))
    per = c // groups
    for ci in range(c):
        g = ci // per
        for o in range(w.shape[1]):
            for i in range(w.shape[2]):
                for j in range(w.shape[3]):
                    a, bb = i * dilation[0], j * dilation[1]
                    y[:, g * w.shape[1] + o, a:a + (h - 1) * stride[0] + 1:stride[0],
                      bb:bb + (width - 1) * stride[1] + 1:stride[1]] += w[ci, o, i, j] * x[:, ci]
    y = y[:, :, pre[0]:y.shape[2] - post[0], pre[1]:y.shape[3] - post[1]]
    return y if b is None else y + b[:, None, None]


class TestConvolution:
    def layer(self, net, kernel=W):
        layer = net.network.add_convolution_nd(net.input(X), 6, (3, 3), kernel, B)
        layer.num_groups = 2
        return layer

    @pytest.mark.parametrize("name, value, options", [
        ("stride_nd", (2, 1), {"stride": (2, 1)}),
        ("padding_nd", (1, 2), {"pre": (1, 2), "post": (1, 2)}),
        ("pre_padding", (1, 0), {"pre": (1, 0)}), ("post_padding", (0, 2), {"post": (0, 2)}),
        ("dilation_nd", (2, 3), {"dilation": (2, 3)}),
        ("stride", (1, 2), {"stride": (1, 2)}), ("dilation", (1, 2), {"dilation": (1, 2)}),
        ("padding", (2, 1), {"pre": (2, 1), "post": (2, 1)}),
    ])
    def test_window(self, name, value, options):
        net = Net()
        layer = self.layer(net)
        setattr(layer, name, value)
        assert tuple(getattr(layer, name)) == value
        close(net.run(layer.get_output(0)), conv(X, W, B, groups=2, **options))

    def test_weights(self):
        net = Net()
        layer = self.layer(net)
        assert layer.num_groups == 2 and layer.num_output_maps == 6
        np.testing.assert_array_equal(layer.kernel, W.reshape(-1))
        layer.kernel, layer.bias = -W, 2 * B
        np.testing.assert_array_equal(layer.bias, 2 * B)
        close(net.run(layer.get_output(0)), conv(X, -W, 2 * B, groups=2))

    @pytest.mark.parametrize("name", ["kernel_size_nd", "kernel_size"])
    def test_sizes(self, name):
        net, w = Net(), f32(5, 4, 1, 3)
        layer = net.network.add_convolution(net.input(X), 6, (3, 3), f32(6, 4, 3, 3))
        layer.num_output_maps, layer.kernel = 5, w
        setattr(layer, name, (1, 3))
        assert tuple(getattr(layer, name)) == (1, 3) and tuple(layer.kernel_size_nd) == (1, 3)
        close(net.run(layer.get_output(0)), conv(X, w))

    @pytest.mark.parametrize("mode, shape, pre", [
        (trt.PaddingMode.SAME_UPPER, (4, 4), (1, 0)),
        (trt.PaddingMode.SAME_LOWER, (4, 4), (1, 1)),
        (trt.PaddingMode.EXPLICIT_ROUND_UP, (3, 4), (0, 0)),
        (trt.PaddingMode.EXPLICIT_ROUND_DOWN, (3, 3), (0, 0)),
    ])
    def test_padding_mode(self, mode, shape, pre):
        net = Net()
        layer = self.layer(net)
        layer.stride_nd, layer.padding_mode = (2, 2), mode
        assert layer.padding_mode == mode
        y = net.run(layer.get_output(0))
        assert y.shape[2:] == shape
        post = tuple(2 * (n - 1) + 3 - p - m for n, p, m in zip(shape, pre, X.shape[2:],
                                                                strict=True))
        close(y, conv(X, W, B, (2, 2), pre, tuple(max(p, 0) for p in post), groups=2))


class TestDeconvolution:
    W = f32(4, 3, 3, 2)

    def layer(self, net):
        layer = net.network.add_deconvolution_nd(net.input(X), 6, (3, 2), self.W, B)
        layer.num_groups = 2
        return layer

    @pytest.mark.parametrize("name, value, options", [
        ("stride_nd", (2, 1), {"stride": (2, 1)}), ("stride", (1, 3), {"stride": (1, 3)}),
        ("padding_nd", (1, 1), {"pre": (1, 1), "post": (1, 1)}),
        ("padding", (1, 0), {"pre": (1, 0), "post": (1, 0)}),
        ("pre_padding", (1, 0), {"pre": (1, 0)}), ("post_padding", (0, 1), {"post": (0, 1)}),
        ("dilation_nd", (2, 3), {"dilation": (2, 3)}),
    ])
    def test_window(self, name, value, options):
        net = Net()
        layer = self.layer(net)
        setattr(layer, name, value)
        assert tuple(getattr(layer, name)) == value
        close(net.run(layer.get_output(0)), deconv(X, self.W, B, groups=2, **options))

    def test_weights_and_sizes(self):
        net, w = Net(), f32(4, 5, 2, 2)
        layer = net.network.add_deconvolution(net.input(X), 6, (3, 3), f32(4, 6, 3, 3), B)
        layer.num_output_maps, layer.kernel_size_nd, layer.kernel = 5, (2, 2), w
        layer.bias = f32(5)
        assert tuple(layer.kernel_size) == (2, 2)
        layer.kernel_size = (2, 2)
        np.testing.assert_array_equal(layer.kernel, w.reshape(-1))
        close(net.run(layer.get_output(0)), deconv(X, w, f32(5)))

    def test_padding_mode(self):
        net = Net()
        layer = self.layer(net)
        layer.stride_nd, layer.padding_mode = (2, 2), trt.PaddingMode.SAME_UPPER
        assert layer.padding_mode == trt.PaddingMode.SAME_UPPER
        y = net.run(layer.get_output(0))
        assert y.shape[2:] == (14, 16)
        close(y, deconv(X, self.W, B, (2, 2), groups=2)[:, :, :14, :16])


class TestPooling:
    X = f32(1, 2, 7, 8)

    def windows(self, x, size, stride, pre=(0, 0), post=(0, 0), value=0.0):
        x = np.pad(x, [(0, 0), (0, 0), *zip(pre, post, strict=True)], constant_values=value)
        view = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))
        return view[:, :, ::stride[0], ::stride[1]]

    def test_type_and_window(self):
        net = Net()
        layer = net.network.add_pooling_nd(net.input(self.X), trt.PoolingType.MAX, (2, 2))
        layer.type = trt.PoolingType.AVERAGE
        layer.window_size_nd, layer.stride_nd = (3, 2), (2, 1)
        assert layer.type == trt.PoolingType.AVERAGE and tuple(layer.window_size) == (3, 2)
        assert tuple(layer.stride) == (2, 1)
        close(net.run(layer.get_output(0)),
              self.windows(self.X, (3, 2), (2, 1)).mean((-1, -2)))

    def test_legacy_names(self):
        net = Net()
        layer = net.network.add_pooling(net.input(self.X), trt.PoolingType.MAX, (2, 2))
        layer.window_size, layer.stride, layer.padding = (3, 3), (1, 1), (1, 1)
        assert tuple(layer.window_size_nd) == (3, 3) and tuple(layer.padding) == (1, 1)
        close(net.run(layer.get_output(0)),
              self.windows(self.X, (3, 3), (1, 1), (1, 1), (1, 1), -np.inf).max((-1, -2)))

    @pytest.mark.parametrize("exclude", [False, True])
    def test_what_averages_divide_by(self, exclude):
        net = Net()
        layer = net.network.add_pooling_nd(net.input(self.X), trt.PoolingType.AVERAGE, (2, 2))
        layer.pre_padding, layer.post_padding = (1, 0), (0, 1)
        layer.stride_nd = (2, 2)
        layer.average_count_excludes_padding = exclude
        assert tuple(layer.pre_padding) == (1, 0) and tuple(layer.post_padding) == (0, 1)
        args = ((2, 2), (2, 2), (1, 0), (0, 1))
        total = self.windows(self.X, *args).sum((-1, -2))
        count = self.windows(np.ones_like(self.X), *args).sum((-1, -2)) if exclude else 4
        close(net.run(layer.get_output(0)), total / count)

    def test_blend(self):
        net = Net()
        layer = net.network.add_pooling_nd(net.input(self.X), trt.PoolingType.MAX_AVERAGE_BLEND,
                                           (2, 2))
        layer.blend_factor, layer.stride_nd = 0.25, (2, 2)
        assert layer.blend_factor == 0.25
        w = self.windows(self.X, (2, 2), (2, 2))
        close(net.run(layer.get_output(0)), 0.75 * w.max((-1, -2)) + 0.25 * w.mean((-1, -2)))

    def test_padding_mode(self):
        net = Net()
        layer = net.network.add_pooling_nd(net.input(self.X), trt.PoolingType.MAX, (2, 2))
        assert layer.get_output(0).shape[2:] == (6, 7)  # the stride is 1 unless it is set
        layer.stride_nd = (2, 2)
        assert layer.get_output(0).shape[2:] == (3, 4)
        layer.padding_mode = trt.PaddingMode.EXPLICIT_ROUND_UP
        assert layer.padding_mode == trt.PaddingMode.EXPLICIT_ROUND_UP
        y = net.run(layer.get_output(0))
        close(y, self.windows(self.X, (2, 2), (2, 2), (0, 0), (1, 0), -np.inf).max((-1, -2)))

    def test_padding_nd(self):
        net = Net()
        layer = net.network.add_pooling_nd(net.input(self.X), trt.PoolingType.MAX, (3, 3))
        layer.stride_nd, layer.padding_nd = (1, 1), (1, 1)
        assert tuple(layer.padding_nd) == (1, 1)
        assert net.run(layer.get_output(0)).shape == self.X.shape


class TestProducts:
    M = trt.MatrixOperation

    @pytest.mark.parametrize("op0, op1, a, b, want", [
        (M.NONE, M.TRANSPOSE, (2, 3, 4), (2, 5, 4), lambda a, b: a @ b.swapaxes(1, 2)),
        (M.TRANSPOSE, M.NONE, (2, 4, 3), (2, 4, 5), lambda a, b: a.swapaxes(1, 2) @ b),
        (M.VECTOR, M.NONE, (2, 4), (2, 4, 5), lambda a, b: np.einsum("bk,bkn->bn", a, b)),
    ])
    def test_ops(self, op0, op1, a, b, want):
        a, b = f32(*a), f32(*b, seed=1)
        net = Net()
        layer = net.network.add_matrix_multiply(net.input(a), trt.MatrixOperation.NONE,
                                                net.input(b), trt.MatrixOperation.NONE)
        layer.op0, layer.op1 = op0, op1
        assert (layer.op0, layer.op1) == (op0, op1)
        close(net.run(layer.get_output(0)), want(a, b))

    def test_transpose_flags_of_version_7(self):
        a, b = f32(4, 3), f32(5, 4, seed=1)
        net = Net()
        layer = net.network.add_matrix_multiply_deprecated(net.input(a), False, net.input(b), True)
        assert not layer.transpose0 and layer.transpose1
        layer.transpose0 = True
        assert layer.op0 == trt.MatrixOperation.TRANSPOSE
        close(net.run(layer.get_output(0)), a.T @ b.T)
        layer.transpose1 = False
        assert layer.op1 == trt.MatrixOperation.NONE

    def test_einsum(self):
        a, b = f32(2, 3, 4), f32(4, 5, seed=1)
        net = Net()
        layer = net.network.add_einsum([net.input(a), net.input(b)], "bij,jk->bik")
        layer.equation = "bij,jk->kb"
        assert layer.equation == "bij,jk->kb"
        close(net.run(layer.get_output(0)), np.einsum("bij,jk->kb", a, b), 1e-4)

    def test_fully_connected(self):
        x, w, b = f32(2, 3, 2, 2), f32(5, 12), f32(5)
        net = Net()
        layer = net.network.add_fully_connected(net.input(x), 7, f32(7, 12), f32(7))
        layer.num_output_channels, layer.kernel, layer.bias = 5, w, b
        assert layer.num_output_channels == 5 and layer.type == trt.LayerType.FULLY_CONNECTED
        np.testing.assert_array_equal(layer.kernel, w.reshape(-1))
        np.testing.assert_array_equal(layer.bias, b)
        close(net.run(layer.get_output(0)), (x.reshape(2, 12) @ w.T + b)[..., None, None])


class TestPadding:
    @pytest.mark.parametrize("names", [("pre_padding_nd", "post_padding_nd"),
                                       ("pre_padding", "post_padding")])
    def test_amounts(self, names):
        x = f32(1, 2, 4, 5)
        net = Net()
        add = net.network.add_padding_nd if names[0].endswith("nd") else net.network.add_padding
        layer = add(net.input(x), (0, 0), (0, 0))
        setattr(layer, names[0], (1, 2))
        setattr(layer, names[1], (0, -1))
        assert [tuple(getattr(layer, n)) for n in names] == [(1, 2), (0, -1)]
        want = np.pad(x, [(0, 0), (0, 0), (1, 0), (2, 0)])[..., :-1]
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)
