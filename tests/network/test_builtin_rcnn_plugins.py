"""Plugins of Mask R-CNN against its formulas, and torchvision's ``roi_align`` in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from plugin_kit import run

F, I = np.float32, np.int32
rng = np.random.default_rng(4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both + 1e-12))


def apart(boxes: np.ndarray, scores: np.ndarray, limit: float, above: float) -> list[int]:
    """Places of boxes that overlap no better one, best first."""
    kept: list[int] = []
    for k in np.argsort(-scores, kind="stable"):
        if scores[k] > above and all(overlap(boxes[k], boxes[j]) <= limit for j in kept):
            kept.append(int(k))
    return kept


def moved(box: np.ndarray, move: np.ndarray) -> np.ndarray:
    """A box in relative coordinates, corrected."""
    size = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2 + 0.1 * move[:2] * size
    size = size * np.exp(0.2 * move[2:])
    return np.clip([*centre - size / 2, *centre + size / 2], 0, 1)


def moved_pixels(box: np.ndarray, move: np.ndarray, image: tuple[int, int], weights: Any
                 ) -> np.ndarray:
    size = box[2:] - box[:2] + 1
    move = move / weights
    centre = box[:2] + size / 2 + move[:2] * size
    size = size * np.exp(np.minimum(move[2:], np.log(1000 / 16)))
    low = centre - size / 2
    return np.clip([*low, *low + size - 1], 0, np.tile(image, 2) - 1.0)


def test_proposals() -> None:
    side, keep, pre = 64, 12, 60
    anchors = []
    for size, stride in zip((32, 64, 128, 256, 512), (4, 8, 16, 32, 64), strict=True):
        for y in range(0, side, stride):
            for x in range(0, side, stride):
                for r in (0.5, 1, 2):
                    h, w = size / r**0.5, size * r**0.5
                    anchors.append([y - h / 2, x - w / 2, y + h / 2 - 1, x + w / 2 - 1])
    anchors = np.array(anchors) / (side - 1)
    n = len(anchors)
    scores = np.zeros((2, n, 2, 1), F)
    scores[:, :, 1, 0] = rng.permutation(2 * n).reshape(2, n) / (2 * n)
    moves = rng.standard_normal((2, n, 4, 1)).astype(F)
    [got] = run("ProposalLayer_TRT", {
        "prenms_topk": I(pre), "keep_topk": I(keep), "iou_threshold": F(0.5),
        "image_size": I([3, side, side])}, scores, moves, native=True)
    for b in range(2):
        s = scores[b, :, 1, 0]
        first = np.argsort(-s)[:pre]
        boxes = np.array([moved(anchors[k], moves[b, k, :, 0]) for k in first])
        kept = apart(boxes, s[first], 0.5, 0.01)[:keep]
        np.testing.assert_allclose(got[b, :len(kept)], boxes[kept], atol=1e-4)
        assert not got[b, len(kept):].any() and len(kept) > 5


def test_proposals_by_level() -> None:
    image, keep, pre = (128, 64), 6, 20
    feeds, want = [], [[], []]
    for level in range(2, 7):
        stride, anchors = 2**level, []
        for y in range(stride // 2, image[0], stride):
            for x in range(stride // 2, image[1], stride):
                for w, h in ((1, 1), (1.4, 0.7), (0.7, 1.4)):
                    half = np.array([h, w]) * 8 * stride / 2
                    anchors.append([*np.array([y, x]) - half, *np.array([y, x]) + half])
        n = len(anchors)
        moves = (0.3 * rng.standard_normal((2, n, 4, 1))).astype(F)
        scores = rng.random((2, n, 1, 1)).astype(F)
        feeds += [moves, scores]
        for b in range(2):
            first = np.argsort(-scores[b, :, 0, 0], kind="stable")[:pre]
            boxes = np.array([moved_pixels(np.array(anchors[k]), moves[b, k, :, 0], image, 1.0)
                              for k in first])
            s = scores[b, first, 0, 0]
            want[b] += [(s[k], boxes[k]) for k in apart(boxes, s, 0.4, 0.2)[:keep]]
    [got] = run("MultilevelProposeROI_TRT", {
        "prenms_topk": I(pre), "keep_topk": I(keep), "fg_threshold": F(0.2),
        "iou_threshold": F(0.4), "image_size": I([3, *image])}, *feeds, native=True)
    for b in range(2):
        best = [box for _, box in sorted(want[b], key=lambda r: -r[0])[:keep]]
        np.testing.assert_allclose(got[b], best, atol=1e-3)


DETECTORS: list[tuple[str, Any, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [
    ("DetectionLayer_TRT", 1, moved),
    ("GenerateDetection_TRT", 100,
     lambda box, move: moved_pixels(box, move, (100, 100), np.array([10, 10, 5, 5]))),
]


@pytest.mark.parametrize("name, scale, move", DETECTORS, ids=[d[0] for d in DETECTORS])
def test_detections(name: str, scale: int, move: Any) -> None:
    n, boxes, classes, keep, least = 2, 25, 4, 30, 0.4
    low = rng.random((n, boxes, 2)) * 0.6
    rois = (np.concatenate([low, low + 0.3], -1) * scale).astype(F)
    scores = rng.random((n, boxes, classes)).astype(F)
    moves = (0.5 * rng.standard_normal((n, boxes, classes, 4))).astype(F)
    fields = {"num_classes": I(classes), "keep_topk": I(keep), "score_threshold": F(least),
              "iou_threshold": F(0.3)}
    if scale > 1:
        fields["image_size"] = I([3, 100, 100])
    [got] = run(name, fields, moves.reshape(n, boxes, -1, 1, 1), scores[..., None, None], rois,
                native=True)
    for b in range(n):
        shown = scores[b].copy()
        if name.startswith("Generate"):
            shown[:, 0] = -1
        label, best = shown.argmax(1), shown.max(1)
        at = np.array([move(rois[b, k], moves[b, k, label[k]]) for k in range(boxes)])
        rows = []
        for c in range(1, classes):
            mine = np.flatnonzero(label == c)
            rows += [[*at[mine[k]], c, best[mine[k]]]
                     for k in apart(at[mine], best[mine], 0.3, least)]
        rows.sort(key=lambda r: -r[5])
        assert 5 < len(rows) < keep
        np.testing.assert_allclose(got[b, :len(rows)], rows, rtol=1e-4, atol=1e-4 * scale)
        np.testing.assert_array_equal(got[b, len(rows):], np.tile(
            F([0, 0, 0, 0, -1, 0]), (keep - len(rows), 1)))


def sampled(x: np.ndarray, begin: Any, delta: Any, size: int, counts: Any, offset: float
            ) -> np.ndarray:
    """Means of samples of a map [C, H, W], between pixels, never outside."""
    out = np.zeros((len(x), size, size))
    for yy, xx in np.ndindex(size, size):
        for iy, ix in np.ndindex(*counts):
            at = [np.clip(begin[a] + delta[a] * (p + (i + offset) / counts[a]), 0,
                          x.shape[1 + a] - 1) for a, p, i in ((0, yy, iy), (1, xx, ix))]
            y0, x0 = (int(v) for v in at)
            y1, x1 = min(y0 + 1, x.shape[1] - 1), min(x0 + 1, x.shape[2] - 1)
            v, u = at[0] - y0, at[1] - x0
            out[:, yy, xx] += (1 - v) * ((1 - u) * x[:, y0, x0] + u * x[:, y0, x1]) + v * (
                (1 - u) * x[:, y1, x0] + u * x[:, y1, x1])
    return out / np.prod(counts)


def pyramid(image: tuple[int, int], levels: int) -> list[np.ndarray]:
    return [rng.standard_normal((2, 3, image[0] >> k, image[1] >> k)).astype(F)
            for k in range(2, 2 + levels)]


MODES = [(2, 0, 0, False), (1, 2, 1, False), (0, 0, 0, False), (0, 3, 0, False), (-1, 1, 0, False),
         (0, 0, 0, True)]


@pytest.mark.parametrize("mode, samples, plus, legacy", MODES)
def test_crops_of_pyramids(mode: int, samples: int, plus: int, legacy: bool) -> None:
    image, size, scale = (128, 192), 3, 60
    maps = pyramid(image, 4)
    sides = rng.uniform(4, 120, (2, 9, 2))
    low = rng.random((2, 9, 2)) * (np.array(image) - sides)
    rois = np.concatenate([low, low + sides], -1)  # (y, x), pixels
    fields: dict[str, Any] = {"pooled_size": I(size), "image_size": I(image)}
    if legacy:
        fields["legacy"], mode, samples = I(1), -1, 1
        feed, first = rois / np.tile(image, 2), 224**2 * 2 / 1024**2 / 16
    else:
        fields |= {"fpn_scale": I(scale), "sampling_ratio": I(samples),
                   "roi_coords_plusone": I(plus), "roi_coords_transform": I(mode)}
        feed, first = rois[..., [1, 0, 3, 2]], scale**2 / np.prod(image) / 4
    [got] = run("PyramidROIAlign_TRT", fields, feed.astype(F), *maps, native=samples > 0)
    used = set()
    for b, r in np.ndindex(2, 9):
        box = rois[b, r] / np.tile(image, 2)
        extent = box[2:] - box[:2] + plus / np.array(image)
        level = sum(np.prod(extent) > first * 4**k for k in range(3))
        used.add(level)
        x = maps[level][b]
        hw = np.array(x.shape[1:])
        if mode == -1:
            begin, delta = box[:2] * (hw - 1), (box[2:] - box[:2]) * (hw - 1) / (size - 1)
        else:
            begin = box[:2] * hw - (0.5 if mode == 2 else 0)
            delta = (box[2:] - box[:2]) * hw / size
        counts = [samples or max(1, int(np.ceil(d))) for d in delta]
        want = sampled(x, begin, delta, size, counts, 0.5 if mode > 0 else 0)
        np.testing.assert_allclose(got[b, r], want, rtol=1e-3, atol=2e-4)
    assert len(used) >= 3


def test_crops_by_level() -> None:
    image, size = (512, 768), 2
    maps = pyramid(image, 5)
    sides = rng.uniform(20, 500, (2, 8, 2))
    low = rng.random((2, 8, 2)) * np.maximum(np.array(image) - sides, 0)
    rois = np.concatenate([low, np.minimum(low + sides, image)], -1)
    rois[0, 3] = [50, 50, 40, 90]  # no box
    [got] = run("MultilevelCropAndResize_TRT", {
        "pooled_size": I(size), "image_size": I([3, *image])}, rois.astype(F), *maps, native=True)
    for b, r in np.ndindex(2, 8):
        box = rois[b, r]
        if (b, r) == (0, 3):
            assert not got[b, r].any()
            continue
        level = sum(np.prod(box[2:] - box[:2]) > 224**2 / 4 * 4**k for k in range(4))
        factor = 0.5 ** (level + 2)
        want = sampled(maps[level][b], box[:2] * factor, (box[2:] - box[:2]) * factor / size,
                       size, (1, 1), 0.5)
        np.testing.assert_allclose(got[b, r], want, rtol=1e-3, atol=2e-4)
