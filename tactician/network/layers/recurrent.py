"""Recurrent layers (legacy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import LayerType, RNNDirection, RNNGateType, RNNInputMode, RNNOperation
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import as_int, weights_array

_G = RNNGateType
# Gates in the order of the ``rnn`` op.
_GATES = {
    RNNOperation.LSTM: (_G.INPUT, _G.OUTPUT, _G.FORGET, _G.CELL),
    RNNOperation.GRU: (_G.UPDATE, _G.RESET, _G.HIDDEN),
    RNNOperation.RELU: (_G.INPUT,), RNNOperation.TANH: (_G.INPUT,),
}
# Gates in the order in which packed weights hold them.
_PACKED = {
    RNNOperation.LSTM: (_G.FORGET, _G.INPUT, _G.CELL, _G.OUTPUT),
    RNNOperation.GRU: (_G.UPDATE, _G.RESET, _G.HIDDEN),
    RNNOperation.RELU: (_G.INPUT,), RNNOperation.TANH: (_G.INPUT,),
}
_CELL = {RNNOperation.LSTM: "lstm", RNNOperation.GRU: "gru"}


class IRNNv2Layer(ILayer):
    """Layers of recurrent cells over [batch, time, size].

    Outputs: the states of all steps, the last hidden state and, for LSTM, the last cell state.

    Attributes:
        op, num_layers, hidden_size, max_seq_length, data_length: What it was made with.
        direction: One or both directions.
        input_mode: Whether the first layer multiplies its input (LINEAR) or not (SKIP).
        seq_lengths, hidden_state, cell_state: Optional inputs.
    """

    _layer_type = LayerType.RNN_V2
    _title = "RNN"
    _incomplete = True
    _lengths, _hidden, _cell = 1, 2, 3
    op = Attr(RNNOperation, "Kind of cell.")
    direction = Attr(RNNDirection, "One or both directions.")
    input_mode = Attr(RNNInputMode, "What the first layer does with its input.")
    num_layers = property(lambda s: s._state["num_layers"], doc="How many layers there are.")
    hidden_size = property(lambda s: s._state["hidden_size"], doc="Size of the state.")
    max_seq_length = property(lambda s: s._state["max_seq_length"], doc="Most steps.")

    @property
    def data_length(self) -> int:
        """Size of the input's elements."""
        return as_int(self._x().dims[-1])

    def _optional(index: int, doc: str) -> Any:  # type: ignore[misc]
        return property(lambda s: s.get_input(index), lambda s, t: s._put(index, t), doc=doc)

    seq_lengths = _optional(1, "Steps of each sequence.")
    hidden_state = _optional(2, "First hidden state.")
    cell_state = _optional(3, "First cell state.")

    def _put(self, index: int, tensor: ITensor | None) -> None:
        while len(self._inputs) < index:
            self._inputs.append(None)
        self.set_input(index, tensor)

    def _max_inputs(self) -> int:
        return 3

    def set_input(self, index: int, tensor: ITensor | None) -> None:
        """Replaces the input (0) or an optional one."""
        while 0 < index <= 3 and len(self._inputs) < index:
            self._inputs.append(None)
        super().set_input(index, tensor)

    def set_weights_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool,
                             weights: Any) -> None:
        """Sets the input (``is_w``) or recurrent weights of a gate, [hidden, input].

        With two directions ``layer_index`` is ``2 * layer + direction``.
        """
        self._set_weights(f"{'w' if is_w else 'r'}{as_int(layer_index)}.{RNNGateType(gate).name}",
                          weights)
        self._changed()

    def set_bias_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool,
                          bias: Any) -> None:
        """Sets the input (``is_w``) or recurrent bias of a gate."""
        name = f"{'wb' if is_w else 'rb'}{as_int(layer_index)}.{RNNGateType(gate).name}"
        self._set_weights(name, bias)
        self._changed()

    def _flat(self, key: str) -> Any:
        v = self._weights.get(key)
        return np.empty(0, np.float32) if v is None or v.const is None else v.const.reshape(-1)

    def get_weights_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool) -> Any:
        """Weights of a gate, flat."""
        return self._flat(f"{'w' if is_w else 'r'}{as_int(layer_index)}.{RNNGateType(gate).name}")

    def get_bias_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool) -> Any:
        """Bias of a gate."""
        return self._flat(f"{'wb' if is_w else 'rb'}{as_int(layer_index)}.{RNNGateType(gate).name}")

    def _setup(self) -> None:
        super()._setup()
        self._default_outputs = 3 if self.op is RNNOperation.LSTM else 2  # type: ignore[misc]

    def _dirs(self) -> int:
        return 2 if self._state["direction"] is RNNDirection.BIDIRECTION else 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        if x.rank != 3:
            raise OpError(f"it needs [batch, time, size], got {x!r}")
        dirs, layers, hidden = self._dirs(), self.num_layers, self.hidden_size
        lens = self._state_input(e, self._lengths, None)
        finals: tuple[list[Value], list[Value]] = ([], [])
        for layer in range(layers):
            w, r, b = self._matrices(e, layer, as_int(x.dims[-1]), x.dtype.np)
            states = [self._state_input(e, i, (layer * dirs, dirs))
                      for i in (self._hidden, self._cell)]
            lstm = self.op is RNNOperation.LSTM
            node = e.op(
                "rnn", x, w, r, b, lens, states[0], states[1] if lstm else None, None,
                cell=_CELL.get(self.op, "rnn"), hidden=hidden, layout=1,
                direction="bidirectional" if dirs == 2 else "forward",
                activations=("relu",) * dirs if self.op is RNNOperation.RELU else (),
                linear_before_reset=True)
            x = e.value("reshape", node.outputs[0], e.ints([0, 0, dirs * hidden]),
                        zero_copies=True)
            for kept, v in zip(finals, node.outputs[1:], strict=False):
                kept.append(v)
        joined = [e.value("concat", *kept, axis=1) for kept in finals if kept]
        return [x, *joined]

    def _state_input(self, e: Emitter, i: int, part: tuple[int, int] | None) -> Value | None:
        if self._in(i) is None:
            return None
        v = self._x(i)
        if part is None:
            return v
        start, count = part
        return e.value("strided_slice", v, e.ints([start]), e.ints([start + count]), e.ints([1]),
                       None)

    def _matrices(self, e: Emitter, layer: int, size: int, dt: Any) -> tuple[Value, Value, Value]:
        """Weights of one layer as the ``rnn`` op wants them."""
        dirs, hidden = self._dirs(), self.hidden_size
        skip = layer == 0 and self.input_mode is RNNInputMode.SKIP
        if skip and size != hidden:
            raise OpError(f"input mode SKIP needs inputs of size {hidden}, got {size}")
        ws, rs, bs = [], [], []
        for d in range(dirs):
            k = layer * dirs + d
            gates = [g.name for g in _GATES[self.op]]
            ws.append([np.eye(hidden) if skip else self._gate(f"w{k}.{g}", (hidden, size))
                       for g in gates])
            rs.append([self._gate(f"r{k}.{g}", (hidden, hidden)) for g in gates])
            bs.append([self._gate(f"{p}{k}.{g}", (hidden,), zero=True)
                       for p in ("wb", "rb") for g in gates])
        return (e.const(np.stack([np.concatenate(w) for w in ws]).astype(dt)),
                e.const(np.stack([np.concatenate(r) for r in rs]).astype(dt)),
                e.const(np.stack([np.concatenate(b) for b in bs]).astype(dt)))

    def _gate(self, key: str, shape: tuple[int, ...], zero: bool = False) -> Any:
        flat = self._flat(key)
        if not flat.size and zero:
            return np.zeros(shape)
        if flat.size != np.prod(shape):
            raise OpError(f"weights {key} need {shape}, got {flat.size} numbers; set them with"
                          " set_weights_for_gate")
        return flat.reshape(shape)


