"""`torch2trt`: from a module and sample inputs to an engine."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..builder.builder import Builder
from ..builder.config import IBuilderConfig
from ..network.enums import DeviceType
from ..network.enums_build import BuilderFlag, CalibrationAlgoType
from ..network.interfaces import (
    IInt8EntropyCalibrator,
    IInt8EntropyCalibrator2,
    IInt8LegacyCalibrator,
    IInt8MinMaxCalibrator,
)
from ..network.network import INetworkDefinition
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .lower import Converted, lower_program
from .module import TRTModule

Shapes = Sequence[Sequence[int]]


def torch2trt(
    module: torch.nn.Module,
    inputs: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    log_level: log.Severity = log.Severity.ERROR,
    fp16_mode: bool = False,
    max_workspace_size: int | None = None,
    strict_type_constraints: bool = False,
    keep_network: bool = True,
    int8_mode: bool = False,
    int8_calib_dataset: Any = None,
    int8_calib_algorithm: CalibrationAlgoType = CalibrationAlgoType.ENTROPY_CALIBRATION_2,
    use_onnx: bool = False,
    default_device_type: DeviceType = DeviceType.CPU,
    dla_core: int = 0,
    gpu_fallback: bool = True,
    device_types: Mapping[Any, DeviceType] | None = None,
    min_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    onnx_opset: int | None = None,
    max_batch_size: int | None = None,
    *,
    bf16_mode: bool = False,
    optimization_level: int = 3,
    threads: int = 0,
) -> TRTModule:
    """Builds a module for this machine.

    Nothing of torch is patched: the module is exported (`torch.export`) and its graph translated.

    Args:
        module: In eval mode.
        inputs: The arguments of a sample call: a list or tuple of positional ones, a dict of named
            ones, or one tensor. They may hold tuples, lists and dicts of tensors.
        input_names, output_names: Names of the engine's tensors.
        log_level: Least severity of messages that are shown.
        fp16_mode, int8_mode, bf16_mode: Types that kernels may use besides the module's own.
        max_workspace_size: Most bytes of scratch memory.
        strict_type_constraints: Keep to the precisions that layers ask for.
        keep_network: Keep the network as the result's ``network``.
        int8_calib_dataset: Sample calls (each as ``inputs``) to calibrate with; by default the
            one in ``inputs``.
        int8_calib_algorithm: Which calibrator sees them.
        use_onnx: Go through an ONNX file instead.
        default_device_type, dla_core, gpu_fallback, device_types: Where layers run. There is only
            the CPU; anything else is logged.
        min_shapes, opt_shapes, max_shapes: A shape for each tensor of ``inputs``, flattened.
            Dimensions that differ between them may vary at run time.
        onnx_opset: Of the ONNX file.
        max_batch_size: Lets the first dimension vary from 1 to this.
        optimization_level: Of the builder, 0 to 5.
        threads: Threads the engine uses; 0 means all cores.

    Returns:
        A module that is called like the original.

    Raises:
        BuildError: With every operator that is not supported and where it is called.
        UsageError: If shapes don't fit the inputs.

    Example:
        >>> model_trt = torch2trt(model.eval(), [torch.ones(1, 3, 224, 224)])  # doctest: +SKIP
    """
    args, kwargs = _call(inputs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    ranges = _ranges(leaves, min_shapes, opt_shapes, max_shapes, max_batch_size)
    logger = log.Logger(log_level)
    record = _Errors(logger)
    builder = Builder(record)
    builder.max_threads = threads
    network = builder.create_network(1)
    route = _through_onnx if use_onnx else _through_export
    done, calling = route(module, args, kwargs, ranges, network, input_names, output_names,
                          onnx_opset)
    calling["in_spec"] = pytree.treespec_dumps(spec)
    config = builder.create_builder_config()
    config.builder_optimization_level = optimization_level
    _set_flags(config, fp16_mode, int8_mode, bf16_mode, strict_type_constraints)
    if max_workspace_size is not None:
        config.max_workspace_size = max_workspace_size
    _set_devices(config, default_device_type, dla_core, gpu_fallback, device_types)
    if int8_mode:
        calls = int8_calib_dataset if int8_calib_dataset is not None else [inputs]
        config.int8_calibrator = _calibrator(int8_calib_algorithm, calls, done)
    _add_profile(builder, config, network, done, ranges)
    engine = builder.build_engine_with_config(network, config)
    if engine is None:
        raise BuildError("\n".join(record.errors) or "the network can't be built")
    names = [x for kind, x in done.outputs if kind == "engine"]
    out = TRTModule(engine, done.input_names, names, calling)
    out.network = network if keep_network else None
    return out


class _Errors(log.ILogger):
    """Passes messages on and remembers errors."""

    def __init__(self, to: log.ILogger):
        super().__init__()
        self.to = to
        self.errors: list[str] = []

    def log(self, severity: log.Severity, msg: str) -> None:
        if severity <= log.Severity.ERROR:
            self.errors.append(msg)
        else:
            self.to.log(severity, msg)


# --- inputs -------------------------------------------------------------------------------------


def _call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a sample call."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def _ranges(leaves: Sequence[Any], lowest: Shapes | None, usual: Shapes | None,
            highest: Shapes | None, batch: int | None) -> list[Any]:
    """For each leaf None (not a tensor) or its min, opt and max shape."""
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    own = [tuple(x.shape) for x in tensors]
    if batch is not None and lowest is None and highest is None:
        lowest = [(1, *s[1:]) for s in own]
        highest = [(max(batch, s[0]), *s[1:]) for s in own]
    if lowest is None and highest is not None:
        lowest = own
    if highest is None and lowest is not None:
        highest = own
    given = [own if s is None else [tuple(x) for x in s] for s in (lowest, usual, highest)]
    for name, shapes in zip(("min_shapes", "opt_shapes", "max_shapes"), given, strict=True):
        if [len(s) for s in shapes] != [len(s) for s in own]:
            raise UsageError(f"{name} {shapes} must have one shape of the same rank for each of "
                             f"the tensors {own}")
    triples = iter(zip(*given, strict=True))
    out = [next(triples) if isinstance(x, torch.Tensor) else None for x in leaves]
    for t in out:
        if t and any(not a <= b <= c for a, b, c in zip(*t, strict=True)):
            raise UsageError(f"min shape {t[0]}, opt shape {t[1]} and max shape {t[2]} of an "
                             "input are not in order")
    return out


def _varies(triple: Any) -> list[int]:
    return [] if triple is None else [i for i, (a, _, b) in enumerate(zip(*triple, strict=True))
                                      if a != b]


def _stretched(x: Any, triple: Any) -> Any:
    """A sample that lets export see a varying size: not 1, which it would take for constant."""
    axes = [i for i in _varies(triple) if x.shape[i] < 2]
    if not axes:
        return x
    for axis in axes:
        x = x.repeat_interleave(min(3, triple[2][axis]), axis)
    return x


# --- roads --------------------------------------------------------------------------------------


def _through_export(module: Any, args: Any, kwargs: Any, ranges: list[Any],
                    network: INetworkDefinition, input_names: Any, output_names: Any,
                    opset: int | None) -> tuple[Converted, dict[str, Any]]:
    program = export(module, args, kwargs, ranges)
    done = lower_program(program, network, input_names, output_names)
    calling = {
        "inputs": done.inputs, "outputs": done.outputs,
        "out_spec": pytree.treespec_dumps(program.call_spec.out_spec),
    }
    return done, calling


def export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
           ranges: list[Any]) -> Any:
    """The module as a ``torch.export.ExportedProgram``; sizes that ``ranges`` let vary are
    symbols, unless the module itself fixes them."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    auto = torch.export.Dim.AUTO
    samples = [x if r is None else _stretched(x, r) for x, r in zip(leaves, ranges, strict=True)]
    dynamic = [
        {i: auto(min=max(r[0][i], 1), max=r[2][i]) for i in _varies(r)} if _varies(r) else None
        for r in ranges
    ]
    if module.training:
        log.warning("torch2trt: the module is in training mode; call module.eval() first")
    shapes = None
    if any(dynamic):
        args, kwargs = pytree.tree_unflatten(samples, spec)
        by_position, by_name = pytree.tree_unflatten(dynamic, spec)
        shapes = _by_parameter(module, by_position, by_name)
    with torch.no_grad():
        return torch.export.export(module, args, kwargs or None, dynamic_shapes=shapes,
                                   strict=False)


