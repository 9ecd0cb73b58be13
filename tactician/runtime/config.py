"""`ISerializationConfig` and `IRuntimeConfig`."""

from __future__ import annotations

from ..network.enums_build import ExecutionContextAllocationStrategy, SerializationFlag


class ISerializationConfig:
    """What `ICudaEngine.serialize_with_config` writes.

    Attributes:
        flags: Bits of `SerializationFlag`.
    """

    flags: int

    def __init__(self) -> None:
        self.flags = 0

    def set_flag(self, flag: SerializationFlag) -> bool:
        self.flags |= 1 << int(flag)
        return True

    def clear_flag(self, flag: SerializationFlag) -> bool:
        self.flags &= ~(1 << int(flag))
        return True

    def get_flag(self, flag: SerializationFlag) -> bool:
        return bool(self.flags >> int(flag) & 1)


class IRuntimeConfig:
    """How `ICudaEngine.create_execution_context` makes contexts.

    Attributes:
        num_threads: Threads that runs of the context use; 0: as many as the engine. Not in
            TensorRT.
    """

    num_threads: int

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.num_threads = 0

    def set_execution_context_allocation_strategy(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> None:
        self._strategy = ExecutionContextAllocationStrategy(strategy)

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy
