"""PyTorch front end: ``torch2trt(module, inputs)`` gives a module that runs an engine, and
``torch.compile(module, backend="tactician")`` engines wherever they are possible.

Needs torch. `table.aten_op` registers importers of ATen overloads; `importers/` holds them.
"""

from . import trt
from .compiling import PartitionedModule
from .convert import torch2trt
from .lower import lower_program
from .module import TRTModule
from .table import AtenProblem, aten_op
from .trt import (
    Input,
    MutableTorchTensorRTModule,
    compile,
    convert_method_to_trt_engine,
    dynamo,
    load,
    save,
)

__all__ = [
    "AtenProblem", "Input", "MutableTorchTensorRTModule", "PartitionedModule", "TRTModule",
    "aten_op", "compile", "convert_method_to_trt_engine", "dynamo", "load", "lower_program",
    "save", "torch2trt", "trt",
]
