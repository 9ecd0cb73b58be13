"""The CUDA target: Triton kernels compiled ahead of time, cuDNN and cuBLASLt, CUDA graphs.

Nothing here imports Triton, torch or CUDA's bindings before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

# One module per group of tactics; `register_tactic` in them makes these known.
TACTICS = (
    "loops", "gemm", "conv", "stem", "stream", "stream_pair", "pair", "norm_gemm", "depthwise",
    "attention", "recurrence", "topk", "cumulative", "scatter", "selection", "unique", "nms",
    "lengths",
    "cudnn", "cudnn_attention", "cublaslt",
)


def load_tactics() -> None:
    """Makes the target's tactics known to the autotuner."""
    for name in TACTICS:
        if find_spec(f"{__name__}.{name}") is not None:
            import_module(f"{__name__}.{name}")
