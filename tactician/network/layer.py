"""`ILayer`, and how layers turn their attributes into nodes of the graph.

A layer keeps its inputs and attributes and can (re-)emit its nodes: `ILayer._emit` says which.
Setting an attribute or an input emits again; nodes that stay the same kind are changed in
place, and the layer's output values keep their identity, whatever nodes compute them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import ops
from ..ir import dtypes as T
from ..ir.graph import Graph, Node, Value
from ..ops.registry import infer_node
from . import boundary  # noqa: F401  (declares the ops that only networks use)
from .enums import DataType, LayerType, NetworkDefinitionCreationFlag, from_ir, to_ir
from .values import as_int, weights_array

if TYPE_CHECKING:
    from .core import NetworkCore
    from .tensor import ITensor

_STRONG = NetworkDefinitionCreationFlag.STRONGLY_TYPED
_MIXABLE = (T.f32, T.f16, T.bf16)
_ONE_TYPE = frozenset("binary select concat matmul convolution deconvolution prelu einsum "
                      "attention scatter_elements scatter_nd scale pad slice rnn "
                      "deform_conv".split())
Problems = (ops.OpError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError)


class Attr:
    """A layer attribute: converted when set, kept in the layer's state, emits on change."""

    def __init__(self, convert: Callable[[Any], Any], doc: str = ""):
        self.convert = convert
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else layer._state.get(self.name)

    def __set__(self, layer: Any, value: Any) -> None:
        layer._state[self.name] = self.convert(value)
        layer._changed()


class WeightsAttr:
    """A layer attribute that holds weights; reads as a flat numpy array."""

    def __init__(self, doc: str = ""):
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        v = layer._weights.get(self.name)
        return np.empty(0, np.float32) if v is None else v.const.reshape(-1)

    def __set__(self, layer: Any, weights: Any) -> None:
        layer._set_weights(self.name, weights)
        layer._changed()