class IRNNLayer(IRNNv2Layer):
    """Recurrent layers with packed weights (version 7).

    Weights hold, for each layer (and direction), the input matrices of all gates, then the
    recurrent ones; biases likewise. Gates are in the order forget, input, cell, output (LSTM) or
    update, reset, hidden (GRU).

    Attributes:
        weights, bias: The packed weights, flat.
    """

    _layer_type = LayerType.RNN

    @property
    def weights(self) -> Any:
        """The packed weights, flat."""
        return self._flat("weights")

    @weights.setter
    def weights(self, weights: Any) -> None:
        self._set_weights("weights", weights)
        self._changed()

    @property
    def bias(self) -> Any:
        """The packed biases, flat."""
        return self._flat("bias")

    @bias.setter
    def bias(self, bias: Any) -> None:
        self._set_weights("bias", bias)
        self._changed()

    def _emit(self, e: Emitter) -> Sequence[Value]:
        self._unpack(as_int(self._x().dims[-1]))
        return super()._emit(e)

    def _unpack(self, size: int) -> None:
        """Cuts the packed weights into gates."""
        hidden, dirs = self.hidden_size, self._dirs()
        packed, bias = self._flat("weights"), self._flat("bias")
        at = b_at = 0
        for layer in range(self.num_layers):
            inner = size if layer == 0 else dirs * hidden
            for d in range(dirs):
                k = layer * dirs + d
                for prefix, n in (("w", inner), ("r", hidden)):
                    for g in _PACKED[self.op]:
                        self._set_weights(f"{prefix}{k}.{g.name}", packed[at:at + hidden * n])
                        self._set_weights(f"{prefix}b{k}.{g.name}", bias[b_at:b_at + hidden])
                        at, b_at = at + hidden * n, b_at + hidden
        if at != packed.size:
            raise OpError(f"it needs {at} packed weights, got {packed.size}")


class RecurrentAdders(NetworkCore):
    """``add_*`` methods of recurrent layers."""

    def add_rnn_v2(self, input: ITensor, layer_count: int, hidden_size: int, max_seq_length: int,
                   op: RNNOperation) -> IRNNv2Layer:
        """Adds recurrent layers; set the gates' weights with `set_weights_for_gate`."""
        return self._add(IRNNv2Layer, [input], **_state(layer_count, hidden_size, max_seq_length,
                                                        op))

    def add_rnn(self, input: ITensor, layer_count: int, hidden_size: int, max_seq_length: int,
                op: RNNOperation, mode: RNNInputMode, direction: RNNDirection, weights: Any,
                bias: Any) -> IRNNLayer:
        """Adds recurrent layers with packed weights (version 7)."""
        state = _state(layer_count, hidden_size, max_seq_length, op)
        state.update(input_mode=RNNInputMode(mode), direction=RNNDirection(direction))
        given = {"weights": weights_array(weights), "bias": weights_array(bias)}
        return self._add(IRNNLayer, [input], given=given, **state)


def _state(layers: int, hidden: int, steps: int, op: RNNOperation) -> dict[str, Any]:
    return {"num_layers": as_int(layers), "hidden_size": as_int(hidden),
            "max_seq_length": as_int(steps), "op": RNNOperation(op),
            "direction": RNNDirection.UNIDIRECTION, "input_mode": RNNInputMode.LINEAR}
