"""Measures what one core can do: multiply-adds on registers, products of tiles where there are
any, and reads from memory.

python benchmarks/peak.py [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time

import numpy as np
from llvmlite import ir

from tactician.targets.cpu import vecmath as V
from tactician.targets.cpu.codegen import Gen
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.tile_ir import TileUnit
from tactician.targets.cpu.toolchain import toolchain

_ENTRY = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


def _fma_kernel(isa: Isa, bits: int) -> tuple[str, int]:
    """Independent chains of multiply-adds, as many as the registers hold; flops per turn."""
    g = Gen("peak", isa)
    element = V.F32 if bits == 32 else V.F64
    lanes = isa.lanes(bits)
    vec = ir.VectorType(element, lanes)
    chains = isa.vector_registers - 4
    out = g.arg(0)
    x, y = (g.load(vec, g.at(out, i * 64)) for i in range(2))
    with g.loop(g.begin, g.end, 1, carried=[V.const(vec, float(i)) for i in range(chains)]) as k:
        sums = k.carried
        for _ in range(4):
            sums = [V.intrinsic(g.b, "fma", x, y, s) for s in sums]
        k.next = sums
    total = k.results[0]
    for s in k.results[1:]:
        total = g.b.fadd(total, s)
    g.store(total, out)
    return g.finish(), 4 * chains * lanes * 2


def _tile_kernel(isa: Isa, kind: str, rows: int, sums: int) -> tuple[str, int]:
    """Products of tiles with ``rows`` rows, added to some tiles in turn; operations per turn."""
    g = Gen("peak_tiles", isa)
    unit = TileUnit(isa, g.module)
    shapes = [(V.I64(rows), 64)] * 5 + [(V.I64(16), 64)]
    unit.configure(g.b, None, shapes)
    with g.loop(g.begin, g.end, 1):
        for n in range(8):
            unit.multiply(g.b, None, kind, n % sums, 4, 5)
    unit.release(g.b)
    return g.finish(), 8 * 2 * rows * 16 * (32 if kind == "bf16" else 64)


def _read_kernel(isa: Isa) -> str:
    """Sums of memory, begin to end in units of 8 vectors."""
    g = Gen("stream", isa)
    lanes = isa.lanes(32)
    vec = ir.VectorType(V.F32, lanes)
    base, out = g.arg(0), g.arg(1)
    with g.loop(g.begin, g.end, 1, carried=[V.const(vec, 0.0)] * 8) as k:
        at = g.at(base, g.mul(k.index, 8 * lanes), 4)
        k.next = [g.b.fadd(s, g.load(vec, g.at(at, i * lanes, 4))) for i, s in enumerate(k.carried)]
    total = k.results[0]
    for s in k.results[1:]:
        total = g.b.fadd(total, s)
    g.store(total, out)
    return g.finish()


def _best(call, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _entry(text: str, symbol: str):
    code = toolchain().load(text)
    return code, _ENTRY(code.address(symbol))


def peak_gflops(bits: int = 32, seconds: float = 0.3) -> float:
    """Most GFLOP/s that one core reaches on f32 (or f64) multiply-adds, best of many runs."""
    text, flops = _fma_kernel(Isa.host(), bits)
    code, run = _entry(text, "peak")
    data = np.zeros(64, np.float64)
    args = np.array([data.ctypes.data], np.int64)
    turns = 2000
    seconds = _best(lambda: run(args.ctypes.data, None, 0, turns, None), seconds)
    assert code
    return flops * turns / seconds / 1e9


def peak_tiles(kind: str = "bf16", seconds: float = 0.3, rows: int = 16, sums: int = 4) -> float:
    """Most GFLOP/s that one core reaches on tile registers, or GOP/s for bytes; 0 without them.

    Args:
        kind: A key of `tile_ir.PRODUCTS`.
        rows: Rows of the tiles.
        sums: Tiles of sums that take turns.
    """
    isa = Isa.host()
    if not (isa.amx and isa.tile_instructions):
        return 0.0
    text, flops = _tile_kernel(isa, kind, rows, sums)
    code, run = _entry(text, "peak_tiles")
    turns = 2000
    seconds = _best(lambda: run(None, None, 0, turns, None), seconds)
    assert code
    return flops * turns / seconds / 1e9


def peak_gbytes(megabytes: int = 64, seconds: float = 0.5) -> float:
    """Most GB/s that one core reads from memory larger than its caches."""
    isa = Isa.host()
    code, run = _entry(_read_kernel(isa), "stream")
    unit = 8 * isa.vector_bits // 8
    # ones, because pages of zeros that were never written share one page of memory
    data, out = np.ones(megabytes << 18, np.float32), np.zeros(64, np.float32)
    args = np.array([data.ctypes.data, out.ctypes.data], np.int64)
    turns = data.nbytes // unit
    best = _best(lambda: run(args.ctypes.data, None, 0, turns, None), seconds)
    assert code
    return data.nbytes / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {
        "cpu": Isa.host().summary(),
        "f32_gflops": round(peak_gflops(32), 1),
        "f64_gflops": round(peak_gflops(64), 1),
        "bf16_tile_gflops": round(peak_tiles("bf16"), 1),
        "int8_tile_gops": round(peak_tiles("u8i8"), 1),
        "read_gbytes": round(peak_gbytes(), 1),
    }
    if options.json:
        print(json.dumps(found))
    else:
        print(found["cpu"])
        print(f"f32 {found['f32_gflops']} GFLOP/s, f64 {found['f64_gflops']} GFLOP/s a core")
        if found["bf16_tile_gflops"]:
            print(f"tiles: bf16 {found['bf16_tile_gflops']} GFLOP/s, int8 {found['int8_tile_gops']}"
                  " GOP/s a core")
        print(f"memory {found['read_gbytes']} GB/s")


if __name__ == "__main__":
    main()
