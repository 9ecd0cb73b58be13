"""Recurrent networks: whole sequences in one kernel.

A work item runs one direction of a few batch entries through all steps. Units are processed a
vector at a time; the products of all gates of those units share the loop over inputs, so that
each broadcast element feeds every gate, and the cell's update happens on registers. Weights are
packed as ``[panel of units][k][gate][lane]``. States live in scratch, double buffered.

Weights are often larger than the caches, and every step needs all of them. The part of the sums
that comes from the inputs does not wait for the states, so it is made for a block of steps at
once: those weights pass by once a block instead of once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import DType, f32, f64, i64
from ...ir.graph import Node, Value
from ...ops.recurrent import CELLS, DEFAULTS
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert
from . import vecmath as V
from .codegen import Gen, Num
from .isa import Isa

FUNCTIONS = frozenset(("sigmoid", "tanh", "relu"))
BLOCK = 16  # steps whose inputs are multiplied together
_UNROLL = 4
_AHEAD = 1024  # bytes between the weights that are read and those that are asked for
_CHAINS = 8  # independent sums that keep multiply-add units busy
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Group:
    """Sums that are made in one pass over the inputs.

    Attributes:
        x, h: Gates whose input and recurrent weights take part.
        x_to, h_to: Which sum each of them adds to.
        gated: The recurrent product reads the gated state instead of the state.
    """

    x: tuple[int, ...]
    h: tuple[int, ...]
    x_to: tuple[int, ...]
    h_to: tuple[int, ...]
    gated: bool = False

    @property
    def sums(self) -> int:
        return max((*self.x_to, *self.h_to)) + 1


def groups_of(cell: str, linear_before_reset: bool) -> tuple[Group, ...]:
    """How a cell's sums are made; gates in ONNX's order."""
    if cell == "lstm":
        return (Group((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),)
    if cell == "rnn":
        return (Group((0,), (0,), (0,), (0,)),)
    if linear_before_reset:
        return (Group((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 3)),)
    return (Group((0, 1), (0, 1), (0, 1), (0, 1)), Group((2,), (2,), (0,), (0,), True))


def rows_at_once(isa: Isa) -> int:
    """Rows whose sums for four gates fit the registers."""
    return (isa.vector_registers - 2) // 5


class Packed:
    """One network's constants for all directions, ready for the kernel."""

    def __init__(self, node: Node, lanes: int, dtype: DType):
        x, w, r, b, _, _, _, p = (*node.inputs, *(None,) * 8)[:8]
        assert x is not None and w is not None and r is not None
        a = node.attrs
        gates = CELLS[a.cell]
        self.hidden, self.size = a.hidden, int(w.dims[2])  # type: ignore[arg-type]
        self.lanes, self.panels = lanes, -(-a.hidden // lanes)
        self.groups = groups_of(a.cell, a.linear_before_reset)
        dirs = int(w.dims[0])  # type: ignore[arg-type]

        def split(v: Value | None, parts: int, width: int) -> Array:
            """``[dirs, parts, width, panels, lanes]`` of weights ``[dirs, parts * H, width]``."""
            if v is None:
                full = np.zeros((dirs, parts * a.hidden, width), dtype.np)
            else:
                full = np.asarray(v.const).astype(dtype.np).reshape(dirs, parts * a.hidden, width)
            units = full.reshape(dirs, parts, a.hidden, width)
            padded = np.zeros((dirs, parts, self.panels * lanes, width), dtype.np)
            padded[:, :, : a.hidden] = units
            return padded.reshape(dirs, parts, self.panels, lanes, width).transpose(0, 1, 4, 2, 3)

        wx, rh = split(w, gates, self.size), split(r, gates, self.hidden)
        bias = split(b, 2 * gates, 1)
        self.weights = [
            np.ascontiguousarray(np.concatenate([
                _interleaved(wx[:, list(g.x)]), _interleaved(rh[:, list(g.h)])
            ], axis=2).reshape(dirs, -1))
            for g in self.groups
        ]  # fmt: skip
        self.biases = [self._bias(g, bias[:, :, 0], gates, dirs) for g in self.groups]
        self.peepholes = None
        if p is not None:
            self.peepholes = peepholes(p, a.hidden, self.panels, lanes, dirs).astype(dtype.np)

    def _bias(self, g: Group, bias: Array, gates: int, dirs: int) -> Array:
        """``[dirs, panels, sums, lanes]``."""
        out = np.zeros((dirs, self.panels, g.sums, self.lanes), bias.dtype)
        for first, chosen, to in ((0, g.x, g.x_to), (gates, g.h, g.h_to)):
            for gate, target in zip(chosen, to, strict=True):
                out[:, :, target] += bias[:, first + gate]
        return out


def peepholes(p: Value, hidden: int, panels: int, lanes: int, dirs: int) -> Array:
    """Peephole weights ``[dirs, 3 * hidden]`` as ``[dirs, panels, 3, lanes]``."""
    padded = np.zeros((dirs, 3, panels * lanes), np.asarray(p.const).dtype)
    padded[:, :, :hidden] = np.asarray(p.const).reshape(dirs, 3, hidden)
    parts = padded.reshape(dirs, 3, panels, lanes).swapaxes(1, 2)
    return np.ascontiguousarray(parts)


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _interleaved(w: Array) -> Array:
    """``[dirs, gates, k, panels, lanes]`` -> ``[dirs, panels, k * gates * lanes]``."""
    dirs, _, _, panels, _ = w.shape
    return w.transpose(0, 3, 2, 1, 4).reshape(dirs, panels, -1)


class Builder:
    """Emits one kernel."""

    def __init__(self, region: Region, rows: int, isa: Isa):
        node = region.anchor
        assert node is not None
        self.node, self.a = node, node.attrs
        x, w, _, _, lens, h0, c0, _ = (*node.inputs, *(None,) * 8)[:8]
        assert x is not None and w is not None
        self.dtype = x.dtype
        self.g = g = Gen(f"rnn_{self.a.cell}", isa)
        self.lanes = isa.lanes(self.dtype.bits)
        self.packed = Packed(node, self.lanes, self.dtype)
        self.dirs = int(w.dims[0])  # type: ignore[arg-type]
        self.steps_dim, self.batch_dim = x.dims[:2] if not self.a.layout else x.dims[1::-1]
        self.steps, self.batch = g.size(self.steps_dim), g.size(self.batch_dim)
        self.most = rows_at_once(isa)
        self.rows = min(rows, self.batch) if isinstance(self.batch, int) else rows
        self.args: list[Value | Array] = []
        self.x = self._take(x)
        self.weights = [self._take(v) for v in self.packed.weights]
        self.biases = [self._take(v) for v in self.packed.biases]
        peep = self.packed.peepholes
        self.peepholes = None if peep is None else self._take(peep)
        self.lens = None if lens is None else (self._take(lens), lens.dtype)
        self.h0 = None if h0 is None else self._take(h0)
        self.c0 = None if c0 is None else self._take(c0)
        self.outs = [self._take(v) for v in node.outputs]
        self.unit = self.dtype.size
        self.scalar = convert.register_type(self.dtype)
        self.vec = V.with_lanes(self.scalar, self.lanes if self.lanes > 1 else 0)
        self.padded = self.packed.panels * self.lanes
        self.memory = g.scratch  # of states and sums
        self.far = sum(w.nbytes for w in self.packed.weights) > isa.l2  # in the last cache
        self._layout_scratch()

    def _layout_scratch(self) -> None:
        """Offsets in elements: two states, cell state, gated state, update gate, then for every
        group ``[step of the block][row][panel][sum][lane]``."""
        plane = self.rows * self.padded
        self.at_c, self.at_gated, self.at_z = 2 * plane, 3 * plane, 4 * plane
        at = 5 * plane
        self.at_sums = []
        for group in self.packed.groups:
            self.at_sums.append(at)
            at += BLOCK * plane * group.sums
        self.elements = at
        self.scratch_bytes = at * self.unit

    def _take(self, v: Value | Array) -> ir.Value:
        self.args.append(v)
        return self.g.arg(len(self.args) - 1)

    def build(self) -> Kernel:
        g = self.g
        blocks = g.ceil_div(self.batch, self.rows)
        with g.loop(g.begin, g.end) as item:
            self.dir = g.div(item.index, blocks) if self.dirs > 1 else 0
            block = g.mod(item.index, blocks) if self.dirs > 1 else item.index
            self.b0 = g.mul(block, self.rows)
            self._item()
        return Kernel(
            g.symbol, g.finish(), tuple(self.args), tuple(g.dims),
            D.ceil_div(self.batch_dim, self.rows) * self.dirs, 1, self.scratch_bytes,
            self._flops(),
        )  # fmt: skip

    def _flops(self) -> D.DimLike:
        a, p = self.a, self.packed
        per_row = 2 * self.dirs * CELLS[a.cell] * a.hidden * (p.size + a.hidden)
        return self.steps_dim * self.batch_dim * per_row

    # --- addresses -----------------------------------------------------------------------

    def _row(self, r: int) -> Num:
        """Batch entry of row ``r``; rows past the batch repeat its last entry."""
        at = self.g.add(self.b0, r)
        exact = isinstance(self.batch, int) and self.batch % self.rows == 0
        return at if exact or r == 0 else self.g.min(at, self.g.sub(self.batch, 1))

    def _exists(self, r: int) -> bool | ir.Value:
        exact = isinstance(self.batch, int) and self.batch % self.rows == 0
        return True if exact or r == 0 else self.g.test("<", self.g.add(self.b0, r), self.batch)

    def _slot(self, first: Num, r: int, unit: Num) -> ir.Value:
        """A vector of a state in scratch."""
        flat = self.g.add(first, self.g.add(r * self.padded, unit))
        return self.g.at(self.memory, flat, self.unit)

    def _state_at(self, base: ir.Value, r: int) -> ir.Value:
        """Row ``r`` of a tensor ``[dirs, batch, hidden]`` (layout 1: batch first)."""
        g, row = self.g, self._row(r)
        order = (row, self.dirs, self.dir) if self.a.layout else (self.dir, self.batch, row)
        flat = g.add(g.mul(order[0], order[1]), order[2])
        return g.at(base, g.mul(flat, self.a.hidden), self.unit)

    def _x_at(self, t: Num, r: int) -> ir.Value:
        g, row = self.g, self._row(r)
        flat = (
            g.add(g.mul(row, self.steps), t) if self.a.layout else g.add(g.mul(t, self.batch), row)
        )
        return g.at(self.x, g.mul(flat, self.packed.size), self.unit)

    def _y_at(self, t: Num, r: int) -> ir.Value:
        g, row = self.g, self._row(r)
        if self.a.layout:
            flat = g.add(g.mul(g.add(g.mul(row, self.steps), t), self.dirs), self.dir)
        else:
            flat = g.add(g.mul(g.add(g.mul(t, self.dirs), self.dir), self.batch), row)
        return g.at(self.outs[0], g.mul(flat, self.a.hidden), self.unit)

    # --- one item ------------------------------------------------------------------------

    def _item(self) -> None:
        g = self.g
        for first, source in ((0, self.h0), (self.at_c, self.c0)):
            if first == 0 or self.a.cell == "lstm":
                self._read_state(first, source)
        with g.loop(0, self.steps, BLOCK) as block:
            count = g.min(BLOCK, g.sub(self.steps, block.index))
            for number, group in enumerate(self.packed.groups):
                with g.loop(0, self.packed.panels) as j:
                    self._inputs(number, group, j.index, block.index, count)
            with g.loop(0, count) as step:
                self._step(g.add(block.index, step.index), step.index)
        end = g.mul(g.mod(self.steps, 2), self.rows * self.padded)
        self._write_state(end, self.outs[1])
        if self.a.cell == "lstm":
            self._write_state(self.at_c, self.outs[2])

    def _step(self, step: Num, in_block: Num) -> None:
        """One step: what the states add to the sums, then the cells."""
        t = self._enter(step, in_block)
        for number, group in enumerate(self.packed.groups):
            last = number == len(self.packed.groups) - 1
            self._panels(
                lambda j, width, n=number, s=group, final=last: self._panel(
                    n, s, j, width, t, final
                )
            )

    def _enter(self, step: Num, in_block: Num) -> Num:
        """Prepares for a step; its place in the sequence."""
        g = self.g
        plane = self.rows * self.padded
        self.in_block = in_block
        self.h_old = g.mul(g.mod(step, 2), plane)
        self.h_new = g.sub(plane, self.h_old)
        t = self._time(step)
        self.live = self._live(t)
        return t

    def _time(self, step: Num) -> Num:
        g = self.g
        back = g.sub(g.sub(self.steps, 1), step)
        if self.a.direction == "forward":
            return step
        if self.a.direction == "reverse":
            return back
        backward = g.test("==", self.dir, 1)
        return g.b.select(backward, g.value(back), g.value(step))

    def _live(self, t: Num) -> list[ir.Value] | None:
        """Per row, whether step ``t`` is within the sequence; None if all are."""
        if self.lens is None:
            return None
        g, (base, dtype) = self.g, self.lens
        out = []
        for r in range(self.rows):
            x = g.load(convert.memory_type(dtype), g.at(base, self._row(r), dtype.size))
            n = convert.cast(g.b, convert.from_memory(g.b, x, dtype), dtype, i64)
            out.append(g.test("<", t, n))
        return out

    def _panels(self, body: Any) -> None:
        """Calls ``body(panel, units)`` for all panels; the last one may be narrower."""
        g, rest = self.g, self.a.hidden % self.lanes
        whole = self.a.hidden // self.lanes
        if whole:
            with g.loop(0, whole) as j:
                body(j.index, self.lanes)
        if rest:
            body(whole, rest)

    def _read_state(self, first: int, source: ir.Value | None) -> None:
        g = self.g
        zero = V.const(self.vec, 0)
        for r in range(self.rows):
            with g.loop(0, self.padded, self.lanes) as u:
                g.store(zero, self._slot(first, r, u.index), self.unit)
            if source is not None:
                row = self._state_at(source, r)
                with g.loop(0, self.a.hidden) as u:
                    x = g.load(self.scalar, g.at(row, u.index, self.unit))
                    g.store(x, self._slot(first, r, u.index))

    def _write_state(self, first: Num, out: ir.Value) -> None:
        g = self.g
        for r in range(self.rows):

            def copy(r: int = r) -> None:
                row = self._state_at(out, r)
                with g.loop(0, self.a.hidden) as u:
                    x = g.load(self.scalar, self._slot(first, r, u.index))
                    g.store(x, g.at(row, u.index, self.unit))

            self._if(self._exists(r), copy)

    def _if(self, cond: bool | ir.Value, body: Any) -> None:
        if cond is True:
            body()
        elif cond is not False:
            with self.g.b.if_then(cond):
                body()

    # --- sums ----------------------------------------------------------------------------

    def _panel(self, number: int, group: Group, j: Num, width: int, t: Num, final: bool) -> None:
        for rows in _chunks(list(range(self.rows)), self.most):
            for r, sums in zip(rows, self._sums(number, group, j, rows), strict=True):
                if final:
                    self._update(sums, r, j, width, t)
                else:
                    self._gate_state(sums, r, j)

    def _weights_at(self, number: int, group: Group, j: Num) -> ir.Value:
        """A panel's weights: those of the inputs, then those of the states."""
        p = self.packed
        panel = (p.size * len(group.x) + p.hidden * len(group.h)) * self.lanes
        flat = self.g.add(self.g.mul(self.dir, p.weights[number].shape[1]), self.g.mul(j, panel))
        return self.g.at(self.weights[number], flat, self.unit)

    def _sum_at(self, number: int, group: Group, step: Num, r: int, j: Num) -> ir.Value:
        """Where the inputs' part of a panel's sums is kept."""
        g = self.g
        row = g.add(g.mul(g.add(g.mul(step, self.rows), r), self.packed.panels), j)
        flat = g.add(g.mul(row, group.sums * self.lanes), self.at_sums[number])
        return g.at(self.memory, flat, self.unit)

    def _inputs(self, number: int, group: Group, j: Num, first: Num, count: Num) -> None:
        """Bias and inputs of a panel for the steps of a block."""
        g = self.g
        bias = self._constant(self.biases[number], self.packed.biases[number], j, group.sums)
        base = self._weights_at(number, group, j)
        together = max(1, self.most // self.rows)
        with g.loop(0, count, together) as s:
            steps = [g.min(g.add(s.index, u), g.sub(count, 1)) for u in range(together)]
            places = [(step, r) for step in steps for r in range(self.rows)]
            for some in _chunks(places, self.most):
                xs = [self._x_at(self._time(g.add(first, step)), r) for step, r in some]
                acc = self._products(
                    [list(bias) for _ in xs], xs, self.packed.size, base, group.x_to
                )
                for (step, r), sums in zip(some, acc, strict=True):
                    at = self._sum_at(number, group, step, r, j)
                    for k, x in enumerate(sums):
                        g.store(x, g.at(at, k * self.lanes, self.unit), self.unit)

    def _sums(self, number: int, group: Group, j: Num, rows: list[int]) -> list[list[ir.Value]]:
        """For each of some rows, the sums of a panel's units."""
        g, p = self.g, self.packed
        acc = []
        for r in rows:
            at = self._sum_at(number, group, self.in_block, r, j)
            acc.append([
                g.load(self.vec, g.at(at, k * self.lanes, self.unit), self.unit)
                for k in range(group.sums)
            ])  # fmt: skip
        base = self._weights_at(number, group, j)
        base = g.at(base, p.size * len(group.x) * self.lanes, self.unit)
        first = self.at_gated if group.gated else self.h_old
        hs = [self._slot(first, r, 0) for r in rows]
        return self._products(acc, hs, p.hidden, base, group.h_to)

    def _constant(self, base: ir.Value, array: Array, j: Num, count: int) -> list[ir.Value]:
        """Vectors of a panel from constants ``[dirs, panels, count, lanes]``."""
        g = self.g
        flat = g.mul(g.add(g.mul(self.dir, array.shape[1]), j), count * self.lanes)
        return [
            g.load(self.vec, g.at(base, g.add(flat, i * self.lanes), self.unit), self.unit)
            for i in range(count)
        ]

    def _products(
        self, acc: list[list[ir.Value]], rows: list[ir.Value], k: int, base: ir.Value,
        to: Sequence[int],
    ) -> list[list[ir.Value]]:  # fmt: skip
        g, n = self.g, len(acc[0])

        def step(i: Num, sums: list[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            line = g.at(base, g.mul(i, len(to) * self.lanes), self.unit)
            xs = [
                V.splat(g.b, g.load(self.scalar, g.at(row, i, self.unit)), V.lanes(self.vec))
                for row in rows
            ]
            for c, target in enumerate(to):
                w = g.load(self.vec, g.at(line, c * self.lanes, self.unit), self.unit)
                for r, x in enumerate(xs):
                    at = r * n + target
                    name = "fma" if g.isa.fma else "fmuladd"
                    sums[at] = V.intrinsic(g.b, name, x, w, sums[at])
            return sums

        flat = [x for row in acc for x in row]
        line = len(to) * self.lanes
        whole = k - k % _UNROLL
        # Few sums would wait for each other's latency: then several partial sums take turns.
        ways = max(1, min(_UNROLL, _CHAINS // len(flat)))
        if whole:
            zero = V.const(self.vec, 0)
            start = flat + [zero] * (len(flat) * (ways - 1))
            with g.loop(0, whole, _UNROLL, carried=start) as i:
                parts = [i.carried[w * len(flat) : (w + 1) * len(flat)] for w in range(ways)]
                if self.far:
                    self._prefetch(g.at(base, g.mul(i.index, line), self.unit), _UNROLL * line)
                for u in range(_UNROLL):
                    parts[u % ways] = step(g.add(i.index, u), parts[u % ways])
                i.next = [x for part in parts for x in part]
            flat = i.results[: len(flat)]
            for w in range(1, ways):
                part = i.results[w * len(flat) : (w + 1) * len(flat)]
                flat = [g.b.fadd(x, y) for x, y in zip(flat, part, strict=True)]
        for rest in range(whole, k):
            flat = step(rest, flat)
        return [flat[r * n : (r + 1) * n] for r in range(len(acc))]

    def _prefetch(self, at: ir.Value, count: int) -> None:
        """Asks for the ``count`` elements that lie some way behind those at ``at``."""
        g = self.g
        name = "llvm.prefetch.p0"
        kind = [V.PTR, V.I32, V.I32, V.I32]
        function = V.declare(g.module, name, ir.VoidType(), kind)
        for byte in range(0, count * self.unit, 64):
            there = g.at(at, _AHEAD + byte)
            g.b.call(function, [there, V.I32(0), V.I32(3), V.I32(1)])

    # --- cells ---------------------------------------------------------------------------

    def _act(self, k: int, x: ir.Value, clip: float | None = None) -> ir.Value:
        """The ``k``-th activation, after clipping its argument (as the node says, or not)."""
        b = self.g.b
        clip = self.a.clip if clip is None else clip
        if clip > 0:
            x = V.maximum(b, x, V.const(x.type, -clip))
            x = V.minimum(b, x, V.const(x.type, clip))
        per = len(DEFAULTS[self.a.cell])
        names = self.a.activations[:per] or DEFAULTS[self.a.cell]
        if names[k] == "relu":
            return V.maximum(b, x, V.const(x.type, 0))
        return V.unary(b, names[k], x)

    def _load(self, first: Num, r: int, j: Num) -> ir.Value:
        return self.g.load(self.vec, self._slot(first, r, self.g.mul(j, self.lanes)), self.unit)

    def _keep(self, x: ir.Value, first: Num, r: int, j: Num) -> None:
        self.g.store(x, self._slot(first, r, self.g.mul(j, self.lanes)), self.unit)

    def _gate_state(self, s: list[ir.Value], r: int, j: Num) -> None:
        """GRU, first pass: the update gate, and the state through the reset gate."""
        self._keep(self._act(0, s[0]), self.at_z, r, j)
        gated = self.g.b.fmul(self._act(0, s[1]), self._load(self.h_old, r, j))
        self._keep(gated, self.at_gated, r, j)

    def _update(self, s: list[ir.Value], r: int, j: Num, width: int, t: Num) -> None:
        h_old = self._load(self.h_old, r, j)
        if self.a.cell == "lstm":
            c_old = self._load(self.at_c, r, j)
            h, c = self._lstm(s, c_old, j)
            self._keep(self._select(r, c, c_old), self.at_c, r, j)
        elif self.a.cell == "gru":
            h = self._gru(s, h_old, r, j)
        else:
            h = self._act(0, s[0])
        self._keep(self._select(r, h, h_old), self.h_new, r, j)
        shown = self._select(r, h, V.const(self.vec, 0))
        self._if(self._exists(r), lambda: self._show(shown, r, j, width, t))

    def _select(self, r: int, x: ir.Value, otherwise: ir.Value) -> ir.Value:
        return x if self.live is None else self.g.b.select(self.live[r], x, otherwise)

    def _show(self, h: ir.Value, r: int, j: Num, width: int, t: Num) -> None:
        g = self.g
        row = g.at(self._y_at(t, r), g.mul(j, self.lanes), self.unit)
        if width == self.lanes:
            g.store(h, row, self.unit)
            return
        for lane in range(width):
            g.store(g.b.extract_element(h, V.I32(lane)), g.at(row, lane, self.unit))

    def _lstm(self, s: list[ir.Value], c: ir.Value, j: Num) -> tuple[ir.Value, ir.Value]:
        b = self.g.b
        peep: list[ir.Value | None] = [None] * 3
        if self.peepholes is not None:
            assert self.packed.peepholes is not None
            peep = list(self._constant(self.peepholes, self.packed.peepholes, j, 3))

        def seen(x: ir.Value, p: ir.Value | None, state: ir.Value) -> ir.Value:
            return x if p is None else V.fma(b, p, state, x)

        i = self._act(0, seen(s[0], peep[0], c))
        if self.a.input_forget:
            forget = b.fsub(V.const(i.type, 1), i)
        else:
            forget = self._act(0, seen(s[2], peep[2], c))
        new = V.fma(b, forget, c, b.fmul(i, self._act(1, s[3])))
        out = self._act(0, seen(s[1], peep[1], new))
        return b.fmul(out, self._act(2, new, clip=0)), new  # the state itself is not clipped

    def _gru(self, s: list[ir.Value], h: ir.Value, r: int, j: Num) -> ir.Value:
        b = self.g.b
        if len(s) == 4:
            z, reset = self._act(0, s[0]), self._act(0, s[1])
            new = self._act(1, V.fma(b, reset, s[3], s[2]))
        else:
            z, new = self._load(self.at_z, r, j), self._act(1, s[0])
        return V.fma(b, z, b.fsub(h, new), new)


def refuse(region: Region) -> str | None:
    """Why no kernel of this kind can do the region, or None."""
    node = region.anchor
    if node is None or node.op != "rnn":
        return "not a recurrent network"
    if region.stages:
        return "it has an epilogue"
    x, w, r, b, lens, _, _, p = (*node.inputs, *(None,) * 8)[:8]
    assert x is not None and w is not None and r is not None
    if x.dtype not in (f32, f64):
        return f"no recurrent networks of {x.dtype}"
    if any(v is not None and v.const is None for v in (w, r, b, p)):
        return "weights must be constant"
    if lens is not None and not convert.supported(lens.dtype):
        return f"lengths of type {lens.dtype}"
    names = node.attrs.activations
    per = len(DEFAULTS[node.attrs.cell])
    if not FUNCTIONS.issuperset(names):
        return f"activations {', '.join(sorted(set(names) - FUNCTIONS))}"
    if len(names) > per and names[:per] != names[per:]:
        return "directions with different activations"
    return None


@register_tactic
class Recurrent(Tactic):
    """LSTM, GRU and RNN over whole sequences."""

    name = "rnn"
    target = "cpu"
    priority = 10

    def refuse(self, region: Region, device: Any) -> str | None:
        return refuse(region)

    def candidates(self, region: Region, device: Any) -> Sequence[int]:
        """Batch entries per work item."""
        assert region.anchor is not None and region.anchor.inputs[0] is not None
        batch = region.anchor.inputs[0].dims[1 - region.anchor.attrs.layout]
        most = rows_at_once(device.isa)
        if isinstance(batch, D.Dim):
            return (1, most)
        # More rows share one reading of the weights, fewer make more work items.
        return tuple(dict.fromkeys(min(int(batch), rows) for rows in (most, 4 * most)))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return Builder(region, candidate, device.isa).build()
