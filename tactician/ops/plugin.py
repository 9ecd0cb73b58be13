"""The op that calls a plugin. What a plugin is, the network layer above knows; it registers a
`PluginRunner` here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..ir.graph import Node, TensorType
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True, eq=False)
class PluginAttrs:
    """Which plugin, and its state.

    Attributes:
        plugin, version, namespace: The creator's name, version and namespace.
        outputs: How many outputs the plugin has.
        data: The serialized plugin (u8), or what its creator needs to make it.
    """

    plugin: str = ""
    version: str = "1"
    namespace: str = ""
    outputs: int = 1
    data: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.uint8))


class PluginRunner(Protocol):
    """What finds plugins and calls them."""

    def infer(self, node: Node) -> Sequence[TensorType]:
        """Types of the outputs of a plugin node.

        Raises:
            OpError: If there is no such plugin or it refuses its inputs.
        """
        ...

    def run(self, node: Node, inputs: Sequence[Any]) -> Sequence[Any]:
        """Output arrays for input arrays."""
        ...


_runner: PluginRunner | None = None


def set_plugin_runner(runner: PluginRunner | None) -> None:
    """Registers what finds and calls plugins, for the whole process."""
    global _runner
    _runner = runner


def _need_runner(node: Node) -> PluginRunner:
    if _runner is None:
        a = node.attrs
        raise OpError(f"plugin {a.namespace}::{a.plugin} version {a.version} cannot be called: "
                      "no plugin registry is loaded; import tactician's network package")
    return _runner


@register
class Plugin(Op):
    """Calls a registered plugin."""

    name = "plugin"
    kind = Kind.OPAQUE
    Attrs = PluginAttrs
    pure = False

    def num_outputs(self, node: Node) -> int:
        return int(node.attrs.outputs)

    def infer(self, node: Node) -> Sequence[TensorType]:
        return _need_runner(node).infer(node)

    def reference(self, node: Node, *inputs: Any) -> Any:
        return tuple(_need_runner(node).run(node, inputs))
