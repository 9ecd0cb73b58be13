"""Regions at fixed sizes."""

from tactician.ir import dims as D
from tactician.ir import dtypes as T
from tactician.ir import expr as E
from tactician.ir.graph import Value
from tactician.regions.region import Region
from tactician.regions.specialize import at_sizes, makes_sense, symbols_of

N = D.sym("n")


def region(length, offset):
    """``y[i] = x[i + offset]``"""
    x, y = Value("x", T.f32, (N,)), Value("y", T.f32, (length,))
    (i,) = E.iter_vars(y.dims)
    at = E.binary("add", i, E.idx(offset))
    return Region([], None, [E.Stage(y, (i,), E.Load(T.f32, x, (at,)))], [x], [y])


def test_variables_stay_those_of_the_stage():
    r = region(N - 2, N - 4)
    assert symbols_of(r) == {"n"}
    for n in (4, 7):  # i + 0 is i
        with at_sizes(r, {"n": n}) as fixed:
            (stage,) = fixed.stages
            assert fixed.inputs[0].dims == (n,) and fixed.outputs[0].dims == (n - 2,)
            assert [v.extent for v in stage.vars] == [n - 2]
            found = [x for x in E.walk(stage.expr) if isinstance(x, E.Var)]
            assert found and all(any(x is v for v in stage.vars) for x in found)
            assert not any(isinstance(x, E.Size) for x in E.walk(stage.expr))
    assert r.outputs[0].dims == (N - 2,)


def test_sizes_that_are_not_positive_make_no_sense():
    r = region(N - 2, 0)
    assert makes_sense(r, {"n": 3})
    assert not makes_sense(r, {"n": 2})
    assert not makes_sense(r, {"n": 1})
