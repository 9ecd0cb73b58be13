"""resize against onnxruntime, ONNX's reference and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ort_oracle import onnx_reference, ort_run
from run_op import build, close, run_op

from tactician import ops
from tactician.ir import dims as D
from tactician.ir.graph import Graph

rng = np.random.default_rng(6)
X = rng.standard_normal((1, 2, 5, 7)).astype(np.float32)
SIZES = [(10, 14), (15, 7), (3, 4), (1, 1), (8, 5)]
SCALES = [(2.0, 3.0), (0.6, 1.7), (1.0, 0.5)]
COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
               "asymmetric"]


def t(x):
    return torch.from_numpy(x)


def sized(sizes, x=X, **kw):
    kw = {"axes": (2, 3), **kw}
    dynamic = {0: (0, 2)} if not kw.get("antialias") and "keep_aspect" not in kw else None
    return run_op("resize", [x, np.array(sizes)], const=[1], dynamic=dynamic, slack=5, **kw)


def scaled(scales, x=X, roi=None, **kw):
    kw = {"axes": (2, 3), **kw}
    return run_op("resize", [x, None, np.array(scales, np.float32), roi], const=[2, 3], slack=5,
                  **kw)


def onnx_sized(sizes, x=X, run=ort_run, **kw):
    full = np.array([*x.shape[:2], *sizes], np.int64)
    return run("Resize", [x, None, None, full], opset=19, **kw)[0]


def onnx_scaled(scales, x=X, run=ort_run, roi=None, **kw):
    full = np.array([1, 1, *scales], np.float32)
    return run("Resize", [x, roi, full], opset=19, **kw)[0]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_sizes(sizes, coordinate, nearest):
    got = sized(sizes, coordinate=coordinate, nearest=nearest)
    want = onnx_sized(sizes, coordinate_transformation_mode=coordinate, nearest_mode=nearest,
                      run=onnx_reference)
    close(got, want)


@pytest.mark.parametrize("scales", [(2, 2), (3, 1), (2, 4), (0.5, 0.25), (1.7, 0.6)])
@pytest.mark.parametrize("coordinate", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_scales(scales, coordinate, nearest):
    got = scaled(scales, coordinate=coordinate, nearest=nearest)
    if coordinate == "align_corners" and scales in ((1.7, 0.6), (0.5, 0.25)):
        run = onnx_reference  # onnxruntime rounds the output's extent first
    else:
        run = ort_run
    close(got, onnx_scaled(scales, coordinate_transformation_mode=coordinate,
                           nearest_mode=nearest, run=run))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_sizes(sizes, coordinate, mode):
    got = sized(sizes, coordinate=coordinate, mode=mode)
    want = onnx_sized(sizes, coordinate_transformation_mode=coordinate, mode=mode)
    close(got, want, slack=10)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [False, True])
def test_interpolation_scales(scales, coordinate, mode, exclude):
    got = scaled(scales, coordinate=coordinate, mode=mode, exclude_outside=exclude)
    # ONNX's reference takes the wrong neighbour where rounding makes a position whole
    run = ort_run if coordinate == "half_pixel_symmetric" else onnx_reference
    want = onnx_scaled(scales, coordinate_transformation_mode=coordinate, mode=mode,
                       exclude_outside=int(exclude and mode == "cubic"), run=run)
    close(got, want, slack=10)  # for linear, excluding is the same as repeating the edge


@pytest.mark.parametrize("sizes", [(3, 4), (2, 7), (10, 3)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias(sizes, mode):
    got = sized(sizes, mode=mode, antialias=True)
    want = onnx_sized(sizes, mode=mode, antialias=1, run=onnx_reference)
    close(got, want, slack=10)
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    clipped = sized(sizes, mode=mode, antialias=True, exclude_outside=True, cubic_a=-0.5)
    close(clipped, F.interpolate(t(X), sizes, mode=torch_mode, antialias=True).numpy(), slack=10)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(4, 6), (1, 3)])
def test_crop_and_resize(mode, sizes):
    roi = np.array([0.2, -0.3, 0.9, 1.4], np.float32)
    got = run_op("resize", [X, np.array(sizes), None, roi], const=[1, 3], axes=(2, 3), mode=mode,
                 coordinate="tf_crop_and_resize", extrapolation=7.5, slack=5)
    full = np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.4], np.float32)
    (want,) = ort_run(
        "Resize", [X, full, None, np.array([1, 2, *sizes])], opset=19, mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.5,
    )
    close(got, want, slack=10)
    assert (got == 7.5).any()


@pytest.mark.parametrize("policy,shape", [("not_larger", (4, 6)), ("not_smaller", (9, 12))])
def test_keep_aspect(policy, shape):
    sizes = (9, 6)
    got = sized(sizes, mode="linear", keep_aspect=policy)
    (want,) = onnx_reference("Resize", [X, None, None, np.array(sizes)], opset=19, axes=[2, 3],
                             keep_aspect_ratio_policy=policy, mode="linear")
    close(got, want, slack=10)
    assert got.shape == want.shape


@pytest.mark.parametrize("size", [(4, 9, 3), (2, 2, 8)])
def test_trilinear(size):
    x = rng.standard_normal((1, 2, 3, 4, 5)).astype(np.float32)
    got = run_op("resize", [x, np.array(size)], const=[1], axes=(2, 3, 4), mode="linear")
    close(got, F.interpolate(t(x), size, mode="trilinear").numpy())


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("dt", ["float16", "float64", "uint8", "int8"])
def test_types(mode, dt):
    x = (X * 60).astype(dt)
    got = sized((8, 5), x=x, mode=mode)
    wide = sized((8, 5), x=x.astype(np.float64), mode=mode)
    if "int" in dt:
        info = np.iinfo(dt)
        assert np.all(np.abs(np.clip(wide, info.min, info.max) - got) < 1.001)
    else:
        close(got, wide.astype(dt))


def test_symbolic_extents():
    g, n = Graph(), D.sym("n")
    x = g.add_input("x", "f32", (1, 3, n, 10))
    scales = g.constant(np.array([2.0, 0.7], np.float32))
    y = ops.emit(g, "resize", [x, None, scales], axes=(2, 3)).output
    assert y.shape == (1, 3, n * 2, 7)
    half = g.constant(np.array([0.5], np.float32))
    assert ops.emit(g, "resize", [x, None, half], axes=(2,)).output.shape[2] == n // 2


@pytest.mark.parametrize("inputs,attrs,text", [
    ([X], {}, "exactly one"), ([X, np.array([3])], {"axes": (2, 3)}, "vector of 2"),
    ([X, np.array([3, 3])], {"axes": (2, 3), "mode": "area"}, "mode 'area'"),
    ([X, np.array([3, 0])], {"axes": (2, 3)}, "above 0"),
])  # fmt: skip
def test_refuses(inputs, attrs, text):
    with pytest.raises(ops.OpError, match=text):
        build("resize", inputs, const=[1], **attrs)
