"""Compiled kernels of quick plugins (``aot_impl``): a plugin's function gives machine code or PTX
and says how to launch it; this calls it with a device's addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ops import OpError
from .quick_types import SymInt8, SymInt16, _dim

_WIDTHS = {SymInt8: np.int8, SymInt16: np.int16}
_HIDDEN = 2  # pointers that Triton's kernels take after their arguments: scratch, profile


def _number(x: Any, what: str) -> int:
    d = _dim(x)
    if not isinstance(d, int):
        raise OpError(f"{what} of a compiled kernel is {d}, which is no number for these shapes")
    return d


class Compiled:
    """A kernel made ready on a device, for one set of shapes.

    Args:
        made: What the plugin's function returned: name, code, launch parameters, extra arguments.
        device: The device: ``load_image`` and ``launch_function``.

    Raises:
        OpError: If the function returned something else.
    """

    def __init__(self, made: Any, device: Any):
        if not isinstance(made, (tuple, list)) or len(made) != 4:
            raise OpError("aot_impl must return (kernel name, code, KernelLaunchParams, SymExprs);"
                          f" got {type(made).__name__}")
        name, image, launch, extra = made
        self._device = device
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        code = image.encode() if isinstance(image, str) else bytes(image)
        self.grid, self.block = (
            tuple(_number(getattr(launch, f"{what}_{axis}"), f"{what}_{axis}") for axis in "xyz")
            for what in ("grid", "block"))
        self.shared = _number(launch.shared_mem, "shared_mem")
        self.extra = [_WIDTHS.get(type(e), np.int32)(_number(e, "an extra argument"))
                      for e in extra]
        self._function = device.load_image(code, self.name, self.shared)

    def launch(self, inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        """Queues the kernel: inputs' addresses, extra arguments, outputs' addresses."""
        params = [*map(np.uint64, inputs), *self.extra, *map(np.uint64, outputs),
                  *[np.uint64(0)] * _HIDDEN]
        self._device.launch_function(self._function, self.grid, self.block, self.shared, params,
                                     stream)
