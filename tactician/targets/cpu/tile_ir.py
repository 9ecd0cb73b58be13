"""Tile registers (AMX): loading, storing and multiplying them, inside functions of a kernel.

A tile is up to 16 rows of up to 64 bytes; how many of each is set for every register by a
configuration in memory. A product adds to every 32-bit element of one tile the dot product of a
row of the second and a column of the third, in which the numbers that meet in one element (two
bf16 or four bytes) stand side by side.

Where the CPU lacks the instructions they are spelled out on memory that stands for the registers:
the same configuration, the same order of sums, and traps where the unit would fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from . import vecmath as V
from .conv_ir import PTR, Loop
from .isa import Isa
from .vecmath import F32, I8, I16, I32, I64

ROWS, ROW_BYTES, REGISTERS = 16, 64, 8
CONFIG_BYTES = 64
STATE_BYTES = CONFIG_BYTES + REGISTERS * ROWS * ROW_BYTES  # configuration and registers
_WIDTHS, _HEIGHTS = 16, 48  # where a configuration has bytes of a row (u16), and rows (u8)
_WORDS = ir.VectorType(I32, ROW_BYTES // 4)

PRODUCTS = {
    "bf16": "tdpbf16ps", "i8i8": "tdpbssd", "i8u8": "tdpbsud", "u8i8": "tdpbusd", "u8u8": "tdpbuud",
}  # fmt: skip
"""Instructions by the types of their factors."""


class TileUnit:
    """The tile registers of one CPU.

    Args:
        isa: Says whether there are instructions.
        module: Where functions are declared.
    """

    def __init__(self, isa: Isa, module: ir.Module):
        self.module = module
        self.real = isa.tile_instructions
        self.state_bytes = 0 if self.real else STATE_BYTES

    def configure(self, b: ir.IRBuilder, state: Any, registers: list[tuple[Any, int]]) -> None:
        """Sets the shapes of the registers, which are zero then. Not for loops: it takes stack.

        Args:
            state: ``state_bytes`` of memory, 64-byte aligned, that stand for them.
            registers: Rows (an i64) and bytes of a row of each that is used.
        """
        config = b.alloca(ir.ArrayType(I8, CONFIG_BYTES))
        config.align, config.type = CONFIG_BYTES, PTR  # llvmlite types the pointer
        for at in range(0, CONFIG_BYTES, 8):
            b.store(I64(1 if at == 0 else 0), _byte(b, config, at), align=8)  # palette 1
        for n, (rows, width) in enumerate(registers):
            b.store(I16(width), _byte(b, config, _WIDTHS + 2 * n), align=2)
            b.store(b.trunc(rows, I8), _byte(b, config, _HEIGHTS + n), align=1)
        if self.real:
            b.call(self._declared("ldtilecfg", [PTR]), [config])
        else:
            b.call(self._emulated("tile_configure", [PTR, PTR], _configure), [state, config])

    def release(self, b: ir.IRBuilder) -> None:
        """Lets the registers go, so that nobody has to save them."""
        if self.real:
            b.call(self._declared("tilerelease", []), [])

    def load(self, b: ir.IRBuilder, state: Any, tile: int, at: Any, stride: Any) -> None:
        """Fills a register with rows ``stride`` bytes apart."""
        if self.real:
            fn = self._declared("tileloadd64", [I8, PTR, I64])
            b.call(fn, [I8(tile), at, stride])
        else:
            fn = self._emulated("tile_load", [PTR, I64, PTR, I64], _load)
            b.call(fn, [state, I64(tile), at, stride])

    def store(self, b: ir.IRBuilder, state: Any, tile: int, at: Any, stride: Any) -> None:
        """Writes a register's rows, ``stride`` bytes apart."""
        if self.real:
            fn = self._declared("tilestored64", [I8, PTR, I64])
            b.call(fn, [I8(tile), at, stride])
        else:
            fn = self._emulated("tile_store", [PTR, I64, PTR, I64], _store)
            b.call(fn, [state, I64(tile), at, stride])

    def clear(self, b: ir.IRBuilder, state: Any, tile: int) -> None:
        """Fills a register with zeros."""
        if self.real:
            b.call(self._declared("tilezero", [I8]), [I8(tile)])
        else:
            b.call(self._emulated("tile_clear", [PTR, I64], _clear_all), [state, I64(tile)])

    def multiply(
        self, b: ir.IRBuilder, state: Any, kind: str, sums: int, rows: int, columns: int
    ) -> None:
        """Adds the products of two registers to a third.

        Args:
            kind: A key of `PRODUCTS`.
        """
        if self.real:
            fn = self._declared(PRODUCTS[kind], [I8] * 3)
            b.call(fn, [I8(sums), I8(rows), I8(columns)])
            return

        def make(b: ir.IRBuilder, args: Any) -> None:
            _multiply(b, args, kind)

        fn = self._emulated(f"tile_{PRODUCTS[kind]}", [PTR, I64, I64, I64], make)
        b.call(fn, [state, I64(sums), I64(rows), I64(columns)])

    def _declared(self, name: str, types: list[ir.Type]) -> ir.Function:
        return V.declare(self.module, f"llvm.x86.{name}", ir.VoidType(), types)

    def _emulated(self, name: str, types: list[ir.Type], make: Any) -> ir.Function:
        if name in self.module.globals:
            return self.module.globals[name]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        b = ir.IRBuilder(fn.append_basic_block("entry"))
        make(b, fn.args)
        b.ret_void()
        return fn


