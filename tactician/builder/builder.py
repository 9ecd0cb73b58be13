"""`Builder`: from networks to plans."""

from __future__ import annotations

import inspect
import time
import traceback
from dataclasses import replace
from typing import Any

from ..network.enums import (
    DeviceType,
    LayerType,
    NetworkDefinitionCreationFlag,
    TensorLocation,
)
from ..network.enums_build import BuilderFlag, ErrorCodeTRT, MemoryPoolType, PreviewFeature
from ..network.network import INetworkDefinition
from ..network.values import IHostMemory
from ..plan.check import check_program
from ..plan.format import write_plan
from ..plan.program import Program
from ..plan.strip import without_weights
from ..runtime.engine import ICudaEngine
from ..support import logger as log
from ..support.errors import TacticianError
from ..support.garbage import rare_collections
from ..targets.cpu.native import equip
from .aux_streams import choose_streams
from .builder_legacy import LegacyBuilder
from .calibration import calibrate, engine_runner, wants_calibration
from .compile import compile_network
from .config import IBuilderConfig
from .debug_tensors import expose, hide
from .profile import IOptimizationProfile, settle_profiles
from .rebuild import UsedTimings, keep_network
from .settings import BuildSettings
from .target import default_device_type, why_no_gpu

# Flags that can't be honoured, with what happens instead.
_UNHONOURED = {
    BuilderFlag.GPU_FALLBACK: "there is no DLA to fall back from",
    BuilderFlag.SPARSE_WEIGHTS: "kernels don't use structured sparsity",
    BuilderFlag.SAFETY_SCOPE: "there is no safety runtime; layers are not restricted",
    BuilderFlag.DIRECT_IO: "inputs and outputs never need reformatting",
    BuilderFlag.EXCLUDE_LEAN_RUNTIME: "plans carry no runtime",
    BuilderFlag.DISABLE_COMPILATION_CACHE: "code is compiled once per build anyhow",
    BuilderFlag.WEIGHT_STREAMING: "a CPU reads weights where they lie",
    BuilderFlag.MONITOR_MEMORY: "memory is planned when the engine is built",
    BuilderFlag.DISTRIBUTIVE_INDEPENDENCE: "kernels are chosen without regard to it",
    BuilderFlag.ENABLE_TACTIC_HEURISTIC: "builder_optimization_level says how much is timed",
    BuilderFlag.DEBUG: "values are not checked after each step; mark tensors with mark_debug",
}
_ONE_CPU = "there is one device, the CPU"
_UNUSED = {  # settings that are kept and change nothing
    "avg_timing_iterations": "each kernel is timed for a fixed time, its best run counts",
    "min_timing_iterations": "each kernel is timed for a fixed time, its best run counts",
    "engine_capability": "there is no DLA and no safety runtime",
    "runtime_platform": "plans are for the platform that builds them",
    "tiling_optimization_level": "tiles are chosen like every other variant of a kernel",
    "l2_limit_for_tiling": "tiles are chosen like every other variant of a kernel",
    "max_aux_streams": "the steps of an engine run one after the other on all threads",
    "profile_stream": "kernels are timed on the builder's own threads",
    "quantization_flags": "calibration sees the network as it is, before fusion",
    "DLA_core": _ONE_CPU,
    "plugins_to_serialize": "plans keep the state of their plugins, not their code",
    "remote_auto_tuning_config": "kernels are timed on this machine",
    "build_route": "there is one way to build",
}
_NO_DLA = "there is no DLA"
_OWN_LIMITS = "kernels keep to what the device has"
_UNUSED_POOLS = {
    MemoryPoolType.DLA_MANAGED_SRAM: _NO_DLA, MemoryPoolType.DLA_LOCAL_DRAM: _NO_DLA,
    MemoryPoolType.DLA_GLOBAL_DRAM: _NO_DLA, MemoryPoolType.TACTIC_DRAM: _OWN_LIMITS,
    MemoryPoolType.TACTIC_SHARED_MEMORY: _OWN_LIMITS,
}  # fmt: skip
_UNUSED_FEATURES = {
    PreviewFeature.MULTIDEVICE_RUNTIME_10_16: "engines run on one device",
    PreviewFeature.FASTER_DYNAMIC_SHAPES_0805: "all shapes are built alike",
    PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805: "use set_tactic_sources",
}
_SHOWN = 10


