"""convolution, deconvolution, int_conv, deform_conv against torch and onnxruntime."""

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ort_oracle import ort_run
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(5)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DECONV = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def t(x):
    return None if x is None else torch.from_numpy(x)


@pytest.mark.parametrize("spatial,window,stride,pad,dilation", [
    ((9, 8), (3, 3), (1, 1), (1, 1), (1, 1)), ((9, 8), (3, 2), (2, 1), (1, 0), (1, 2)),
    ((7, 7), (1, 1), (2, 2), (0, 0), (1, 1)), ((11,), (4,), (3,), (2,), (2,)),
    ((4, 5, 6), (2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2)),
    ((5, 5), (5, 5), (1, 1), (4, 4), (1, 1)),
])  # fmt: skip
@pytest.mark.parametrize("groups,channels,outputs", [(1, 3, 4), (2, 4, 6), (4, 4, 8)])
def test_convolution(spatial, window, stride, pad, dilation, groups, channels, outputs):
    x, b = normal(2, channels, *spatial), normal(outputs)
    w = normal(outputs, channels // groups, *window)
    got = run_op("convolution", [x, w, b], dynamic={0: (0, *range(2, 2 + len(spatial)))},
                 stride=stride, pre=pad, post=pad, dilation=dilation, groups=groups)
    close(got, CONV[len(spatial)](t(x), t(w), t(b), stride, pad, dilation, groups).numpy())


@pytest.mark.parametrize("mode", ["same_upper", "same_lower"])
@pytest.mark.parametrize("stride,window", [((1, 1), (2, 4)), ((2, 3), (3, 2)), ((3, 3), (2, 2))])
def test_same_padding(stride, window, mode):
    x, w = normal(1, 2, 10, 9), normal(3, 2, *window)
    got = run_op("convolution", [x, w], dynamic={0: (0, 2, 3)}, stride=stride, padding_mode=mode)
    close(got, ort_run("Conv", [x, w], strides=stride, auto_pad=mode.upper())[0])


def test_uneven_and_negative_padding():
    x, w = normal(1, 2, 8, 8), normal(3, 2, 3, 3)
    got = run_op("convolution", [x, w], pre=(2, -1), post=(0, 1))
    close(got, F.conv2d(F.pad(t(x), (-1, 1, 2, 0)), t(w)).numpy())


def test_large_goes_tap_by_tap():
    x, w = normal(1, 64, 40, 40), normal(2, 64, 9, 9)  # too large for one column buffer
    got = run_op("convolution", [x, w], native=False, pre=(4, 4), post=(4, 4), slack=10)
    close(got, F.conv2d(t(x), t(w), padding=4).numpy(), slack=10)


@pytest.mark.parametrize("dt", ["float16", "float64", ml_dtypes.bfloat16])
def test_types(dt):
    x, w, b = normal(1, 3, 6, 6).astype(dt), normal(4, 3, 3, 3).astype(dt), normal(4).astype(dt)
    want = F.conv2d(*(t(v.astype(np.float64)) for v in (x, w, b))).numpy().astype(dt)
    close(run_op("convolution", [x, w, b]), want)


def test_explicit_up():
    x, w = normal(1, 1, 6), normal(1, 1, 3)
    got = run_op("convolution", [x, w], stride=(2,), padding_mode="explicit_up")
    close(got, F.conv1d(F.pad(t(x), (0, 1)), t(w), stride=2).numpy())


@pytest.mark.parametrize("shapes,attrs,text", [
    (((1, 3, 8, 8), (4, 2, 3, 3)), {}, "3 channels"),
    (((1, 8, 8, 3), (4, 3, 3, 3)), {}, "transpose x"),
    (((1, 4, 8, 8), (3, 2, 3, 3)), {"groups": 2}, "do not divide into 2 groups"),
    (((1, 3, 2, 2), (4, 3, 3, 3)), {}, "pad more"),
    (((1, 3, 8), (4, 3, 3, 3)), {}, "as many"),
    (((1, 3, 8, 8), (4, 3, 3, 3), (3,)), {}, "one per output channel"),
    (((1, 3, 8, 8), (4, 3, 3, 3)), {"stride": (1,)}, "2 spatial dimensions"),
])  # fmt: skip
def test_refuses(shapes, attrs, text):
    with pytest.raises(OpError, match=text):
        build("convolution", [normal(*s) for s in shapes], **attrs)


@pytest.mark.parametrize("spatial,window,stride,pad,dilation,extra", [
    ((5, 4), (3, 3), (1, 1), (1, 1), (1, 1), (0, 0)),
    ((5, 4), (2, 2), (2, 2), (0, 0), (1, 1), (0, 0)),
    ((5, 4), (3, 4), (2, 3), (1, 1), (1, 2), (1, 2)), ((6,), (4,), (3,), (2,), (2,), (1,)),
    ((3, 4, 2), (2, 3, 2), (2, 1, 2), (1, 0, 0), (1, 1, 2), (0, 0, 1)),
    ((5, 4), (1, 1), (3, 3), (0, 0), (1, 1), (0, 0)),
])  # fmt: skip
@pytest.mark.parametrize("groups,channels,outputs", [(1, 3, 4), (2, 4, 6), (4, 4, 4)])
def test_deconvolution(spatial, window, stride, pad, dilation, extra, groups, channels, outputs):
    x, b = normal(2, channels, *spatial), normal(outputs)
    w = normal(channels, outputs // groups, *window)
    got = run_op("deconvolution", [x, w, b], dynamic={0: (0, *range(2, 2 + len(spatial)))},
                 stride=stride, pre=pad, post=pad, dilation=dilation, groups=groups,
                 output_padding=extra)
    close(got, DECONV[len(spatial)](t(x), t(w), t(b), stride, pad, extra, groups, dilation).numpy())


@pytest.mark.parametrize("mode", ["same_upper", "same_lower"])
@pytest.mark.parametrize("stride,window", [((2, 2), (3, 3)), ((2, 3), (4, 4)), ((1, 1), (2, 2))])
def test_deconvolution_same_padding(stride, window, mode):
    x, w = normal(1, 2, 4, 5), normal(2, 3, *window)
    got = run_op("deconvolution", [x, w], stride=stride, padding_mode=mode)
    close(got, ort_run("ConvTranspose", [x, w], strides=stride, auto_pad=mode.upper())[0])


def test_deconvolution_negative_padding_extends():
    x, w = normal(1, 2, 4), normal(2, 3, 3)
    got = run_op("deconvolution", [x, w], pre=(-1,), post=(-2,))
    close(got, F.pad(F.conv_transpose1d(t(x), t(w)), (1, 2)).numpy())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_int_conv(groups, per_channel):
    x = rng.integers(0, 256, (2, 4, 7, 6)).astype(np.uint8)
    w = rng.integers(0, 256, (6, 4 // groups, 3, 3)).astype(np.uint8)
    zx = np.array(113, np.uint8)
    zw = rng.integers(0, 256, 6).astype(np.uint8) if per_channel else np.array(5, np.uint8)
    kw = {"pre": (1, 1), "post": (1, 0), "stride": (2, 1)}
    got = run_op("int_conv", [x, w, zx, zw], dynamic={0: (0, 2)}, groups=groups, **kw)
    if per_channel:  # onnxruntime has scalars only
        wide = [t(v.astype(np.float64)) for v in (x, w, zw)]
        padded = F.pad(wide[0] - 113, (1, 0, 1, 1))
        want = F.conv2d(padded, wide[1] - wide[2][:, None, None, None], None, (2, 1), groups=groups)
        close(got, want.numpy().astype(np.int32))
    else:
        close(got, ort_run("ConvInteger", [x, w, zx, zw], group=groups, pads=[1, 1, 1, 0],
                           strides=[2, 1])[0])


@pytest.mark.parametrize("groups,offset_groups", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_deform_conv(groups, offset_groups, masked):
    x, w, b = normal(2, 4, 6, 7), normal(6, 4 // groups, 3, 2), normal(6)
    kw = {"stride": (2, 1), "pre": (1, 1), "post": (1, 1), "dilation": (1, 2)}
    out = (3, 7)
    offset = normal(2, offset_groups * 12, *out) * 1.5
    mask = rng.random((2, offset_groups * 6, *out)).astype(np.float32) if masked else None
    got = run_op("deform_conv", [x, w, offset, b, mask], groups=groups,
                 offset_groups=offset_groups, **kw)
    (want,) = ort_run("DeformConv", [x, w, offset, b, mask], opset=22, group=groups,
                      offset_group=offset_groups, strides=[2, 1], pads=[1, 1, 1, 1],
                      dilations=[1, 2], kernel_shape=[3, 2])
    close(got, want, slack=3)
