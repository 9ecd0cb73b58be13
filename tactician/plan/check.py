"""What must hold of a program before native code may run it.

A plan's checksum says its bytes are as written; this says that what was written hangs together:
every id exists, every static tensor lies inside its memory, every size can be computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import DType, i64
from ..ir.graph import SymbolInfo
from ..support.errors import PlanError
from .program import (
    ARENA,
    CONST,
    DYNAMIC,
    INPUT,
    OUTPUT,
    SIZES,
    VIEW,
    Check,
    Profile,
    Program,
    Step,
    Tensor,
)

KINDS = frozenset((INPUT, OUTPUT, CONST, ARENA, VIEW, DYNAMIC, SIZES))
RELATIONS = frozenset(("eq", "le", "broadcast"))
STEP_KINDS = frozenset(("kernel", "reference", "copy", "jump", "jump_if_zero", "learn"))


def check_program(program: Program) -> None:
    """Checks a program read from outside.

    Raises:
        PlanError: Naming the first tensor, step or symbol that is wrong.
    """
    for table in (program.tensors, program.steps, program.profiles, program.checks):
        if not isinstance(table, list):
            _fail(f"expected a list, found {type(table).__name__}")
    for ids in (program.inputs, program.outputs):
        _ids(program, ids, "the list of inputs or outputs")
    _check_symbols(program)
    for i, t in enumerate(program.tensors):
        _check_tensor(program, i, t)
    for what, ids in ((INPUT, program.inputs), (OUTPUT, program.outputs)):
        names = [program.tensors[n].name for n in ids]
        if len(set(names)) != len(names):
            _fail(f"two {what}s have one name: {', '.join(names)}")
        for n in ids:
            if program.tensors[n].kind != what:
                _fail(f"{what} {program.tensors[n].name!r} has kind {program.tensors[n].kind}")
    for i, step in enumerate(program.steps):
        _check_step(program, i, step)
    for c in program.checks:
        if not isinstance(c, Check) or c.relation not in RELATIONS:
            _fail(f"a check of sizes is malformed: {c!r}")
        _dims(program, (c.a, c.b), f"a check for {c.layer}")
    if not program.profiles or not all(isinstance(p, Profile) for p in program.profiles):
        _fail("there is no optimization profile")
    _check_declared(program)


def _check_declared(program: Program) -> None:
    declared = program.settings.get("declared", {})
    shapes = {program.tensors[i].name: program.tensors[i].shape
              for i in (*program.inputs, *program.outputs)}
    for name, shape in declared.items():
        if name not in shapes or len(shape) != len(shapes[name]) or any(
            n != -1 and n != d for n, d in zip(shape, shapes[name], strict=True)
        ):
            _fail(f"the declared shape {shape} of {name!r} is no shape of an input or output")


def _check_symbols(program: Program) -> None:
    names = {getattr(program.tensors[t], "name", None) for t in program.inputs}
    for name, s in program.symbols.items():
        if not isinstance(s, SymbolInfo) or s.kind not in ("dim", "value", "data"):
            _fail(f"symbol {name!r} has no known origin")
        if s.kind != "data" and s.source not in names:
            _fail(f"symbol {name!r} comes from {s.source!r}, which is no input")


def _check_tensor(program: Program, i: int, t: Tensor) -> None:
    if not isinstance(t, Tensor) or t.kind not in KINDS or not isinstance(t.dtype, DType):
        _fail(f"tensor {i} is malformed")
    what = f"tensor {i} ({t.name!r})"
    _dims(program, t.shape, what)
    if any(type(d) is int and d < 0 for d in t.shape):
        _fail(f"{what} has a negative dimension: {t.shape}")
    if t.kind == CONST:
        _check_constant(program, t, what)
    elif t.kind == VIEW:
        _check_view(program, i, t, what)
    elif t.kind == ARENA and (size := _static_size(t)) is not None and program.arena_size >= 0:
        if type(t.offset) is not int or not 0 <= t.offset <= program.arena_size - size:
            _fail(f"{what} lies outside the arena of {program.arena_size} bytes")
    elif t.kind == SIZES:
        _dims(program, t.content, what)
        if D.product(t.shape) != len(t.content):
            _fail(f"{what} of shape {t.shape} has {len(t.content)} elements")


def _check_constant(program: Program, t: Tensor, what: str) -> None:
    if not 0 <= t.ref < len(program.constants):
        _fail(f"{what} is constant {t.ref} of {len(program.constants)}")
    array: Any = program.constants[t.ref]
    if not isinstance(array, np.ndarray) or array.nbytes != _static_size(t):
        _fail(f"{what} has {_static_size(t)} bytes, its data {getattr(array, 'nbytes', None)}")


def _check_view(program: Program, i: int, t: Tensor, what: str) -> None:
    seen, base, offset = {i}, t, t.offset
    _dims(program, (t.offset,), what)
    while base.kind == VIEW:
        if not _is_id(program, base.ref) or base.ref in seen:
            _fail(f"{what} is a view of tensor {base.ref}, which is itself or none")
        seen.add(base.ref)
        base = program.tensors[base.ref]
        if base.kind == VIEW:
            offset = offset + base.offset
    size, room = _static_size(t), _static_size(base)
    if type(offset) is int and (offset < 0 or (
        size is not None and room is not None and offset + size > room
    )):
        _fail(f"{what} reaches beyond tensor {base.name!r}, which it is a view of")


def _check_step(program: Program, i: int, step: Step) -> None:
    if not isinstance(step, Step) or step.kind not in STEP_KINDS:
        _fail(f"step {i} is of no known kind")
    what = f"step {i} ({step.name!r})"
    _ids(program, step.outputs, what)
    _ids(program, step.inputs, what, absent=step.kind == "reference")
    _ids(program, step.args, what)
    for dims in (step.dims, step.grid, (step.work, step.scratch, step.counters)):
        _dims(program, dims, what)
    if type(step.grain) is not int or step.grain < 1:
        _fail(f"{what} has grain {step.grain!r}")
    if type(step.phase) is not int or step.phase < 0:
        _fail(f"{what} has phases of {step.phase!r} items")
    if step.kind == "reference":
        if type(step.node) is not int or not 0 <= step.node < len(program.nodes.nodes):
            _fail(f"{what} runs node {step.node!r} of {len(program.nodes.nodes)}")
        node = program.nodes.nodes[step.node]
        if len(node.inputs) != len(step.inputs) or len(node.outputs) != len(step.outputs):
            _fail(f"{what} does not have the operands of {node.describe()}")
    elif step.kind in ("jump", "jump_if_zero"):
        if type(step.target) is not int or not 0 <= step.target <= len(program.steps):
            _fail(f"{what} jumps to step {step.target!r} of {len(program.steps)}")
        if len(step.args) != (step.kind == "jump_if_zero"):
            _fail(f"{what} tests {len(step.args)} tensors")
    elif step.kind == "learn":
        _check_learn(program, step, what)
    elif step.kind == "copy" and len(step.args) != 2:
        _fail(f"{what} copies {len(step.args)} tensors")
    elif step.kind == "kernel" and not (step.symbol and program.code):
        _fail(f"{what} has no code")
    elif step.special is not None:
        if step.kind != "kernel" or step.special.kind != "kernel" or step.special.special:
            _fail(f"{what} has a special version that is no kernel")
        _check_step(program, i, step.special)
    elif step.kind == "kernel" and program.target == "cuda" and not 1 <= len(step.grid) <= 3:
        _fail(f"{what} has a grid of {len(step.grid)} dimensions")


def _check_learn(program: Program, step: Step, what: str) -> None:
    if len(step.args) != 1 or program.tensors[step.args[0]].shape != (len(step.dims),):
        _fail(f"{what} reads sizes from {len(step.args)} tensors of another length")
    if program.tensors[step.args[0]].dtype is not i64:
        _fail(f"{what} reads sizes that are no i64")
    for d in step.dims:
        known = program.symbols.get(str(d))
        if known is None or known.kind != "data":
            _fail(f"{what} reads {d}, which is no size that depends on data")


def _ids(program: Program, ids: Iterable[Any], what: str, *, absent: bool = False) -> None:
    for t in ids:
        if not _is_id(program, t) and not (absent and t == -1):
            _fail(f"{what} names tensor {t!r} of {len(program.tensors)}")


def _is_id(program: Program, t: Any) -> bool:
    return type(t) is int and 0 <= t < len(program.tensors)


def _dims(program: Program, dims: Iterable[Any], what: str) -> None:
    for d in dims:
        if isinstance(d, D.Dim):
            unknown = d.symbols() - set(program.symbols)
            if unknown:
                _fail(f"{what} depends on {', '.join(sorted(unknown))}, which nothing defines")
        elif type(d) is not int:
            _fail(f"{what} has the dimension {d!r}")


def _static_size(t: Tensor) -> int | None:
    n = D.product(t.shape)
    return None if isinstance(n, D.Dim) else n * t.dtype.size


def _fail(what: str) -> None:
    raise PlanError(f"the plan makes no sense: {what}")
