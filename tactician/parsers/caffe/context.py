"""What importers work with: adding layers to the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Value
from ...network.network import INetworkDefinition
from .errors import LayerProblem
from .node import CaffeLayer


class Context:
    """Builds the layers of one net. Values of the graph always have the batch as dimension 0,
    whether or not the network shows it.

    Attributes:
        network: Receives the layers.
        batch: The first dimension the prototxt gives its inputs.
        node: The Caffe layer being imported.
    """

    def __init__(self, network: INetworkDefinition):
        self.network = network
        self.batch: int | None = None
        self.node: CaffeLayer | None = None
        self.added: list[tuple[str, Any]] = []
        self._names: dict[str, int] = {}

    @property
    def implicit(self) -> bool:
        """Whether the batch is left to run time."""
        return self.network.has_implicit_batch_dimension

    # --- adding ---------------------------------------------------------------------------------

    def ops(self, op: str, *inputs: Value | None, **attrs: Any) -> list[Value]:
        """Adds an op of `tactician.ops`; returns its outputs.

        Raises:
            OpError: If operands or attributes are wrong.
        """
        net = self.network
        tensors = [None if v is None else net._tensor(v) for v in inputs]
        results = net.add_op(op, tensors, source=self._source, **attrs)
        self.added.append((op, net._layers[-1]))
        return [t._v for t in results]

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Adds an op with one output."""
        return self.ops(op, *inputs, **attrs)[0]

    def layer(self, method: str, *inputs: Value, then: dict[str, Any] | None = None,
              **arguments: Any) -> Value:
        """Adds one of TensorRT's layers.

        Args:
            method: Of the network, such as ``add_activation``.
            inputs: The tensors it starts with.
            then: Attributes to set on the layer.
            **arguments: Further arguments of the method.

        Raises:
            LayerProblem: If the layer is invalid.
        """
        net = self.network
        count = len(net._layers)
        added = getattr(net, method)(*(net._tensor(v) for v in inputs), **arguments)
        if added is None:
            raise LayerProblem(f"{method} refused it; the log says why")
        layer = net._layers[count]
        for name, value in (then or {}).items():
            setattr(layer, name, value)
        for node in layer._nodes:
            node.source = self._source
        errors = layer._errors()
        if errors:
            raise LayerProblem("; ".join(re.sub(r"^layer '.*?' \[[^\]]*\](?: from .*?)?: ", "", e)
                                         for e in errors))
        self.added.append((method.removeprefix("add_"), layer))
        return layer._outputs[0]

    @property
    def _source(self) -> str:
        return self.node.source if self.node is not None else ""

    def const(self, data: Any, dt: DType | None = None, name: str = "const") -> Value:
        """A constant."""
        return self.network.graph.constant(
            np.asarray(data, dtype=None if dt is None else dt.np), name)

    def weights(self, array: Any, role: str) -> Value:
        """A constant that can be refitted as ``role`` of the layer that reads it."""
        v = self.const(np.asarray(array, np.float32), name=f"{self.node.name}.{role}"
                       if self.node else role)
        v.meta["weights_role"] = role
        return v

    def ints(self, data: Sequence[int]) -> Value:
        """A 1-D i64 constant."""
        return self.const(np.asarray(list(data), dtype=np.int64))

    # --- shorthands -----------------------------------------------------------------------------

    def unary(self, fn: str, x: Value) -> Value:
        return self.op("unary", x, fn=fn)

    def binary(self, fn: str, a: Value, b: Value) -> Value:
        return self.op("binary", a, b, fn=fn)

    def activation(self, x: Value, type: Any, **attrs: float) -> Value:
        return self.layer("add_activation", x, type=type, then=attrs)

    def number(self, x: float) -> Value:
        """A scalar f32 constant."""
        return self.const(np.float32(x))

    def affine(self, x: Value, scale: float = 1.0, shift: float = 0.0,
               power: float = 1.0) -> Value:
        """``(x * scale + shift) ** power``; ``x`` itself if that is the same."""
        if (scale, shift, power) == (1.0, 0.0, 1.0):
            return x
        if not x.rank:
            y = self.binary("add", self.binary("mul", x, self.number(scale)), self.number(shift))
            return y if power == 1 else self.binary("pow", y, self.number(power))
        from ...network.enums import ScaleMode

        def one(v: float, usual: float) -> Any:
            return None if v == usual else np.array([v], np.float32)

        return self.layer("add_scale_nd", x, mode=ScaleMode.UNIFORM, shift=one(shift, 0.0),
                          scale=one(scale, 1.0), power=one(power, 1.0),
                          channel_axis=-int(self.implicit))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshapes; 0 copies a dimension, -1 is inferred."""
        return self.op("reshape", x, self.ints(shape), zero_copies=True)

    def flatten(self, x: Value, first: int, last: int) -> Value:
        """Dimensions ``first`` to ``last`` as one."""
        if first == last:
            return x
        tail = x.dims[last + 1 :]
        if x.is_static:
            keep = [int(d) for d in x.dims]
            size = int(np.prod(keep[first : last + 1], dtype=np.int64))
            return self.op("reshape", x, self.ints([*keep[:first], size, *keep[last + 1 :]]),
                           zero_copies=False)
        if not tail:
            return self.reshape(x, [0] * first + [-1])
        if all(isinstance(d, int) for d in tail):
            return self.reshape(x, [0] * first + [-1] + [int(d) for d in tail])
        raise LayerProblem("dimensions behind the flattened ones must be known; only the batch "
                           "may be left to run time")

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if list(perm) == list(range(x.rank)):
            return x
        return self.op("transpose", x, perm=tuple(perm))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        return parts[0] if len(parts) == 1 else self.op("concat", *parts, axis=axis)

    def cut(self, x: Value, axis: int, start: int, end: int) -> Value:
        """``x[..., start:end, ...]`` along one axis."""
        return self.op("strided_slice", x, self.ints([start]), self.ints([end]),
                       self.ints([axis]), self.ints([1]))

    def refuse_batch(self, axis: int, what: str) -> None:
        """Refuses to work along the batch in a network with implicit batch.

        Raises:
            LayerProblem: If ``axis`` is the batch.
        """
        if axis == 0 and self.implicit:
            raise LayerProblem(f"{what} along axis 0 mixes the images of a batch, which a network "
                               "with implicit batch can't; use create_network(1 << EXPLICIT_BATCH)")

    # --- names ----------------------------------------------------------------------------------

    def name_layers(self, results: Sequence[Value]) -> None:
        """The layer with the weights, or else the one that computes the first top, gets the Caffe
        layer's name, the others derived ones."""
        assert self.node is not None
        producer = results[0].producer if results else None
        main = next((x for _, x in self.added if x._weights),
                    next((x for _, x in self.added if producer in x._nodes), None))
        for op, layer in self.added:
            name = self.node.name if layer is main else f"{self.node.name}/{op}"
            count = self._names.get(name, 0)
            self._names[name] = count + 1
            layer.name = name if not count else f"{name}_{count}"
        self.added = []
