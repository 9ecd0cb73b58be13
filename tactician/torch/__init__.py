"""PyTorch front end: ``torch2trt(module, inputs)`` gives a module that runs an engine, and
``torch.compile(module, backend="tactician")`` engines wherever they are possible.

Needs torch. `table.aten_op` registers importers of ATen overloads; `importers/` holds them.
"""

from .compiling import PartitionedModule
from .convert import torch2trt
from .lower import lower_program
from .module import TRTModule
from .table import AtenProblem, aten_op

__all__ = [
    "AtenProblem", "PartitionedModule", "TRTModule", "aten_op", "lower_program", "torch2trt",
]
