"""Writes docs/onnx-operators.md and docs/caffe.md from the importer tables:
``python scripts/support_matrix.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tactician.parsers.caffe import support as caffe
    from tactician.parsers.onnx import support as onnx

    (ROOT / "docs" / "onnx-operators.md").write_text(onnx.page())
    (ROOT / "docs" / "caffe.md").write_text(caffe.page())


if __name__ == "__main__":
    main()
