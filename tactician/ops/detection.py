"""Box detection as Caffe's detectors end: single-shot (DetectionOutput) and with region proposals.

Both search and sort, so they run in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import i32
from ..ir.graph import Node, TensorType
from ._numeric import shape_text, widen
from ._shapes import operand, unify
from .registry import Kind, Op, OpError, register

Array = np.ndarray[Any, Any]
CODES = ("corner", "center_size", "corner_size")


@dataclass(frozen=True)
class DetectionOutputAttrs:
    """
    Attributes:
        classes: Number of classes, the background included.
        background: Class that is no detection; -1: there is none.
        share_location: One box per prior; otherwise one per prior and class.
        code: How offsets are encoded, one of `CODES`.
        variance_in_target: Offsets are not scaled by the priors' variances.
        iou: Boxes of a class that overlap a better one by more are dropped.
        eta: Factor of ``iou`` after each box kept, while it is above 0.5.
        top_k: Most boxes of a class that are looked at; -1: all.
        keep: Detections per image: rows of the result.
        confidence: Scores must be greater.
    """

    classes: int = 2
    background: int = 0
    share_location: bool = True
    code: str = "center_size"
    variance_in_target: bool = False
    iou: float = 0.3
    eta: float = 1.0
    top_k: int = -1
    keep: int = 100
    confidence: float = -3.4e38


@register
class DetectionOutput(Op):
    """Decodes boxes, drops overlapping ones class by class, keeps the best of all classes.

    Inputs ``offsets [N, priors * 4 (* classes)], scores [N, priors * classes],
    priors [1, 2, priors * 4]`` (corners, then variances). Outputs ``[N, 1, keep, 7]``: rows of
    image, class, score, corners, best first, unused ones with class -1; and their number
    ``[N, 1, 1, 1]`` (i32)."""

    name = "detection_output"
    kind = Kind.OPAQUE
    Attrs = DetectionOutputAttrs

    def num_outputs(self, node: Node) -> int:
        return 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        loc, conf, priors = (operand(node, i) for i in range(3))
        a = node.attrs
        if a.code not in CODES:
            raise OpError(f"code {a.code!r} is not one of {', '.join(CODES)}")
        if a.keep < 1 or a.classes < 1:
            raise OpError(f"keep {a.keep} and classes {a.classes} must be at least 1")
        if priors.rank < 3 or priors.dims[1] != 2:
            raise OpError(f"priors {shape_text(priors)} must be [1, 2, priors * 4]")
        n = D.floor_div(D.product(priors.dims[2:]), 4)
        per_image = D.product(loc.dims[1:]), D.product(conf.dims[1:])
        unify(per_image[0], n * 4 * (1 if a.share_location else a.classes), node,
              f"offsets {shape_text(loc)} and priors {shape_text(priors)}")
        unify(per_image[1], n * a.classes, node,
              f"scores {shape_text(conf)}, priors {shape_text(priors)} and {a.classes} classes")
        return [TensorType(loc.dtype, (loc.dims[0], 1, a.keep, 7)),
                TensorType(i32, (loc.dims[0], 1, 1, 1))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        loc, conf, priors = (widen(x) for x in inputs)
        a, n = node.attrs, priors[0, 0].size // 4
        boxes = priors.reshape(-1, 2, n, 4)[0]
        loc = loc.reshape(len(loc), n, 1 if a.share_location else a.classes, 4)
        conf = conf.reshape(len(conf), n, a.classes)
        out = np.zeros((len(loc), 1, a.keep, 7), loc.dtype)
        out[..., 1] = -1
        count = np.zeros((len(loc), 1, 1, 1), np.int32)
        for i in range(len(loc)):
            out[i, ..., 0] = i
            rows = _detect(decode(loc[i], boxes[0], boxes[1], a), conf[i], a)
            count[i] = len(rows)
            if rows:
                out[i, 0, : len(rows), 1:] = rows
        return out, count


def decode(loc: Array, prior: Array, variance: Array, a: Any) -> Array:
    """Corners ``[priors, k, 4]`` from offsets of the same shape."""
    if not a.variance_in_target:
        loc = loc * variance[:, None]
    low, high = prior[:, None, :2], prior[:, None, 2:]
    if a.code == "corner":
        return loc + prior[:, None]
    size = high - low
    if a.code == "corner_size":
        return np.concatenate([low + loc[..., :2] * size, high + loc[..., 2:] * size], axis=-1)
    center = loc[..., :2] * size + (low + high) / 2
    half = np.exp(loc[..., 2:]) * size / 2
    return np.concatenate([center - half, center + half], axis=-1)


def _detect(boxes: Array, conf: Array, a: Any) -> list[list[float]]:
    """Rows (class, score, corners) of an image's detections, best first."""
    found: list[list[float]] = []
    for c in range(a.classes):
        if c == a.background:
            continue
        scores, mine = conf[:, c], boxes[:, min(c, boxes.shape[1] - 1)]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > a.confidence]
        if a.top_k >= 0:
            order = order[: a.top_k]
        for k in keep_apart(mine[order], a.iou, a.eta):
            i = order[k]
            found.append([c, scores[i], *mine[i]])
    found.sort(key=lambda row: -row[1])
    return found[: a.keep]


