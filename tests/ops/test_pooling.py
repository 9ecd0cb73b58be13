"""pooling and max_pool_indices against onnxruntime and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ort_oracle import ort_run
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(3)
X = rng.standard_normal((2, 3, 11, 9)).astype(np.float32)
GEOMETRY = [
    {"window": (2, 2), "stride": (2, 2)},
    {"window": (3, 2), "stride": (2, 1), "pre": (1, 0), "post": (0, 1)},
    {"window": (3, 3), "stride": (2, 3), "pre": (1, 1), "post": (1, 1)},
    {"window": (2, 3), "stride": (3, 2), "pre": (1, 2), "post": (1, 2), "dilation": (2, 2)},
    {"window": (5, 4), "stride": (4, 4), "pre": (2, 1), "post": (2, 2)},
]
DYNAMIC = {0: (0, 1, 2, 3)}


def onnx_attrs(window, stride=(), pre=(), post=(), dilation=()):
    return {"kernel_shape": window, "strides": stride, "pads": (*pre, *post),
            "dilations": dilation}


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_max(geometry, ceil):
    got = run_op("pooling", [X], dynamic=DYNAMIC, ceil=ceil, **geometry)
    close(got, ort_run("MaxPool", [X], ceil_mode=int(ceil), **onnx_attrs(**geometry))[0])


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_average(geometry, ceil, include):
    got = run_op("pooling", [X], dynamic=DYNAMIC, fn="average", ceil=ceil,
                 count_include_pad=include, **geometry)
    (want,) = ort_run("AveragePool", [X], ceil_mode=int(ceil), count_include_pad=int(include),
                      **onnx_attrs(**geometry))
    close(got, want)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRY[:3])
def test_lp(geometry, p):
    got = run_op("pooling", [X], dynamic=DYNAMIC, fn="lp", p=p, **geometry)
    close(got, ort_run("LpPool", [X], p=p, **onnx_attrs(**geometry))[0])


@pytest.mark.parametrize("mode", ["same_upper", "same_lower"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("fn,onnx", [("max", "MaxPool"), ("average", "AveragePool")])
def test_same_padding(fn, onnx, stride, mode):
    got = run_op("pooling", [X], dynamic=DYNAMIC, fn=fn, window=(3, 2), stride=stride,
                 padding_mode=mode)
    close(got, ort_run(onnx, [X], kernel_shape=(3, 2), strides=stride, auto_pad=mode.upper())[0])


def test_explicit_up_keeps_windows_that_ceil_drops():
    kept = run_op("pooling", [X], window=(2, 2), stride=(3, 3), post=(2, 2), fn="average",
                  padding_mode="explicit_up")
    dropped = run_op("pooling", [X], window=(2, 2), stride=(3, 3), post=(2, 2), fn="average",
                     ceil=True)
    assert kept.shape == (2, 3, 5, 4) and dropped.shape == (2, 3, 4, 3)
    close(kept[:, :, :4, :3], dropped)
    assert not kept[:, :, 4].any()


def test_blend():
    got = run_op("pooling", [X], fn="max_average_blend", blend=0.25, window=(2, 2), stride=(2, 2))
    x = torch.from_numpy(X)
    close(got, (0.75 * F.max_pool2d(x, 2) + 0.25 * F.avg_pool2d(x, 2)).numpy())


@pytest.mark.parametrize("shape,window", [((2, 3, 9), (3,)), ((1, 2, 5, 6, 7), (2, 3, 2)),
                                          ((4, 7), (3,))])
def test_other_ranks(shape, window):
    x = rng.standard_normal(shape).astype(np.float32)
    pool = {1: F.max_pool1d, 3: F.max_pool3d}[len(window)]
    got = run_op("pooling", [x], window=window, stride=(2,) * len(window))
    close(got, pool(torch.from_numpy(x), window, 2).numpy())


@pytest.mark.parametrize("dt", ["int8", "uint8", "float16", "float64"])
def test_types(dt):
    x = (np.abs(X) * 50).astype(dt)
    kw = {"window": (3, 3), "stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
    close(run_op("pooling", [x], **kw),
          F.max_pool2d(torch.from_numpy(x.astype(np.float64)), 3, 2, 1).numpy().astype(dt))
    got = run_op("pooling", [x], fn="average", **kw)
    want = F.avg_pool2d(torch.from_numpy(x.astype(np.float64)), 3, 2, 1, count_include_pad=False)
    close(got, np.trunc(want.numpy()).astype(dt) if "int" in dt else want.numpy().astype(dt))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_indices(geometry, order):
    x = rng.integers(0, 4, X.shape).astype(np.float32)  # many ties
    y, where = run_op("max_pool_indices", [x], native=False, column_major=bool(order), **geometry)
    want = ort_run("MaxPool", [x], 2, storage_order=order, **onnx_attrs(**geometry))
    close(y, want[0])
    close(where, want[1])


@pytest.mark.parametrize("attrs,text", [
    ({"window": (3,), "stride": (1, 1)}, "2 entries"), ({"window": (20, 2)}, "smaller window"),
    ({"window": ()}, "window is empty"), ({"window": (2, 2), "stride": (0, 1)}, "at least 1"),
    ({"window": (2, 2), "padding_mode": "valid"}, "same_upper"),
])  # fmt: skip
def test_refuses(attrs, text):
    with pytest.raises(OpError, match=text):
        build("pooling", [X], **attrs)
