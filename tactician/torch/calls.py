"""Sample calls: their tensors, the shapes these may have, and exporting a module with them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..support import logger as log
from ..support.errors import UsageError
from .converters import capturing, forget_with

Shapes = Sequence[Sequence[int]]
Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def split_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a sample call."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def shape_ranges(leaves: Sequence[Any], lowest: Shapes | None, usual: Shapes | None,
                 highest: Shapes | None, batch: int | None) -> list[Triple | None]:
    """For each leaf None (not a tensor) or its min, opt and max shape.

    Raises:
        UsageError: If shapes don't fit the tensors or aren't in order.
    """
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    own = [tuple(x.shape) for x in tensors]
    if batch is not None and lowest is None and highest is None:
        lowest = [(1, *s[1:]) for s in own]
        highest = [(max(batch, s[0]), *s[1:]) for s in own]
    if lowest is None and highest is not None:
        lowest = own
    if highest is None and lowest is not None:
        highest = own
    given = [own if s is None else [tuple(x) for x in s] for s in (lowest, usual, highest)]
    for name, shapes in zip(("min_shapes", "opt_shapes", "max_shapes"), given, strict=True):
        if [len(s) for s in shapes] != [len(s) for s in own]:
            raise UsageError(f"{name} {shapes} must have one shape of the same rank for each of "
                             f"the tensors {own}")
    triples = iter(zip(*given, strict=True))
    out = [next(triples) if isinstance(x, torch.Tensor) else None for x in leaves]
    for t in out:
        if t and any(not a <= b <= c for a, b, c in zip(*t, strict=True)):
            raise UsageError(f"min shape {t[0]}, opt shape {t[1]} and max shape {t[2]} of an "
                             "input are not in order")
    return out


def varying(triple: Triple | None) -> list[int]:
    """Dimensions in which a range's min and max shape differ."""
    return [] if triple is None else [i for i, (a, _, b) in enumerate(zip(*triple, strict=True))
                                      if a != b]


def _stretched(x: Any, triple: Triple) -> Any:
    """A sample that lets export see a varying size: not 1, which it would take for constant."""
    for axis in varying(triple):
        if x.shape[axis] < 2:
            x = x.repeat_interleave(min(3, triple[2][axis]), axis)
    return x


def export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
           ranges: Sequence[Triple | None]) -> Any:
    """The module as a ``torch.export.ExportedProgram``; sizes that ``ranges`` let vary are
    symbols, unless the module itself fixes them."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    auto = torch.export.Dim.AUTO
    samples = [x if r is None else _stretched(x, r) for x, r in zip(leaves, ranges, strict=True)]
    dynamic = [
        {i: auto(min=max(r[0][i], 1), max=r[2][i]) for i in varying(r)} if r and varying(r)
        else None for r in ranges
    ]
    if module.training:
        log.warning("the module is in training mode; call module.eval() first")
    shapes = None
    if any(dynamic):
        args, kwargs = pytree.tree_unflatten(samples, spec)
        by_position, by_name = pytree.tree_unflatten(dynamic, spec)
        shapes = _by_parameter(module, by_position, by_name)
    with torch.no_grad(), capturing(module) as calls:
        program = torch.export.export(module, args, kwargs or None, dynamic_shapes=shapes,
                                      strict=False)
    forget_with(program, calls)
    return program


def _by_parameter(module: torch.nn.Module, by_position: Any, by_name: Any) -> Any:
    """Dynamic shapes as export wants them: by parameter."""
    return dict(inspect.signature(module.forward).bind(*by_position, **by_name).arguments)
