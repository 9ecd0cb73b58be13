"""ONNX operators that a registered plugin implements."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir.graph import Value
from ...network.enums_build import PluginFieldType, TensorRTPhase
from ...network.plugins import runner
from ...network.plugins.fields import PluginField, PluginFieldCollection_
from ...network.plugins.interfaces import IPluginCreatorV3One, IPluginCreatorV3Quick
from ...network.plugins.registry import get_plugin_registry
from ...ops import registry
from .context import Context
from .errors import NodeProblem, Unsupported
from .node import OnnxNode

_SELECTORS = ("plugin_version", "plugin_namespace")


class PluginFinder:
    """Finds plugin creators for ONNX nodes.

    Args:
        override: Whether plugins go before importers (``ENABLE_PLUGIN_OVERRIDE``).
    """

    def __init__(self, override: bool = False):
        self.override = override

    def creator(self, name: str, version: str = "1", namespace: str = "") -> Any:
        """The creator of a plugin, or None."""
        return get_plugin_registry().get_creator(name, version, namespace)

    def find(self, proto: Any) -> Any:
        """The creator that a node means: by operator name, and the attributes
        ``plugin_version`` and ``plugin_namespace`` where it has them."""
        texts = {a.name: a.s.decode() for a in proto.attribute if a.name in _SELECTORS}
        return self.creator(proto.op_type, texts.get("plugin_version", "1"),
                            texts.get("plugin_namespace", ""))

    def call(self, c: Context, n: OnnxNode, creator: Any) -> list[Value]:
        """Makes the plugin from the node's attributes and adds its layer.

        Raises:
            NodeProblem: If the creator gives no plugin, or the layer is invalid.
        """
        plugin = _create(creator, n)
        if plugin is None:
            raise NodeProblem(f"the creator of plugin {n.op!r} gave no plugin for its attributes "
                              f"{', '.join(n.attributes) or '(none)'}")
        network = c.state.network
        if network is not None and c.graph is network.graph:
            return _add_layer(c, n, plugin)
        name, version, namespace = runner.identity(plugin)
        node = registry.emit(c.graph, "plugin", n.present(), source=c.source, plugin=name,
                             version=version, namespace=namespace,
                             outputs=runner.count_outputs(plugin),
                             meta={"plugin": plugin, "plugin_inputs": len(n.inputs)})
        c.emitted.append(("plugin", node))
        return list(node.outputs)


def _add_layer(c: Context, n: OnnxNode, plugin: Any) -> list[Value]:
    network = c.state.network
    tensors = [network._tensor(v) for v in n.present()]
    if runner.is_v3(plugin):
        layer = network.add_plugin_v3(tensors, [], plugin)
    else:
        layer = network.add_plugin_v2(tensors, plugin)
    if layer is None or layer._errors():
        raise NodeProblem("; ".join(layer._errors()) if layer else "the network refused it")
    for node in layer._nodes:
        node.source = c.source
    c.emitted.append(("plugin", layer))
    return list(layer._outputs)


def _create(creator: Any, n: OnnxNode) -> Any:
    n.ignore(*_SELECTORS)
    fields = PluginFieldCollection_(
        [_field(name, n.attr(name)) for name in n.attributes if name not in _SELECTORS])
    if isinstance(creator, IPluginCreatorV3Quick):
        from ...network.enums_build import QuickPluginCreationRequest

        return creator.create_plugin(n.name, creator.plugin_namespace, fields,
                                     TensorRTPhase.BUILD, QuickPluginCreationRequest.UNKNOWN)
    if isinstance(creator, IPluginCreatorV3One):
        return creator.create_plugin(n.name, fields, TensorRTPhase.BUILD)
    return creator.create_plugin(n.name, fields)


def _field(name: str, value: Any) -> PluginField:
    """An attribute as a plugin field, with TensorRT's types: 32-bit floats and integers, text."""
    if isinstance(value, str):
        return PluginField(name, value.encode(), PluginFieldType.CHAR)
    if isinstance(value, np.ndarray):
        return PluginField(name, value)
    if isinstance(value, (int, float)):
        value = (value,)
    if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        fits = all(-(2**31) <= v < 2**31 for v in value)
        return PluginField(name, np.asarray(value, np.int32 if fits else np.int64))
    if isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value):
        return PluginField(name, np.asarray(value, np.float32))
    raise Unsupported(f"attribute {name!r} cannot be a plugin field", "UNSUPPORTED_NODE_ATTR")
