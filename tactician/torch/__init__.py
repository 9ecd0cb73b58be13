"""PyTorch front end: ``torch2trt(module, inputs)`` gives a module that runs an engine, and
``torch.compile(module, backend="tactician")`` engines wherever they are possible.

Needs torch. `table.aten_op` registers importers of ATen overloads; `importers/` holds them.
"""

from .compiling import PartitionedModule
from .convert import torch2trt
from .converters import (
    CONVERTERS,
    ConversionContext,
    add_missing_trt_tensors,
    get_arg,
    tensorrt_converter,
    trt_,
)
from .datasets import (
    Dataset,
    DatasetRecorder,
    FolderDataset,
    ListDataset,
    TensorBatchDataset,
)
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
    "CONVERTERS",
    "AtenProblem",
    "ConversionContext",
    "Dataset",
    "DatasetRecorder",
    "FolderDataset",
    "Input",
    "ListDataset",
    "MutableTorchTensorRTModule",
    "PartitionedModule",
    "TRTModule",
    "TensorBatchDataset",
    "add_missing_trt_tensors",
    "aten_op",
    "compile",
    "convert_method_to_trt_engine",
    "dynamo",
    "get_arg",
    "load",
    "lower_program",
    "save",
    "tensorrt_converter",
    "torch2trt",
    "trt_",
]
