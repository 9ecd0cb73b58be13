"""Shapes, slices, gathers, scatters, fills, reductions, normalizations."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

R, T = trt.ReduceOperation, trt.TopKOperation


class TestShuffle:
    def test_transposes_around_a_reshape(self):
        x = f32(2, 3, 4)
        net = Net()
        layer = net.network.add_shuffle(net.input(x))
        layer.first_transpose, layer.reshape_dims = (2, 0, 1), (4, 3, 2)
        layer.second_transpose = trt.Permutation([1, 2, 0])
        assert tuple(layer.first_transpose) == (2, 0, 1) and tuple(layer.reshape_dims) == (4, 3, 2)
        assert tuple(layer.second_transpose) == (1, 2, 0)
        want = x.transpose(2, 0, 1).reshape(4, 3, 2).transpose(1, 2, 0)
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    def test_zero_copies_a_dimension_or_is_empty(self):
        net = Net()
        x = net.input(f32(2, 3, 4))
        layer = net.network.add_shuffle(x)
        layer.reshape_dims = (0, -1)
        assert layer.zero_is_placeholder and tuple(layer.get_output(0).shape) == (2, 12)
        empty = net.network.add_shuffle(net.input(np.zeros((0, 4), np.float32)))
        empty.zero_is_placeholder, empty.reshape_dims = False, (0, 7)
        assert not empty.zero_is_placeholder
        assert net.run(layer.get_output(0), empty.get_output(0))[1].shape == (0, 7)

    def test_shape_from_a_tensor(self):
        net, x = Net(), f32(2, 6)
        layer = net.network.add_shuffle(net.input(x))
        layer.set_input(1, net.const(np.array([3, 4])))
        np.testing.assert_array_equal(net.run(layer.get_output(0)), x.reshape(3, 4))


class TestSlice:
    def layer(self, net):
        return net.network.add_slice(net.input(f32(4, 5)), (0, 0), (2, 2), (1, 1))

    def test_numbers(self):
        net = Net()
        layer = self.layer(net)
        layer.start, layer.shape, layer.stride = (1, 0), (2, 3), (2, 2)
        assert [tuple(d) for d in (layer.start, layer.shape, layer.stride)] == [
            (1, 0), (2, 3), (2, 2)]
        np.testing.assert_array_equal(net.run(layer.get_output(0)), f32(4, 5)[1::2, ::2])

    def test_axes(self):
        net = Net()
        layer = self.layer(net)
        layer.axes = (1,)
        layer.start, layer.shape, layer.stride = (1,), (2,), (1,)
        assert tuple(layer.axes) == (1,)
        np.testing.assert_array_equal(net.run(layer.get_output(0)), f32(4, 5)[:, 1:3])

    @pytest.mark.parametrize("mode, pad", [
        (trt.SampleMode.CLAMP, "edge"), (trt.SampleMode.REFLECT, "reflect"),
        (trt.SampleMode.WRAP, "wrap"), (trt.SampleMode.FILL, "constant"),
    ])
    def test_modes(self, mode, pad):
        net = Net()
        layer = self.layer(net)
        layer.start, layer.shape, layer.mode = (-1, -2), (6, 9), mode
        assert layer.mode == mode
        if mode == trt.SampleMode.FILL:
            layer.set_input(4, net.const(np.float32(7)))
        more = {"constant_values": 7} if pad == "constant" else {}
        want = np.pad(f32(4, 5), [(1, 1), (2, 2)], pad, **more)
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    def test_strict_bounds(self):
        net = Net()
        layer = self.layer(net)
        assert layer.mode == trt.SampleMode.STRICT_BOUNDS
        layer.start = (3, 4)
        assert layer.name in net.fails(layer.get_output(0))


def test_concatenation_and_shape():
    a, b = f32(2, 3), f32(2, 4)
    net = Net()
    ta, tb = net.input(a), net.input(b)
    layer = net.network.add_concatenation([ta, tb])
    layer.axis = 1
    assert layer.axis == 1
    shape = net.network.add_shape(layer.get_output(0))
    outs = net.run(layer.get_output(0), shape.get_output(0))
    np.testing.assert_array_equal(outs[0], np.concatenate([a, b], 1))
    assert list(outs[1]) == [2, 7] and type(shape) is trt.IShapeLayer


def test_squeeze_and_unsqueeze():
    x = f32(2, 1, 3)
    net = Net()
    t = net.input(x)
    squeeze = net.network.add_squeeze(t, net.const(np.array([0])))
    squeeze.set_input(1, net.const(np.array([1])))
    unsqueeze = net.network.add_unsqueeze(t, net.const(np.array([0])))
    unsqueeze.set_input(1, net.const(np.array([1, 4])))
    outs = net.run(squeeze.get_output(0), unsqueeze.get_output(0))
    assert [y.shape for y in outs] == [(2, 3), (2, 1, 1, 3, 1)]
    np.testing.assert_array_equal(outs[0], x[:, 0])


def test_reverse_sequence():
    x, lens = f32(4, 3), np.array([1, 2, 4], np.int64)
    net = Net()
    layer = net.network.add_reverse_sequence(net.input(x), net.input(lens))
    layer.batch_axis, layer.sequence_axis = 1, 0
    assert (layer.batch_axis, layer.sequence_axis) == (1, 0)
    want = x.copy()
    for i, n in enumerate(lens):
        want[:n, i] = x[:n, i][::-1]
    np.testing.assert_array_equal(net.run(layer.get_output(0)), want)


class TestGatherAndScatter:
    def test_gather_axis_and_elementwise_dims(self):
        x, i = f32(2, 3, 4), np.array([[2, 0], [1, 1]], np.int32)
        net = Net()
        layer = net.network.add_gather(net.input(x), net.input(i), 0)
        layer.axis, layer.num_elementwise_dims = 2, 1
        assert (layer.axis, layer.num_elementwise_dims) == (2, 1)
        want = np.stack([x[b][:, i[b]] for b in range(2)])
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    @pytest.mark.parametrize("mode, index, want", [
        (trt.GatherMode.DEFAULT, [[1, 0]], lambda x, i: x[i]),
        (trt.GatherMode.ELEMENT, [[1, 0, 1, 0]], lambda x, i: np.take_along_axis(x, i, 0)),
        (trt.GatherMode.ND, [[1, 0], [0, 3]], lambda x, i: x[i[:, 0], i[:, 1]]),
    ])
    def test_gather_modes(self, mode, index, want):
        x, i = f32(3, 4), np.array(index, np.int32)
        net = Net()
        layer = net.network.add_gather_v2(net.input(x), net.input(i), trt.GatherMode.DEFAULT)
        layer.mode = mode
        assert layer.mode == mode
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want(x, i))

    def test_scatter(self):
        x, i, u = f32(3, 4), np.array([[2], [0], [1]], np.int32), f32(3, 1)
        net = Net()
        layer = net.network.add_scatter(net.input(x), net.input(i), net.input(u),
                                        trt.ScatterMode.ELEMENT)
        layer.axis = 1
        assert layer.axis == 1 and layer.mode == trt.ScatterMode.ELEMENT
        want = x.copy()
        np.put_along_axis(want, i, u, 1)
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    def test_scatter_nd(self):
        x, i, u = f32(3, 4), np.array([[2, 1], [0, 3]], np.int32), f32(2)
        net = Net()
        layer = net.network.add_scatter(net.input(x), net.input(i), net.input(u),
                                        trt.ScatterMode.ELEMENT)
        layer.mode = trt.ScatterMode.ND
        want = x.copy()
        want[i[:, 0], i[:, 1]] = u
        np.testing.assert_array_equal(net.run(layer.get_output(0)), want)

    def test_one_hot(self):
        i = np.array([2, 0], np.int32)
        net = Net()
        layer = net.network.add_one_hot(net.input(i), net.const(np.array([1, 5], np.float32)),
                                        net.const(np.int32(3)), 1)
        layer.axis = 0
        assert layer.axis == 0
        np.testing.assert_array_equal(net.run(layer.get_output(0)), [[1, 5], [1, 1], [5, 1]])


class TestFill:
    def test_linspace(self):
        net = Net()
        layer = net.network.add_fill((4,), trt.FillOperation.RANDOM_UNIFORM)
        layer.operation, layer.shape = trt.FillOperation.LINSPACE, (5,)
        layer.alpha, layer.beta = 1.5, 0.5
        assert layer.operation == trt.FillOperation.LINSPACE and tuple(layer.shape) == (5,)
        assert (layer.alpha, layer.beta) == (1.5, 0.5) and not layer.is_alpha_beta_int64()
        close(net.run(layer.get_output(0)), 1.5 + 0.5 * np.arange(5))

    def test_integers(self):
        net = Net()
        layer = net.network.add_fill((3,), trt.FillOperation.LINSPACE, trt.int32)
        layer.to_type = trt.int64
        layer.alpha, layer.beta = 10, -2
        assert layer.is_alpha_beta_int64() and layer.to_type == trt.int64
        y = net.run(layer.get_output(0))
        assert y.dtype == np.int64 and list(y) == [10, 8, 6]

    def test_operands_from_tensors(self):
        net = Net()
        layer = net.network.add_fill((1, 1), trt.FillOperation.LINSPACE)
        layer.set_input(0, net.const(np.array([2, 3])))
        layer.set_input(1, net.const(np.float32(1)))
        layer.set_input(2, net.const(np.array([10, 0.5], np.float32)))
        close(net.run(layer.get_output(0)), [[1, 1.5, 2], [11, 11.5, 12]])

    @pytest.mark.parametrize("op, mean, spread", [
        (trt.FillOperation.RANDOM_UNIFORM, 4.0, 2 / 12**0.5),
        (trt.FillOperation.RANDOM_NORMAL, 3.0, 5.0),
    ])
    def test_random(self, op, mean, spread):
        net = Net()
        layer = net.network.add_fill((200, 200), op)
        layer.alpha, layer.beta = 3, 5
        y = net.run(layer.get_output(0))
        assert abs(y.mean() - mean) < 0.1 and abs(y.std() - spread) < 0.1


class TestReduction:
    @pytest.mark.parametrize("op, fn", [
        (R.SUM, np.sum), (R.PROD, np.prod), (R.MAX, np.max), (R.MIN, np.min), (R.AVG, np.mean)])
    def test_reduce(self, op, fn):
        x = f32(2, 3, 4)
        net = Net()
        layer = net.network.add_reduce(net.input(x), R.SUM, 1, False)
        layer.op, layer.axes, layer.keep_dims = op, 0b110, True
        assert (layer.op, layer.axes, layer.keep_dims) == (op, 0b110, True)
        close(net.run(layer.get_output(0)), fn(x, axis=(1, 2), keepdims=True))

    def test_reducing_by_nothing_is_refused(self):
        net = Net()
        layer = net.network.add_reduce(net.input(f32(2)), trt.ReduceOperation.NONE, 1, False)
        assert layer is None or layer.name in net.fails(layer.get_output(0))
        assert "NONE" in net.log.errors

    def test_softmax_axes(self):
        x = f32(2, 3, 4)
        net = Net()
        layer = net.network.add_softmax(net.input(x))
        layer.axes = 0b100
        assert layer.axes == 0b100
        e = np.exp(x)
        close(net.run(layer.get_output(0)), e / e.sum(2, keepdims=True))

    def test_topk(self):
        x = f32(3, 5)
        net = Net()
        layer = net.network.add_topk(net.input(x), T.MAX, 1, 1)
        layer.op, layer.k, layer.axes = T.MIN, 2, 0b10
        layer.indices_type = trt.int64
        assert (layer.op, layer.k, layer.axes) == (T.MIN, 2, 0b10)
        assert layer.indices_type == trt.int64
        values, indices = net.run(layer.get_output(0), layer.get_output(1))
        np.testing.assert_array_equal(values, np.sort(x, 1)[:, :2])
        np.testing.assert_array_equal(indices, np.argsort(x, 1)[:, :2])
        assert indices.dtype == np.int64

    def test_topk_with_k_as_a_tensor(self):
        x = f32(6)
        net = Net()
        layer = net.network.add_topk(net.input(x), T.MAX, 1, 1)
        layer.set_input(1, net.const(np.int32(3)))
        np.testing.assert_array_equal(net.run(layer.get_output(0)), np.sort(x)[::-1][:3])

    @pytest.mark.parametrize("exclusive, reverse", [(0, 0), (1, 0), (0, 1), (1, 1)])
    def test_cumulative(self, exclusive, reverse):
        x = f32(2, 4)
        net = Net()
        layer = net.network.add_cumulative(net.input(x), net.const(np.int32(1)),
                                           trt.CumulativeOperation.SUM, False, False)
        layer.op = trt.CumulativeOperation.SUM
        layer.exclusive, layer.reverse = bool(exclusive), bool(reverse)
        assert (layer.exclusive, layer.reverse) == (bool(exclusive), bool(reverse))
        assert layer.op == trt.CumulativeOperation.SUM
        y = x[:, ::-1] if reverse else x
        want = np.cumsum(y, 1) - (y if exclusive else 0)
        close(net.run(layer.get_output(0)), want[:, ::-1] if reverse else want)

    def test_ragged_softmax(self):
        x, bounds = f32(2, 3, 4), np.array([[[1], [2], [4]], [[3], [4], [2]]], np.int32)
        net = Net()
        layer = net.network.add_ragged_softmax(net.input(x), net.input(bounds))
        assert type(layer) is trt.IRaggedSoftMaxLayer
        e = np.exp(x) * (np.arange(4) < bounds)
        close(net.run(layer.get_output(0)), e / e.sum(2, keepdims=True))


class TestNormalization:
    def test_lrn(self):
        x = f32(1, 5, 2, 2)
        net = Net()
        layer = net.network.add_lrn(net.input(x), 3, 1.0, 0.5, 1.0)
        layer.window_size, layer.alpha, layer.beta, layer.k = 5, 2.0, 0.75, 1.5
        assert (layer.window_size, layer.alpha, layer.beta, layer.k) == (5, 2.0, 0.75, 1.5)
        sums = np.stack([(x[:, max(c - 2, 0):c + 3] ** 2).sum(1) for c in range(5)], 1)
        close(net.run(layer.get_output(0)), x / (1.5 + 2 / 5 * sums) ** 0.75)

    def test_layer_norm(self):
        x, s, b = f32(2, 3, 4), f32(1, 1, 4), f32(1, 1, 4, seed=1)
        net = Net()
        layer = net.network.add_normalization(net.input(x), net.const(s), net.const(b), 0b010)
        layer.axes, layer.epsilon = 0b100, 0.5
        assert layer.axes == 0b100 and layer.epsilon == 0.5 and not layer.is_v2
        mean, var = x.mean(2, keepdims=True), x.var(2, keepdims=True)
        close(net.run(layer.get_output(0)), (x - mean) / np.sqrt(var + 0.5) * s + b)

    @pytest.mark.parametrize("v2, size", [(False, 2), (True, 4)])
    def test_group_norm(self, v2, size):
        """Scale and bias are per group in the first version, per channel in the second."""
        x, s, b = f32(2, 4, 3, 3), f32(1, size, 1, 1), f32(1, size, 1, 1, seed=1)
        net = Net()
        add = net.network.add_normalization_v2 if v2 else net.network.add_normalization
        layer = add(net.input(x), net.const(s), net.const(b), 0b1100)
        layer.num_groups = 2
        assert layer.num_groups == 2 and layer.is_v2 is v2
        g = x.reshape(2, 2, 2, 3, 3)
        mean, var = (f(axis=(2, 3, 4), keepdims=True) for f in (g.mean, g.var))
        want = ((g - mean) / np.sqrt(var + layer.epsilon)).reshape(x.shape)
        if not v2:
            s, b = (np.repeat(a, 2, axis=1) for a in (s, b))
        close(net.run(layer.get_output(0)), want * s + b)

    def test_precision_of_half(self):
        """Sums of half-precision numbers are done in FP32 whatever is asked for."""
        x = (f32(1, 2000) * 30 + 100).astype(np.float16)
        net = Net()
        one = net.const(np.ones((1, 1), np.float16))
        layer = net.network.add_normalization(net.input(x), one, one, 0b10)
        layer.compute_precision = trt.float16
        assert layer.compute_precision == trt.float16
        wide = x.astype(float)
        want = (wide - wide.mean()) / np.sqrt(wide.var() + layer.epsilon) + 1
        close(net.run(layer.get_output(0)), want, 5e-3)
