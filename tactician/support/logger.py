"""`ILogger` and `Logger`, and the bridge by which tactician's own modules log.

Builders, runtimes and parsers make the logger they are given the active one; code that has no
logger at hand calls `error`, `warning`, `info` or `verbose` here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .enum import ApiEnum

_Self = TypeVar("_Self", bound="ILogger")


class Severity(ApiEnum):
    """How grave a message is; the smaller the graver."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


Severity.__qualname__ = "ILogger.Severity"
_Severity = Severity  # inside the class the name is a member


class ILogger:
    """Receives messages. Subclass it and implement `log` to take them yourself."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        pass

    def log(self, severity: _Severity, msg: str) -> None:
        """Takes one message; subclasses implement it."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement log(severity, msg) to be used as a logger"
        )

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None


_TAGS = {
    Severity.INTERNAL_ERROR: "F", Severity.ERROR: "E", Severity.WARNING: "W",
    Severity.INFO: "I", Severity.VERBOSE: "V",
}


class Logger(ILogger):
    """Writes messages of ``min_severity`` and graver to stderr.

    Args:
        min_severity: The least grave messages to show.
    """

    min_severity: Severity

    def __init__(self, min_severity: Severity = Severity.WARNING):
        super().__init__()
        self.min_severity = Severity(min_severity)

    def log(self, severity: Severity, msg: str) -> None:
        """Writes ``[date-time] [TRT] [W] msg``."""
        severity = Severity(severity)
        if severity.value > self.min_severity.value:
            return
        stamp = time.strftime("%m/%d/%Y-%H:%M:%S")
        print(f"[{stamp}] [TRT] [{_TAGS[severity]}] {msg}", file=sys.stderr, flush=True)


_default = Logger()
_active: ILogger = _default


def active() -> ILogger:
    """The logger of the most recently made builder, runtime or parser; else one for warnings."""
    return _active


def set_active(logger: ILogger | None) -> ILogger:
    """Makes ``logger`` the active one (None: the default) and returns it."""
    global _active
    if logger is not None and not callable(getattr(logger, "log", None)):
        raise TypeError(f"a logger needs a log(severity, msg) method, got {type(logger).__name__}")
    _active = _default if logger is None else logger
    return _active


def log(severity: Severity, msg: str, logger: ILogger | None = None) -> None:
    """Logs to ``logger``, else to the active one."""
    (logger or _active).log(severity, msg)


def _level(severity: Severity) -> Callable[..., None]:
    def write(msg: str, logger: ILogger | None = None) -> None:
        log(severity, msg, logger)

    write.__name__ = severity.name.lower()
    write.__doc__ = f"Logs a message of severity {severity.name}."
    return write


internal_error = _level(Severity.INTERNAL_ERROR)
error = _level(Severity.ERROR)
warning = _level(Severity.WARNING)
info = _level(Severity.INFO)
verbose = _level(Severity.VERBOSE)


def enabled(severity: Severity, logger: ILogger | None = None) -> bool:
    """Whether a message could be shown: for costly messages. True for user-made loggers."""
    least = getattr(logger or _active, "min_severity", None)
    return least is None or int(severity) <= int(least)
