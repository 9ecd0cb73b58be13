"""Layers that a program's plugin factories make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.graph import Value
from ...network.values import Weights
from .errors import LayerProblem
from .node import CaffeLayer

if TYPE_CHECKING:
    from .context import Context


class ICaffePluginFactory:
    """Makes plugins for layers (to version 7). Subclass it and give it to the parser."""

    def is_plugin(self, layer_name: str) -> bool:
        """Whether a layer is a plugin."""
        raise NotImplementedError(f"{type(self).__name__} must implement is_plugin(layer_name)")

    def create_plugin(self, layer_name: str, weights: Any) -> Any:
        """The `IPlugin` of a layer; ``weights`` is a list of `Weights`, one for each blob."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement create_plugin(layer_name, weights)")


class ICaffePluginFactoryExt(ICaffePluginFactory):
    """Makes `IPluginExt` plugins for layers (to version 7)."""

    def get_version(self) -> int:
        """Version of the interface."""
        return 1

    def is_plugin_ext(self, layer_name: str) -> bool:
        """Whether a layer is an `IPluginExt`."""
        raise NotImplementedError(f"{type(self).__name__} must implement is_plugin_ext(layer_name)")


class ICaffePluginFactoryV2:
    """Makes version 2 plugins for layers. Subclass it and give it to the parser."""

    def is_plugin_v2(self, layer_name: str) -> bool:
        """Whether a layer is a plugin."""
        raise NotImplementedError(f"{type(self).__name__} must implement is_plugin_v2(layer_name)")

    def create_plugin(self, layer_name: str, weights: Any) -> Any:
        """The `IPluginV2` of a layer; ``weights`` is a list of `Weights`, one for each blob."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement create_plugin(layer_name, weights)")


class PluginFactories:
    """The factories a parser was given; the newest interface is asked first.

    Args:
        v1, ext, v2: Factories or None.
        namespace: Where plugins that are registered by layer type are looked for.
    """

    def __init__(self, v1: Any = None, ext: Any = None, v2: Any = None, namespace: str = ""):
        self.v1, self.ext, self.v2, self.namespace = v1, ext, v2, namespace

    def find(self, n: CaffeLayer) -> tuple[str, Any] | None:
        """(kind, factory) of the factory that claims a layer, or None."""
        if self.v2 is not None and self.v2.is_plugin_v2(n.name):
            return "v2", self.v2
        if self.ext is not None and self.ext.is_plugin_ext(n.name):
            return "ext", self.ext
        if self.v1 is not None and self.v1.is_plugin(n.name):
            return "v1", self.v1
        return None

    def add(self, c: Context, n: CaffeLayer, found: tuple[str, Any]) -> list[Value]:
        """Makes the plugin and adds its layer.

        Raises:
            LayerProblem: If the factory gives none, or the layer is invalid.
        """
        kind, factory = found
        weights = [Weights(np.ascontiguousarray(b, np.float32).reshape(-1))
                   for b in n.given or ()]
        plugin = factory.create_plugin(n.name, weights)
        if plugin is None:
            raise LayerProblem(f"{type(factory).__name__} claims it but made no plugin")
        if self.namespace and not getattr(plugin, "plugin_namespace", ""):
            plugin.plugin_namespace = self.namespace
        net = c.network
        tensors = [net._tensor(v) for v in n.bottoms]
        layer: Any
        if kind == "v2":
            layer = net.add_plugin_v2(tensors, plugin)
        elif kind == "ext":
            layer = net.add_plugin_ext(tensors, plugin)
        else:
            layer = net.add_plugin(tensors, plugin)
        problems = ["the network refused it; the log says why"] if layer is None \
            else layer._errors()
        if problems:
            raise LayerProblem("; ".join(problems))
        c.added.append(("plugin", layer))
        return list(layer._outputs)
