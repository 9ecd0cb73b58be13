"""The beginning and the end of a plugin's use in a context."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ...ir.graph import Node
from ...ops import OpError
from ..interfaces import IGpuAllocator
from .interfaces import IPluginResourceContext


class HostAllocator(IGpuAllocator):
    """Host memory for plugins that ask their context's allocator."""

    def __init__(self) -> None:
        self._blocks: dict[int, Any] = {}

    def allocate(self, size: int, alignment: int, flags: int) -> int | None:
        """Address of ``size`` bytes."""
        alignment = max(alignment, 1)
        block = np.empty(size + alignment, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % alignment
        self._blocks[address] = block
        return int(address)

    def deallocate(self, memory: int) -> bool:
        """Frees a block."""
        return self._blocks.pop(memory, None) is not None


def resource_context(on_device: bool) -> IPluginResourceContext:
    """What a version 3 plugin is given when it is attached. On devices it allocates itself."""
    return IPluginResourceContext(None if on_device else HostAllocator())


def begin(plugin: Any, node: Node, call: object, on_device: bool) -> None:
    """Gets a version 1 or 2 plugin ready to run; it is told when ``call`` is gone.

    Raises:
        OpError: If the plugin says that it failed.
    """
    status = plugin.initialize()
    if status:
        raise OpError(f"{node.describe()}: the plugin's initialize returned {status}")
    if hasattr(plugin, "attach_to_context"):
        plugin.attach_to_context(None, None, None if on_device else HostAllocator())
    weakref.finalize(call, _end, plugin).atexit = False


def _end(plugin: Any) -> None:
    for method in ("detach_from_context", "terminate"):
        getattr(plugin, method, lambda: None)()