# --- spelled out ----------------------------------------------------------------------------


def _byte(b: ir.IRBuilder, base: Any, at: Any) -> Any:
    return b.gep(base, [I64(at) if isinstance(at, int) else at], source_etype=I8)


def _rows(b: ir.IRBuilder, state: Any, tile: Any) -> Any:
    at = _byte(b, state, b.add(tile, I64(_HEIGHTS)))
    return b.zext(b.load(at, typ=I8, align=1), I64)


def _width(b: ir.IRBuilder, state: Any, tile: Any) -> Any:
    at = _byte(b, state, b.add(b.shl(tile, I64(1)), I64(_WIDTHS)))
    return b.zext(b.load(at, typ=I16, align=2), I64)


def _row(b: ir.IRBuilder, state: Any, tile: Any, row: Any) -> Any:
    number = b.add(b.mul(tile, I64(ROWS)), row)
    return _byte(b, state, b.add(b.mul(number, I64(ROW_BYTES)), I64(CONFIG_BYTES)))


def _faults(b: ir.IRBuilder, wrong: Any) -> None:
    with b.if_then(wrong, likely=False):
        b.call(V.declare(b.module, "llvm.trap", ir.VoidType(), []), [])


def _clear(b: ir.IRBuilder, state: Any, tile: Any) -> None:
    with Loop(b, I64(0), I64(ROWS)) as row:
        b.store(ir.Constant(_WORDS, None), _row(b, state, tile, row.index), align=4)


def _clear_all(b: ir.IRBuilder, args: Any) -> None:
    state, tile = args
    _faults(b, b.icmp_signed("==", b.mul(_rows(b, state, tile), _width(b, state, tile)), I64(0)))
    _clear(b, state, tile)


def _configure(b: ir.IRBuilder, args: Any) -> None:
    state, config = args
    with Loop(b, I64(0), I64(CONFIG_BYTES)) as at:
        byte = b.load(_byte(b, config, at.index), typ=I8, align=1)
        b.store(byte, _byte(b, state, at.index), align=1)
    with Loop(b, I64(0), I64(REGISTERS)) as tile:
        rows, width = (f(b, state, tile.index) for f in (_rows, _width))
        _faults(b, b.icmp_unsigned(">", rows, I64(ROWS)))
        _faults(b, b.icmp_unsigned(">", width, I64(ROW_BYTES)))
        _clear(b, state, tile.index)


