"""`OnnxParser`: ONNX models into an `INetworkDefinition`, with TensorRT's API."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from ...ir.graph import Graph
from ...network.enums import WeightsRole
from ...network.enums_build import OnnxParserFlag
from ...network.network import INetworkDefinition
from ...network.tensor import ITensor
from ...support import logger as log
from ...support import version
from .errors import ImportProblem, Problem
from .external import read_file, read_model
from .model import import_model
from .parser_error import ParserError
from .plugins import PluginFinder


class NodeIndices(list[int]):
    """Indices of the nodes of a subgraph: a list."""

    def __bool__(self) -> bool:
        return len(self) > 0


class SubGraphCollection(list[tuple[NodeIndices, bool]]):
    """Subgraphs, each with whether it is supported: a list."""

    def __bool__(self) -> bool:
        return len(self) > 0


_NO_EFFECT = {
    OnnxParserFlag.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA:
        "uint8 and asymmetric quantization always work here",
    OnnxParserFlag.REPORT_CAPABILITY_DLA: "there is no DLA to report on",
    OnnxParserFlag.ADJUST_FOR_DLA: "there is no DLA to adjust for",
}


class OnnxParser:
    """Parses ONNX models into a network. Usable as a context manager.

    All problems of a model are collected: after a failed `parse`, `num_errors` and `get_error`
    give every one of them, with node, operator, inputs and reason; they are also logged.

    Args:
        network: Receives layers, inputs and outputs.
        logger: Where problems and warnings go.
    """

    def __init__(self, network: INetworkDefinition, logger: log.ILogger | None = None):
        if not isinstance(network, INetworkDefinition):
            raise TypeError(
                f"network must be an INetworkDefinition, not {type(network).__name__}")
        self.network = network
        self.logger = logger
        self._flags = 1 << int(OnnxParserFlag.NATIVE_INSTANCENORM)
        self._errors: list[ParserError] = []
        self._subgraphs: list[tuple[list[int], bool]] = []
        self._model: Any = None
        self._folder: str | None = None
        self._given: dict[str, bytes] = {}
        self._layers: dict[str, Any] = {}
        self._builder_config: Any = None

    def __enter__(self) -> OnnxParser:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    # --- parsing ------------------------------------------------------------------------------

    def parse(self, model: Any, path: str | None = None) -> bool:
        """Parses a serialized model.

        Args:
            model: The bytes (anything with the buffer protocol).
            path: The model's file, if it keeps weights in other files beside it.

        Returns:
            True if everything was imported. On False, see `num_errors` and `get_error`.
        """
        return self.load_model_proto(model, path) and self.parse_model_proto()

    def parse_from_file(self, model: str) -> bool:
        """Parses a model file; external weights are read from its folder."""
        path = os.fspath(model)
        try:
            data = read_file(path)
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        return self.parse(data, path)

    def parse_with_weight_descriptors(self, model: Any) -> bool:
        """Parses a serialized model whose weights are all inside it."""
        return self.parse(model)

    def load_model_proto(self, model: Any, path: str | None = None) -> bool:
        """Reads a serialized model without importing it; `load_initializer` may then provide
        weights, and `parse_model_proto` imports."""
        self._model, self._given = None, {}
        self._folder = None if path is None else os.path.dirname(os.path.abspath(os.fspath(path)))
        try:
            self._model = read_model(model)
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        return True

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        """Provides the data of an initializer that the model keeps elsewhere.

        Args:
            name: The initializer.
            data: Address of its bytes; copied by this call.
            size: Number of bytes.
        """
        if self._model is None:
            return self._fail([Problem("INVALID_VALUE", "load_initializer: load_model_proto "
                                       "must succeed first")])
        if all(t.name != name for t in self._model.graph.initializer):
            return self._fail([Problem("INVALID_VALUE", f"load_initializer: the model has no "
                                       f"initializer {name!r}")])
        self._given[name] = ctypes.string_at(int(data), int(size))
        return True

    def parse_model_proto(self) -> bool:
        """Imports the model that `load_model_proto` read."""
        if self._model is None:
            return self._fail([Problem("INVALID_VALUE", "parse_model_proto: load_model_proto "
                                       "must succeed first")])
        network = self.network
        if len(network) or network.num_inputs:
            return self._fail([Problem("INVALID_VALUE", "the network already has layers or "
                                       "inputs; parse into an empty network")])
        if network.has_implicit_batch_dimension:
            log.info("ONNX models carry their batch dimension: the network becomes one with "
                     "explicit batch", self.logger)
            network._off = 0
        state = import_model(self._model, network.graph, self._folder, self._given,
                             self._plugins(), network)
        self._layers = state.layers
        for text in state.warnings:
            log.warning(text, self.logger)
        return self._fail(state.problems) if state.problems else True

    def _plugins(self) -> PluginFinder:
        return PluginFinder(self.get_flag(OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE))

    def _fail(self, problems: list[Problem]) -> bool:
        for p in problems:
            error = ParserError(p)
            self._errors.append(error)
            log.error(str(error), self.logger)
        return False

    # --- support ------------------------------------------------------------------------------

    def supports_model(
        self, model: Any, path: str | None = None
    ) -> tuple[bool, SubGraphCollection]:
        """Whether a model can be parsed, and which nodes.

        Returns:
            (all supported, subgraphs): each subgraph is (indices of consecutive nodes, whether
            they are supported).
        """
        supported = self.supports_model_v2(model, path)
        return supported, SubGraphCollection(
            (NodeIndices(nodes), ok) for nodes, ok in self._subgraphs
        )

    def supports_model_v2(self, model: Any, path: str | None = None) -> bool:
        """Whether a model can be parsed; `num_subgraphs`, `is_subgraph_supported` and
        `get_subgraph_nodes` then tell which nodes. The network is not changed."""
        self._subgraphs = []
        try:
            proto = read_model(model)
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        folder = None if path is None else os.path.dirname(os.path.abspath(os.fspath(path)))
        state = import_model(proto, Graph(), folder, plugins=self._plugins())
        order = sorted(state.outcome) or list(range(len(proto.graph.node)))
        for index in order:
            ok = state.outcome.get(index, False)
            if not self._subgraphs or self._subgraphs[-1][1] is not ok:
                self._subgraphs.append(([], ok))
            self._subgraphs[-1][0].append(index)
        return self._fail(state.problems) if state.problems else True

    @property
    def num_subgraphs(self) -> int:
        """How many subgraphs the last `supports_model_v2` found."""
        return len(self._subgraphs)

    def is_subgraph_supported(self, index: int) -> bool:
        """Whether the nodes of a subgraph are supported."""
        return self._subgraph(index)[1]

    def get_subgraph_nodes(self, index: int) -> list[int]:
        """Indices of a subgraph's nodes."""
        return list(self._subgraph(index)[0])

    def _subgraph(self, index: int) -> tuple[list[int], bool]:
        if not 0 <= index < len(self._subgraphs):
            raise IndexError(f"subgraph {index}: the last supports_model_v2 found "
                             f"{len(self._subgraphs)}")
        return self._subgraphs[index]

    def supports_operator(self, op_name: str) -> bool:
        """Whether there is an importer, function body or plugin for an operator's name."""
        from .support import supports

        return supports(op_name) or self._plugins().creator(op_name) is not None

    # --- errors and flags ---------------------------------------------------------------------

    @property
    def num_errors(self) -> int:
        """How many problems have been found since `clear_errors`."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """Problem ``index``."""
        if not 0 <= index < len(self._errors):
            raise IndexError(f"error {index}: there are {len(self._errors)}")
        return self._errors[index]

    def clear_errors(self) -> None:
        """Forgets all problems."""
        self._errors.clear()

    @property
    def flags(self) -> int:
        """Bits of `OnnxParserFlag`."""
        return self._flags

    @flags.setter
    def flags(self, bits: int) -> None:
        for flag in OnnxParserFlag.__members__.values():
            on = bool(int(bits) >> int(flag) & 1)
            if on != self.get_flag(flag):
                (self.set_flag if on else self.clear_flag)(flag)

    def set_flag(self, flag: OnnxParserFlag) -> None:
        """Sets a flag."""
        flag = OnnxParserFlag(flag)
        if flag in _NO_EFFECT:
            log.warning(f"OnnxParserFlag.{flag.name} has no effect: {_NO_EFFECT[flag]}",
                        self.logger)
        self._flags |= 1 << int(flag)

    def clear_flag(self, flag: OnnxParserFlag) -> None:
        """Clears a flag."""
        if OnnxParserFlag(flag) == OnnxParserFlag.NATIVE_INSTANCENORM:
            log.info("instance normalization is always the network's own layer; clearing "
                     "NATIVE_INSTANCENORM has no effect", self.logger)
        self._flags &= ~(1 << int(OnnxParserFlag(flag)))

    def get_flag(self, flag: OnnxParserFlag) -> bool:
        """Whether a flag is set."""
        return bool(self._flags >> int(OnnxParserFlag(flag)) & 1)

    # --- after parsing ------------------------------------------------------------------------

    def get_layer_output_tensor(self, name: str, i: int) -> ITensor | None:
        """Output ``i`` of the layer that stands for the ONNX node of this name, or None."""
        layer = self._layers.get(name)
        return None if layer is None else layer.get_output(i)

    def get_used_vc_plugin_libraries(self) -> list[str]:
        """Plugin libraries that a version-compatible plan would need: none, plugins are Python."""
        return []

    def get_refit_map(self) -> tuple[list[str], list[str], list[WeightsRole]]:
        """TensorRT 7's list of refittable weights: (weight names, layer names, roles)."""
        names, layers, roles = [], [], []
        kinds = {1: WeightsRole.KERNEL, 2: WeightsRole.BIAS}
        for node in self.network.graph.nodes:
            contraction = node.op in ("convolution", "deconvolution", "matmul")
            for k, v in enumerate(node.inputs):
                if v is None or v.const is None or not (v.dtype.is_float or v.dtype.bits <= 8):
                    continue
                names.append(v.name)
                layers.append(node.name)
                roles.append(kinds.get(k, WeightsRole.CONSTANT) if contraction
                             else WeightsRole.CONSTANT)
        return names, layers, roles

    def set_builder_config(self, config: Any) -> bool:
        """Gives the parser the config the network will be built with. Nothing here depends on
        it; it is kept for programs that set it."""
        log.info("set_builder_config has no effect on parsing", self.logger)
        self._builder_config = config
        return True




def get_nv_onnx_parser_version() -> int:
    """The parser's version as TensorRT writes it: major * 10000 + minor * 100 + patch."""
    major, minor, patch = (int(p) for p in version.tensorrt().split(".")[:3])
    return major * 10000 + minor * 100 + patch
