"""A contraction region's stages as a small tree, for libraries that know fixed sets of epilogues.

Trees are tuples: ``("acc",)`` is the contraction's sum, ``("in", k)`` the k-th operand, ``("const",
x)`` a number, anything else ``(fn, *children)``. Rounding to narrower floats in between is dropped
(libraries compute in f32). Activations written out in arithmetic are found again and become one
node: ``relu``, ``clip`` (low, high), ``leaky_relu`` (slope), ``elu`` (alpha), ``swish`` (beta),
``gelu_erf``, ``gelu_tanh``; their parameters follow the operand as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir import dims as D
from ...ir import expr as E
from ...ir.graph import Value
from ...regions.region import Region, pitch

Tree = tuple[Any, ...]
ACC: Tree = ("acc",)
_GELU, _GELU_TANH, _CUBIC = math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715


class NotCovered(Exception):
    """The region does something no library epilogue is asked to do; says what."""


@dataclass(frozen=True)
class Operand:
    """An epilogue operand, by the result's logical dimensions.

    Attributes:
        value: What is read.
        dims: Extent along each dimension of the result; 1 where it is broadcast.
        strides: Elements between neighbours along each; those of broadcast dimensions mean
            nothing.
    """

    value: Value
    dims: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Epilogue:
    """What a region does with the contraction's sums.

    Attributes:
        tree: The value that is stored.
        operands: What ``("in", k)`` stands for.
        out: The region's only result.
        result: Logical extents of it.
    """

    tree: Tree
    operands: list[Operand]
    out: Value
    result: tuple[int, ...]

    def nodes(self) -> set[str]:
        """Names of all functions in the tree."""
        return _names(self.tree)


def static(dims: Sequence[D.DimLike], what: str) -> tuple[int, ...]:
    """Extents as ints.

    Raises:
        NotCovered: If one is known only at run time.
    """
    if not D.is_static(*dims):
        raise NotCovered(f"{what} has sizes known only at run time")
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]


def strides_of(v: Value) -> tuple[int, ...]:
    """Elements between neighbours along each stored dimension."""
    dims = static(v.dims, "an operand")
    if not dims:
        return ()
    out = [1]
    for k in range(len(dims) - 1, 0, -1):
        out.append(int(pitch(v)) if k == len(dims) - 1 else out[-1] * dims[k])  # type: ignore
    return tuple(reversed(out))


def logical_strides(v: Value) -> tuple[int, ...]:
    """Strides by logical dimensions of a value, which may be a channels-last twin."""
    own = strides_of(v)
    perm = v.meta.get("perm") if "logical" in v.meta else None
    if perm is None:
        return own
    out = [0] * len(own)
    for place, d in enumerate(perm):
        out[d] = own[place]
    return tuple(out)


def logical(v: Value) -> Value:
    """The value that a channels-last twin stands for; others are themselves."""
    return v.meta.get("logical", v)


@dataclass
class _Reader:
    """Turns stages into trees."""

    region: Region
    known: dict[Value, Tree]
    operands: list[Operand] = field(default_factory=list)

    def stage(self, s: E.Stage) -> Tree:
        perm = s.out.meta.get("perm") if "logical" in s.out.meta else None
        by_dim = list(s.vars)
        if perm is not None:
            for place, d in enumerate(perm):
                by_dim[d] = s.vars[place]
        done: dict[int, Tree] = {}
        for e in E.walk(s.expr):
            if not isinstance(e, E.Var):
                done[id(e)] = self.expression(e, s, by_dim, done)
        return done[id(s.expr)]

    def expression(
        self, e: E.Expr, s: E.Stage, by_dim: list[E.Var], done: dict[int, Tree]
    ) -> Tree:
        if isinstance(e, E.Const):
            return ("const", float(e.value))
        if isinstance(e, E.Load):
            return self.load(e, s, by_dim)
        if isinstance(e, E.Size):
            return ("size",)  # only ever part of an index
        kids = [done.get(id(c), ("var",)) for c in E.children(e)]
        if isinstance(e, E.Cast):
            return self.cast(e, kids[0])
        if isinstance(e, E.Unary):
            return (e.fn, kids[0])
        if isinstance(e, E.Binary):
            return (e.fn, *kids)
        if isinstance(e, E.Select):
            return ("select", *kids)
        raise NotCovered(f"a stage has a {type(e).__name__.lower()}")

    @staticmethod
    def cast(e: E.Cast, x: Tree) -> Tree:
        to, frm = e.dtype, e.x.dtype
        if to.is_float and (frm.is_float or frm.is_int):
            if to.bits < 16:
                raise NotCovered(f"a stage converts to {to}")
            return x
        if to.name in ("i8", "u8") and e.saturate:
            return ("saturate", x)
        if to.is_int and frm.is_int and to.bits >= frm.bits:
            return x
        raise NotCovered(f"a stage converts {frm} to {to}")

    def load(self, e: E.Load, s: E.Stage, by_dim: list[E.Var]) -> Tree:
        if e.guard is not None:
            raise NotCovered("a stage reads with a condition")
        if e.value in self.known:
            if not _own(e, s):
                raise NotCovered("a stage reads the contraction's result at another index")
            return self.known[e.value]
        const = e.value.const
        if const is not None and const.size == 1 and e.dtype.kind != "c":
            return ("const", float(const.reshape(-1)[0]))
        own = strides_of(e.value)
        sizes = static(e.value.dims, "an operand")
        dims, strides = [1] * len(by_dim), [0] * len(by_dim)
        for index, size, stride in zip(e.index, sizes, own, strict=True):
            if isinstance(index, E.Const) and int(index.value) == 0:
                continue
            places = [d for d, v in enumerate(by_dim) if v is index]
            if len(places) != 1 or size != by_dim[places[0]].extent:
                raise NotCovered(f"operand {e.value.name!r} is read at a computed index")
            dims[places[0]], strides[places[0]] = size, stride
        operand = Operand(e.value, tuple(dims), tuple(strides))
        if operand not in self.operands:
            self.operands.append(operand)
        return ("in", self.operands.index(operand))


def _own(e: E.Load, s: E.Stage) -> bool:
    return len(e.index) == len(s.vars) and all(
        i is v or (v.extent == 1 and isinstance(i, E.Const) and i.value == 0)
        for i, v in zip(e.index, s.vars, strict=True)
    )


def read_epilogue(region: Region, bias: Operand | None = None) -> Epilogue:
    """The region's stages as a tree.

    Args:
        region: With an anchor of one result.
        bias: An operand that the contraction itself adds to its sums.

    Raises:
        NotCovered: If they do something trees can't say.
    """
    anchor = region.anchor
    assert anchor is not None
    if len(anchor.outputs) != 1 or len(region.outputs) != 1:
        raise NotCovered("the region has several results")
    y = anchor.outputs[0]
    reader = _Reader(region, {}, [] if bias is None else [bias])
    first: Tree = ACC if bias is None else ("add", ACC, ("in", 0))
    reader.known = {y: first, region.physical.get(y, y): first}
    out = region.outputs[0]
    for s in region.stages:
        if logical(s.out).dims != y.dims:
            raise NotCovered("a stage has another shape than the contraction")
        reader.known[s.out] = reader.known[logical(s.out)] = reader.stage(s)
    if out not in reader.known:
        raise NotCovered("the result is not the last stage's")
    tree = simplify(reader.known[out])
    if _names(tree) & {"var", "size"}:
        raise NotCovered("a stage computes with its own indices")
    kept = sorted(_inputs(tree))
    operands = [reader.operands[k] for k in kept]
    tree = _renumber(tree, {k: i for i, k in enumerate(kept)})
    return Epilogue(tree, operands, out, static(logical(out).dims, "the result"))


# --- trees -----------------------------------------------------------------------------------


def _names(t: Tree) -> set[str]:
    out = {t[0]}
    for c in t[1:]:
        if isinstance(c, tuple):
            out |= _names(c)
    return out


def _inputs(t: Tree) -> set[int]:
    if t[0] == "in":
        return {t[1]}
    return set().union(*(_inputs(c) for c in t[1:] if isinstance(c, tuple)), set())


def _renumber(t: Tree, to: dict[int, int]) -> Tree:
    if t[0] == "in":
        return ("in", to[t[1]])
    return (t[0], *(_renumber(c, to) if isinstance(c, tuple) else c for c in t[1:]))


def number(t: Tree) -> float | None:
    """The value of a constant."""
    return t[1] if t[0] == "const" else None


def simplify(t: Tree) -> Tree:
    """Finds activations, folds constants."""
    if t[0] in ("acc", "in", "const", "size", "var"):
        return t
    t = (t[0], *(simplify(c) if isinstance(c, tuple) else c for c in t[1:]))
    for rule in _RULES:
        found = rule(t)
        if found is not None:
            return found
    return t


def _arithmetic(t: Tree) -> Tree | None:
    fn, kids = t[0], t[1:]
    values = [number(k) for k in kids if isinstance(k, tuple)]
    if len(kids) == 2 and None not in values and fn in ("add", "sub", "mul", "div"):
        a, b = values
        if fn != "div" or b:
            return ("const", {"add": a + b, "sub": a - b, "mul": a * b,  # type: ignore[operator]
                              "div": a / b if b else 0.0}[fn])  # type: ignore[operator]
    if fn == "div" and values[1]:
        return _arithmetic(("mul", kids[0], ("const", 1.0 / values[1]))) or (
            "mul", kids[0], ("const", 1.0 / values[1]))
    if fn == "sub" and values[1] is not None:
        return _arithmetic(("add", kids[0], ("const", -values[1]))) or (
            "add", kids[0], ("const", -values[1]))
    if fn in ("add", "mul") and values[0] is not None and values[1] is None:
        return _arithmetic((fn, kids[1], kids[0])) or (fn, kids[1], kids[0])
    neutral = {"add": 0.0, "mul": 1.0}.get(fn)
    if neutral is not None and values[1] == neutral:
        return kids[0]
    return None


def _clips(t: Tree) -> Tree | None:
    if t[0] not in ("max", "min"):
        return None
    x, bound = t[1:]
    if number(x) is not None:
        x, bound = bound, x
    b = number(bound)
    if b is None:
        return None
    inf = math.inf
    low, high = (b, inf) if t[0] == "max" else (-inf, b)
    if x[0] == "relu":
        x = ("clip", x[1], 0.0, inf)
    if x[0] == "clip":
        if t[0] == "max" and x[2] <= b <= x[3]:
            x, low, high = x[1], b, x[3]
        elif t[0] == "min" and x[2] <= b <= x[3]:
            x, low, high = x[1], x[2], b
    return ("relu", x) if (low, high) == (0.0, inf) else ("clip", x, low, high)


def _branches(t: Tree) -> Tree | None:
    """select(x >= 0, x, f(x)) and max(x, x * slope)."""
    if t[0] == "max" and len(t) == 3:
        for x, y in ((t[1], t[2]), (t[2], t[1])):
            if y[0] == "mul" and y[1] == x and 0 < (number(y[2]) or 0) < 1:
                return ("leaky_relu", x, number(y[2]))
    if t[0] != "select":
        return None
    cond, yes, no = t[1:]
    if cond[0] in ("lt", "le"):
        yes, no = no, yes
    elif cond[0] not in ("gt", "ge"):
        return None
    x = cond[1]
    if number(cond[2]) != 0.0 or yes != x:
        return None
    if number(no) == 0.0:
        return ("relu", x)
    if no[0] == "mul" and no[1] == x and number(no[2]) is not None:
        return ("leaky_relu", x, number(no[2]))
    alpha, body = (number(no[2]), no[1]) if no[0] == "mul" else (1.0, no)
    if alpha is not None and body == ("add", ("exp", x), ("const", -1.0)):
        return ("elu", x, alpha)
    return None


def _factors(t: Tree) -> tuple[float, list[Tree]]:
    """A product as a number and what else is multiplied."""
    if t[0] == "const":
        return t[1], []
    if t[0] == "mul":
        (a, x), (b, y) = _factors(t[1]), _factors(t[2])
        return a * b, x + y
    if t[0] == "pow" and number(t[2]) in (2.0, 3.0):
        a, x = _factors(t[1])
        n = int(t[2][1])
        return a**n, x * n
    return 1.0, [t]


def _without(all_: list[Tree], some: list[Tree]) -> list[Tree] | None:
    rest = list(all_)
    for s in some:
        if s not in rest:
            return None
        rest.remove(s)
    return rest


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 2e-3 * abs(b)


def _product(factors: list[Tree]) -> Tree:
    out = factors[0]
    for f in factors[1:]:
        out = ("mul", out, f)
    return out


def _gated(t: Tree) -> Tree | None:
    """x times a sigmoid of it, or times (1 + erf or tanh of it) / 2."""
    if t[0] != "mul":
        return None
    factor, parts = _factors(t)
    for gate in parts:
        rest = _without(parts, [gate])
        if not rest:
            continue
        if gate[0] == "sigmoid" and _near(factor, 1.0):
            beta, inner = _factors(gate[1])
            if sorted(map(repr, inner)) == sorted(map(repr, rest)):
                return ("swish", _product(rest), beta)
        if gate[0] != "add" or number(gate[2]) != 1.0 or not _near(factor, 0.5):
            continue
        if gate[1][0] == "erf":
            beta, inner = _factors(gate[1][1])
            if _near(beta, _GELU) and sorted(map(repr, inner)) == sorted(map(repr, rest)):
                return ("gelu_erf", _product(rest))
        if gate[1][0] == "tanh" and _is_gelu_poly(gate[1][1], rest):
            return ("gelu_tanh", _product(rest))
    return None


def _is_gelu_poly(t: Tree, x: list[Tree]) -> bool:
    """Whether ``t`` is sqrt(2/pi) * (x + 0.044715 x³)."""
    scale, parts = _factors(t)
    if not _near(scale, _GELU_TANH):
        return False
    for total in parts:
        if total[0] != "add":
            continue
        outside = _without(parts, [total]) or []
        for a, b in ((total[1], total[2]), (total[2], total[1])):
            (ca, fa), (cb, fb) = _factors(a), _factors(b)
            if not (_near(ca, 1.0) and _near(cb, _CUBIC)):
                continue
            first = sorted(map(repr, fa + outside)) == sorted(map(repr, x))
            if first and sorted(map(repr, fb + outside)) == sorted(map(repr, x * 3)):
                return True
    return False


_RULES = (_arithmetic, _clips, _branches, _gated)


# --- sums ------------------------------------------------------------------------------------


def terms(t: Tree) -> list[Tree] | None:
    """What is added to the sums: the operands of a chain of additions that holds ``("acc",)``,
    which comes first; None if it is no such chain."""
    parts: list[Tree] = []

    def walk(x: Tree) -> None:
        if x[0] == "add" and ACC in _leaves(x):
            walk(x[1])
            walk(x[2])
        else:
            parts.append(x)

    walk(t)
    if parts.count(ACC) != 1:
        return None
    parts.remove(ACC)
    return [ACC, *parts]


def _leaves(t: Tree) -> set[Tree]:
    if t[0] in ("acc", "in", "const"):
        return {t}
    return set().union(*(_leaves(c) for c in t[1:] if isinstance(c, tuple)), set())
