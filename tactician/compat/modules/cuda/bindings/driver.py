"""``import cuda.bindings.driver``: see `tactician.compat.cudriver`."""

from tactician.compat.cudriver import *  # noqa: F403
from tactician.compat.cudriver import __all__ as __all__
