"""``import pycuda.driver``: see `tactician.driver`."""

from tactician.driver import *  # noqa: F403
from tactician.driver import __all__ as __all__
