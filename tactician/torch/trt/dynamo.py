"""``torch_tensorrt.dynamo``: exported programs to modules that run engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...support.errors import BuildError, UsageError
from ..calls import Triple, export, varying
from ..compiling import PartitionedModule, compile_piece
from ..engines import device_of
from ..lower import piece_of
from ..module import TRTModule
from .inputs import Device, Input
from .refit import refit_module_weights
from .settings import CompilationSettings

__all__ = [
    "CompilationSettings", "compile", "convert_exported_program_to_serialized_trt_engine",
    "export", "refit_module_weights", "trace",
]


def call_of(inputs: Any, arg_inputs: Any, kwarg_inputs: Any
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments, of `Input`s and tensors.

    Raises:
        UsageError: If both ``inputs`` and ``arg_inputs`` are given, or nothing is.
    """
    if inputs is not None and arg_inputs is not None:
        raise UsageError("inputs and arg_inputs are the same; give one of them")
    args = arg_inputs if arg_inputs is not None else inputs
    if args is None and not kwarg_inputs:
        raise UsageError("sample arguments are missing: give inputs=[Input(shape), …] or tensors")
    if isinstance(args, (torch.Tensor, Input)):
        args = (args,)
    return tuple(args or ()), dict(kwarg_inputs or {})


def samples(call: Any) -> tuple[Any, list[Triple | None]]:
    """A call with tensors for `Input`s, and the range of each leaf."""
    leaves, spec = pytree.tree_flatten(call)
    shapes: list[Triple | None] = []
    out = []
    for x in leaves:
        if isinstance(x, Input):
            shapes.append(x.triple)
            x = x.example_tensor()
        else:
            shapes.append((tuple(x.shape),) * 3 if isinstance(x, torch.Tensor) else None)
        out.append(x)
    return pytree.tree_unflatten(out, spec), shapes


def trace(mod: Any, inputs: Any = None, *, arg_inputs: Any = None, kwarg_inputs: Any = None,
          **options: Any) -> Any:
    """Exports a module; sizes that `Input`s let vary are symbols.

    Returns:
        A ``torch.export.ExportedProgram``.
    """
    if isinstance(mod, torch.export.ExportedProgram):
        return mod
    (args, kwargs), shapes = samples(call_of(inputs, arg_inputs, kwarg_inputs))
    where = options.get("device")
    if where is not None and Device._from(where).to().type == "cuda":
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.cuda(), (args, kwargs))
    return export(mod, args, kwargs, shapes)


def compile(exported_program: Any, inputs: Any = None, *, arg_inputs: Any = None,
            kwarg_inputs: Any = None, **options: Any) -> Any:
    """Builds engines for an exported program.

    Args:
        exported_program: A ``torch.export.ExportedProgram``.
        inputs, arg_inputs: `Input`s or tensors, one for each positional argument.
        kwarg_inputs: Those of named arguments.
        options: torch_tensorrt's; see `CompilationSettings`.

    Returns:
        A `TRTModule`, or a `PartitionedModule` where torch runs a part.

    Raises:
        BuildError: With ``require_full_compilation`` if torch would have to run a part.
    """
    chosen = CompilationSettings.of(options)
    piece = piece_of(exported_program)
    given = _given(exported_program, inputs, arg_inputs, kwarg_inputs)
    if options.get("device") is None:
        held = [t for t, _ in piece.bound.values()]
        sample = exported_program.example_inputs
        chosen = replace(chosen, settings=replace(
            chosen.settings, device=device_of([*held, *pytree.tree_leaves(sample)])))
    made = compile_piece(
        piece, chosen.settings, given=given, cache=chosen.cache,
        partition=not chosen.require_full_compilation, min_block=chosen.min_block_size,
        torch_ops=chosen.torch_executed_ops, torch_modules=chosen.torch_executed_modules,
    )
    in_spec, out_spec = exported_program.call_spec.in_spec, exported_program.call_spec.out_spec
    if isinstance(made, TRTModule):
        made.nest(in_spec, out_spec)
        out: Any = made
    else:
        out = PartitionedModule(made, in_spec, out_spec)
    sample = exported_program.example_inputs
    out.sample_call = sample if sample is None else _detached(sample)
    return out


def _detached(call: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach(), call)


def _given(program: Any, inputs: Any, arg_inputs: Any, kwarg_inputs: Any) -> Mapping[int, Triple]:
    """Ranges of arguments that vary; the program's own symbols bound the others."""
    if inputs is None and arg_inputs is None and not kwarg_inputs:
        return {}
    call = call_of(inputs, arg_inputs, kwarg_inputs)
    shapes = samples(call)[1]
    count = program.call_spec.in_spec.num_leaves
    if len(shapes) != count:
        raise UsageError(f"the program takes {count} arguments, {len(shapes)} are given")
    return {i: s for i, s in enumerate(shapes) if s is not None and varying(s)}


def convert_exported_program_to_serialized_trt_engine(
        exported_program: Any, inputs: Any = None, *, arg_inputs: Any = None,
        kwarg_inputs: Any = None, **options: Any) -> bytes:
    """The plan of a program's engine.

    Raises:
        BuildError: If it can't be one engine, with everything that is not supported.
    """
    options["require_full_compilation"] = True
    module = compile(exported_program, inputs, arg_inputs=arg_inputs, kwarg_inputs=kwarg_inputs,
                     **options)
    if module.engine is None:
        raise BuildError("the program can't be built")
    return bytes(module.engine.serialize())


def flat_engines(module: torch.nn.Module) -> Sequence[TRTModule]:
    """The engines of a compiled module."""
    return [m for m in module.modules() if isinstance(m, TRTModule)]
