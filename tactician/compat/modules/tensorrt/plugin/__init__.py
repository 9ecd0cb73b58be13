"""``import tensorrt.plugin as trtp``: quick plugins."""

from tactician.plugin import *  # noqa: F403
from tactician.plugin import __all__ as __all__
