"""`OnnxParserRefitter`: weights of an ONNX model into an engine's `Refitter`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

from ...support import logger as log
from .errors import ImportProblem, Problem
from .external import TensorLoader, read_file, read_model
from .importers.norm import folded_batch_norm
from .node import OnnxNode
from .parser_error import ParserError


def _weights(model: Any, load: TensorLoader, wanted: set[str]) -> Iterator[tuple[str, Any]]:
    """The model's weights that an engine wants, by the names the parser gave them."""
    tensors = {t.name: t for t in model.graph.initializer}
    for name in wanted & tensors.keys():
        yield name, load(tensors[name])
    for index, proto in enumerate(model.graph.node):
        if proto.op_type == "Constant" and proto.output[0] in wanted:
            yield proto.output[0], load(next(a.t for a in proto.attribute if a.name == "value"))
        if proto.op_type == "BatchNormalization":
            node = OnnxNode(proto, index, 0, [])
            names = [f"{node.name}/shift", f"{node.name}/factor"]
            if wanted.issuperset(names) and all(i in tensors for i in proto.input[1:5]):
                arrays = [load(tensors[i]) for i in proto.input[1:5]]
                values = folded_batch_norm(arrays, node.attr("epsilon", 1e-5))
                for name, value in zip(names, values, strict=True):
                    yield name, value.astype(arrays[0].dtype)


class OnnxParserRefitter:
    """Refits an engine from a model: all weights whose names the engine knows are replaced, those
    of batch normalizations too. Call the refitter's `refit_cuda_engine` afterwards.

    Args:
        refitter: The engine's `Refitter`.
        logger: Where problems go.
    """

    def __init__(self, refitter: Any, logger: log.ILogger | None = None):
        self.refitter = refitter
        self.logger = logger
        self._errors: list[ParserError] = []
        self._model: Any = None
        self._folder: str | None = None
        self._given: dict[str, bytes] = {}

    def load_model_proto(self, model: Any, path: str | None = None) -> bool:
        """Reads a serialized model."""
        self._model, self._given = None, {}
        self._folder = None if path is None else os.path.dirname(os.path.abspath(os.fspath(path)))
        try:
            self._model = read_model(model)
        except ImportProblem as e:
            return self._fail(e.code, str(e))
        return True

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        """Provides the data of an initializer that the model keeps elsewhere."""
        self._given[name] = ctypes.string_at(int(data), int(size))
        return True

    def refit_model_proto(self) -> bool:
        """Hands the weights of the model that was read to the refitter.

        Returns:
            True if every weight the engine asks for was found in the model and accepted.
        """
        if self._model is None:
            return self._fail("INVALID_VALUE", "load_model_proto must succeed first")
        load = TensorLoader(self._folder, self._given, lambda t: log.warning(t, self.logger))
        wanted = set(self.refitter.get_all_weights())
        before, found = len(self._errors), 0
        try:
            for name, array in _weights(self._model, load, wanted):
                found += 1
                if not self.refitter.set_named_weights(name, array):
                    self._fail("REFIT_FAILED", f"the engine refused weights {name!r}")
        except ImportProblem as e:
            self._fail(e.code, str(e))
        if wanted and not found:
            self._fail("REFIT_FAILED", "the model has none of the engine's weights "
                       f"({', '.join(sorted(wanted)[:8])}, …); was it made from this model?")
        missing = self.refitter.get_missing_weights()
        if missing:
            self._fail("REFIT_FAILED", f"the model has no weights {', '.join(missing)}")
        return len(self._errors) == before

    def refit_from_bytes(self, model: Any, path: str | None = None) -> bool:
        """Reads a serialized model and refits from it."""
        return self.load_model_proto(model, path) and self.refit_model_proto()

    def refit_from_file(self, model: str) -> bool:
        """Reads a model file and refits from it."""
        path = os.fspath(model)
        try:
            return self.refit_from_bytes(read_file(path), path)
        except ImportProblem as e:
            return self._fail(e.code, str(e))

    def _fail(self, code: str, text: str) -> bool:
        error = ParserError(Problem(code, text))
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
