"""Built-in plugins of Mask R-CNN: proposals, crops of feature pyramids, detections. Boxes are
(y1, x1, y2, x2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Array, Fields, Kind
from .builtin_boxes import Rules, best, kept_scores, need
from .kit import Kit

F = DataType.FLOAT
_LEAST = 0.01  # scores of results are greater
_LONGEST = float(np.log(1000 / 16))  # logarithm of the most that a box may grow


def _image(f: Fields, count: int, *default: int) -> tuple[int, int]:
    """The image's height and width."""
    given = [int(n) for n in f.many("image_size")] or list(default)
    if len(given) != count or min(given) < 2:
        raise ops.OpError(f"field 'image_size' is {given}; it needs {count} numbers")
    return given[-2], given[-1]


# --- boxes ----------------------------------------------------------------------------------


def _parts(k: Kit, x: Value) -> list[Value]:
    return k.split(x, -1)


def _moved(k: Kit, boxes: Value, moves: Value) -> Value:
    """Boxes of relative coordinates after a network's corrections, within the image."""
    y1, x1, y2, x2 = _parts(k, boxes)
    scaled = _parts(k, k.mul(moves, k.const(np.array([0.1, 0.1, 0.2, 0.2], np.float32))))
    out = []
    for a, b, shift, grow in ((y1, y2, scaled[0], scaled[2]), (x1, x2, scaled[1], scaled[3])):
        size = k.sub(b, a)
        centre = k.add(k.mul(k.add(a, b), np.float32(0.5)), k.mul(shift, size))
        size = k.mul(size, k.unary("exp", grow))
        begin = k.sub(centre, k.mul(size, np.float32(0.5)))
        out.append((begin, k.add(begin, size)))
    (y1, y2), (x1, x2) = out
    return k.clip(k.join([y1, x1, y2, x2], -1), np.float32(0), np.float32(1))


def _moved_pixels(
    k: Kit, boxes: Value, moves: Value, image: tuple[int, int], weights: Sequence[float]
) -> Value:
    """Boxes of pixels that belong to them, after corrections divided by weights."""
    y1, x1, y2, x2 = _parts(k, boxes)
    scaled = _parts(k, k.div(moves, k.const(np.array(weights, np.float32))))
    out = []
    for a, b, shift, grow, limit in ((y1, y2, scaled[0], scaled[2], image[0]),
                                     (x1, x2, scaled[1], scaled[3], image[1])):
        size = k.add(k.sub(b, a), np.float32(1))
        centre = k.add(k.add(a, k.mul(size, np.float32(0.5))), k.mul(shift, size))
        size = k.mul(size, k.unary("exp", k.binary("min", grow, np.float32(_LONGEST))))
        begin = k.sub(centre, k.mul(size, np.float32(0.5)))
        end = k.sub(k.add(begin, size), np.float32(1))
        out.append([k.clip(v, np.float32(0), np.float32(limit - 1)) for v in (begin, end)])
    (y1, y2), (x1, x2) = out
    return k.join([y1, x1, y2, x2], -1)


def _apart(k: Kit, boxes: Value, scores: Value, rules: Rules, count: int) -> tuple[Value, Value]:
    """The best boxes of one class that overlap little, and their scores; zeros where there are
    fewer than ``count``."""
    kept = kept_scores(k, k.unsqueeze(boxes, 2), k.unsqueeze(scores, 2), rules)
    values, at, valid = best(k, kept, count)
    chosen = k.gather(boxes, at, axis=1, batch=1)
    return (k.where(k.unsqueeze(valid, 2), chosen, np.float32(0)),
            k.where(valid, values, np.float32(0)))


def _first(k: Kit, scores: Value, most: int) -> tuple[Value, Value]:
    """The best ``most`` scores [N, boxes], or all, and their places."""
    have = scores.dims[1]
    if not isinstance(have, int):
        raise ops.OpError(f"the number of boxes of {scores!r} must be known")
    return k.topk(scores, min(have, most), axis=1)


def _pyramid(image: tuple[int, int]) -> Array:
    """Anchors of the levels 2 to 6, in relative coordinates."""
    rows = []
    for level in range(2, 7):
        stride, size = 2.0**level, 8.0 * 2.0**level
        root = np.sqrt(np.array([0.5, 1, 2]))
        y, x, _ = np.meshgrid(np.arange(0, image[0], stride), np.arange(0, image[1], stride),
                              root, indexing="ij")
        h, w = size / root, size * root
        rows.append(np.stack([y - h / 2, x - w / 2, y + h / 2 - 1, x + w / 2 - 1], -1))
    high, wide = image[0] - 1, image[1] - 1
    flat = np.concatenate([r.reshape(-1, 4) for r in rows])
    return (flat / [high, wide, high, wide]).astype(np.float32)


