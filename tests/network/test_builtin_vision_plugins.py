"""Plugins for vision under TensorRT's names, against formulas, torch and ONNX nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tactician as trt

F, I = np.float32, np.int32
rng = np.random.default_rng(3)


def run(name: str, fields: dict[str, Any], *feeds: np.ndarray) -> list[np.ndarray]:
    assert trt.init_libnvinfer_plugins(None, "")
    creator = trt.get_plugin_registry().get_plugin_creator(name, "1", "")
    assert {f.name for f in creator.field_names} >= set(fields)
    plugin = creator.create_plugin(name, trt.PluginFieldCollection(
        [trt.PluginField(k, np.atleast_1d(v)) for k, v in fields.items()]))
    net = trt.INetworkDefinition(0, trt.Logger(trt.Logger.ERROR), implicit_batch=False)
    types = {np.dtype(F): trt.float32, np.dtype(I): trt.int32}
    inputs = [net.add_input(f"x{i}", types[x.dtype], x.shape) for i, x in enumerate(feeds)]
    layer = net.add_plugin_v2(inputs, plugin)
    for i in range(layer.num_outputs):
        layer.get_output(i).name = f"y{i}"
        net.mark_output(layer.get_output(i))
    out = trt.build(net, level=0)({f"x{i}": x for i, x in enumerate(feeds)})
    return [out[f"y{i}"] for i in range(layer.num_outputs)]


X = rng.standard_normal((2, 6, 5, 4)).astype(F)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def region() -> np.ndarray:
    parts = []
    for k in range(2):
        a = X.repeat(3, axis=1)[:, k * 8:k * 8 + 8]
        e = np.exp(a[:, 5:])
        parts += [sigmoid(a[:, :2]), a[:, 2:4], sigmoid(a[:, 4:5]), e / e.sum(1, keepdims=True)]
    return np.concatenate(parts, axis=1)


def normed(relu: bool) -> np.ndarray:
    y = (X - X.mean((2, 3), keepdims=True)) / np.sqrt(X.var((2, 3), keepdims=True) + 1e-3)
    y = y * np.arange(1, 7).reshape(1, 6, 1, 1) + 0.5
    return np.where(y < 0, 0.1 * y, y) if relu else y


def scattered() -> np.ndarray:
    y = X.copy()
    y[[1, 0], [2, 5]] = X[0, :2]
    return y


NORM = {"epsilon": F(1e-3), "scales": np.arange(1, 7).astype(F), "bias": np.full(6, 0.5, F)}
CASES = {
    "LReLU_TRT": ({"negSlope": F(0.2)}, [X], lambda: np.where(X < 0, 0.2 * X, X)),
    "Clip_TRT": ({"clipMin": F(-0.5), "clipMax": F(0.3)}, [X], lambda: X.clip(-0.5, 0.3)),
    "FlattenConcat_TRT": ({"axis": I(1), "ignoreBatch": I(0)}, [X, X[:, :2].copy()],
                          lambda: np.concatenate([X.reshape(2, -1), X[:, :2].reshape(2, -1)], 1)),
    "InstanceNormalization_TRT": (NORM, [X], lambda: normed(False)),
    "InstanceNormalization_TRT relu": (
        {**NORM, "relu": I(1), "alpha": F(0.1)}, [X], lambda: normed(True)),
    "ResizeNearest_TRT": ({"scale": F(2)}, [X], lambda: X.repeat(2, axis=2).repeat(2, axis=3)),
    "ScatterND": ({}, [X, I([[1, 2], [0, 5]]), X[0, :2].copy()], scattered),
    "Region_TRT": ({"num": I(2), "coords": I(4), "classes": I(3)},
                   [X.repeat(3, axis=1)[:, :16].copy()], region),
}


@pytest.mark.parametrize("case", CASES)
def test_formula(case: str) -> None:
    fields, feeds, want = CASES[case]
    np.testing.assert_allclose(run(case.split()[0], fields, *feeds)[0], want(),
                               rtol=1e-4, atol=1e-5)


def test_roi_align_averages_a_linear_ramp_exactly() -> None:
    y, x = np.mgrid[0:16, 0:16].astype(F)
    rois = F([[2, 3, 10, 7], [4, 4, 8, 12]])
    [got] = run("ROIAlign_TRT", {
        "mode": I(1), "output_height": I(2), "output_width": I(4), "sampling_ratio": I(2),
        "spatial_scale": F(1), "coordinate_transformation_mode": I(0),
    }, np.stack([y, x])[None], rois, I([0, 0]))
    for r, (x1, y1, x2, y2) in enumerate(rois):
        for i in range(2):
            np.testing.assert_allclose(got[r, 0, i], y1 + (i + 0.5) * (y2 - y1) / 2, rtol=1e-5)
        for j in range(4):
            np.testing.assert_allclose(got[r, 1, :, j], x1 + (j + 0.5) * (x2 - x1) / 4, rtol=1e-5)


def boxes_and_scores(n: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    low = rng.random((2, n, 2))
    boxes = np.concatenate([low, low + rng.random((2, n, 2)) * 0.4 + 0.05], -1).astype(F)
    return boxes, rng.random((2, n, classes)).astype(F)


def by_onnxruntime(boxes: np.ndarray, scores: np.ndarray, iou: float, least: float,
                   limit: int) -> list[list[tuple[float, int, int]]]:
    """(score, class, box) of ONNX's NonMaxSuppression, by image, best first."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    h = onnx.helper
    names = ["b", "s", "m", "i", "t"]
    kinds = [1, 1, 7, 1, 1]
    graph = h.make_graph(
        [h.make_node("NonMaxSuppression", names, ["y"])], "g",
        [h.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
        [h.make_tensor_value_info("y", 7, None)])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 11)], ir_version=7)
    [picked] = ort.InferenceSession(model.SerializeToString()).run(None, {
        "b": boxes, "s": scores.transpose(0, 2, 1).copy(), "m": np.array([limit], np.int64),
        "i": F([iou]), "t": F([least])})
    out: list[list[tuple[float, int, int]]] = [[] for _ in boxes]
    for b, c, k in picked.tolist():
        out[b].append((float(scores[b, k, c]), c, k))
    return [sorted(found, reverse=True) for found in out]


