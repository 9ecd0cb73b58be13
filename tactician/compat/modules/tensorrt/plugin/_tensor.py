"""Where TensorRT keeps the descriptors of quick plugins."""

from tactician.plugin import *  # noqa: F403
