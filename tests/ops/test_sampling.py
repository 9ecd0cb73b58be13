"""grid_sample, affine_grid, regions of interest, col2im, max_unpool against torch and
onnxruntime."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ort_oracle import onnx_reference, ort_run
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(9)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def t(x):
    return torch.from_numpy(x)


X = normal(2, 3, 5, 6)
GRID = (rng.random((2, 4, 7, 2)) * 3.4 - 1.7).astype(np.float32)  # a good part lies outside
TORCH = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", TORCH)
@pytest.mark.parametrize("dt", ["float32", "float64"])
def test_grid_sample(mode, padding, align, dt):
    x, grid = X.astype(dt), GRID.astype(dt)
    got = run_op("grid_sample", [x, grid], dynamic={0: (0, 1, 2, 3), 1: (0, 1, 2)}, slack=5,
                 mode=mode, padding=padding, align_corners=align)
    want = F.grid_sample(t(x), t(grid), TORCH[mode], padding, align)
    close(got, want.numpy(), slack=10)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_volume(mode, padding, align):
    x, grid = normal(1, 2, 3, 4, 5), (rng.random((1, 2, 3, 4, 3)) * 3 - 1.5).astype(np.float32)
    got = run_op("grid_sample", [x, grid], slack=5, mode=mode, padding=padding,
                 align_corners=align)
    close(got, F.grid_sample(t(x), t(grid), TORCH[mode], padding, align).numpy(), slack=10)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_grid_sample_line(mode):
    x, grid = normal(2, 3, 9), (rng.random((2, 5, 1)) * 3 - 1.5).astype(np.float32)
    got = run_op("grid_sample", [x, grid], slack=5, mode=mode)
    (want,) = onnx_reference("GridSample", [x, grid], mode=mode)
    close(got, want, slack=10)


def test_grid_sample_far_and_not_a_number():
    grid = np.array([[[[1e30, 0], [np.inf, 0], [np.nan, 0]]]], np.float32)
    assert not run_op("grid_sample", [X[:1], grid], native=False)[..., :2].any()


def test_grid_sample_refuses():
    with pytest.raises(OpError, match="grid"):
        build("grid_sample", [X, GRID[..., :1]])


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 1, 3), (2, 2, 3, 4, 5)])
def test_affine_grid(size, align):
    r = len(size) - 2
    theta = normal(2, r, r + 1)
    got = run_op("affine_grid", [theta, np.array(size)], const=[1], dynamic={0: (0,)},
                 align_corners=align)
    close(got, F.affine_grid(t(theta), size, align).numpy())


ROIS = np.array([[0.5, 1, 9, 8], [2, 2, 3, 3], [-3, 4, 4, 30], [5, 5, 5, 5]], np.float32)
BATCH = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode, samples, half):
    x = normal(2, 3, 10, 9)
    got = run_op("roi_align", [x, ROIS, BATCH], dynamic={0: (0, 2), 1: (0,), 2: (0,)},
                 native=samples > 0, mode=mode, output_height=3, output_width=2,
                 sampling_ratio=samples, spatial_scale=0.7, half_pixel=half)
    (want,) = onnx_reference(
        "RoiAlign", [x, ROIS, BATCH], opset=16, mode=mode, output_height=3, output_width=2,
        sampling_ratio=samples, spatial_scale=0.7,
        coordinate_transformation_mode="half_pixel" if half else "output_half_pixel",
    )
    close(got, want, slack=3)


def test_max_roi_pool():
    x, rois = normal(2, 3, 10, 9), np.c_[BATCH, ROIS].astype(np.float32)
    got = run_op("max_roi_pool", [x, rois], native=False, output_height=3, output_width=2,
                 spatial_scale=0.5)
    close(got, ort_run("MaxRoiPool", [x, rois], pooled_shape=[3, 2], spatial_scale=0.5)[0])


@pytest.mark.parametrize("kw", [
    {}, {"stride": (2, 1)}, {"pre": (1, 2), "post": (1, 2)}, {"dilation": (2, 1)},
    {"stride": (2, 2), "pre": (1, 1), "post": (1, 1), "dilation": (1, 2)},
])  # fmt: skip
def test_col2im(kw):
    image, block = (7, 8), (2, 3)
    one = {"stride": (1, 1), "pre": (0, 0), "dilation": (1, 1), **kw}
    fold = torch.nn.Fold(image, block, one["dilation"], one["pre"], one["stride"])
    unfold = torch.nn.Unfold(block, one["dilation"], one["pre"], one["stride"])
    cols = unfold(t(normal(2, 3, *image)))
    got = run_op("col2im", [cols.numpy(), np.array(image), np.array(block)], const=[1, 2],
                 dynamic={0: (0,)}, **kw)
    close(got, fold(cols).numpy())


def test_max_unpool():
    x, where = normal(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]])
    kw = {"window": (2, 2), "stride": (2, 2)}
    got = run_op("max_unpool", [x, where], native=False, **kw)
    close(got, F.max_unpool2d(t(x), t(where), 2).numpy())
    shape = np.array([1, 1, 5, 5])
    got = run_op("max_unpool", [x, where, shape], const=[2], native=False, **kw)
    (want,) = onnx_reference("MaxUnpool", [x, where, shape], kernel_shape=[2, 2], strides=[2, 2])
    close(got, want)
