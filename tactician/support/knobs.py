"""Environment knobs, each declared once.

| variable | meaning |
| --- | --- |
| ``TACTICIAN_DEBUG`` | on stderr: 1 plan summary, 2 time of each step run, 3 tactic tables, 4 graphs, 5 LLVM text |
| ``TACTICIAN_CHECK`` | 1: verify the graph after each pass |
| ``TACTICIAN_ONNX_BACKEND`` | ``engine`` (default) or ``reference``: what `onnx_backend` runs models with |
"""  # noqa: E501

from __future__ import annotations

import os


def onnx_backend() -> str:
    """What `tactician.onnx_backend` runs models with."""
    return os.environ.get("TACTICIAN_ONNX_BACKEND", "") or "engine"


def debug_level() -> int:
    """The rung of the debug ladder, 0 to 5; text that is no number counts as 1."""
    text = os.environ.get("TACTICIAN_DEBUG", "0") or "0"
    try:
        return max(0, min(5, int(text)))
    except ValueError:
        return 1
