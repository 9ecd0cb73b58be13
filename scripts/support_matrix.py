"""Writes the pages of docs/ about ONNX, Caffe, TensorFlow, UFF and torch operators from the
importer tables: ``python scripts/support_matrix.py``. The last needs torch."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tactician.parsers.caffe import support as caffe
    from tactician.parsers.onnx import support as onnx
    from tactician.parsers.tensorflow import support as tensorflow
    from tactician.parsers.uff import support as uff

    (ROOT / "docs" / "onnx-operators.md").write_text(onnx.page())
    (ROOT / "docs" / "caffe.md").write_text(caffe.page())
    (ROOT / "docs" / "tensorflow.md").write_text(tensorflow.page())
    (ROOT / "docs" / "uff.md").write_text(uff.page())
    try:
        from tactician.torch import support as torch
    except ModuleNotFoundError as e:
        print(f"docs/torch-operators.md is left as it is: {e}")
        return
    (ROOT / "docs" / "torch-operators.md").write_text(torch.page())


if __name__ == "__main__":
    main()
