"""Caffemodels: blobs of each layer, by the layer's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import CaffeProblem
from .schema import weight_messages

Array = np.ndarray[Any, Any]
_RAW = {0: np.float64, 1: np.float32, 2: np.float16, 3: np.int32, 4: np.uint32}


def read_caffemodel(data: bytes, where: str) -> dict[str, list[Array]]:
    """The blobs of a caffemodel: layer name to arrays, f32 unless they are stored as f64.

    Raises:
        CaffeProblem: If it is none, or a blob is damaged.
    """
    from google.protobuf.message import DecodeError

    net = weight_messages()["NetWeights"]()
    try:
        net.ParseFromString(data)
    except (DecodeError, ValueError):
        raise CaffeProblem(
            f"{where} is no caffemodel, or is cut off ({len(data):,} bytes): it can't be decoded; "
            "fetch the file again") from None
    out: dict[str, list[Array]] = {}
    for layer in [*net.layer, *net.layers]:
        if not hasattr(layer, "type") and layer.HasField("layer"):
            layer = layer.layer
        name = layer.name  # bytes, if they are no UTF-8
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        if layer.blobs:
            out[name] = [to_array(b, f"{where}: blob {i} of layer {name!r}")
                         for i, b in enumerate(layer.blobs)]
    if not (net.layer or net.layers):
        raise CaffeProblem(f"{where} is no caffemodel: it holds no layers ({len(data):,} bytes)")
    return out


def read_blob(data: bytes, where: str) -> Array:
    """A file with one blob, such as a mean image.

    Raises:
        CaffeProblem: If it is none.
    """
    from google.protobuf.message import DecodeError

    blob = weight_messages()["BlobProto"]()
    try:
        blob.ParseFromString(data)
    except DecodeError:
        raise CaffeProblem(f"{where} is no binaryproto, or is cut off") from None
    array = to_array(blob, where)
    if not array.size:
        raise CaffeProblem(f"{where} holds no numbers")
    return array


def to_array(blob: Any, where: str) -> Array:
    """A blob's numbers in its shape.

    Raises:
        CaffeProblem: If there are fewer or more numbers than the shape says.
    """
    from google.protobuf.message import DecodeError

    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    elif any(blob.HasField(f) for f in ("num", "channels", "height", "width")):
        shape = (blob.num, blob.channels, blob.height, blob.width)
    else:
        shape = (-1,)
    try:
        flat = _numbers(blob)
    except (ValueError, DecodeError):
        raise CaffeProblem(f"{where} can't be decoded; the file is damaged: fetch it again"
                           ) from None
    if shape == (-1,):
        return flat
    if any(d < 0 for d in shape) or int(np.prod(shape, dtype=object)) != flat.size:
        raise CaffeProblem(f"{where} has shape {shape} but {flat.size} numbers; the file is "
                           "damaged: fetch it again")
    return flat.reshape(shape)


def _numbers(blob: Any) -> Array:
    if blob.raw_data:
        raw = np.frombuffer(blob.raw_data, dtype=_RAW[blob.raw_data_type])
        return raw.astype(np.float32) if raw.dtype != np.float64 else raw
    if blob.double_data:
        return np.frombuffer(b"".join(blob.double_data), dtype="<f8")
    if blob.data and all(len(chunk) % 4 == 0 for chunk in blob.data):
        data = blob.data[0] if len(blob.data) == 1 else b"".join(blob.data)
        return np.frombuffer(data, dtype="<f4")
    # numbers one by one, which a reader of packed fields must take as well
    slow = weight_messages()["UnpackedBlob"].FromString(blob.SerializeToString())
    if slow.double_data:
        return np.array(slow.double_data, dtype=np.float64)
    return np.array(slow.data, dtype=np.float32)


def write_caffemodel(name: str, layers: Mapping[str, Sequence[Any]]) -> bytes:
    """A caffemodel's bytes: layer name to its blobs."""
    net = weight_messages()["NetWeights"](name=name)
    for layer, blobs in layers.items():
        entry = net.layer.add(name=layer)
        for blob in blobs:
            array = np.asarray(blob, dtype="<f4")
            entry.blobs.add(data=[array.tobytes()], shape={"dim": list(array.shape)})
    return net.SerializeToString()
