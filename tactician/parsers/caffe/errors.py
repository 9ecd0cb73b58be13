"""What can be wrong with a Caffe model."""

from __future__ import annotations


class CaffeProblem(Exception):
    """A problem of a whole file or net."""


class LayerProblem(CaffeProblem):
    """A problem of the layer that is being imported. The message says what was expected and what
    to do; name, type, line and bottoms are added where it is reported."""


class Poisoned(Exception):
    """A layer reads a blob of a layer that failed: nothing new to report."""
