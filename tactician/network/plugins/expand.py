"""Built-in plugins that are made of ops become these ops when a network is built, so that passes,
fusion and kernels treat them as they do layers. Others are called."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ops import OpError, emit
from .builtin import OpPlugin


def expand_builtins(graph: Graph) -> None:
    """Replaces every built-in plugin of ops in ``graph`` and its subgraphs.

    Raises:
        OpError: If one refuses its inputs, naming the layer.
    """
    for node in list(graph.nodes):
        for body in node.subgraphs:
            expand_builtins(body)
        plugin = node.meta.get("plugin")
        if node.op == "plugin" and isinstance(plugin, OpPlugin) and plugin.native:
            _replace(graph, node, plugin)


def _replace(graph: Graph, node: Node, plugin: OpPlugin) -> None:
    first = len(graph.nodes)
    inputs = [v for v in node.inputs if v is not None]
    try:
        results = plugin.emit(graph, inputs, node.outputs)
        types = [v.dtype for v in node.outputs]
        results = [v if v.dtype is t else emit(graph, "cast", [v], to=t).output
                   for v, t in zip(results, types, strict=True)]
        made = set(graph.nodes[first:])
        taken: set[Value] = set()
        for old, value in zip(node.outputs, results, strict=True):
            _hand_over(graph, old, value, made, taken)
    except OpError as e:
        raise OpError(f"{node.describe()}: {e}") from e
    new = graph.nodes[first:]
    del graph.nodes[first:]
    at = graph.nodes.index(node)
    graph.nodes[at:at] = new
    for k, n in enumerate(new):
        n.name = node.name if len(new) == 1 else f"{node.name}/{n.op}" + (f"_{k}" if k else "")
        n.source = node.source
    graph.remove(node)


def _hand_over(
    graph: Graph, old: Value, value: Value, made: set[Node], taken: set[Value]
) -> None:
    """Puts a value in the place of a plugin's output, whose name it gets."""
    if value.producer not in made or value in taken:
        value = emit(graph, "identity", [value]).output
    taken.add(value)
    value.name = old.name
    value.meta.update(old.meta)
    graph.replace_uses(old, value)
