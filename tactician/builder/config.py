"""`IBuilderConfig`: how a network is to be built."""

from __future__ import annotations

from typing import Any

from ..network.enums import DeviceType
from ..network.enums_build import (
    BuilderFlag,
    EngineCapability,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    PreviewFeature,
    ProfilingVerbosity,
    QuantizationFlag,
    RuntimePlatform,
    TacticSource,
    TilingOptimizationLevel,
)
from ..network.values import as_int
from ..support import knobs
from ..support import logger as log
from ..support.errors import UsageError
from .profile import IOptimizationProfile
from .settings import DEFAULT_WORKSPACE, BuildSettings, ProfileSettings
from .target import default_device_type
from .timing_cache import ITimingCache

_ALL_SOURCES = sum(1 << int(s) for s in TacticSource)
_POOLS = {
    MemoryPoolType.WORKSPACE: DEFAULT_WORKSPACE,
    MemoryPoolType.DLA_MANAGED_SRAM: 0,
    MemoryPoolType.DLA_LOCAL_DRAM: 1 << 30,
    MemoryPoolType.DLA_GLOBAL_DRAM: 1 << 29,
    MemoryPoolType.TACTIC_DRAM: 1 << 34,
    MemoryPoolType.TACTIC_SHARED_MEMORY: 1 << 30,
}
_PRECISIONS = {
    BuilderFlag.FP16: "f16", BuilderFlag.BF16: "bf16", BuilderFlag.INT8: "i8",
    BuilderFlag.FP8: "f8", BuilderFlag.INT4: "i4", BuilderFlag.FP4: "f4",
}  # fmt: skip


