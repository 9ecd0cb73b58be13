"""Which operators are supported, as the generated page docs/onnx-operators.md lists them."""

from __future__ import annotations

from typing import Any

from .table import table


def supports(op: str) -> bool:
    """Whether an operator of any known domain has an importer or a function body."""
    return any(name == op for _, name in table()) or any(s.name == op for s in _functions())


def _functions() -> list[Any]:
    """Newest schemas of ONNX operators that are defined by a function body."""
    from onnx import defs

    return [s for s in defs.get_all_schemas()
            if s.domain in ("", "ai.onnx.preview")
            and (s.has_function or s.has_context_dependent_function)]
