"""Layers and small nets against OpenCV's dnn, which has a Caffe reader of its own, and against
formulas where OpenCV deviates from Caffe."""

from __future__ import annotations

import caffecases as cases
import cv2
import numpy as np
import pytest
from caffekit import inputs_text, layer_text, made_up, made_up_model, opencv, relative, run

CASES = cases.every()
PEER = [c for c in CASES if c.id not in cases.DEVIATIONS]
FORMULA = [c for c in CASES if c.id in cases.DEVIATIONS]
TOLERANCE = 2e-5
needs_caffe = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"), reason="OpenCV 5 and later read no Caffe models")


def test_there_are_many() -> None:
    assert len(PEER) >= 120 and len({c.id for c in CASES}) == len(CASES)
    assert {c.id for c in FORMULA} == set(cases.DEVIATIONS)


@needs_caffe
@pytest.mark.parametrize("case", PEER, ids=lambda c: c.id)
def test_layer(case: cases.Case) -> None:
    ours = run(case.prototxt, case.model, case.feeds, case.outputs)
    theirs = opencv(case.prototxt, case.model, case.feeds, ["out"])
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) <= TOLERANCE


@pytest.mark.parametrize("case", FORMULA, ids=lambda c: c.id)
def test_layer_by_formula(case: cases.Case) -> None:
    why, formula = cases.DEVIATIONS[case.id]
    want = formula(list(case.feeds.values()), case.weights)
    ours = run(case.prototxt, case.model, case.feeds, case.outputs)
    for a, b in zip(ours, want if isinstance(want, list) else [want], strict=True):
        assert relative(a, np.asarray(b)) <= TOLERANCE, why


@needs_caffe
@pytest.mark.parametrize("case", PEER[::6], ids=lambda c: c.id)
def test_layer_in_an_engine(case: cases.Case) -> None:
    ours = run(case.prototxt, case.model, case.feeds, case.outputs, engine=True)
    for a, b in zip(ours, opencv(case.prototxt, case.model, case.feeds, ["out"]), strict=True):
        assert relative(a, b) <= TOLERANCE


@pytest.mark.parametrize("case", [c for c in CASES if not c.id.startswith((
    "Flatten-0", "Reduction-SUM-0", "Concat-dim", "Permute-1", "Scale-2bottoms", "Bias-2",
    "BatchNorm-batch")) and "-0" not in c.id[9:]][::3], ids=lambda c: c.id)
def test_implicit_batch_gives_the_same(case: cases.Case) -> None:
    explicit = run(case.prototxt, case.model, case.feeds, case.outputs)
    implicit = run(case.prototxt, case.model, case.feeds, case.outputs, implicit=True)
    for a, b in zip(explicit, implicit, strict=True):
        np.testing.assert_array_equal(a, b)


NETS = {
    "in-place": ["Convolution x a convolution_param{num_output:6 kernel_size:3 pad:1}",
                 "BatchNorm a a", "Scale a a scale_param{bias_term:true}", "ReLU a a",
                 "Dropout a a", "Pooling a out pooling_param{kernel_size:3 stride:2}"],
    "residual": ["Convolution x a convolution_param{num_output:6 kernel_size:1}",
                 "Convolution a b convolution_param{num_output:6 kernel_size:3 pad:1}",
                 "ReLU b b", "Eltwise a,b c", "ReLU c c", "Sigmoid c out"],
    "inception": ["Convolution x a convolution_param{num_output:2 kernel_size:1}",
                  "Convolution x b convolution_param{num_output:3 kernel_size:3 pad:1}",
                  "Pooling x p pooling_param{kernel_size:3 pad:1 stride:1}",
                  "Concat a,b,p out"],
    "slice": ["Slice x a,b slice_param{slice_point:1}",
              "Convolution b c convolution_param{num_output:1 kernel_size:1}",
              "Eltwise a,c out eltwise_param{operation:PROD}"],
    "classifier": ["Convolution x a convolution_param{num_output:4 kernel_size:3}", "TanH a a",
                   "InnerProduct a b inner_product_param{num_output:8}", "ReLU b b",
                   "InnerProduct b c inner_product_param{num_output:5}", "Softmax c out"],
    "detector-head": ["Convolution x a convolution_param{num_output:8 kernel_size:1}",
                      "Permute a b permute_param{order:0 order:2 order:3 order:1}",
                      "Reshape b c reshape_param{shape{dim:0 dim:-1 dim:4}}",
                      "Softmax c d softmax_param{axis:2}", "Flatten d out"],
    "segmenter": ["Convolution x a convolution_param{num_output:4 kernel_size:3 stride:2 pad:1}",
                  "ReLU a a", "Deconvolution a b convolution_param{num_output:3 kernel_size:4 "
                  "stride:2 pad:1}", "Crop b,x out crop_param{offset:0}"],
    "depthwise": ["Convolution x a convolution_param{num_output:3 group:3 kernel_size:3 pad:1}",
                  "ReLU a a relu_param{negative_slope:0.1}",
                  "Convolution a out convolution_param{num_output:8 kernel_size:1}"],
}


def small_net(name: str) -> str:
    lines = [inputs_text({"x": (2, 3, 8, 10)})]
    for i, spec in enumerate(NETS[name]):
        type, bottoms, tops, *params = spec.split(" ", 3)
        lines.append(layer_text(tops if tops == "out" else f"l{i}", type, bottoms.split(","),
                                tops.split(","), *params))
    return "\n".join(lines)


@needs_caffe
@pytest.mark.parametrize("engine", [False, True], ids=["interpreter", "engine"])
@pytest.mark.parametrize("name", NETS)
def test_small_net(name: str, engine: bool) -> None:
    text = small_net(name)
    model, feeds = made_up_model(text), {"x": made_up(name, (2, 3, 8, 10))}
    ours = run(text, model, feeds, ["out"], engine=engine)
    theirs = opencv(text, model, feeds, ["out"])
    assert relative(ours[0], theirs[0]) <= TOLERANCE
