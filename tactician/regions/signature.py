"""A region's signature: a text that is equal for regions one kernel can serve.

It covers ops, attributes, types, shapes and the stages' expressions, but no names; the timing
cache and the kernel cache of a build are keyed by it.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..ir import expr as E
from ..ir.graph import Value
from .region import Region, is_slice, pitch


def signature(region: Region) -> str:
    """Canonical text of a region."""
    if region.parts:
        made = [v for p in region.leaves() for v in p.outputs]
        kept = [k for k, v in enumerate(made) if v in region.outputs]
        return "\nthen\n".join(map(signature, region.parts)) + f"\nwrites {kept}"
    numbers: dict[Value, int] = {}
    lines: list[str] = []

    def ref(v: Value | None) -> str:
        if v is None:
            return "-"
        if v not in numbers:
            numbers[v] = len(numbers)
            kind = "c" if v.const is not None else "v"
            rows = f" rows {pitch(v)} apart" if is_slice(v) else ""
            lines.append(f"{kind}{numbers[v]}: {v.dtype}[{','.join(map(str, v.dims))}]{rows}")
        return f"%{numbers[v]}"

    if region.anchor is not None:
        n = region.anchor
        ins = " ".join(ref(v) for v in n.inputs)
        outs = " ".join(ref(v) for v in n.outputs)
        lines.append(f"{outs} = {n.op} {attrs_text(n.attrs)} {ins}")
        stored = [f"{ref(v)} {pitch(twin)}" for v, twin in region.physical.items()]
        lines.append("channels last " + " ".join(stored))
    for s in region.stages:
        body = _expr_text(s.expr, s.vars, ref)
        lines.append(f"{ref(s.out)}[{','.join(str(v.extent) for v in s.vars)}] = {body}")
        if s.meta:
            lines.append(f"meta {sorted(s.meta)}")
    lines.append("outputs " + " ".join(ref(v) for v in region.outputs))
    return "\n".join(lines)


def digest(text: str) -> str:
    """A short stable hash of a signature."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def attrs_text(attrs: Any) -> str:
    """Attributes as text; arrays by content hash."""
    if attrs is None or not is_dataclass(attrs):
        return "{}"
    parts = []
    for f in fields(attrs):
        x = getattr(attrs, f.name)
        if isinstance(x, np.ndarray):
            x = f"array:{hashlib.sha256(x.tobytes()).hexdigest()[:16]}:{x.dtype}{x.shape}"
        parts.append(f"{f.name}={x}")
    return "{" + ",".join(parts) + "}"


def _expr_text(e: E.Expr, variables: tuple[E.Var, ...], ref: Any) -> str:
    """Prefix form with shared subexpressions numbered."""
    names: dict[int, str] = {id(v): f"i{k}" for k, v in enumerate(variables)}
    out: list[str] = []
    for x in E.walk(e):
        if id(x) in names:
            continue
        kids = " ".join(names.get(id(c), "?") for c in E.children(x))
        if isinstance(x, E.Const):
            text = f"{x.dtype}:{x.value!r}"
        elif isinstance(x, E.Var):
            names[id(x)] = f"r{len(names)}<{x.extent}>"
            continue
        elif isinstance(x, E.Size):
            text = f"size({x.dim})"
        elif isinstance(x, E.Load):
            text = f"load {ref(x.value)} {kids} {x.guard is not None}"
        elif isinstance(x, E.Cast):
            text = f"cast {x.dtype} {x.saturate} {kids}"
        elif isinstance(x, E.Reduce):
            over = " ".join(names.get(id(v), f"<{v.extent}>") for v in x.vars)
            text = f"{x.fn} {x.dtype} [{over}] {kids}"
        else:
            text = f"{getattr(x, 'fn', 'select')} {x.dtype} {kids}"
        names[id(x)] = f"t{len(names)}"
        out.append(f"{names[id(x)]}={text}")
    return "; ".join([*out, names[id(e)]])
