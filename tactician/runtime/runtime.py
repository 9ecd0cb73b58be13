"""`Runtime`: loads plans."""

from __future__ import annotations

import ctypes
import inspect
import time
from importlib import import_module
from typing import Any

from ..network.enums_build import (
    DLAWorkspaceAllocationStrategy,
    SeekPosition,
    TempfileControlFlag,
)
from ..plan.container import MAGIC
from ..plan.format import read_plan
from ..support import logger as log
from ..support.errors import PlanError, TacticianError
from .core import check_device
from .engine import ICudaEngine
from .report import PLAN, Kept, Reporter

_CHUNK = 1 << 20
_HEADER = 128
_FILES = sum(1 << int(f) for f in TempfileControlFlag)


class Runtime(Reporter):
    """Makes engines from plans.

    Args:
        logger: `ILogger` for messages of the runtime and its engines.

    Attributes:
        DLA_core: -1. Like the other settings below it changes nothing, which is logged.
        max_threads: Threads that engines loaded from now on use; 0: as their plan says.
        temporary_directory, tempfile_control_flags: The runtime writes no temporary files.
        dla_workspace_allocation_strategy: There is no DLA.
        engine_host_code_allowed: Whether plans with machine code of the CPU are loaded; unlike
            TensorRT's it is true at first, since all plans for the CPU have some.
    """

    DLA_core = Kept(-1, "there is no DLA")
    temporary_directory = Kept(None, "the runtime writes no temporary files")
    tempfile_control_flags = Kept(_FILES, "the runtime writes no temporary files")
    dla_workspace_allocation_strategy = Kept(
        DLAWorkspaceAllocationStrategy.SHARED_STATIC, "there is no DLA"
    )
    max_threads: int
    engine_host_code_allowed: bool

    def __init__(self, logger: Any):
        self._log_to = log.set_active(logger)
        self._allocator: Any = None
        self.max_threads = 0
        self.engine_host_code_allowed = True

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    @property
    def logger(self) -> Any:
        return self._log_to

    @property
    def num_DLA_cores(self) -> int:
        return 0

    def _set_allocator(self, allocator: Any) -> None:
        self._allocator = allocator

    gpu_allocator = property(
        None, _set_allocator,
        doc="Write-only: `IGpuAllocator` that gives contexts their memory; None for the system's.",
    )

    def get_plugin_registry(self) -> Any:
        """The process's plugin registry."""
        return import_module("tactician.network.plugins.registry").get_plugin_registry()

    def load_runtime(self, path: str) -> Runtime:
        """A runtime of another version from a library: there is only this one, which a warning
        says."""
        self._warn(f"load_runtime({path!r}): plans are run by this version; the library is ignored")
        return Runtime(self._log_to)

    def deserialize_cuda_engine(
        self, serialized_engine: Any = None, plugin_factory: Any = None, *,
        stream_reader: Any = None, stream_reader_v2: Any = None,
    ) -> ICudaEngine | None:
        """Loads a plan.

        Args:
            serialized_engine: Bytes or another buffer (`IHostMemory`, ``memoryview``, ``mmap``),
                or a stream reader. Read-only buffers are used in place and kept; others copied.
            plugin_factory: `IPluginFactory` that makes plugins without a creator (up to version
                7), or None.
            stream_reader, stream_reader_v2: `IStreamReader` or `IStreamReaderV2`.

        Returns:
            The engine.

        Raises:
            PlanError: If the plan is damaged or for another version or device; the message, which
                is also logged, names what differs.
        """
        source = next(
            (s for s in (serialized_engine, stream_reader, stream_reader_v2) if s is not None), None
        )
        start = time.perf_counter()
        try:
            plan = self._bytes_of(source)
            engine = self._load(plan, plugin_factory)
        except TacticianError as e:
            self._fail(f"deserialize_cuda_engine: {e}", PLAN)
            raise
        took = (time.perf_counter() - start) * 1e3
        log.info(f"Loaded engine {engine.name!r} ({len(plan)} bytes) in {took:.1f} ms",
                 self._log_to)
        return engine

    def _load(self, plan: Any, plugin_factory: Any = None) -> ICudaEngine:
        program = read_plan(plan)
        if plugin_factory is not None:
            from ..network.plugins.runner import make_missing

            make_missing(program.nodes, plugin_factory)
        if program.target == "cpu" and not self.engine_host_code_allowed:
            raise PlanError(
                "the plan holds machine code of the CPU, and engine_host_code_allowed is False"
            )
        kept: Any = plan
        try:
            check_device(program)
        except PlanError as e:
            if program.network is None or not program.settings.get("version_compatible"):
                raise
            self._warn(f"{e}. The plan is version compatible: building it again now")
            # the builder stands above the runtime, so it is looked up only here
            builder = import_module("tactician.builder.rebuild")
            program, kept = builder.rebuild(program), None
        return ICudaEngine(
            program, plan=kept, logger=self._log_to, runtime=self, threads=self.max_threads
        )

    def _bytes_of(self, source: Any) -> Any:
        if source is None:
            raise PlanError("no plan was given")
        if hasattr(source, "seek") and hasattr(source, "read") and not _is_file(source):
            source.seek(0, SeekPosition.SET)
            return _drain(source, 0)
        if hasattr(source, "read") and not _is_file(source):
            return _drain(source)
        if _is_file(source):
            return source.read()
        try:
            view = memoryview(source)
        except TypeError:
            raise PlanError(
                f"{type(source).__name__} is neither a buffer nor a stream reader"
            ) from None
        if view.readonly and view.c_contiguous:
            return source if isinstance(source, bytes) else view.cast("B")
        return view.tobytes()


def _is_file(x: Any) -> bool:
    return hasattr(x, "readable")


def _drain(reader: Any, *rest: int) -> bytes:
    """The plan that a stream reader holds: its header, then exactly as much as that says.

    In TensorRT's Python API a reader is asked for a number of bytes and returns them; the C++ one
    fills the memory whose address it gets and returns a count. The arguments that the user's
    method takes tell which it is.
    """
    count = len(inspect.signature(reader.read).parameters)
    fills = count > 1 + len(rest)
    block = ctypes.create_string_buffer(_CHUNK if fills else 1)
    out = bytearray()
    total = _HEADER
    while len(out) < total:
        want = min(_CHUNK, total - len(out))
        if fills:
            filled = int(reader.read(ctypes.addressof(block), want, *rest))
            got = block.raw[:filled]
        else:
            got = reader.read(want, *rest)
        if not got:
            break
        out += got
        if total == _HEADER and len(out) >= _HEADER and bytes(out[:8]) == MAGIC:
            total = int.from_bytes(out[16:24], "little")
    return bytes(out)
