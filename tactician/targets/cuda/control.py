"""Kernels that keep count of loops: what `builder.control` needs of a target."""

from __future__ import annotations

from ...ir import dims as D
from ...tactics.kernel import Kernel, Launch

_BLOCK = 1024
_COUNTERS = ("*i64", "*i8", "*i64", "*i8")  # iteration, whether to go on, trip count, condition
_GO_ON = """
    n = tl.load(n_at)
    c = tl.load(c_at)
    tl.store(i_at, j)
    tl.store(go_at, ((j < n) & (c != 0)).to(tl.int8))
"""
_START = """
@triton.jit
def loop_start(i_at, go_at, n_at, c_at):
    j = tl.load(n_at) * 0
""" + _GO_ON.lstrip("\n")
_NEXT = """
@triton.jit
def loop_next(i_at, go_at, n_at, c_at):
    j = tl.load(i_at) + 1
""" + _GO_ON.lstrip("\n")
_SCAN = f"""
@triton.jit
def scan_store(src, i_at, out, size):
    i = tl.load(i_at)
    o = tl.program_id(0).to(tl.int64) * {_BLOCK} + tl.arange(0, {_BLOCK})
    m = o < size
    tl.store(out + i * size + o, tl.load(src + o, mask=m, other=0), mask=m)
"""


def loop_kernel(symbol: str) -> Kernel:
    """The kernel ``loop_start`` or ``loop_next``."""
    source = {"loop_start": _START, "loop_next": _NEXT}[symbol]
    return Kernel(symbol, source, (), launch=Launch(_COUNTERS, (1,), warps=1))


def scan_kernel(size: D.DimLike) -> Kernel:
    """Copies ``size`` bytes to their place among a loop's scan outputs."""
    types = ("*i8", "*i64", "*i8", "i64")
    grid = (D.ceil_div(size, _BLOCK),)
    return Kernel("scan_store", _SCAN, (), (size,), launch=Launch(types, grid, warps=4))
