"""Which versions programs see."""

from __future__ import annotations

import os

TACTICIAN = "0.1.0"


def tensorrt() -> str:
    """TensorRT's version whose behaviour programs see: ``TACTICIAN_TRT_VERSION`` or 10.13.0."""
    text = os.environ.get("TACTICIAN_TRT_VERSION", "").strip() or "10.13.0"
    return text if text.count(".") >= 2 else text + ".0" * (2 - text.count("."))


def major() -> int:
    """The first number of `tensorrt`; 10 if it is none."""
    first = tensorrt().split(".")[0]
    return int(first) if first.isdigit() else 10
