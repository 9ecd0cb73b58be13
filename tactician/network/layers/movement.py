"""Layers that move elements without computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dtypes as T
from ...ir.graph import Value
from ...ops import OpError
from ...support import version
from ..core import NetworkCore
from ..enums import LayerType, SampleMode
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import Dims, Dims2, DimsHW, Permutation, as_int, dims
from .contraction import HW, dims_attr

SAMPLE_MODES = {
    SampleMode.STRICT_BOUNDS: "strict", SampleMode.WRAP: "wrap", SampleMode.CLAMP: "clamp",
    SampleMode.FILL: "fill", SampleMode.REFLECT: "reflect",
}


def _permutation(x: Any) -> Permutation:
    return Permutation(tuple(x))


class IShuffleLayer(ILayer):
    """Transpose, reshape, transpose, any of which may be absent.

    Attributes:
        first_transpose, second_transpose: Permutations; empty: identity.
        reshape_dims: The new shape: -1 once for "the rest"; 0 copies the dimension of the
            transposed input if `zero_is_placeholder`. A second input overrides it.
        zero_is_placeholder: What 0 means in the new shape.
    """

    _layer_type = LayerType.SHUFFLE
    _title = "Shuffle"
    first_transpose = Attr(_permutation, "Permutation before the reshape.")
    second_transpose = Attr(_permutation, "Permutation after the reshape.")
    zero_is_placeholder = Attr(bool, "Whether 0 copies a dimension.")

    @property
    def reshape_dims(self) -> Dims:
        """The new shape; empty if none was set or a tensor gives it."""
        return self._state["reshape_dims"] or Dims()

    @reshape_dims.setter
    def reshape_dims(self, shape: Any) -> None:
        self._state["reshape_dims"] = dims_attr(shape)
        del self._inputs[1:]
        self._changed()

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x, off = self._state, self._x(), self._net._off
        x = self._transpose(e, x, s["first_transpose"])
        if self._in(1) is not None:
            x = e.value("reshape", x, self._x(1), zero_copies=s["zero_is_placeholder"])
        elif s["reshape_dims"] is not None:
            shape = tuple(s["reshape_dims"])
            if shape.count(-1) > 1 or any(d < -1 for d in shape):
                raise OpError(f"reshape_dims {shape} may hold -1 once and no other negative size")
            # with implicit batch 0 stands for the batch, so other zeros must be spelled out
            if off:
                shape = (0, *self._spelled_out(shape, x, s["zero_is_placeholder"]))
            x = e.value("reshape", x, e.ints(shape),
                        zero_copies=bool(off) or s["zero_is_placeholder"])
        elif not s["second_transpose"] and not s["first_transpose"]:
            x = e.value("identity", x)
        return [self._transpose(e, x, s["second_transpose"])]

    @staticmethod
    def _spelled_out(shape: tuple[int, ...], x: Value, copies: bool) -> tuple[int, ...]:
        if not copies and 0 in shape:
            raise OpError("empty dimensions need a network with explicit batch")
        return shape

    def _transpose(self, e: Emitter, x: Value, order: Permutation) -> Value:
        perm = tuple(order)
        if not perm:
            return x
        off = self._net._off
        rank = x.rank - off
        if len(perm) > rank and sorted(perm[:rank]) == list(range(rank)):
            perm = perm[:rank]  # the C++ class always holds MAX_DIMS entries
        if sorted(perm) != list(range(rank)):
            raise OpError(f"{perm} is not a permutation of the {rank} dimensions of {x!r}")
        if off:
            perm = (0, *(p + 1 for p in perm))
        return e.value("transpose", x, perm=perm)


class ISliceLayer(ILayer):
    """Takes every ``stride``-th element from ``start`` on, ``shape`` of them.

    Attributes:
        start, shape, stride: One number per dimension; inputs 1, 2, 3 override them.
        axes: Which dimensions they speak of; empty: all. Input 5 overrides it.
        mode: What reads outside the input give; with FILL, input 4 is the value (default 0).
    """

    _layer_type = LayerType.SLICE
    _title = "Slice"
    _incomplete = True
    mode = Attr(SampleMode, "What reads outside the input give.")

    def _max_inputs(self) -> int:
        return 5

    def _get(self, key: str, i: int) -> Dims:
        return Dims() if self._in(i) is not None else self._state[key]

    def _put(self, key: str, i: int, value: Any) -> None:
        self._state[key] = dims_attr(value)
        if i < len(self._inputs):
            self._inputs[i] = None
            while self._inputs and self._inputs[-1] is None:
                self._inputs.pop()
        self._changed()

    start = property(lambda s: s._get("start", 1), lambda s, v: s._put("start", 1, v),
                     doc="First elements.")
    shape = property(lambda s: s._get("shape", 2), lambda s, v: s._put("shape", 2, v),
                     doc="Sizes of the output.")
    stride = property(lambda s: s._get("stride", 3), lambda s, v: s._put("stride", 3, v),
                      doc="Steps between elements.")
    axes = property(lambda s: s._get("axes", 5), lambda s, v: s._put("axes", 5, v),
                    doc="Dimensions that are sliced; empty: all.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, off = self._x(), self._net._off
        rank = x.rank - off
        axes = self._axes(rank)
        operands: list[Value] = []
        for i, key in ((1, "start"), (2, "shape"), (3, "stride")):
            if self._in(i) is not None:
                v = self._x(i)
                operands.append(self._placed(e, x, v, axes, key))
                continue
            numbers = tuple(self._state[key])
            count = rank if axes is None else len(axes)
            if len(numbers) != count:
                raise OpError(f"{key} has {len(numbers)} numbers, {count} are needed for {x!r}")
            operands.append(self._constant(e, x, numbers, axes, key))
        fill = self._x(4) if self._in(4) is not None else None
        return [e.value("slice", x, *operands, fill, mode=SAMPLE_MODES[self._state["mode"]])]

    def _axes(self, rank: int) -> list[int] | None:
        if self._in(5) is not None:
            known = self._x(5).known_ints()
            if known is None:
                raise OpError("its axes (input 5) must be constant")
            axes = [as_int(a) for a in known.reshape(-1)]
        else:
            axes = list(self._state["axes"])
        if not axes:
            return None
        if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
            raise OpError(f"axes {axes} are not distinct dimensions of a tensor with {rank}")
        return [a % rank for a in axes]

    def _constant(self, e: Emitter, x: Value, numbers: tuple[int, ...], axes: list[int] | None,
                  key: str) -> Value:
        """The operand for all dimensions of ``x``, the batch included."""
        off = self._net._off
        if axes is None and not off:
            return e.ints(numbers)
        where = range(x.rank - off) if axes is None else axes
        return self._mixed(e, x, dict(zip((w + off for w in where), numbers, strict=True)), key)

    def _mixed(self, e: Emitter, x: Value, given: dict[int, Any], key: str) -> Value:
        """Numbers for the given dimensions; the others are taken whole."""
        default = {"start": 0, "stride": 1}
        if key != "shape":
            return e.ints([given.get(i, default[key]) for i in range(x.rank)])
        sizes = [given.get(i, d) for i, d in enumerate(x.dims)]
        if all(isinstance(d, int) for d in sizes):
            return e.ints(sizes)
        shape = e.value("shape", x)
        parts = [
            e.ints([given[i]]) if i in given else e.value(
                "slice", shape, e.ints([i]), e.ints([1]), e.ints([1]), None, mode="strict")
            for i in range(x.rank)
        ]
        return e.value("concat", *parts, axis=0)

    def _placed(self, e: Emitter, x: Value, v: Value, axes: list[int] | None, key: str) -> Value:
        """A tensor operand for some dimensions, spread over all of them."""
        off = self._net._off
        if axes is None and not off:
            return v
        where = list(range(x.rank - off)) if axes is None else axes
        index = {w + off: k for k, w in enumerate(where)}
        rest = self._mixed(e, x, dict.fromkeys(index, 0), key)
        if rest.dtype is not v.dtype:
            rest = e.value("cast", rest, to=v.dtype)

        def pick(source: Value, i: int) -> Value:
            return e.value("slice", source, e.ints([i]), e.ints([1]), e.ints([1]), None,
                           mode="strict")

        parts = [pick(v, index[i]) if i in index else pick(rest, i) for i in range(x.rank)]
        return e.value("concat", *parts, axis=0)


class IConcatenationLayer(ILayer):
    """Joins tensors along a dimension.

    Attributes:
        axis: The dimension; by default the third from the end (with implicit batch: the first),
            or the first if there are fewer.
    """

    _layer_type = LayerType.CONCATENATION
    _title = "Concatenation"
    _incomplete = True
    axis = Attr(as_int, "The dimension along which inputs are joined.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        inputs = [self._x(i) for i in range(len(self._inputs))]
        if not inputs:
            raise OpError("it needs at least one input")
        axis = self._state["axis"] + self._net._off
        if not 0 <= axis < inputs[0].rank:
            raise OpError(f"axis {self._state['axis']} is not a dimension of {inputs[0]!r}")
        return [e.value("concat", *inputs, axis=axis)]

    def _max_inputs(self) -> int:
        return len(self._inputs)


class IShapeLayer(ILayer):
    """The shape of its input, as an INT64 vector; INT32 where programs see a version before 10."""

    _layer_type = LayerType.SHAPE
    _title = "Shape"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        sizes = e.value("shape", self._x())
        return [e.value("cast", sizes, to=T.i32) if version.major() < 10 else sizes]


class IPaddingLayer(ILayer):
    """Zero padding (negative: cropping) of the last two dimensions.

    Attributes:
        pre_padding_nd, post_padding_nd: Amounts before and after, two numbers each.
    """

    _layer_type = LayerType.PADDING
    _title = "Padding"
    pre_padding_nd = Attr(dims_attr, "Amounts before.")
    post_padding_nd = Attr(dims_attr, "Amounts after.")
    pre_padding = HW("pre_padding_nd")
    post_padding = HW("post_padding_nd")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        pre, post = tuple(self.pre_padding_nd), tuple(self.post_padding_nd)
        if len(pre) != 2 or len(post) != 2:
            raise OpError(f"padding needs two numbers before and after, got {pre} and {post}")
        if x.rank < 2 + self._net._off:
            raise OpError(f"its input needs at least two dimensions, got {x!r}")
        lead = [0] * (x.rank - 2)
        return [e.value("pad", x, e.ints([*lead, *pre, *lead, *post]), None, mode="constant")]


class _AxesLayer(ILayer):
    def _axes_value(self, e: Emitter, rank: int) -> Value:
        axes = self._x(1)
        off = self._net._off
        if not off:
            return axes
        known = axes.known_ints()
        if known is None:
            raise OpError("axes must be constant in a network with implicit batch")
        return e.ints([as_int(a) % rank + off for a in known.reshape(-1)])


class ISqueezeLayer(_AxesLayer):
    """Removes dimensions of size 1; input 1 says which."""

    _layer_type = LayerType.SQUEEZE
    _title = "Squeeze"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        return [e.value("squeeze", x, self._axes_value(e, x.rank - self._net._off))]


class IUnsqueezeLayer(_AxesLayer):
    """Inserts dimensions of size 1; input 1 says where, counted in the output."""

    _layer_type = LayerType.UNSQUEEZE
    _title = "Unsqueeze"

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        known = self._x(1).known_ints()
        rank = x.rank - self._net._off + (0 if known is None else known.size)
        return [e.value("unsqueeze", x, self._axes_value(e, rank))]


class IReverseSequenceLayer(ILayer):
    """Reverses the first ``sequence_lens[b]`` elements of each batch element.

    Attributes:
        batch_axis, sequence_axis: Which dimensions those are (1 and 0 by default).
    """

    _layer_type = LayerType.REVERSE_SEQUENCE
    _title = "ReverseSequence"
    _incomplete = True
    batch_axis = Attr(as_int, "The batch dimension.")
    sequence_axis = Attr(as_int, "The sequence dimension.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, off = self._x(), self._net._off
        return [e.value("reverse_sequence", x, self._x(1), batch_axis=self.batch_axis + off,
                        seq_axis=self.sequence_axis + off)]


class MovementAdders(NetworkCore):
    """``add_*`` methods of layers that move elements."""

    def add_shuffle(self, input: ITensor) -> IShuffleLayer:
        """Adds transpose, reshape and transpose; set the layer's attributes."""
        return self._add(IShuffleLayer, [input], first_transpose=Permutation(), reshape_dims=None,
                         second_transpose=Permutation(), zero_is_placeholder=True)

    def add_slice(self, input: ITensor, start: Any, shape: Any, stride: Any) -> ISliceLayer:
        """Adds a slice; pass empty dims for what `ISliceLayer.set_input` gives."""
        return self._add(ISliceLayer, [input], start=Dims(dims(start)), shape=Dims(dims(shape)),
                         stride=Dims(dims(stride)), axes=Dims(), mode=SampleMode.STRICT_BOUNDS)

    def add_concatenation(self, inputs: Sequence[ITensor]) -> IConcatenationLayer:
        """Adds a concatenation; set the layer's ``axis``."""
        tensors = list(inputs)
        first = tensors[0]._v.shape if tensors and isinstance(tensors[0], ITensor) else None
        rank = 0 if first is None else len(first) - self._off
        return self._add(IConcatenationLayer, tensors, axis=max(rank - 3, 0))

    def add_shape(self, input: ITensor) -> IShapeLayer:
        """Adds a layer that gives a tensor's shape."""
        return self._add(IShapeLayer, [input])

    def add_padding_nd(self, input: ITensor, pre_padding: Any, post_padding: Any) -> IPaddingLayer:
        """Adds zero padding of the last two dimensions."""
        return self._add(IPaddingLayer, [input], pre_padding_nd=Dims2(dims(pre_padding, 2)),
                         post_padding_nd=Dims2(dims(post_padding, 2)))

    def add_padding(self, input: ITensor, pre_padding: Any, post_padding: Any) -> IPaddingLayer:
        """Adds zero padding (legacy spelling)."""
        return self.add_padding_nd(input, DimsHW(dims(pre_padding, 2)),
                                   DimsHW(dims(post_padding, 2)))

    def add_squeeze(self, input: ITensor, axes: ITensor) -> ISqueezeLayer:
        """Adds removal of dimensions of size 1."""
        return self._add(ISqueezeLayer, [input, axes])

    def add_unsqueeze(self, input: ITensor, axes: ITensor) -> IUnsqueezeLayer:
        """Adds insertion of dimensions of size 1."""
        return self._add(IUnsqueezeLayer, [input, axes])

    def add_reverse_sequence(self, input: ITensor, sequence_lens: ITensor) -> IReverseSequenceLayer:
        """Adds reversal of sequences."""
        return self._add(IReverseSequenceLayer, [input, sequence_lens], batch_axis=1,
                         sequence_axis=0)
