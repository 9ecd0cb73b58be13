"""Layouts: what is stored channels-last, and where that needs no kernel of its own."""

import numpy as np
import pytest

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts


def laid_out(outputs=False, second=False):
    """x -> relu -> convolution; perhaps relu is an output, or read by a softmax as well."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 8, 6, 6))
    y = emit(g, "activation", [x], "relu").output
    w = g.constant(np.ones((8, 8, 1, 1), "f4"))
    g.outputs = [emit(g, "convolution", [y, w], "conv").output]
    if outputs:
        g.outputs.append(y)
    if second:
        g.outputs.append(emit(g, "softmax", [y], "softmax", axes=(3,)).output)
    fusion = assign_layouts(g, fuse(g), lambda r: True, lambda r: True)
    return [(r.nodes[0].op, r.outputs[0].dims) for r in fusion.regions]


def test_producers_write_channels_last_at_once():
    assert laid_out() == [
        ("activation", (1, 6, 6, 8)), ("convolution", (1, 6, 6, 8)), ("transpose", (1, 8, 6, 6))]


@pytest.mark.parametrize("kw", [{"outputs": True}, {"second": True}])
def test_unless_others_read_their_result(kw):
    regions = laid_out(**kw)
    assert regions[0] == ("activation", (1, 8, 6, 6)) and ("transpose", (1, 6, 6, 8)) in regions
