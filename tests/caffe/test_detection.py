"""Detectors' last layers against OpenCV, and step by step."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from caffekit import (
    inputs_text,
    layer_text,
    made_up,
    made_up_model,
    opencv,
    relative,
    run,
    write_caffemodel,
)

needs_caffe = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"), reason="OpenCV 5 and later read no Caffe models")
EMPTY = write_caffemodel("n", {"none": []})


@needs_caffe
@pytest.mark.parametrize("params", [
    "min_size: 30", "min_size: 30 max_size: 60", "min_size: 30 aspect_ratio: 2",
    "min_size: 30 max_size: 50 aspect_ratio: 2 aspect_ratio: 3 clip: true",
    "min_size: 20 aspect_ratio: 2 flip: false clip: false",
    "min_size: 20 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2",
    "min_size: 20 step: 16 offset: 0.25", "min_size: 20 step_h: 15 step_w: 12",
])
def test_prior_box(params: str) -> None:
    if "clip" not in params:
        params += " clip: false"  # OpenCV's default is another
    if "variance" not in params:
        params += " variance: 0.1"  # which OpenCV demands
    shapes = {"x": (1, 2, 4, 6), "data": (1, 3, 60, 80)}
    text = inputs_text(shapes) + layer_text("out", "PriorBox", list(shapes), ["out"],
                                            f"prior_box_param {{ {params} }}")
    feeds = {n: made_up(n, s) for n, s in shapes.items()}
    ours, theirs = run(text, EMPTY, feeds, ["out"])[0], opencv(text, EMPTY, feeds, ["out"])[0]
    assert relative(ours, theirs) < 1e-5


def detector(batch: int, classes: int, shared: bool, params: str, tops: int = 1) -> tuple:
    count = 24
    shapes = {"loc": (batch, count * 4 * (1 if shared else classes)),
              "conf": (batch, count * classes), "prior": (1, 2, count * 4)}
    if "background" not in params:
        params += " background_label_id: 0"  # which OpenCV demands
    text = inputs_text(shapes) + layer_text(
        "out", "DetectionOutput", list(shapes), ["out", "count"][:tops],
        f"detection_output_param {{ num_classes: {classes} share_location: {str(shared).lower()} "
        f"{params} }}")
    low = made_up("low", (count, 2), 0, 0.6)
    prior = np.concatenate([low, low + made_up("high", (count, 2), 0.1, 0.4)], axis=1)
    feeds = {"loc": made_up("loc", shapes["loc"]), "conf": made_up("conf", shapes["conf"], 0, 1),
             "prior": np.stack([prior.ravel(), np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), count)]
                               )[None]}
    return text, feeds


@needs_caffe
@pytest.mark.parametrize("params", [
    "nms_param { nms_threshold: 0.45 top_k: 400 } keep_top_k: 200 code_type: CENTER_SIZE "
    "confidence_threshold: 0.3",
    "nms_param { nms_threshold: 0.3 top_k: 10 } keep_top_k: 12 code_type: CENTER_SIZE "
    "confidence_threshold: 0.01",
    "nms_param { nms_threshold: 0.6 } keep_top_k: 50 code_type: CORNER confidence_threshold: 0.5",
    "nms_param { nms_threshold: 0.5 } keep_top_k: 50 code_type: CENTER_SIZE "
    "confidence_threshold: 0.5 variance_encoded_in_target: true",
    "nms_param { nms_threshold: 0.5 } keep_top_k: 50 code_type: CENTER_SIZE "
    "confidence_threshold: 0.5 background_label_id: 2",
])
@pytest.mark.parametrize(("shared", "engine"), [(True, False), (True, True), (False, False)],
                         ids=["shared", "engine", "per class"])
def test_detection_output(shared: bool, params: str, engine: bool) -> None:
    text, feeds = detector(1, 3, shared, params, tops=2)
    ours, count = run(text, EMPTY, feeds, ["out", "count"], engine=engine)
    single, _ = detector(1, 3, shared, params)
    if "encoded_in_target" in params:  # OpenCV then wants priors without variances
        single, feeds = single.replace("dim: 2 dim: 96", "dim: 1 dim: 96"), dict(feeds)
        feeds["prior"] = feeds["prior"][:, :1]
    theirs = opencv(single, EMPTY, feeds, ["out"])[0].reshape(-1, 7)
    theirs = theirs[theirs[:, 2] > 0]  # OpenCV's unused rows are 0
    found = int(count[0, 0, 0, 0])
    assert found == len(theirs) > 3
    order = np.argsort(-theirs[:, 2], kind="stable")
    assert relative(ours[0, 0, :found], theirs[order]) < 1e-5
    assert (ours[0, 0, found:, 1] == -1).all() and (np.diff(ours[0, 0, :found, 2]) <= 0).all()


def test_detections_of_a_batch() -> None:
    params = "nms_param { nms_threshold: 0.5 } keep_top_k: 9 code_type: CENTER_SIZE"
    text, feeds = detector(3, 3, True, params)
    both = run(text, EMPTY, feeds, ["out"])[0]
    implicit = run(text, EMPTY, feeds, ["out"], implicit=True)[0]
    np.testing.assert_array_equal(both, implicit)
    text, _ = detector(1, 3, True, params)
    for i in range(3):
        one = {k: v if k == "prior" else v[i : i + 1] for k, v in feeds.items()}
        np.testing.assert_array_equal(run(text, EMPTY, one, ["out"])[0][0, 0, :, 1:],
                                      both[i, 0, :, 1:])


def single_shot_detector() -> str:
    """Two feature maps, three classes, written as detectors of this kind are."""
    lines = [inputs_text({"data": (1, 3, 48, 64)}), layer_text(
        "c0", "Convolution", ["data"], ["f0"], "convolution_param { num_output: 8 kernel_size: 3 "
        "stride: 4 pad: 1 }"), layer_text("r0", "ReLU", ["f0"], ["f0"]), layer_text(
        "c1", "Convolution", ["f0"], ["f1"],
        "convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1 }")]
    for i, (low, high) in enumerate(((10, 20), (25, 40))):
        lines.append(layer_text(
            f"prior{i}", "PriorBox", [f"f{i}", "data"], [f"prior{i}"], "prior_box_param { "
            f"min_size: {low} max_size: {high} aspect_ratio: 2 clip: false variance: 0.1 "
            "variance: 0.1 variance: 0.2 variance: 0.2 }"))
        for kind, each in (("loc", 4), ("conf", 3)):
            name = f"{kind}{i}"
            lines += [
                layer_text(name, "Convolution", [f"f{i}"], [name], "convolution_param { "
                           f"num_output: {4 * each} kernel_size: 1 }}"),
                layer_text(f"{name}p", "Permute", [name], [f"{name}p"],
                           "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
                layer_text(f"{name}f", "Flatten", [f"{name}p"], [f"{name}f"],
                           "flatten_param { axis: 1 }")]
    for kind in ("loc", "conf"):
        lines.append(layer_text(kind, "Concat", [f"{kind}0f", f"{kind}1f"], [kind]))
    lines += [
        layer_text("prior", "Concat", ["prior0", "prior1"], ["prior"], "concat_param { axis: 2 }"),
        layer_text("rows", "Reshape", ["conf"], ["rows"],
                   "reshape_param { shape { dim: 0 dim: -1 dim: 3 } }"),
        layer_text("soft", "Softmax", ["rows"], ["soft"], "softmax_param { axis: 2 }"),
        layer_text("flat", "Flatten", ["soft"], ["flat"], "flatten_param { axis: 1 }"),
        layer_text("out", "DetectionOutput", ["loc", "flat", "prior"], ["out"],
                   "detection_output_param { num_classes: 3 background_label_id: 0 "
                   "nms_param { nms_threshold: 0.45 top_k: 100 } code_type: CENTER_SIZE "
                   "keep_top_k: 20 confidence_threshold: 0.4 share_location: true }")]
    return "\n".join(lines)


@needs_caffe
@pytest.mark.parametrize(("implicit", "engine"), [(False, False), (False, True), (True, False)],
                         ids=["explicit", "engine", "implicit"])
def test_single_shot_detector(implicit: bool, engine: bool) -> None:
    text = single_shot_detector()
    model, feeds = made_up_model(text), {"data": made_up("ssd", (1, 3, 48, 64), -3, 3)}
    ours = run(text, model, feeds, ["out"], implicit=implicit, engine=engine)[0]
    theirs = opencv(text, model, feeds, ["out"])[0].reshape(-1, 7)
    theirs = theirs[theirs[:, 2] > 0]
    theirs = theirs[np.argsort(-theirs[:, 2], kind="stable")]
    found = ours[ours[..., 1] >= 0]
    assert len(theirs) > 5 and relative(found, theirs) < 1e-4


# --- region proposals ---------------------------------------------------------------------------

REGIONS = ("feature_stride: 16 prenms_top: 60 nms_max_out: 7 anchor_ratio_count: 3 "
           "anchor_scale_count: 2 iou_threshold: 0.7 min_box_size: 16 spatial_scale: 0.0625 "
           "pooled_h: 3 pooled_w: 2 anchor_ratio: 0.5 anchor_ratio: 1 anchor_ratio: 2 "
           "anchor_scale: 2 anchor_scale: 4")


def test_region_proposals_against_opencv() -> None:
    shapes = {"scores": (1, 12, 6, 7), "deltas": (1, 24, 6, 7), "map": (1, 4, 6, 7),
              "info": (1, 3)}
    text = inputs_text(shapes) + layer_text(
        "out", "RPROI", list(shapes), ["rois", "features"],
        f"region_proposal_param {{ {REGIONS} }}")
    feeds = {n: made_up(n, s, -0.3, 0.3) for n, s in shapes.items()}
    feeds["info"] = np.float32([[96, 112, 1]])
    rois, features = run(text, EMPTY, feeds, ["rois", "features"])
    assert rois.shape == (1, 1, 7, 4) and features.shape == (7, 4, 3, 2)
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 and later read no Caffe models")
    peer = inputs_text({n: shapes[n] for n in ("scores", "deltas", "info")}) + layer_text(
        "out", "Proposal", ["scores", "deltas", "info"], ["out"],
        "proposal_param { feat_stride: 16 base_size: 16 min_size: 16 ratio: 0.5 ratio: 1 ratio: 2 "
        "scale: 2 scale: 4 pre_nms_topn: 60 post_nms_topn: 7 nms_thresh: 0.7 }")
    theirs = opencv(peer, EMPTY, {n: feeds[n] for n in ("scores", "deltas", "info")}, ["out"])[0]
    assert relative(rois[0, 0], theirs[:, 1:]) < 1e-4
    pooled = inputs_text({"map": shapes["map"], "rois": (7, 5)}) + layer_text(
        "out", "ROIPooling", ["map", "rois"], ["out"],
        "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.0625 }")
    boxes = {"map": feeds["map"], "rois": np.concatenate([np.zeros((7, 1)), rois[0, 0]], 1).astype(
        np.float32)}
    assert relative(features, opencv(pooled, EMPTY, boxes, ["out"])[0]) < 1e-5
    assert relative(run(pooled, EMPTY, boxes, ["out"])[0], features) == 0
