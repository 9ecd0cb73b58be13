"""``torch_tensorrt.logging``: how much is logged."""

from collections.abc import Iterator as _Iterator
from contextlib import contextmanager as _contextmanager

from tactician.support import logger as _log

_Severity = _log.Severity


@_contextmanager
def _least(severity: _Severity) -> _Iterator[None]:
    before = _log.active()
    _log.set_active(_log.Logger(severity))
    try:
        yield
    finally:
        _log.set_active(before)


def internal_errors():
    """Shows internal errors only, within ``with``."""
    return _least(_Severity.INTERNAL_ERROR)


def errors():
    """Shows errors only, within ``with``."""
    return _least(_Severity.ERROR)


def warnings():
    """Shows warnings and errors, within ``with``."""
    return _least(_Severity.WARNING)


def info():
    """Shows information, too, within ``with``."""
    return _least(_Severity.INFO)


def debug():
    """Shows everything, within ``with``."""
    return _least(_Severity.VERBOSE)


graphs = debug
