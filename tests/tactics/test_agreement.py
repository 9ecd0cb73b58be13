"""Which results count as right."""

import numpy as np

from tactician.ir.dtypes import f32
from tactician.ir.graph import Graph, Value
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.tactics.agreement import outvoted, wrong_outputs
from tactician.tactics.operands import room
from tactician.tactics.tuner import storage_of

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def region_of(widened):
    g = Graph()
    x = g.add_input("x", "f16" if widened else "f32", X.shape)
    y = emit(g, "unary", [x], fn="neg").output
    if widened:
        y = emit(g, "cast", [y], to=f32).output
        y = emit(g, "binary", [y, y], fn="add").output
    g.outputs = [y]
    (region,) = fuse(g).regions
    return region


def test_wide_results_are_as_exact_as_what_they_come_from():
    for widened, good in ((False, False), (True, True)):
        region = region_of(widened)
        y = region.result
        assert (wrong_outputs(region, {y: X * 1.0003}, {y: X}) is None) is good
        assert wrong_outputs(region, {y: X * 1.1}, {y: X}) is not None
        assert wrong_outputs(region, {y: X * 9}, None) is None


def test_the_majority_is_trusted():
    region = region_of(False)
    y = region.result
    samples = {"a": {y: X + 1}, "b": {y: X}, "c": {y: X * 1.0000001}, "d": {y: X}}
    (label,) = found = outvoted(region, samples)
    assert label == "a" and "against b" in found["a"]
    assert list(outvoted(region, {"a": {y: X}, "b": {y: X + 1}})) == ["b"]
    assert outvoted(region, {}) == {}


def test_slices_lie_in_wider_arrays():
    whole = Value("whole", f32, (2, 3, 12))
    v = Value("v", f32, (2, 3, 4))
    v.meta["slice_of"] = whole
    array = room(v, (2, 3, 4))
    array[...] = X[:2, None, :]
    held = storage_of(v, array)
    assert held.shape == (2, 3, 12) and held.flags.c_contiguous and held.dtype == np.float32
    assert np.array_equal(held[..., :4], array) and not held[..., 4:].any()
    held[...] = 7
    assert (array == 7).all()
