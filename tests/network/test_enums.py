"""Enums behave as pybind11's and have TensorRT's numbers."""

import copy
import json
import pickle

import numpy as np
import pytest

import tactician as trt
from tactician.ir import dtypes as T
from tactician.network import enums
from tests.conftest import shared_path


def inventory(name):
    return json.loads(shared_path("api", name).read_text())


def test_numbers_match_the_inventory():
    wrong = {}
    for name, entry in inventory("tensorrt10.json").items():
        if not isinstance(entry, dict) or entry.get("kind") != "enum":
            continue
        cls = trt
        for part in name.split("."):
            cls = getattr(cls, part)
        for member, value in entry["values"].items():
            if int(getattr(cls, member)) != value:
                wrong[f"{name}.{member}"] = value
    assert not wrong


@pytest.mark.parametrize("file", ["tensorrt11_additions.json", "legacy.json"])
def test_members_of_other_versions_exist(file):
    missing = [
        f"{name}.{m}" for name, entry in inventory(file).items()
        if isinstance(entry, dict) and entry.get("kind") == "enum"
        for m in entry["members"] if not hasattr(getattr(trt, name), m)
    ]
    assert not missing


def test_members_are_not_ints_but_convert():
    x = trt.DataType.INT32
    assert not isinstance(x, int) and int(x) == 3 and x != 3 and trt.DataType(3) is x
    assert 1 << int(trt.BuilderFlag.FP16) == 1 << trt.BuilderFlag.FP16 == 1
    assert list("abcdef")[x] == "d" and {x: 1}[trt.DataType(3)] == 1 and 3 not in {x: 1}
    assert hash(x) == hash(3) and trt.DataType(np.int64(3)) is x


def test_text():
    assert str(trt.DataType.FLOAT) == "DataType.FLOAT"
    assert repr(trt.DataType.FLOAT) == "<DataType.FLOAT: 0>"
    assert (trt.DataType.HALF.name, trt.DataType.HALF.value) == ("HALF", 1)
    assert trt.PoolingType.__members__["MAX"] is trt.PoolingType.MAX


def test_order_and_bits():
    a, b = trt.ILogger.Severity.ERROR, trt.ILogger.Severity.VERBOSE
    assert a < b and b >= a and a <= 1 and max(a, b) is b
    assert trt.TacticSource.CUDNN | trt.TacticSource.CUBLAS == 2 and 4 | a == 5 and a & 1
    with pytest.raises(TypeError):
        _ = trt.DataType.FLOAT < trt.LayerType.CAST
    with pytest.raises(ValueError):
        trt.DataType(99)


def test_aliases():
    assert trt.BuilderFlag.WEIGHTLESS is trt.BuilderFlag.STRIP_PLAN
    assert trt.SampleMode.DEFAULT is trt.SampleMode.STRICT_BOUNDS
    assert trt.ResizeMode is trt.InterpolationMode and trt.SliceMode is trt.SampleMode
    assert trt.float16 is trt.DataType.HALF and trt.bool is trt.DataType.BOOL


def test_copies_and_pickles():
    x = trt.ElementWiseOperation.SUM
    assert copy.deepcopy(x) is x and pickle.loads(pickle.dumps(x)) is x


def test_every_ir_type_has_one_data_type():
    for d in T.all_dtypes():
        assert enums.to_ir(enums.from_ir(d)) is d
    assert len({enums.to_ir(t) for t in trt.DataType}) == len(trt.DataType)


@pytest.mark.parametrize("name, bytes_", [("FLOAT", 4), ("INT64", 8), ("BF16", 2), ("FP8", 1),
                                          ("INT4", 0.5), ("BOOL", 1), ("DOUBLE", 8)])
def test_itemsize(name, bytes_):
    assert trt.DataType[name].itemsize == bytes_


def test_nptype():
    assert trt.nptype(trt.float32) is np.float32 and trt.nptype(trt.bool) is np.bool_
    assert np.dtype(trt.nptype(trt.bfloat16)).itemsize == 2
