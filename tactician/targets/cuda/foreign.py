"""Kernels that others compiled: a plugin's machine code or PTX, loaded and launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .driver import CudaDriver, Driver, DriverError, _do


class ForeignKernels:
    """What loads and launches them.

    Args:
        driver: The device.
    """

    def __init__(self, driver: Driver):
        self._driver = driver

    def load_image(self, image: bytes, name: str, shared: int = 0) -> Any:
        """A kernel from PTX or a cubin, with room for ``shared`` bytes of shared memory.

        Raises:
            DriverError: If it can't be loaded, or there is no GPU.
        """
        driver = self._driver
        if not isinstance(driver, CudaDriver):
            raise DriverError(f"kernel {name!r} is compiled for a GPU, and there is none here")
        driver.enter()
        d = driver._d
        data = image if image.startswith(b"\x7fELF") else image.rstrip(b"\0") + b"\0"
        module = _do(f"loading the code of {name}", d.cuModuleLoadData(data))
        function = _do(f"finding {name} in its code", d.cuModuleGetFunction(module, name.encode()))
        if shared > 48 << 10:
            which = d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _do(f"{shared} bytes of shared memory for {name}",
                d.cuFuncSetAttribute(function, which, shared))
        return function, module, data

    def launch_function(self, function: Any, grid: Sequence[int], block: Sequence[int],
                        shared: int, params: Sequence[Any], stream: int = 0) -> None:
        """Queues a kernel that `load_image` gave, with numpy scalars as parameters."""
        driver = self._driver
        assert isinstance(driver, CudaDriver)
        if 0 in grid:
            return
        held = [np.asarray(p) for p in params]
        table = np.array([h.ctypes.data for h in held], np.uint64)
        _do(f"launching a kernel on a grid of {tuple(grid)}", driver._d.cuLaunchKernel(
            function[0], *grid, *block, shared, driver._of(stream), int(table.ctypes.data), 0))
