"""How the runtime's classes report errors: to the logger and the error recorder."""

from __future__ import annotations

from typing import Any

from ..network.enums_build import ErrorCodeTRT
from ..support import logger as log

INVALID = ErrorCodeTRT.INVALID_ARGUMENT
STATE = ErrorCodeTRT.INVALID_STATE
FAILED = ErrorCodeTRT.FAILED_EXECUTION
PLAN = ErrorCodeTRT.INVALID_CONFIG


class Kept:
    """A setting that reads back and changes nothing, which the log says when it is set.

    Args:
        default: Its first value, which is set silently.
        why: Why it changes nothing.
    """

    def __init__(self, default: Any, why: str):
        self.default, self.why = default, why

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self if obj is None else vars(obj).get(self.name, self.default)

    def __set__(self, obj: Any, value: Any) -> None:
        vars(obj)[self.name] = value
        if value != self.default:
            obj._warn(f"{type(obj).__name__}.{self.name} has no effect: {self.why}")


class Reporter:
    """Base of objects with a logger and an ``error_recorder``.

    Attributes:
        error_recorder: `IErrorRecorder` that is told of every error, or None.
    """

    error_recorder: Any = None
    _log_to: Any = None

    def _fail(self, message: str, code: ErrorCodeTRT = INVALID) -> bool:
        """Reports an error; gives False, which the methods that report return."""
        log.error(message, self._log_to)
        if self.error_recorder is not None:
            self.error_recorder.report_error(code, message)
        return False

    def _warn(self, message: str) -> None:
        log.warning(message, self._log_to)
