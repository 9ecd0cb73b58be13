"""`compile`, `convert_method_to_trt_engine`, `save` and `load`."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...support.errors import UsageError
from ..calls import varying
from ..compiling import PartitionedModule
from ..module import TRTModule
from . import dynamo
from .mutable import MutableTorchTensorRTModule

_DYNAMO = ("default", "dynamo", "torch_compile")


def compile(module: Any, ir: str = "default", inputs: Any = None, arg_inputs: Any = None,
            kwarg_inputs: Any = None, enabled_precisions: Any = None, **kwargs: Any) -> Any:
    """torch_tensorrt's entry point: a module to one that runs engines.

    Args:
        module: A module in eval mode, or a ``torch.export.ExportedProgram``.
        ir: ``dynamo`` (the default) or ``torch_compile``.
        inputs, arg_inputs: `Input`s or tensors, one for each positional argument.
        kwarg_inputs: Those of named arguments.
        enabled_precisions: Types that kernels may use besides FP32.
        kwargs: Other options; see `CompilationSettings`.

    Returns:
        A `TRTModule`; a `PartitionedModule` where torch runs a part; with ``torch_compile`` what
        ``torch.compile`` gives.

    Raises:
        UsageError: If options or arguments are wrong.
        BuildError: If it can't be built.

    Example:
        >>> from tactician.torch import Input, compile
        >>> trt_model = compile(model, inputs=[Input((1, 3, 224, 224))])  # doctest: +SKIP
    """
    if enabled_precisions is not None:
        kwargs["enabled_precisions"] = enabled_precisions
    _known_ir(ir)
    if ir == "torch_compile":
        return _through_torch_compile(module, kwargs)
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("TorchScript modules can't be exported; give the module itself")
    program = dynamo.trace(module, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs,
                           **{k: v for k, v in kwargs.items() if k == "device"})
    return dynamo.compile(program, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs,
                          **kwargs)


def _known_ir(ir: str) -> None:
    if ir not in _DYNAMO:
        raise UsageError(f"ir {ir!r} is none of {', '.join(_DYNAMO)}; TorchScript and FX traces "
                         "are not taken")


def _through_torch_compile(module: Any, kwargs: dict[str, Any]) -> Any:
    from ..backend import tactician

    dynamic = kwargs.pop("dynamic", None)
    return torch.compile(module, backend=tactician, dynamic=dynamic, options=kwargs)


def convert_method_to_trt_engine(module: Any, method_name: str = "forward", inputs: Any = None,
                                 arg_inputs: Any = None, kwarg_inputs: Any = None,
                                 ir: str = "default", enabled_precisions: Any = None,
                                 **kwargs: Any) -> bytes:
    """The plan of a module's method.

    Raises:
        BuildError: With everything that is not supported.
    """
    _known_ir(ir)
    if enabled_precisions is not None:
        kwargs["enabled_precisions"] = enabled_precisions
    if method_name != "forward":
        module = _Method(module, method_name)
    program = dynamo.trace(module, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs)
    return dynamo.convert_exported_program_to_serialized_trt_engine(
        program, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs, **kwargs)


class _Method(torch.nn.Module):
    """A method of a module as a module."""

    def __init__(self, module: torch.nn.Module, name: str):
        super().__init__()
        self.module, self.name = module, name
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.name)(*args, **kwargs)


def save(module: Any, file_path: str | os.PathLike[str] = "", *, extra_files: Any = None,
         output_format: str = "exported_program", inputs: Any = None, arg_inputs: Any = None,
         kwarg_inputs: Any = None, retrace: bool = False, **others: Any) -> None:
    """Writes a compiled module as an exported program that holds its plans.

    Any process that imports tactician.torch can load it, with `load` or ``torch.export.load``.

    Args:
        module: What `compile` gave, an exported program, or any module.
        extra_files: Further files by name, for ``torch.export.save``.
        output_format: ``exported_program``.
        inputs, arg_inputs, kwarg_inputs: Sample arguments; by default those it was compiled with.
        retrace: Without effect: compiled modules are always exported.

    Raises:
        UsageError: If there are no sample arguments, or the format is another one.
    """
    if output_format != "exported_program":
        raise UsageError(f"output_format {output_format!r} can't be written; use exported_program")
    if isinstance(module, MutableTorchTensorRTModule):
        raise UsageError("use MutableTorchTensorRTModule.save(module, path)")
    if not isinstance(module, torch.export.ExportedProgram):
        module = _exported(module, inputs, arg_inputs, kwarg_inputs)
    torch.export.save(module, os.fspath(file_path), extra_files=extra_files)


def _exported(module: torch.nn.Module, inputs: Any, arg_inputs: Any, kwarg_inputs: Any) -> Any:
    sample = getattr(module, "sample_call", None)
    if inputs is not None or arg_inputs is not None or kwarg_inputs:
        sample = dynamo.call_of(inputs, arg_inputs, kwarg_inputs)
    if sample is None:
        raise UsageError("save needs sample arguments: inputs=[…]")
    (args, kwargs), shapes = dynamo.samples(sample)
    if isinstance(module, (TRTModule, PartitionedModule)):
        leaves = pytree.tree_leaves((args, kwargs))
        ranges = getattr(module, "sample_ranges", {})
        shapes = [ranges.get(i, s) if not varying(s) else s for i, s in enumerate(shapes)]
        assert len(leaves) == len(shapes)
    for m in module.modules():
        if isinstance(m, TRTModule):
            m.exportable()
    return dynamo.export(module, args, kwargs, shapes)


def load(file_path: str | os.PathLike[str] = "", extra_files: Any = None, **kwargs: Any) -> Any:
    """Reads what `save` wrote.

    Returns:
        A ``torch.export.ExportedProgram``; its ``module()`` runs it.
    """
    from . import operator  # noqa: F401  (programs call it)

    return torch.export.load(os.fspath(file_path), extra_files=extra_files)
