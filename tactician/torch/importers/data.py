"""Results of which data decide the size or the value."""

from __future__ import annotations

from typing import Any

import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context, axis_of
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


def true_places(c: Context, mask: Value) -> Value:
    """Indices of the true elements, row-major: i64 ``[n, rank]``."""
    return c.transpose(c.places(mask), [1, 0])


@aten_op(aten.nonzero.default)
def nonzero(c: Context, x: Value) -> Value:
    return true_places(c, x)


@aten_op(aten.argwhere.default)
def argwhere(c: Context, x: Value) -> Value:
    return true_places(c, x)


@aten_op(aten.nonzero_numpy.default)
def nonzero_numpy(c: Context, x: Value) -> list[Value]:
    at = c.places(x)
    return [c.squeeze(c.slice_axis(at, 0, i, 1), [0]) for i in range(x.rank)]


@aten_op(aten.masked_select.default)
def masked_select(c: Context, x: Value, mask: Value) -> Value:
    common = list(torch.broadcast_shapes(*(c.node.args[i].meta["val"].shape for i in (0, 1))))
    shape = [c.dim(s) for s in common]
    x, mask = (c.broadcast(v, shape) for v in (x, c.flag(mask)))
    size = D.product(shape)
    return c.op("compress", c.view(x, [size]), c.view(mask, [size]), axis=0)


@aten_op(aten._local_scalar_dense.default, aten.item.default,
         note="whole numbers as sizes: not negative")
def item(c: Context, x: Value) -> Any:
    """A whole number becomes a symbol; sizes made of it are known once it is computed."""
    x = c.reshape(x, [])
    if isinstance(c.result, (torch.SymFloat, float)):
        return x
    if not isinstance(c.result, torch.SymInt):
        raise AtenProblem(f"{c.node.target} of a boolean")
    if x.const is not None:
        number: Any = int(x.const)
        c.data_sizes[str(c.result)] = number
        return number
    name = str(c.result)
    c.define_number(name, c.reshape(c.cast(x, T.i64), [1]))
    return D.sym(name)


@aten_op(aten._unique2.default, aten.unique_dim.default, note="sorted")
def unique(c: Context, x: Value, *args: Any, **kwargs: Any) -> list[Any]:
    whole = c.node.target is aten._unique2.default
    axis = None if whole else axis_of(args[0], x.rank)
    narrow = x.dtype
    values, _, inverse, counts = c.ops(
        "unique", c.cast(x, T.u8) if narrow is T.b1 else x, axis=axis, sorted=True)
    if whole:
        inverse = c.view(inverse, x.dims)
    wanted = [not (len(v.shape) == 1 and isinstance(v.shape[0], int) and v.shape[0] == 0)
              for v in c.result[1:]]  # torch gives empty tensors for what nobody asked for
    return [c.cast(values, narrow), *(v if w else None
                                      for v, w in zip((inverse, counts), wanted, strict=True))]