def _by_parameter(module: torch.nn.Module, by_position: Any, by_name: Any) -> Any:
    """Dynamic shapes as export wants them: a tuple, or a dict if arguments are named."""
    if not by_name:
        return by_position
    if not by_position:
        return by_name
    import inspect

    names = [*inspect.signature(module.forward).parameters]
    return dict(zip(names, by_position, strict=False)) | by_name


def _through_onnx(module: Any, args: Any, kwargs: Any, ranges: list[Any],
                  network: INetworkDefinition, input_names: Any, output_names: Any,
                  opset: int | None) -> tuple[Converted, dict[str, Any]]:
    from ..parsers.onnx import OnnxParser

    with torch.no_grad():
        result = module(*args, **kwargs)
    flat, out_spec = pytree.tree_flatten(result)
    leaves = pytree.tree_leaves((args, kwargs))
    if kwargs or not all(isinstance(x, torch.Tensor) for x in leaves):
        raise UsageError("use_onnx takes positional tensors only; leave it out for other calls")
    names = list(input_names or [f"input_{i}" for i in range(len(leaves))])
    results = list(output_names or [f"output_{i}" for i in range(len(flat))])
    axes = {n: {i: f"{n}_{i}" for i in _varies(r)} for n, r in zip(names, ranges, strict=True)}
    data = io.BytesIO()
    more: dict[str, Any] = {} if opset is None else {"opset_version": opset}
    torch.onnx.export(module, args, data,  # type: ignore[arg-type]
                      input_names=names, output_names=results, dynamo=False,
                      dynamic_axes={n: a for n, a in axes.items() if a}, **more)
    parser = OnnxParser(network, log.Logger(log.Severity.INTERNAL_ERROR))
    if not parser.parse(data.getvalue()):
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BuildError("the ONNX file can't be imported:\n" + "\n".join(problems))
    kept = [v.name for v in network.graph.inputs]
    done = Converted([names.index(n) for n in kept], kept, [("engine", n) for n in results])
    return done, {"inputs": done.inputs, "outputs": done.outputs,
                  "out_spec": pytree.treespec_dumps(out_spec)}


