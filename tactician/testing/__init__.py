"""Helpers for tests of ops, this project's and other people's."""

from .op import check_op, run_native

__all__ = ["check_op", "run_native"]
