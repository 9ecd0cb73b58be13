"""From a model file to a plan or an engine, through the public API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..support.errors import PlanError
from .common import Failure, is_plan, parse_shapes

if TYPE_CHECKING:
    import tactician as trt

PRECISIONS = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8", "fp8": "FP8", "tf32": "TF32"}


@dataclass(frozen=True)
class Options:
    """How to build; every field is an option of `tactician build`.

    Attributes:
        precision: Comma-separated names out of `PRECISIONS` that kernels may use besides FP32.
        shapes, min_shapes, opt_shapes, max_shapes: As the user wrote them.
        arrays: Shapes of the arrays to run with ("" stands for the only input's name); what
            `shapes` says wins.
        level: Builder optimization level, 0 to 5.
        timing_cache: File to read timings from and to write them to.
        threads: 0 means all cores.
        workspace_mb: Most scratch memory in MiB; 0 leaves the default.
        strongly_typed: Types exactly as the model says.
        weights: The caffemodel of a prototxt; None: the one of the same name beside it.
    """

    precision: str = ""
    shapes: str = ""
    min_shapes: str = ""
    opt_shapes: str = ""
    max_shapes: str = ""
    arrays: Mapping[str, Sequence[int]] = field(default_factory=dict)
    level: int = 3
    timing_cache: Path | None = None
    threads: int = 0
    workspace_mb: int = 0
    strongly_typed: bool = False
    weights: Path | None = None


def open_engine(path: Path, options: Options, log: trt.ILogger, quiet: bool) -> trt.ICudaEngine:
    """The engine of a plan file, or of a model that is built first."""
    import tactician as trt

    if is_plan(path):
        data: Any = path.read_bytes()
    else:
        data = build_plan(path, options, log, quiet)
    runtime = trt.Runtime(log)
    if options.threads:
        runtime.max_threads = options.threads
    try:
        engine = runtime.deserialize_cuda_engine(data)
    except PlanError as error:
        raise Failure(f"{path} can't be loaded: {error}") from error
    if engine is None:
        raise Failure(f"{path} can't be loaded:\n" + "\n".join(log.errors))
    return engine


def build_plan(path: Path, options: Options, log: trt.ILogger, quiet: bool) -> trt.IHostMemory:
    """Parse and build a model.

    Args:
        path: An ONNX file, a Caffe prototxt, a frozen TensorFlow graph or a UFF file.
        options: How to build.
        log: Where messages go; has a list `errors`.
        quiet: Show no progress bars.

    Raises:
        Failure: The model can't be parsed or built; the message holds every problem found.
    """
    import tactician as trt

    flags = precision_flags(options.precision)
    builder = trt.Builder(log)
    if options.threads:
        builder.max_threads = options.threads
    network = parse(path, builder, options, log)
    config = configure(builder, network, options)
    for flag in flags:
        config.set_flag(flag)
    if options.timing_cache is not None:
        blob = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        cache = config.create_timing_cache(blob)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise Failure(
                f"{options.timing_cache} is not a timing cache of this machine and version; "
                "name another file or delete this one"
            )
    with progress(quiet) as monitor:
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Failure(f"{path} can't be built:\n" + "\n".join(log.errors))
    if options.timing_cache is not None:
        cache = config.get_timing_cache()
        options.timing_cache.write_bytes(bytes(cache.serialize()))
    return plan


def parse(
    path: Path, builder: trt.Builder, options: Options, log: trt.ILogger
) -> trt.INetworkDefinition:
    """Read an ONNX file, a Caffe prototxt with its weights, a frozen TensorFlow graph or a UFF file
    into a network."""
    import tactician as trt

    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if options.strongly_typed:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    if path.suffix == ".prototxt":
        return parse_caffe(path, options.weights or path.with_suffix(".caffemodel"), network)
    if options.weights is not None:
        raise typer.BadParameter(f"--weights is for Caffe prototxts, {path} is none")
    parser: Any
    if path.suffix == ".uff":
        parser = trt.UffParser()
        ok = parser.parse_as_is(path.read_bytes(), network)
    elif path.suffix in (".pb", ".pbtxt"):
        parser = trt.TensorFlowParser(network, log)
        ok = parser.parse(path)
    else:
        parser = trt.OnnxParser(network, log)
        ok = parser.parse_from_file(str(path))
    if not ok:
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise Failure(f"{path} can't be imported:\n" + "\n".join(problems or log.errors))
    return network


def parse_caffe(path: Path, weights: Path, network: trt.INetworkDefinition) -> Any:
    """Read a Caffe model; blobs that no layer reads become outputs."""
    import tactician as trt

    parser = trt.CaffeParser()
    tensors = parser.parse(str(path), str(weights), network, trt.float32)
    if tensors is None:
        raise Failure(f"{path} can't be imported:\n" + "\n".join(parser.problems))
    for name in tensors.results:
        network.mark_output(tensors.find(name))
    return network


def precision_flags(text: str) -> list[trt.BuilderFlag]:
    """Builder flags for ``fp16,int8`` and the like.

    Raises:
        typer.BadParameter: A name is not known.
    """
    import tactician as trt

    names = [n for n in text.lower().split(",") if n not in ("", "fp32")]
    for name in names:
        if name not in PRECISIONS:
            raise typer.BadParameter(
                f"--precision: {name!r} is none of fp32, {', '.join(PRECISIONS)}"
            )
    return [getattr(trt.BuilderFlag, PRECISIONS[name]) for name in names]


def configure(
    builder: trt.Builder, network: trt.INetworkDefinition, options: Options
) -> trt.IBuilderConfig:
    """Turn options into a builder configuration with at most one profile."""
    import tactician as trt

    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # `inspect` shows it
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    add_profile(builder, network, config, options)
    return config


def add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    options: Options,
) -> None:
    """Give dynamic inputs their ranges, see `complete`."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    names = [t.name for t in inputs]
    every = {
        name: list(shape)
        for given, shape in options.arrays.items()
        for name in ([given] if given else names[:1])
    } | parse_shapes(options.shapes, names)
    texts = {"min": options.min_shapes, "opt": options.opt_shapes, "max": options.max_shapes}
    given = {k: every | parse_shapes(text, names, f"--{k}-shapes") for k, text in texts.items()}
    dynamic = [t for t in inputs if -1 in tuple(t.shape)]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        wanted = [given[kind].get(tensor.name) for kind in ("min", "opt", "max")]
        profile.set_shape(tensor.name, *complete(tensor.name, list(tensor.shape), wanted))
    config.add_optimization_profile(profile)


def complete(
    name: str, shape: list[int], given: list[list[int] | None]
) -> tuple[Sequence[int], ...]:
    """Fill in the shapes of a range that the user left out, and check the others.

    A missing opt is the max, a missing min has 1 in dynamic places, a missing max is the opt.
    With nothing given the dimensions may be anything up to 65536.
    """
    from ..builder.easy import default_range

    for dims in filter(None, given):
        fits = len(dims) == len(shape)
        if not fits or any(w not in (-1, d) for w, d in zip(shape, dims, strict=True)):
            raise typer.BadParameter(f"input {name!r} has shape {shape}, which {dims} does not fit")
    low, opt, high = given
    if not (low or opt or high):
        return default_range(shape)
    opt = opt or high or low or shape
    high = high or opt
    low = low or [1 if d == -1 else d for d in shape]
    if any(not a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise typer.BadParameter(
            f"input {name!r}: need min <= opt <= max in every dimension, got {low}, {opt}, {high}"
        )
    return low, opt, high


def progress(quiet: bool) -> Any:
    """A context that gives an `IProgressMonitor` drawing bars on standard error, or None."""
    from .common import console

    err = console(stderr=True)
    if quiet or not err.is_terminal:
        return nullcontext(None)
    from .progress import Bars

    return Bars(err)
