"""Reads TensorFlow's checkpoints: an index, a sorted table of keys, and files of raw tensors."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..onnx.errors import ModelProblem
from .schema import messages
from .types import STRING, dtype_of, shape_of

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48


class Checkpoint:
    """The tensors of a checkpoint, read when they are asked for.

    Sizes and offsets are checked; checksums of the data are not.

    Args:
        prefix: The files' common path, such as ``model/variables/variables``.

    Raises:
        ModelProblem: If the index is missing or damaged.
    """

    def __init__(self, prefix: Path):
        self.prefix = prefix
        from google.protobuf.message import DecodeError

        index = prefix.with_name(prefix.name + ".index")
        try:
            data = index.read_bytes()
        except OSError as e:
            raise ModelProblem(f"{index} can't be read: {e.strerror}; the weights are there"
                               ) from None
        try:
            self.entries, self._shards = _read_index(data)
        except (struct.error, IndexError, ValueError, DecodeError) as e:
            raise ModelProblem(f"{index} is damaged: {e}") from None

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def array(self, key: str) -> np.ndarray[Any, Any]:
        """The tensor of a key.

        Raises:
            ModelProblem: If there is none, or its data is not all there.
        """
        entry = self.entries.get(key)
        if entry is None:
            raise ModelProblem(f"{self.prefix} holds no tensor {key!r}")
        if len(entry.slices):
            raise ModelProblem(f"{self.prefix} holds {key!r} in several parts, which is not "
                               "supported; freeze the graph", "UNSUPPORTED_GRAPH")
        if entry.dtype == STRING:
            raise ModelProblem(f"{key!r} is a string tensor", "UNSUPPORTED_GRAPH")
        kind, shape = dtype_of(entry.dtype).np, shape_of(entry.shape) or ()
        name = f"{self.prefix.name}.data-{entry.shard_id:05d}-of-{self._shards:05d}"
        file = self.prefix.with_name(name)
        count = math.prod(shape)
        sane = min((*shape, entry.offset), default=0) >= 0
        if not sane or entry.size != count * kind.itemsize:
            raise ModelProblem(f"{key!r} has {entry.size} bytes at {entry.offset} but "
                               f"{kind}{list(shape)} needs {count * kind.itemsize}; the index is "
                               "damaged")
        try:
            with file.open("rb") as f:
                f.seek(entry.offset)
                raw = f.read(entry.size)
        except OSError as e:
            raise ModelProblem(f"{file} can't be read: {e.strerror}") from None
        if len(raw) != entry.size:
            raise ModelProblem(f"{file} is cut off: {key!r} lies beyond its end")
        return np.frombuffer(raw, kind).reshape(shape)


def _read_index(data: bytes) -> tuple[dict[str, Any], int]:
    """Entries by key, and the number of data files."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as an index does")
    footer = data[-_FOOTER:]
    _, at = _varint(footer, 0)  # where the table keeps facts about itself
    _, at = _varint(footer, at)
    offset, at = _varint(footer, at)
    size, _ = _varint(footer, at)
    entries: dict[str, Any] = {}
    shards = 1
    for _, handle in _pairs(_block(data, offset, size)):
        start, at = _varint(handle, 0)
        length, _ = _varint(handle, at)
        for key, value in _pairs(_block(data, start, length)):
            if key:
                entries[key.decode()] = messages()["BundleEntryProto"].FromString(value)
            else:
                header = messages()["BundleHeaderProto"].FromString(value)
                shards = header.num_shards
                if header.endianness:
                    raise ValueError("its numbers are big-endian")
    return entries, shards


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + 5 > len(data):
        raise ValueError("a block lies beyond its end")
    if data[offset + size]:
        raise ValueError("its blocks are compressed, which checkpoints' are not")
    return data[offset : offset + size]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys, each stored as what differs from the one before, with their values."""
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        size, at = _varint(block, at)
        if shared > len(key) or at + fresh + size > end:
            raise ValueError("an entry is cut off")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + size]
        at += fresh + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next begins."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
