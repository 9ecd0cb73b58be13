"""Decides how a region becomes loops: which variables are shared by all its stages, where
intermediate values live, which loops merge. Nothing here knows LLVM.

The stages of a region run one after the other for every *row*: a point of the variables that
all stages have in common. A stage's other variables are its *inner* ones. An intermediate value
without inner variables stays in a register, others in scratch memory, one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import i64
from ...ir.expr import Expr, Var
from ...ir.graph import Value
from . import affine as A

_MIN_SPLIT = 4  # a contiguous variable is not cut into pieces shorter than this


@dataclass(eq=False)
class Step:
    """One stage: ``out[index] = expr`` over rows and ``inner`` variables.

    Attributes:
        at: Flat index of the element written; None if it stays in a register.
    """

    out: Value
    vars: list[Var]
    index: list[Expr]
    expr: Expr
    inner: list[Var] = field(default_factory=list)
    at: A.Linear | None = None


@dataclass(eq=False)
class LoopNest:
    """A planned region.

    Attributes:
        rows: Variables shared by all steps, outermost first.
        steps: In order.
        scratch: Intermediate values kept in scratch memory, with their elements per row.
        outputs: Values written to memory that others see.
    """

    rows: list[Var]
    steps: list[Step]
    scratch: dict[Value, D.DimLike]
    outputs: list[Value]
    lowerer: A.Lowerer


class OtherPoints(ValueError):
    """A stage's result is read at other points than the one it is computed for.

    Attributes:
        value: The result.
    """

    def __init__(self, value: Value):
        super().__init__(f"{value} is read at other points of its row")
        self.value = value


def plan(stages: Sequence[E.Stage], outputs: Sequence[Value]) -> list[LoopNest]:
    """Plans the loops of ``stages``, of which ``outputs`` are wanted. Stages that have nothing
    to do with each other, and the pieces of a concatenation, become nests of their own."""
    nests: list[LoopNest] = []
    for group in _independent(_wanted(stages, outputs)):
        own = [s.out for s in group if s.out in outputs]
        if len(group) == 1 and "concat" in group[0].meta:
            nests.extend(_plan_pieces(group[0]))
            continue
        low = A.Lowerer(keep={s.out for s in group})
        nests.append(_plan(low, [_step(low, s) for s in group], own))
    return nests


def _plan_pieces(stage: E.Stage) -> list[LoopNest]:
    return [_plan(low, [piece], [stage.out]) for low, piece in _pieces_of(stage)]


def _pieces_of(stage: E.Stage) -> list[tuple[A.Lowerer, Step]]:
    """A concatenation as one step per piece."""
    axis = stage.meta["axis"]
    found = []
    for x, begin in stage.meta["concat"]:
        if any(d == 0 for d in x.dims):
            continue
        low = A.Lowerer()
        piece = _step(low, E.Stage(x, vs := E.iter_vars(x.dims), E.load(x, vs)))
        piece.out = stage.out
        piece.index[axis] = low.total([(piece.index[axis], 1), (E.idx(begin), 1)])
        found.append((low, piece))
    return found


def plan_in_registers(stages: Sequence[E.Stage], outputs: Sequence[Value]) -> list[LoopNest]:
    """Like `plan` for targets that keep whole rows in registers: intermediate values are never
    in memory, and only row loops are merged.

    Raises:
        OtherPoints: If a step reads what another one computes for other points of its row.
    """
    nests: list[LoopNest] = []
    for group in _independent(_wanted(stages, outputs)):
        own = [s.out for s in group if s.out in outputs]
        if len(group) == 1 and "concat" in group[0].meta:
            nests += [_in_registers(low, [p], own) for low, p in _pieces_of(group[0])]
            continue
        low = A.Lowerer(keep={s.out for s in group})
        nests.append(_in_registers(low, [_step(low, s) for s in group], own))
    return nests


def _in_registers(low: A.Lowerer, steps: list[Step], outputs: list[Value]) -> LoopNest:
    rows = _share_rows(low, steps, {s.out: s for s in steps})
    low.keep = set()
    for s in steps:
        low.layout[s.out] = lambda index: low.total([])
    loaded = {x.value for s in steps for x in A.walk([s.expr]) if isinstance(x, E.Load)}
    for s in steps:
        if s.inner and s.out in loaded:
            raise OtherPoints(s.out)
        s.expr = low.lower(s.expr)
    low.layout.clear()
    for s in steps:
        if s.out in outputs:
            s.at = low.flat(s.out, s.index)
    nest = LoopNest(rows, steps, {}, list(outputs), low)
    nest.rows = merge(nest, nest.rows, nest.steps)
    return nest


def _independent(stages: Sequence[E.Stage]) -> list[list[E.Stage]]:
    """Groups of stages that share intermediate values, each in order."""
    group_of: dict[Value, list[E.Stage]] = {}
    groups: list[list[E.Stage]] = []
    for s in stages:
        mine = [s]
        # in order of loading: the code must be the same in every build
        for v in dict.fromkeys(ld.value for ld in E.loads(s.expr)):
            other = group_of.get(v, mine)
            if other is not mine:
                mine = other + mine if len(mine) == 1 else mine[:-1] + other + mine[-1:]
                groups.remove(other)
                group_of.update({k.out: mine for k in mine})
        group_of.update({k.out: mine for k in mine})
        groups.append(mine)
    return groups


def _plan(low: A.Lowerer, steps: list[Step], outputs: list[Value]) -> LoopNest:
    producers = {s.out: s for s in steps}
    rows = _share_rows(low, steps, producers)
    kept = share_expensive(low, steps)
    low.keep = set()
    scratch = _place(low, steps, kept, set(outputs))
    for s in steps:
        s.expr = low.lower(s.expr)
        if s.inner or s.out in outputs:
            s.at = low.flat(s.out, s.index)
    nest = LoopNest(rows, steps, scratch, list(outputs), low)
    _merge_loops(nest)
    return nest


def _wanted(stages: Sequence[E.Stage], outputs: Sequence[Value]) -> list[E.Stage]:
    need = set(outputs)
    kept: list[E.Stage] = []
    for s in reversed(stages):
        if s.out in need:
            kept.append(s)
            need |= {ld.value for ld in E.loads(s.expr)}
    return kept[::-1]


def _step(low: A.Lowerer, s: E.Stage) -> Step:
    """The stage lowered; variables of extent 1 are 0, and divided variables are split."""
    zero = E.Const(i64, 0)
    env: dict[Var, Expr] = {v: zero for v in s.vars if v.extent == 1}
    for x in E.walk(s.expr):
        if isinstance(x, E.Reduce) and len(x.vars) > 1 and not x.fn.startswith("arg"):
            env.update({v: zero for v in x.vars if v.extent == 1})
    expr = low.lower(s.expr, env)
    index = [env.get(v, v) for v in s.vars]
    own = [v for v in s.vars if v.extent != 1]
    for _ in range(16):
        cut = _find_split(expr, own[-1] if own else None)
        if cut is None:
            break
        var, d = cut
        assert not isinstance(var.extent, D.Dim)
        hi, lo = Var(i64, var.name + "h", var.extent // d), Var(i64, var.name + "l", d)
        pieces = {var: low.total([(hi, d), (lo, 1)])}
        expr = low.lower(expr, pieces)
        index = [low.lower(i, pieces) for i in index]
        own = [k for v in own for k in ((hi, lo) if v is var else (v,))]
    return Step(s.out, own, index, expr)


def _find_split(expr: Expr, contiguous: Var | None) -> tuple[Var, int] | None:
    """A variable that is divided by a divisor of its extent, and that divisor."""
    best: tuple[Var, int] | None = None
    for x in A.walk([expr]):
        if not (isinstance(x, E.Binary) and x.fn in ("floordiv", "mod")):
            continue
        v, d = x.a, x.b
        if not isinstance(v, Var) or not isinstance(d, E.Const) or isinstance(v.extent, D.Dim):
            continue
        n = int(d.value)
        if not 1 < n < v.extent or v.extent % n or (v is contiguous and n < _MIN_SPLIT):
            continue
        if best is None or n < best[1]:
            best = v, n
    return best


# --- rows ---------------------------------------------------------------------------------


class _Classes:
    """Variables of different steps that always have the same value."""

    def __init__(self) -> None:
        self.parent: dict[Var, Var] = {}
        self.bad: set[Var] = set()

    def find(self, v: Var) -> Var:
        root = v
        while root in self.parent:
            root = self.parent[root]
        return root

    def join(self, a: Var, b: Var) -> None:
        a, b = self.find(a), self.find(b)
        if a is not b:
            self.parent[a] = b
            if a in self.bad:
                self.bad.add(b)

    def spoil(self, v: Var) -> None:
        self.bad.add(self.find(v))


def _share_rows(
    low: A.Lowerer, steps: list[Step], producers: dict[Value, Step]
) -> list[Var]:
    """Finds the row variables and gives every step the same ones."""
    classes = _Classes()
    for s in steps:
        for x in A.walk([s.expr]):
            if isinstance(x, E.Load) and x.value in producers:
                for p, c in zip(producers[x.value].index, x.index, strict=True):
                    _match(classes, p, c, set(s.vars))
    last = steps[-1]
    for s in steps[:-1]:
        if s.out.dims == last.out.dims and len(s.vars) == len(last.vars):
            for a, b in zip(s.vars, last.vars, strict=True):
                if a.extent == b.extent:
                    classes.join(a, b)
    members: dict[Var, list[Step]] = {}
    for s in steps:
        for v in s.vars:
            members.setdefault(classes.find(v), []).append(s)
    good = {
        c for c, found in members.items()
        if c not in classes.bad and len(found) == len(steps) == len(set(found))
    }
    rows = [classes.find(v) for v in last.vars if classes.find(v) in good]
    for s in steps:
        env: dict[Var, Expr] = {v: classes.find(v) for v in s.vars if classes.find(v) in good}
        s.inner = [v for v in s.vars if v not in env]
        s.expr = low.lower(s.expr, env)
        s.index = [low.lower(i, env) for i in s.index]
    return rows


def _match(classes: _Classes, made: Expr, read: Expr, own: set[Var]) -> None:
    """Relates the variables of an index of a producer to those of the index it is read at."""
    want, have = _pieces(made), _pieces(read)
    fits = (
        want is not None and have is not None and want.keys() == have.keys()
        and all(have[c] in own and have[c].extent == want[c].extent for c in want)
    )  # fmt: skip
    if fits:
        assert want is not None and have is not None
        for c in want:
            classes.join(want[c], have[c])
    elif want is not None:
        for v in want.values():
            classes.spoil(v)
    else:
        for x in A.walk([made]):
            if isinstance(x, Var):
                classes.spoil(x)


def _pieces(e: Expr) -> dict[D.DimLike, Var] | None:
    """The variables of ``sum(coefficient * variable)`` by coefficient, or None."""
    if isinstance(e, Var):
        return {1: e}
    if isinstance(e, E.Const):
        return {}
    if isinstance(e, A.Linear) and e.offset == 0 and all(isinstance(t, Var) for t, _ in e.terms):
        found = {c: t for t, c in e.terms if isinstance(t, Var)}
        return found if len(found) == len(e.terms) else None
    return None


# --- sharing expensive work ---------------------------------------------------------------

_EXPENSIVE = frozenset(
    "exp log sin cos tan tanh erf sigmoid sinh cosh asin acos atan lgamma".split()
)


def share_expensive(low: A.Lowerer, steps: list[Step]) -> list[Step]:
    """Where a step computes again, element by element, what a reduction of an earlier step has
    computed expensively (the exponentials of a softmax), the reduction keeps it in scratch.

    Returns:
        The kept values, as steps that are not run on their own.
    """
    kept: list[Step] = []
    for i, s in enumerate(steps):
        for later in steps[i + 1 :]:
            if s.inner or not later.inner:
                continue
            made = _share(low, s, later)
            if made is not None:
                kept.append(made)
    return kept


def _share(low: A.Lowerer, early: Step, late: Step) -> Step | None:
    sizes = [v.extent for v in late.inner]
    for r in A.walk([early.expr]):
        if not isinstance(r, E.Reduce) or [v.extent for v in r.vars] != sizes:
            continue
        there = low.lower(late.expr, dict(zip(late.inner, r.vars, strict=True)))
        twice = set(A.walk([there]))
        common = [
            x for x in A.walk([r.body])
            if isinstance(x, E.Unary) and x.fn in _EXPENSIVE and x in twice
            and {v for v in A.walk([x]) if isinstance(v, Var)} >= set(r.vars)
        ]  # fmt: skip
        if not common:
            continue
        x = common[-1]
        value = Value(f"{late.out.name}.kept", x.dtype, tuple(sizes))
        low.keep.add(value)
        made = Step(value, list(r.vars), list(r.vars), x, list(r.vars))
        early.expr = low.replace(early.expr, x, A.Keep(x.dtype, x, E.load(value, r.vars)))
        again = low.replace(there, x, E.load(value, r.vars))
        late.expr = low.lower(again, dict(zip(r.vars, late.inner, strict=True)))
        return made
    return None


# --- memory -------------------------------------------------------------------------------


def _place(
    low: A.Lowerer, steps: list[Step], kept: list[Step], outputs: set[Value]
) -> dict[Value, D.DimLike]:
    """Gives every intermediate value a layout over the inner variables of its step."""
    scratch: dict[Value, D.DimLike] = {}
    for s in [*steps, *kept]:
        if s.out in outputs:
            continue
        strides = dict(zip(s.inner, A.contiguous(v.extent for v in s.inner), strict=True))
        low.layout[s.out] = _layout(low, s, strides)
        if s.inner:
            scratch[s.out] = D.product(v.extent for v in s.inner)
    return scratch


def _layout(
    low: A.Lowerer, s: Step, strides: dict[Var, D.DimLike]
) -> Callable[[Sequence[Expr]], Expr]:
    def flat(index: Sequence[Expr]) -> Expr:
        parts: list[tuple[Expr, D.DimLike]] = []
        for made, read in zip(s.index, index, strict=True):
            want = _pieces(made)
            assert want is not None
            parts.extend(
                (_piece_value(low, want, c, read), strides[v])
                for c, v in want.items() if v in strides
            )
        return low.total(parts)

    return flat


def _piece_value(low: A.Lowerer, want: dict[D.DimLike, Var], c: D.DimLike, read: Expr) -> Expr:
    """The value that the variable with coefficient ``c`` has where the index is ``read``."""
    if len(want) == 1 and c == 1:
        return read
    step = low.lower(E.binary("floordiv", read, E.idx(c)))
    larger = [k for k in want if not isinstance(k, D.Dim) and k > c]  # type: ignore[operator]
    if not larger:
        return step
    return low.lower(E.binary("mod", step, E.idx(want[c].extent)))


# --- merging loops ------------------------------------------------------------------------


def _merge_loops(nest: LoopNest) -> None:
    """Joins neighbouring loops that run through memory as one."""
    everything = nest.steps
    nest.rows = merge(nest, nest.rows, everything)
    for s in nest.steps:
        s.inner = merge(nest, s.inner, [s])
        for r in [x for x in A.walk([s.expr]) if isinstance(x, E.Reduce)]:
            if len(r.vars) > 1:
                merge(nest, list(r.vars), [s])


def merge(nest: LoopNest, order: list[Var], steps: list[Step]) -> list[Var]:
    """Joins neighbours among ``order`` that all accesses of the steps run through as one.

    Returns:
        The variables that are left.
    """
    k = 0
    while k + 1 < len(order):
        a, b = order[k], order[k + 1]
        if not _mergeable(a, b, _roots(steps)):
            k += 1
            continue
        joint = Var(i64, a.name + b.name, a.extent * b.extent)
        env: dict[Var, Expr] = {a: E.Const(i64, 0), b: joint}
        for s in steps:
            s.expr = nest.lowerer.lower(s.expr, env)
            if s.at is not None:
                at = nest.lowerer.lower(s.at, env)
                s.at = as_linear(at)
        order = [*order[:k], joint, *order[k + 2 :]]
    return order


def _roots(steps: Iterable[Step]) -> list[Expr]:
    return [e for s in steps for e in (s.expr, s.at) if e is not None]


def as_linear(e: Expr) -> A.Linear:
    if isinstance(e, A.Linear):
        return e
    if isinstance(e, E.Const):
        return A.Linear(i64, (), int(e.value))
    return A.Linear(i64, ((e, 1),), 0)


def _mergeable(a: Var, b: Var, roots: list[Expr]) -> bool:
    for x in A.walk(roots):
        if isinstance(x, A.Linear):
            forms = [x]
        elif isinstance(x, A.FlatLoad):
            forms = [x.at]
            if any(c is a or c is b for c in (x.guard, x.other)):
                return False
        elif any(c is a or c is b for c in A.children(x)):
            return False
        else:
            continue
        for f in forms:
            c = dict(f.terms)
            if c.get(a, 0) != c.get(b, 0) * b.extent:
                return False
    return True


__all__ = ["LoopNest", "OtherPoints", "Step", "merge", "plan", "plan_in_registers"]
