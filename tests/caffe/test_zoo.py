"""Well-known networks with made-up weights against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from caffekit import made_up, made_up_model, opencv, relative, run
from zoo import ZOO

pytestmark = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"), reason="OpenCV 5 and later read no Caffe models")

# size and width of the quick runs; AlexNets and VGG keep few channels in their products
QUICK = {"alexnet": (99, 16), "caffenet": (99, 16), "googlenet": (64, 10), "vgg16": (32, 8),
         "resnet50": (64, 4), "mobilenet": (64, 2), "squeezenet": (64, 10)}
LAYERS = {"alexnet": 8, "caffenet": 8, "googlenet": 58, "vgg16": 16, "resnet50": 54,
          "mobilenet": 28, "squeezenet": 26}


def check(name: str, size: int, width: int, engine: bool) -> None:
    text = ZOO[name](size, width)
    model, feeds = made_up_model(text), {"data": made_up(name, (1, 3, size, size))}
    ours = run(text, model, feeds, ["prob"], engine=engine)[0]
    theirs = opencv(text, model, feeds, ["prob"])[0]
    assert np.ptp(theirs) > 1e-6  # it says something
    assert relative(ours, theirs) <= 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_weighted_layers_are_those_of_the_paper(name: str) -> None:
    text = ZOO[name]()
    assert text.count('"Convolution"') + text.count('"InnerProduct"') == LAYERS[name]


@pytest.mark.parametrize("name", ZOO)
def test_small(name: str) -> None:
    check(name, *QUICK[name], engine=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_small_engine(name: str) -> None:
    check(name, *QUICK[name], engine=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 224), ("resnet50", 224),
                                            ("mobilenet", 224), ("squeezenet", 227)])
def test_whole_engine(name: str, size: int) -> None:
    check(name, size, 1, engine=True)