class IBuilderConfig:
    """Settings of a build. Made by `Builder.create_builder_config`.

    What can't be honoured is accepted, so that programs run, and `Builder` logs it.

    Attributes:
        flags: Bits of `BuilderFlag`.
        quantization_flags: Bits of `QuantizationFlag`.
        avg_timing_iterations, min_timing_iterations: Kept; each kernel is timed for a fixed time.
        max_num_tactics: Most kernels timed per region; -1 leaves it to the builder.
        default_device_type: Where layers run; `DeviceType.GPU` where one can be used (or
            ``TACTICIAN_DEVICE`` says so), else `DeviceType.CPU`.
        num_threads: Threads that kernels are tuned for and engines use; 0: the builder's
            `max_threads`, or else the physical cores that the process may use (affinity and control
            group counted). Not in TensorRT.
        int8_calibrator: `IInt8Calibrator` or None.
        algorithm_selector: `IAlgorithmSelector` or None.
        progress_monitor: `IProgressMonitor` or None.
        profiling_verbosity: What the engine keeps for inspection.
        engine_capability, hardware_compatibility_level, runtime_platform: Restrictions.
        tiling_optimization_level, l2_limit_for_tiling, max_aux_streams, profile_stream, DLA_core,
            plugins_to_serialize, remote_auto_tuning_config, build_route: Kept; the CPU target has
            no use for them.
    """

    flags: int
    quantization_flags: int
    avg_timing_iterations: int
    min_timing_iterations: int
    max_num_tactics: int
    default_device_type: DeviceType
    engine_capability: EngineCapability
    hardware_compatibility_level: HardwareCompatibilityLevel
    runtime_platform: RuntimePlatform
    profiling_verbosity: ProfilingVerbosity
    tiling_optimization_level: TilingOptimizationLevel
    l2_limit_for_tiling: int
    max_aux_streams: int
    num_threads: int
    profile_stream: int
    DLA_core: int
    plugins_to_serialize: list[str]
    remote_auto_tuning_config: str
    build_route: str
    int8_calibrator: Any
    algorithm_selector: Any
    progress_monitor: Any

    def __init__(self, logger: log.ILogger | None = None):
        self._logger = logger
        self.reset()

    def __enter__(self) -> IBuilderConfig:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    def reset(self) -> None:
        """Back to the defaults."""
        self.flags = 1 << int(BuilderFlag.TF32)
        self.quantization_flags = 0
        self.avg_timing_iterations = 1
        self.min_timing_iterations = 1
        self.max_num_tactics = -1
        self.default_device_type = default_device_type()
        self.engine_capability = EngineCapability.STANDARD
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.runtime_platform = RuntimePlatform.SAME_AS_BUILD
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.tiling_optimization_level = TilingOptimizationLevel.NONE
        self.l2_limit_for_tiling = -1
        self.max_aux_streams = -1
        self.num_threads = 0
        self.profile_stream = 0
        self.DLA_core = -1
        self.plugins_to_serialize = []
        self.remote_auto_tuning_config = ""
        self.build_route = ""
        self.int8_calibrator = None
        self.algorithm_selector = None
        self.progress_monitor = None
        self._level = knobs.optimization_level()
        self._pools = dict(_POOLS)
        self._profiles: list[IOptimizationProfile] = []
        self._calibration_profile: IOptimizationProfile | None = None
        self._timing_cache: ITimingCache | None = None
        self._sources = _ALL_SOURCES
        self._preview: set[PreviewFeature] = set()
        self._devices: dict[Any, DeviceType] = {}

    # --- flags ----------------------------------------------------------------------------

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: BuilderFlag) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def set_quantization_flag(self, flag: QuantizationFlag) -> None:
        self.quantization_flags |= 1 << int(flag)

    def clear_quantization_flag(self, flag: QuantizationFlag) -> None:
        self.quantization_flags &= ~(1 << int(flag))

    def get_quantization_flag(self, flag: QuantizationFlag) -> bool:
        return bool(self.quantization_flags >> int(flag) & 1)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        """Switches a preview feature. Plugins may always alias inputs, profiles share inputs, and
        memory follows shapes, whether these are on or not; the builder logs what has no effect."""
        (self._preview.add if enable else self._preview.discard)(PreviewFeature(feature))

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        return PreviewFeature(feature) in self._preview

    @property
    def builder_optimization_level(self) -> int:
        """0 (no timing, about a second) … 5 (everything timed); 3 unless set here or by
        ``TACTICIAN_OPTIMIZATION_LEVEL``."""
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        level = as_int(level)
        if not 0 <= level <= 5:
            raise UsageError(f"builder_optimization_level goes from 0 to 5, got {level}")
        self._level = level

    # --- memory and sources ---------------------------------------------------------------

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """Most bytes of a kind of memory.

        Raises:
            UsageError: If the size is negative.
        """
        size = as_int(pool_size)
        if size < 0:
            raise UsageError(f"set_memory_pool_limit({pool}): negative size {size}")
        self._pools[MemoryPoolType(pool)] = size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._pools[MemoryPoolType(pool)]

    @property
    def max_workspace_size(self) -> int:
        """The `MemoryPoolType.WORKSPACE` limit, as versions 7 to 9 call it."""
        return self._pools[MemoryPoolType.WORKSPACE]

    @max_workspace_size.setter
    def max_workspace_size(self, size: int) -> None:
        self.set_memory_pool_limit(MemoryPoolType.WORKSPACE, size)

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        """Bits of `TacticSource` that may offer kernels."""
        self._sources = as_int(tactic_sources)
        return True

    def get_tactic_sources(self) -> int:
        return self._sources

    # --- profiles -------------------------------------------------------------------------

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Adds a profile and returns its index. It is checked when the engine is built."""
        if not isinstance(profile, IOptimizationProfile):
            raise TypeError(
                f"expected an IOptimizationProfile, got {type(profile).__name__}; make one with "
                "builder.create_optimization_profile()"
            )
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        """The profile whose ``opt`` shapes calibration runs with."""
        self._calibration_profile = profile
        return True

    def get_calibration_profile(self) -> IOptimizationProfile | None:
        return self._calibration_profile

    # --- timing cache ---------------------------------------------------------------------

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        """A timing cache from bytes (empty: a new one); None (and an error is logged) if the
        bytes are something else."""
        try:
            return ITimingCache.load(serialized_timing_cache)
        except UsageError as e:
            log.error(f"create_timing_cache: {e}", self._logger)
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool = False) -> bool:
        """The cache that builds read and fill. Entries name their device, so a cache of another
        machine never misleads."""
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        """The cache that was set, or the one builds with this configuration made."""
        return self._timing_cache

    # --- devices --------------------------------------------------------------------------

    def set_device_type(self, layer: Any, device_type: DeviceType) -> None:
        self._devices[layer] = DeviceType(device_type)

    def get_device_type(self, layer: Any) -> DeviceType:
        return self._devices.get(layer, self.default_device_type)

    def is_device_type_set(self, layer: Any) -> bool:
        return layer in self._devices

    def reset_device_type(self, layer: Any) -> None:
        self._devices.pop(layer, None)

    def can_run_on_DLA(self, layer: Any) -> bool:
        """False: there is no DLA."""
        return False

    @property
    def all_build_routes(self) -> list[str]:
        """Names of build routes; there is one way to build."""
        return []

    # --- for the builder ------------------------------------------------------------------

    def settings(self, **more: Any) -> BuildSettings:
        """What `compile_network` takes; keyword arguments override."""
        on = self.get_flag
        constraints = "obey" if on(BuilderFlag.OBEY_PRECISION_CONSTRAINTS) or on(
            BuilderFlag.STRICT_TYPES
        ) else "prefer" if on(BuilderFlag.PREFER_PRECISION_CONSTRAINTS) else "none"
        if self._timing_cache is None and not on(BuilderFlag.DISABLE_TIMING_CACHE):
            self._timing_cache = ITimingCache()
        cache = None if on(BuilderFlag.DISABLE_TIMING_CACHE) else self._timing_cache
        sources = None if self._sources & _ALL_SOURCES == _ALL_SOURCES else frozenset(
            s.name for s in TacticSource if self._sources >> int(s) & 1
        )
        calibration = self._calibration_profile
        values: dict[str, Any] = {
            "precisions": frozenset(name for flag, name in _PRECISIONS.items() if on(flag)),
            "tf32": on(BuilderFlag.TF32) and not knobs.no_tf32(),
            "precision_constraints": constraints,
            "optimization_level": self._level,
            "avg_timing_iterations": self.avg_timing_iterations,
            "min_timing_iterations": self.min_timing_iterations,
            "max_num_tactics": self.max_num_tactics,
            "calibration_profile": None if calibration is None else ProfileSettings(
                dict(calibration._shapes), dict(calibration._values)
            ),
            "timing_cache": None if cache is None else cache.entries,
            "error_on_cache_miss": on(BuilderFlag.ERROR_ON_TIMING_CACHE_MISS),
            "workspace": self._pools[MemoryPoolType.WORKSPACE],
            "tactic_sources": sources,
            "refit": self._refit(),
            "strip_weights": on(BuilderFlag.STRIP_PLAN),
            "version_compatible": on(BuilderFlag.VERSION_COMPATIBLE),
            "hardware_compatible":
                self.hardware_compatibility_level != HardwareCompatibilityLevel.NONE,
            "strict_nans": on(BuilderFlag.STRICT_NANS),
            "sparse_weights": on(BuilderFlag.SPARSE_WEIGHTS),
            "verbosity": {
                ProfilingVerbosity.NONE: "none", ProfilingVerbosity.DETAILED: "detailed",
            }.get(self.profiling_verbosity, "names"),
            "debug": on(BuilderFlag.DEBUG),
            "editable_cache": on(BuilderFlag.EDITABLE_TIMING_CACHE),
            "progress": self.progress_monitor,
            "calibrator": self.int8_calibrator,
            "algorithm_selector": self.algorithm_selector,
            "reject_empty_algorithms": on(BuilderFlag.REJECT_EMPTY_ALGORITHMS),
            "hardware_level": self.hardware_compatibility_level.name,
        }  # fmt: skip
        if self.num_threads:
            more["threads"] = self.num_threads
        return BuildSettings(**(values | more))

    def _refit(self) -> str:
        for flag, name in (
            (BuilderFlag.REFIT_INDIVIDUAL, "individual"),
            (BuilderFlag.REFIT_IDENTICAL, "identical"),
            (BuilderFlag.STRIP_PLAN, "identical"), (BuilderFlag.REFIT, "all"),
        ):
            if self.get_flag(flag):
                return name
        return "none"
