"""Products of bytes by pairs in s16, guarded: blocks of channels in which no pixel of the tile has
a number above the limit take the fast instruction, which saturates; others are widened first.

The limit is that of the panel's weights (`int_dot.pair_limits`): with weights that spread as those
of trained networks do it is far above what activations usually are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from . import vecmath as V
from .conv_ir import Loop, joined
from .int_dot import GROUP, GUARDED, Dot
from .vecmath import I8, I64

if TYPE_CHECKING:
    from .dot_ir import DotMicroKernel

LIMIT_BYTES = 64  # of a panel: its limit, as often as the widest vector has bytes


def block_of(channels: int, width: int) -> int:
    """Channels that are held against the limit at a time, with vectors of ``width`` bytes."""
    block = width
    while channels % block:
        block //= 2
    return max(block, GUARDED)


class Guard:
    """Emits the products of one tap for a tile.

    Args:
        kernel: The tile.
        limit: Address of the panel's limit.
    """

    def __init__(self, kernel: DotMicroKernel, limit: ir.Value):
        self.kernel, self.limit = kernel, limit
        assert isinstance(kernel.dot, Dot)
        self.dot: Dot = kernel.dot
        self.block = block_of(kernel.shape.c, self.dot.lanes * GROUP)
        self.bytes = ir.VectorType(I8, self.block)

    def channels(self, b: ir.IRBuilder, rows: Sequence[Any], w: Any, acc: list[Any]) -> list[Any]:
        """Adds the products over all input channels."""
        blocks = self.kernel.shape.c // self.block
        if blocks == 1:
            return self._block(b, rows, w, I64(0), acc)
        far, groups = self.kernel.far(b, w), self.block // GROUP
        with Loop(b, I64(0), I64(blocks * groups), groups, carried=acc) as loop:
            self.kernel.request(b, far, loop.index)
            loop.next(self._block(b, rows, w, loop.index, list(loop.carried)))
        return list(loop.results)

    def _block(
        self, b: ir.IRBuilder, rows: Sequence[Any], w: Any, first: Any, acc: list[Any]
    ) -> list[Any]:
        fits = self._fits(b, rows, first)
        fast, slow = b.append_basic_block("fast"), b.append_basic_block("slow")
        join = b.append_basic_block("join")
        b.cbranch(fits, fast, slow)
        b.position_at_end(slow)
        with Loop(b, I64(0), I64(self.block // GROUP), carried=acc) as loop:
            loop.next(self._wide(b, rows, w, b.add(first, loop.index), list(loop.carried)))
        ways = [(list(loop.results), b.block)]
        b.branch(join)
        b.position_at_end(fast)
        with Loop(b, I64(0), I64(self.block // GROUP), carried=acc) as loop:
            group = b.add(first, loop.index)
            loop.next(self.kernel.group(b, rows, w, group, GROUP, list(loop.carried)))
        ways.append((list(loop.results), b.block))
        b.branch(join)
        b.position_at_end(join)
        return joined(b, *ways)

    def _fits(self, b: ir.IRBuilder, rows: Sequence[Any], first: Any) -> Any:
        """Whether no number of a block exceeds the limit."""
        at = b.mul(first, I64(GROUP))
        most: Any = None
        for row in rows:
            x = b.load(b.gep(row, [at], source_etype=I8), align=1, typ=self.bytes)
            if self.dot.shift:
                x = b.xor(x, V.const(x.type, -128))
            most = x if most is None else _call(b, "umax", most, x)
        over = _call(b, "usub.sat", most, b.load(self.limit, align=1, typ=self.bytes))
        flat = ir.IntType(8 * self.block)
        return b.icmp_unsigned("==", b.bitcast(over, flat), flat(0))

    def _wide(
        self, b: ir.IRBuilder, rows: Sequence[Any], w: Any, g: Any, acc: list[Any]
    ) -> list[Any]:
        """The products of a group of channels, whatever they are."""
        dot, nv = self.dot, self.kernel.nv
        acc = list(acc)
        weights = [dot.weights_wide(b, at) for at in self.kernel.weights_at(b, w, g)]
        for i, row in enumerate(rows):
            here = b.gep(row, [b.mul(g, I64(GROUP))], source_etype=I8)
            x = dot.spread_wide(b, b.load(here, align=1, typ=V.I32))
            for j in range(nv):
                acc[i * nv + j] = dot.products_wide(b, acc[i * nv + j], x, weights[j])
        return acc


def _call(b: ir.IRBuilder, name: str, x: Any, y: Any) -> Any:
    full = f"llvm.{name}.{V.type_suffix(x.type)}"
    return b.call(V.declare(b.module, full, x.type, [x.type, x.type]), [x, y])
