"""``import uff``: see `tactician.uff`."""

from tactician.uff import from_tensorflow, from_tensorflow_frozen_model

__version__ = "0.6.9"
__all__ = ["from_tensorflow", "from_tensorflow_frozen_model"]
