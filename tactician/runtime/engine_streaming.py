"""`ICudaEngine`'s members about weight streaming."""

from __future__ import annotations

from typing import Any

from ..network.values import as_int
from .report import STATE

_SPARE = 0.9  # of the free device memory is for weights, unless the user says otherwise


class WeightStreaming:
    """Weights that stay in host memory until a kernel needs them: for engines on a GPU that were
    built with `BuilderFlag.WEIGHT_STREAMING`."""

    _core: Any
    _contexts: Any
    _fail: Any
    _budget_v1: int | None = None

    @property
    def streamable_weights_size(self) -> int:
        """Bytes of the weights that can be streamed; 0 if the engine was not built so, or runs on
        the CPU, where weights are used where they lie."""
        return 0 if self._core.gpu is None else int(self._core.gpu.streamable)

    @property
    def weight_streaming_budget_v2(self) -> int:
        """Bytes of device memory for weights that can be streamed. The default is all of them:
        nothing is streamed; 0 streams all. It can be set while the engine has no contexts."""
        return 0 if self._core.gpu is None else int(self._core.gpu.budget)

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if self._limit(as_int(budget), "weight_streaming_budget_v2"):
            self._budget_v1 = None

    def _limit(self, budget: int, what: str) -> bool:
        if not self.streamable_weights_size:
            return bool(self._fail(
                f"{what}: the engine has no weights that can be streamed; build it for a GPU with "
                "BuilderFlag.WEIGHT_STREAMING"))
        if budget < 0:
            return bool(self._fail(f"{what} is {budget}; it can't be negative"))
        if len(self._contexts):
            return bool(self._fail(
                f"{what}: the engine has {len(self._contexts)} execution contexts; set it before "
                "they are made, or after they are gone", STATE))
        if min(budget, self.streamable_weights_size) != self.weight_streaming_budget_v2:
            self._core.gpu.driver.enter()
            self._core.gpu.limit(budget)
        return True

    @property
    def weight_streaming_budget(self) -> int:
        """As up to version 10.0: -1 streams nothing, 0 lets the engine decide by the free memory,
        else bytes of device memory for weights and one context's staging areas, at least
        `minimum_weight_streaming_budget`."""
        if self._budget_v1 is not None:
            return self._budget_v1
        total = self.streamable_weights_size
        return -1 if total and self.weight_streaming_budget_v2 >= total else 0

    @weight_streaming_budget.setter
    def weight_streaming_budget(self, budget: int) -> None:
        budget, least = as_int(budget), self.minimum_weight_streaming_budget
        if budget > 0 and budget < least:
            self._fail(f"weight_streaming_budget is {budget}, less than "
                       f"minimum_weight_streaming_budget, {least}")
            return
        if budget < -1:
            self._fail(f"weight_streaming_budget is {budget}; it can be -1, 0 or greater")
            return
        bytes_ = {-1: self.streamable_weights_size,
                  0: self.get_weight_streaming_automatic_budget()}.get(budget, budget - least)
        if self._limit(bytes_, "weight_streaming_budget"):
            self._budget_v1 = budget

    @property
    def minimum_weight_streaming_budget(self) -> int:
        """The least `weight_streaming_budget`: the staging areas when all is streamed."""
        return 0 if self._core.gpu is None else int(self._core.gpu.scratch(0))

    @property
    def weight_streaming_scratch_memory_size(self) -> int:
        """Bytes of staging areas that each context takes beside `device_memory_size_v2`; 0 if
        nothing is streamed."""
        gpu = self._core.gpu
        return 0 if gpu is None or gpu.streaming is None else int(gpu.streaming.scratch)

    def get_weight_streaming_automatic_budget(self) -> int:
        """What the device's free memory (and what the weights take of it now) leaves for weights,
        but no more than all of them."""
        gpu = self._core.gpu
        if gpu is None or not gpu.streamable:
            return 0
        gpu.driver.enter()
        free = gpu.driver.memory()[0] + gpu.budget
        needed = int(getattr(self, "device_memory_size_v2", 0))
        return int(max(0, min(gpu.streamable, int(free * _SPARE) - needed)))
