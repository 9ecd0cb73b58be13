"""Recurrent networks: LSTM, GRU and plain RNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, TensorType, Value
from . import _math as M
from ._numeric import Array, operands, shape_text, widen
from ._rnn_unroll import unroll
from .registry import Kind, Op, OpError, register

CELLS = {"lstm": 4, "gru": 3, "rnn": 1}  # gates
DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
DIRECTIONS = ("forward", "reverse", "bidirectional")
ACTIVATIONS = (
    "relu", "tanh", "sigmoid", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh",
    "hard_sigmoid", "elu", "softsign", "softplus",
)
_ALPHA_BETA = {  # defaults where alpha or beta are not given
    "affine": (1.0, 0.0), "leaky_relu": (0.01, 0.0), "thresholded_relu": (1.0, 0.0),
    "scaled_tanh": (1.0, 1.0), "hard_sigmoid": (0.2, 0.5), "elu": (1.0, 0.0),
}


@dataclass(frozen=True)
class RnnAttrs:
    """
    Attributes:
        cell: ``lstm``, ``gru`` or ``rnn``.
        hidden: Size of the state.
        direction: ``forward``, ``reverse`` or ``bidirectional``.
        activations: Names from `ACTIVATIONS`: 3, 2 or 1 (lstm, gru, rnn) per direction; empty
            means the usual ones.
        alpha, beta: Parameters of the activations, in order, one for each; empty means defaults
            (``nan`` entries too).
        clip: Bound on the activations' arguments; 0 means none.
        layout: 0: time first; 1: batch first.
        linear_before_reset: GRU: the reset gate acts after the recurrent product.
        input_forget: LSTM: the forget gate is one minus the input gate.
    """

    cell: str = "lstm"
    hidden: int = 0
    direction: str = "forward"
    activations: tuple[str, ...] = ()
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    clip: float = 0.0
    layout: int = 0
    linear_before_reset: bool = False
    input_forget: bool = False


@register
class Rnn(Op):
    """ONNX's LSTM, GRU and RNN. Inputs ``x [time, batch, size], w [dirs, gates*hidden, size],
    r [dirs, gates*hidden, hidden], b?, lens?, h0?, c0?, p?``; outputs ``y [time, dirs, batch,
    hidden], y_h [dirs, batch, hidden]`` and, for an LSTM, ``y_c``. Gate orders are ONNX's: LSTM
    i o f c, GRU z r h. Steps past a sequence's length give 0."""

    name = "rnn"
    kind = Kind.OPAQUE
    Attrs = RnnAttrs

    def num_outputs(self, node: Node) -> int:
        return 3 if node.attrs.cell == "lstm" else 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, w, r, b, lens, h0, c0, p = operands(node, 3, 8)
        a = node.attrs
        _check_attrs(a)
        if x.rank != 3 or not x.dtype.is_float:
            raise OpError(f"x {shape_text(x)} must be floating-point, [time, batch, size] (layout "
                          f"0) or [batch, time, size] (layout 1)")
        steps, batch = x.dims[:2] if a.layout == 0 else (x.dims[1], x.dims[0])
        dirs, rows = _directions(a), CELLS[a.cell] * a.hidden
        _expect("w", w, x, (dirs, rows, x.dims[2]))
        _expect("r", r, x, (dirs, rows, a.hidden))
        _expect("b", b, x, (dirs, 2 * rows))
        return result_types(a, x, steps, batch, (lens, h0, c0, p))[: self.num_outputs(node)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, w, r, b, lens, h0, c0, p = (*inputs, None, None, None, None, None)[:8]
        a = node.attrs
        x, w, r = widen(x), widen(w), widen(r)
        if a.layout:
            x = x.swapaxes(0, 1)
            h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
        steps, batch = x.shape[:2]
        counts = np.full(batch, steps) if lens is None else np.asarray(lens).astype(np.int64)
        zeros = np.zeros((batch, a.hidden), x.dtype)
        ys, hs, cs = [], [], []
        for d in range(_directions(a)):
            cell = _Cell(a, d, w[d], r[d], None if b is None else widen(b[d]),
                         None if p is None else widen(p[d]))
            h = zeros if h0 is None else widen(h0[d])
            c = zeros if c0 is None else widen(c0[d])
            y, h, c = _run(cell, x, counts, h, c, a.direction == "reverse" or d == 1)
            ys.append(y)
            hs.append(h)
            cs.append(c)
        return results(a, ys, hs, cs)[: self.num_outputs(node)]

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        cell = node.attrs.cell
        return unroll(node, graph, {
            "gates": CELLS[cell], "activations": DEFAULTS[cell], "parameters": parameters,
        })


def _directions(a: RnnAttrs) -> int:
    return 2 if a.direction == "bidirectional" else 1


def _check_attrs(a: RnnAttrs) -> None:
    if a.cell not in CELLS:
        raise OpError(f"cell {a.cell!r} is not one of {', '.join(CELLS)}")
    if a.direction not in DIRECTIONS:
        raise OpError(f"direction {a.direction!r} is not one of {', '.join(DIRECTIONS)}")
    if a.hidden < 1:
        raise OpError(f"hidden is {a.hidden}, but must be at least 1")
    need = len(DEFAULTS[a.cell]) * _directions(a)
    if a.activations and len(a.activations) != need:
        raise OpError(f"{len(a.activations)} activations are given, but a {a.direction} {a.cell} "
                      f"needs {need}")
    for name in a.activations:
        if name not in ACTIVATIONS:
            raise OpError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")


def _expect(what: str, v: Value | None, x: Value, shape: tuple[D.DimLike, ...]) -> None:
    if v is None:
        return
    fits = v.rank == len(shape) and all(
        d == s or not D.is_static(d, s) for d, s in zip(v.dims, shape, strict=True)
    )
    if not fits or v.dtype is not x.dtype:
        raise OpError(f"{what} must be {x.dtype}[{', '.join(map(str, shape))}], but is "
                      f"{shape_text(v)}")


def result_types(
    a: RnnAttrs, like: Value, steps: D.DimLike, batch: D.DimLike,
    options: tuple[Value | None, Value | None, Value | None, Value | None],
) -> list[TensorType]:
    """Types of the outputs of a recurrent layer: all states, the last one, an LSTM's last cell.

    Args:
        like: Has the layer's element type.
        options: lens, h0, c0 and p, which are checked.

    Raises:
        OpError: If one of these does not fit.
    """
    lens, h0, c0, p = options
    dirs = _directions(a)
    state = (dirs, batch, a.hidden) if a.layout == 0 else (batch, dirs, a.hidden)
    _expect("p", p, like, (dirs, 3 * a.hidden))
    _expect("h0", h0, like, state)
    _expect("c0", c0, like, state)
    if lens is not None and (not lens.dtype.is_int or lens.rank != 1):
        raise OpError(f"lens {shape_text(lens)} must be one integer per batch entry")
    y = (steps, dirs, batch, a.hidden) if a.layout == 0 else (batch, steps, dirs, a.hidden)
    return [TensorType(like.dtype, shape) for shape in (y, state, state)]


def results(
    a: RnnAttrs, ys: Sequence[Array], hs: Sequence[Array], cs: Sequence[Array]
) -> tuple[Array, ...]:
    """The outputs from those of each direction, time first."""
    y, states = np.stack(ys, axis=1), [np.stack(hs), np.stack(cs)]
    if a.layout:
        y, states = y.transpose(2, 0, 1, 3), [s.swapaxes(0, 1) for s in states]
    return y, *states


def parameters(attrs: RnnAttrs, k: int, name: str) -> tuple[float, float]:
    """Alpha and beta of the ``k``-th activation, where not given the usual ones."""
    if name not in _ALPHA_BETA:
        return 1.0, 1.0  # it has none
    given = [v[k] if k < len(v) else np.nan for v in (attrs.alpha, attrs.beta)]
    usual = _ALPHA_BETA[name]
    a, b = (u if np.isnan(g) else float(g) for g, u in zip(given, usual, strict=True))
    return a, b


def activation(name: str, a: float, b: float) -> Callable[[Array], Array]:
    """An activation on arrays."""
    table: dict[str, Callable[[Array], Array]] = {
        "relu": lambda v: np.maximum(v, 0),
        "tanh": np.tanh,
        "sigmoid": M.sigmoid,
        "affine": lambda v: a * v + b,
        "leaky_relu": lambda v: np.where(v >= 0, v, a * v),
        "thresholded_relu": lambda v: np.where(v > a, v, 0),
        "scaled_tanh": lambda v: a * np.tanh(b * v),
        "hard_sigmoid": lambda v: np.clip(a * v + b, 0, 1),
        "elu": lambda v: np.where(v >= 0, v, a * np.expm1(np.minimum(v, 0))),
        "softsign": lambda v: v / (1 + np.abs(v)),
        "softplus": M.softplus,
    }
    f = table[name]
    return lambda v: f(v).astype(v.dtype, copy=False)


class _Cell:
    """One direction's weights and its step."""

    def __init__(self, a: RnnAttrs, d: int, w: Array, r: Array, b: Array | None, p: Array | None):
        self.a, self.w, self.r = a, w.T, r.T
        rows, per = CELLS[a.cell] * a.hidden, len(DEFAULTS[a.cell])
        names = a.activations[d * per : (d + 1) * per] or DEFAULTS[a.cell]
        self.f = [activation(n, *parameters(a, d * per + k, n)) for k, n in enumerate(names)]
        bias = np.zeros(2 * rows, w.dtype) if b is None else b
        self.wb, self.rb = bias[:rows], bias[rows:]
        self.p = np.zeros(3 * a.hidden, w.dtype) if p is None else p

    def clip(self, v: Array) -> Array:
        return np.clip(v, -self.a.clip, self.a.clip) if self.a.clip > 0 else v

    def step(self, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """``xw`` is the input's product with the weights, without bias."""
        return {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.a.cell](xw, h, c)

    def _lstm(self, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
        f, g, out = self.f
        gates = xw + h @ self.r + (self.wb + self.rb)
        gi, go, gf, gc = np.split(gates, 4, axis=1)
        pi, po, pf = np.split(self.p, 3)
        i = f(self.clip(gi + pi * c))
        forget = 1 - i if self.a.input_forget else f(self.clip(gf + pf * c))
        c = forget * c + i * g(self.clip(gc))
        o = f(self.clip(go + po * c))
        return o * out(c), c  # the state itself is not clipped, as in onnxruntime

    def _gru(self, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
        f, g = self.f
        n = 2 * self.a.hidden
        zr = f(self.clip(xw[:, :n] + h @ self.r[:, :n] + (self.wb[:n] + self.rb[:n])))
        z, r = np.split(zr, 2, axis=1)
        if self.a.linear_before_reset:
            inner = r * (h @ self.r[:, n:] + self.rb[n:])
        else:
            inner = (r * h) @ self.r[:, n:] + self.rb[n:]
        new = g(self.clip(xw[:, n:] + self.wb[n:] + inner))
        return (1 - z) * new + z * h, c

    def _rnn(self, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return self.f[0](self.clip(xw + h @ self.r + (self.wb + self.rb))), c


def _run(
    cell: _Cell, x: Array, counts: Array, h: Array, c: Array, reverse: bool
) -> tuple[Array, Array, Array]:
    """Steps through time."""
    return run_steps(cell, x @ cell.w, counts, h, c, reverse)


def run_steps(
    cell: _Cell, xw: Array, counts: Array, h: Array, c: Array, reverse: bool
) -> tuple[Array, Array, Array]:
    """Steps through the inputs' products with the weights; a sequence shorter than the batch's
    keeps its last state."""
    steps = xw.shape[0]
    y = np.zeros((steps, *h.shape), xw.dtype)
    for t in reversed(range(steps)) if reverse else range(steps):
        live = (t < counts)[:, None]
        h_new, c_new = cell.step(xw[t], h, c)
        h, c = np.where(live, h_new, h), np.where(live, c_new, c)
        y[t] = np.where(live, h_new, 0)
    return y, h, c
