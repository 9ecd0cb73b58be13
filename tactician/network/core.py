"""What a network under construction is, but for its ``add_*`` methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .. import ops
from ..ir.graph import Graph, Node, Value
from ..ops.registry import infer_node
from ..support import logger as log
from ..support import version
from .enums import DataType, NetworkDefinitionCreationFlag, to_ir
from .layer import ILayer, OpLayer
from .tensor import ITensor, set_input_type
from .values import as_int, dims

_MAX_SYNCS = 64  # of one layer while one change spreads; more means that sizes grow in a cycle


def default_implicit_batch(flags: int) -> bool:
    """Whether ``create_network(flags)`` means implicit batch: before version 10, without the
    ``EXPLICIT_BATCH`` flag. The version is that of ``TACTICIAN_TRT_VERSION``."""
    explicit = flags & 1 << int(NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    return version.major() < 10 and not explicit


def _has_plugins(graph: Graph) -> bool:
    """Whether plugins are called, in subgraphs too."""
    return any(n.op == "plugin" or any(map(_has_plugins, n.subgraphs)) for n in graph.nodes)


class NetworkCore:
    """Everything of a network but its ``add_*`` methods.

    Args:
        flags: Bits of `NetworkDefinitionCreationFlag`.
        logger: Where errors go; None: the active logger.
        builder: The builder that made it.
        implicit_batch: Whether shapes lack the batch dimension; None: as version and flags say.
        name: Name of the graph.

    Attributes:
        graph: The graph the network builds. Changed by every ``add_*``; clone it to rewrite it.
    """

    error_recorder: Any

    def __init__(self, flags: int = 0, logger: log.ILogger | None = None, builder: Any = None,
                 *, implicit_batch: bool | None = None, name: str = ""):
        self._flags = as_int(flags)
        self._logger = logger
        self._builder = builder
        if implicit_batch is None:
            implicit_batch = default_implicit_batch(self._flags)
        self._off = 1 if implicit_batch else 0
        self.graph = Graph(name or "Unnamed Network 0")
        self._layers: list[ILayer] = []
        self._tensors: dict[Value, ITensor] = {}
        self._owner: dict[Node, ILayer] = {}
        self._counter = 0
        self._scopes = 0
        self._reported: set[str] = set()
        self._refittable: set[str] = set()
        self._unfused_debug = False
        self._formulas: dict[str, Any] = {}
        self.error_recorder: Any = None

    # --- properties ----------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.graph.name

    @name.setter
    def name(self, name: str) -> None:
        self.graph.name = name

    @property
    def builder(self) -> Any:
        return self._builder

    @property
    def flags(self) -> int:
        """Bits of `NetworkDefinitionCreationFlag` it was created with."""
        return self._flags

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        """Whether a creation flag is set."""
        return bool(self._flags & 1 << int(flag))

    @property
    def has_implicit_batch_dimension(self) -> bool:
        """Whether shapes lack the batch dimension, which `execute` then gives."""
        return bool(self._off)

    @property
    def has_explicit_precision(self) -> bool:
        return self.get_flag(NetworkDefinitionCreationFlag.EXPLICIT_PRECISION)

    # --- layers and tensors --------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self.graph.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.graph.outputs)

    def get_layer(self, index: int) -> ILayer | None:
        """Layer ``index`` in the order they were added, or None (and an error is logged)."""
        index = as_int(index)
        if not 0 <= index < len(self._layers):
            self._error(f"get_layer({index}): the network has {len(self._layers)} layers")
            return None
        return self._layers[index]._view()

    def get_input(self, index: int) -> ITensor | None:
        """Input ``index``, or None (and an error is logged)."""
        return self._io(self.graph.inputs, index, "inputs")

    def get_output(self, index: int) -> ITensor | None:
        """Output ``index``, or None (and an error is logged)."""
        return self._io(self.graph.outputs, index, "outputs")

    def _io(self, values: list[Value], index: int, what: str) -> ITensor | None:
        index = as_int(index)
        if not 0 <= index < len(values):
            self._error(f"index {index}: the network has {len(values)} {what}")
            return None
        return self._tensor(values[index])

    def __len__(self) -> int:
        return len(self._layers)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: int) -> ILayer:
        return self._layers[as_int(index)]._view()

    def __iter__(self) -> Iterator[ILayer]:
        return (layer._view() for layer in list(self._layers))

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    # --- building ------------------------------------------------------------------------

    def add_input(self, name: str, dtype: DataType, shape: Any) -> ITensor | None:
        """Adds an input.

        Args:
            name: Unique among inputs.
            dtype: Element type.
            shape: Sizes, -1 where they are known only at run time (explicit batch only).

        Returns:
            The tensor, or None (and an error is logged) if the name or shape is wrong.
        """
        sizes = dims(shape)
        if any(v.name == name for v in self.graph.inputs):
            return self._error(f"add_input: there is an input {name!r} already; names of inputs"
                               " are unique")
        if any(d < -1 for d in sizes):
            return self._error(f"add_input: shape {sizes} of {name!r} has a negative size other"
                               " than -1")
        if self._off and -1 in sizes:
            return self._error(f"add_input: shape {sizes} of {name!r} has -1, which needs a network"
                               " with explicit batch (create_network with EXPLICIT_BATCH)")
        v = self.graph.add_input(name, to_ir(dtype), sizes)
        set_input_type(self, v, sizes)  # type: ignore[arg-type]
        return self._tensor(v)

    def add_op(self, op_name: str, inputs: Sequence[ITensor | None], name: str = "",
               num_outputs: int | None = None, subgraphs: Sequence[Graph] = (),
               source: str = "", **attrs: Any) -> list[ITensor]:
        """Adds any op of `tactician.ops`, for front ends that need more than TensorRT's layers.

        Args:
            op_name: The op.
            inputs: Its operands; None for absent optional ones.
            name: The layer's name.
            num_outputs: How many outputs to return; None: all.
            subgraphs: Bodies of control-flow ops.
            source: Where the layer comes from, for error messages.
            **attrs: The op's attributes.

        Returns:
            The output tensors.

        Raises:
            OpError: If operands are wrong; the message names the layer. Nothing is added then.
        """
        for t in inputs:
            if t is not None:
                self._value(t, f"add_op({op_name!r})")
        layer = OpLayer(self, inputs, name or f"(Unnamed Layer* {self._counter}) [{op_name}]",
                        op=op_name, attrs=dict(attrs), subgraphs=tuple(subgraphs))
        layer._emit_all()
        for node in layer._nodes:
            node.source = source
        failed = [n for n in layer._nodes if n.error]
        if failed:
            error = failed[0].error or ""
            if source or failed[0].op == "invalid":
                for node in failed:
                    infer_node(node)
                error = failed[0].error or error
            layer._retire(list(layer._nodes))
            raise ops.OpError(error)
        self._counter += 1
        self._layers.append(layer)
        outputs = [self._tensor(v) for v in layer._outputs]
        return outputs if num_outputs is None else outputs[:num_outputs]

    def _add(self, cls: type[ILayer], inputs: Iterable[ITensor | None], **state: Any) -> Any:
        """Adds a layer. Inputs that are None where the layer needs one log an error and give
        None, as TensorRT does; a layer that is added but invalid logs an error."""
        method = f"add [{cls._title}]"
        tensors = list(inputs)
        for i, t in enumerate(tensors):
            if t is None and i not in cls._optional_inputs:
                return self._error(f"{method}: input {i} is None; did the layer that should"
                                   " produce it fail?")
            if t is not None:
                v = self._value(t, method)
                if v.shape is None and v.producer is not None and v.producer.error:
                    self._report_once(v.producer.error)
        layer = cls(self, tensors, f"(Unnamed Layer* {self._counter}) [{cls._title}]", **state)
        try:
            layer._setup()
        except (ValueError, TypeError) as e:
            return self._error(f"layer {layer.name!r}: {e}")
        layer._emit_all()
        self._counter += 1
        self._layers.append(layer)
        if not cls._incomplete:
            for message in layer._errors():
                if "has no valid shape" not in message:
                    self._report_once(message)
        return layer

    # --- outputs -------------------------------------------------------------------------

    def mark_output(self, tensor: ITensor) -> None:
        """Makes a tensor an output of the network."""
        v = self._value(tensor, "mark_output")
        if tensor.is_network_input:
            # an engine's tensors have one role each
            self._error(f"mark_output: {tensor.name!r} is an input; add an identity layer and"
                        " mark its output")
            return
        if tensor.is_network_output:
            self._error(f"mark_output: {tensor.name!r} is an output already")
            return
        self.graph.outputs.append(v)

    def unmark_output(self, tensor: ITensor) -> None:
        """Takes a tensor back from the outputs."""
        v = self._value(tensor, "unmark_output")
        if not tensor.is_network_output:
            self._error(f"unmark_output: {tensor.name!r} is not an output")
        self.graph.outputs = [o for o in self.graph.outputs if o is not v]
        v.meta.pop("output_for_shapes", None)

    def mark_output_for_shapes(self, tensor: ITensor) -> bool:
        """Makes a shape tensor an output whose numbers are known before the network runs."""
        v = self._value(tensor, "mark_output_for_shapes")
        if v.known_ints() is None or len(v.dims) > 1:
            self._error(f"mark_output_for_shapes: {tensor.name!r} is not an integer tensor of at"
                        " most one dimension that depends on shapes alone")
            return False
        if not tensor.is_network_output:
            self.graph.outputs.append(v)
        v.meta["output_for_shapes"] = True
        return True

    def unmark_output_for_shapes(self, tensor: ITensor) -> bool:
        """Undoes `mark_output_for_shapes`."""
        v = self._value(tensor, "unmark_output_for_shapes")
        if not v.meta.pop("output_for_shapes", False):
            self._error(f"unmark_output_for_shapes: {tensor.name!r} is not marked")
            return False
        self.graph.outputs = [o for o in self.graph.outputs if o is not v]
        return True

    def mark_debug(self, tensor: ITensor) -> bool:
        """Lets a debug listener see the tensor at run time."""
        self._value(tensor, "mark_debug").meta["debug"] = True
        return True

    def unmark_debug(self, tensor: ITensor) -> bool:
        """Undoes `mark_debug`."""
        return bool(self._value(tensor, "unmark_debug").meta.pop("debug", False))

    def is_debug_tensor(self, tensor: ITensor) -> bool:
        """Whether a debug listener will see the tensor."""
        return bool(self._value(tensor, "is_debug_tensor").meta.get("debug", False))

    def mark_unfused_tensors_as_debug_tensors(self) -> bool:
        """Lets a debug listener see every tensor that fusion leaves."""
        self._unfused_debug = True
        return True

    def unmark_unfused_tensors_as_debug_tensors(self) -> bool:
        """Undoes `mark_unfused_tensors_as_debug_tensors`."""
        was, self._unfused_debug = self._unfused_debug, False
        return was

    def remove_tensor(self, tensor: ITensor) -> None:
        """Removes a tensor from the inputs and outputs of the network."""
        v = self._value(tensor, "remove_tensor")
        if v.users and tensor.is_network_input:
            self._error(f"remove_tensor: layers still read {tensor.name!r}")
            return
        self.graph.inputs = [x for x in self.graph.inputs if x is not v]
        self.graph.outputs = [x for x in self.graph.outputs if x is not v]

    # --- weights -------------------------------------------------------------------------

    def set_weights_name(self, weights: Any, name: str) -> bool:
        """Names weights that a layer was made with, for refitting.

        Args:
            weights: The array or `Weights` that was given to ``add_*``.
        """
        from .layer import _address

        key = _address(weights)
        found = [v for layer in self._layers for v in layer._weights.values()
                 if key is not None and v.meta.get("weights_source") == key]
        for v in found:
            v.name = name
            v.meta["weights_name"] = name
        for layer in self._layers:  # constants lie in their node
            if any(v in found for v in layer._weights.values()):
                for node in layer._nodes:
                    if node.op == "constant":
                        node.meta["weights_name"] = name
        if not found:
            self._error(f"set_weights_name({name!r}): no layer of the network was made with these"
                        " weights")
        return bool(found)

    def _has_weights(self, name: str) -> bool:
        return any(v.meta.get("weights_name") == name
                   for layer in self._layers for v in layer._weights.values())

    def mark_weights_refittable(self, name: str) -> bool:
        """Lets a refitter replace the weights of this name."""
        if not self._has_weights(name):
            self._error(f"mark_weights_refittable: no weights are named {name!r}; name them with"
                        " set_weights_name")
            return False
        self._refittable.add(name)
        self._mark_refittable(name, True)
        return True

    def unmark_weights_refittable(self, name: str) -> bool:
        """Undoes `mark_weights_refittable`."""
        known = name in self._refittable
        self._refittable.discard(name)
        self._mark_refittable(name, False)
        return known

    def _mark_refittable(self, name: str, on: bool) -> None:
        for layer in self._layers:
            marked: list[Value | Node] = [*layer._weights.values(), *layer._nodes]
            for x in marked:
                if x.meta.get("weights_name") == name:
                    x.meta["refittable"] = on

    def are_weights_marked_refittable(self, name: str) -> bool:
        """Whether `mark_weights_refittable` was called for the weights of this name."""
        return name in self._refittable

    # --- for the builder and front ends --------------------------------------------------

    def check(self) -> list[str]:
        """Everything that is wrong with the network, as messages naming layers; the builder
        logs them and refuses to build."""
        errors = [e for layer in self._layers for e in layer._errors()
                  if "has no valid shape" not in e]
        if not self.graph.outputs:
            errors.append(f"network {self.name!r} has no outputs; call"
                          " network.mark_output(tensor)")
        return errors

    def lower_control(self, graph: Graph | None = None) -> Graph:
        """Turns recorded loops and conditionals of ``graph`` (default: a clone of the network's
        graph) into ``loop`` and ``if`` nodes with subgraphs, and orders the graph.

        Raises:
            ValueError: If a loop or conditional is incomplete, naming it.
            OpError: If all inputs are broadcast across the batch.
        """
        from .broadcast import spread
        from .control import lower_control

        if graph is None:
            graph, _ = self.graph.clone()
        lower_control(graph)
        if self._off:
            spread(graph)
        if _has_plugins(graph):
            from .plugins.expand import expand_builtins
            from .plugins.runner import refresh

            expand_builtins(graph)
            refresh(graph)
        return graph

    def new_subnetwork(self, name: str = "") -> Any:
        """An empty network for the body of a control-flow op: build it like any other, then pass
        its ``graph`` as a subgraph to `add_op`."""
        return type(self)(self._flags, self._logger, self._builder,
                          implicit_batch=bool(self._off), name=name or self.name)

    # --- internals -----------------------------------------------------------------------

    def _tensor(self, v: Value) -> ITensor:
        t = self._tensors.get(v)
        if t is None:
            t = self._tensors[v] = ITensor(self, v)  # type: ignore[arg-type]
        return t

    def _value(self, tensor: Any, where: str) -> Value:
        if not isinstance(tensor, ITensor):
            raise TypeError(f"{where}: expected an ITensor, got {type(tensor).__name__}")
        if tensor._net is not self:
            raise ValueError(f"{where}: tensor {tensor.name!r} belongs to another network")
        return tensor._v

    def _layer_of(self, v: Value) -> ILayer | None:
        return None if v.producer is None else self._owner.get(v.producer)

    def _propagate(self, value: Value) -> None:
        """Re-emits what depends on a value whose type changed."""
        work, syncs = [value], dict[ILayer, int]()
        while work:
            v = work.pop(0)
            done: set[int] = set()
            for node in list(v.users):
                layer = self._owner.get(node)
                if layer is None:
                    if infer_node(node):
                        work.extend(node.outputs)
                elif id(layer) not in done:
                    done.add(id(layer))
                    syncs[layer] = syncs.get(layer, 0) + 1
                    if syncs[layer] > _MAX_SYNCS:
                        self._report_once(f"layer {layer.name!r}: its shape depends on itself")
                        return
                    work.extend(layer._emit_all())

    def _error(self, message: str) -> Any:
        """Logs an error (and tells the error recorder); returns None for callers to return."""
        log.error(message, self._logger)
        if self.error_recorder is not None:
            from .enums_build import ErrorCodeTRT

            self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, message)
        return None

    def _report_once(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            self._error(message)
