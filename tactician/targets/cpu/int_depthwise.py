"""LLVM IR of depthwise integer convolution: every channel meets a window of its own.

Products and sums are made in f32, where they are exact (a window of bytes stays far below 2**24),
because multiply-adds of f32 are at least as fast as any on integers that works lane by lane.
Packed weights are ``[K / nr][nr s32 | taps][nr]`` f32; see `dot_ir` for the s32.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from llvmlite import ir

from . import vecmath as V
from .conv_ir import ConvShape, Store, Tile
from .dot_ir import DotMicroKernel
from .int_dot import Dot
from .isa import Isa
from .vecmath import F32, I8, I32, I64


def pack_depthwise(w: np.ndarray[Any, Any], nr: int, blocks: int) -> np.ndarray[Any, Any]:
    """Weights ``[k, 1, taps]`` as bytes ``[blocks, taps * nr * 4]``."""
    k, _, taps = w.shape
    full = np.zeros((blocks * nr, taps), np.float32)
    full[:k] = w[:, 0]
    order = full.reshape(blocks, nr, taps).transpose(0, 2, 1)
    return np.ascontiguousarray(order).reshape(blocks, -1).view(np.uint8)


class DepthwiseMicroKernel(DotMicroKernel):
    """One tile: ``mr`` pixels of a row by ``nv`` vectors of channels, all taps unrolled."""

    def __init__(
        self, module: ir.Module, shape: ConvShape, tile: Tile, mr: int, channels: int, name: str,
        x_signed: bool,
    ):  # fmt: skip
        dot = Dot("dot", tile.lanes, x_signed, Isa.host())  # for the layout alone
        super().__init__(module, shape, tile, dot, mr, channels, name)
        self.x_signed = x_signed
        self.ft = ir.VectorType(F32, tile.lanes)
        self.fma = V.declare(module, f"llvm.fma.v{tile.lanes}f32", self.ft, [self.ft] * 3)

    def build(self, zero: Any, store: Store, before: Any = None) -> None:
        """See `DotMicroKernel.build`."""
        b = ir.IRBuilder(self.fn.append_basic_block("entry"))
        lanes = self.tile.lanes
        start = []
        for j in range(self.nv):
            at = b.gep(self.w, [I64(4 * j * lanes)], source_etype=I8)
            s = b.load(at, align=4, typ=self.vt)
            if zero is not None:
                s = b.mul(s, V.splat(b, zero(b, self.args), lanes))
            start.append(b.sitofp(s, self.ft))
        w = b.gep(self.w, [I64(4 * self.tile.nr)], source_etype=I8)
        inside = self._inside(b)
        yes, no = b.append_basic_block("interior"), b.append_basic_block("border")
        join = b.append_basic_block("join")
        b.cbranch(inside, yes, no)
        ends = []
        for block, border in ((yes, False), (no, True)):
            b.position_at_end(block)
            sums = self._window(b, w, start * self.mr, border)
            ends.append((sums, b.block))
            b.branch(join)
        b.position_at_end(join)
        phis = [b.phi(self.ft) for _ in range(self.mr * self.nv)]
        for sums, block in ends:
            for phi, x in zip(phis, sums, strict=True):
                phi.add_incoming(x, block)
        store(self, b, phis)  # type: ignore[arg-type]
        b.ret_void()

    def _inside(self, b: ir.IRBuilder) -> ir.Value:
        """Whether all taps of all pixels lie in the input."""
        s = self.shape
        ok: Any = ir.Constant(V.I1, 1)
        for d in range(self.rank):
            reach = (s.window[d] - 1) * s.dilation[d]
            if d == self.rank - 1:
                reach += (self.mr - 1) * s.stride[d]
            last = b.add(self.origins[d], I64(reach))
            ok = b.and_(ok, b.icmp_signed(">=", self.origins[d], I64(0)))
            ok = b.and_(ok, b.icmp_signed("<", last, self.sizes[d]))
        return ok

    def _window(self, b: ir.IRBuilder, w: Any, acc: list[Any], border: bool) -> list[Any]:
        s, lanes = self.shape, self.tile.lanes
        acc = list(acc)
        for number, outer in enumerate(itertools.product(*map(range, s.window[:-1]))):
            row, exists = self._row(b, outer, border)
            seen: dict[tuple[int, int], ir.Value] = {}
            for t in range(s.window[-1]):
                tap = number * s.window[-1] + t
                for j in range(self.nv):
                    at = b.gep(w, [I64(4 * (tap * self.tile.nr + j * lanes))], source_etype=I8)
                    weights = b.load(at, align=4, typ=self.ft)
                    for i in range(self.mr):
                        pos = i * s.stride[-1] + t * s.dilation[-1]
                        if (pos, j) not in seen:
                            seen[pos, j] = self._read(b, row, exists, pos, j, border)
                        n = i * self.nv + j
                        acc[n] = b.call(self.fma, [seen[pos, j], weights, acc[n]])
        return acc

    def _row(self, b: ir.IRBuilder, outer: tuple[int, ...], border: bool) -> tuple[Any, Any]:
        """Address of the row that a tap of the outer axes reads, and whether it exists."""
        s = self.shape
        offset: Any = I64(0)
        exists: Any = ir.Constant(V.I1, 1)
        for d, t in enumerate(outer):
            at = b.add(self.origins[d], I64(t * s.dilation[d]))
            offset = b.add(offset, b.mul(at, self.strides[d]))
            if border:
                exists = b.and_(exists, b.icmp_unsigned("<", at, self.sizes[d]))
        return b.gep(self.x, [offset], source_etype=I8), exists

    def _read(self, b: ir.IRBuilder, row: Any, exists: Any, pos: int, j: int, border: bool) -> Any:
        """A vector of channels at a position of a row, as f32."""
        lanes = self.tile.lanes
        at = b.add(self.origins[-1], I64(pos))
        source = b.gep(row, [b.mul(at, I64(self.shape.x_pixel))], source_etype=I8)
        if border:
            ok = b.and_(exists, b.icmp_unsigned("<", at, self.sizes[-1]))
            source = b.select(ok, source, self.zeros)
        if j:
            source = b.gep(source, [I64(j * lanes)], source_etype=I8)
        x = load_bytes(b, source, lanes, min(lanes, self.channels - j * lanes))
        wide = b.sext(x, self.vt) if self.x_signed else b.zext(x, self.vt)
        return b.sitofp(wide, self.ft)


def load_bytes(b: ir.IRBuilder, at: Any, lanes: int, count: int) -> ir.Value:
    """A vector of bytes that touches no more than ``count``; the others are zero."""
    t = ir.VectorType(I8, lanes)
    if count >= lanes:
        return b.load(at, align=1, typ=t)
    out: Any = ir.Constant(t, None)
    done = 0
    while done < count:
        n = 1 << int(math.log2(count - done))
        here = b.gep(at, [I64(done)], source_etype=I8)
        if n == 1:
            out = b.insert_element(out, b.load(here, align=1, typ=I8), I32(done))
        else:
            part = b.load(here, align=1, typ=ir.VectorType(I8, n))
            undefined = V.undefined(part.type)
            spread = [I32(k - done if done <= k < done + n else 0) for k in range(lanes)]
            mask = ir.Constant(ir.VectorType(I32, lanes), spread)
            wide = b.shuffle_vector(part, undefined, mask)
            pick = [I32(lanes + k if done <= k < done + n else k) for k in range(lanes)]
            out = b.shuffle_vector(out, wide, ir.Constant(ir.VectorType(I32, lanes), pick))
        done += n
    return out
