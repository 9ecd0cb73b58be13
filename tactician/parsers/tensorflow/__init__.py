"""TensorFlow graphs into networks, without TensorFlow. `parser` is what programs use;
`importers/` has one function per operator; `table` says how they are registered; `walk` imports
what the outputs need; `control` and `functions` make loops and conditionals of it."""

from .graph import load
from .parser import TensorFlowParser

__all__ = ["TensorFlowParser", "load"]
