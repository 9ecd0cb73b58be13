"""Sizes, offsets and scalar arguments of a program once the shapes of its inputs are known.

A `ProgramInfo` holds what never changes; a `Layout` what follows from one set of input shapes.
Both are immutable and shared by all contexts of an engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..ir import dims as D
from ..memory.arena import alignment_for, lifetimes, loops_of, plan_arena
from ..plan.program import ARENA, DYNAMIC, OUTPUT, SIZES, VIEW, Check, Program, Step
from ..support.errors import ExecutionError

Extents = tuple[int, ...]


class ProgramInfo:
    """Facts about a program that hold for all shapes.

    Attributes:
        owner: For each tensor: (id of the tensor whose memory it uses, byte offset in it).
        arena: Arena tensor -> itself, and views of arena tensors -> the arena tensor.
        value_inputs: Inputs whose contents decide shapes: id -> [(element, symbol)].
        has_data: Whether some sizes are known only while running.
        late_checks: Relations between sizes of which some are known only while running.
    """

    def __init__(self, program: Program):
        self.program = program
        self.owner = [self._owner(i) for i in range(len(program.tensors))]
        self.arena = {
            i: o for i, (o, _) in enumerate(self.owner) if program.tensors[o].kind == ARENA
        }
        self.live = lifetimes(
            [(s.inputs, s.outputs) for s in program.steps], self.arena,
            loops=loops_of((i, s.target) for i, s in enumerate(program.steps)),
        )
        for i in set(self.arena.values()) - set(self.live):
            self.arena.pop(i)  # never used: takes no room
        used = self._used_symbols()
        self.data_symbols = {n for n, s in program.symbols.items() if s.kind == "data"}
        self.has_data = bool(used & self.data_symbols)
        self.late_checks = [
            c for c in program.checks if (D.symbols(c.a) | D.symbols(c.b)) & self.data_symbols
        ]
        ids = {program.tensors[t].name: t for t in program.inputs}
        self.value_inputs: dict[int, list[tuple[int, str]]] = {}
        for name, info in program.symbols.items():
            if info.kind == "value" and name in used:
                self.value_inputs.setdefault(ids[info.source], []).append((info.index, name))

    def _owner(self, i: int) -> tuple[int, D.DimLike]:
        offset: D.DimLike = 0
        tensors = self.program.tensors
        while tensors[i].kind == VIEW:
            offset, i = offset + tensors[i].offset, tensors[i].ref
        return i, offset

    def _used_symbols(self) -> set[str]:
        used: set[str] = set()

        def add(dims: Iterable[D.DimLike]) -> None:
            for d in dims:
                used.update(D.symbols(d))

        for t in self.program.tensors:
            add((*t.shape, *t.content, t.offset))
        for s in self.program.steps:
            add((*s.dims, *s.grid, s.work, s.scratch, s.counters))
        return used


class Evaluator:
    """Evaluates dimensions under growing knowledge; each distinct one once.

    Attributes:
        env: Values of symbols. Use `learn` to add.
    """

    def __init__(self, env: Mapping[str, int]):
        self.env = dict(env)
        self._known: dict[D.Dim, int] = {}

    def get(self, d: D.DimLike) -> int | None:
        """The value, or None while a symbol is unknown."""
        if not isinstance(d, D.Dim):
            return d
        value = self._known.get(d)
        if value is None:
            exact = D.substitute(d, self.env)
            if isinstance(exact, D.Dim):
                return None
            self._known[d] = value = exact
        return value

    def all(self, dims: Iterable[D.DimLike]) -> Extents | None:
        """All values, or None if one is unknown."""
        out = []
        for d in dims:
            value = self.get(d)
            if value is None:
                return None
            out.append(value)
        return tuple(out)

    def learn(self, symbol: str, value: int) -> None:
        self.env[symbol] = value

    def fork(self) -> Evaluator:
        """A copy that learns on its own."""
        out = Evaluator(self.env)
        out._known = dict(self._known)
        return out


@dataclass
class Layout:
    """What follows from one set of input shapes (and values of shape inputs).

    Attributes:
        known: Evaluates dimensions; lacks the values of data symbols.
        shapes: Shape of each tensor; None where it depends on data.
        nbytes: Size of each tensor; -1 where it depends on data.
        offsets: Byte offset in the arena of each tensor that uses it.
        arena: Bytes of the arena.
        scratch: Bytes of scratch memory per thread, a multiple of 64.
        late_tensors, late_steps: Those whose sizes depend on data.
        steps: What runs: the program's steps, or the special ones for these sizes.
    """

    known: Evaluator
    shapes: list[Extents | None]
    nbytes: list[int]
    offsets: dict[int, int] = field(default_factory=dict)
    arena: int = 0
    scratch: int = 0
    late_tensors: tuple[int, ...] = ()
    late_steps: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)


def make_layout(info: ProgramInfo, env: Mapping[str, int]) -> Layout:
    """Sizes everything.

    Args:
        info: The program.
        env: Values of the symbols of inputs, from `bind_inputs`.

    Raises:
        ExecutionError: If a size comes out negative, naming the tensor.
    """
    p = info.program
    known = Evaluator(env)
    shapes = [known.all(t.shape) for t in p.tensors]
    for c in p.checks:
        check_sizes(c, known)
    nbytes = []
    for t, shape in zip(p.tensors, shapes, strict=True):
        if shape is not None and any(n < 0 for n in shape):
            raise ExecutionError(
                f"tensor {t.name!r} would have shape {shape} (from {_text(t.shape)}); "
                "choose input shapes for which every dimension is at least 0"
            )
        nbytes.append(-1 if shape is None else math.prod(shape) * t.dtype.size)
    layout = Layout(known, shapes, nbytes, steps=list(p.steps))
    if p.opt and all(env.get(name) == n for name, n in p.opt.items()):
        layout.steps = [s.special or s for s in p.steps]
    _place(info, layout)
    late_steps, scratch = [], 0
    for i, s in enumerate(layout.steps):
        need = known.get(s.scratch)
        scratch = max(scratch, need or 0)
        if need is None or known.all((*s.dims, *s.grid, s.work, s.counters)) is None or (
            s.kind == "copy" and nbytes[s.args[0]] < 0
        ):
            late_steps.append(i)
    alignment = alignment_for(p.target)
    layout.scratch = -(-scratch // alignment) * alignment
    layout.late_steps = tuple(late_steps)
    layout.late_tensors = tuple(
        i for i, t in enumerate(p.tensors)
        if shapes[i] is None or (t.kind == SIZES and known.all(t.content) is None)
        or known.get(info.owner[i][1]) is None or t.kind == DYNAMIC
    )
    return layout


def check_sizes(c: Check, known: Evaluator) -> None:
    """Checks a relation between sizes, as far as they are known.

    Raises:
        ExecutionError: If it does not hold, naming the layer and the sizes.
    """
    a, b = known.get(c.a), known.get(c.b)
    if a is None or b is None:
        return
    holds = {"eq": a == b, "le": a <= b, "broadcast": a == b or 1 in (a, b)}[c.relation]
    if not holds:
        needs = {"eq": "must equal", "le": "must be at most", "broadcast": "must match or be 1:"}
        raise ExecutionError(
            f"{c.layer}: size {c.a} is {a}, which {needs[c.relation]} {c.b}, which is {b}; "
            "choose input shapes that agree"
        )


def _place(info: ProgramInfo, layout: Layout) -> None:
    p = info.program
    owners = sorted(set(info.arena.values()))
    if p.arena_size >= 0 and all(type(p.tensors[i].offset) is int for i in owners):
        start: Mapping[int, int] = {i: p.tensors[i].offset for i in owners}  # type: ignore
        layout.arena = p.arena_size
    else:
        unknown = next((i for i in owners if layout.nbytes[i] < 0), None)
        if unknown is not None:
            raise ExecutionError(
                f"tensor {p.tensors[unknown].name!r} is in the arena but its shape "
                f"{_text(p.tensors[unknown].shape)} depends on data"
            )
        sizes = {i: layout.nbytes[i] for i in owners}
        live = {i: info.live[i] for i in owners}
        start, layout.arena = plan_arena(sizes, live, alignment_for(p.target))
    for i, o in info.arena.items():
        offset = layout.known.get(info.owner[i][1])
        layout.offsets[i] = start[o] + (offset or 0)


def bind_inputs(
    info: ProgramInfo, shapes: Mapping[int, Extents], values: Mapping[int, Extents]
) -> dict[str, int]:
    """Values of the symbols that input shapes and shape inputs define.

    Raises:
        ExecutionError: If an input has another rank or size than the network says, or two
            inputs that share a dimension differ in it.
    """
    p = info.program
    env: dict[str, int] = {}
    origin: dict[str, str] = {}
    rest: list[tuple[str, D.Dim, int]] = []
    for i in p.inputs:
        t, shape = p.tensors[i], shapes[i]
        if len(shape) != len(t.shape):
            raise ExecutionError(
                f"input {t.name!r} has {len(t.shape)} dimensions {_text(t.shape)}, got {shape}"
            )
        for d, n in zip(t.shape, shape, strict=True):
            name = str(d)
            if not isinstance(d, D.Dim):
                if d != n:
                    raise ExecutionError(
                        f"input {t.name!r} must have shape {_text(t.shape)}, got {shape}"
                    )
            elif name not in p.symbols:
                rest.append((t.name, d, n))
            elif env.setdefault(name, n) != n:
                raise ExecutionError(
                    f"inputs {origin[name]!r} and {t.name!r} share dimension {name}, which is "
                    f"{env[name]} in one and {n} in the other"
                )
            else:
                origin.setdefault(name, t.name)
    for i, pairs in info.value_inputs.items():
        for element, symbol in pairs:
            env[symbol] = values[i][element]
    for name, d, n in rest:
        if D.evaluate(d, env) != n:
            raise ExecutionError(f"input {name!r}: dimension {d} is {D.evaluate(d, env)}, got {n}")
    return env


def outputs_late(info: ProgramInfo, layout: Layout) -> list[int]:
    """Outputs whose shape depends on data."""
    return [i for i in info.program.outputs
            if info.program.tensors[i].kind == OUTPUT and layout.shapes[i] is None]


def _text(shape: Iterable[D.DimLike]) -> str:
    return f"({', '.join(map(str, shape))})"
