"""`OnnxParserRefitter`: weights of an ONNX model into an engine's `Refitter`."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from ...support import logger as log
from .errors import ImportProblem, Problem
from .external import TensorLoader, read_file, read_model
from .parser_error import ParserError


class OnnxParserRefitter:
    """Refits an engine from a model: every initializer whose name the engine knows is replaced.

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
        found: set[str] = set()
        for tensor in self._model.graph.initializer:
            if tensor.name not in wanted:
                continue
            try:
                ok = self.refitter.set_named_weights(tensor.name, load(tensor))
            except ImportProblem as e:
                ok = self._fail(e.code, str(e))
            if not ok:
                self._fail("REFIT_FAILED", f"the engine refused weights {tensor.name!r}")
            found.add(tensor.name)
        missing = sorted(wanted - found)
        if missing:
            self._fail("REFIT_FAILED", f"the model has no weights {', '.join(missing)}")
        return not self._errors

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
