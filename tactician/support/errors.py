"""Errors users meet. Each message says what is wrong, where, and what to do."""

from __future__ import annotations


class TacticianError(Exception):
    """Base class of errors raised by tactician."""


class BuildError(TacticianError):
    """A network cannot be built into an engine."""


class RefusedError(BuildError):
    """A kernel cannot be made after all: a library or a compiler refuses it. The autotuner then
    goes on with the next candidate."""


class PlanError(TacticianError):
    """A plan is damaged, or was made for another device or version."""


class ExecutionError(TacticianError):
    """An inference could not run: missing addresses or shapes, a failing step."""


class UsageError(TacticianError, ValueError):
    """An API call with arguments that cannot be right."""
