"""Programs to plan bytes and back. See `container` for the bytes, `check` for the meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.serialize import BlobWriter, Decoder, Encoder, SerializeError, renumber_data_symbols
from ..support.errors import PlanError
from .check import check_program
from .container import AnyBytes, Header, pack, read_header, unpack
from .program import Check, Profile, Program, Step, Tensor

__all__ = ["Header", "read_header", "read_plan", "write_plan"]

_RECORDS = {cls.__name__: cls for cls in (Tensor, Step, Profile, Check)}
_PLAIN = {
    f.name for f in fields(Program)
} - {"symbols", "code", "walker", "constants", "nodes", "network", "target", "device"}


def write_plan(
    program: Program, kind: type[AnyBytes] = bytes,  # type: ignore[assignment]
) -> AnyBytes:  # fmt: skip
    """The bytes of a plan. Equal programs give equal bytes: no times, no process state.

    Args:
        program: What it holds.
        kind: Type of the result.

    Raises:
        PlanError: If the program holds something that plans can't carry.
    """
    blobs = BlobWriter()
    encoder = Encoder(blobs)
    try:
        meta: dict[str, Any] = {
            "symbols": encoder.symbols(program.symbols),
            "constants": [encoder.array(np.asarray(c)) for c in program.constants],
            "code": [blobs.add(c) for c in program.code],
            "walker": [program.walker[0], blobs.add(program.walker[1])] if program.walker else None,
            "nodes": encoder.graph(program.nodes),
            "network": encoder.graph(program.network) if program.network else None,
        }
        for name in sorted(_PLAIN):
            meta[name] = encoder.value(getattr(program, name))
    except SerializeError as e:
        raise PlanError(f"the program of {program.name!r} can't be written: {e}") from None
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return pack(program.target, program.device, text.encode(), blobs.blobs, kind)


def read_plan(data: Any) -> Program:
    """A program from plan bytes. Arrays are views of ``data``, which must not change.

    Raises:
        PlanError: If the bytes are damaged, of another version, or make no sense.
    """
    header, text, sections = unpack(data)
    try:
        meta = json.loads(bytes(text))
        program = _program(header, meta, sections)
        check_program(program)
    except PlanError:
        raise
    except RecursionError:
        raise PlanError("the plan's metadata is nested too deeply") from None
    except (SerializeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
        raise PlanError(f"the plan's metadata makes no sense: {e}") from e
    return program


def _program(header: Header, meta: Any, sections: Sequence[memoryview]) -> Program:
    if not isinstance(meta, dict):
        raise PlanError("the plan's metadata is no JSON object")
    expected = _PLAIN | {"symbols", "constants", "code", "walker", "nodes", "network"}
    if set(meta) != expected:
        odd = ", ".join(sorted(set(meta) ^ expected))
        raise PlanError(
            f"the plan was written by another version of tactician (its metadata has unknown or "
            f"missing entries: {odd}); build the engine again with this version"
        )
    decoder = Decoder(sections, _attrs_of, _RECORDS)
    plain = {name: decoder.value(meta[name]) for name in _PLAIN}
    return Program(
        target=header.target,
        device=header.device,
        symbols=decoder.symbols(meta["symbols"]),
        constants=[decoder.value(c) for c in meta["constants"]],
        code=[_section(sections, i) for i in meta["code"]],
        walker=_walker(meta["walker"], sections),
        nodes=decoder.graph(meta["nodes"]),
        network=None if meta["network"] is None else _network(meta["network"], sections),
        **plain,
    )


def _network(j: Any, sections: Sequence[memoryview]) -> Graph:
    decoder = Decoder(sections, _attrs_of)
    graph = decoder.graph(j)
    renumber_data_symbols(graph, decoder.numbers)
    return graph


def _walker(j: Any, sections: Sequence[memoryview]) -> tuple[str, bytes] | None:
    if j is None:
        return None
    key, section = j
    return str(key), _section(sections, section)


def _section(sections: Sequence[memoryview], i: Any) -> bytes:
    if type(i) is not int or not 0 <= i < len(sections):
        raise PlanError(f"code in section {i!r}, which does not exist")
    return bytes(sections[i])


def _attrs_of(op: str) -> type:
    from .. import ops

    return ops.get(op).Attrs