@pytest.mark.parametrize("keep", [5, 100])
@pytest.mark.parametrize("name", ["EfficientNMS_TRT", "BatchedNMS_TRT", "BatchedNMSDynamic_TRT"])
def test_suppression(name: str, keep: int) -> None:
    boxes, scores = boxes_and_scores()
    boxes = np.minimum(boxes, 1)
    if name == "EfficientNMS_TRT":
        got = run(name, {"score_threshold": F(0.3), "iou_threshold": F(0.4),
                         "max_output_boxes": I(keep), "background_class": I(-1)}, boxes, scores)
    else:
        got = run(name, {"scoreThreshold": F(0.3), "iouThreshold": F(0.4), "keepTopK": I(keep),
                         "topK": I(1000), "numClasses": I(3), "backgroundLabelId": I(-1),
                         "shareLocation": I(1)}, boxes[:, :, None], scores)
    want = by_onnxruntime(boxes, scores, 0.4, 0.3, 1000)
    for b, found in enumerate(want):
        found = found[:keep]
        assert got[0][b, 0] == len(found) > 0
        np.testing.assert_allclose(got[2][b, :len(found)], [f[0] for f in found])
        assert got[3][b, :len(found)].tolist() == [f[1] for f in found]
        np.testing.assert_allclose(got[1][b, :len(found)], boxes[b, [f[2] for f in found]])
        assert (got[2][b, len(found):] == 0).all()


def test_efficient_nms_options() -> None:
    boxes, scores = boxes_and_scores()
    fields = {"score_threshold": F(0.3), "iou_threshold": F(0.4), "max_output_boxes": I(120)}
    plain = run("EfficientNMS_TRT", fields, boxes, scores)
    centres = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2,
                              boxes[..., 2:] - boxes[..., :2]], -1)
    logits = np.log(scores / (1 - scores))
    coded = run("EfficientNMS_TRT", {**fields, "box_coding": I(1), "score_activation": I(1)},
                centres, logits)
    for a, b in zip(plain, coded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    without = run("EfficientNMS_TRT", {**fields, "background_class": I(1)}, boxes, scores)
    used = np.arange(120)[None] < without[0]
    assert not (without[3][used] == 1).any() and (without[0] < plain[0]).all()
    agnostic = run("EfficientNMS_TRT", {**fields, "class_agnostic": I(1)}, boxes, scores)
    assert (agnostic[0] < plain[0]).all()


def test_wrong_shapes_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="boxes"):
        run("EfficientNMS_TRT", {"max_output_boxes": I(5)}, X, X)


def test_reorg_is_darknets() -> None:
    """Element by element, as Darknet's ``reorg_cpu`` walks through the image."""
    x = rng.standard_normal((2, 8, 4, 6)).astype(F)
    (n, c, h, w), s = x.shape, 2
    want, flat = np.zeros(x.size, F), x.reshape(-1)
    for b in range(n):
        for k in range(c):
            for j in range(h):
                for i in range(w):
                    c2, offset = k % (c // (s * s)), k // (c // (s * s))
                    w2, h2 = i * s + offset % s, j * s + offset // s
                    want[i + w * (j + h * (k + c * b))] = flat[
                        w2 + w * s * (h2 + h * s * (c2 + c // (s * s) * b))]
    (y,) = run("Reorg_TRT", {"stride": 2}, x)
    assert y.shape == (2, 32, 2, 3)
    np.testing.assert_array_equal(y.reshape(-1), want)


@pytest.mark.parametrize("name", ["GridAnchor_TRT", "GridAnchorRect_TRT"])
def test_grid_anchors(name: str) -> None:
    rect = name == "GridAnchorRect_TRT"
    fields = {"numLayers": I([2]), "minSize": F([0.2]), "maxSize": F([0.8]),
              "aspectRatios": F([1, 2, 0.5]), "variance": F([0.1, 0.1, 0.2, 0.2]),
              "featureMapShapes": I([3, 2, 2, 1]) if rect else I([3, 2])}
    first, second = run(name, fields)
    grids = [(3, 2), (2, 1)] if rect else [(3, 3), (2, 2)]
    for y, (h, w), priors in zip((first, second), grids, (
            [(0.1, 1), (0.2, 2), (0.2, 0.5)],
            [(0.8, 1), (0.8, 2), (0.8, 0.5), (0.8**0.5, 1)]), strict=True):
        boxes = []
        for j in range(h):
            for i in range(w):
                for size, ratio in priors:
                    cx, cy = (i + 0.5) / w, (j + 0.5) / h
                    bw, bh = size * ratio**0.5 / 2, size / ratio**0.5 / 2
                    boxes += [cx - bw, cy - bh, cx + bw, cy + bh]
        assert y.shape == (2, len(boxes), 1)
        np.testing.assert_allclose(y[0, :, 0], boxes, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(y[1, :, 0], [0.1, 0.1, 0.2, 0.2] * (len(boxes) // 4))
