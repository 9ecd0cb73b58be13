"""Rewriting of expressions."""

import numpy as np
import pytest

from tactician.ir import expr as E
from tactician.ir.dtypes import f32, i64
from tactician.ir.graph import Value


@pytest.fixture
def ij():
    return E.iter_vars((4, 5))


def test_simplified_parts_are_shown_once(ij):
    """i + 0 becomes i, which was shown already: a visitor that makes variables makes one each."""
    i, j = ij
    n = E.Var(i64, "n", 3)
    made = []

    def visit(x):
        if isinstance(x, E.Var):
            made.append(x)
            return E.const(0, i64) if x is n else E.Var(x.dtype, x.name + "2", x.extent)
        return None

    e = E.rewrite(E.add(E.add(i, n), E.mul(E.add(j, n), i)), visit)
    assert sorted(v.name for v in made) == sorted([i.name, j.name, "n"])
    names = [x.name for x in E.walk(e) if isinstance(x, E.Var)]
    assert sorted(names) == sorted([i.name + "2", j.name + "2"])


def test_variables_change_places(ij):
    i, j = ij
    n = E.Var(i64, "n", 3)
    both = E.add(E.add(i, n), E.mul(j, E.const(7, i64)))
    e = E.substitute(both, {i: j, j: i, n: E.const(0, i64)})
    assert isinstance(e, E.Binary) and e.a is j
    assert isinstance(e.b, E.Binary) and e.b.a is i


def test_parts_of_a_replacement_are_not_replaced(ij):
    """(i + j) - 0 where i stands for 2 j: the j inside stays what it is."""
    i, j = ij
    n = E.Var(i64, "n", 3)
    twice = E.mul(j, E.const(2, i64))
    e = E.substitute(E.add(i, n), {i: twice, j: i, n: E.const(0, i64)})
    assert e is twice


def test_the_same_node_twice_is_replaced_once(ij):
    i, j = ij
    v = Value("x", f32, (4, 5))
    ld = E.load(v, (i, j))
    loads = []

    def visit(x):
        if isinstance(x, E.Load):
            loads.append(x)
            return E.mul(x, E.const(np.float32(2), f32))
        return None

    e = E.rewrite(E.add(ld, ld), visit)
    assert len(loads) == 1 and e.a is e.b
