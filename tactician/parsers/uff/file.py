"""Reads and writes UFF, binary and as text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..onnx.errors import ModelProblem
from .schema import messages


def load(model: Any) -> Any:
    """Reads a ``MetaGraph``.

    Args:
        model: A file's path, or its bytes; binary or text.

    Raises:
        ModelProblem: If it can't be read, saying why.
    """
    if isinstance(model, (str, os.PathLike)):
        try:
            data = Path(model).read_bytes()
        except OSError as e:
            raise ModelProblem(f"{os.fspath(model)} can't be read: {e.strerror}") from None
    else:
        data = bytes(model)
    if data[:64].lstrip().startswith((b"version:", b"descriptors", b"graphs", b"referenced_data",
                                      b"descriptor_core_version:")):
        return from_text(data.decode("utf-8", "replace"))
    return _binary(data)


def _binary(data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    meta = messages()["MetaGraph"]()
    try:
        meta.ParseFromString(data)
    except DecodeError:
        raise ModelProblem("it is no UFF file, or it is cut off or damaged") from None
    if not meta.graphs:
        raise ModelProblem("it holds no graph; it is no UFF file, or it is cut off")
    return meta


def from_text(text: str) -> Any:
    """Reads the text form.

    Raises:
        ModelProblem: If it is malformed.
    """
    from google.protobuf import text_format

    meta = messages()["MetaGraph"]()
    try:
        text_format.Parse(text, meta)
    except text_format.ParseError as e:
        raise ModelProblem(f"the text form is malformed: {e}") from None
    return meta


def to_text(meta: Any) -> str:
    """The text form, which `from_text` reads back without loss."""
    from google.protobuf import text_format

    return text_format.MessageToString(meta)


def to_bytes(meta: Any) -> bytes:
    """The binary form; the same graph always gives the same bytes."""
    return meta.SerializeToString(deterministic=True)
