"""Reading models and the tensors they keep in other files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .errors import ModelProblem, NodeProblem
from .types import dtype_of, element_count, to_numpy

EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


def read_model(data: Any) -> Any:
    """Parses a serialized ``ModelProto`` and checks that it can be one.

    Raises:
        ModelProblem: If the bytes are no ONNX model, or a damaged one.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    data = bytes(data)
    model = ModelProto()
    if not data:
        raise ModelProblem("the model is empty (0 bytes)")
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise ModelProblem(
            f"{len(data)} bytes are not an ONNX model, or the file is truncated or damaged "
            f"({str(e).strip()}; first bytes {data[:8]!r})"
        ) from None
    if not model.HasField("graph"):
        raise ModelProblem("the file holds no graph: it is truncated, or not an ONNX model")
    if not model.opset_import:
        raise ModelProblem(
            "the model imports no operator set: the file is truncated, or written by a faulty "
            "exporter"
        )
    for text in _texts(model):
        if not isinstance(text, str):  # protobuf gives bytes where the text is not UTF-8
            raise ModelProblem(f"the name {text!r} is not UTF-8: the file is damaged")
    return model


def _texts(model: Any) -> Iterator[Any]:
    """Every name in a model."""
    yield from (o.domain for o in model.opset_import)
    for f in model.functions:
        yield from (f.name, f.domain, *f.input, *f.output, *f.attribute)
        yield from _node_texts(f.node)
    yield from _graph_texts(model.graph)


def _graph_texts(graph: Any) -> Iterator[Any]:
    yield graph.name
    yield from (t.name for t in graph.initializer)
    for info in (*graph.input, *graph.output):
        yield info.name
        yield from (d.dim_param for d in info.type.tensor_type.shape.dim)
    yield from _node_texts(graph.node)


def _node_texts(nodes: Any) -> Iterator[Any]:
    for n in nodes:
        yield from (n.name, n.op_type, n.domain, *n.input, *n.output)
        for a in n.attribute:
            yield from (a.name, a.ref_attr_name)
            if a.HasField("g"):
                yield from _graph_texts(a.g)


def read_file(path: str) -> bytes:
    """A file's bytes.

    Raises:
        ModelProblem: If it cannot be read.
    """
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise ModelProblem(f"cannot read {path!r}: {e.strerror or e}") from None


class TensorLoader:
    """Turns ``TensorProto``s into arrays, external data included.

    External data is read only from inside the model's folder.

    Args:
        folder: The model's folder, or None if the model came as bytes without a path.
        given: Data handed over by name (`OnnxParser.load_initializer`).
        warn: Called with a text for tensors that hold NaN.
    """

    def __init__(self, folder: str | None, given: Mapping[str, bytes], warn: Any):
        self.folder = folder
        self.given = given
        self.warn = warn

    def __call__(self, tensor: Any) -> np.ndarray[Any, Any]:
        array = to_numpy(tensor, self._outside(tensor))
        if array.dtype.kind == "f" and array.size and np.isnan(array).any():
            self.warn(f"weights {tensor.name!r} hold {int(np.isnan(array).sum())} NaN of "
                      f"{array.size} elements")
        return array

    def _outside(self, tensor: Any) -> Any:
        if tensor.name in self.given:
            return self.given[tensor.name]
        if tensor.data_location != EXTERNAL:
            return None
        info = {e.key: e.value for e in tensor.external_data}
        path = self._locate(tensor.name, info.get("location", ""))
        try:
            offset = int(info.get("offset", 0))
            count = element_count(tensor.dims)
            bits = dtype_of(tensor.data_type)
            need = (count * (4 if bits.bits == 4 else bits.np.itemsize * 8) + 7) // 8
            length = int(info.get("length", need))
        except ValueError as e:
            raise NodeProblem(f"tensor {tensor.name!r}: bad external data entry ({e})") from None
        size = os.path.getsize(path)
        if offset < 0 or length != need or offset + length > size:
            raise NodeProblem(
                f"tensor {tensor.name!r} needs {need} bytes; its entry says {length} bytes at "
                f"offset {offset} of {os.path.basename(path)!r}, which has {size}: the data file "
                "is truncated or belongs to another model"
            )
        if not length:
            return b""
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,))

    def _locate(self, name: str, location: str) -> str:
        """The path of an external data file, inside the model's folder."""
        what = f"tensor {name!r}: external data {location!r}"
        if not location:
            raise NodeProblem(f"tensor {name!r}: external data without a location")
        parts = location.replace("\\", "/").split("/")
        if os.path.isabs(location) or ".." in parts or ":" in parts[0] or not parts[0]:
            raise NodeProblem(f"{what} lies outside the model's folder; that is refused")
        if self.folder is None:
            raise NodeProblem(
                f"{what}: the model came as bytes, so its folder is unknown; use "
                "parse_from_file(), or parse(model, path)"
            )
        folder = os.path.realpath(self.folder)
        path = os.path.realpath(os.path.join(folder, *parts))
        if os.path.commonpath([folder, path]) != folder:
            raise NodeProblem(f"{what} leads outside the model's folder through a link; "
                              "that is refused")
        if not os.path.isfile(path):
            raise NodeProblem(f"{what}: no such file in {folder}")
        return path
