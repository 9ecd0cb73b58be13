"""The ends of detectors: prior boxes, detections, region proposals."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.graph import Value
from ..context import Context
from ..errors import LayerProblem
from ..node import Array, CaffeLayer
from ..table import importer

_CODES = {1: "corner", 2: "center_size", 3: "corner_size"}


def _ratios(p: Any) -> list[float]:
    out = [1.0]
    for r in p.aspect_ratio:
        for v in (r, 1 / r) if p.flip and r else (r,):
            if v <= 0:
                raise LayerProblem(f"aspect_ratio {r:g} must be positive")
            if all(abs(v - known) >= 1e-6 for known in out):
                out.append(v)
    return out


def _sizes(p: Any) -> Array:
    """Widths and heights of the boxes at a position, in pixels."""
    if not p.min_size or any(s <= 0 for s in p.min_size):
        raise LayerProblem("prior_box_param needs min_size, greater than 0")
    if p.max_size and len(p.max_size) != len(p.min_size):
        raise LayerProblem(f"has {len(p.max_size)} max_size for {len(p.min_size)} min_size")
    ratios, out = _ratios(p), []
    for i, small in enumerate(p.min_size):
        out.append((small, small))
        if p.max_size:
            if p.max_size[i] <= small:
                raise LayerProblem(f"max_size {p.max_size[i]:g} must be greater than min_size "
                                   f"{small:g}")
            out.append((np.sqrt(small * p.max_size[i]),) * 2)
        out += [(small * np.sqrt(r), small / np.sqrt(r)) for r in ratios[1:]]
    return np.array(out)


def prior_boxes(p: Any, feature: tuple[int, int], image: tuple[int, int]) -> Array:
    """Corners and variances ``[1, 2, boxes * 4]``, relative to the image.

    Args:
        p: ``PriorBoxParameter``.
        feature, image: Heights and widths of the feature map and the image.
    """
    if p.img_size:
        image = (p.img_size, p.img_size)
    elif p.img_h and p.img_w:
        image = (p.img_h, p.img_w)
    step_h, step_w = (p.step, p.step) if p.step else (p.step_h, p.step_w)
    if not (step_h and step_w):
        step_h, step_w = (i / f for i, f in zip(image, feature, strict=True))
    y = (np.arange(feature[0]) + p.offset) * step_h
    x = (np.arange(feature[1]) + p.offset) * step_w
    center = np.stack(np.broadcast_arrays(x[None, :, None], y[:, None, None]), axis=-1)
    half = _sizes(p) / 2
    scale = np.array([image[1], image[0]])
    boxes = np.concatenate([(center - half) / scale, (center + half) / scale], axis=-1)
    if p.clip:
        boxes = boxes.clip(0, 1)
    variance = list(p.variance) or [0.1]
    if len(variance) not in (1, 4):
        raise LayerProblem(f"has {len(variance)} variance; give one or four")
    spread = np.broadcast_to(np.array(variance), boxes.shape)
    return np.stack([boxes.reshape(-1), spread.reshape(-1)])[None].astype(np.float32)


@importer("PriorBox", inputs=2, does="boxes that a detector starts from, and their variances",
          notes="worked out while parsing: sizes must be known; several min_size and max_size")
def prior_box(c: Context, n: CaffeLayer) -> Value:
    sizes = [x.dims[2:] for x in n.bottoms]
    if any(len(s) != 2 or not D.is_static(*s) for s in sizes):
        raise LayerProblem("both bottoms need four dimensions, with known heights and widths")
    feature, image = ((int(s[0]), int(s[1])) for s in sizes)
    boxes = prior_boxes(n.proto.prior_box_param, feature, image)
    return c.op("constant", value=boxes)


@importer("DetectionOutput", inputs=(3, 4), does="decoded boxes without overlapping ones",
          notes="(num, 1, keep_top_k, 7) as NVIDIA's plugin: rows of image, class, score, corners, "
                "best first, class -1 where there are fewer; a second top gives their number")
def detection_output(c: Context, n: CaffeLayer) -> list[Value]:
    p = n.proto.detection_output_param
    if not p.num_classes:
        raise LayerProblem("detection_output_param needs num_classes")
    if len(n) == 4:
        raise LayerProblem("has a fourth bottom (the image, for sizes), which is not supported")
    priors = n[2].dims[-1]
    if not isinstance(priors, int):
        raise LayerProblem("the number of priors, the third bottom's last dimension, must be known")
    nms = p.nms_param
    top_k = nms.top_k if nms.HasField("top_k") else -1
    each = priors // 4 if top_k < 0 else min(top_k, priors // 4)
    keep = p.keep_top_k if p.keep_top_k > 0 else each * p.num_classes
    lowest = float(np.finfo(np.float32).min)
    return c.ops("detection_output", *n.bottoms, classes=p.num_classes,
                 background=p.background_label_id, share_location=p.share_location,
                 code=_CODES[p.code_type], variance_in_target=p.variance_encoded_in_target,
                 iou=nms.nms_threshold, eta=nms.eta, top_k=top_k, keep=keep,
                 confidence=p.confidence_threshold if p.HasField("confidence_threshold")
                 else lowest)


@importer("RPROI", inputs=4, does="region proposals, and the features inside them",
          notes="explicit batch; tops are rois (num, 1, nms_max_out, 4) and features (num * "
                "nms_max_out, channels, pooled_h, pooled_w)")
def rproi(c: Context, n: CaffeLayer) -> list[Value]:
    p = n.proto.region_proposal_param
    if c.implicit:
        raise LayerProblem("it gives several regions per image, whose features only a network with "
                           "explicit batch can hold; use create_network(1 << EXPLICIT_BATCH)")
    needed = ("feature_stride", "prenms_top", "nms_max_out", "iou_threshold", "pooled_h",
              "pooled_w", "spatial_scale")
    missing = [f for f in needed if not getattr(p, f)]
    ratios = tuple(p.anchor_ratio) or (0.5, 1.0, 2.0)[: p.anchor_ratio_count or 3]
    scales = tuple(p.anchor_scale) or (8.0, 16.0, 32.0)[: p.anchor_scale_count or 3]
    if missing:
        raise LayerProblem(f"region_proposal_param needs {', '.join(missing)}")
    for what, have, said in (("ratio", ratios, p.anchor_ratio_count),
                             ("scale", scales, p.anchor_scale_count)):
        if said and len(have) != said:
            raise LayerProblem(f"anchor_{what}_count is {said}, but there are {len(have)} "
                               f"anchor_{what}")
    rois = c.op("proposals", n[0], n[1], n[3], stride=p.feature_stride, ratios=ratios,
                scales=scales, min_size=p.min_box_size, pre=p.prenms_top, post=p.nms_max_out,
                iou=p.iou_threshold)
    features = c.op("max_roi_pool", n[2], rois, output_height=p.pooled_h, output_width=p.pooled_w,
                    spatial_scale=p.spatial_scale)
    boxes = c.reshape(c.cut(rois, 1, 1, 5), (-1, 1, p.nms_max_out, 4))
    return [boxes, features]
