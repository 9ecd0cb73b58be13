"""A region as it is for one set of sizes, so that a kernel can be made for just these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Value
from .region import Region


def symbols_of(region: Region) -> set[str]:
    """Sizes of a region that are known only at run time."""
    dims = [d for v in (*region.inputs, *region.outputs) for d in v.dims]
    return {s for d in dims for s in D.symbols(d)}


def makes_sense(region: Region, env: Mapping[str, int]) -> bool:
    """Whether all sizes of a region's values are positive. In a branch that is not taken for these
    sizes of the inputs they needn't be."""
    sizes = (D.substitute(d, env) for v in _values(region) for d in v.dims)
    return all(isinstance(d, D.Dim) or d > 0 for d in sizes)


@contextmanager
def at_sizes(region: Region, env: Mapping[str, int]) -> Iterator[Region]:
    """The region with its symbols replaced by numbers.

    It has the values of the original, which have fixed shapes until the block is left; so what a
    kernel takes are values of the program. Regions with parts are not taken.
    """
    assert not region.parts
    values = _values(region)
    before = [(v, v.shape, v.content) for v in values]
    try:
        for v in values:
            v.shape = tuple(D.substitute(d, env) for d in v.dims)
            if v.content is not None:
                fixed = np.empty(v.content.size, object)
                fixed[:] = [D.substitute(d, env) for d in v.content.reshape(-1).tolist()]
                v.content = fixed.reshape(v.content.shape)
        stages = [_stage(s, env) for s in region.stages]
        yield Region(
            region.nodes, region.anchor, stages, region.inputs, region.outputs, region.physical,
            region.reformat,
        )
    finally:
        for v, shape, content in before:
            v.shape, v.content = shape, content


def _values(region: Region) -> list[Value]:
    """All values that code made for a region may look at."""
    found = dict.fromkeys((*region.inputs, *region.outputs))
    for node in region.nodes:
        found.update(dict.fromkeys((*node.present_inputs(), *node.outputs)))
    for s in region.stages:
        found.setdefault(s.out)
        found.update(dict.fromkeys(ld.value for ld in E.loads(s.expr)))
    for v, twin in region.physical.items():
        found.update(dict.fromkeys((v, twin)))
    for first in list(found):
        whole: Value | None = first
        while whole is not None:  # whose slice it is, and what it stands for
            found.setdefault(whole)
            if "logical" in whole.meta:
                found.setdefault(whole.meta["logical"])
            whole = whole.meta.get("slice_of")
    return [v for v in found if v.shape is not None]


def _stage(s: E.Stage, env: Mapping[str, int]) -> E.Stage:
    new: dict[E.Var, E.Var] = {}

    def var(v: E.Var) -> E.Var:
        if v not in new:
            twin = E.Var(v.dtype, v.name, D.substitute(v.extent, env))
            new[v] = new[twin] = twin  # rewriting shows twins again: i + 0 becomes i
        return new[v]

    def visit(x: E.Expr) -> E.Expr | None:
        if isinstance(x, E.Var):
            return var(x)
        if isinstance(x, E.Size):
            return E.idx(D.substitute(x.dim, env))
        if isinstance(x, E.Reduce):
            return E.Reduce(x.dtype, x.fn, tuple(var(v) for v in x.vars), x.body)
        return None

    expr = E.rewrite(s.expr, visit)
    meta = dict(s.meta)
    if "concat" in meta:
        meta["concat"] = [(v, D.substitute(at, env)) for v, at in meta["concat"]]
    return E.Stage(s.out, tuple(var(v) for v in s.vars), expr, meta)
