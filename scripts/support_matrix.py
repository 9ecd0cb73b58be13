"""Writes docs/onnx-operators.md from the importer table: ``python scripts/support_matrix.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tactician.parsers.onnx.support import page

    (ROOT / "docs" / "onnx-operators.md").write_text(page())


if __name__ == "__main__":
    main()
