"""Reads the symbol table of ELF object code, so that linking can fail with an exception.

LLVM's linker ends the process when a symbol is missing; checking first turns that into an
error that names the function.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ...support.errors import PlanError

_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
_SYMTAB = 2
_SYMBOL = struct.Struct("<IBBHQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class Symbols:
    """Names that an object defines for others, and names it needs."""

    defined: frozenset[str]
    undefined: frozenset[str]


def symbols(code: bytes, triple: str) -> Symbols | None:
    """The global symbols of an ELF64 object; None for the other formats of other systems.

    Raises:
        PlanError: If the bytes are not a whole ELF object for the architecture of ``triple``.
    """
    if "linux" not in triple and code[:4] != b"\x7fELF":
        return None  # Mach-O or COFF
    if len(code) < 64 or code[:6] != b"\x7fELF\x02\x01":
        raise PlanError("object code is damaged: it does not start as 64-bit ELF does")
    machine = _MACHINES.get(struct.unpack_from("<H", code, 18)[0], "unknown")
    arch = triple.split("-")[0]
    arch = _ALIASES.get(arch, arch)
    if machine != arch:
        raise PlanError(f"object code is for {machine}, this machine is {arch}")
    try:
        return _read(code)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise PlanError(f"object code is damaged: {error}") from error


def _read(code: bytes) -> Symbols:
    table_at = struct.unpack_from("<Q", code, 40)[0]
    size, count = struct.unpack_from("<HH", code, 58)
    if size != _SECTION.size:
        raise ValueError(f"section headers of {size} bytes")
    sections = [_SECTION.unpack_from(code, table_at + i * size) for i in range(count)]
    for _, _, _, _, offset, length, *_ in (s for s in sections if s[1] != 8):
        if offset + length > len(code):
            raise ValueError("a section reaches past the end")
    defined: set[str] = set()
    undefined: set[str] = set()
    for header in sections:
        if header[1] != _SYMTAB:
            continue
        _, _, _, _, offset, length, strings_index, *_ = header
        strings_at, strings_len = sections[strings_index][4:6]
        strings = code[strings_at : strings_at + strings_len]
        for at in range(offset + _SYMBOL.size, offset + length, _SYMBOL.size):
            name_at, info, _, section, _, _ = _SYMBOL.unpack_from(code, at)
            if info >> 4 == 0 or not name_at:
                continue  # local
            name = strings[name_at : strings.index(b"\0", name_at)].decode()
            (undefined if section == 0 else defined).add(name)
    return Symbols(frozenset(defined), frozenset(undefined))
