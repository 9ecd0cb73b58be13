"""`UffParser`: UFF files into an `INetworkDefinition`, with the API of TensorRT 3 to 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...network.enums import DataType
from ...network.enums_build import FieldType, UffInputOrder
from ...network.network import INetworkDefinition
from ...network.plugins.fields import FieldCollection, FieldMap
from ...network.values import Weights, dims
from ...support import logger as log
from ..onnx.errors import ImportProblem, Problem
from ..onnx.parser_error import ParserError
from ..tensorflow.context import Context
from ..tensorflow.model import Feed, import_graph
from ..tensorflow.node import TfNode
from ..tensorflow.plugins import PluginFinder
from .file import load
from .to_graph import ToGraph


class IUffPluginFactory:
    """Makes plugins for nodes (to version 7). Subclass it and give it to the parser."""

    def is_plugin(self, layer_name: str) -> bool:
        """Whether a node is a plugin."""
        raise NotImplementedError(f"{type(self).__name__} must implement is_plugin(layer_name)")

    def create_plugin(self, layer_name: str, weights: Any, field_collection: Any) -> Any:
        """The `IPlugin` of a node; ``weights`` is a list of `Weights`, one for each constant it
        reads, ``field_collection`` a `FieldCollection` of its fields."""
        raise NotImplementedError(f"{type(self).__name__} must implement "
                                  "create_plugin(layer_name, weights, field_collection)")


class IUffPluginFactoryExt(IUffPluginFactory):
    """Makes `IPluginExt` plugins for nodes (to version 7)."""

    def get_version(self) -> int:
        """Version of the interface."""
        return 1

    def is_plugin_ext(self, layer_name: str) -> bool:
        """Whether a node is an `IPluginExt`."""
        raise NotImplementedError(f"{type(self).__name__} must implement is_plugin_ext(layer_name)")


class UffParser:
    """Parses UFF files into a network. Usable as a context manager.

    Inputs and outputs are registered first, by the names that the file has for them. Shapes are
    without the batch dimension in networks with implicit batch; in others they may have it, and if
    they don't, it is known only at run time. Images registered in NCHW order come out in that
    order, too: outputs with four dimensions have their channels in front.

    Attributes:
        uff_required_version_major, uff_required_version_minor, uff_required_version_patch: Oldest
            version of UFF files that are read.
        plugin_namespace: Where creators of plugins for unknown operations are looked for.
        plugin_factory, plugin_factory_ext: Make plugins for nodes that they know by name.
        error_recorder: Is told of every problem.
    """

    uff_required_version_major = 0
    uff_required_version_minor = 6
    uff_required_version_patch = 9

    plugin_namespace: str
    plugin_factory: IUffPluginFactory | None
    plugin_factory_ext: IUffPluginFactoryExt | None
    error_recorder: Any

    def __init__(self) -> None:
        self.plugin_namespace = ""
        self.plugin_factory = self.plugin_factory_ext = None
        self.error_recorder = None
        self._inputs: dict[str, tuple[tuple[int, ...], UffInputOrder]] = {}
        self._outputs: list[str] = []
        self._errors: list[ParserError] = []
        self._logger: Any = None

    def __enter__(self) -> UffParser:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    def register_input(self, name: str, shape: Any,
                       order: UffInputOrder = UffInputOrder.NCHW) -> bool:
        """Registers an input.

        Args:
            name: Its name in the file.
            shape: Its shape, in the order that the program will feed.
            order: NCHW, NHWC or NC. Only shapes with three dimensions (besides the batch) are
                reordered.

        Returns:
            False (and an error is logged) if the shape has a negative size or is empty.
        """
        sizes = tuple(dims(shape))
        if not sizes or any(d < -1 or d == 0 for d in sizes):
            return self._fail([Problem("INVALID_VALUE", f"input {name!r}: shape {list(sizes)} "
                                       "needs positive sizes (-1 for the batch)")])
        self._inputs[name] = (sizes, UffInputOrder(order))
        return True

    def register_output(self, name: str) -> bool:
        """Registers an output by its name in the file."""
        if name not in self._outputs:
            self._outputs.append(name)
        return True

    def parse(self, file: str, network: INetworkDefinition,
              weights_type: DataType = DataType.FLOAT) -> bool:
        """Parses a file.

        Args:
            file: Its path.
            network: Receives layers, inputs and outputs.
            weights_type: FLOAT, or HALF to round weights to half precision.

        Returns:
            True if everything was imported. On False, the log (and `num_errors`, `get_error`) tell
            all that is wrong.
        """
        return self._parse(file, network, weights_type)

    def parse_buffer(self, buffer: Any, network: INetworkDefinition,
                     weights_type: DataType = DataType.FLOAT) -> bool:
        """Parses a file's bytes; see `parse`."""
        return self._parse(memoryview(buffer).tobytes(), network, weights_type)

    def parse_as_is(self, buffer: Any, network: INetworkDefinition) -> bool:
        """Parses a file's bytes with its own inputs and outputs, in TensorFlow's order; what has
        been registered before is kept."""
        try:
            made = ToGraph(load(memoryview(buffer).tobytes()))
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        for name, shape in made.inputs.items():
            self._inputs.setdefault(name, (shape, UffInputOrder.NHWC))
        return self.parse_buffer(buffer, network)

    @property
    def num_errors(self) -> int:
        """How many problems have been found since `clear_errors`."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """Problem ``index``."""
        return self._errors[index]

    def clear_errors(self) -> None:
        """Forgets all problems."""
        self._errors.clear()

    # --- inside -------------------------------------------------------------------------------

    def _parse(self, model: Any, network: INetworkDefinition, weights_type: DataType) -> bool:
        if not isinstance(network, INetworkDefinition):
            raise TypeError(f"network must be an INetworkDefinition, not {type(network).__name__}")
        self._logger = network._logger
        if len(network) or network.num_inputs:
            return self._fail([Problem("INVALID_VALUE", "the network already has layers or "
                                       "inputs; parse into an empty network")])
        if weights_type not in (DataType.FLOAT, DataType.HALF):
            return self._fail([Problem("INVALID_VALUE", f"weights_type is {weights_type}; weights "
                                       "can be FLOAT or HALF")])
        try:
            made = ToGraph(load(model))
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        if weights_type == DataType.HALF:
            _round_weights(made.proto)
        problems = made.problems + self._check(made)
        feeds = {name: self._feed(made, network, name) for name in self._inputs
                 if name in made.inputs}
        firsts = any(o == UffInputOrder.NCHW for _, o in self._inputs.values())
        leave = _images_first if firsts and made.channels_last else None
        outputs = [o for o in self._outputs or made.outputs
                   if any(n.name == o.split(":")[0] for n in made.proto.node)]
        state = import_graph(made.proto, network.graph, inputs=feeds, outputs=outputs,
                             network=network, leave=leave,
                             plugins=PluginFinder(self.plugin_namespace, self._make_plugin))
        for text in state.warnings:
            log.warning(text, self._logger)
        known = [p.name for p in problems]
        problems += [p for p in state.problems if not p.name or p.name not in known]
        return self._fail(problems) if problems else True

    def _check(self, made: ToGraph) -> list[Problem]:
        """Problems with what was registered."""
        out = []
        for name in made.inputs:
            if name not in self._inputs:
                out.append(Problem("INVALID_GRAPH", f"input {name!r} {list(made.inputs[name])} is "
                                   "not registered; call register_input", -1, name))
        names = {n.name for n in made.proto.node}
        for name, (shape, _) in self._inputs.items():
            if name not in made.inputs:
                out.append(Problem("INVALID_GRAPH", f"the file has no input {name!r}; its inputs "
                                   f"are {', '.join(map(repr, made.inputs)) or 'none'}"))
                continue
            rank = len(made.inputs[name])
            if rank and len(shape) not in (rank - 1, rank):
                out.append(Problem(
                    "INVALID_GRAPH", f"input {name!r} is registered with shape {list(shape)}; the "
                    f"file has {list(made.inputs[name])}, batch included", -1, name))
        for name in self._outputs:
            if name.split(":")[0] not in names:
                out.append(Problem("INVALID_GRAPH", f"the file has no node {name!r}, which is "
                                   "registered as an output"))
        return out

    def _feed(self, made: ToGraph, network: INetworkDefinition, name: str) -> Feed:
        shape, order = self._inputs[name]
        declared = made.inputs[name]
        if network.has_implicit_batch_dimension:
            full = len(shape) + 1
        else:
            full = len(shape)
            if len(declared) == len(shape) + 1 or (not declared and len(shape) == 3):
                shape, full = (-1, *shape), full + 1
        enter: Callable[[Context, Value], Value] | None = None
        if full == 4 and order == UffInputOrder.NCHW and made.channels_last:
            enter = _images_last
        elif full == 4 and order == UffInputOrder.NHWC and not made.channels_last:
            enter = _images_first
        return Feed(shape, enter=enter)

    def _make_plugin(self, n: TfNode) -> Any:
        """What the program's factories make of a node, or None."""
        for factory, asks in ((self.plugin_factory_ext, ("is_plugin_ext", "is_plugin")),
                              (self.plugin_factory, ("is_plugin",))):
            if factory is None or not any(getattr(factory, a)(n.name) for a in asks
                                          if hasattr(type(factory), a)):
                continue
            weights = [Weights(v.const) for v in n.inputs
                       if isinstance(v, Value) and v.const is not None]
            fields = FieldCollection([_field(k, n.attr(k)) for k in sorted(n.proto.attr)
                                      if not k.startswith("_uff")])
            return factory.create_plugin(n.name, weights, fields)
        return None

    def _fail(self, problems: Sequence[Problem]) -> bool:
        for p in problems:
            error = ParserError(p)
            self._errors.append(error)
            log.error(str(error), self._logger)
            if self.error_recorder is not None:
                from ...network.enums_build import ErrorCodeTRT

                self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, str(error))
        return False


def _images_last(c: Context, x: Value) -> Value:
    return c.to_last(x)


def _images_first(c: Context, y: Value) -> Value:
    return c.to_first(y) if y.rank == 4 else y


def _round_weights(proto: Any) -> None:
    """Rounds weights to what half precision holds."""
    from ..tensorflow.types import to_numpy, to_tensor

    for node in proto.node:
        if node.op == "Const":
            array = to_numpy(node.attr["value"].tensor)
            if array.dtype == np.float32:
                rounded = array.astype(np.float16).astype(np.float32)
                node.attr["value"].tensor.CopyFrom(to_tensor(rounded))


def _field(name: str, value: Any) -> FieldMap:
    if isinstance(value, str):
        return FieldMap(name, value, FieldType.CHAR, len(value))
    array = np.atleast_1d(np.asarray(value))
    kind = {"f": FieldType.FLOAT, "i": FieldType.INT32, "b": FieldType.INT32}.get(
        array.dtype.kind, FieldType.UNKNOWN)
    return FieldMap(name, value, kind, array.size)
