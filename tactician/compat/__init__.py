"""Lets programs that were written for TensorRT run as they are.

After `install`, ``import tensorrt``, ``pycuda.driver``, ``cuda.bindings.runtime`` and the like give
tactician's; ``python -m tactician.compat PROGRAM [ARGS]`` does that and runs a program. What is
really installed is left alone unless asked otherwise; docs/compat.md says what works.
"""

from .finder import install, is_installed, uninstall

__all__ = ["install", "is_installed", "uninstall"]
