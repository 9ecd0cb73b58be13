"""Changing TensorFlow graphs before they are converted, in the manner of graphsurgeon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .graph import load, new_graph, new_node

NodeDefs = Any  # a NodeDef, a name, or a list of these


def create_node(name: str, op: str | None = None, trt_plugin: bool = False, **kwargs: Any) -> Any:
    """Makes a ``NodeDef``.

    Args:
        name: Its name.
        op: Its operator; by default its name.
        trt_plugin: Whether a plugin implements it: the operator then begins with an underscore.
        **kwargs: Attributes; ``inputs`` are names of what it reads.
    """
    inputs = kwargs.pop("inputs", kwargs.pop("input", ()))
    op = op or name
    if trt_plugin and not op.startswith("_"):
        op = f"_{op}"
    if "dtype" in kwargs and hasattr(kwargs["dtype"], "as_numpy_dtype"):  # TensorFlow's own
        kwargs["dtype"] = kwargs["dtype"].as_numpy_dtype
    return new_node(name, op, inputs, **kwargs)


def create_plugin_node(name: str, op: str | None = None, **kwargs: Any) -> Any:
    """A node that a plugin implements: `create_node` with ``trt_plugin``."""
    return create_node(name, op, trt_plugin=True, **kwargs)


def _base(ref: str) -> str:
    return ref.lstrip("^").split(":")[0]


def _with(ref: str, name: str) -> str:
    """``ref`` to another node, a control input or numbered output as before."""
    tail = ref.split(":", 1)[1] if ":" in ref else ""
    return ("^" if ref.startswith("^") else "") + name + (f":{tail}" if tail else "")


class StaticGraph:
    """A graph one can look at.

    Args:
        graphdef: A ``GraphDef`` (of TensorFlow or this package), a file, or nothing.
    """

    def __init__(self, graphdef: Any = None):
        self._graph = new_graph()
        if isinstance(graphdef, StaticGraph):
            self._graph.CopyFrom(graphdef._graph)
        elif graphdef is not None:
            self._graph.CopyFrom(load(graphdef))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._graph.node)

    def __len__(self) -> int:
        return len(self._graph.node)

    def __getitem__(self, index: int) -> Any:
        return self._graph.node[index]

    def __str__(self) -> str:
        return str(self._graph)

    @property
    def node_map(self) -> dict[str, Any]:
        """Nodes by name."""
        return {n.name: n for n in self._graph.node}

    @property
    def node_outputs(self) -> dict[str, list[Any]]:
        """Readers of each node, by its name."""
        out: dict[str, list[Any]] = {n.name: [] for n in self._graph.node}
        for node in self._graph.node:
            for name in dict.fromkeys(map(_base, node.input)):
                out.setdefault(name, []).append(node)
        return out

    @property
    def graph_inputs(self) -> list[Any]:
        """Placeholders."""
        return [n for n in self._graph.node if n.op in ("Placeholder", "PlaceholderWithDefault")]

    @property
    def graph_outputs(self) -> list[Any]:
        """Nodes that read something and that nothing reads."""
        readers = self.node_outputs
        return [n for n in self._graph.node if not readers[n.name] and n.op not in
                ("NoOp", "Assert", "Const")]

    def read(self, filename: str | os.PathLike[str]) -> None:
        """Replaces the graph by that of a file.

        Raises:
            ModelProblem: If it can't be read.
        """
        self._graph.CopyFrom(load(filename))

    def write(self, filename: str | os.PathLike[str]) -> None:
        """Writes the graph to a ``.pb`` file."""
        Path(filename).write_bytes(self._graph.SerializeToString())

    def as_graph_def(self) -> Any:
        """A copy of the graph as a ``GraphDef``."""
        out = new_graph()
        out.CopyFrom(self._graph)
        return out

    def find_nodes_by_op(self, op: str | Iterable[str]) -> list[Any]:
        """Nodes of an operator, or of several."""
        ops = {op} if isinstance(op, str) else set(op)
        return [n for n in self._graph.node if n.op in ops]

    def find_nodes_by_name(self, name: str | Iterable[str]) -> list[Any]:
        """Nodes of a name, or of several."""
        names = {name} if isinstance(name, str) else set(name)
        return [n for n in self._graph.node if n.name in names]

    def find_nodes_by_path(self, path: str | Iterable[str]) -> list[Any]:
        """Nodes whose names are, or lie below, a path such as ``"block1/conv"``."""
        paths = [path] if isinstance(path, str) else list(path)
        return [n for n in self._graph.node if any(_below(n.name, p) for p in paths)]

    def find_node_inputs(self, node: Any) -> list[Any]:
        """The nodes that a node reads."""
        nodes = self.node_map
        return [nodes[b] for b in map(_base, node.input) if b in nodes]

    def find_node_inputs_by_op(self, node: Any, op: str | Iterable[str]) -> list[Any]:
        """The nodes of an operator that a node reads."""
        ops = {op} if isinstance(op, str) else set(op)
        return [n for n in self.find_node_inputs(node) if n.op in ops]

    def find_node_inputs_by_name(self, node: Any, name: str | Iterable[str]) -> list[Any]:
        """The nodes of a name that a node reads."""
        names = {name} if isinstance(name, str) else set(name)
        return [n for n in self.find_node_inputs(node) if n.name in names]

    def find_node_chains_by_op(self, chain: Sequence[str | Iterable[str]]) -> list[list[Any]]:
        """Every chain of nodes, each reading the one before, with these operators.

        Args:
            chain: Operators in order of data flow; each one or several alternatives.
        """
        wanted = [{c} if isinstance(c, str) else set(c) for c in chain]
        readers = self.node_outputs
        found = [[n] for n in self._graph.node if n.op in wanted[0]] if wanted else []
        for ops in wanted[1:]:
            found = [[*c, n] for c in found for n in readers[c[-1].name] if n.op in ops]
        return found


def _below(name: str, path: str) -> bool:
    path = path.rstrip("/")
    return name == path or name.startswith(f"{path}/")


class DynamicGraph(StaticGraph):
    """A graph one can change."""

    def append(self, node: Any) -> None:
        """Adds a node.

        Raises:
            ValueError: If there is one of its name.
        """
        if node.name in self.node_map:
            raise ValueError(f"the graph has a node {node.name!r} already")
        self._graph.node.add().ParseFromString(node.SerializeToString())

    def extend(self, nodes: Iterable[Any]) -> None:
        """Adds nodes."""
        for node in nodes:
            self.append(node)

    def remove(self, nodes: NodeDefs, remove_exclusive_dependencies: bool = False) -> None:
        """Removes nodes; others that read them lose these inputs.

        Args:
            nodes: Nodes or their names.
            remove_exclusive_dependencies: Whether nodes that only they needed go, too.
        """
        gone = self._names(nodes)
        if remove_exclusive_dependencies:
            work = list(gone)
            nodes_by_name, readers = self.node_map, self.node_outputs
            while work:
                for name in map(_base, nodes_by_name[work.pop()].input):
                    if name in nodes_by_name and name not in gone and all(
                            r.name in gone for r in readers[name]):
                        gone.add(name)
                        work.append(name)
        self._keep(lambda n: n.name not in gone)
        for node in self._graph.node:
            self._set_inputs(node, [i for i in node.input if _base(i) not in gone])

    def forward_inputs(self, nodes: NodeDefs) -> None:
        """Removes nodes and gives what they read to those that read them."""
        for name in self._names(nodes):
            node = self.node_map[name]
            inputs = list(node.input)
            for reader in self.node_outputs[name]:
                new: list[str] = []
                for i in reader.input:
                    new += inputs if _base(i) == name and not i.startswith("^") else \
                        [] if _base(i) == name else [i]
                self._set_inputs(reader, new)
            self._keep(lambda n, gone=name: n.name != gone)

    def collapse_namespaces(self, namespace_map: Mapping[str, Any],
                            exclude_nodes: Iterable[Any] = (), unique_inputs: bool = True) -> None:
        """Replaces everything below a name by one node.

        The node reads what the removed ones read from outside, after its own inputs; whatever read
        one of them reads the node.

        Args:
            namespace_map: Namespace (a path such as ``"NMS"`` or ``"block/nms"``, or a node's name)
                to the node that takes its place. Several may have one node.
            exclude_nodes: Nodes, or their names, that stay.
            unique_inputs: Whether something that is read several times is one input.
        """
        kept = {n if isinstance(n, str) else n.name for n in exclude_nodes}
        new_name = {}
        for node in self._graph.node:
            paths = [p for p in namespace_map if _below(node.name, p)]
            if paths and node.name not in kept:
                new_name[node.name] = namespace_map[max(paths, key=len)].name
        made = {n.name: n for n in namespace_map.values()}
        inputs: dict[str, list[str]] = {name: list(n.input) for name, n in made.items()}
        for node in self._graph.node:
            into = new_name.get(node.name)
            if into is not None:
                outside = [_with(i, new_name[_base(i)]) if _base(i) in new_name else i
                           for i in node.input]
                inputs[into] += [i for i in outside if _base(i) != into]
        self._keep(lambda n: n.name not in new_name and n.name not in made)
        for node in self._graph.node:
            refs = [_with(i, new_name[_base(i)]) if _base(i) in new_name else i
                    for i in node.input]
            self._set_inputs(node, refs if node.name not in made else inputs[node.name])
        for name, node in made.items():
            if name in new_name.values() or not inputs[name]:
                copy = self._graph.node.add()
                copy.ParseFromString(node.SerializeToString())
                refs = [i for i in inputs[name] if not i.startswith("^")]
                self._set_inputs(copy, list(dict.fromkeys(refs)) if unique_inputs else refs)

    # --- inside -------------------------------------------------------------------------------

    def _names(self, nodes: NodeDefs) -> set[str]:
        listed = [nodes] if isinstance(nodes, str) or hasattr(nodes, "op") else list(nodes)
        names = {n if isinstance(n, str) else n.name for n in listed}
        missing = names - set(self.node_map)
        if missing:
            raise ValueError(f"the graph has no node {', '.join(map(repr, sorted(missing)))}")
        return names

    def _keep(self, wanted: Any) -> None:
        nodes = [n for n in self._graph.node if wanted(n)]
        copy = new_graph()
        copy.node.extend(nodes)
        del self._graph.node[:]
        self._graph.node.extend(copy.node)

    @staticmethod
    def _set_inputs(node: Any, inputs: Sequence[str]) -> None:
        if list(node.input) != list(inputs):
            del node.input[:]
            node.input.extend(inputs)
