"""Layers that call plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import LayerType, NetworkDefinitionCreationFlag
from ..layer import Emitter, ILayer
from ..plugins import runner
from ..tensor import ITensor


class _PluginLayer(ILayer):
    @property
    def plugin(self) -> Any:
        """The plugin."""
        return self._state["plugin"]

    def _emit(self, e: Emitter) -> Sequence[Value]:
        plugin = self._state["plugin"]
        inputs = [self._x(i) for i in range(len(self._inputs))]
        name, version, namespace = runner.identity(plugin)
        k = len(e.nodes)
        outputs = runner.count_outputs(plugin, inputs)
        attrs: dict[str, Any] = {"plugin": name, "version": version, "namespace": namespace,
                                 "outputs": outputs}
        meta: dict[str, Any] = {"plugin": plugin, "plugin_inputs": self._state["count"]}
        if self._net._off:
            meta["implicit_batch"] = 1
        if k < len(e.old) and e.old[k].op == "plugin":
            e.old[k].meta.update(meta)
            return e.op("plugin", *inputs, **attrs).outputs
        return e.op("plugin", *inputs, meta=meta, **attrs).outputs

    def _max_inputs(self) -> int:
        return len(self._inputs) - 1


class IPluginLayer(_PluginLayer):
    """Calls an `IPlugin` (version 7).

    Attributes:
        plugin: The plugin.
    """

    _layer_type = LayerType.PLUGIN
    _title = "Plugin"


class IPluginV2Layer(_PluginLayer):
    """Calls an `IPluginV2`.

    Attributes:
        plugin: The plugin.
    """

    _layer_type = LayerType.PLUGIN_V2
    _title = "PluginV2"


class IPluginV3Layer(_PluginLayer):
    """Calls an `IPluginV3`.

    Attributes:
        plugin: The plugin.
    """

    _layer_type = LayerType.PLUGIN_V3
    _title = "PluginV3"


class PluginAdders(NetworkCore):
    """``add_*`` methods of plugin layers."""

    def _plugin(self, cls: type[ILayer], tensors: Sequence[ITensor], plugin: Any,
                count: int) -> Any:
        if plugin is None:
            return self._error(f"add [{cls._title}]: the plugin is None; did its creator fail?")
        try:
            runner.identity(plugin)
        except (OpError, AttributeError) as e:
            return self._error(f"add [{cls._title}]: {type(plugin).__name__} is not a plugin: {e}")
        return self._add(cls, tensors, plugin=plugin, count=count)

    def add_plugin_v2(self, inputs: Sequence[ITensor], plugin: Any) -> IPluginV2Layer:
        """Adds a call of a version 2 plugin."""
        return self._plugin(IPluginV2Layer, list(inputs), plugin, len(list(inputs)))

    def add_plugin_v3(self, inputs: Sequence[ITensor], shape_inputs: Sequence[ITensor],
                      plugin: Any) -> IPluginV3Layer:
        """Adds a call of a version 3 plugin; ``shape_inputs`` are shape tensors it reads while
        shapes are computed."""
        return self._plugin(IPluginV3Layer, [*inputs, *shape_inputs], plugin, len(list(inputs)))

    def add_plugin(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a plugin: ``(inputs, plugin)`` as up to version 7, or a quick plugin as a tuple
        ``(inputs, shape_inputs, plugin)``, with ``aot=True`` for its compiled kernel. Without
        ``aot`` the network's flag ``PREFER_AOT_PYTHON_PLUGINS`` decides."""
        if len(args) == 2 and isinstance(args[-1], bool):
            kwargs["aot"], args = args[-1], args[:-1]
        if "inputs" in kwargs or (len(args) == 2 and isinstance(args[0], (list, tuple))):
            inputs: Any = kwargs.get("inputs", args[0] if args else None)
            plugin = kwargs.get("plugin", args[-1])
            if runner.is_v3(plugin):
                return self.add_plugin_v3(inputs, [], plugin)
            return self._plugin(IPluginLayer, list(inputs), plugin, len(list(inputs)))
        found = kwargs.get("tuple", kwargs.get("func", args[0] if args else None))
        if callable(found):
            found = found()
        aot = kwargs.get("aot")
        if aot is None:
            aot = self.get_flag(NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
        if isinstance(found, tuple) and aot and hasattr(found[-1], "aot"):
            found[-1].aot = True
        if isinstance(found, tuple) and len(found) == 3:
            return self.add_plugin_v3(*found)
        if isinstance(found, tuple) and len(found) == 2:
            return self.add_plugin_v3(found[0], [], found[1])
        raise TypeError("add_plugin takes (inputs, plugin), or a tuple (inputs, shape_inputs,"
                        f" plugin); got {args or kwargs}")

    def add_plugin_ext(self, inputs: Sequence[ITensor], plugin: Any) -> IPluginLayer:
        """Adds a call of an `IPluginExt` (version 7)."""
        return self._plugin(IPluginLayer, list(inputs), plugin, len(list(inputs)))
