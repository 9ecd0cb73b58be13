"""The importer table: which function translates which ATen overload.

An importer takes the context and the overload's own arguments, tensors as graph values, symbolic
integers as `Dim`s, and returns the values of the overload's results::

    @aten_op(aten.relu.default)
    def relu(c: Context, x: Value) -> Value:
        return c.activation(x, "relu")

Results are cast to the element type that torch computed for them, and their shapes are compared
with torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from ..parsers.onnx.errors import ImportProblem

_Fn = TypeVar("_Fn", bound=Callable[..., Any])


class AtenProblem(ImportProblem):
    """Arguments of an overload that tactician can't translate."""


@dataclass(frozen=True)
class AtenOp:
    """One row of the table.

    Attributes:
        target: The overload, e.g. ``torch.ops.aten.relu.default``.
        fn: The function that builds it.
        family: File of importers it belongs to.
        note: Limits worth telling, for the support table.
    """

    target: Any
    fn: Callable[..., Any]
    family: str
    note: str = ""


_TABLE: dict[Any, AtenOp] = {}
_COMPLEX: dict[Any, AtenOp] = {}
_loaded = False


def aten_op(*targets: Any, note: str = "") -> Callable[[_Fn], _Fn]:
    """Registers the decorated function for overloads of the same treatment.

    Raises:
        ValueError: If an overload has an importer already.
    """

    return _registers(_TABLE, targets, note)


def complex_op(*targets: Any, note: str = "") -> Callable[[_Fn], _Fn]:
    """Registers the decorated function for overloads where an argument or result is complex.

    Raises:
        ValueError: If an overload has such an importer already.
    """
    return _registers(_COMPLEX, targets, note)


def _registers(rows: dict[Any, AtenOp], targets: tuple[Any, ...], note: str
               ) -> Callable[[_Fn], _Fn]:
    def register(fn: _Fn) -> _Fn:
        for target in targets:
            if target in rows:
                raise ValueError(f"{target} has two importers")
            rows[target] = AtenOp(target, fn, fn.__module__.rpartition(".")[2], note)
        return fn

    return register


def complex_table() -> dict[Any, AtenOp]:
    """Every registration for complex numbers, by overload."""
    table()
    return _COMPLEX


def table() -> dict[Any, AtenOp]:
    """Every registration, by overload."""
    global _loaded
    if not _loaded:
        from . import importers

        for module in iter_modules(importers.__path__):
            import_module(f"{importers.__name__}.{module.name}")
        _loaded = True
    return _TABLE