def keep_apart(boxes: Array, iou: float, eta: float = 1.0, one: float = 0.0,
               most: int | None = None) -> list[int]:
    """Indices of boxes (best first) that overlap no better one by more than ``iou``.

    Args:
        one: Added to lengths: 1 where corners are pixels that belong to the box.
    """
    kept: list[int] = []
    size = np.maximum(boxes[:, 2:] - boxes[:, :2] + one, 0)
    area = size[:, 0] * size[:, 1]
    for i in range(len(boxes)):
        if most is not None and len(kept) >= most:
            break
        low = np.maximum(boxes[i, :2], boxes[kept, :2])
        high = np.minimum(boxes[i, 2:], boxes[kept, 2:])
        both = np.prod(np.maximum(high - low + one, 0), axis=1)
        union = area[i] + area[kept] - both
        if np.all(both <= iou * union):
            kept.append(i)
            if eta < 1 and iou > 0.5:
                iou *= eta
    return kept


def prior_boxes(
    feature: Sequence[int], image: Sequence[int], small: Sequence[float],
    large: Sequence[float], ratios: Sequence[float], flip: bool, steps: Sequence[float],
    offset: float, variance: Sequence[float], clip: bool,
) -> Array:
    """The boxes that a single-shot detector starts from: corners and variances ``[1, 2, n * 4]``,
    relative to the image.

    Args:
        feature, image: Heights and widths of the feature map and the image.
        small, large: Sizes in pixels; with the larger one there is also a box of their mean.
        ratios: Widths over heights besides 1; with ``flip`` the inverse ones too.
        steps: Pixels between positions, down and across; zeros: image over feature map.
        offset: Where in its cell a box is centred.
        variance: One, or four.

    Raises:
        OpError: If sizes or ratios are wrong.
    """
    if not len(small) or any(s <= 0 for s in small) or len(large) not in (0, len(small)):
        raise OpError(f"min_size {list(small)} must be positive, and max_size {list(large)} as "
                      "many")
    if any(b <= a for a, b in zip(small, large, strict=False)) or any(r <= 0 for r in ratios):
        raise OpError(f"max_size {list(large)} must be greater than min_size {list(small)}, and "
                      f"aspect_ratio {list(ratios)} positive")
    if len(variance) not in (0, 1, 4):
        raise OpError(f"there are {len(variance)} variance; give one or four")
    shapes = [1.0]
    for ratio in ratios:
        for r in (ratio, 1 / ratio) if flip else (ratio,):
            if all(abs(r - known) >= 1e-6 for known in shapes):
                shapes.append(r)
    sizes: list[tuple[float, float]] = []
    for i, s in enumerate(small):
        sizes.append((s, s))
        if len(large):
            sizes.append((np.sqrt(s * large[i]),) * 2)
        sizes += [(s * np.sqrt(r), s / np.sqrt(r)) for r in shapes[1:]]
    step_h, step_w = steps if all(steps) else (i / f for i, f in zip(image, feature, strict=True))
    y = (np.arange(feature[0]) + offset) * step_h
    x = (np.arange(feature[1]) + offset) * step_w
    center = np.stack(np.broadcast_arrays(x[None, :, None], y[:, None, None]), axis=-1)
    half, scale = np.array(sizes) / 2, np.array([image[1], image[0]])
    boxes = np.concatenate([(center - half) / scale, (center + half) / scale], axis=-1)
    if clip:
        boxes = boxes.clip(0, 1)
    spread = np.broadcast_to(np.array(variance if len(variance) else [0.1]), boxes.shape)
    return np.stack([boxes.reshape(-1), spread.reshape(-1)])[None].astype(np.float32)