def _load(b: ir.IRBuilder, args: Any) -> None:
    state, tile, base, stride = args
    rows, width = _rows(b, state, tile), _width(b, state, tile)
    _faults(b, b.icmp_signed("==", b.mul(rows, width), I64(0)))
    _clear(b, state, tile)
    with Loop(b, I64(0), rows) as row:
        source = _byte(b, base, b.mul(row.index, stride))
        to = _row(b, state, tile, row.index)
        with Loop(b, I64(0), width) as at:
            b.store(b.load(_byte(b, source, at.index), typ=I8, align=1), _byte(b, to, at.index),
                    align=1)


def _store(b: ir.IRBuilder, args: Any) -> None:
    state, tile, base, stride = args
    rows, width = _rows(b, state, tile), _width(b, state, tile)
    with Loop(b, I64(0), rows) as row:
        to = _byte(b, base, b.mul(row.index, stride))
        source = _row(b, state, tile, row.index)
        with Loop(b, I64(0), width) as at:
            b.store(b.load(_byte(b, source, at.index), typ=I8, align=1), _byte(b, to, at.index),
                    align=1)


def _multiply(b: ir.IRBuilder, args: Any, kind: str) -> None:
    state, c, x, w = args
    groups = b.udiv(_width(b, state, x), I64(4))
    rows, width = _rows(b, state, c), _width(b, state, c)
    _faults(b, b.icmp_unsigned("!=", rows, _rows(b, state, x)))
    _faults(b, b.icmp_unsigned("!=", width, _width(b, state, w)))
    _faults(b, b.icmp_unsigned("!=", groups, _rows(b, state, w)))
    floats = V.like(_WORDS, F32)
    zero = ir.Constant(floats if kind == "bf16" else _WORDS, None)
    parts = 2 if kind == "bf16" else 1
    with Loop(b, I64(0), rows) as row:
        to = _row(b, state, c, row.index)
        with Loop(b, I64(0), groups, carried=[zero] * parts) as k:
            at = _byte(b, _row(b, state, x, row.index), b.mul(k.index, I64(4)))
            spread = V.splat(b, b.load(at, typ=I32, align=4), _WORDS.count)
            weights = b.load(_row(b, state, w, k.index), typ=_WORDS, align=4)
            k.next(_terms(b, kind, list(k.carried), spread, weights))
        sums = b.load(to, typ=zero.type, align=4)
        if kind == "bf16":
            new = b.fadd(sums, b.fadd(k.results[0], k.results[1]))
        else:
            new = b.add(sums, k.results[0])
        lanes = ir.Constant(_WORDS, [I32(n) for n in range(_WORDS.count)])
        count = V.splat(b, b.trunc(b.udiv(width, I64(4)), I32), _WORDS.count)
        b.store(b.select(b.icmp_unsigned("<", lanes, count), new, zero), to, align=4)


def _terms(b: ir.IRBuilder, kind: str, sums: list[Any], x: Any, w: Any) -> list[Any]:
    """``sums`` and the products of the numbers in each element."""
    if kind == "bf16":
        floats = V.like(_WORDS, F32)
        high = V.const(_WORDS, np.int32(-65536))
        out = []
        for n, total in enumerate(sums):
            p, q = (
                b.bitcast(b.and_(v, high) if n else b.shl(v, V.const(_WORDS, 16)), floats)
                for v in (x, w)
            )
            out.append(b.fadd(total, b.fmul(p, q)))
        return out
    total = sums[0]
    for n in range(4):
        p, q = (_part(b, v, n, signed) for v, signed in ((x, kind[0] == "i"), (w, kind[2] == "i")))
        total = b.add(total, b.mul(p, q))
    return [total]


def _part(b: ir.IRBuilder, x: Any, n: int, signed: bool) -> Any:
    """Byte ``n`` of every element."""
    up = b.shl(x, V.const(x.type, 24 - 8 * n))
    shift = V.const(x.type, 24)
    return b.ashr(up, shift) if signed else b.lshr(up, shift)
