"""`build`: from a model to an engine in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..network.enums import DeviceType
from ..network.enums_build import BuilderFlag
from ..network.network import INetworkDefinition
from ..runtime.easy import Engine, write_atomically
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .builder import Builder
from .config import IBuilderConfig
from .target import why_no_gpu

# Ranges of dimensions the caller says nothing about. Memory is taken as shapes need it, so a
# large maximum costs nothing; kernels are tuned for the middle number.
_LEADING = (1, 1, 1 << 16)
_OTHERS = (1, 64, 1 << 16)


def build(
    model: Any,
    *,
    weights: Any = None,
    shapes: Mapping[str, Any] | None = None,
    fp16: bool = False,
    bf16: bool = False,
    int8: bool = False,
    tf32: bool = True,
    level: int = 3,
    threads: int = 0,
    device: str = "",
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Any = None,
    logger: Any = None,
) -> Engine:
    """Builds a model for this machine.

    Args:
        model: An ONNX file's path, its bytes, or an `INetworkDefinition`; or a Caffe prototxt
            (a path ending in .prototxt, or with ``weights`` any path or bytes), a frozen
            TensorFlow graph (.pb, .pbtxt) or a UFF file (.uff), whose outputs nothing reads.
        weights: The caffemodel of a prototxt (path or bytes); by default the one of the same name
            beside it. Blobs that no layer reads become outputs.
        shapes: For inputs whose shape varies: input name to a shape, or to (min, opt, max) shapes.
            Left out, dimensions may be anything up to 65536.
        fp16, bf16, int8: Types that kernels may use besides those of the network.
        tf32: Whether FP32 contractions on a GPU may round their operands to TF32.
        level: Builder optimization level, 0 to 5.
        threads: Threads the engine uses; 0 means all cores.
        device: ``cpu`` or ``gpu``; "" takes a GPU where one can be used (see ``TACTICIAN_DEVICE``).
        workspace: Most bytes of scratch memory.
        timing_cache: A file of kernel timings to use and to update.
        progress: `IProgressMonitor`.
        logger: `ILogger`; by default warnings go to stderr.

    Returns:
        An `Engine`: ``engine({"x": array})`` gives a dict of output arrays.

    Raises:
        BuildError: If the model can't be imported or built, with every problem found.

    Example:
        >>> import tactician
        >>> engine = tactician.build("model.onnx")  # doctest: +SKIP
        >>> engine({"x": x})["y"]  # doctest: +SKIP
    """
    record = _Record(logger if logger is not None else log.Logger())
    builder = Builder(record)
    builder.max_threads = threads
    network = _network(builder, model, weights, record)
    config = builder.create_builder_config()
    config.builder_optimization_level = level
    config.progress_monitor = progress
    if device:
        config.default_device_type = device_type(device)
    _set_precisions(config, fp16, bf16, int8, tf32)
    if workspace is not None:
        config.max_workspace_size = workspace
    _add_profile(builder, network, config, shapes or {})
    cache = _read_cache(config, timing_cache)
    engine = builder.build_engine_with_config(network, config)
    if engine is None:
        raise BuildError("\n".join(record.errors) or "the network can't be built")
    if cache is not None:
        write_atomically(cache, config.get_timing_cache().serialize())  # type: ignore[union-attr]
    return Engine(engine)


def _set_precisions(
    config: IBuilderConfig, fp16: bool, bf16: bool, int8: bool, tf32: bool
) -> None:
    for on, flag in ((fp16, BuilderFlag.FP16), (bf16, BuilderFlag.BF16), (int8, BuilderFlag.INT8)):
        if on:
            config.set_flag(flag)
    if not tf32:
        config.clear_flag(BuilderFlag.TF32)


def device_type(name: str) -> DeviceType:
    """The `DeviceType` of ``cpu`` or ``gpu`` (``cuda``).

    Raises:
        UsageError: If it is something else, or no GPU can be used.
    """
    types = {"cpu": DeviceType.CPU, "gpu": DeviceType.GPU, "cuda": DeviceType.GPU}
    if name not in types:
        raise UsageError(f"device is {name!r}; it can be 'cpu' or 'gpu'")
    reason = why_no_gpu() if types[name] == DeviceType.GPU else ""
    if reason:
        raise UsageError(f"the engine can't be built for a GPU: {reason}")
    return types[name]


def _network(builder: Builder, model: Any, weights: Any, record: _Record) -> INetworkDefinition:
    """The model as a network, by the front end it is for."""
    if isinstance(model, INetworkDefinition):
        return model
    if weights is not None or _is_prototxt(model):
        return _parse_caffe(builder, model, weights)
    if _suffix(model) == ".uff":
        return _parse_uff(builder, model)
    if _suffix(model) in (".pb", ".pbtxt"):
        return _parse_tensorflow(builder, model, record)
    return _parse(builder, model, record)


class _Record(log.ILogger):
    """Passes messages on and remembers errors."""

    def __init__(self, to: Any):
        super().__init__()
        self.to = to
        self.errors: list[str] = []

    def log(self, severity: log.Severity, msg: str) -> None:
        if severity <= log.Severity.ERROR:
            self.errors.append(msg)
        else:
            self.to.log(severity, msg)


def _parse(builder: Builder, model: Any, record: _Record) -> INetworkDefinition:
    parser_type = import_module("tactician.parsers.onnx").OnnxParser
    network = builder.create_network(1)
    parser = parser_type(network, record)
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise BuildError(f"there is no model file {str(path)!r}")
        ok = parser.parse_from_file(str(path))
    elif isinstance(model, (bytes, bytearray, memoryview)):
        ok = parser.parse(bytes(model))
    elif hasattr(model, "SerializeToString"):
        ok = parser.parse(model.SerializeToString())
    else:
        raise UsageError(
            f"expected a path, bytes, an ONNX model or an INetworkDefinition, got "
            f"{type(model).__name__}"
        )
    if not ok:
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BuildError("the model can't be imported:\n" + "\n".join(problems or record.errors))
    return network


def _parse_caffe(builder: Builder, deploy: Any, weights: Any) -> INetworkDefinition:
    parser = import_module("tactician.parsers.caffe").CaffeParser()
    network = builder.create_network(1)
    if weights is None:
        weights = Path(deploy).with_suffix(".caffemodel")
    read = [_read_bytes(x) for x in (deploy, weights)]
    found = parser.parse_buffer(*read, network)
    if found is None:
        raise BuildError("the model can't be imported:\n" + "\n".join(parser.problems))
    for name in found.results:
        network.mark_output(found.find(name))
    return network


def _parse_tensorflow(builder: Builder, model: Any, record: _Record) -> INetworkDefinition:
    network = builder.create_network(1)
    parser = import_module("tactician.parsers.tensorflow").TensorFlowParser(network, record)
    return _checked(network, parser, parser.parse(model))


def _parse_uff(builder: Builder, model: Any) -> INetworkDefinition:
    network = builder.create_network(1)
    parser = import_module("tactician.parsers.uff").UffParser()
    return _checked(network, parser, parser.parse_as_is(_read_bytes(model), network))


def _checked(network: INetworkDefinition, parser: Any, ok: bool) -> INetworkDefinition:
    if not ok:
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BuildError("the model can't be imported:\n" + "\n".join(problems))
    return network


def _suffix(model: Any) -> str:
    return Path(model).suffix if isinstance(model, (str, os.PathLike)) else ""


def _is_prototxt(model: Any) -> bool:
    return _suffix(model) == ".prototxt"


def _read_bytes(model: Any) -> bytes:
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    path = Path(model)
    if not path.is_file():
        raise BuildError(f"there is no model file {str(path)!r}")
    return path.read_bytes()


def _add_profile(
    builder: Builder, network: INetworkDefinition, config: IBuilderConfig, shapes: Mapping[str, Any]
) -> None:
    inputs = {t.name: t for t in map(network.get_input, range(network.num_inputs)) if t is not None}
    unknown = [n for n in shapes if n not in inputs]
    if unknown:
        raise UsageError(f"shapes name {unknown}, inputs are {list(inputs)}")
    if network.has_implicit_batch_dimension:
        return
    profile = builder.create_optimization_profile()
    for name, t in inputs.items():
        shape = tuple(t.shape)
        if name in shapes:
            profile.set_shape(name, *_triple(shapes[name]))
        elif -1 in shape:
            profile.set_shape(name, *default_range(shape))
    if any(-1 in tuple(t.shape) for t in inputs.values()):
        config.add_optimization_profile(profile)


def default_range(shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Min, opt and max shape of an input that the caller says nothing about."""
    ranges = [(d, d, d) if d >= 0 else _OTHERS if i else _LEADING for i, d in enumerate(shape)]
    return tuple(zip(*ranges, strict=True))


def _triple(given: Any) -> tuple[Any, Any, Any]:
    given = tuple(given)
    if len(given) == 3 and all(hasattr(s, "__len__") for s in given):
        return given
    return given, given, given


def _read_cache(config: IBuilderConfig, path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    file = Path(path)
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if cache is None:
        raise UsageError(f"{file} is no timing cache; name another file or delete this one")
    config.set_timing_cache(cache)
    return file