class Builder(LegacyBuilder):
    """Builds networks into plans and engines.

    Args:
        logger: `ILogger` that gets the builder's messages.

    Attributes:
        error_recorder: `IErrorRecorder` that is told of every error, or None.
        max_threads: Threads that engines use and kernels are tuned for; 0 means all cores.
    """

    error_recorder: Any
    max_threads: int

    def __init__(self, logger: Any):
        self._logger = log.set_active(logger)
        self.error_recorder = None
        self.max_threads = 0
        self._allocator: Any = None
        self._init_legacy()

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    @property
    def logger(self) -> Any:
        return self._logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """An empty network.

        Args:
            flags: Bits of `NetworkDefinitionCreationFlag`.
        """
        return INetworkDefinition(int(flags), self._logger, self)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def reset(self) -> None:
        """Back to the defaults."""
        self.max_threads = 0
        self._init_legacy()

    def get_plugin_registry(self) -> Any:
        """The process's plugin registry."""
        from importlib import import_module

        return import_module("tactician.network.plugins.registry").get_plugin_registry()

    # --- the machine ----------------------------------------------------------------------

    @property
    def platform_has_fast_fp16(self) -> bool:
        """Whether the default device computes in FP16 faster than in FP32: GPUs do, CPUs that have
        FP16 vectors."""
        return _gpu_is_default() or bool(_isa().f16_arith)

    @property
    def platform_has_fast_int8(self) -> bool:
        """Whether the default device has INT8 dot products."""
        return _gpu_is_default() or bool(_isa().int8_dot)

    @property
    def platform_has_tf32(self) -> bool:
        """Whether the default device is a GPU: CPUs compute FP32 contractions in FP32."""
        return _gpu_is_default()

    @property
    def num_DLA_cores(self) -> int:
        return 0

    @property
    def max_DLA_batch_size(self) -> int:
        return 0

    def _set_allocator(self, allocator: Any) -> None:
        self._allocator = allocator

    gpu_allocator = property(
        None, _set_allocator,
        doc="Write-only: kept for engines built with `build_engine_with_config`.",
    )

    # --- building -------------------------------------------------------------------------

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        """Builds a network into a plan.

        Returns:
            The plan, or None if the network can't be built; then the log says why, layer by
            layer.
        """
        program = self._compile(network, config)
        return None if program is None else write_plan(program, IHostMemory)

    def build_serialized_network_to_stream(
        self, network: INetworkDefinition, config: IBuilderConfig, writer: Any
    ) -> bool:
        """Builds a network and gives the plan to an `IStreamWriter`."""
        plan = self.build_serialized_network(network, config)
        if plan is None:
            return False
        wants_size = len(inspect.signature(writer.write).parameters) > 1
        written = writer.write(plan, len(plan)) if wants_size else writer.write(plan)
        if written != len(plan):
            return self._fail(f"the stream writer took {written} of {len(plan)} bytes")
        return True

    def build_engine_with_config(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> ICudaEngine | None:
        """Builds a network into an engine; None (and the log says why) if it can't be built."""
        program = self._compile(network, config)
        if program is None:
            return None
        return ICudaEngine(program, logger=self._logger, runtime=self)

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        """Whether the network would build, as far as its layers and profiles tell."""
        try:
            problems = network.check()
            if not problems:
                graph = network.lower_control()
                settle_profiles(graph, config._profiles, self._batch_of(network))
        except (TacticianError, ValueError) as e:
            problems = [str(e)]
        for p in problems:
            self._fail(p)
        return not problems

    def _fail(self, message: str) -> bool:
        log.error(message, self._logger)
        if self.error_recorder is not None:
            self.error_recorder.report_error(ErrorCodeTRT.INVALID_CONFIG, message)
        return False

    def _compile(self, network: INetworkDefinition, config: IBuilderConfig) -> Program | None:
        start = time.perf_counter()
        try:
            problems = network.check()
            if problems:
                for p in problems:
                    self._fail(p)
                return None
            with rare_collections():
                program, report = self._run_compiler(network, config)
        except (TacticianError, ValueError) as e:
            for line in str(e).splitlines() or [type(e).__name__]:
                self._fail(line)
            return None
        except Exception:
            log.internal_error(
                "the builder failed; this is a defect of tactician:\n" + traceback.format_exc(),
                self._logger,
            )
            if self.error_recorder is not None:
                self.error_recorder.report_error(ErrorCodeTRT.INTERNAL_ERROR, "the builder failed")
            return None
        self._tell(program, report, time.perf_counter() - start)
        return program

    def _run_compiler(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> tuple[Program, Any]:
        graph = network.lower_control()
        profiles = settle_profiles(graph, config._profiles, self._batch_of(network))
        settings = config.settings(
            target=self._target(config),
            strongly_typed=network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED),
            profiles=profiles,
            threads=self.max_threads,
            logger=self._logger,
            max_batch_size=self.max_batch_size,
        )
        self._warn_unhonoured(config, settings)
        if settings.calibrator is not None and wants_calibration(graph, settings):
            implicit = network.has_implicit_batch_dimension
            calibrate(graph, settings, engine_runner(settings), implicit)
        carried = settings.refit != "none" or settings.version_compatible
        timings = UsedTimings(settings.timing_cache)
        if carried:
            settings = replace(settings, timing_cache=timings)
        debug, added = expose(graph)
        progress = Progress(config.progress_monitor)
        try:
            program, report = compile_network(graph, settings, network.name, progress.report)
        finally:
            progress.close()
        hide(program, added)
        program.implicit_batch = self._batch_of(network)
        host = TensorLocation.HOST.value
        program.settings["locations"] = {
            v.name: "host" for v in (*graph.inputs, *graph.outputs)
            if v.meta.get("location") == host
        }
        program.settings["aliases"] = _aliases(network)
        program.settings["debug_tensors"] = tuple(debug)
        program.settings["workspace"] = settings.workspace
        if settings.target == "cuda" and config.get_flag(BuilderFlag.WEIGHT_STREAMING):
            program.settings["weight_streaming"] = True
        program.settings["unfused_debug"] = network._unfused_debug
        if program.target == "cpu":
            equip(program)
        graph.outputs = graph.outputs[: len(graph.outputs) - len(added)]
        check_program(program)
        if settings.optimization_level > 0:
            choose_streams(program, config.max_aux_streams, self._logger)
        if carried:
            only = settings.refit == "individual"
            marked = frozenset(network._refittable) if only else None
            keep_network(program, graph, settings, timings, marked)
        if settings.strip_weights:
            program = self._strip(program)
        return program, report

    def _strip(self, program: Program) -> Program:
        if not program.weights:
            log.warning("STRIP_PLAN has no effect: the network has no weights that could be given "
                        "again", self._logger)
            return program
        return without_weights(program)

    def _batch_of(self, network: INetworkDefinition) -> int:
        return self.max_batch_size if network.has_implicit_batch_dimension else 0

    def _target(self, config: IBuilderConfig) -> str:
        if config.default_device_type == DeviceType.CPU:
            return "cpu"
        reason = why_no_gpu()
        if config.default_device_type != DeviceType.GPU:
            log.warning(f"there is no {config.default_device_type}", self._logger)
        elif reason:
            log.warning(
                f"DeviceType.GPU is not available, the engine is built for the CPU: {reason}",
                self._logger,
            )
        return "cpu" if reason else "cuda"

    def _warn_unhonoured(self, config: IBuilderConfig, settings: BuildSettings) -> None:
        for flag, reason in _UNHONOURED.items():
            if flag == BuilderFlag.WEIGHT_STREAMING and settings.target == "cuda":
                continue  # the runtime streams them
            if config.get_flag(flag):
                log.warning(f"{flag} has no effect: {reason}", self._logger)
        defaults = IBuilderConfig()
        for name, reason in _UNUSED.items():
            if name == "max_aux_streams" and settings.target == "cuda":
                continue  # honoured where it pays, see `aux_streams`
            if getattr(config, name) != getattr(defaults, name):
                log.warning(f"config.{name} has no effect: {reason}", self._logger)
        if any(kind != config.default_device_type for kind in config._devices.values()):
            log.warning(
                "set_device_type has no effect: all layers run on config.default_device_type",
                self._logger,
            )
        for pool, reason in _UNUSED_POOLS.items():
            if config.get_memory_pool_limit(pool) != defaults.get_memory_pool_limit(pool):
                log.warning(f"set_memory_pool_limit({pool}) has no effect: {reason}", self._logger)
        for feature, reason in _UNUSED_FEATURES.items():
            if config.get_preview_feature(feature):
                log.warning(f"{feature} has no effect: {reason}", self._logger)
        for i, profile in enumerate(config._profiles):
            if profile.extra_memory_target != 1.0:
                log.warning(f"extra_memory_target of profile {i} has no effect: contexts take the "
                            "memory that their shapes need", self._logger)

    def _tell(self, program: Program, report: Any, seconds: float) -> None:
        """The log's summary of a build; layers without native code are named."""
        reference = [r for r in getattr(report, "reference", []) if r[1] != "plugin"]
        for name, op, reason in reference[:_SHOWN]:
            why = f": {reason}" if reason else ""
            log.warning(f"layer {name!r} [{op}] runs in numpy, slowly{why}", self._logger)
        if len(reference) > _SHOWN:
            log.warning(f"{len(reference) - _SHOWN} further layers run in numpy", self._logger)
        log.info(
            f"Built {program.name!r} in {seconds:.2f} s: {len(program.steps)} steps, "
            f"{getattr(report, 'measured', 0)} kernels measured, "
            f"{getattr(report, 'cached', 0)} regions from the timing cache", self._logger
        )


class Progress:
    """Tells an `IProgressMonitor` what the compiler reports as (phase, done, total)."""

    def __init__(self, monitor: Any):
        self._monitor = monitor
        self._open: dict[str, int] = {}

    def report(self, phase: str, done: int, total: int) -> bool:
        """Returns False if the monitor wants the build to stop."""
        monitor = self._monitor
        if monitor is None:
            return True
        if phase not in self._open:
            monitor.phase_start(phase, None, total)
            self._open[phase] = 0
        go_on = True
        while self._open[phase] < done and go_on:
            go_on = bool(monitor.step_complete(phase, self._open[phase]))
            self._open[phase] += 1
        if done >= total:
            self._finish(phase)
        return go_on

    def _finish(self, phase: str) -> None:
        del self._open[phase]
        self._monitor.phase_finish(phase)

    def close(self) -> None:
        """Finishes phases that an error or a stop left open."""
        for phase in list(self._open):
            self._finish(phase)


def _aliases(network: INetworkDefinition) -> dict[str, str]:
    """Outputs that are updated caches, with the inputs that hold these."""
    graph, out = network.graph, {}
    for layer in network._layers:
        if layer.type == LayerType.KV_CACHE_UPDATE and layer._outputs:
            cache, updated = layer._inputs[0], layer._outputs[0]
            if any(cache is v for v in graph.inputs) and any(updated is v for v in graph.outputs):
                assert cache is not None
                out[updated.name] = cache.name
    return out


def _gpu_is_default() -> bool:
    """Whether engines are built for a GPU unless told otherwise; all that are supported have TF32
    and fast FP16 and INT8."""
    return default_device_type() == DeviceType.GPU and not why_no_gpu()


def _isa() -> Any:
    from ..targets.cpu.isa import Isa

    return Isa.host()
