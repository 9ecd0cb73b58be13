"""torch_tensorrt's options as `Settings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...network.enums import DeviceType
from ...support.errors import UsageError
from ..cache import EngineCache
from ..engines import Settings
from ..lower import tell
from ..partition import MIN_BLOCK
from .inputs import Device, EngineCapability

# Accepted because programs pass them; what happens instead.
_NO_EFFECT = {
    "assume_dynamic_shape_support": (False, "importers say themselves what they can't do"),
    "sparse_weights": (False, "kernels don't use structured sparsity"),
    "engine_capability": (EngineCapability.STANDARD, "there is no DLA and no safety runtime"),
    "num_avg_timing_iters": (1, "each kernel is timed for a fixed time"),
    "dla_sram_size": (1048576, "there is no DLA"),
    "dla_local_dram_size": (1073741824, "there is no DLA"),
    "dla_global_dram_size": (536870912, "there is no DLA"),
    "truncate_double": (False, "engines compute FP64 as it is"),
    "max_aux_streams": (None, "steps run one after the other"),
    "use_python_runtime": (None, "there is one runtime"),
    "use_fast_partitioner": (True, "there is one partitioner"),
    "enable_experimental_decompositions": (False, "torch's decompositions are used as needed"),
    "lazy_engine_init": (False, "engines are loaded as they are built"),
    "custom_engine_cache": (None, "engines are kept in a folder: engine_cache_dir"),
    "use_explicit_typing": (False, "types are chosen by enabled_precisions"),
    "use_fp32_acc": (False, "FP16 products are always summed in FP32"),
    "refit_identical_engine_weights": (False, "weights are compared as they are set"),
    "strip_engine_weights": (False, "the plan holds its weights"),
    "enable_weight_streaming": (False, "weights lie in memory as a whole"),
    "enable_cross_compile_for_windows": (False, "engines are for this machine"),
    "tiling_optimization_level": ("none", "tiles are chosen like every variant of a kernel"),
    "l2_limit_for_tiling": (-1, "tiles are chosen like every variant of a kernel"),
    "use_distributed_mode_trace": (False, "modules are exported on one device"),
    "offload_module_to_cpu": (False, "weights are shared with the module"),
    "dynamically_allocate_resources": (False, "memory is taken as shapes need it"),
    "enable_autocast": (False, "use torch.autocast around the call"),
    "enable_resource_partitioning": (False, "engines are built within the memory there is"),
    "dryrun": (False, "the builder's log says what became of the module"),
    "debug": (False, "set TACTICIAN_DEBUG instead"),
    "decompose_attention": (False, "attention is one op"),
}


@dataclass(frozen=True)
class CompilationSettings:
    """Options of `compile`, resolved.

    Attributes:
        settings: How engines are built.
        min_block_size: Fewer calls in a row stay in torch.
        torch_executed_ops: Overloads that stay in torch.
        torch_executed_modules: Classes of modules, by name, whose calls stay in torch.
        require_full_compilation: Raise where anything would stay in torch.
        cache: Where engines are kept, or None.
    """

    settings: Settings = field(default_factory=Settings)
    min_block_size: int = MIN_BLOCK
    torch_executed_ops: tuple[str, ...] = ()
    torch_executed_modules: tuple[str, ...] = ()
    require_full_compilation: bool = False
    cache: EngineCache | None = None

    @staticmethod
    def of(given: Mapping[str, Any]) -> CompilationSettings:
        """From torch_tensorrt's keyword arguments.

        Raises:
            UsageError: Naming those that are unknown.
        """
        left = dict(given)
        device = left.pop("device", None)
        refit = not left.pop("immutable_weights", True) or left.pop("make_refittable", False)
        left.pop("make_refittable", None)
        level = left.pop("optimization_level", None)
        left.pop("pass_through_build_failures", None)  # they always raise
        settings = Settings(
            precisions=Settings.precisions_of(left.pop("enabled_precisions", None) or ()),
            optimization_level=3 if level is None else int(level),
            threads=int(left.pop("threads", 0)),
            workspace=left.pop("workspace_size", 0) or None,
            tf32=not left.pop("disable_tf32", False),
            refit=bool(refit),
            version_compatible=bool(left.pop("version_compatible", False)),
            hardware_compatible=bool(left.pop("hardware_compatible", False)),
            timing_cache=str(left.pop("timing_cache_path", None) or ""),
            device=DeviceType.CPU if device is None else Device._from(device).device_type,
        )
        caches = (left.pop("cache_built_engines", False), left.pop("reuse_cached_engines", False))
        folder, most = left.pop("engine_cache_dir", None), left.pop("engine_cache_size", 5 << 30)
        out = CompilationSettings(
            settings,
            int(left.pop("min_block_size", MIN_BLOCK)),
            tuple(map(str, left.pop("torch_executed_ops", None) or ())),
            tuple(_class_name(m) for m in left.pop("torch_executed_modules", None) or ()),
            bool(left.pop("require_full_compilation", False)),
            EngineCache(folder, most) if any(caches) else None,
        )
        for name, (usual, why) in _NO_EFFECT.items():
            value = left.pop(name, usual)
            if value != usual and value is not None:
                tell(f"compile: {name}={value!r} has no effect: {why}")
        if left:
            raise UsageError(f"compile has no options {sorted(left)}")
        return out


def _class_name(m: Any) -> str:
    return m.__name__ if isinstance(m, type) else str(m).rpartition(".")[2]
