"""Places ELF object code for x86-64 Linux in memory, without LLVM.

A process that only runs plans then never loads LLVM, which costs it some 50 MB of memory and a
good part of the time to load a plan. The code that `Toolchain` emits is position independent,
small code model: sections placed side by side, four kinds of relocation, calls to the C library
through stubs. `place` returns None for anything else, and LLVM's own linker takes over.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...support.errors import PlanError
from .objectfile import _SECTION, _SYMBOL, _SYMTAB

_RELA = struct.Struct("<QQq")
_RELOCATIONS, _NOBITS = 4, 8
_ALLOC, _WRITE, _EXECUTE = 2, 1, 4
_X86_64_UNWIND = 0x70000001  # tables for exceptions, which never pass through kernels
_R_64, _R_PC32, _R_PLT32 = 1, 2, 4
_STUB = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip]; the address follows


@dataclass
class _Section:
    data: bytes
    size: int
    align: int
    executable: bool
    at: int = 0  # offset in the memory


@dataclass
class _Symbol:
    name: str
    section: int
    value: int
    exported: bool


@dataclass
class _Object:
    """What of an object file is placed; sections by their number in the file."""

    sections: dict[int, _Section]
    symbols: list[_Symbol]
    relocations: list[tuple[int, int, int, int, int]]  # section, offset, kind, symbol, addend


class Placed:
    """Code in this process; its memory goes with the object, unless `_owned` (kept forever)."""

    def __init__(self, address: int, size: int, functions: dict[str, int]):
        self._functions = functions
        self._release = weakref.finalize(self, _unmap, address, size)
        self._release.atexit = False  # workers may still be inside

    def get_function_address(self, symbol: str) -> int:
        return self._functions[symbol]

    @property
    def _owned(self) -> bool:
        return not self._release.alive

    @_owned.setter
    def _owned(self, forever: bool) -> None:
        if forever:
            self._release.detach()


def place(
    objects: Sequence[bytes], external: Callable[[str], int | None]
) -> Placed | None:
    """Links objects into new memory.

    Args:
        objects: ELF objects whose symbols were checked already (`objectfile.symbols`).
        external: Address of a function that no object defines.

    Returns:
        None if this is another kind of system, or the code needs what this linker doesn't do.

    Raises:
        PlanError: If an object is damaged.
    """
    if not objects or not _here():
        return None
    try:
        parsed = [o for o in map(_parse, objects) if o is not None]
        return _Linker(parsed, external).link() if len(parsed) == len(objects) else None
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise PlanError(f"damaged object code: {error}") from error


@functools.cache
def _here() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64" and bool(_libc())


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _unmap(address: int, size: int) -> None:
    _libc().munmap(address, size)


def _parse(code: bytes) -> _Object | None:
    table_at = struct.unpack_from("<Q", code, 40)[0]
    count = struct.unpack_from("<H", code, 60)[0]
    headers = [_SECTION.unpack_from(code, table_at + i * _SECTION.size) for i in range(count)]
    out = _Object({}, [], [])
    for number, (_, kind, flags, _, at, size, *_, align, _) in enumerate(headers):
        if not flags & _ALLOC or kind == _X86_64_UNWIND or not size:
            continue
        if flags & _WRITE:
            return None
        data = b"" if kind == _NOBITS else bytes(code[at : at + size])
        out.sections[number] = _Section(data, size, max(1, align), bool(flags & _EXECUTE))
    for header in headers:
        if header[1] == _SYMTAB:
            out.symbols = list(_symbols(code, header, headers[header[6]]))
    for header in headers:
        if header[1] == _RELOCATIONS and header[7] in out.sections:
            for at in range(header[4], header[4] + header[5], _RELA.size):
                offset, info, addend = _RELA.unpack_from(code, at)
                out.relocations.append((header[7], offset, info & 0xFFFFFFFF, info >> 32, addend))
    known = all(kind in (_R_64, _R_PC32, _R_PLT32) for _, _, kind, _, _ in out.relocations)
    return out if known else None


def _symbols(code: bytes, header: Any, strings: Any) -> Iterator[_Symbol]:
    text = bytes(code[strings[4] : strings[4] + strings[5]])
    for at in range(header[4], header[4] + header[5], _SYMBOL.size):
        name_at, info, _, section, value, _ = _SYMBOL.unpack_from(code, at)
        name = text[name_at : text.index(b"\0", name_at)].decode()
        yield _Symbol(name, section, value, info >> 4 != 0)


class _Linker:
    """One piece of memory: code, stubs for calls that leave it, then data that is only read."""

    def __init__(self, objects: list[_Object], external: Callable[[str], int | None]):
        self.objects = objects
        self.external = external
        self.stubs: dict[str, int] = {}

    def link(self) -> Placed | None:
        code_size, size = self._lay_out()
        exported = {
            s.name: o.sections[s.section].at + s.value
            for o in self.objects for s in o.symbols
            if s.exported and s.section in o.sections
        }
        memory = _libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE,
                              mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if memory in (None, ctypes.c_void_p(-1).value):
            raise PlanError(f"no memory for {size} bytes of code")
        placed = Placed(memory, size, {name: memory + at for name, at in exported.items()})
        image = (ctypes.c_char * size).from_address(memory)
        if not self._fill(image, memory, exported):
            return None
        read_execute = mmap.PROT_READ | mmap.PROT_EXEC
        if _libc().mprotect(memory, code_size, read_execute) or (
            size > code_size
            and _libc().mprotect(memory + code_size, size - code_size, mmap.PROT_READ)
        ):
            return None  # a hardened system; LLVM may know how to ask it
        return placed

    def _lay_out(self) -> tuple[int, int]:
        """Gives everything its place: bytes of executable pages, and of all."""
        at = 0
        for executable in (True, False):
            for o in self.objects:
                for section in o.sections.values():
                    if section.executable == executable:
                        at = -(-at // section.align) * section.align
                        section.at, at = at, at + section.size
            if executable:
                at = -(-at // 16) * 16
                for name in self._foreign():
                    self.stubs[name], at = at, at + 16
                code_size = at = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE
        return code_size, -(-at // mmap.PAGESIZE) * mmap.PAGESIZE

    def _foreign(self) -> list[str]:
        own = {s.name for o in self.objects for s in o.symbols if s.exported and s.section}
        used = {
            o.symbols[symbol].name for o in self.objects for *_, symbol, _ in o.relocations
            if not o.symbols[symbol].section
        }
        return sorted(used - own)

    def _fill(self, image: Any, memory: int, exported: Mapping[str, int]) -> bool:
        """Writes sections, stubs, and every address into them; False: it can't be done."""
        for name, at in self.stubs.items():
            target = self.external(name)
            if target is None:
                return False
            image[at : at + 14] = _STUB + struct.pack("<Q", target)
        for o in self.objects:
            for section in o.sections.values():
                image[section.at : section.at + len(section.data)] = section.data
        return all(
            self._relocate(image, memory, o, exported, *relocation)
            for o in self.objects for relocation in o.relocations
        )

    def _relocate(
        self, image: Any, memory: int, o: _Object, exported: Mapping[str, int],
        number: int, offset: int, kind: int, symbol_number: int, addend: int,
    ) -> bool:
        symbol = o.symbols[symbol_number]
        section = o.sections[number]
        width = 8 if kind == _R_64 else 4
        if offset + width > section.size:
            raise PlanError("damaged object code: a relocation reaches past its section")
        if symbol.section in o.sections:
            target = o.sections[symbol.section].at + symbol.value
        elif symbol.section:
            return False  # absolute, common, or in a section that isn't placed
        elif symbol.name in exported:
            target = exported[symbol.name]
        else:
            target = self.stubs[symbol.name]
            if kind != _R_PLT32:
                return False  # its address is taken, not only called
        at = section.at + offset
        if kind == _R_64:
            image[at : at + 8] = struct.pack("<Q", memory + target + addend)
        else:
            image[at : at + 4] = struct.pack("<i", target + addend - at)
        return True
