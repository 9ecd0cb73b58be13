"""``import cuda.bindings.nvrtc``: see `tactician.compat.nvrtc`."""

from tactician.compat.nvrtc import *  # noqa: F403
from tactician.compat.nvrtc import __all__ as __all__
