"""Tidies a stage's expression after fusing: shares equal subexpressions, and turns loads of
constant scalars into literals."""

from __future__ import annotations

from typing import Any

from ..ir import expr as E


def tidy(e: E.Expr) -> E.Expr:
    """An equal expression in which every distinct subexpression exists once."""
    e = E.rewrite(e, _scalar_constant)
    seen: dict[Any, E.Expr] = {}

    def share(x: E.Expr) -> E.Expr | None:
        if isinstance(x, E.Var):
            return None
        return seen.setdefault(_key(x), x)

    return E.rewrite(e, share)


def _scalar_constant(x: E.Expr) -> E.Expr | None:
    if not isinstance(x, E.Load) or x.guard is not None:
        return None
    data = x.value.const
    if data is None or data.size != 1 or x.dtype.kind == "c":
        return None
    value = data.reshape(-1)[0]
    return E.const(float(value) if x.dtype.is_float else int(value), x.dtype)


def _key(x: E.Expr) -> Any:
    """Structural identity, given that the children are shared already."""
    kids = tuple(id(c) for c in E.children(x))
    if isinstance(x, E.Const):
        return "const", x.dtype.name, repr(x.value)
    if isinstance(x, E.Size):
        return "size", x.dim
    if isinstance(x, E.Load):
        return "load", id(x.value), len(x.index), x.guard is None, kids
    if isinstance(x, E.Cast):
        return "cast", x.dtype.name, x.saturate, kids
    if isinstance(x, E.Reduce):
        return "reduce", x.fn, tuple(id(v) for v in x.vars), kids
    return type(x).__name__, getattr(x, "fn", ""), x.dtype.name, kids
