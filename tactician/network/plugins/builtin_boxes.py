"""Built-in plugins that suppress boxes: they find what stays with `nms`, put its scores back in
their places among all of them and take the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Fields, Kind
from .kit import Kit

F, I = DataType.FLOAT, DataType.INT32
_NONE = np.float32(-3e38)  # the score of what was not selected


def need(inputs: Sequence[Value], ranks: Sequence[tuple[int, ...]], what: str) -> None:
    """Raises OpError unless the inputs have one of the ranks each."""
    if len(inputs) != len(ranks) or any(
            v.rank not in r for v, r in zip(inputs, ranks, strict=True)):
        raise ops.OpError(f"its inputs must be {what}; got {', '.join(map(repr, inputs))}")


@dataclass(frozen=True)
class Rules:
    """How boxes are suppressed.

    Attributes:
        iou: The most that boxes may overlap.
        least: The least score.
        above: Whether scores must be greater than ``least``.
        each: Most boxes of a class; 0: any number.
        top: Boxes of a class that are looked at, the best; 0: all.
        one: Whether a box's corners are pixels that belong to it.
        background: The class that is left out; -1: none.
        agnostic: Whether boxes of different classes suppress each other.
    """

    iou: float
    least: float
    above: bool = False
    each: int = 0
    top: int = 0
    one: bool = False
    background: int = -1
    agnostic: bool = False

    @property
    def threshold(self) -> np.float32:
        """What scores must be greater than."""
        low = max(np.float32(self.least), np.float32(-1e38))
        return np.float32(low if self.above else np.nextafter(low, np.float32(-np.inf)))


def _classes(scores: Value) -> int:
    count = scores.dims[2]
    if not isinstance(count, int):
        raise ops.OpError(f"the number of classes of {scores!r} must be known")
    return count


def kept_scores(k: Kit, boxes: Value, scores: Value, rules: Rules) -> Value:
    """Scores ``[N, classes * boxes]`` of the boxes that stay, `_NONE` in all other places.

    Args:
        boxes: Corners, [N, boxes, 1 or classes, 4].
        scores: [N, boxes, classes].
    """
    classes, shared = _classes(scores), boxes.dims[2] == 1
    s = k.transpose(scores, 0, 2, 1)
    if 0 <= rules.background < classes:
        wanted = np.arange(classes).reshape(1, -1, 1) != rules.background
        s = k.where(k.const(wanted), s, _NONE)
    if rules.top and not (isinstance(s.dims[2], int) and s.dims[2] <= rules.top):
        best, at = k.topk(s, rules.top, axis=2)
        none = k.full(_NONE, np.float32, k.size(s, 0), classes, k.size(s, 2))
        s = k.op("scatter_elements", none, at, best, axis=2, reduction="none")
    b = k.transpose(boxes, 0, 2, 1, 3)  # [N, 1 or classes, boxes, 4]
    if rules.one:
        b = k.add(b, k.const(np.array([0, 0, 1, 1], np.float32)))
    if rules.agnostic:
        if shared and classes > 1:
            b = k.expand(b, k.size(b, 0), classes, k.size(b, 2), 4)
        b, s = k.reshape(b, 0, -1, 4), k.reshape(s, 0, 1, -1)
    elif shared:
        b = k.squeeze(b, 1)
    else:
        sizes = [k.op("binary", k.size(s, 0), k.ints(classes), fn="mul"), k.size(s, 2)]
        b, s = k.reshape(b, *sizes, 4), k.reshape(s, sizes[0], 1, sizes[1])
    found = k.op("nms", b, s, k.const(np.int64(rules.each or 2**31 - 1)),
                 k.const(np.float32(rules.iou)), k.const(rules.threshold), center_box=False)
    blank = k.full(_NONE, np.float32, *(k.size(s, a) for a in range(3)))
    values = k.op("gather_nd", s, found, batch_dims=0)
    kept = k.op("scatter_nd", blank, found, values, reduction="none")
    return k.reshape(kept, k.size(scores, 0), -1)


def best(k: Kit, kept: Value, count: int) -> tuple[Value, Value, Value]:
    """The best of `kept_scores`: scores [N, count], places, and which of them are any."""
    have = kept.dims[1]
    if not isinstance(have, int) or have < count:
        kept = k.join([kept, k.full(_NONE, np.float32, k.size(kept, 0), count)], 1)
    values, at = k.topk(kept, count, axis=1)
    valid = k.binary("gt", values, np.float32(_NONE / 2))
    return values, k.where(valid, at, np.int64(0)), valid


def detections(k: Kit, boxes: Value, scores: Value, rules: Rules, count: int, blank: int,
               labels: T.DType) -> list[Value]:
    """The four outputs: counts [N, 1], boxes [N, count, 4], scores, classes; best first."""
    values, at, valid = best(k, kept_scores(k, boxes, scores, rules), count)
    number = k.size(scores, 1)
    label = k.div(at, number)
    if boxes.dims[2] == 1:
        rows, at = k.squeeze(boxes, 2), k.sub(at, k.mul(label, number))
    else:
        rows = k.reshape(k.transpose(boxes, 0, 2, 1, 3), k.size(boxes, 0), -1, 4)
    chosen = k.gather(rows, at, axis=1, batch=1)
    total = k.reduce("sum", k.cast(valid, T.i32), 1, keep=True)
    chosen = k.where(k.unsqueeze(valid, 2), chosen, np.float32(0))
    label = k.where(valid, label, np.int64(blank))
    return [total, chosen, k.where(valid, values, np.float32(0)), k.cast(label, labels)]


def corners(k: Kit, boxes: Value) -> Value:
    """Low and high corners of boxes that are centres and sizes."""
    centre, half = k.part(boxes, -1, 0, 2), k.mul(k.part(boxes, -1, 2, 4), np.float32(0.5))
    return k.join([k.sub(centre, half), k.add(centre, half)], -1)


def _decoded(k: Kit, boxes: Value, anchors: Value, sizes: bool) -> Value:
    """Boxes from a network's corrections of anchors: of corners, or of centres and sizes."""
    if not sizes:
        return k.add(boxes, anchors)
    centre, size = k.part(anchors, -1, 0, 2), k.part(anchors, -1, 2, 4)
    return k.join([k.add(k.mul(k.part(boxes, -1, 0, 2), size), centre),
                   k.mul(k.unary("exp", k.part(boxes, -1, 2, 4)), size)], -1)


