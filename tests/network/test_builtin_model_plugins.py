"""Plugins that exported models name, against formulas, torch and ONNX's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx.reference import ReferenceEvaluator
from plugin_kit import run

import tactician as trt

F, I, L = np.float32, np.int32, np.int64
rng = np.random.default_rng(5)


def reference(op: str, feeds: list[np.ndarray], opset: int = 19, **attributes: Any) -> Any:
    """ONNX's own implementation of one operator."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(feeds)]
    node = h.make_node(op, names, ["y"], **attributes)
    ins = [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(x.dtype), x.shape)
           for n, x in zip(names, feeds, strict=True) if x is not None]
    g = h.make_graph([node], "g", ins, [onnx.ValueInfoProto(name="y")])
    model = h.make_model(g, opset_imports=[h.make_opsetid("", opset)])
    given = {n: x for n, x in zip(names, feeds, strict=True) if x is not None}
    return ReferenceEvaluator(model).run(None, given)[0]


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(F)


X = normal(2, 6, 4, 6)


def close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_split() -> None:
    a, b, c = run("Split", {"axis": I(1), "output_lengths": I([1, 3, 2])}, X)
    for got, want in zip((a, b, c), np.split(X, [1, 4], axis=1), strict=True):
        close(got, want)
    log: list[str] = []

    class Log(trt.ILogger):
        def log(self, severity: Any, msg: str) -> None:
            log.append(msg)

    net = trt.INetworkDefinition(0, Log(), implicit_batch=False)
    creator = trt.get_plugin_registry().get_creator("Split", "1", "")
    bad = creator.create_plugin("", trt.PluginFieldCollection(
        [trt.PluginField("output_lengths", I([1, 3]))]))
    net.add_plugin_v2([net.add_input("x", trt.float32, (2, 6))], bad)
    assert any("add up to 4" in m for m in log)


