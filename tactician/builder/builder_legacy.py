"""The builder of versions 5 to 8: settings are its own attributes, and it makes engines."""

from __future__ import annotations

from typing import Any

from ..network.enums_build import BuilderFlag
from ..network.values import as_int
from ..support.errors import UsageError
from .config import IBuilderConfig


def _flag(flag: BuilderFlag, doc: str) -> Any:
    def get(self: LegacyBuilder) -> bool:
        return self._config.get_flag(flag)

    def set_(self: LegacyBuilder, on: bool) -> None:
        (self._config.set_flag if on else self._config.clear_flag)(flag)

    return property(get, set_, doc=doc)


def _setting(name: str, doc: str) -> Any:
    def get(self: LegacyBuilder) -> Any:
        return getattr(self._config, name)

    def set_(self: LegacyBuilder, value: Any) -> None:
        setattr(self._config, name, value)

    return property(get, set_, doc=doc)


class LegacyBuilder:
    """The part of `Builder` that versions before 8 have.

    Attributes:
        max_batch_size: Largest batch of implicit-batch networks.
    """

    # of Builder
    build_engine_with_config: Any

    def _init_legacy(self) -> None:
        self._config = IBuilderConfig(getattr(self, "_logger", None))
        self._max_batch_size = 1

    @property
    def max_batch_size(self) -> int:
        return self._max_batch_size

    @max_batch_size.setter
    def max_batch_size(self, size: int) -> None:
        size = as_int(size)
        if size < 1:
            raise UsageError(f"max_batch_size must be at least 1, got {size}")
        self._max_batch_size = size

    max_workspace_size = _setting("max_workspace_size", "Most bytes of workspace.")
    average_find_iterations = _setting("avg_timing_iterations", "Measurements averaged per kernel.")
    min_find_iterations = _setting("min_timing_iterations", "Least measurements per kernel.")
    min_timing_iterations = _setting("min_timing_iterations", "Least measurements per kernel.")
    int8_calibrator = _setting("int8_calibrator", "`IInt8Calibrator` or None.")
    fp16_mode = _flag(BuilderFlag.FP16, "Whether kernels may use FP16.")
    int8_mode = _flag(BuilderFlag.INT8, "Whether kernels may use INT8.")
    strict_type_constraints = _flag(BuilderFlag.STRICT_TYPES, "Whether layer precisions bind.")
    refittable = _flag(BuilderFlag.REFIT, "Whether weights can be replaced.")
    debug_sync = _flag(BuilderFlag.DEBUG, "Whether values are checked while timing.")

    def build_cuda_engine(self, network: Any) -> Any:
        """Builds a network with the builder's own settings into an engine, or None."""
        return self.build_engine_with_config(network, self._config)

    def build_engine(self, network: Any, config: Any) -> Any:
        """Builds a network into an engine, or None; see `build_engine_with_config`."""
        return self.build_engine_with_config(network, config)
