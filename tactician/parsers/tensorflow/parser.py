"""`TensorFlowParser`: TensorFlow graphs into an `INetworkDefinition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...network.network import INetworkDefinition
from ...support import logger as log
from ..onnx.errors import ImportProblem, Problem
from ..onnx.parser_error import ParserError
from .graph import load
from .model import Feed, import_graph
from .plugins import PluginFinder


class TensorFlowParser:
    """Parses frozen TensorFlow graphs into a network; used like `OnnxParser`.

    All problems of a graph are collected: after a failed `parse`, `num_errors` and `get_error` give
    every one of them, with node, operator, inputs and reason; they are also logged.

    Args:
        network: Receives layers, inputs and outputs; with explicit batch.
        logger: Where problems and warnings go.

    Attributes:
        plugin_namespace: Where creators of plugins for unknown operators are looked for.
    """

    def __init__(self, network: INetworkDefinition, logger: log.ILogger | None = None):
        if not isinstance(network, INetworkDefinition):
            raise TypeError(
                f"network must be an INetworkDefinition, not {type(network).__name__}")
        self.network = network
        self.logger = logger
        self.plugin_namespace = ""
        self._errors: list[ParserError] = []
        self._layers: dict[str, Any] = {}

    def __enter__(self) -> TensorFlowParser:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def parse(
        self,
        model: Any,
        inputs: Mapping[str, Any] | Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> bool:
        """Parses a graph.

        Args:
            model: A path (``.pb``, ``.pbtxt``, a SavedModel's folder), bytes, or a ``GraphDef``.
            inputs: Inputs by node or tensor name, with their shapes (None: as the graph says; -1
                for sizes known at run time). Any node can be an input; what is above it is left
                out. Placeholders that are not named are inputs as the graph declares them.
            outputs: Names of nodes (``"softmax"``) or tensors (``"split:1"``); by default nodes
                that nothing reads.
            constants: Values of placeholders that are known, such as ``{"is_training": False}``.

        Returns:
            True if everything was imported. On False, see `num_errors` and `get_error`.
        """
        network = self.network
        if len(network) or network.num_inputs:
            return self._fail([Problem("INVALID_VALUE", "the network already has layers or "
                                       "inputs; parse into an empty network")])
        if network.has_implicit_batch_dimension:
            log.info("TensorFlow graphs carry their batch dimension: the network becomes one with "
                     "explicit batch", self.logger)
            network._off = 0
        try:
            proto = load(model)
        except ImportProblem as e:
            return self._fail([Problem(e.code, str(e))])
        given = inputs or {}
        feeds = {k: Feed(given[k]) for k in given} if isinstance(given, Mapping) \
            else {k: Feed() for k in given}
        state = import_graph(
            proto, network.graph, inputs=feeds, outputs=outputs, constants=constants,
            network=network, plugins=PluginFinder(self.plugin_namespace))
        self._layers = state.layers
        for text in state.warnings:
            log.warning(text, self.logger)
        return self._fail(state.problems) if state.problems else True

    def parse_from_file(self, path: Any, **options: Any) -> bool:
        """`parse` of a file."""
        return self.parse(path, **options)

    def _fail(self, problems: Sequence[Problem]) -> bool:
        for p in problems:
            error = ParserError(p)
            self._errors.append(error)
            log.error(str(error), self.logger)
        return False

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

    def get_layer_output_tensor(self, name: str, i: int) -> Any:
        """Output ``i`` of the layer that stands for the TensorFlow node of this name, or None."""
        layer = self._layers.get(name)
        return None if layer is None else layer.get_output(i)



