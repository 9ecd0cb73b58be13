"""Reductions as Triton text: over a block axis at once, or element by element in a loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import DType
from . import types as ty
from .emit import Emitter
from .functions import Text, limits

UNROLL = 32  # a loop of up to this many steps is written out
ARG_NONE = {"argmax": "2147483647", "argmin": "2147483647", "argmax_last": "-1",
            "argmin_last": "-1"}  # fmt: skip


def accumulator_type(e: E.Reduce) -> DType:
    """The register type that sums are kept in."""
    return ty.register(e.body.dtype)


def identity(fn: str, dt: DType) -> str:
    """The number that changes nothing, as a literal."""
    if fn in ("sum", "any"):
        return "0"
    if fn in ("prod", "all"):
        return "1"
    largest = fn.startswith(("max", "argmax"))
    if dt.is_float:
        return '-float("inf")' if largest else 'float("inf")'
    if dt is T.b1:
        return "0" if largest else "1"
    return str(limits(dt)[0] if largest else limits(dt)[1])


def combine(em: Emitter, fn: str, a: str, b: str, dt: DType) -> str:
    """``a`` and ``b`` as one."""
    if dt is T.b1 or fn in ("any", "all"):
        return f"{a} | {b}" if fn in ("any", "max", "sum") else f"{a} & {b}"
    if fn == "sum":
        return f"{a} + {b}"
    if fn == "prod":
        return f"{a} * {b}"
    x, y = Text(a, dt), Text(b, dt)
    return em.fn.binary(fn, x, y)


def across(em: Emitter, fn: str, x: str, axis: int, dt: DType) -> str:
    """The reduction of a block along an axis, which stays with extent 1."""
    keep = f", axis={axis}, keep_dims=True"
    if fn == "sum" and dt is not T.b1:
        return f"tl.sum({x}{keep}).to({ty.tl_name(dt)})"
    if dt is T.b1:
        tall = fn in ("any", "max", "sum")
        return f"(tl.{'max' if tall else 'min'}({x}.to(tl.int32){keep}) != 0)"
    if fn in ("any", "all"):
        return f"(tl.{'max' if fn == 'any' else 'min'}(({x} != 0).to(tl.int32){keep}) != 0)"
    if fn == "prod":
        em.fn.helpers.add("_prod")
        return f"tl.reduce({x}, {axis}, _prod, keep_dims=True)"
    helper = f"_{fn}" if dt.is_float else f"_i{fn}"
    em.fn.helpers.add(helper)
    return f"tl.reduce({x}, {axis}, {helper}, keep_dims=True)"


def better(fn: str, x: str, best: str, dt: DType) -> str:
    """Whether ``x`` replaces the ``best`` so far in a search for the first (or last) extreme."""
    op = ">" if fn.startswith("argmax") else "<"
    if fn.endswith("_last"):
        op += "="
    if not dt.is_float:
        return f"{x} {op} {best}"
    if fn.endswith("_last"):  # the last NaN, if there is one
        return f"({x} {op} {best}) | ({x} != {x})"
    return f"(({x} {op} {best}) | ({x} != {x})) & ({best} == {best})"


def at_once(em: Emitter, e: E.Reduce) -> Text:
    """A reduction along a block axis that holds all of its points."""
    axis = em.block_axis[e.vars[0]]
    part = body_block(em, e)
    return finish(em, e, part, axis, em.masks.get(axis, ""))


@dataclass(frozen=True)
class Partial:
    """A reduction under way: a block of values and, in a search, where they were found."""

    value: str
    at: str = ""


def whole(em: Emitter) -> frozenset[int]:
    return frozenset(range(len(em.shape)))


def body_block(em: Emitter, e: E.Reduce) -> Partial:
    """The body at every point of the block, neutral outside of the mask."""
    dt = accumulator_type(e)
    x = em.emit(e.body)
    axis = em.block_axis[e.vars[0]]
    text = x.text
    if e.fn in ("any", "all") and dt is not T.b1:
        text, dt = f"({x} != 0)", T.b1
    neutral = identity(e.fn, dt)
    mask = em.masks.get(axis, "")
    filler = em.full(whole(em), neutral, dt)
    if mask:
        text = f"tl.where({mask}, {text}, {filler})"
    elif x.axes != whole(em):
        text = f"tl.broadcast_to({text}, {em.shape_text(whole(em))})"
    value = em.assign(text, dt, whole(em)).text
    if not e.fn.startswith("arg"):
        return Partial(value)
    return Partial(value, em.emit(e.vars[0]).text)


def finish(em: Emitter, e: E.Reduce, p: Partial, axis: int, mask: str = "") -> Text:
    """The result of a reduction from a block of partial results."""
    dt = T.b1 if e.fn in ("any", "all") else accumulator_type(e)
    left = whole(em) - {axis}
    if not p.at:
        return em.assign(across(em, e.fn, p.value, axis, dt), dt, left)
    index = T.i64 if em.frame.wide else T.i32
    best = em.assign(across(em, e.fn[3:6], p.value, axis, dt), dt, left)
    here = f"({p.value} == {best})"
    if dt.is_float:
        here += f" | ({p.value} != {p.value})"
    if mask:
        here = f"({here}) & ({mask})"
    last = e.fn.endswith("_last")
    found = f"tl.where({here}, {p.at}, {-1 if last else 2147483647})"
    text = f"tl.{'max' if last else 'min'}({found}, axis={axis}, keep_dims=True)"
    return em.assign(text, index, left)


def start(em: Emitter, e: E.Reduce) -> Partial:
    """Names for the partial results of a reduction in pieces, and their first values."""
    dt = T.b1 if e.fn in ("any", "all") else accumulator_type(e)
    p = Partial(em.name(), em.name() if e.fn.startswith("arg") else "")
    em.line(f"{p.value} = {em.full(whole(em), identity(e.fn, dt), dt)}")
    if p.at:
        first = "-1" if e.fn.endswith("_last") else "2147483647"
        em.line(f"{p.at} = {em.full(whole(em), first, T.i64 if em.frame.wide else T.i32)}")
    return p


def advance(em: Emitter, e: E.Reduce, total: Partial, piece: Partial) -> None:
    """Joins a further piece into the partial results."""
    dt = T.b1 if e.fn in ("any", "all") else accumulator_type(e)
    if not total.at:
        joined = combine(em, e.fn, total.value, piece.value, dt)
        tail = f".to({ty.tl_name(dt)})" if dt.is_int and dt.bits < 32 else ""
        em.line(f"{total.value} = ({joined}){tail}" if tail else f"{total.value} = {joined}")
        return
    take = em.name()
    nowhere = f"(({total.at} == 2147483647) | ({total.at} == -1))"
    mask = em.masks.get(em.block_axis[e.vars[0]], "")
    text = f"({better(e.fn, piece.value, total.value, dt)}) | {nowhere}"
    em.line(f"{take} = ({text}) & ({mask})" if mask else f"{take} = {text}")
    em.line(f"{total.value} = tl.where({take}, {piece.value}, {total.value})")
    em.line(f"{total.at} = tl.where({take}, {piece.at}, {total.at})")


def serial(em: Emitter, e: E.Reduce) -> Text:
    """A reduction in a loop over its variables."""
    if e.fn.startswith("arg"):
        return _serial_arg(em, e)
    dt = accumulator_type(e)
    if e.fn in ("any", "all") and dt is not T.b1:
        dt = T.b1
    axes = em.axes_of(e)
    acc = em.name()
    em.line(f"{acc} = {em.full(axes, identity(e.fn, dt), dt)}")

    def step() -> None:
        x = em.emit(e.body)
        text = x.text
        if x.number is not None:
            text = em.full((), x.text, x.dt)
        if dt is T.b1 and x.dt is not T.b1:
            text = f"({x} != 0)"
        elif x.dt is not dt:
            text = f"{text}.to({ty.tl_name(dt)})"
        if em.fn.pairs and e.fn in ("max", "min") and dt in (T.i8, T.u8) and axes:
            em.line(f"{acc} = {em.fn.call(f'_{e.fn}_{dt}', acc, text)}")
            return
        joined = combine(em, e.fn, acc, text, dt)
        tail = f".to({ty.tl_name(dt)})" if dt.is_int and dt.bits < 32 else ""
        em.line(f"{acc} = ({joined}){tail}" if tail else f"{acc} = {joined}")

    loops(em, e.vars, step)
    return Text(acc, dt, axes)


def _serial_arg(em: Emitter, e: E.Reduce) -> Text:
    (var,) = e.vars
    dt = accumulator_type(e)
    axes = em.axes_of(e)
    index = T.i64 if em.frame.wide else T.i32
    best, at = em.name(), em.name()
    em.line(f"{best} = {em.full(axes, identity(e.fn, dt), dt)}")
    em.line(f"{at} = {em.full(axes, '0', index)}")

    def step() -> None:
        x = em.emit(e.body)
        i = em.emit(var)
        first = f" | ({i} == 0)"
        take = em.name()
        em.line(f"{take} = ({better(e.fn, x.text, best, dt)}){first}")
        em.line(f"{best} = tl.where({take}, {x}, {best})")
        em.line(f"{at} = tl.where({take}, {i}, {at})")

    loops(em, e.vars, step, unroll=False)
    return Text(at, index, axes)


def loops(em: Emitter, variables: tuple[E.Var, ...], step: Any, unroll: bool = True) -> None:
    """Runs ``step`` for every point of ``variables``, in a loop of the kernel; a few steps are
    written out."""
    extents = [v.extent for v in variables]
    n = D.product(extents)
    if unroll and not isinstance(n, D.Dim) and math.prod(map(int, extents)) <= UNROLL:
        _written_out(em, variables, step)
        return
    names = [em.name() for _ in variables]
    for v, name in zip(variables, names, strict=True):
        em.push()
        # a tensor in Triton's interpreter, too
        zero = em.full((), "0", T.i64 if em.frame.wide else T.i32)
        em.line(f"{name}i = {name} + {zero}")
        em.bind(v, f"{name}i")
    step()
    for v, name in reversed(list(zip(variables, names, strict=True))):
        em.pop(f"for {name} in range(0, {em.frame.size(v.extent)}):")


def _written_out(em: Emitter, variables: tuple[E.Var, ...], step: Any) -> None:
    if not variables:
        step()
        return
    var, rest = variables[0], variables[1:]
    for k in range(int(var.extent)):  # type: ignore[arg-type]
        em.push()
        em.bind_number(var, k)
        _written_out(em, rest, step)
        inner = em.scopes[-1].lines
        em.pop("if True:")
        out = em.scopes[-1].lines
        del out[len(out) - max(len(inner), 1) - 1 :]
        out.extend(inner)


__all__ = ["across", "better", "combine", "identity", "loops", "serial"]
