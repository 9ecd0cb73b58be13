"""The ends of detectors: prior boxes, detections, region proposals."""

from __future__ import annotations

import numpy as np

from ....ir import dims as D
from ....ir.graph import Value
from ....ops.detection import prior_boxes
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer

_CODES = {1: "corner", 2: "center_size", 3: "corner_size"}


@importer("PriorBox", inputs=2, does="boxes that a detector starts from, and their variances",
          notes="worked out while parsing: sizes must be known; several min_size and max_size")
def prior_box(c: Context, n: CaffeLayer) -> Value:
    sizes = [x.dims[2:] for x in n.bottoms]
    if any(len(s) != 2 or not D.is_static(*s) for s in sizes):
        raise LayerProblem("both bottoms need four dimensions, with known heights and widths")
    feature, image = ((int(s[0]), int(s[1])) for s in sizes)
    p = n.proto.prior_box_param
    if p.img_size:
        image = (p.img_size, p.img_size)
    elif p.img_h and p.img_w:
        image = (p.img_h, p.img_w)
    steps = (p.step, p.step) if p.step else (p.step_h, p.step_w)
    boxes = prior_boxes(feature, image, p.min_size, p.max_size, p.aspect_ratio, p.flip, steps,
                        p.offset, p.variance, p.clip)
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
