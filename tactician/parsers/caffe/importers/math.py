"""Layers that combine blobs or reduce them."""

from __future__ import annotations

from ....ir.dtypes import f32
from ....ir.graph import Value
from ....network.enums import ElementWiseOperation
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer

_ELTWISE = {0: ElementWiseOperation.PROD, 1: ElementWiseOperation.SUM,
            2: ElementWiseOperation.MAX}


@importer("Eltwise", inputs=(2, None), does="product, sum (with coefficients) or maximum")
def eltwise(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.eltwise_param
    first = tuple(n[0].dims)
    for i, x in enumerate(n.bottoms):
        if tuple(x.dims) != first:
            raise LayerProblem(f"bottom {i} has shape {list(x.dims)}, bottom 0 {list(first)}; "
                               "all must have the same")
    coeff = list(p.coeff)
    if coeff and p.operation != 1:
        raise LayerProblem("coeff is only for SUM; remove it")
    if coeff and len(coeff) != len(n):
        raise LayerProblem(f"has {len(coeff)} coeff for {len(n)} bottoms; give one for each")
    parts = [c.affine(x, k) for x, k in zip(n.bottoms, coeff or [1.0] * len(n), strict=True)]
    y = parts[0]
    for x in parts[1:]:
        y = c.layer("add_elementwise", y, x, op=_ELTWISE[p.operation])
    return y


@importer("Reduction", does="sum, sum of magnitudes, sum of squares or mean from axis on")
def reduction(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.reduction_param, n[0]
    axis = n.axis(p.axis)
    c.refuse_batch(axis, "a reduction")
    fn = {1: "sum", 2: "l1", 3: "sum_square", 4: "mean"}[p.operation]
    y = c.op("reduce", x, fn=fn, axes=tuple(range(axis, x.rank)), keepdims=False)
    return y if p.coeff == 1 else c.binary("mul", y, c.number(p.coeff))


@importer("ArgMax", does="indices (as numbers of f32) or values of the greatest elements")
def arg_max(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.argmax_param, n[0]
    if p.top_k < 1:
        raise LayerProblem("top_k is at least 1")
    along = p.HasField("axis")
    axis = n.axis(p.axis) if along else 1
    c.refuse_batch(axis, "an arg max")
    if not along:
        x = c.flatten(x, 1, x.rank - 1) if x.rank > 1 else x
    values, indices = c.ops("topk", x, c.ints([p.top_k]), axis=axis, largest=True, sorted=True)
    indices = c.op("cast", indices, to=f32, saturate=False)
    if along:
        return values if p.out_max_val else indices
    parts = [indices, values] if p.out_max_val else [indices]
    return c.concat([c.op("unsqueeze", v, c.ints([1])) for v in parts], 1)
