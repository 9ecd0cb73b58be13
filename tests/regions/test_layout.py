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


def block(norm_axis, back=True):
    """A convolution, its channels moved to the last place and normalized, and perhaps back."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 8, 6, 6))
    w = g.constant(np.ones((8, 8, 1, 1), "f4"))
    y = emit(g, "convolution", [x, w], "first").output
    y = emit(g, "transpose", [y], "to last", perm=(0, 2, 3, 1)).output
    y = emit(g, "softmax", [y], "softmax", axes=(norm_axis,)).output
    y = emit(g, "matmul", [y, g.constant(np.ones((8, 8), "f4"))], "product").output
    if back:
        y = emit(g, "transpose", [y], "back", perm=(0, 3, 1, 2)).output
        y = emit(g, "convolution", [y, w], "second").output
    g.outputs = [y]
    fusion = assign_layouts(g, fuse(g), lambda r: r.anchor.op == "convolution", lambda r: True)
    return [("+".join(n.op for n in r.nodes), r.outputs[0].dims, r.reformat)
            for r in fusion.regions]


@pytest.mark.parametrize("axis", [1, 3])
def test_what_only_a_product_reads_is_row_major_at_once(axis):
    regions = block(axis, back=False)
    assert [r[2] for r in regions] == [True, False, False, False]  # the graph's input alone
    assert regions[2][1] == (1, 6, 6, 8)


def test_channels_moved_back_for_a_convolution_are_stored_as_it_wants_them():
    regions = block(3)
    assert regions[4] == ("transpose", (1, 6, 6, 8), False)
    assert [r[2] for r in regions] == [True, False, False, False, False, False, True]


def test_a_nest_keeps_the_order_in_which_it_reads():
    """Normalized over the last axis after a transpose: row-major though another nest reads it."""
    g = Graph("t")
    x = g.add_input("x", "f32", (1, 8, 6, 6))
    w = g.constant(np.ones((8, 8, 1, 1), "f4"))
    y = emit(g, "convolution", [x, w], "first").output
    y = emit(g, "transpose", [y], "to last", perm=(0, 2, 3, 1)).output
    y = emit(g, "softmax", [y], "softmax", axes=(3,)).output
    y = emit(g, "softmax", [y], "softmax", axes=(2,)).output
    g.outputs = [emit(g, "convolution", [y, g.constant(np.ones((8, 6, 1, 1), "f4"))], "c").output]
    fusion = assign_layouts(g, fuse(g), lambda r: True, lambda r: True)
    assert fusion.regions[2].outputs[0].dims == (1, 6, 6, 8)
