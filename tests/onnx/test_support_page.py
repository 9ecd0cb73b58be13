"""docs/onnx-operators.md says what the importer table says."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tactician.parsers.onnx import support
from tactician.parsers.onnx.functions import schema_of
from tactician.parsers.onnx.table import find, importer, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx-operators.md"


def test_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    if f"to {onnx.defs.onnx_opset_version()};" not in text:
        pytest.skip("the page was written for another release of onnx")
    assert text == support.page(), "run python scripts/support_matrix.py"


def test_supported_operators_are_complete_from_opset_7() -> None:
    supported = {name for name, _, how, _ in support.matrix() if how != "no"}
    gaps = []
    for name in sorted(supported):
        for opset in range(7, onnx.defs.onnx_opset_version() + 1):
            schema = schema_of(name, opset, "")
            if schema is None or schema.deprecated or find("", name, opset):
                continue
            if not (schema.has_function or schema.has_context_dependent_function):
                gaps.append((name, opset))
    assert not gaps


def test_registrations_must_not_overlap() -> None:
    table()
    with pytest.raises(ValueError, match="overlap"):
        importer("Relu", since=9)(lambda c, n: n[0])
