"""``import cuda.bindings.runtime``: see `tactician.compat.cudart`."""

from tactician.compat.cudart import *  # noqa: F403
from tactician.compat.cudart import __all__ as __all__
