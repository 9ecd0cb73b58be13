"""Resizing and sampling at points, against torch and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from apikit import Net, close, f32

import tactician as trt


class TestSampling:
    def test_resize(self):
        x = f32(1, 2, 4, 5)
        net = Net()
        layer = net.network.add_resize(net.input(x))
        layer.scales = [1, 1, 2, 2]
        assert list(layer.scales) == [1, 1, 2, 2]
        layer.shape = (1, 2, 7, 9)
        layer.resize_mode = trt.InterpolationMode.CUBIC
        layer.coordinate_transformation = trt.ResizeCoordinateTransformation.HALF_PIXEL
        layer.cubic_coeff = -0.75
        assert tuple(layer.shape) == (1, 2, 7, 9) and layer.cubic_coeff == -0.75
        assert layer.resize_mode == trt.InterpolationMode.CUBIC
        want = torch.nn.functional.interpolate(torch.tensor(x), (7, 9), mode="bicubic")
        close(net.run(layer.get_output(0)), want, 1e-4)

    def test_cubic_coefficient_and_outside(self):
        x = f32(1, 1, 4, 4)
        results = []
        for coeff, exclude in ((-0.75, False), (-0.5, False), (-0.5, True)):
            net = Net()
            layer = net.network.add_resize(net.input(x))
            layer.shape, layer.resize_mode = (1, 1, 8, 8), trt.InterpolationMode.CUBIC
            layer.coordinate_transformation = trt.ResizeCoordinateTransformation.HALF_PIXEL
            layer.cubic_coeff, layer.exclude_outside = coeff, exclude
            assert layer.exclude_outside is exclude
            results.append(net.run(layer.get_output(0)))
        a = -0.5  # the kernel at distances 1.25, 0.25, 0.75, 1.75

        def weights(t):
            far = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (1 + t, 2 - t)]
            near = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (t, 1 - t)]
            return np.array([far[0], near[0], near[1], far[1]])

        middle = weights(0.25)  # output 3 is at 1.25
        row = x[0, 0] @ middle
        assert abs(results[1][0, 0, 3, 3] - row @ middle) < 1e-5
        assert abs(results[0] - results[1]).max() > 1e-3
        inside = weights(0.75)[2:]  # output 0 is at -0.25
        edge = np.array([*inside, 0, 0]) / inside.sum()
        assert abs(results[2][0, 0, 0, 0] - edge @ x[0, 0] @ edge) < 1e-5

    @pytest.mark.parametrize("rounding, picked", [
        (trt.ResizeRoundMode.HALF_UP, [0, 2, 4]), (trt.ResizeRoundMode.HALF_DOWN, [0, 1, 3]),
        (trt.ResizeRoundMode.FLOOR, [0, 1, 3]), (trt.ResizeRoundMode.CEIL, [0, 2, 4]),
    ])
    def test_nearest_rounding(self, rounding, picked):
        x = np.arange(5, dtype=np.float32)[None, None, None]
        net = Net()
        layer = net.network.add_resize(net.input(x))
        layer.scales = [1, 1, 1, 2 / 3]  # outputs are at 0, 1.5 and 3
        layer.shape = (1, 1, 1, 3)
        layer.coordinate_transformation = trt.ResizeCoordinateTransformation.ASYMMETRIC
        layer.nearest_rounding = rounding
        assert layer.nearest_rounding == rounding
        at = np.arange(3) * 5 / 3
        fn = {trt.ResizeRoundMode.FLOOR: np.floor, trt.ResizeRoundMode.CEIL: np.ceil,
              trt.ResizeRoundMode.HALF_UP: lambda v: np.floor(v + 0.5),
              trt.ResizeRoundMode.HALF_DOWN: lambda v: np.ceil(v - 0.5)}[rounding]
        np.testing.assert_array_equal(net.run(layer.get_output(0)).reshape(-1), fn(at))

    @pytest.mark.parametrize("selector, want", [
        (trt.ResizeSelector.FORMULA, 2.0), (trt.ResizeSelector.UPPER, 0.0)])
    def test_selector_for_single_pixel(self, selector, want):
        x = np.arange(5, dtype=np.float32)[None, None, None]
        net = Net()
        layer = net.network.add_resize(net.input(x))
        layer.shape, layer.resize_mode = (1, 1, 1, 1), trt.InterpolationMode.LINEAR
        layer.coordinate_transformation = trt.ResizeCoordinateTransformation.HALF_PIXEL
        layer.selector_for_single_pixel = selector
        assert layer.selector_for_single_pixel == selector
        assert net.run(layer.get_output(0)).item() == want

    def test_align_corners_and_shape_tensor(self):
        x = f32(1, 1, 3, 4)
        net = Net()
        layer = net.network.add_resize(net.input(x))
        layer.resize_mode = trt.ResizeMode.LINEAR
        layer.align_corners = True
        assert layer.align_corners
        kind = trt.ResizeCoordinateTransformation.ALIGN_CORNERS
        assert layer.coordinate_transformation == kind
        layer.set_input(1, net.const(np.array([1, 1, 5, 7])))
        y = net.run(layer.get_output(0))
        np.testing.assert_allclose(y[..., ::2, ::2], x, rtol=1e-5)

    @pytest.mark.parametrize("mode, align, sample", [
        (trt.InterpolationMode.LINEAR, False, trt.SampleMode.FILL),
        (trt.InterpolationMode.NEAREST, True, trt.SampleMode.CLAMP),
        (trt.InterpolationMode.CUBIC, True, trt.SampleMode.REFLECT),
    ])
    def test_grid_sample(self, mode, align, sample):
        x, grid = f32(1, 2, 4, 5), f32(1, 3, 3, 2)
        net = Net()
        layer = net.network.add_grid_sample(net.input(x), net.input(grid))
        layer.interpolation_mode, layer.align_corners, layer.sample_mode = mode, align, sample
        assert (layer.interpolation_mode, layer.align_corners, layer.sample_mode) == (
            mode, align, sample)
        want = torch.nn.functional.grid_sample(
            torch.tensor(x), torch.tensor(grid), align_corners=align,
            mode={"LINEAR": "bilinear", "NEAREST": "nearest", "CUBIC": "bicubic"}[mode.name],
            padding_mode={"FILL": "zeros", "CLAMP": "border", "REFLECT": "reflection"}[sample.name])
        close(net.run(layer.get_output(0)), want, 1e-4)
