"""docs/torch-operators.md is what the table says."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_the_page_is_fresh() -> None:
    from tactician.torch.support import page

    path = Path(__file__).resolve().parents[2] / "docs" / "torch-operators.md"
    samples = json.loads((Path(__file__).parent / "samples.json").read_text())
    assert path.read_text() == page(samples), "run python scripts/support_matrix.py"
