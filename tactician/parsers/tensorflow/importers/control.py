"""Calls of functions; their importers are in `functions`, beside what they share with loops."""

from __future__ import annotations

from .. import functions

__all__ = ["functions"]
