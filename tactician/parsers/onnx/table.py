"""The importer table: which function translates which ONNX operator, and since which opset.

An importer takes the context and the node and returns the node's outputs::

    @importer("Relu", since=6)
    def relu(c: Context, n: OnnxNode) -> Result:
        return c.op("activation", n[0], fn="relu")

Each opset variant of an operator is a registration of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

from ...ir.graph import Value

if TYPE_CHECKING:
    from .context import Context
    from .node import OnnxNode

Result = Value | Sequence[Value | None]
ImporterFn = Callable[["Context", "OnnxNode"], Result]
_Fn = TypeVar("_Fn", bound=ImporterFn)

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Importer:
    """One row of the table.

    Attributes:
        op: ONNX operator.
        domain: Operator set; ``""`` is ai.onnx.
        since, until: First and last opset it understands (None: no last one).
        fn: The function that builds the node.
        note: Limits worth telling, for the support matrix.
    """

    op: str
    domain: str
    since: int
    until: int | None
    fn: ImporterFn
    note: str = ""

    def understands(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset <= self.until)


_TABLE: dict[tuple[str, str], list[Importer]] = {}
_loaded = False


def importer(
    *ops: str, since: int = 1, until: int | None = None, domain: str = "", note: str = ""
) -> Callable[[_Fn], _Fn]:
    """Registers the decorated function for ONNX operators of the same treatment.

    Raises:
        ValueError: If an opset of an operator is covered twice.
    """

    def register(fn: _Fn) -> _Fn:
        for op in ops:
            rows = _TABLE.setdefault((domain, op), [])
            new = Importer(op, domain, since, until, fn, note)
            for row in rows:
                if row.understands(since) or new.understands(row.since):
                    raise ValueError(f"importers of {op} overlap at opset {max(since, row.since)}")
            rows.append(new)
            rows.sort(key=lambda r: r.since)
        return fn

    return register


def table() -> dict[tuple[str, str], list[Importer]]:
    """Every registration, by (domain, op)."""
    global _loaded
    if not _loaded:
        from . import importers

        for module in iter_modules(importers.__path__):
            import_module(f"{importers.__name__}.{module.name}")
        _loaded = True
    return _TABLE


def find(domain: str, op: str, opset: int) -> Importer | None:
    """The importer of an operator at an opset version, or None."""
    rows = table().get((domain, op), [])
    return next((r for r in rows if r.understands(opset)), None)


def versions(domain: str, op: str) -> list[str]:
    """The opset ranges with an importer, as text."""
    rows = table().get((domain, op), [])
    return [f"{r.since}+" if r.until is None else f"{r.since}-{r.until}" for r in rows]