def _proposals(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,), (4,)], "scores [N, anchors, 2, 1] and corrections [N, anchors, 4, 1]")
    k = Kit(g)
    anchors = _pyramid(_image(f, 3, 3, 1024, 1024))
    if inputs[0].dims[1] != len(anchors):
        raise ops.OpError(f"{inputs[0]!r} must have a score for each of {len(anchors)} anchors of "
                          "an image of image_size")
    scores = k.squeeze(k.part(inputs[0], 2, 1, 2), 2, 3)
    values, at = _first(k, scores, int(f.one("prenms_topk")))
    moves = k.gather(k.squeeze(inputs[1], 3), at, axis=1, batch=1)
    boxes = _moved(k, k.gather(k.const(anchors), at, axis=0), moves)
    rules = Rules(float(f.one("iou_threshold")), _LEAST, above=True)
    return [_apart(k, boxes, values, rules, int(f.one("keep_topk")))[0]]


def _level_anchors(image: tuple[int, int], level: int) -> Array:
    """Anchors of a level in pixels, centred on the middles of its cells."""
    stride, size = 2**level, 8.0 * 2**level
    wide, high = size * np.array([1, 1.4, 0.7]), size * np.array([1, 0.7, 1.4])
    y, x, _ = np.meshgrid(np.arange(stride // 2, image[0], stride),
                          np.arange(stride // 2, image[1], stride), wide, indexing="ij")
    rows = np.stack([y - high / 2, x - wide / 2, y + high / 2, x + wide / 2], -1)
    return rows.reshape(-1, 4).astype(np.float32)


def _level_proposals(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,)] * 10, "five pairs of corrections [N, anchors, 4, 1] and scores "
         "[N, anchors, 1, 1]")
    k = Kit(g)
    image, keep = _image(f, 3, 3, 832, 1344), int(f.one("keep_topk"))
    rules = Rules(float(f.one("iou_threshold")), float(f.one("fg_threshold")))
    found = []
    for i, (moves, scores) in enumerate(zip(inputs[::2], inputs[1::2], strict=True)):
        anchors = _level_anchors(image, i + 2)
        if scores.dims[1] != len(anchors):
            raise ops.OpError(f"{scores!r} must have a score for each of {len(anchors)} anchors of "
                              f"level {i + 2} of an image of image_size")
        values, at = _first(k, k.squeeze(scores, 2, 3), int(f.one("prenms_topk")))
        chosen = k.gather(k.squeeze(moves, 3), at, axis=1, batch=1)
        boxes = _moved_pixels(k, k.gather(k.const(anchors), at, axis=0), chosen, image, [1.0] * 4)
        found.append(_apart(k, boxes, values, rules, keep))
    boxes, scores = (k.join(list(v), 1) for v in zip(*found, strict=True))
    _, at = k.topk(scores, keep, axis=1)
    return [k.gather(boxes, at, axis=1, batch=1)]


# --- detections -----------------------------------------------------------------------------


def _detector(
    background: bool, moved: Callable[[Kit, Value, Value, Fields], Value]
) -> Callable[[Graph, Sequence[Value], Fields], Sequence[Value]]:
    """Makes a plugin that corrects boxes for their best class and keeps the best that overlap
    little: (y1, x1, y2, x2, class, score), class -1 where there are fewer.

    Args:
        background: Whether class 0 may be the best one; such boxes are left out.
        moved: Corrects boxes.
    """

    def build(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
        need(inputs, [(5,), (5,), (3,)], "corrections [N, boxes, classes * 4, 1, 1], scores "
             "[N, boxes, classes, 1, 1] and boxes [N, boxes, 4]")
        k = Kit(g)
        classes = int(f.one("num_classes"))
        moves, scores = k.squeeze(inputs[0], 3, 4), k.squeeze(inputs[1], 3, 4)
        if scores.dims[2] != classes or moves.dims[2] != 4 * classes:
            raise ops.OpError(f"{inputs[0]!r} and {inputs[1]!r} must have 4 corrections and a "
                              f"score for each of {classes} classes (num_classes)")
        seen = scores if background else k.part(scores, 2, 1, classes)
        label = k.op("argreduce", seen, fn="max", axis=2, keepdims=False, last=False)
        if not background:
            label = k.add(label, np.int64(1))
        mine = k.binary("eq", k.const(np.arange(classes).reshape(1, 1, -1)), k.unsqueeze(label, 2))
        by_class = k.reshape(moves, 0, 0, classes, 4)
        chosen = k.squeeze(k.gather(by_class, k.unsqueeze(label, 2), axis=2, batch=2), 2)
        boxes = moved(k, inputs[2], chosen, f)
        least = max(float(f.one("score_threshold")), float(np.nextafter(
            np.float32(_LEAST), np.float32(1))))
        rules = Rules(float(f.one("iou_threshold")), least, background=0)
        masked = k.where(mine, scores, np.float32(-3e38))
        kept = kept_scores(k, k.unsqueeze(boxes, 2), masked, rules)
        values, at, valid = best(k, kept, int(f.one("keep_topk")))
        number = k.size(scores, 1)
        which = k.div(at, number)
        rows = k.gather(boxes, k.sub(at, k.mul(which, number)), axis=1, batch=1)
        there = k.unsqueeze(valid, 2)
        return [k.join([k.where(there, rows, np.float32(0)),
                        k.where(there, k.f32(k.unsqueeze(which, 2)), np.float32(-1)),
                        k.where(there, k.unsqueeze(values, 2), np.float32(0))], 2)]

    return build


def _moved_detection(k: Kit, boxes: Value, moves: Value, f: Fields) -> Value:
    """Weighted corrections in pixels."""
    return _moved_pixels(k, boxes, moves, _image(f, 3, 3, 832, 1344), [10, 10, 5, 5])


# --- crops of pyramids ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Crops:
    """How crops are taken.

    Attributes:
        size: Rows and columns of a crop.
        samples: Samples per element and axis; 0: as many as there are pixels.
        offset: Where in its part of an element a sample lies (0 or 0.5).
        shift: Pixels that boxes are moved to the left (0 or 0.5).
        corners: Whether the first and last elements are the box's corners.
    """

    size: int
    samples: int
    offset: float
    shift: float
    corners: bool = False


def _crop(k: Kit, x: Value, begin: Value, end: Value, image: Value, how: _Crops) -> Value:
    """Crops [R, C, size, size] of ``x`` with begins and ends [R, (y, x)] in its pixels. Samples
    of `roi_align` lie in the middle of their parts; boxes are moved so that they lie where they
    should."""
    steps = max(how.size - 1, 1) if how.corners else how.size
    delta = k.mul(k.sub(end, begin), np.float32(1 / steps))
    first = k.sub(begin, np.float32(how.shift))
    if how.offset == 0:
        count = np.float32(how.samples)
        if how.samples == 0:
            many = k.binary("max", k.unary("ceil", delta), np.float32(1))
            first = k.sub(first, k.div(k.mul(delta, np.float32(0.5)), many))
        else:
            first = k.sub(first, k.mul(delta, np.float32(0.5 / count)))
    first = k.add(first, np.float32(0.5))
    corners = k.join([first, k.add(first, k.mul(delta, np.float32(how.size)))], 1)
    order = k.gather(corners, k.ints(1, 0, 3, 2), axis=1)
    return k.op("roi_align", x, order, image, mode="avg", output_height=how.size,
                output_width=how.size, sampling_ratio=how.samples, spatial_scale=1.0,
                half_pixel=True)


def _pooled(
    k: Kit, rois: Value, maps: Sequence[Value], levels: Value, ends: Sequence[tuple[Value, Value]],
    how: _Crops,
) -> Value:
    """Crops [N, R, C, size, size], each from the map of its level; boxes of other levels are
    empty there, which costs little."""
    n, r = k.size(rois, 0), k.size(rois, 1)
    image = k.reshape(k.expand(k.unsqueeze(k.upto(n), 1), n, r), -1)
    level = k.reshape(levels, -1, 1)
    out = None
    for i, (x, (begin, end)) in enumerate(zip(maps, ends, strict=True)):
        mine = k.binary("eq", level, np.int64(i))
        a, b = (k.where(mine, k.reshape(v, -1, 2), np.float32(0)) for v in (begin, end))
        y = _crop(k, x, a, b, image, how)
        out = y if out is None else k.where(k.unsqueeze(mine, 2, 3), y, out)
    assert out is not None
    return k.reshape(out, n, r, k.size(maps[0], 1), how.size, how.size)


def _levels(k: Kit, area: Value, first: float, count: int) -> Value:
    """Levels of boxes: one more at each of ``first``, four times that, and so on."""
    limits = np.array([first * 4**i for i in range(count - 1)], np.float32)
    over = k.binary("gt", k.unsqueeze(area, 2), k.const(limits))
    return k.reduce("sum", k.cast(over, T.i64), 2)


def _sizes(maps: Sequence[Value]) -> list[Array]:
    out = []
    for x in maps:
        high, wide = x.dims[2:]
        if not isinstance(high, int) or not isinstance(wide, int):
            raise ops.OpError(f"height and width of {x!r} must be known")
        out.append(np.array([high, wide], np.float32))
    return out


def _pyramid_align(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3,)] + [(4,)] * 4, "boxes [N, R, 4] and four feature maps [N, C, H, W]")
    k = Kit(g)
    image = np.array(_image(f, 2, 1024, 1024), np.float32)
    legacy = bool(f.one("legacy", 0))
    mode = -1 if legacy else int(f.one("roi_coords_transform", 2))
    samples = 1 if legacy else int(f.one("sampling_ratio", 0))
    if not -1 <= mode <= 2 or (mode == -1 and samples == 0):
        raise ops.OpError(f"roi_coords_transform is {mode} and sampling_ratio {samples}; they can "
                          "be 0 to 2, or -1 with a sampling_ratio of at least 1")
    y1, x1, y2, x2 = _parts(k, inputs[0])
    if not (legacy or f.one("roi_coords_swap", 0)):
        y1, x1, y2, x2 = x1, y1, x2, y2
    low = k.join([k.binary("min", y1, y2), k.binary("min", x1, x2)], 2)
    high = k.join([k.binary("max", y1, y2), k.binary("max", x1, x2)], 2)
    if not legacy and f.one("roi_coords_absolute", 1):
        low, high = k.div(low, k.const(image)), k.div(high, k.const(image))
    low, high = (k.clip(v, np.float32(0), np.float32(1)) for v in (low, high))
    size = k.sub(high, low)
    if not legacy and f.one("roi_coords_plusone", 0):
        size = k.add(size, k.const(1 / image))
    first = 224**2 * 2 / 1024**2 / 16 if legacy else (
        float(f.one("fpn_scale", 224)) ** 2 / float(np.prod(image)) / 4)
    levels = _levels(k, k.reduce("prod", size, 2), first, 4)
    scales = [s - 1 if mode == -1 else s for s in _sizes(inputs[1:])]
    ends = [(k.mul(low, k.const(s)), k.mul(high, k.const(s))) for s in scales]
    how = _Crops(int(f.one("pooled_size", 7)), samples, 0.5 if mode > 0 else 0.0,
                 0.5 if mode == 2 else 0.0, mode == -1)
    return [_pooled(k, inputs[0], inputs[1:], levels, ends, how)]


