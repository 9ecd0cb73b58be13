"""`torch2trt`: from a module and sample inputs to an engine."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..builder.config import IBuilderConfig
from ..network.enums import DeviceType
from ..network.enums_build import BuilderFlag, CalibrationAlgoType
from ..network.network import INetworkDefinition
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .calibration import calibrator
from .calls import Shapes, export, shape_ranges, split_call, varying
from .compiling import PartitionedModule, compile_piece
from .datasets import Dataset
from .engines import Settings, build, device_of, new_builder
from .lower import Converted, piece_of, tell
from .module import TRTModule


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
    default_device_type: DeviceType | None = None,
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
    partition: bool = False,
) -> Any:
    """Builds a module for this machine.

    Nothing of torch is patched: the module is exported (`torch.export`) and its graph translated.

    Args:
        module: In eval mode.
        inputs: The arguments of a sample call: a list or tuple of positional ones, a dict of named
            ones, or one tensor. They may hold tuples, lists and dicts of tensors. Or a `Dataset`
            of recorded calls: its shapes say what varies, and INT8 calibration uses it.
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
        default_device_type: Where the engine runs; by default where ``inputs`` lie.
        dla_core, gpu_fallback, device_types: There is no DLA and all layers run on one device;
            anything else is logged.
        min_shapes, opt_shapes, max_shapes: A shape for each tensor of ``inputs``, flattened.
            Dimensions that differ between them may vary at run time.
        onnx_opset: Of the ONNX file.
        max_batch_size: Lets the first dimension vary from 1 to this.
        optimization_level: Of the builder, 0 to 5.
        threads: Threads the engine uses; 0 means all cores.
        partition: Let torch run what engines can't do, with as few engines around it as possible.

    Returns:
        A `TRTModule`, or, if torch runs a part, a `PartitionedModule`; both are called like the
        original.

    Raises:
        BuildError: With every operator that is not supported and where it is called.
        UsageError: If shapes don't fit the inputs, or options don't go together.

    Example:
        >>> model_trt = torch2trt(model.eval(), [torch.ones(1, 3, 224, 224)])  # doctest: +SKIP
    """
    if isinstance(inputs, Dataset):
        lowest, usual, highest = (min_shapes or inputs.min_shapes(),
                                  opt_shapes or inputs.median_numel_shapes(),
                                  max_shapes or inputs.max_shapes())
        min_shapes, opt_shapes, max_shapes = lowest, usual, highest
        if int8_calib_dataset is None:
            int8_calib_dataset = inputs
        inputs = inputs[0]
    args, kwargs = split_call(inputs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    ranges = shape_ranges(leaves, min_shapes, opt_shapes, max_shapes, max_batch_size)
    on = (("fp16", fp16_mode), ("int8", int8_mode), ("bf16", bf16_mode))
    settings = Settings(
        tuple(sorted(name for name, wanted in on if wanted)), optimization_level, threads,
        max_workspace_size, strict_type_constraints,
        device=device_of(leaves) if default_device_type is None else default_device_type,
    )
    given = {i: r for i, r in enumerate(ranges) if r is not None}

    def configure(config: IBuilderConfig, done: Converted) -> None:
        _set_devices(config, dla_core, gpu_fallback, device_types)
        if int8_mode:
            calls = int8_calib_dataset if int8_calib_dataset is not None else [inputs]
            usual = {p: given[p][1] for p in done.inputs if p in given}
            config.int8_calibrator = calibrator(int8_calib_algorithm, calls, done, usual)

    if use_onnx and partition:
        raise UsageError("partition needs torch's own graph; leave out use_onnx")
    if onnx_opset is not None and not use_onnx:
        tell("torch2trt: onnx_opset has no effect without use_onnx")
    if use_onnx:
        builder, record = new_builder(settings, log_level)
        network = builder.create_network(1)
        done, out_spec = _through_onnx(module, args, kwargs, ranges, network, input_names,
                                       output_names, onnx_opset)
        out = build(builder, record, network, done, done.calling(), settings, given,
                    lambda config: configure(config, done))
        out.network = network
    else:
        program = export(module, args, kwargs, ranges)
        out_spec = program.call_spec.out_spec
        out = compile_piece(piece_of(program), settings, given=given,
                            names=(input_names, output_names), partition=partition,
                            configure=configure, level=log_level)
    if isinstance(out, TRTModule):
        out.nest(spec, out_spec)
        out.network = out.network if keep_network else None
        return out
    return PartitionedModule(out, spec, out_spec)


def _through_onnx(module: Any, args: Any, kwargs: Any, ranges: list[Any],
                  network: INetworkDefinition, input_names: Any, output_names: Any,
                  opset: int | None) -> tuple[Converted, Any]:
    from ..parsers.onnx import OnnxParser

    with torch.no_grad():
        result = module(*args, **kwargs)
    flat, out_spec = pytree.tree_flatten(result)
    leaves = pytree.tree_leaves((args, kwargs))
    if kwargs or not all(isinstance(x, torch.Tensor) for x in leaves):
        raise UsageError("use_onnx takes positional tensors only; leave it out for other calls")
    names = list(input_names or [f"input_{i}" for i in range(len(leaves))])
    results = list(output_names or [f"output_{i}" for i in range(len(flat))])
    axes = {n: {i: f"{n}_{i}" for i in varying(r)} for n, r in zip(names, ranges, strict=True)}
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
    return done, out_spec


def _set_devices(config: IBuilderConfig, dla_core: int, fallback: bool,
                 types: Mapping[Any, DeviceType] | None) -> None:
    config.DLA_core = dla_core
    if fallback:
        config.set_flag(BuilderFlag.GPU_FALLBACK)
    others = {d.name for d in (types or {}).values()} - {config.default_device_type.name}
    if others:
        tell(f"torch2trt: device types {sorted(others)} have no effect; all layers run on "
             f"{config.default_device_type.name}")
    if dla_core:
        tell(f"torch2trt: dla_core={dla_core} has no effect: there is no DLA")
