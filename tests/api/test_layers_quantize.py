"""Quantize, dequantize, dynamic quantization: axes, blocks and types, against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt


def q8(x, scale):
    return np.clip(np.rint(x / scale), -128, 127)


class TestQuantize:
    def test_axis(self):
        x, scale = f32(3, 4), np.array([0.01, 0.02, 0.03, 0.04], np.float32)
        net = Net()
        layer = net.network.add_quantize(net.input(x), net.const(scale))
        layer.axis = 1
        back = net.network.add_dequantize(layer.get_output(0), net.const(scale))
        back.axis = 1
        assert (layer.axis, back.axis) == (1, 1) and layer.to_type == trt.int8
        codes, floats = net.run(layer.get_output(0), back.get_output(0))
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes, q8(x, scale))
        close(floats, q8(x, scale) * scale)

    def test_types(self):
        x, scale = f32(3, 4), np.float32(0.5)
        net = Net()
        layer = net.network.add_quantize(net.input(x), net.const(scale), trt.int8)
        layer.to_type = trt.fp8
        assert layer.to_type == trt.fp8 and layer.get_output(0).dtype == trt.DataType.FP8
        back = net.network.add_dequantize(layer.get_output(0), net.const(scale), trt.float32)
        back.to_type = trt.float32
        assert back.to_type == trt.float32
        want = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        close(net.run(back.get_output(0)), want)

    @pytest.mark.parametrize("explicit", [False, True])
    def test_blocks_along_one_dimension(self, explicit):
        x, scale = f32(4, 6), abs(f32(2, 6)) / 50 + 0.01
        net = Net()
        layer = net.network.add_quantize(net.input(x), net.const(scale))
        back = net.network.add_dequantize(layer.get_output(0), net.const(scale))
        if explicit:
            layer.block_shape = back.block_shape = (2, 1)
            assert tuple(layer.block_shape) == tuple(back.block_shape) == (2, 1)
        wide = np.repeat(scale, 2, 0)
        close(net.run(back.get_output(0)), q8(x, wide) * wide)

    def test_blocks_along_two_dimensions(self):
        x, scale = f32(4, 6), abs(f32(2, 2)) / 50 + 0.01
        net = Net()
        layer = net.network.add_quantize(net.input(x), net.const(scale))
        back = net.network.add_dequantize(layer.get_output(0), net.const(scale))
        layer.block_shape = back.block_shape = (2, 3)
        wide = np.repeat(np.repeat(scale, 2, 0), 3, 1)
        close(net.run(back.get_output(0)), q8(x, wide) * wide)

    def test_blocks_that_do_not_fit_are_named(self):
        net = Net()
        layer = net.network.add_quantize(net.input(f32(4, 6)), net.const(np.ones((2, 2), "f")))
        layer.block_shape = (2, 2)
        text = net.fails(layer.get_output(0))
        assert layer.name in text and "(2, 2)" in text


class TestDynamicQuantize:
    @pytest.mark.parametrize("name, value", [("block_size", 16), ("block_shape", (1, 16))])
    def test_blocks(self, name, value):
        x = f32(2, 32)
        net = Net()
        layer = net.network.add_dynamic_quantize(net.input(x), 1, 32, trt.fp8, trt.float32)
        layer.axis = 1
        setattr(layer, name, value)
        layer.to_type, layer.scale_type = trt.fp8, trt.e8m0
        assert (layer.axis, layer.to_type, layer.scale_type) == (1, trt.fp8, trt.e8m0)
        if name == "block_shape":
            assert tuple(layer.block_shape) == value
        else:
            assert layer.block_size == value
        assert layer.get_output(1).dtype == trt.DataType.E8M0
        data, scales = layer.get_output(0), layer.get_output(1)
        assert tuple(scales.shape) == (2, 2)
        back = net.network.add_dequantize(data, scales, trt.float32)
        y = net.run(back.get_output(0))
        blocks = x.reshape(2, 2, 16)
        worst = abs(blocks).max(2, keepdims=True)
        assert (abs(y.reshape(blocks.shape) - blocks) <= worst / 8).all()
        assert abs(y - x).max() > 0

    def test_v2(self):
        x = f32(2, 32)
        net = Net()
        layer = net.network.add_dynamic_quantize_v2(net.input(x), (1, 16), trt.fp8, trt.e8m0)
        assert type(layer) is trt.IDynamicQuantizeLayer
        assert tuple(layer.get_output(1).shape) == (2, 2)
        back = net.network.add_dequantize(layer.get_output(0), layer.get_output(1), trt.float32)
        close(net.run(back.get_output(0)), x, 0.3)