def _level_crops(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3,)] + [(4,)] * 5, "boxes [N, R, 4] and five feature maps [N, C, H, W]")
    k = Kit(g)
    image = np.array(_image(f, 3, 3, 832, 1344), np.float32)
    low, high = k.part(inputs[0], 2, 0, 2), k.part(inputs[0], 2, 2, 4)
    good = k.op("binary", k.binary("ge", low, np.float32(0)), k.binary("lt", low, high), fn="and")
    good = k.op("binary", good, k.binary("le", high, k.const(image)), fn="and")
    levels = _levels(k, k.reduce("prod", k.sub(high, low), 2), 224**2 / 4, 5)
    ends = [(k.mul(low, np.float32(0.5**i)), k.mul(high, np.float32(0.5**i)))
            for i in range(2, 7)]
    how = _Crops(int(f.one("pooled_size", 7)), 1, 0.5, 0.0)
    out = _pooled(k, inputs[0], inputs[1:], levels, ends, how)
    every = k.reduce("min", k.cast(good, T.i32), 2)
    return [k.where(k.unsqueeze(k.binary("gt", every, np.int32(0)), 2, 3, 4), out, np.float32(0))]


_DETECTION = ("num_classes", "keep_topk", "score_threshold", "iou_threshold")
KINDS.update({
    "ProposalLayer_TRT": Kind(
        ("prenms_topk", "keep_topk", "iou_threshold", "image_size"), (F,), _proposals),
    "MultilevelProposeROI_TRT": Kind(
        ("prenms_topk", "keep_topk", "fg_threshold", "iou_threshold", "image_size"), (F,),
        _level_proposals),
    "DetectionLayer_TRT": Kind(
        _DETECTION, (F,), _detector(True, lambda k, boxes, moves, f: _moved(k, boxes, moves))),
    "GenerateDetection_TRT": Kind(
        (*_DETECTION, "image_size"), (F,), _detector(False, _moved_detection)),
    "PyramidROIAlign_TRT": Kind(
        ("pooled_size", "image_size", "fpn_scale", "sampling_ratio", "roi_coords_absolute",
         "roi_coords_swap", "roi_coords_plusone", "roi_coords_transform", "legacy"), (F,),
        _pyramid_align),
    "MultilevelCropAndResize_TRT": Kind(("pooled_size", "image_size"), (F,), _level_crops),
})  # fmt: skip
