"""From a network to a `TRTModule`: settings that every entry point shares, and profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..builder.builder import Builder
from ..builder.config import IBuilderConfig
from ..ir import dims as D
from ..network.enums import DeviceType
from ..network.enums_build import BuilderFlag
from ..network.network import INetworkDefinition
from ..runtime.easy import write_atomically
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .calls import Triple, varying
from .lower import Converted
from .module import TRTModule

PRECISIONS = {"fp16": BuilderFlag.FP16, "bf16": BuilderFlag.BF16, "int8": BuilderFlag.INT8,
              "fp8": BuilderFlag.FP8}  # fmt: skip
_TORCH_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8",
                     torch.float8_e4m3fn: "fp8", torch.float32: "fp32"}  # fmt: skip
_MOST = 1 << 16  # of a size that nothing bounds


def precision_name(p: Any) -> str:
    """``fp16`` for ``torch.float16``, ``"fp16"``, `DataType.HALF` and the like.

    Raises:
        UsageError: If it is no type that kernels compute in.
    """
    if isinstance(p, torch.dtype) and p in _TORCH_PRECISIONS:
        return _TORCH_PRECISIONS[p]
    text = str(getattr(p, "name", p)).lower().rpartition(".")[2]
    known = {"f32": "fp32", "float": "fp32", "float32": "fp32", "f16": "fp16", "half": "fp16",
             "float16": "fp16", "bfloat16": "bf16", "i8": "int8", "f8": "fp8"}
    text = known.get(text, text)
    if text not in PRECISIONS and text != "fp32":
        raise UsageError(f"precision {p!r} is none of fp32, {', '.join(PRECISIONS)}")
    return text


@dataclass(frozen=True)
class Settings:
    """How engines are built, whatever the entry point.

    Attributes:
        precisions: Types kernels may use besides the module's own: out of ``fp16 bf16 int8 fp8``.
        optimization_level: Of the builder, 0 to 5.
        threads: Threads engines use; 0 means all cores.
        workspace: Most bytes of scratch memory; None leaves the builder's default.
        strict: Keep to the precisions that layers ask for.
        tf32: FP32 products may round their operands to TF32 where the device has it.
        device: Where engines run.
        refit: Weights can be replaced later.
        version_compatible, hardware_compatible: As the builder's flags of that name.
        timing_cache: A file of kernel timings to use and to update, or "".
    """

    precisions: tuple[str, ...] = ()
    optimization_level: int = 3
    threads: int = 0
    workspace: int | None = None
    strict: bool = False
    tf32: bool = True
    device: DeviceType = DeviceType.CPU
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: str = ""

    @staticmethod
    def precisions_of(given: Iterable[Any]) -> tuple[str, ...]:
        """Sorted names for types in any of the usual notations; FP32 is always allowed."""
        return tuple(sorted({precision_name(p) for p in given} - {"fp32"}))

    def text(self) -> str:
        """The settings for cache keys."""
        return repr(sorted((k, v) for k, v in asdict(self).items() if k != "timing_cache"))

    def apply(self, config: IBuilderConfig) -> None:
        """Sets a builder configuration."""
        config.builder_optimization_level = self.optimization_level
        config.default_device_type = self.device
        for name in self.precisions:
            config.set_flag(PRECISIONS[name])
        flags = ((self.strict, BuilderFlag.OBEY_PRECISION_CONSTRAINTS),
                 (self.refit, BuilderFlag.REFIT),
                 (self.version_compatible, BuilderFlag.VERSION_COMPATIBLE))
        for on, flag in flags:
            if on:
                config.set_flag(flag)
        if not self.tf32:
            config.clear_flag(BuilderFlag.TF32)
        if self.hardware_compatible:
            from ..network.enums_build import HardwareCompatibilityLevel

            config.hardware_compatibility_level = HardwareCompatibilityLevel.AMPERE_PLUS
        if self.workspace is not None:
            config.max_workspace_size = self.workspace


def device_of(leaves: Iterable[Any]) -> DeviceType:
    """The device that a call's tensors lie on.

    Raises:
        UsageError: If it is neither the CPU nor a CUDA device.
    """
    kinds = {x.device.type for x in leaves if isinstance(x, torch.Tensor)}
    if "cuda" in kinds:
        return DeviceType.GPU
    if kinds - {"cpu", "meta"}:
        raise UsageError(f"tensors lie on {sorted(kinds)}; engines run on the CPU and on CUDA "
                         "devices")
    return DeviceType.CPU


class Errors(log.ILogger):
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


def new_builder(settings: Settings, level: log.Severity = log.Severity.WARNING
                ) -> tuple[Builder, Errors]:
    """A builder, and the logger that keeps its errors."""
    record = Errors(log.Logger(level))
    builder = Builder(record)
    builder.max_threads = settings.threads
    return builder, record


def profile_of(network: INetworkDefinition, done: Converted, given: Mapping[int, Triple]
               ) -> dict[str, Triple]:
    """Shapes of each input of a network.

    Args:
        given: Ranges by position among the call's arguments. Dimensions of others go from the
            least to the greatest value of their symbols, and kernels are tuned for the hint.
    """
    out: dict[str, Triple] = {}
    for v, position in zip(network.graph.inputs, done.inputs, strict=True):
        triple = given.get(position) or _by_symbols(network, v, done.hints)
        if len(triple[0]) < v.rank:  # complex: the parts are a dimension of the network's input
            low, opt, high = ((*s, 2) for s in triple)
            triple = low, opt, high
        fixed = [i for i in varying(triple) if isinstance(v.dims[i], int)]
        if fixed:
            log.warning(f"the module works only for the sample's size in dimensions {fixed} of "
                        f"input {v.name!r}; they don't vary")
        low, opt, high = (
            tuple(d if isinstance(d, int) else n for n, d in zip(s, v.dims, strict=True))
            for s in triple
        )
        out[v.name] = (low, opt, high)
    return out


def _by_symbols(network: INetworkDefinition, v: Any, hints: Mapping[str, int]) -> Triple:
    symbols = network.graph.symbols

    def bound(d: D.DimLike, which: int) -> int:
        env = {}
        for s in D.symbols(d):
            info = symbols.get(s)
            low = info.lower if info else 1
            high = info.upper if info and isinstance(info.upper, int) else _MOST
            high = max(min(high, _MOST), low)
            hint = min(max(hints.get(s, low), low), high)
            env[s] = (low, hint, high)[which]
        return D.evaluate(d, env)

    sizes = [sorted(bound(d, k) for k in range(3)) for d in v.dims]
    low, opt, high = (tuple(s[k] for s in sizes) for k in range(3))
    return low, opt, high


def build(builder: Builder, record: Errors, network: INetworkDefinition, done: Converted,
          calling: dict[str, Any], settings: Settings, given: Mapping[int, Triple],
          configure: Callable[[IBuilderConfig], None] | None = None) -> TRTModule:
    """Builds a network into a module.

    Args:
        given: See `profile_of`.
        configure: Changes the configuration before the build.

    Raises:
        BuildError: With every error of the builder.
    """
    config = builder.create_builder_config()
    settings.apply(config)
    if configure is not None:
        configure(config)
    profile = builder.create_optimization_profile()
    dynamic = False
    for v in network.graph.inputs:
        dynamic |= not v.is_static
    for name, triple in profile_of(network, done, given).items():
        profile.set_shape(name, *triple)
    for name, values in done.value_ranges(network).items():
        profile.set_shape_input(name, *values)
        dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    timings = Path(settings.timing_cache) if settings.timing_cache else None
    if timings is not None:
        held = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
        if held is not None:
            config.set_timing_cache(held, ignore_mismatch=True)
    engine = builder.build_engine_with_config(network, config)
    if timings is not None and engine is not None:
        write_atomically(timings, bytes(config.get_timing_cache().serialize()))  # type: ignore[union-attr]
    if engine is None:
        raise BuildError("\n".join(record.errors) or "the network can't be built")
    names = [x for kind, x in done.outputs if kind in ("engine", "complex")]
    return TRTModule(engine, done.input_names, names, calling)