@dataclass(frozen=True)
class ProposalsAttrs:
    """
    Attributes:
        stride: Pixels of the image per position of the feature map; also the anchors' base size.
        ratios, scales: Heights over widths, and sizes over the base size, of the anchors.
        min_size: Least side of a proposal, before the image was scaled.
        pre, post: Boxes looked at, and kept.
        iou: Boxes that overlap a better one by more are dropped.
    """

    stride: int = 16
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scales: tuple[float, ...] = (8.0, 16.0, 32.0)
    min_size: float = 16.0
    pre: int = 6000
    post: int = 300
    iou: float = 0.7


@register
class Proposals(Op):
    """Regions that may hold an object, as Faster R-CNN's.

    Inputs ``scores [N, 2 * anchors, H, W]`` (background first), ``offsets [N, 4 * anchors, H, W]``,
    ``info [N, 3]`` (height, width, scale of the image); the result is ``[N * post, 5]``: image and
    corners in pixels, best first, zeros where fewer were found."""

    name = "proposals"
    kind = Kind.OPAQUE
    Attrs = ProposalsAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        scores, offsets, info = (operand(node, i) for i in range(3))
        a = node.attrs
        count = len(a.ratios) * len(a.scales)
        if scores.rank != 4 or scores.dims[1] != 2 * count:
            raise OpError(f"scores {shape_text(scores)} must be [N, 2 * {count} anchors, H, W]")
        if offsets.rank != 4 or offsets.dims[1] != 4 * count:
            raise OpError(f"offsets {shape_text(offsets)} must be [N, 4 * {count} anchors, H, W]")
        for i in (2, 3):
            unify(scores.dims[i], offsets.dims[i], node, "maps of scores and offsets")
        if D.is_static(*info.dims[1:]) and D.product(info.dims[1:]) != 3:
            raise OpError(f"info {shape_text(info)} must be [N, 3]: height, width, scale")
        return [TensorType(scores.dtype, (scores.dims[0] * a.post, 5))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        scores, offsets, info = (widen(x) for x in inputs)
        a, n = node.attrs, len(inputs[0])
        info = info.reshape(n, -1)
        out = np.zeros((n, a.post, 5), scores.dtype)
        anchors = grid(anchors_of(a), scores.shape[2:], a.stride)
        for i in range(n):
            out[i, :, 0] = i
            rows = _propose(scores[i], offsets[i], info[i], anchors, a)
            out[i, : len(rows), 1:] = rows
        return out.reshape(-1, 5)


def anchors_of(a: Any) -> Array:
    """Corners of the anchors around the first position: ratios, then scales."""
    center = (a.stride - 1) / 2
    out = []
    for ratio in a.ratios:
        w = np.round(np.sqrt(a.stride * a.stride / ratio))
        h = np.round(w * ratio)
        for s in a.scales:
            half = (np.array([w, h]) * s - 1) / 2
            out.append([*(center - half), *(center + half)])
    return np.array(out)


def grid(anchors: Array, shape: Sequence[int], stride: int) -> Array:
    """The anchors at every position, ``[H, W, anchors, 4]``."""
    y, x = np.mgrid[: shape[0], : shape[1]] * stride
    shift = np.stack([x, y, x, y], axis=-1)
    return shift[:, :, None] + anchors


def _propose(scores: Array, offsets: Array, info: Array, anchors: Array, a: Any) -> Array:
    count = anchors.shape[2]
    score = scores[count:].transpose(1, 2, 0).reshape(-1)
    delta = offsets.reshape(count, 4, *offsets.shape[1:]).transpose(2, 3, 0, 1).reshape(-1, 4)
    anchors = anchors.reshape(-1, 4)
    size = anchors[:, 2:] - anchors[:, :2] + 1
    center = delta[:, :2] * size + anchors[:, :2] + size / 2
    half = np.exp(delta[:, 2:]) * size / 2
    boxes = np.concatenate([center - half, center + half], axis=1)
    limit = np.array([info[1] - 1, info[0] - 1] * 2)
    boxes = np.clip(boxes, 0, limit)
    size = boxes[:, 2:] - boxes[:, :2] + 1
    large = np.nonzero((size >= a.min_size * info[2]).all(axis=1))[0]
    order = large[np.argsort(-score[large], kind="stable")][: a.pre]
    kept = keep_apart(boxes[order], a.iou, one=1.0, most=a.post)
    return boxes[order[kept]]
