"""Reads graph files: frozen GraphDefs, binary or text, and SavedModels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..onnx.errors import ModelProblem
from .schema import messages
from .types import set_attr, to_tensor


def load(model: Any) -> Any:
    """Reads a graph.

    Args:
        model: A ``.pb`` or ``.pbtxt`` file, a SavedModel's folder, bytes, or a ``GraphDef`` of this
            package or of TensorFlow.

    Returns:
        A ``GraphDef`` of this package (`schema.messages`).

    Raises:
        ModelProblem: If it can't be read, saying why.
    """
    if hasattr(model, "SerializeToString"):
        return model if type(model) is messages()["GraphDef"] else _parse(model.SerializeToString())
    if isinstance(model, (str, os.PathLike)):
        return _from_file(Path(model))
    try:
        return _parse(bytes(model))
    except TypeError:
        raise ModelProblem(f"expected a path, bytes or a GraphDef, got {type(model).__name__}"
                           ) from None


def _from_file(path: Path) -> Any:
    if path.is_dir():
        path = path / "saved_model.pb"
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelProblem(f"{path} can't be read: {e.strerror}") from None
    try:
        return _parse(data, path.parent)
    except ModelProblem as e:
        raise ModelProblem(f"{path}: {e}", e.code) from None


def _parse(data: bytes, folder: Path | None = None) -> Any:
    from google.protobuf.message import DecodeError

    if not data:
        raise ModelProblem("the file is empty")
    if _looks_like_text(data):
        return _parse_text(data)
    graph = messages()["GraphDef"]()
    try:
        graph.ParseFromString(data)
    except DecodeError:
        graph = None
    if graph is not None and graph.node and all(n.name and n.op for n in graph.node):
        return graph
    saved = messages()["SavedModel"]()
    try:
        saved.ParseFromString(data)
    except DecodeError:
        raise ModelProblem("it is no TensorFlow graph, or it is cut off or damaged") from None
    if not saved.meta_graphs:
        raise ModelProblem("it holds no nodes; it is no TensorFlow graph, or it is damaged")
    return _of_saved(saved, folder)


def _looks_like_text(data: bytes) -> bool:
    head = data[:64].lstrip()
    return head.startswith((b"node {", b"node{", b"versions {", b"library {", b"#"))


def _parse_text(data: bytes) -> Any:
    from google.protobuf import text_format

    graph = messages()["GraphDef"]()
    try:
        text_format.Parse(data.decode(), graph, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError) as e:
        raise ModelProblem(f"its text is no TensorFlow graph: {e}") from None
    return graph


def _of_saved(saved: Any, folder: Path | None) -> Any:
    from .saved_model import frozen

    metas = [m for m in saved.meta_graphs if "serve" in m.meta_info_def.tags]
    return frozen((metas or list(saved.meta_graphs))[0], folder)


# --- making graphs ---------------------------------------------------------------------------


def new_graph() -> Any:
    """An empty ``GraphDef``."""
    return messages()["GraphDef"]()


def new_node(name: str, op: str, inputs: Any = (), **attrs: Any) -> Any:
    """A ``NodeDef``.

    Args:
        name: Its name.
        op: Its operator.
        inputs: Names of what it reads.
        **attrs: Attributes as Python values (see `types.set_attr`). ``dtype`` and ``shape`` are
            written as a type and a shape; ``value`` as a tensor.
    """
    node = messages()["NodeDef"](name=name, op=op)
    node.input.extend([inputs] if isinstance(inputs, str) else list(inputs))
    for key, value in attrs.items():
        if key == "shape" and isinstance(value, (tuple, list)):
            proto = node.attr[key].shape
            proto.SetInParent()
            for d in value:
                proto.dim.add(size=-1 if d is None else int(d))
        elif key == "value" and isinstance(value, (np.ndarray, np.generic)):
            node.attr[key].tensor.CopyFrom(to_tensor(value))
        else:
            set_attr(node.attr[key], value)
    return node


def constant(name: str, value: Any) -> Any:
    """A ``Const`` node."""
    array = np.asarray(value)
    return new_node(name, "Const", dtype=array.dtype, value=array)
