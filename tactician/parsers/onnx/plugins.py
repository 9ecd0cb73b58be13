"""ONNX operators that a registered plugin implements."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir.graph import Value
from .context import Context
from .node import OnnxNode


class PluginFinder:
    """Finds plugin creators for ONNX nodes.

    Args:
        override: Whether plugins go before importers (``ENABLE_PLUGIN_OVERRIDE``).
    """

    def __init__(self, override: bool = False):
        self.override = override

    def creator(self, name: str, version: str = "1", namespace: str = "") -> Any:
        """The creator of a plugin, or None."""
        try:
            from ...network.plugins.registry import get_plugin_registry
        except ImportError:
            return None
        return get_plugin_registry().get_creator(name, version, namespace)

    def find(self, proto: Any) -> Any:
        """The creator that a node means: by operator name, and the attributes
        ``plugin_version`` and ``plugin_namespace`` where it has them."""
        texts = {a.name: a.s.decode() for a in proto.attribute if a.name.startswith("plugin_")}
        version = texts.get("plugin_version", "1")
        namespace = texts.get("plugin_namespace", "")
        return self.creator(proto.op_type, version, namespace)

    def call(self, c: Context, n: OnnxNode, creator: Any) -> list[Value]:
        """Makes the plugin from the node's attributes and adds its layer."""
        raise NotImplementedError


def field_data(value: Any) -> Any:
    """An attribute as a plugin field's array."""
    return np.asarray(value)
