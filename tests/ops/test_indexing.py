"""Gather, scatter and the ops that search, against numpy, torch and onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from stage_checks import check, make, same

from tactician.ops import OpError, evaluate

RNG = np.random.default_rng(2)


def x32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def indices(high, *shape, negative=True):
    return RNG.integers(-high if negative else 0, high, size=shape)


def ort_run(op, inputs, opset=18, n_out=1, **attrs):
    """The op in onnxruntime."""
    names = ["" if a is None else f"x{k}" for k, a in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, [f"y{k}" for k in range(n_out)], **attrs)
    to_type = onnx.helper.np_dtype_to_tensor_dtype
    ins = [onnx.helper.make_tensor_value_info(n, to_type(a.dtype), a.shape)
           for n, a in zip(names, inputs, strict=True) if n]
    outs = [onnx.helper.make_empty_tensor_value_info(f"y{k}") for k in range(n_out)]
    graph = onnx.helper.make_graph([node], "g", ins, outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)],
                                   ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {n: a for n, a in zip(names, inputs, strict=True) if n})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)])
def test_gather(axis, shape):
    x = x32(3, 4, 5)
    idx = indices(3, *shape) if shape != () else np.array(-1)
    same(check("gather", x, idx, axis=axis), np.take(x, idx, axis))


@pytest.mark.parametrize("idx", [2, -1, [1], [0, 2, 1], [0, -1], [7, -9]])
def test_gather_constant_indices(idx):
    x = x32(3, 4)
    got = check("gather", x, np.array(idx), const=(1,))
    same(got, np.take(x, np.array(idx) if idx != [7, -9] else [2, 0], 0))


def test_gather_batch_dims():
    x, idx = x32(2, 3, 4, 5), indices(4, 2, 3, 6)
    got = check("gather", x, idx, axis=2, batch_dims=2)
    same(got, np.take_along_axis(x, np.where(idx < 0, idx + 4, idx)[..., None], axis=2))
    got = check("gather", x, idx[:, 0], axis=2, batch_dims=1)
    same(got, np.stack([np.take(x[b], idx[b, 0], 1) for b in range(2)]))


def test_gather_out_of_range_reads_the_edge():
    assert check("gather", x := x32(3), np.array([7, -9])).tolist() == [x[2], x[0]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_elements(axis):
    x, idx = x32(3, 4, 5), indices(3, 3, 2, 3)
    got = check("gather_elements", x, idx, axis=axis)
    wrapped = torch.from_numpy(np.where(idx < 0, idx + x.shape[axis], idx))
    same(got, torch.gather(torch.from_numpy(x), axis, wrapped).numpy())


@pytest.mark.parametrize("batch,shape", [(0, (4, 2)), (0, (2, 3, 1)), (1, (2, 3, 1)),
                                         (2, (2, 3, 2)), (0, (5, 4)), (0, (3, 0))])  # fmt: skip
def test_gather_nd(batch, shape):
    x = x32(2, 3, 4, 3)
    idx = indices(2, *shape)
    got = check("gather_nd", x, idx, fixed=(1,), batch_dims=batch)
    if shape[-1]:
        same(got, ort_run("GatherND", [x, idx], batch_dims=batch)[0])
    else:
        same(got, np.broadcast_to(x, (3, *x.shape)))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements(reduction, axis):
    x, upd = x32(4, 5), x32(3, 2)
    idx = indices(4, 3, 2)
    if reduction == "none":
        idx = np.array([[0, 1], [-2, 3], [1, 0]])
    got = check("scatter_elements", x, idx, upd, axis=axis, reduction=reduction,
                expect_stages=False)
    same(got, ort_run("ScatterElements", [x, idx, upd], axis=axis, reduction=reduction)[0])


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter_nd(reduction):
    x, upd = x32(4, 5, 2), x32(2, 3, 2)
    idx = np.array([[[0, 0], [1, 2], [3, 4]], [[2, 2], [1, 1], [-1, -2]]])
    got = check("scatter_nd", x, idx, upd, reduction=reduction, fixed=(1,), expect_stages=False)
    same(got, ort_run("ScatterND", [x, np.where(idx < 0, idx + np.array([4, 5]), idx), upd],
                      reduction=reduction)[0])


def test_scatter_of_short_floats_accumulates_in_f32():
    x, idx = np.zeros(1, np.float16), np.zeros(5000, np.int64)
    upd = np.full(5000, 0.25, np.float16)
    node = make("scatter_elements", x, idx, upd, reduction="add")
    assert evaluate(node, x, idx, upd)[0].tolist() == [1250]


def test_scatter_refuses():
    with pytest.raises(OpError, match="updates"):
        make("scatter_nd", x32(3, 4), np.zeros((2, 1), np.int64), x32(2, 5))
    with pytest.raises(OpError, match="reduction"):
        make("scatter_nd", x32(3), np.zeros((2, 1), np.int64), x32(2), reduction="sum")
    x, idx, upd = x32(3), np.array([[5]]), x32(1)
    with pytest.raises(IndexError, match="out of range"):
        evaluate(make("scatter_nd", x, idx, upd), x, idx, upd)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dt", [np.int64, np.float32, np.uint8])
def test_one_hot(axis, dt):
    idx = np.array([[0, 3, 5], [1, 2, 9]]).astype(dt)
    values = np.array([-1, 4], np.float32)
    got = check("one_hot", idx, np.array(6), values, const=(1,), axis=axis)
    same(got, ort_run("OneHot", [idx.astype(np.int64), np.array(6), values], axis=axis)[0])


def test_one_hot_negative_indices():
    got = check("one_hot", np.array([-1, 0]), np.array(3), np.array([0, 1]), const=(1,))
    assert got.tolist() == [[0, 0, 1], [1, 0, 0]]


# --- searching ------------------------------------------------------------------------------


def search(op, *arrays, **kw):
    return check(op, *arrays, expect_stages=False, **kw)


@pytest.mark.parametrize("dt", [np.float32, np.int32, np.bool_])
def test_non_zero(dt):
    x = RNG.integers(0, 2, size=(3, 4, 2)).astype(dt)
    same(search("non_zero", x), np.array(np.nonzero(x)))
    assert search("non_zero", np.zeros((0, 2), dt)).shape == (2, 0)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_compress(axis):
    x, cond = x32(3, 4), np.array([False, True, True])
    same(search("compress", x, cond, axis=axis), np.compress(cond, x, axis))


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_unique(is_sorted, axis):
    x = RNG.integers(0, 3, size=(5, 2)).astype(np.float32)
    got = search("unique", x, axis=axis, sorted=is_sorted)
    attrs = {} if axis is None else {"axis": axis}
    expected = ort_run("Unique", [x], n_out=4, sorted=int(is_sorted), **attrs)
    for a, b in zip(got, expected, strict=True):
        same(a, b)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dt", [np.float32, np.int64, np.float16])
def test_topk_ties_take_the_lowest_index(largest, axis, dt):
    x = RNG.integers(0, 4, size=(7, 9)).astype(dt)
    values, idx = search("topk", x, np.array([5]), const=(1,), axis=axis, largest=largest)
    order = np.argsort(-x.astype(float) if largest else x.astype(float), axis, kind="stable")
    same(idx, np.take(order, np.arange(5), axis))
    same(values, np.take_along_axis(x, idx, axis))


def test_topk_refuses():
    with pytest.raises(OpError, match="k = 5 of 3"):
        make("topk", x32(2, 3), np.array([5]), const=(1,))


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("most,iou,score", [(3, 0.5, 0.2), (20, 0.3, None), (20, 0.0, 0.9),
                                            (20, 1.0, 0.0)])  # fmt: skip
def test_nms(center, most, iou, score):
    boxes = RNG.uniform(0, 1, size=(2, 30, 4)).astype(np.float32)
    scores = RNG.integers(0, 40, size=(2, 3, 30)).astype(np.float32) / 40
    extra = [np.array([most]), np.array([iou], np.float32),
             None if score is None else np.array([score], np.float32)]
    got = search("nms", boxes, scores, *extra, center_box=bool(center))
    ins = [boxes, scores, *(e for e in extra if e is not None)]
    same(got, ort_run("NonMaxSuppression", ins, center_point_box=center)[0])


def test_nms_without_a_limit_selects_nothing():
    boxes, scores = x32(1, 3, 4), x32(1, 1, 3)
    assert search("nms", boxes, scores).shape == (0, 3)