def test_suppression_as_onnx() -> None:
    ort = pytest.importorskip("onnxruntime")
    corner = rng.random((2, 20, 2)).astype(F)
    boxes = np.concatenate([corner, corner + 0.3], axis=-1).astype(F)
    scores = rng.random((2, 3, 20)).astype(F)
    [got] = run("EfficientNMS_ONNX_TRT", {
        "score_threshold": F(0.4), "iou_threshold": F(0.3), "max_output_boxes_per_class": I(30),
        "center_point_box": I(0)}, boxes, scores)
    assert got.shape == (60, 3)
    node = h.make_node("NonMaxSuppression", ["b", "s", "n", "i", "t"], ["y"])
    info = h.make_tensor_value_info
    g = h.make_graph([node], "g", [
        info("b", 1, boxes.shape), info("s", 1, scores.shape), info("n", 7, [1]),
        info("i", 1, [1]), info("t", 1, [1])], [info("y", 7, None)])
    model = h.make_model(g, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    [want] = ort.InferenceSession(model.SerializeToString()).run(None, {
        "b": boxes, "s": scores, "n": L([30]), "i": F([0.3]), "t": F([0.4])})
    kept = got[got[:, 0] >= 0]
    assert sorted(map(tuple, kept)) == sorted(map(tuple, want)) and len(kept) > 10
    ranked = scores[tuple(kept.T)]
    assert (np.diff(ranked) <= 0).all() and (got[len(kept):] == -1).all()


@pytest.mark.parametrize("coding", [0, 1])
def test_efficient_nms_decodes_boxes_from_anchors(coding: int) -> None:
    anchors = np.concatenate([rng.random((1, 9, 2)), 0.2 + rng.random((1, 9, 2))], -1).astype(F)
    moves, scores = normal(2, 9, 4) * F(0.1), rng.random((2, 9, 2)).astype(F)
    if coding:
        boxes = np.concatenate([moves[..., :2] * anchors[..., 2:] + anchors[..., :2],
                                np.exp(moves[..., 2:]) * anchors[..., 2:]], -1)
    else:
        boxes = moves + anchors
    fields = {"score_threshold": F(0.2), "iou_threshold": F(0.5), "max_output_boxes": I(12),
              "background_class": I(-1), "score_activation": I(0), "box_coding": I(coding)}
    fused = run("EfficientNMS_TRT", fields, moves, scores, anchors)
    plain = run("EfficientNMS_TRT", fields, boxes.astype(F), scores)
    for got, want in zip(fused, plain, strict=True):
        close(got, want)
    assert (plain[0] > 2).all()


def combined(boxes: np.ndarray, scores: np.ndarray, each: int, total: int, iou: float,
             least: float) -> list[tuple[float, int, int]]:
    """(score, class, box) of an image by suppressing one box at a time, as TensorFlow's combined
    suppression does."""
    kept = []
    for c in range(scores.shape[1]):
        chosen: list[int] = []
        for b in np.argsort(-scores[:, c], kind="stable"):
            if scores[b, c] < least or len(chosen) == each:
                break
            p = boxes[b, min(c, boxes.shape[1] - 1)]
            over = []
            for o in chosen:
                q = boxes[o, min(c, boxes.shape[1] - 1)]
                sides = np.minimum(p[2:], q[2:]) - np.maximum(p[:2], q[:2])
                both = np.prod(np.maximum(sides, 0))
                over.append(both / (np.prod(p[2:] - p[:2]) + np.prod(q[2:] - q[:2]) - both))
            if all(x < iou for x in over):
                chosen.append(int(b))
        kept += [(float(scores[b, c]), c, b) for b in chosen]
    return sorted(kept, reverse=True)[:total]


@pytest.mark.parametrize("name", ["EfficientNMS_Explicit_TF_TRT", "EfficientNMS_Implicit_TF_TRT"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_tensorflows_combined_suppression(name: str, classes: int, pad: int) -> None:
    low = rng.random((2, 15, classes, 2)) * 0.6
    boxes = np.concatenate([low, low + 0.2 + 0.4 * rng.random((2, 15, classes, 2))], -1).astype(F)
    scores = rng.random((2, 15, 3)).astype(F)
    flat = "Implicit" in name
    fields = {"max_output_size_per_class": I(2), "max_total_size": I(9), "iou_threshold": F(0.4),
              "score_threshold": F(0.3), "pad_per_class": I(pad), "clip_boxes": I(1)}
    count, found, values, labels = run(name, fields, boxes, scores, native=True)
    room = 6 if pad else 9
    assert count.shape == ((2,) if flat else (2, 1)) and found.shape == (2, room, 4)
    for n in range(2):
        want = combined(boxes[n], scores[n], 2, room, 0.4, 0.3)
        assert count.reshape(-1)[n] == len(want) > 3
        close(values[n], F([s for s, _, _ in want] + [0] * (room - len(want))))
        assert labels[n][:len(want)].tolist() == [c for _, c, _ in want]
        close(found[n][:len(want)],
              F([boxes[n, b, min(c, classes - 1)] for _, c, b in want]).clip(0, 1))


def test_tensorflows_suppression_with_an_implicit_batch() -> None:
    low = rng.random((3, 15, 1, 2)) * 0.6
    boxes = np.concatenate([low, low + 0.2 + 0.4 * rng.random((3, 15, 1, 2))], -1).astype(F)
    scores = rng.random((3, 15, 3)).astype(F)
    assert trt.init_libnvinfer_plugins(None, "")
    creator = trt.get_plugin_registry().get_plugin_creator("EfficientNMS_Implicit_TF_TRT", "1", "")
    fields = {"max_output_size_per_class": I([2]), "max_total_size": I([9]),
              "iou_threshold": F([0.4]), "score_threshold": F([0.3])}
    plugin = creator.create_plugin("nms", trt.PluginFieldCollection(
        [trt.PluginField(k, v) for k, v in fields.items()]))
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    builder.max_batch_size = 4
    net = trt.INetworkDefinition(0, trt.Logger(trt.Logger.ERROR), builder, implicit_batch=True)
    inputs = [net.add_input("b", trt.float32, (15, 1, 4)), net.add_input("s", trt.float32, (15, 3))]
    layer = net.add_plugin_v2(inputs, plugin)
    outputs = [layer.get_output(i) for i in range(4)]
    assert [tuple(t.shape) for t in outputs] == [(), (9, 4), (9,), (9,)]
    for t in outputs:
        net.mark_output(t)
    context = builder.build_cuda_engine(net).create_execution_context()
    results = [np.zeros((3, *t.shape), F if t.dtype == trt.float32 else I) for t in outputs]
    assert context.execute(3, [a.ctypes.data for a in (boxes, scores, *results)])
    for n in range(3):
        want = combined(boxes[n], scores[n], 2, 9, 0.4, 0.3)
        assert results[0][n] == len(want) > 3
        close(results[2][n, :len(want)], F([s for s, _, _ in want]))
        assert results[3][n, :len(want)].tolist() == [c for _, c, _ in want]


def test_crops() -> None:
    rois = np.sort(rng.random((2, 3, 2, 2)).astype(F) * F(1.1), axis=2).reshape(2, 3, 4)
    [y] = run("CropAndResizeDynamic", {"crop_width": I(3), "crop_height": I(1)}, X, rois,
              version="2")
    assert y.shape == (2, 3, 6, 1, 3)
    high, wide = X.shape[2:]
    for n in range(2):
        for r in range(3):
            y1, x1, y2, x2 = rois[n, r].astype(float)
            for k in range(3):
                at = (0.5 * (y1 + y2) * (high - 1), (x1 + (x2 - x1) * k / 2) * (wide - 1))
                want = np.zeros(6)
                if 0 <= at[0] <= high - 1 and 0 <= at[1] <= wide - 1:
                    for i in (int(np.floor(at[0])), int(np.floor(at[0])) + 1):
                        for j in (int(np.floor(at[1])), int(np.floor(at[1])) + 1):
                            share = (1 - abs(at[0] - i)) * (1 - abs(at[1] - j))
                            want += share * X[n, :, min(i, high - 1), min(j, wide - 1)]
                close(y[n, r, :, 0, k], want)
    [same] = run("CropAndResize", {"crop_width": I(6), "crop_height": I(4)}, X,
                 np.tile(F([0, 0, 1, 1]), (2, 1, 1)).reshape(2, 1, 4, 1))
    close(same[:, 0], X)


def test_tiles_and_coordinates() -> None:
    one = normal(1, 3, 2, 2)
    [y] = run("BatchTilePlugin_TRT", {}, X, one)
    close(y, np.tile(one, (2, 1, 1, 1)))
    [y] = run("CoordConvAC", {}, X)
    close(y[:, :6], X)
    close(y[1, 6, :, 3], np.linspace(-1, 1, 4))
    close(y[0, 7, 2], np.linspace(-1, 1, 6))


@pytest.mark.parametrize("version", ["1", "2"])
def test_deformable_convolution(version: str) -> None:
    x, w, b = normal(1, 4, 6, 7), normal(4, 2, 3, 3), normal(4)
    offset, mask = normal(1, 2 * 2 * 9, 3, 4), rng.random((1, 2 * 9, 3, 4)).astype(F)
    [y] = run("ModulatedDeformConv2d", {
        "stride": I([2, 2]), "padding": I([1, 1]), "dilation": I([1, 1]), "group": I(2),
        "deformable_group": I(2)}, x, offset, mask, w, b, version=version)
    want = reference("DeformConv", [x, w, offset, b, mask], strides=[2, 2], pads=[1] * 4,
                     dilations=[1, 1], group=2, offset_group=2)
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-4)


def test_group_normalization() -> None:
    torch = pytest.importorskip("torch")
    w, b = normal(6), normal(6)
    [y] = run("GroupNormalizationPlugin", {"eps": F(1e-3), "num_groups": I(3)}, X, w, b)
    want = torch.nn.functional.group_norm(*map(torch.tensor, (X,)), 3, torch.tensor(w),
                                          torch.tensor(b), 1e-3)
    close(y, want.numpy())


@pytest.mark.parametrize("reduction", ["add", "mul", "min", "max"])
def test_scattered_elements(reduction: str) -> None:
    at, new = rng.integers(0, 6, (2, 3, 4, 6)), normal(2, 3, 4, 6)
    [y] = run("ScatterElements", {"axis": I(1), "reduction": reduction}, X, at, new, version="2")
    close(y, reference("ScatterElements", [X, at, new], 18, axis=1, reduction=reduction))


def test_parts_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    x, skip, b = normal(5, 2, 8, 1, 1), normal(5, 2, 8, 1, 1), normal(8)
    beta, gamma = normal(8), normal(8)
    [y] = run("CustomSkipLayerNormPluginDynamic",
              {"type_id": I(0), "ld": I(8), "beta": beta, "gamma": gamma, "bias": b}, x, skip,
              version="5")
    total = torch.tensor((x + skip)[..., 0, 0] + b)
    want = torch.nn.functional.layer_norm(total, (8,), torch.tensor(gamma), torch.tensor(beta))
    close(y[..., 0, 0], want.numpy())
    [y] = run("CustomGeluPluginDynamic", {"type_id": I(0), "bias": b}, x)
    want = torch.nn.functional.gelu(torch.tensor(x[..., 0, 0] + b), approximate="tanh")
    close(y[..., 0, 0], want.numpy())
    [y] = run("SpecialSlice_TRT", {}, normal(2, 3, 6)[..., :])
    assert y.shape == (2, 3, 4)


def test_disentangled_attention() -> None:
    span, n = 3, 5
    c2c, c2p, p2c = normal(2, n, n), normal(2, n, 2 * span), normal(2, n, 2 * span)
    [y] = run("DisentangledAttention_TRT", {"span": I(span), "factor": F(0.25)}, c2c, c2p, p2c,
              version="2")
    for i in range(n):
        for j in range(n):
            k = min(max(i - j + span, 0), 2 * span - 1)
            close(y[:, i, j], (c2c[:, i, j] + c2p[:, i, k] + p2c[:, j, k]) * 0.25)


def test_deformable_attention() -> None:
    torch = pytest.importorskip("torch")
    sizes, heads, width, points = [(4, 6), (2, 3)], 2, 3, 3
    value = normal(2, 30, heads, width)
    places = rng.random((2, 7, heads, 2, points, 2)).astype(F) * F(1.2) - F(0.1)
    weights = rng.random((2, 7, heads, 2, points)).astype(F)
    [y] = run("MultiscaleDeformableAttnPlugin_TRT", {}, value, I(sizes), I([0, 24]), places,
              weights, version="2")
    want = torch.zeros(2 * heads, width, 7)
    for level, ((high, wide), start) in enumerate(zip(sizes, (0, 24), strict=True)):
        image = torch.tensor(value[:, start:start + high * wide]).permute(0, 2, 3, 1)
        image = image.reshape(2 * heads, width, high, wide)
        grid = torch.tensor(2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = torch.nn.functional.grid_sample(image, grid, align_corners=False)
        share = torch.tensor(weights[:, :, :, level]).transpose(1, 2).flatten(0, 1)[:, None]
        want += (sampled * share).sum(-1)
    close(y, want.view(2, heads, width, 7).permute(0, 3, 1, 2).numpy())


def test_versions_of_instance_normalization() -> None:
    fields = {"epsilon": F(1e-3), "scales": np.arange(1, 7).astype(F), "bias": np.zeros(6, F)}
    registry = trt.get_plugin_registry()
    assert registry.get_creator("Reorg_TRT", "2", "").plugin_version == "2"
    assert registry.get_creator("Reorg_TRT", "3", "") is None
    one, two, three = (run("InstanceNormalization_TRT", fields, X, version=v)[0] for v in "123")
    assert np.array_equal(one, two) and np.array_equal(one, three)
