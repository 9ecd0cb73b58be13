"""Loggers."""

import pytest

import tactician as trt
from tactician.support import logger as bridge


def test_logger_writes_grave_messages_to_stderr(capsys):
    log = trt.Logger(trt.Logger.WARNING)
    log.log(trt.Logger.ERROR, "broken")
    log.log(trt.Logger.INFO, "detail")
    err = capsys.readouterr().err
    assert "[TRT] [E] broken" in err and "detail" not in err
    log.min_severity = trt.Logger.Severity.VERBOSE
    log.log(trt.Logger.VERBOSE, "detail")
    assert "[TRT] [V] detail" in capsys.readouterr().err


def test_user_loggers_get_what_modules_say():
    seen = []

    class Mine(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, msg):
            seen.append((severity, msg))

    with Mine() as mine:
        try:
            bridge.set_active(mine)
            bridge.warning("careful")
            bridge.error("direct", mine)
        finally:
            bridge.set_active(None)
    assert seen == [(trt.ILogger.WARNING, "careful"), (trt.Logger.Severity.ERROR, "direct")]


def test_log_must_be_implemented():
    with pytest.raises(NotImplementedError, match="log"):
        trt.ILogger().log(trt.ILogger.INFO, "x")
    with pytest.raises(TypeError, match="logger"):
        bridge.set_active("stderr")
