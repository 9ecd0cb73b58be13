"""pycuda's driver names for tactician: ``import tactician.driver as cuda``."""

from ..runtime.driver import *  # noqa: F403
from ..runtime.driver import __all__ as __all__
