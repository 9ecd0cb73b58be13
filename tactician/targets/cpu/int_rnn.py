"""Tactic: LSTM on 8-bit weights, the state quantized at every step.

Weights of one direction are a quarter of f32's, so that they stay in the cache from step to step:
the floor is the products at the rate of the CPU's 8-bit instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import f32, u8
from ...ir.graph import Node, Value
from ...ops.recurrent import DEFAULTS
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert, requantize
from . import vecmath as V
from .codegen import Gen, Num
from .int_dot import GROUP, Dot, methods
from .isa import Isa
from .rnn import FUNCTIONS, Array, Builder, Group, groups_of, peepholes
from .vecmath import F32, I16, I32

_GATES = 4
_UNROLL = 4  # groups of a turn of the innermost loop


class _Packed:
    """One network's constants for all directions, ready for the kernel.

    Attributes:
        weights: Bytes ``[dirs, panels * panel]``; a panel is ``[gate][lane]`` of starts (s32) and
            of scales (f32), then ``[group of four units][gate]`` of weights.
    """

    def __init__(self, node: Node, dot: Dot):
        r, scale = node.inputs[1], node.inputs[2]
        p = (*node.inputs, None, None, None, None)[6]
        assert r is not None and scale is not None and r.const is not None
        hidden, lanes = node.attrs.hidden, dot.lanes
        self.hidden, self.lanes, self.panels = hidden, lanes, -(-hidden // lanes)
        self.size = 0
        self.groups: tuple[Group, ...] = groups_of("lstm", False)
        self.depth = -(-self.panels * lanes // GROUP)
        dirs = len(r.const)
        full = np.zeros((dirs, self.depth * GROUP, _GATES, self.panels * lanes), np.int16)
        full[:, :hidden, :, :hidden] = r.const.reshape(dirs, hidden, _GATES, hidden)
        scales = np.zeros((dirs, _GATES, self.panels * lanes), np.float32)
        assert scale.const is not None
        scales[:, :, :hidden] = scale.const.reshape(dirs, _GATES, hidden)
        starts = -full.sum(axis=1, dtype=np.int32)

        def by_panel(x: Array) -> Array:
            parts = x.reshape(dirs, _GATES, self.panels, lanes).swapaxes(1, 2)
            return np.ascontiguousarray(parts).reshape(dirs, self.panels, -1).view(np.uint8)

        blocks = full.reshape(dirs, self.depth, GROUP, _GATES, self.panels, lanes)
        body = dot.pack(blocks.transpose(0, 4, 1, 3, 5, 2))  # [dirs, panel, group, gate, bytes]
        self.head = 2 * _GATES * lanes * 4
        parts = [by_panel(starts), by_panel(scales), body.reshape(dirs, self.panels, -1)]
        panels = np.concatenate(parts, axis=2)
        self.panel_bytes = panels.shape[2]
        self.weights = np.ascontiguousarray(panels.reshape(dirs, -1))
        self.peepholes = None if p is None else peepholes(p, hidden, self.panels, lanes, dirs)


class _Builder(Builder):
    """Emits one kernel: `rnn.Builder` with quantized states and given products of the inputs."""

    packed: _Packed  # type: ignore[assignment]

    def __init__(self, region: Region, rows: int, isa: Isa):
        node = region.anchor
        assert node is not None
        self.node, self.a = node, node.attrs
        x, r, _, lens, h0, c0, _ = (*node.inputs, *(None,) * 4)[:7]
        assert x is not None and r is not None and r.const is not None
        self.dtype = f32
        self.g = g = Gen("int_lstm", isa)
        self.lanes = isa.lanes(32)
        self.dot = methods(isa, False, np.asarray(r.const).reshape(-1, 1, 1), once=True)[0]
        if self.dot.name == "maddubs":
            self.dot = Dot("widen", self.lanes, False, isa)
        self.packed = _Packed(node, self.dot)
        self.dirs = len(r.const)
        self.steps_dim, self.batch_dim = x.dims[:2]
        self.steps, self.batch = g.size(self.steps_dim), g.size(self.batch_dim)
        self.rows = min(rows, self.batch) if isinstance(self.batch, int) else rows
        self.most = self.rows
        self.args: list[Value | Array] = []
        self.x = self._take(x)
        self.weights = [self._take(self.packed.weights)]
        peep = self.packed.peepholes
        self.peepholes = None if peep is None else self._take(peep)
        self.lens = None if lens is None else (self._take(lens), lens.dtype)
        self.h0 = None if h0 is None else self._take(h0)
        self.c0 = None if c0 is None else self._take(c0)
        self.outs = [self._take(v) for v in node.outputs]
        self.unit, self.scalar = 4, F32
        self.vec = ir.VectorType(F32, self.lanes)
        self.padded = self.packed.panels * self.lanes
        self.memory = g.scratch
        self._layout_scratch()

    def _layout_scratch(self) -> None:
        """Offsets in elements: two states, cell state, then the quantized state's bytes."""
        plane = self.rows * self.padded
        self.at_c, self.at_gated, self.at_z = 2 * plane, 0, 0
        self.at_sums = [0]
        self.at_bytes = 3 * plane * self.unit
        self.row_bytes = self.packed.depth * GROUP
        self.scratch_bytes = self.at_bytes + -(-self.rows * self.row_bytes // 64) * 64

    def _flops(self) -> D.DimLike:
        per_row = 2 * self.dirs * _GATES * self.a.hidden**2
        return self.steps_dim * self.batch_dim * per_row

    def _inputs(self, number: int, group: Group, j: Num, first: Num, count: Num) -> None:
        """Products of the inputs are given."""

    def _step(self, step: Num, in_block: Num) -> None:
        g = self.g
        old = g.mul(g.mod(step, 2), self.rows * self.padded)
        self.quantized = [self._quantize(old, r) for r in range(self.rows)]
        super()._step(step, in_block)

    def _quantize(self, first: Num, r: int) -> tuple[ir.Value, ir.Value]:
        """Writes the bytes of a row's state; its scale, and its zero point as products need it."""
        g, b = self.g, self.g.b
        zero = V.const(self.vec, 0)
        with g.loop(0, self.padded, self.lanes, carried=[zero, zero]) as u:
            h = g.load(self.vec, self._slot(first, r, u.index), self.unit)
            low, high = u.carried
            u.next = [
                b.select(b.fcmp_ordered("<", h, low), h, low),
                b.select(b.fcmp_ordered(">", h, high), h, high),
            ]
        low, high = (
            self._across(fn, x) for fn, x in zip(("fmin", "fmax"), u.results, strict=True)
        )
        span = b.fsub(high, low)
        flat = b.fcmp_ordered("==", span, F32(0.0))
        scale = b.fdiv(span, F32(255.0))
        inverse = b.fdiv(F32(1.0), b.select(flat, F32(1.0), scale))
        point = V.unary(b, "round", b.fneg(b.fmul(low, inverse)))
        point = b.fptosi(point, I16)
        row = g.at(g.scratch, self.at_bytes + r * self.row_bytes)
        with g.loop(0, self.padded, self.lanes) as u:
            h = g.load(self.vec, self._slot(first, r, u.index), self.unit)
            scaled = b.fmul(h, V.splat(b, inverse, self.lanes))
            g.store(requantize.emit(b, scaled, point, True, u8), g.at(row, u.index), 1)
        return scale, b.add(b.sext(point, I32), I32(self.dot.shift))

    def _across(self, fn: str, x: ir.Value) -> ir.Value:
        name = f"llvm.vector.reduce.{fn}.{V.type_suffix(x.type)}"
        return self.g.b.call(V.declare(self.g.module, name, F32, [x.type]), [x])

    def _panel(self, number: int, group: Group, j: Num, width: int, t: Num, final: bool) -> None:
        self.width, self.t = width, t
        super()._panel(number, group, j, width, t, final)

    def _sums(self, number: int, group: Group, j: Num, rows: list[int]) -> list[list[ir.Value]]:
        """For each of some rows, the sums of a panel's units."""
        g, b, p, lanes = self.g, self.g.b, self.packed, self.lanes
        flat = g.add(g.mul(self.dir, p.weights.shape[1]), g.mul(j, p.panel_bytes))
        panel = g.at(self.weights[0], flat)
        ints = ir.VectorType(I32, lanes)
        start = [g.load(ints, g.at(panel, 4 * lanes * k), 4) for k in range(_GATES)]
        acc = []
        for r in rows:
            point = V.splat(b, self.quantized[r][1], lanes)
            acc += [b.mul(s, point) for s in start]
        acc = self._dots(acc, g.at(panel, p.head), rows)
        out = []
        for i, r in enumerate(rows):
            sums = []
            for k in range(_GATES):
                at = g.at(panel, 4 * lanes * (_GATES + k))
                scale = b.fmul(g.load(self.vec, at, 4), V.splat(b, self.quantized[r][0], lanes))
                real = b.sitofp(acc[i * _GATES + k], self.vec)
                sums.append(V.fma(b, real, scale, self._gate(r, k, j)))
            out.append(sums)
        return out

    def _dots(self, acc: list[ir.Value], base: ir.Value, rows: list[int]) -> list[ir.Value]:
        """``acc`` (row, gate) plus the products of all units' bytes with a panel's weights."""
        g, b, dot = self.g, self.g.b, self.dot
        unit = self.lanes * dot.weight_bytes
        lines = [g.at(g.scratch, self.at_bytes + r * self.row_bytes) for r in rows]

        def group(i: Num, sums: list[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            line = g.at(base, g.mul(i, _GATES * unit))
            weights = [dot.weights(b, g.at(line, k * unit)) for k in range(_GATES)]
            for n, row in enumerate(lines):
                x = dot.spread(b, g.load(I32, g.at(row, g.mul(i, GROUP)), 1))
                for k in range(_GATES):
                    at = n * _GATES + k
                    sums[at] = dot.products(b, sums[at], x, weights[k])
            return sums

        depth = self.packed.depth
        whole = depth - depth % _UNROLL
        if whole:
            with g.loop(0, whole, _UNROLL, carried=acc) as i:
                sums = list(i.carried)
                for u in range(_UNROLL):
                    sums = group(g.add(i.index, u), sums)
                i.next = sums
            acc = i.results
        for rest in range(whole, depth):
            acc = group(rest, acc)
        return acc

    def _gate(self, r: int, k: int, j: Num) -> ir.Value:
        """The inputs' part of a gate's sums."""
        g, hidden = self.g, self.a.hidden
        flat = g.add(g.mul(self.t, self.batch), self._row(r))
        flat = g.add(g.mul(flat, self.dirs), self.dir)
        flat = g.add(g.mul(flat, _GATES * hidden), g.add(k * hidden, g.mul(j, self.lanes)))
        at = g.at(self.x, flat, 4)
        if self.width == self.lanes:
            return g.load(self.vec, at, 4)
        out: ir.Value = V.const(self.vec, 0)
        for lane in range(self.width):
            out = g.b.insert_element(out, g.load(F32, g.at(at, lane, 4)), I32(lane))
        return out


@register_tactic
class IntRecurrent(Tactic):
    """LSTM whose state is quantized at every step, over whole sequences."""

    name = "int_rnn"
    target = "cpu"
    priority = 10

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "quantized_lstm":
            return "not a quantized LSTM"
        if region.stages:
            return "it has an epilogue"
        _, r, scale, lens, _, _, p = (*node.inputs, *(None,) * 4)[:7]
        assert r is not None and scale is not None
        if any(v is not None and v.const is None for v in (r, scale, p)):
            return "weights must be constant"
        if device.isa.lanes(32) < GROUP:
            return "the CPU's vectors are too short"
        if lens is not None and not convert.supported(lens.dtype):
            return f"lengths of type {lens.dtype}"
        names, per = node.attrs.activations, len(DEFAULTS["lstm"])
        if not FUNCTIONS.issuperset(names):
            return f"activations {', '.join(sorted(set(names) - FUNCTIONS))}"
        if len(names) > per and names[:per] != names[per:]:
            return "directions with different activations"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[int]:
        """Batch entries per work item."""
        assert region.anchor is not None and region.anchor.inputs[0] is not None
        batch = region.anchor.inputs[0].dims[1]
        most = 5 if device.isa.vector_registers >= 32 else 2
        if isinstance(batch, D.Dim):
            return (1, most)
        return tuple(dict.fromkeys(min(int(batch), rows) for rows in (most, 1)))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate, device.isa).build()

