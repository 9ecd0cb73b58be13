"""Operators that a registered plugin, or a program's own maker of plugins, implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir.graph import Value
from ...network.plugins.registry import get_plugin_registry
from ..onnx import plugins as base
from ..onnx.errors import NodeProblem
from .context import Context
from .node import TfNode

_HIDDEN = ("T", "dtype", "N", "Tout")


class PluginFinder:
    """Finds plugin creators for nodes: by operator, without a leading underscore (UFF's mark).

    Args:
        namespace: Namespace that creators are looked for in.
        make: ``make(node)`` gives a plugin object or None; asked before the registry.
    """

    def __init__(self, namespace: str = "", make: Callable[[TfNode], Any] | None = None):
        self.namespace = namespace
        self.make = make

    def find(self, n: TfNode) -> Any:
        """What makes the node's plugin, or None."""
        if self.make is not None:
            plugin = self.make(n)
            if plugin is not None:
                return _Made(plugin)
        registry = get_plugin_registry()
        for name in dict.fromkeys((n.op, n.op.removeprefix("_"))):
            creator = registry.get_creator(name, "1", self.namespace)
            if creator is not None:
                return creator
        return None

    def call(self, c: Context, n: TfNode, creator: Any) -> list[Value]:
        """Makes the plugin from the node's attributes and adds its layer.

        Raises:
            NodeProblem: If there is no plugin, or the layer is invalid.
        """
        network = c.state.network
        if network is None or c.graph is not network.graph:
            raise NodeProblem("plugins work in the network itself, not inside of loops, "
                              "conditionals or a graph without a network")
        view: Any = _OnnxLike(n)
        plugin = creator.plugin if isinstance(creator, _Made) else base._create(creator, view)
        if plugin is None:
            raise NodeProblem(f"the creator of plugin {n.op!r} gave no plugin for its attributes "
                              f"{', '.join(view.attributes) or '(none)'}")
        return base._add_layer(c, view, plugin)


class _Made:
    """A plugin that a factory has made already."""

    def __init__(self, plugin: Any):
        self.plugin = plugin


class _OnnxLike:
    """A node as the ONNX plugin code wants it."""

    def __init__(self, n: TfNode):
        self.node = n
        self.name, self.op = n.name, n.op
        self.attributes = {k: None for k in sorted(n.proto.attr)
                           if not k.startswith("_") and k not in _HIDDEN}

    def attr(self, name: str) -> Any:
        return self.node.attr(name)

    def ignore(self, *names: str) -> None:
        """Nothing: attributes of plugins are all handed on."""

    def present(self) -> list[Value]:
        return self.node.all()