def _efficient(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3, 4), (3,), (3,)][:max(len(inputs), 2)], "boxes [N, boxes, 4] or "
         "[N, boxes, classes, 4], scores [N, boxes, classes], and perhaps anchors "
         "[1 or N, boxes, 4]")
    k = Kit(g)
    boxes, scores, *anchors = inputs
    if boxes.rank == 3:
        boxes = k.unsqueeze(boxes, 2)
    coded = bool(f.one("box_coding", 0))
    if anchors:
        boxes = _decoded(k, boxes, k.unsqueeze(anchors[0], 2), coded)
    if int(f.one("score_activation", 0)):
        scores = k.op("activation", scores, fn="sigmoid")
    keep = int(f.one("max_output_boxes"))
    rules = Rules(float(f.one("iou_threshold", 0.5)), float(f.one("score_threshold", 0.25)),
                  each=keep, background=int(f.one("background_class", -1)),
                  agnostic=bool(f.one("class_agnostic", 0)))
    return detections(k, corners(k, boxes) if coded else boxes, scores, rules, keep, 0, T.i32)


def _tensorflow(g: Graph, inputs: Sequence[Value], f: Fields, flat: bool = False
                ) -> Sequence[Value]:
    """TensorFlow's combined suppression: limits per class and in all.

    Args:
        g: The graph.
        inputs: Boxes and scores.
        f: The fields.
        flat: Whether counts are [N] instead of [N, 1], and scores may end in a dimension of 1.
    """
    k = Kit(g)
    need(inputs, [(3, 4), (3, 4) if flat else (3,)], "boxes [N, boxes, 4] or [N, boxes, 1 or "
         "classes, 4] and scores [N, boxes, classes]")
    boxes, scores = inputs
    if scores.rank == 4:
        scores = k.squeeze(scores, 3)
    if boxes.rank == 3:
        boxes = k.unsqueeze(boxes, 2)
    each, total = int(f.one("max_output_size_per_class", -1)), int(f.one("max_total_size", 100))
    if f.one("pad_per_class", 0) and each > 0:
        total = min(total, each * _classes(scores))
    rules = Rules(float(f.one("iou_threshold", 0.5)), float(f.one("score_threshold", 0.5)),
                  each=min(each, total) if each > 0 else total)
    count, found, values, labels = detections(k, boxes, scores, rules, total, 0, T.i32)
    if f.one("clip_boxes", 0):
        found = k.clip(found, np.float32(0), np.float32(1))
    return [k.squeeze(count, 1) if flat else count, found, values, labels]


