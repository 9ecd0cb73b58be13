"""Some elements of a contraction's results, for checking layers that are too large for numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Value
from ..ops import get
from ..ops.registry import D_ERRORS
from ..ops.stage_eval import evaluate_at
from ..regions.layout import permute_stages
from ..regions.region import Region

Array = np.ndarray[Any, Any]
Sample = tuple[tuple[Array, ...], Array]
"""Indices along every axis, and the elements there."""

_MOST_POINTS = 256
_MOST_WORK = 500_000  # products in all


def sampled(
    region: Region, arrays: Mapping[Value, Array], env: Mapping[str, int]
) -> dict[Value, Sample] | None:
    """Elements of each output at random places, or None if the region can't be said in stages.

    Args:
        region: With a contraction as its anchor.
        arrays: Operands, as they are stored.
        env: Values of symbols.
    """
    anchor = region.anchor
    if anchor is None or any(_reduces(s.expr) for s in region.stages):
        return None
    try:
        own = get(anchor.op).stages(anchor)
    except D_ERRORS:
        return None
    if own is None or len(own) != 1:
        return None
    permute_stages(own, region.physical)
    rng = np.random.default_rng(1)
    found: dict[Value, Sample] = {}
    done: list[E.Stage] = []
    for s in (own[0], *region.stages):
        expr = s.expr
        for before in done:
            expr = E.inline(expr, before)
        done.append(E.Stage(s.out, s.vars, expr))
        if s.out not in region.outputs:
            continue
        shape = tuple(D.evaluate(d, env) for d in s.out.dims)
        if 0 in shape:
            return None
        count = int(np.clip(_MOST_WORK // _products(expr, env), 8, _MOST_POINTS))
        index = tuple(rng.integers(0, n, count) for n in shape)
        at = dict(zip(s.vars, index, strict=True))
        try:
            found[s.out] = index, evaluate_at(expr, at, arrays, env)
        except (KeyError, IndexError, *D_ERRORS):
            return None
    return found if set(found) == set(region.outputs) else None


def _reduces(e: E.Expr) -> bool:
    return any(isinstance(x, E.Reduce) for x in E.walk(e))


def _products(e: E.Expr, env: Mapping[str, int]) -> int:
    sums = [x for x in E.walk(e) if isinstance(x, E.Reduce)]
    return max([1, *(D.evaluate(D.product(v.extent for v in x.vars), env) for x in sums)])
