"""LSTM, GRU and plain RNN layers as one kernel: the loop over time runs inside.

Work items are sequences: one per direction and batch entry. In every step the gates are a
vector-matrix product with weights packed in blocks of columns that are read straight through,
then the cell's formulas run along the hidden units. State and gates live in scratch memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import DType, i64
from ...ir.expr import Expr, Var
from ...ir.graph import Node, Value
from ...ops.recurrent import CELLS, DEFAULTS, parameters
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import affine as A
from . import convert, nest
from .loops import KernelFrame
from .reduction import lanes_for
from .vecmath import I8, I64


@register_tactic
class RnnTactic(Tactic):
    """The loop over time as native code; weights must be constant."""

    name = "recurrent"
    target = "cpu"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "rnn":
            return "not a recurrent layer"
        if region.stages:
            return "a recurrent layer has no epilogue"
        x, w, r, b, p = (_input(node, k) for k in (0, 1, 2, 3, 7))
        assert x is not None
        if x.dtype not in (T.f64, T.f32, T.f16, T.bf16):
            return f"element type {x.dtype} is not supported"
        if any(v is not None and v.const is None for v in (w, r, b, p)):
            return "weights are not constant"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[int]:
        return (4, 8, 2)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        return _Layer(region.anchor, region.outputs, device.isa, int(candidate)).build()


def _input(node: Node, k: int) -> Value | None:
    return node.inputs[k] if k < len(node.inputs) else None


def _const(x: float, dt: DType) -> Expr:
    return E.const(x, dt)


def _activation(name: str, a: float, b: float, x: Expr) -> Expr:
    """An ONNX activation of an expression."""
    dt = x.dtype
    zero, one, ca, cb = (_const(k, dt) for k in (0.0, 1.0, a, b))
    if name in ("tanh", "sigmoid"):
        return E.unary(name, x)
    if name == "relu":
        return E.binary("max", x, zero)
    if name == "affine":
        return E.add(E.mul(ca, x), cb)
    if name == "leaky_relu":
        return E.select(E.compare("ge", x, zero), x, E.mul(ca, x))
    if name == "thresholded_relu":
        return E.select(E.compare("gt", x, ca), x, zero)
    if name == "scaled_tanh":
        return E.mul(ca, E.unary("tanh", E.mul(cb, x)))
    if name == "hard_sigmoid":
        return E.binary("min", E.binary("max", E.add(E.mul(ca, x), cb), zero), one)
    if name == "elu":
        low = E.sub(E.unary("exp", E.binary("min", x, zero)), one)
        return E.select(E.compare("ge", x, zero), x, E.mul(ca, low))
    if name == "softsign":
        return E.div(x, E.add(one, E.unary("abs", x)))
    assert name == "softplus"
    tail = E.unary("log", E.add(one, E.unary("exp", E.unary("neg", E.unary("abs", x)))))
    return E.add(E.binary("max", x, zero), tail)


class _Layer:
    """Emits the kernel of one node."""

    def __init__(self, node: Node, outputs: Sequence[Value], isa: Any, unroll: int):
        self.node, self.attrs = node, node.attrs
        x = _input(node, 0)
        assert x is not None
        self.x = x
        self.work = T.f64 if x.dtype is T.f64 else T.f32
        self.width = isa.lanes(self.work.bits) * unroll
        self.hidden = int(self.attrs.hidden)
        self.rows = CELLS[self.attrs.cell] * self.hidden
        first = self.attrs.layout == 0
        self.steps, self.batch = (x.dims[0], x.dims[1]) if first else (x.dims[1], x.dims[0])
        self.frame = KernelFrame("recurrent", A.Lowerer())
        self.em = self.frame.em
        self.arrays: dict[Value, np.ndarray[Any, Any]] = {}
        self.scratch = 0
        self.wanted = set(outputs)
        for v in outputs:
            self.frame.pointer(v)
        h = self.hidden
        pad = self.width
        sizes = (h, h, self.rows + 2 * pad, h, h + pad)
        self.h, self.c, self.g, self.t, self.u = (self._scratch(n) for n in sizes)

    def build(self) -> Kernel:
        dirs = 2 if self.attrs.direction == "bidirectional" else 1
        begin, end = self.frame.fn.args[2], self.frame.fn.args[3]
        b = self.em.builder
        count = self.em.dim(self.batch)
        for d in range(dirs):
            first = b.mul(count, I64(d))
            low, high = b.sub(begin, first), b.sub(end, first)
            low = b.select(b.icmp_signed("<", low, I64(0)), I64(0), low)
            high = b.select(b.icmp_signed(">", high, count), count, high)
            _Direction(self, d).emit(low, high)
        source = self.frame.finish()
        symbol = "recurrent_" + hashlib.sha256(source.encode()).hexdigest()[:10]
        size = self.x.dims[2]
        per_step = 2 * self.rows * (size + self.hidden)
        return Kernel(
            symbol=symbol,
            source=source.replace('@"recurrent"(', f'@"{symbol}"('),
            args=tuple(self.arrays.get(v, v) for v in self.frame.args),
            dims=tuple(self.frame.dims),
            work=self.batch * dirs,
            grain=1,
            scratch=self.scratch,
            flops=per_step * self.steps * self.batch * dirs,
        )

    def _scratch(self, n: int) -> Value:
        v = Value("scratch", self.work, (n,))
        at = self.frame.entry.gep(
            self.frame.fn.args[4], [I64(self.scratch)], source_etype=I8
        )
        self.em.bind_pointer(v, at)
        self.scratch += -(-n * self.work.size // 64) * 64
        return v

    def packed(self, array: np.ndarray[Any, Any]) -> Value:
        """A constant argument made at build time."""
        data = np.ascontiguousarray(array.astype(self.work.np))
        v = Value("packed", self.work, data.shape)
        self.arrays[v] = data
        return v

    def blocked(self, array: np.ndarray[Any, Any]) -> Value:
        """A [rows, columns] constant as [blocks, rows, lanes], the last block filled up."""
        inner, columns = array.shape
        blocks = -(-columns // self.width)
        full = np.zeros((inner, blocks * self.width))
        full[:, :columns] = array
        return self.packed(full.reshape(inner, blocks, self.width).transpose(1, 0, 2))


class _Direction:
    """One direction: sequences from the first step to the last, or backwards."""

    def __init__(self, layer: _Layer, d: int):
        self.layer, self.d = layer, d
        a, node = layer.attrs, layer.node
        self.reverse = a.direction == "reverse" or d == 1
        w, r, b, p = (_input(node, k) for k in (1, 2, 3, 7))
        assert w is not None and r is not None and w.const is not None and r.const is not None
        bias = np.zeros(2 * layer.rows) if b is None else np.asarray(b.const)[d]
        wb, rb = np.split(bias.astype(np.float64), 2)
        weights, again = (np.asarray(m.const)[d].astype(np.float64).T for m in (w, r))
        self.w = layer.blocked(weights)
        if a.cell == "gru":  # the last gate's recurrent part acts after the reset gate
            n = 2 * layer.hidden
            self.last = layer.blocked(again[:, n:])
            self.last_bias = layer.blocked(rb[None, n:])
            again, rb = again[:, :n], np.concatenate([rb[:n], 0 * rb[n:]])
        self.r = layer.blocked(again)
        self.b = layer.blocked((wb + rb)[None])
        self.p = None if p is None else layer.packed(np.asarray(p.const)[d])
        per = len(DEFAULTS[a.cell])
        names = a.activations[d * per : (d + 1) * per] or DEFAULTS[a.cell]
        self.f = [(n, *parameters(a, d * per + k, n)) for k, n in enumerate(names)]
        self.n, self.at = Var(i64, "n", layer.batch), Var(i64, "t", layer.steps)
        self.j = Var(i64, "j", layer.hidden)
        self.block, self.lane = Var(i64, "b", layer.rows), Var(i64, "l", layer.width)
        self.column = E.add(E.mul(self.block, E.idx(layer.width)), self.lane)

    # --- expressions ---------------------------------------------------------------------

    def act(self, k: int, x: Expr) -> Expr:
        limit = self.layer.attrs.clip
        if limit > 0:
            x = E.binary("min", x, _const(limit, x.dtype))
            x = E.binary("max", x, _const(-limit, x.dtype))
        return _activation(*self.f[k], x)

    def state(self, v: Value) -> list[Expr | D.DimLike]:
        """Index of a [dirs, batch, hidden] tensor (or its batch-first form)."""
        lead: list[Expr | D.DimLike] = [self.d, self.n]
        return [*(lead if self.layer.attrs.layout == 0 else lead[::-1]), self.j]

    def product(self, vector: Callable[[Var], Expr], weights: Value) -> Expr:
        """One block of columns of a vector-matrix product."""
        k = Var(i64, "k", weights.dims[1])
        return E.reduce_("sum", (k,), E.mul(vector(k), E.load(weights, [self.block, k, self.lane])))

    def bias(self, v: Value) -> Expr:
        return E.load(v, [self.block, 0, self.lane])

    def gates(self) -> Expr:
        """All gates before activation; without the recurrent part of a GRU."""
        L = self.layer

        def x_at(k: Var) -> Expr:
            where = [self.at, self.n] if L.attrs.layout == 0 else [self.n, self.at]
            return E.cast(E.load(L.x, [*where, k]), L.work)

        total = E.add(self.bias(self.b), self.product(x_at, self.w))
        if L.attrs.cell == "gru":
            return total
        return E.add(total, self.product(lambda k: E.load(L.h, [k]), self.r))

    def gate(self, k: int) -> Expr:
        return E.load(self.layer.g, [E.add(self.j, E.idx(k * self.layer.hidden))])

    def peephole(self, k: int, gate: Expr, c: Expr) -> Expr:
        if self.p is None:
            return gate
        at = E.add(self.j, E.idx(k * self.layer.hidden))
        return E.add(gate, E.mul(E.load(self.p, [at]), c))

    def lstm(self) -> list[tuple[Value, Expr]]:
        L = self.layer
        old = E.load(L.c, [self.j])
        i = self.act(0, self.peephole(0, self.gate(0), old))
        if L.attrs.input_forget:
            forget = E.sub(_const(1.0, L.work), i)
        else:
            forget = self.act(0, self.peephole(2, self.gate(2), old))
        c = E.add(E.mul(forget, old), E.mul(i, self.act(1, self.gate(3))))
        o = self.act(0, self.peephole(1, self.gate(1), c))
        name, a, b = self.f[2]
        return [(L.c, c), (L.h, E.mul(o, _activation(name, a, b, c)))]

    def gru(self, inner: Expr) -> list[tuple[Value, Expr]]:
        """``inner``: the recurrent part of the last gate."""
        L = self.layer
        z = E.load(L.g, [self.j])  # activated already
        new = self.act(1, E.add(self.gate(2), inner))
        old = E.load(L.h, [self.j])
        return [(L.h, E.add(E.mul(E.sub(_const(1.0, L.work), z), new), E.mul(z, old)))]

    # --- loops ---------------------------------------------------------------------------

    def emit(self, low: ir.Value, high: ir.Value) -> None:
        def sequence(n: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            L = self.layer
            L.em.bind(self.n, n)
            self.renew()
            self.start()
            count = self.length()
            nest.loop(L.em, I64(0), count, 1, [], lambda s, _: self.step(s, count))
            self.renew()
            self.finish(count)
            return []

        nest.loop(self.layer.em, low, high, 1, [], sequence)

    def renew(self) -> None:
        """Scratch memory changes in this scope: loads of it stay inside."""
        L = self.layer
        for v in (L.h, L.c, L.g, L.t, L.u):
            L.em.bind_local(v)

    def length(self) -> ir.Value:
        L = self.layer
        lens = _input(L.node, 4)
        whole = E.idx(L.steps)
        if lens is None:
            return L.em.emit(whole)
        own = E.cast(E.load(lens, [self.n]), i64)
        return L.em.emit(E.binary("min", E.binary("max", own, E.idx(0)), whole))

    def along(self, var: Var, writes: Sequence[tuple[Value, Sequence[Any], Expr]]) -> None:
        """Stores expressions along ``var``, all of them computed before the first store."""
        L = self.layer

        def body(lanes: int, now: list[ir.Value]) -> list[ir.Value]:
            values = [L.em.emit(e) for _, _, e in writes]
            for (v, index, _), x in zip(writes, values, strict=True):
                at = L.em.lowerer.flat(v, [L.em.lowerer.lower(E.idx(i)) for i in index])
                L.em.store_at(v, at, convert_to(L, v, x))
            return now

        width = lanes_for(var.extent, L.width)
        nest.vector_loop(L.em, var, I64(0), L.em.dim(var.extent), width, ([], []), body)

    def blocks(self, columns: int, out: Value, e: Expr) -> None:
        """Stores ``e`` for every block of columns; ``out`` has room for whole blocks."""
        L = self.layer

        def body(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            L.em.bind(self.block, i)
            L.em.bind(self.lane, I64(0), L.width)
            at = L.em.lowerer.flat(out, [L.em.lowerer.lower(self.column)])
            L.em.store_at(out, at, L.em.emit(e))
            return now

        nest.loop(L.em, I64(0), I64(-(-columns // L.width)), 1, [], body)

    def start(self) -> None:
        L = self.layer
        pairs = [(L.h, _input(L.node, 5)), (L.c, _input(L.node, 6))]
        if L.attrs.cell != "lstm":
            pairs = pairs[:1]
        zero = _const(0.0, L.work)
        self.along(self.j, [
            (v, [self.j], zero if s is None else E.cast(E.load(s, self.state(s)), L.work))
            for v, s in pairs
        ])  # fmt: skip

    def step(self, s: ir.Value, count: ir.Value) -> list[ir.Value]:
        L, em = self.layer, self.layer.em
        b = em.builder
        t = b.sub(b.sub(count, I64(1)), s) if self.reverse else s
        em.bind(self.at, t)
        self.renew()
        self.blocks(L.rows, L.g, self.gates())
        if L.attrs.cell == "lstm":
            writes = self.lstm()
        elif L.attrs.cell == "rnn":
            writes = [(L.h, self.act(0, E.load(L.g, [self.j])))]
        else:
            writes = self.gru(self.gru_inner())
        y = L.node.outputs[0]
        stores: list[tuple[Value, Sequence[Any], Expr]] = [
            (v, [self.j], e) for v, e in writes
        ]
        if y in L.wanted:
            stores.append((y, self.y_index(), E.cast(writes[-1][1], y.dtype)))
        self.along(self.j, stores)
        return []

    def gru_inner(self) -> Expr:
        """Activates z and r, and computes what the last gate gets from the state."""
        L = self.layer
        recurrent = self.product(lambda k: E.load(L.h, [k]), self.r)
        zr = self.act(0, E.add(E.load(L.g, [self.column]), recurrent))
        self.gate_blocks(zr)
        if L.attrs.linear_before_reset:
            inner = E.add(self.product(lambda k: E.load(L.h, [k]), self.last),
                          self.bias(self.last_bias))
            reset = E.load(L.g, [E.add(self.column, E.idx(L.hidden))])
            self.blocks(L.hidden, L.u, E.mul(reset, inner))
            return E.load(L.u, [self.j])
        reset = E.load(L.g, [E.add(self.j, E.idx(L.hidden))])
        self.along(self.j, [(L.t, [self.j], E.mul(reset, E.load(L.h, [self.j])))])
        inner = E.add(self.product(lambda k: E.load(L.t, [k]), self.last),
                      self.bias(self.last_bias))
        self.blocks(L.hidden, L.u, inner)
        return E.load(L.u, [self.j])

    def gate_blocks(self, zr: Expr) -> None:
        """Writes z and r; the last block may reach into the third gate, which stays as it is."""
        L = self.layer
        inside = E.compare("lt", self.column, E.idx(2 * L.hidden))
        self.blocks(2 * L.hidden, L.g, E.select(inside, zr, E.load(L.g, [self.column])))

    def y_index(self) -> list[Any]:
        if self.layer.attrs.layout == 0:
            return [self.at, self.d, self.n, self.j]
        return [self.n, self.at, self.d, self.j]

    def finish(self, count: ir.Value) -> None:
        """Zeros after the end of a short sequence, and the final state."""
        L = self.layer
        y, *finals = L.node.outputs
        if y in L.wanted and _input(L.node, 4) is not None:
            zero = E.const(0.0, y.dtype)

            def blank(t: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
                L.em.bind(self.at, t)
                self.along(self.j, [(y, self.y_index(), zero)])
                return now

            nest.loop(L.em, count, L.em.dim(L.steps), 1, [], blank)
        for v, s in zip(finals, (L.h, L.c), strict=False):
            if v in L.wanted:
                self.along(self.j, [(v, self.state(v), E.cast(E.load(s, [self.j]), v.dtype))])


def convert_to(layer: _Layer, v: Value, x: ir.Value) -> ir.Value:
    """A value as the register type of the tensor it is stored to."""
    want = convert.register_type(v.dtype)
    if isinstance(x, ir.Constant) or x.type == want or getattr(x.type, "element", None) == want:
        return x
    return convert.cast(layer.em.builder, x, layer.work, v.dtype)