class Emitter:
    """Creates a layer's nodes, reusing those of its last emission where the op is the same."""

    def __init__(self, layer: ILayer):
        self.layer = layer
        self.graph: Graph = layer._net.graph
        self.old = layer._nodes
        self.nodes: list[Node] = []
        self.created: list[Node] = []

    def op(self, name: str, *inputs: Value | None, subgraphs: Sequence[Graph] = (),
           meta: dict[str, Any] | None = None, **attrs: Any) -> Node:
        """Adds a node; see `tactician.ops` for names and attributes. ``meta`` is there when types
        are inferred."""
        inputs = self._alike(name, inputs)
        k = len(self.nodes)
        if k < len(self.old) and self.old[k].op == name and not subgraphs:
            node = self._reuse(self.old[k], inputs, attrs)
        else:
            before = self.old[k] if k < len(self.old) else None
            node = ops.create(self.graph, name, inputs, self.layer._state["name"],
                              before=before, subgraphs=subgraphs, meta=meta, **attrs)
            if before is not None:
                node.source = before.source
            self.created.append(node)
        self.nodes.append(node)
        return node

    def _alike(self, name: str, inputs: tuple[Value | None, ...]) -> tuple[Value | None, ...]:
        """Operands in one float type: in a weakly typed network, layers whose output types were
        set differ in type without being wrong."""
        if name not in _ONE_TYPE or self.layer._net.get_flag(_STRONG):
            return inputs
        kinds = {v.dtype for v in inputs if v is not None and v.dtype in _MIXABLE}
        if len(kinds) < 2:
            return inputs
        return tuple(
            v if v is None or v.dtype not in _MIXABLE or v.dtype is T.f32 or v.shape is None
            else self.value("cast", v, to=T.f32)
            for v in inputs
        )

    def _reuse(self, node: Node, inputs: Sequence[Value | None], attrs: dict[str, Any]) -> Node:
        node.attrs = ops.get(node.op).Attrs(**attrs)
        for i, v in enumerate(inputs):
            if i >= len(node.inputs) or node.inputs[i] is not v:
                node.set_input(i, v)
        for i in range(len(inputs), len(node.inputs)):
            node.set_input(i, None)
        del node.inputs[len(inputs):]
        infer_node(node)
        return node

    def value(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Adds a node with one output and returns that."""
        return self.op(name, *inputs, **attrs).outputs[0]

    def ints(self, values: Sequence[int] | int) -> Value:
        """A constant i64 vector (or scalar)."""
        return self.graph.constant(np.array(values, dtype=np.int64), "ints")

    def const(self, array: Any) -> Value:
        return self.graph.constant(np.asarray(array))


class ILayer:
    """Base class of layers.

    Attributes:
        name: The layer's name; errors, profiles and the inspector show it.
        metadata: Free text kept with the layer.
        type: What kind of layer it is.
        precision: The element type it should compute in, if set.
    """

    _layer_type: ClassVar[LayerType] = LayerType.OP
    _title: ClassVar[str] = "Op"
    _incomplete: ClassVar[bool] = False  # may be put right after it was added
    _default_outputs: ClassVar[int] = 1
    _formula_kind: ClassVar[str] = ""  # which of the network's formulas gives its sizes
    _optional_inputs: ClassVar[frozenset[int]] = frozenset()

    def __init__(self, network: NetworkCore, inputs: Sequence[ITensor | None],
                 name: str = "", **state: Any):
        self._net = network
        self._impl = self
        self._inputs: list[Value | None] = [None if t is None else t._v for t in inputs]
        self._nodes: list[Node] = []
        self._outputs: list[Value] = []
        self._weights: dict[str, Value] = {}
        self._state: dict[str, Any] = {"name": name, "metadata": "", **state}
        self._ready = False

    def _setup(self) -> None:
        """Completes the state when the layer is added; ValueError refuses the layer."""
        for key, weights in self._state.pop("given", {}).items():
            self._set_weights(key, weights)

    def _view(self) -> ILayer:
        """What `INetworkDefinition.get_layer` returns."""
        return self

    # --- identity ------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ILayer) and self.__dict__ is other.__dict__

    def __hash__(self) -> int:
        return id(self._state)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        return str(self._state["name"])

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a layer's name is a str, got {type(name).__name__}")
        self._state["name"] = name
        for node in self._nodes:
            node.name = name
        if self._errors() or self._net._formulas.get(self._impl._formula_kind) is not None:
            self._changed()  # the message names the layer, a formula is told its name

    @property
    def metadata(self) -> str:
        return str(self._state["metadata"])

    @metadata.setter
    def metadata(self, text: str) -> None:
        self._state["metadata"] = text
        for node in self._nodes:
            node.meta["metadata"] = text

    @property
    def type(self) -> LayerType:
        return self._impl._layer_type

    @property
    def num_ranks(self) -> int:
        """Number of devices that run the layer together: always 1."""
        return 1

    @num_ranks.setter
    def num_ranks(self, n: int) -> None:
        if as_int(n) != 1:
            self._net._error(f"layer {self.name!r}: layers run on one device; num_ranks stays 1")

    # --- inputs and outputs --------------------------------------------------------------

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor | None:
        """Input ``index``, or None if it is absent."""
        index = as_int(index)
        v = self._inputs[index] if 0 <= index < len(self._inputs) else None
        return None if v is None else self._net._tensor(v)

    def get_output(self, index: int) -> ITensor | None:
        """Output ``index``, or None if there is none."""
        index = as_int(index)
        if not 0 <= index < len(self._outputs):
            return None
        return self._net._tensor(self._outputs[index])

    def set_input(self, index: int, tensor: ITensor | None) -> None:
        """Replaces an input. ``tensor`` may belong to a layer that was added later."""
        index = as_int(index)
        v = None if tensor is None else self._net._value(tensor, f"set_input of {self.name!r}")
        if index < 0 or index > self._max_inputs():
            self._net._error(f"layer {self.name!r} has no input {index}")
            return
        while len(self._inputs) <= index:
            self._inputs.append(None)
        self._inputs[index] = v
        while self._inputs and self._inputs[-1] is None:
            self._inputs.pop()
        self._changed()

    def _max_inputs(self) -> int:
        return max(len(self._inputs) - 1, 0)

    # --- precision -----------------------------------------------------------------------

    @property
    def precision(self) -> DataType:
        p = self._state.get("precision")
        return DataType.FLOAT if p is None else p

    @precision.setter
    def precision(self, dtype: DataType) -> None:
        self._state["precision"] = DataType(dtype)
        self._annotate()

    @property
    def precision_is_set(self) -> bool:
        return self._state.get("precision") is not None

    def reset_precision(self) -> None:
        """Forgets `precision`."""
        self._state["precision"] = None
        self._annotate()

    def set_output_type(self, index: int, dtype: DataType) -> None:
        """Asks for an element type of an output. INT8 for a float is a hint only: where tensors
        have dynamic ranges, the builder quantizes them."""
        index = as_int(index)
        if not 0 <= index < self.num_outputs:
            self._net._error(f"layer {self.name!r} has no output {index}")
            return
        self._state.setdefault("output_types", {})[index] = DataType(dtype)
        self._changed()

    def get_output_type(self, index: int) -> DataType:
        """The element type of an output."""
        wanted = self._state.get("output_types", {}).get(as_int(index))
        if wanted is not None:
            return wanted
        return from_ir(self._outputs[as_int(index)].dtype)

    def output_type_is_set(self, index: int) -> bool:
        """Whether `set_output_type` was called for an output."""
        return as_int(index) in self._state.get("output_types", {})

    def reset_output_type(self, index: int) -> None:
        """Forgets the type asked for."""
        self._state.get("output_types", {}).pop(as_int(index), None)
        self._changed()

    def _annotate(self) -> None:
        """Copies hints to the nodes, where passes see them."""
        for node in self._nodes:
            node.meta.pop("precision", None)
            if self._state.get("precision") is not None:
                node.meta["precision"] = to_ir(self._state["precision"])
            if self._state["metadata"]:
                node.meta["metadata"] = self._state["metadata"]

    # --- emission ------------------------------------------------------------------------

    def _emit(self, e: Emitter) -> Sequence[Value]:
        """Creates the nodes and returns the output values. Subclasses implement it; operand
        errors may be raised as `OpError` or ValueError."""
        raise NotImplementedError

    def _in(self, i: int) -> Value | None:
        return self._inputs[i] if i < len(self._inputs) else None

    def _x(self, i: int = 0) -> Value:
        """Input ``i``, which must be there and have a type."""
        v = self._in(i)
        if v is None:
            raise ops.OpError(f"input {i} is missing; set it with set_input({i}, tensor)")
        if v.shape is None:
            raise ops.OpError(f"its input {v.name!r} has no valid shape")
        return v

    def _set_weights(self, key: str, weights: Any) -> None:
        array = weights_array(weights)
        if array is None:
            self._weights.pop(key, None)
            return
        v = self._net.graph.constant(array, f"{self.name}.{key}")
        v.meta["weights_source"] = _address(weights)
        v.meta["weights_role"] = key
        self._weights[key] = v

    def _changed(self) -> None:
        """Emits again and tells readers of outputs whose types changed."""
        impl = self._impl
        if impl._ready:
            impl._sync()

    def _sync(self) -> None:
        changed = self._emit_all()
        for v in changed:
            self._net._propagate(v)

    def _emit_all(self) -> list[Value]:
        """Emits; returns the outputs whose types changed."""
        self._ready = True
        stable = self._outputs
        for v in stable:
            _detach(v)
        e = Emitter(self)
        try:
            results = list(self._emit(e))
            error = None
        except Problems as problem:
            error = problem.args[0] if isinstance(problem, KeyError) else str(problem)
            results = []
        if error is not None:
            e.nodes.clear()  # what was created stays in e.created and is removed below
            n = max(len(stable), self._default_outputs)
            inputs = [v for v in self._inputs if v is not None]
            node = e.op("invalid", *inputs, message=error, outputs=n)
            node.error = self._describe(error)
            results = list(node.outputs)
        results = self._with_output_types(e, results)
        kept = set(e.nodes)
        self._retire([n for n in dict.fromkeys([*self._nodes, *e.created]) if n not in kept])
        self._nodes = e.nodes
        for node in e.nodes:
            self._net._owner[node] = self
        changed = [self._attach(i, v, len(results)) for i, v in enumerate(results)]
        for v in self._outputs[len(results):]:
            v.shape = None
        self._annotate()
        return [v for v in changed if v is not None]

    def _with_output_types(self, e: Emitter, results: list[Value]) -> list[Value]:
        for i, t in self._state.get("output_types", {}).items():
            want = to_ir(t)
            if i >= len(results) or results[i].dtype is want or results[i].shape is None:
                continue
            if want is T.i8 and results[i].dtype.is_float:
                continue  # the numbers are scaled by a dynamic range, which is the builder's work
            results[i] = e.value("cast", results[i], to=want)
        return results

    def _retire(self, gone: list[Node]) -> None:
        graph = self._net.graph
        for node in gone:
            self._net._owner.pop(node, None)
        if len(gone) == 1 and graph.nodes and graph.nodes[-1] is gone[0]:
            for i in range(len(gone[0].inputs)):
                gone[0].set_input(i, None)
            graph.nodes.pop()
        elif gone:
            graph.remove_all(gone)

    def _attach(self, i: int, v: Value, total: int) -> Value | None:
        """Makes ``v``, or the output that has stood in its place, output ``i``; returns it if
        its type changed."""
        if i >= len(self._outputs):
            suffix = "output" if total == 1 else f"output_{i + 1}"
            v.name = f"{self.name}_{suffix}"
            v.meta["output_index"] = i
            self._outputs.append(v)
            return v if v.users else None
        old = self._outputs[i]
        node = v.producer
        if old is v:
            return None
        assert node is not None, "a layer's output is computed by one of its nodes"
        for user in list(v.users):  # other nodes of this layer that read it
            for k, x in enumerate(user.inputs):
                if x is v:
                    user.set_input(k, old)
        node.outputs[v.index] = old
        old.producer, old.index = node, v.index
        before = (old.dtype, old.shape, old.content)
        old.dtype, old.shape, old.content = v.dtype, v.shape, v.content
        return old if _differs(before, v) else None

    def _describe(self, problem: str) -> str:
        source = next((f" from {n.source}" for n in self._nodes if n.source), "")
        return f"layer {self.name!r} [{self._title}]{source}: {problem}"

    def _errors(self) -> list[str]:
        """What is wrong with the layer, as messages that name it."""
        return [n.error for n in self._nodes if n.error]


def _detach(v: Value) -> None:
    """Puts a fresh value in the place of ``v`` among its producer's outputs."""
    node = v.producer
    if node is None:
        return
    fresh = Value(v.name, v.dtype, v.shape)
    fresh.content, fresh.producer, fresh.index = v.content, node, v.index
    node.outputs[v.index] = fresh


def _differs(before: tuple[Any, Any, Any], v: Value) -> bool:
    dtype, shape, content = before
    if dtype is not v.dtype or shape != v.shape:
        return True
    if content is None or v.content is None:
        return content is not v.content
    return content.shape != v.content.shape or not bool(np.all(content == v.content))


def _address(weights: Any) -> tuple[int, int] | None:
    """Where the caller's array lies, by which `set_weights_name` finds weights again."""
    array = weights.numpy() if hasattr(weights, "numpy") else weights
    if isinstance(array, np.ndarray) and array.size:
        return array.__array_interface__["data"][0], array.nbytes
    return None


def share(layer: ILayer, cls: type[ILayer]) -> ILayer:
    """Another object for the same layer."""
    view = cls.__new__(cls)
    view.__dict__ = layer.__dict__
    return view


_L = LayerType
_OP_TYPES = {
    "activation": _L.ACTIVATION, "assertion": _L.ASSERTION, "attention": _L.ATTENTION_OUTPUT,
    "binary": _L.ELEMENTWISE, "cast": _L.CAST, "concat": _L.CONCATENATION,
    "constant": _L.CONSTANT, "convolution": _L.CONVOLUTION, "cumulative": _L.CUMULATIVE,
    "deconvolution": _L.DECONVOLUTION, "dequantize": _L.DEQUANTIZE,
    "dynamic_quantize": _L.DYNAMIC_QUANTIZE, "einsum": _L.EINSUM, "expand": _L.SLICE,
    "fill": _L.FILL, "gather": _L.GATHER, "gather_elements": _L.GATHER, "gather_nd": _L.GATHER,
    "grid_sample": _L.GRID_SAMPLE, "identity": _L.IDENTITY, "lrn": _L.LRN,
    "matmul": _L.MATRIX_MULTIPLY, "max_pool_indices": _L.POOLING, "nms": _L.NMS,
    "non_zero": _L.NON_ZERO, "normalization": _L.NORMALIZATION, "one_hot": _L.ONE_HOT,
    "pad": _L.SLICE, "plugin": _L.PLUGIN_V3, "pooling": _L.POOLING,
    "prelu": _L.PARAMETRIC_RELU, "quantize": _L.QUANTIZE, "reduce": _L.REDUCE,
    "reshape": _L.SHUFFLE, "resize": _L.RESIZE, "reverse_sequence": _L.REVERSE_SEQUENCE,
    "rotary_embedding": _L.ROTARY_EMBEDDING, "scale": _L.SCALE, "scatter_elements": _L.SCATTER,
    "scatter_nd": _L.SCATTER, "select": _L.SELECT, "shape": _L.SHAPE, "slice": _L.SLICE,
    "softmax": _L.SOFTMAX, "squeeze": _L.SQUEEZE, "strided_slice": _L.SLICE, "topk": _L.TOPK,
    "transpose": _L.SHUFFLE, "unary": _L.UNARY, "unsqueeze": _L.UNSQUEEZE,
}


class OpLayer(ILayer):
    """An operation added by name; see `INetworkDefinition.add_op`.

    Attributes:
        type: The layer type TensorRT has for it, or `LayerType.OP`.
        op: The op's name.
        node: The graph's node; its attributes can be changed with `set_attrs`.
    """

    op = Attr(str, "The op's name.")

    @property
    def type(self) -> LayerType:
        return _OP_TYPES.get(self._state["op"], LayerType.OP)

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s = self._state
        node = e.op(s["op"], *self._inputs, subgraphs=s["subgraphs"], **s["attrs"])
        return node.outputs

    @property
    def node(self) -> Node:
        return self._nodes[0]

    @property
    def attrs(self) -> dict[str, Any]:
        attrs = self._nodes[0].attrs
        return {f.name: getattr(attrs, f.name) for f in dataclasses.fields(attrs)}

    def set_attrs(self, **attrs: Any) -> None:
        """Changes attributes of the op."""
        self._state["attrs"].update(attrs)
        self._changed()

    def _max_inputs(self) -> int:
        return 1 << 16
