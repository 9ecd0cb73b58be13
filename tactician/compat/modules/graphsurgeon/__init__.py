"""``import graphsurgeon``: see `tactician.graphsurgeon`."""

from tactician.graphsurgeon import DynamicGraph, StaticGraph, create_node, create_plugin_node

__version__ = "0.4.6"
__all__ = ["DynamicGraph", "StaticGraph", "create_node", "create_plugin_node"]
