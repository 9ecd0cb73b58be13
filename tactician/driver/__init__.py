"""pycuda's driver names for tactician: ``import tactician.driver as cuda``.

Where a GPU is the default device this is its driver, elsewhere host memory stands for a device's.
"""

from ..targets.cuda.present import gpu_is_default as _gpu_is_default

if _gpu_is_default():
    from ..runtime.driver_gpu import *  # noqa: F403
    from ..runtime.driver_gpu import __all__ as __all__
else:
    from ..runtime.driver import *  # noqa: F403
    from ..runtime.driver import __all__ as __all__
