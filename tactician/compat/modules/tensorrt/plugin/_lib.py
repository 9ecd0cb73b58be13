"""Where TensorRT keeps the decorators; programs look for it to learn that there are any."""

from tactician.plugin import *  # noqa: F403
