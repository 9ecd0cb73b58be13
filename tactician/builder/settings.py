"""What a build is asked to do, as one frozen value.

`IBuilderConfig` produces a `BuildSettings`; `compile_network` consumes it. Nothing below the
builder sees TensorRT's enums.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

Extents = tuple[int, ...]
Range = tuple[Extents, Extents, Extents]

DEFAULT_WORKSPACE = 1 << 34


@dataclass(frozen=True)
class ProfileSettings:
    """One optimization profile.

    Attributes:
        shapes: Input name to (min, opt, max) shapes.
        values: Shape-tensor input name to (min, opt, max) contents.
    """

    shapes: Mapping[str, Range] = field(default_factory=dict)
    values: Mapping[str, Range] = field(default_factory=dict)

    def dim_ranges(self, symbols: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
        """(min, opt, max) of every symbol that stands for an input dimension or element.

        Args:
            symbols: `Graph.symbols`.

        Symbols of inputs that the profile does not name are left out. A symbol that several
        inputs share takes the first one's range (profiles are checked for agreement before).
        """
        out: dict[str, tuple[int, int, int]] = {}
        for name, info in symbols.items():
            table = {"dim": self.shapes, "value": self.values}.get(info.kind, {})
            triple = table.get(info.source)
            if triple is not None and info.index < len(triple[0]):
                lo, opt, hi = (t[info.index] for t in triple)
                out[name] = (lo, opt, hi)
        return out


@dataclass(frozen=True)
class BuildSettings:
    """Everything that steers a build, whole and immutable.

    Attributes:
        target: ``cpu``, ``cuda``, ``reference`` or ``null``.
        gpu: GPU to build for with target ``cuda``: "" (the one here, or ``TACTICIAN_GPU``), a name
            such as ``sm_90``, ``interpreter`` or ``null``; see `targets.cuda.device.make_device`.
        precisions: Element types that kernels may compute in, besides those of the network:
            any of ``f16 bf16 i8 f8 i4 f4``. Ignored for strongly typed networks.
        tf32: Whether FP32 contractions may round their inputs to TF32 (no effect on CPUs).
        strongly_typed: Types are those of the network, exactly.
        precision_constraints: What ``ILayer.precision`` means: ``none`` hints only, ``prefer``,
            or ``obey`` (a layer that can't have its precision fails the build).
        optimization_level: 0 (cost model only) … 5 (everything timed); TensorRT's default is 3.
        avg_timing_iterations, min_timing_iterations: Kept; candidates are timed for a fixed time.
        max_num_tactics: Most candidates timed per region; -1 means the builder decides.
        profiles: Optimization profiles; empty if all inputs are static.
        calibration_profile: The one INT8 calibration uses, if given.
        timing_cache: Text key to entry, read and added to by the autotuner. An entry is a dict
            of JSON values. None: do not reuse or keep timings.
        error_on_cache_miss: Fail the build rather than time anything.
        workspace: Most bytes of scratch memory that a kernel may take; those that need more are
            left out.
        threads: Most threads that kernels are tuned for and engines use; 0 means all cores.
        tactic_sources: Names of sources that may offer tactics; None means all.
        refit: Whether weights can be replaced later: ``none``, ``all``, ``individual`` (those
            marked) or ``identical`` (same values only, so everything may be folded).
        strip_weights: Leave refittable weights out of the plan.
        version_compatible: The plan also carries its network and can rebuild itself.
        hardware_compatible: Code must run on other CPUs of the family (baseline ISA).
        strict_nans: Leave out kernels that may spread a NaN or an infinity (Winograd).
        sparse_weights: Tactics may use structured sparsity.
        verbosity: What the engine keeps for inspection.
        debug: Check values while timing and after every step.
        editable_cache: Log under which key of the timing cache each choice stands.
        progress: ``IProgressMonitor`` or None.
        logger: ``ILogger``; the builder's messages go there.
        calibrator: ``IInt8Calibrator`` or None.
        algorithm_selector: ``IAlgorithmSelector`` or None.
        reject_empty_algorithms: Fail the build where the selector leaves nothing.
        hardware_level: Name of the `HardwareCompatibilityLevel` asked for.
        max_batch_size: For implicit-batch networks only: the most rows of the batch.
    """

    target: str = "cpu"
    gpu: str = ""
    precisions: frozenset[str] = frozenset()
    tf32: bool = True
    strongly_typed: bool = False
    precision_constraints: Literal["none", "prefer", "obey"] = "none"
    optimization_level: int = 3
    avg_timing_iterations: int = 1
    min_timing_iterations: int = 1
    max_num_tactics: int = -1
    profiles: tuple[ProfileSettings, ...] = ()
    calibration_profile: ProfileSettings | None = None
    timing_cache: MutableMapping[str, Any] | None = None
    error_on_cache_miss: bool = False
    workspace: int = DEFAULT_WORKSPACE
    threads: int = 0
    tactic_sources: frozenset[str] | None = None
    refit: Literal["none", "all", "individual", "identical"] = "none"
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    strict_nans: bool = False
    sparse_weights: bool = False
    verbosity: Literal["none", "names", "detailed"] = "names"
    debug: bool = False
    editable_cache: bool = False
    progress: Any = None
    logger: Any = None
    calibrator: Any = None
    algorithm_selector: Any = None
    reject_empty_algorithms: bool = False
    hardware_level: str = "NONE"
    max_batch_size: int = 1
