"""docs/caffe.md says what the importer table says; every layer is known and tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from tactician.parsers.caffe import support
from tactician.parsers.caffe.schema import net_messages
from tactician.parsers.caffe.table import importer, table
from tactician.parsers.caffe.upgrade import _V0, _V1

HERE = Path(__file__).resolve().parent


def test_page_is_up_to_date() -> None:
    page = HERE.parents[1] / "docs" / "caffe.md"
    assert page.read_text() == support.page(), "run python scripts/support_matrix.py"


def test_every_layer_says_what_it_does() -> None:
    assert all(row.does for row in table().values())


def test_every_layer_is_in_a_test() -> None:
    text = "".join(p.read_text() for p in HERE.glob("*.py"))
    aliases = {"ConvolutionDepthwise"}  # of DepthwiseConvolution
    assert [t for t in table() if f'"{t}"' not in text and f'"{t} ' not in text
            and t not in aliases] == []


def test_layers_of_releases_5_to_8_are_there() -> None:
    assert set("""
        Convolution Pooling InnerProduct ReLU Softmax SoftmaxWithLoss LRN Power Eltwise Concat
        Deconvolution Sigmoid TanH BatchNorm Scale Crop Reduction Reshape Permute ELU BNLL Clip
        AbsVal PReLU Dropout Input Flatten Normalize PriorBox DetectionOutput RPROI""".split()
               ) <= set(table())


def test_type_names_of_old_forms_exist() -> None:
    kinds = net_messages()["V1LayerParameter"].DESCRIPTOR.enum_types_by_name["LayerType"]
    assert set(_V1) <= set(kinds.values_by_name)
    absent = {"", "padding", "Im2col"}
    from tactician.parsers.caffe.table import DATA, TRAIN_ONLY

    known = set(table()) | DATA | TRAIN_ONLY | absent
    assert {_V1.get(k, k.capitalize()) for k in kinds.values_by_name} | set(_V0.values()) <= known


def test_a_type_is_registered_once() -> None:
    table()
    with pytest.raises(ValueError, match="two importers of ReLU"):
        importer("ReLU")(lambda c, n: n[0])
