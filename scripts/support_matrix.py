"""Writes the pages of docs/ about ONNX, Caffe, TensorFlow, UFF and torch operators from the
importer tables: ``python scripts/support_matrix.py``. The last needs torch."""

from __future__ import annotations

import json
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
    held = ROOT / "tests" / "pytorch" / "samples.json"  # test_torch_samples.py writes it
    samples = json.loads(held.read_text()) if held.exists() else None
    (ROOT / "docs" / "torch-operators.md").write_text(torch.page(samples))


if __name__ == "__main__":
    main()
