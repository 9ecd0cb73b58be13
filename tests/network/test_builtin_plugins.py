"""Plugins under TensorRT's names compute what Caffe's layers compute."""

from __future__ import annotations

import numpy as np
import pytest
from caffekit import Quiet, inputs_text, layer_text, made_up, relative, run, write_caffemodel

import tactician as trt

F, I = np.float32, np.int32
COUNT = 12
DETECTOR = {"loc": (2, COUNT * 4), "conf": (2, COUNT * 3), "prior": (1, 2, COUNT * 4)}
REGIONS = {"scores": (1, 12, 6, 7), "deltas": (1, 24, 6, 7), "map": (1, 4, 6, 7), "info": (1, 3)}

# plugin: (shapes, fields, Caffe layer, its parameters, its weights, its tops)
PLUGINS = {
    "NMS_TRT": (DETECTOR, {
        "numClasses": I([3]), "keepTopK": I([9]), "topK": I([8]), "nmsThreshold": F([0.4]),
        "confidenceThreshold": F([0.3]), "codeType": I([1]), "inputOrder": I([0, 1, 2]),
    }, "DetectionOutput", "detection_output_param { num_classes: 3 keep_top_k: 9 code_type: "
        "CENTER_SIZE confidence_threshold: 0.3 nms_param { nms_threshold: 0.4 top_k: 8 } }", [],
        ["a", "b"]),
    "PriorBox_TRT": ({"x": (1, 2, 4, 6), "data": (1, 3, 60, 80)}, {
        "minSize": F([20]), "maxSize": F([30]), "aspectRatios": F([2]), "flip": I([1]),
        "variance": F([0.1, 0.1, 0.2, 0.2]),
    }, "PriorBox", "prior_box_param { min_size: 20 max_size: 30 aspect_ratio: 2 variance: 0.1 "
        "variance: 0.1 variance: 0.2 variance: 0.2 }", [], ["a"]),
    "Normalize_TRT": ({"x": (2, 4, 5, 6)}, {
        "weights": F([1, 2, 3, 4]), "acrossSpatial": I([0]), "channelShared": I([0]),
    }, "Normalize", "norm_param { across_spatial: false channel_shared: false }",
        [F([1, 2, 3, 4])], ["a"]),
    "RPROI_TRT": (REGIONS, {
        "poolingH": I([3]), "poolingW": I([2]), "featureStride": I([16]), "preNmsTop": I([60]),
        "nmsMaxOut": I([7]), "iouThreshold": F([0.7]), "minBoxSize": F([16]),
        "spatialScale": F([0.0625]), "anchorsRatios": F([0.5, 1, 2]), "anchorsScales": F([2, 4]),
    }, "RPROI", "region_proposal_param { feature_stride: 16 prenms_top: 60 nms_max_out: 7 "
        "iou_threshold: 0.7 min_box_size: 16 spatial_scale: 0.0625 pooled_h: 3 pooled_w: 2 "
        "anchor_ratio: 0.5 anchor_ratio: 1 anchor_ratio: 2 anchor_scale: 2 anchor_scale: 4 }", [],
        ["a", "b"]),
}


def feeds_of(shapes: dict) -> dict:
    feeds = {n: made_up(("builtin", n), s, -0.3, 0.3) for n, s in shapes.items()}
    if "conf" in feeds:
        low = made_up("low", (COUNT, 2), 0, 0.6)
        prior = np.concatenate([low, low + made_up("size", (COUNT, 2), 0.1, 0.4)], axis=1)
        feeds["prior"] = np.stack([prior.ravel(), np.tile(F([0.1, 0.1, 0.2, 0.2]), COUNT)])[None]
        feeds["conf"] = made_up("conf", shapes["conf"], 0, 1)
    if "info" in feeds:
        feeds["info"] = F([[96, 112, 1]])
    return feeds


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin(name: str) -> None:
    shapes, fields, layer, params, blobs, tops = PLUGINS[name]
    feeds = feeds_of(shapes)
    text = inputs_text(shapes) + layer_text("l", layer, list(shapes), tops, params)
    want = run(text, write_caffemodel("n", {"l": blobs}), feeds, tops)

    assert trt.init_libnvinfer_plugins(None, "")
    creator = trt.get_plugin_registry().get_plugin_creator(name, "1", "")
    assert {f.name for f in creator.field_names} >= set(fields)
    plugin = creator.create_plugin("l", trt.PluginFieldCollection(
        [trt.PluginField(k, v) for k, v in fields.items()]))
    net = trt.INetworkDefinition(0, Quiet(), implicit_batch=False)
    inputs = [net.add_input(n, trt.float32, s) for n, s in shapes.items()]
    added = net.add_plugin_v2(inputs, plugin)
    for i in range(added.num_outputs):
        added.get_output(i).name = tops[i]
        net.mark_output(added.get_output(i))
    results = trt.build(net, level=0)(feeds)
    for top, theirs in zip(tops, want, strict=True):
        assert relative(results[top].reshape(theirs.shape), theirs) < 1e-5