def _tensorflow_flat(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    return _tensorflow(g, inputs, f, flat=True)


def _batched(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(4,), (3,)], "boxes [N, boxes, 1 or classes, 4] and scores "
         "[N, boxes, classes]")
    k = Kit(g)
    rules = Rules(float(f.one("iouThreshold", 0.5)), float(f.one("scoreThreshold", 0)), above=True,
                  top=max(int(f.one("topK", -1)), 0), one=not f.one("isNormalized", 1),
                  background=int(f.one("backgroundLabelId", -1)))
    count, boxes, scores, labels = detections(
        k, inputs[0], inputs[1], rules, int(f.one("keepTopK")), -1, T.f32)
    if f.one("clipBoxes", 1):
        boxes = k.clip(boxes, np.float32(0), np.float32(1))
    return [count, boxes, scores, labels]


def _onnx_nms(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """(image, class, box) of boxes that stay, best first; rows of -1 where there are fewer."""
    need(inputs, [(3,), (3,)], "boxes [N, boxes, 4] and scores [N, classes, boxes]")
    k = Kit(g)
    boxes, scores = inputs
    n, classes = scores.dims[:2]
    if not isinstance(n, int) or not isinstance(classes, int):
        raise ops.OpError("batch and classes must be known: the output has a place for each box")
    if int(f.one("center_point_box", 0)):
        boxes = corners(k, boxes)
    limit = int(f.one("max_output_boxes_per_class"))
    rules = Rules(float(f.one("iou_threshold", 0.5)), float(f.one("score_threshold", 0.5)),
                  each=limit)
    kept = kept_scores(k, k.unsqueeze(boxes, 2), k.transpose(scores, 0, 2, 1), rules)
    _, at, valid = best(k, k.reshape(kept, 1, -1), n * limit)
    at, valid = k.reshape(at, -1, 1), k.reshape(valid, -1, 1)
    number = k.size(scores, 2)
    image = k.div(k.div(at, number), classes)
    parts = [image, k.sub(k.div(at, number), k.mul(image, classes)),
             k.sub(at, k.mul(k.div(at, number), number))]
    return [k.cast(k.where(valid, k.join(parts, 1), np.int64(-1)), T.i32)]


_EFFICIENT = Kind(
    ("score_threshold", "iou_threshold", "max_output_boxes", "background_class",
     "score_activation", "box_coding", "class_agnostic"), (I, F, F, I), _efficient)
_TENSORFLOW = ("max_output_size_per_class", "max_total_size", "iou_threshold", "score_threshold",
               "pad_per_class", "clip_boxes")
_BATCHED = Kind(
    ("shareLocation", "backgroundLabelId", "numClasses", "topK", "keepTopK", "scoreThreshold",
     "iouThreshold", "isNormalized", "clipBoxes", "scoreBits", "caffeSemantics"),
    (I, F, F, F), _batched, ignored=("scoreBits", "caffeSemantics"))
KINDS.update({
    "EfficientNMS_TRT": _EFFICIENT,
    "EfficientNMS_Explicit_TF_TRT": Kind(_TENSORFLOW, (I, F, F, I), _tensorflow),
    "EfficientNMS_Implicit_TF_TRT": Kind(_TENSORFLOW, (I, F, F, I), _tensorflow_flat),
    "EfficientNMS_ONNX_TRT": Kind(
        ("score_threshold", "iou_threshold", "max_output_boxes_per_class", "center_point_box"),
        (I,), _onnx_nms),
    "BatchedNMS_TRT": _BATCHED,
    "BatchedNMSDynamic_TRT": _BATCHED,
})  # fmt: skip
