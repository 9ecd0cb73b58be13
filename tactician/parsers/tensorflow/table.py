"""The importer table: which function translates which TensorFlow operator.

An importer takes the context and the node and returns the node's outputs::

    @importer("Relu")
    def relu(c: Context, n: TfNode) -> Result:
        return c.activation(n[0], "relu")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

Result = Any  # a Value, a TensorArray's contents, or a sequence of these
ImporterFn = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Importer:
    """One row of the table.

    Attributes:
        op: TensorFlow operator.
        fn: The function that builds the node.
        outputs: Names of the outputs, by which function bodies refer to them; empty: one name,
            with numbered outputs.
        note: Limits worth telling, for the documentation.
    """

    op: str
    fn: ImporterFn
    outputs: tuple[str, ...] = ()
    note: str = ""


_TABLE: dict[str, Importer] = {}
_loaded = False


def importer(*ops: str, outputs: str = "", note: str = "") -> Callable[[ImporterFn], ImporterFn]:
    """Registers the decorated function for operators of the same treatment.

    Args:
        ops: The operators.
        outputs: Names of the outputs, separated by blanks, if there are several.
        note: Limits worth telling.

    Raises:
        ValueError: If an operator has an importer already.
    """

    def register(fn: ImporterFn) -> ImporterFn:
        for op in ops:
            if op in _TABLE:
                raise ValueError(f"{op} has two importers")
            _TABLE[op] = Importer(op, fn, tuple(outputs.split()), note)
        return fn

    return register


def table() -> dict[str, Importer]:
    """Every registration, by operator."""
    global _loaded
    if not _loaded:
        from . import importers

        for module in iter_modules(importers.__path__):
            import_module(f"{importers.__name__}.{module.name}")
        _loaded = True
    return _TABLE


def find(op: str) -> Importer | None:
    """The importer of an operator, or None."""
    return table().get(op)


def output_index(op: str, name: str, number: int, arguments: Sequence[str] = ()) -> int:
    """Which output ``name:number`` means in a function body."""
    row = find(op)
    names = row.outputs if row is not None and row.outputs else tuple(arguments)
    return names.index(name) + number if name in names else number
