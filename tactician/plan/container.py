"""The plan file's outer form: a checked header, a JSON text, and aligned byte sections.

::

    0    magic             8 bytes   b"TACTPLAN"
    8    format version    u32
    12   header size       u32       fixed part and device text, padded to 64
    16   file size         u64
    24   metadata size     u64       JSON, right after the header
    32   sections offset   u64       64-byte aligned
    40   section count     u32
    44   device text size  u32
    48   target            16 bytes  ASCII, zero-padded
    64   content checksum  32 bytes  of everything after the header, see below
    96   header checksum   32 bytes  SHA-256 of bytes 0-95 and the device text
    128  device text       UTF-8     the device's fingerprint
    …    metadata, then a table of (offset u64, size u64) per section, then the sections,
         each at a multiple of 64 from the start of the file

Numbers are little-endian. Padding is zero. Nothing is read before its size and checksum are.

The content checksum is the SHA-256 of the digests of the content's pieces of 1 MiB. The digest of
a piece is the SHA-256 of three things: the sums of the 64-bit words of each of its blocks of 4 KiB,
the sums of the words at the same place in all blocks (both modulo 2**64), and the bytes after the
last whole block. What changes, moves or exchanges words changes one of the sums. They are made as
fast as memory is read, several times faster than a SHA-256 of everything, so that plans of hundreds
of megabytes load in the time that reading them takes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..support.errors import PlanError

AnyBytes = TypeVar("AnyBytes", bound=bytes)

MAGIC = b"TACTPLAN"
VERSION = 3
ALIGN = 64
_PIECE = 1 << 20
_BLOCK = 4096
_SHARE = 8  # pieces that are worth a thread
_FIXED = struct.Struct("<8sIIQQQII16s")  # everything before the checksums
_PREFIX = _FIXED.size + 64
_ENTRY = struct.Struct("<QQ")


@dataclass(frozen=True)
class Header:
    """What a plan says about itself before its content is read."""

    version: int
    header_size: int
    file_size: int
    metadata_size: int
    sections_offset: int
    section_count: int
    target: str
    device: str
    checksum: bytes


def _padded(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def pack(
    target: str, device: str, metadata: bytes, sections: Sequence[Any],
    kind: type[AnyBytes] = bytes,  # type: ignore[assignment]
) -> AnyBytes:  # fmt: skip
    """Writes a container; equal arguments give equal bytes.

    Args:
        target: Short ASCII name of the target, at most 16 characters.
        device: Fingerprint of the device that the code is for.
        metadata: UTF-8 JSON.
        sections: Buffers.
        kind: Type of the result.
    """
    device_text = device.encode()
    header_size = _padded(_PREFIX + len(device_text))
    table_at = _padded(header_size + len(metadata))
    position = sections_offset = table_at
    position = _padded(position + _ENTRY.size * len(sections))
    entries = []
    for s in sections:
        size = memoryview(s).nbytes
        entries.append((position, size))
        position = _padded(position + size)
    result, out = _blank(position, kind)
    out[header_size : header_size + len(metadata)] = metadata
    for i, (at, size) in enumerate(entries):
        _ENTRY.pack_into(out, table_at + i * _ENTRY.size, at, size)
        out[at : at + size] = memoryview(sections[i]).cast("B")
    _FIXED.pack_into(
        out, 0, MAGIC, VERSION, header_size, len(out), len(metadata), sections_offset,
        len(sections), len(device_text), target.encode("ascii"),
    )
    out[_PREFIX : _PREFIX + len(device_text)] = device_text
    out[64:96] = _checksum(out[header_size:])
    out[96:128] = _header_checksum(out, len(device_text))
    return result


def _blank(size: int, kind: type[AnyBytes]) -> tuple[AnyBytes, memoryview]:
    """Zeros, and a view to write to them before anybody else sees them. Copying a plan that was
    written elsewhere would take longer than writing it: most of that is touching new memory."""
    assert size > 1  # shorter ones may be shared
    blank = kind(size)
    address = ctypes.cast(ctypes.c_char_p(blank), ctypes.c_void_p).value
    assert address is not None
    return blank, np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address)).data


def _checksum(content: memoryview) -> bytes:
    pieces = -(-len(content) // _PIECE)
    workers = min(os.cpu_count() or 1, pieces // _SHARE)
    if workers < 2:
        return hashlib.sha256(_digests(content)).digest()
    share = -(-pieces // workers) * _PIECE
    parts = [content[i : i + share] for i in range(0, len(content), share)]
    with ThreadPoolExecutor(workers) as pool:
        return hashlib.sha256(b"".join(pool.map(_digests, parts))).digest()


def _digests(content: memoryview) -> bytes:
    """The digests of a row of pieces."""
    return b"".join(
        _digest(content[i : i + _PIECE]) for i in range(0, len(content), _PIECE)
    )


def _digest(piece: memoryview) -> bytes:
    blocks = len(piece) // _BLOCK
    words = np.frombuffer(piece, "<u8", blocks * _BLOCK // 8).reshape(blocks, _BLOCK // 8)
    along, across = np.add.reduce(words, axis=1), np.add.reduce(words, axis=0)
    found = hashlib.sha256(along.astype("<u8").tobytes() if blocks else b"")
    found.update(across.astype("<u8").tobytes() if blocks else b"")
    found.update(piece[blocks * _BLOCK :])
    return found.digest()


def _header_checksum(data: memoryview, device_size: int) -> bytes:
    return hashlib.sha256(
        bytes(data[:96]) + bytes(data[_PREFIX : _PREFIX + device_size])
    ).digest()


def read_header(data: Any) -> Header:
    """Reads and checks the header alone.

    Raises:
        PlanError: If this is no plan, of another version, truncated within the header, or the
            header is damaged.
    """
    view = memoryview(data).cast("B")
    if bytes(view[:8]) != MAGIC[: len(view)] or not len(view):
        raise PlanError(
            f"this is not a tactician plan: it starts with {bytes(view[:8])!r}, not {MAGIC!r}. "
            "Plans come from Builder.build_serialized_network() or ICudaEngine.serialize()"
        )
    if len(view) < _PREFIX:
        raise PlanError(f"the plan is truncated: {len(view)} bytes do not even hold its header")
    _, version, header_size, file_size, meta, sections, count, device_size, target = (
        _FIXED.unpack_from(view)
    )
    if version != VERSION:
        raise PlanError(
            f"the plan has format version {version}, this tactician reads version {VERSION}; "
            "build the engine again with this version"
        )
    if header_size > len(view) or _padded(_PREFIX + device_size) != header_size:
        _damaged_header(view, header_size)
    if _header_checksum(view, device_size) != bytes(view[96:128]):
        raise PlanError("the plan's header is damaged: its checksum does not match")
    if any(view[_PREFIX + device_size : header_size]):
        raise PlanError("the plan's header is damaged: its padding is not zero")
    return Header(
        version, header_size, file_size, meta, sections, count,
        target.rstrip(b"\0").decode("ascii", "replace"),
        bytes(view[_PREFIX : _PREFIX + device_size]).decode("utf-8", "replace"),
        bytes(view[64:96]),
    )


def _damaged_header(view: memoryview, header_size: int) -> None:
    if header_size > len(view) and header_size < 1 << 16:
        raise PlanError(
            f"the plan is truncated or damaged: it has {len(view)} bytes, its header alone "
            f"should take {header_size}"
        )
    raise PlanError("the plan's header is damaged: its sizes contradict each other")


def unpack(data: Any) -> tuple[Header, memoryview, list[memoryview]]:
    """Checks a container and returns its header, metadata and sections as views (no copy).

    Raises:
        PlanError: If anything about the bytes is not as written, naming what differs.
    """
    view = memoryview(data).cast("B")
    header = read_header(view)
    if len(view) != header.file_size:
        what = "truncated" if len(view) < header.file_size else "followed by foreign bytes"
        raise PlanError(f"the plan is {what}: it has {len(view)} bytes, not {header.file_size}")
    if _checksum(view[header.header_size :]) != header.checksum:
        raise PlanError("the plan's content is damaged: its checksum does not match")
    end = header.header_size + header.metadata_size
    table_end = header.sections_offset + header.section_count * _ENTRY.size
    if end > len(view) or header.sections_offset != _padded(end) or table_end > len(view):
        raise PlanError("the plan's header is wrong: metadata or sections lie outside the file")
    sections = []
    floor = table_end
    for i in range(header.section_count):
        at, size = _ENTRY.unpack_from(view, header.sections_offset + i * _ENTRY.size)
        if at < floor or at % ALIGN or at + size > len(view):
            raise PlanError(f"section {i} of the plan lies outside the file or overlaps another")
        sections.append(view[at : at + size])
        floor = at + size
    return header, view[header.header_size : end], sections
