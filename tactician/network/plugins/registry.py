"""The registry of plugin creators."""

from __future__ import annotations

import ctypes
from typing import Any

from ...support import logger as log


class IPluginRegistry:
    """Creators by name, version and namespace.

    Attributes:
        error_recorder: Receives errors.
        parent_search_enabled: Whether creators of the parent registry are found too.
    """

    error_recorder: Any = None
    parent_search_enabled: bool = True

    def __init__(self, parent: IPluginRegistry | None = None):
        self._creators: dict[tuple[str, str, str], Any] = {}
        self._resources: dict[str, list[Any]] = {}
        self._libraries: list[Any] = []
        self._parent = parent
        self.error_recorder = None
        self.parent_search_enabled = True

    def _fail(self, message: str) -> bool:
        log.error(message)
        if self.error_recorder is not None:
            from ..enums_build import ErrorCodeTRT

            self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, message)
        return False

    @property
    def plugin_creator_list(self) -> list[Any]:
        """Creators of version 2 plugins."""
        from .interfaces import IPluginCreator

        return [c for c in self._creators.values() if isinstance(c, IPluginCreator)]

    @property
    def all_creators(self) -> list[Any]:
        """All creators of this registry."""
        return list(self._creators.values())

    @property
    def all_creators_recursive(self) -> list[Any]:
        """All creators of this registry and its parent."""
        own = self.all_creators
        return own + self._parent.all_creators_recursive if self._parent else own

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        """Adds a creator; False (and a warning) if its key is taken or incomplete."""
        name = getattr(creator, "name", "")
        version = str(getattr(creator, "plugin_version", "1"))
        if not name:
            return self._fail(
                f"{type(creator).__name__} has no name: set self.name before registering it")
        space = plugin_namespace or getattr(creator, "plugin_namespace", "") or ""
        if plugin_namespace:
            creator.plugin_namespace = plugin_namespace
        key = (name, version, space)
        if key in self._creators:
            log.warning(f"a creator for plugin {space}::{name} version {version} is registered"
                        " already; the new one is ignored")
            return False
        self._creators[key] = creator
        return True

    def deregister_creator(self, creator: Any) -> bool:
        """Removes a creator; False if it is not registered."""
        keys = [k for k, c in self._creators.items() if c is creator]
        for k in keys:
            del self._creators[k]
        return bool(keys)

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        """The creator of a plugin, or None."""
        found = self._creators.get((type, str(version), plugin_namespace))
        if found is None and self._parent is not None and self.parent_search_enabled:
            return self._parent.get_creator(type, version, plugin_namespace)
        return found

    def get_plugin_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        """The creator of a version 2 plugin, or None."""
        return self.get_creator(type, version, plugin_namespace)

    def load_library(self, plugin_path: str) -> Any:
        """Loads a shared library whose initializers register creators; returns its handle."""
        try:
            handle = ctypes.CDLL(plugin_path, mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            self._fail(f"plugin library {plugin_path!r} cannot be loaded: {e}")
            return None
        self._libraries.append(handle)
        return handle

    def deregister_library(self, handle: Any) -> None:
        """Forgets a library."""
        self._libraries = [x for x in self._libraries if x is not handle]

    def acquire_plugin_resource(self, key: str, resource: Any) -> Any:
        """The resource under ``key``, a clone of ``resource`` if there is none yet."""
        if key not in self._resources:
            self._resources[key] = [resource.clone(), 0]
        entry = self._resources[key]
        entry[1] += 1
        return entry[0]

    def release_plugin_resource(self, key: str) -> int:
        """Gives a resource back; -1 if there is none under ``key``."""
        entry = self._resources.get(key)
        if entry is None:
            self._fail(f"release_plugin_resource: no resource {key!r}")
            return -1
        entry[1] -= 1
        if entry[1] == 0:
            del self._resources[key]
            entry[0].release()
        return 0


_registry = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    """The registry of this process."""
    from . import runner  # noqa: F401  (whoever registers creators wants plugins to run)

    return _registry


def get_builder_plugin_registry(arg0: Any = None) -> IPluginRegistry:
    """The registry for an engine capability: one serves all."""
    return _registry


def init_libnvinfer_plugins(logger: Any = None, namespace: str = "") -> bool:
    """Registers the plugins that come with tactician."""
    from . import (  # noqa: F401  (they add kinds)
        builtin_bert,
        builtin_boxes,
        builtin_int8,
        builtin_models,
        builtin_points,
        builtin_rcnn,
        builtin_vision,
    )
    from .builtin import KINDS, OpPluginCreator

    if logger is not None:
        log.set_active(logger)
    registry = get_plugin_registry()
    for name, kind in KINDS.items():
        for version in (*kind.versions, *kind.other):
            if registry.get_creator(name, version, namespace) is None:
                registry.register_creator(OpPluginCreator(name, version), namespace)
    return True