# --- settings -----------------------------------------------------------------------------------


def _set_flags(config: IBuilderConfig, fp16: bool, int8: bool, bf16: bool, strict: bool) -> None:
    flags = ((fp16, BuilderFlag.FP16), (int8, BuilderFlag.INT8), (bf16, BuilderFlag.BF16),
             (strict, BuilderFlag.OBEY_PRECISION_CONSTRAINTS))
    for on, flag in flags:
        if on:
            config.set_flag(flag)


def _set_devices(config: IBuilderConfig, device: DeviceType, dla_core: int, fallback: bool,
                 types: Mapping[Any, DeviceType] | None) -> None:
    config.default_device_type = device
    config.DLA_core = dla_core
    if fallback:
        config.set_flag(BuilderFlag.GPU_FALLBACK)
    others = {d.name for d in (types or {}).values()} | {device.name}
    if others - {"CPU"}:
        log.warning(f"torch2trt: device types {sorted(others - {'CPU'})} are not available; all "
                    "layers run on the CPU")


def _add_profile(builder: Builder, config: IBuilderConfig, network: INetworkDefinition,
                 done: Converted, ranges: list[Any]) -> None:
    profile = builder.create_optimization_profile()
    dynamic = False
    for v, position in zip(network.graph.inputs, done.inputs, strict=True):
        triple = ranges[position]
        fixed = [i for i in _varies(triple) if isinstance(v.dims[i], int)]
        if fixed:
            log.warning(f"torch2trt: the module works only for the sample's size in dimensions "
                        f"{fixed} of input {v.name!r}; they don't vary")
            triple = [[v.dims[i] if i in fixed else n for i, n in enumerate(s)] for s in triple]
        profile.set_shape(v.name, *triple)
        dynamic |= not v.is_static
    if dynamic:
        config.add_optimization_profile(profile)


# --- calibration --------------------------------------------------------------------------------

_CALIBRATORS = {
    CalibrationAlgoType.ENTROPY_CALIBRATION_2: IInt8EntropyCalibrator2,
    CalibrationAlgoType.ENTROPY_CALIBRATION: IInt8EntropyCalibrator,
    CalibrationAlgoType.MINMAX_CALIBRATION: IInt8MinMaxCalibrator,
    CalibrationAlgoType.LEGACY_CALIBRATION: IInt8LegacyCalibrator,
}


def _calibrator(algorithm: CalibrationAlgoType, calls: Any, done: Converted) -> Any:
    """A calibrator that feeds sample calls, one at a time."""
    base: Any = _CALIBRATORS[algorithm]

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.index = 0
            self.held: list[torch.Tensor] = []

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            if self.index >= len(calls):
                return None
            leaves = pytree.tree_leaves(_call(calls[self.index]))
            self.index += 1
            feeds = dict(zip(done.input_names, (leaves[p] for p in done.inputs), strict=True))
            self.held = [feeds[n].detach().cpu().contiguous() for n in names]
            return [t.data_ptr() for t in self.held]

        def read_calibration_cache(self, *args: Any) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None:
            return None

    return Calibrator()
