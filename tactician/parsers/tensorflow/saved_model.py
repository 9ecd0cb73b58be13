"""SavedModels as frozen graphs: one signature, its variables as constants.

Which tensor of the checkpoint belongs to which variable is read off the part of the graph that
restores them, so it holds for 1.x and 2.x alike, whatever variables are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..onnx.errors import ModelProblem
from .checkpoint import Checkpoint
from .schema import messages
from .types import attr_value, set_attr, to_tensor

_VARIABLES = frozenset("VariableV2 Variable VarHandleOp".split())
_ASSIGN = frozenset("Assign AssignVariableOp".split())
_CALLS = frozenset("PartitionedCall StatefulPartitionedCall".split())
# Operators that read through a variable's handle, and those that read a tensor in the same way.
_READERS = {"ReadVariableOp": "Identity", "ResourceGather": "Gather",
            "ResourceGatherNd": "GatherNd"}
_SIGNATURE = "serving_default"


def frozen(meta: Any, folder: Path | None) -> Any:
    """The graph of a signature with its variables as constants.

    The signature's inputs and outputs get the signature's names, where no node has them already.

    Args:
        meta: A ``MetaGraphDef``.
        folder: The SavedModel's folder, or None if only its bytes are known.

    Raises:
        ModelProblem: If variables can't be found.
    """
    graph = messages()["GraphDef"]()
    graph.CopyFrom(meta.graph_def)
    signature = _signature(meta)
    roots = [t.name for t in signature.outputs.values()] if signature is not None else []
    if roots:
        _keep(graph, roots)
    used = _in_use(graph)
    if used:
        if folder is None:
            raise ModelProblem("the SavedModel keeps its weights in files beside it; give the "
                               "folder's path, not its bytes", "UNSUPPORTED_GRAPH")
        _fill(graph, used, restored(meta.graph_def), folder)
    if signature is not None:
        _name(graph, signature)
    return graph


def _signature(meta: Any) -> Any:
    known = {k: s for k, s in meta.signature_def.items() if len(s.outputs)}
    usable = [k for k in known if not k.startswith("__")]
    if not usable:
        return None
    return known[_SIGNATURE if _SIGNATURE in usable else sorted(usable)[0]]


def _node_of(ref: str) -> str:
    return ref.lstrip("^").split(":")[0]


def _keep(graph: Any, roots: Sequence[str]) -> None:
    """Drops nodes that no root needs. Control inputs order side effects, which are gone."""
    by_name = {n.name: n for n in graph.node}
    todo, seen = [_node_of(r) for r in roots], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        todo += [_node_of(i) for i in by_name[name].input if not i.startswith("^")]
    kept = [n for n in graph.node if n.name in seen]
    copies = []
    for n in kept:
        copy = messages()["NodeDef"]()
        copy.CopyFrom(n)
        inputs = [i for i in copy.input if not i.startswith("^")]
        del copy.input[:]
        copy.input.extend(inputs)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _in_use(graph: Any) -> list[Any]:
    return [n for n in graph.node if n.op in _VARIABLES]


def restored(graph: Any) -> dict[str, str]:
    """The checkpoint's key of each variable, by the variable's node name."""
    functions = {f.signature.name: f for f in graph.library.function}
    found: dict[str, str] = {}
    top = {n.name: n for n in graph.node}
    found.update(_assignments(top))
    for node in graph.node:
        if node.op not in _CALLS:
            continue
        function = functions.get(attr_value(node.attr["f"]).name)
        if function is None or not any(n.op == "RestoreV2" for n in function.node_def):
            continue
        inputs = [i for i in node.input if not i.startswith("^")]
        names = [a.name for a in function.signature.input_arg]
        outer = dict(zip(names, inputs, strict=False))
        for argument, key in _assignments({n.name: n for n in function.node_def}):
            if argument in outer:
                found[_node_of(outer[argument])] = key
    return found


def _assignments(nodes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is assigned to, key) for every tensor that a graph restores."""
    for node in nodes.values():
        if node.op not in _ASSIGN or len(node.input) < 2:
            continue
        ref = node.input[1]
        source = nodes.get(_node_of(ref))
        while source is not None and source.op in ("Identity", "Reshape") and source.input:
            ref = source.input[0]
            source = nodes.get(_node_of(ref))
        if source is None or source.op != "RestoreV2":
            continue
        keys = nodes.get(_node_of(source.input[1]))
        if keys is None or keys.op != "Const":
            continue
        names = [b.decode() for b in keys.attr["value"].tensor.string_val]
        last = ref.split(":")[-1]
        index = int(last) if ":" in ref and last.isdecimal() else 0
        if index < len(names):
            yield _node_of(node.input[0]), names[index]


def _fill(graph: Any, variables: Sequence[Any], keys: dict[str, str], folder: Path) -> None:
    checkpoint = Checkpoint(folder / "variables" / "variables")
    for node in variables:
        shared = attr_value(node.attr["shared_name"]) if "shared_name" in node.attr else ""
        tried = [keys.get(node.name), shared or None, node.name]
        key = next((k for k in tried if k and k in checkpoint), None)
        if key is None:
            raise ModelProblem(f"no tensor of the checkpoint belongs to the variable {node.name!r}",
                               "UNSUPPORTED_GRAPH")
        array = checkpoint.array(key)
        node.op = "Const"
        del node.input[:]
        node.attr.clear()
        node.attr["value"].tensor.CopyFrom(to_tensor(array))
        set_attr(node.attr["dtype"], array.dtype)
    bodies = [graph.node, *(f.node_def for f in graph.library.function)]
    for body in bodies:
        for node in body:
            if node.op in _READERS:
                _read_directly(node)


def _read_directly(node: Any) -> None:
    """Makes a node that reads a variable read the constant in its place."""
    if node.op == "ResourceGather":
        node.attr["batch_dims"].i = node.attr["batch_dims"].i
    if "dtype" in node.attr:
        node.attr["T"].type = node.attr["dtype"].type
    node.op = _READERS[node.op]


def _name(graph: Any, signature: Any) -> None:
    """Gives inputs and outputs the signature's names."""
    taken = {n.name for n in graph.node}
    by_name = {n.name: n for n in graph.node}
    for key, info in signature.inputs.items():
        node = by_name.get(_node_of(info.name))
        if node is None or key in taken or node.op != "Placeholder":
            continue
        old, node.name = node.name, key
        taken.add(key)
        for other in graph.node:
            for i, ref in enumerate(other.input):
                if ref.split(":")[0] == old:
                    other.input[i] = key + ref[len(old):]
    for key, info in signature.outputs.items():
        if key in taken:
            continue
        node = graph.node.add(name=key, op="Identity")
        node.input.append(info.name)
        node.attr["T"].type = info.dtype
        taken.add(key)


__all__ = ["frozen", "restored"]
