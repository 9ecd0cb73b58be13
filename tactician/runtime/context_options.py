"""What can be hung on an execution context: profilers, listeners, allocators, events, memory."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..memory.arena import alignment_for
from ..network.enums import TensorLocation, from_ir
from ..network.enums_build import ProfilingVerbosity
from ..network.values import Dims, as_int
from ..support.errors import ExecutionError, UsageError
from .buffers import Array
from .report import Kept
from .streams import event_of, stream_of


class ContextOptions:
    """Part of `IExecutionContext`.

    Attributes:
        name: Stands in the context's error messages.
        enqueue_emits_profile: Whether every run reports to the profiler; else `report_to_profiler`
            does for the last one.
        debug_sync: Wait after every step, so that errors name their layer (GPUs; elsewhere they
            do anyhow).
        nvtx_verbosity, persistent_cache_limit: Without effect, which is logged.
        temporary_allocator: Gives the memory of tensors whose sizes a run finds, on the CPU.
        unfused_tensors_debug_state: Whether debug tensors that weren't fused away are shown.
    """

    name: str
    enqueue_emits_profile: bool
    debug_sync: bool
    nvtx_verbosity = Kept(ProfilingVerbosity.LAYER_NAMES_ONLY, "there are no NVTX ranges")
    persistent_cache_limit = Kept(0, "no cache is set aside")

    # of IExecutionContext
    _core: Any
    _engine: Any
    _fail: Any
    _warn: Any
    _invalidate: Any
    _tensor: Any
    _require_schedule: Any
    _stream_now: Any
    _arena: Any
    _current: Any
    _ran: Any
    _addresses: Any
    _checked: Any
    _user_memory: Any
    _schedules: Any
    _running: Any
    _threads: int

    def _init_options(self) -> None:
        self.name = ""
        self.enqueue_emits_profile = True
        self.debug_sync = False
        self._temporary: Any = None
        self._profiler: Any = None
        self._times: list[float] = []
        self._allocators: dict[int, Any] = {}
        self._listener: Any = None
        self._debug: set[str] = set()
        self._consumed: Any = None
        self._borrowed: list[tuple[Any, int]] = []
        weakref.finalize(self, _give_back, self._borrowed)
        self._stream_now = None
        self._unfused_debug = False
        self._slow = False

    def _weigh(self) -> None:
        """Whether runs need more than the native call."""
        self._slow = bool(
            self._profiler is not None or self._allocators or self._core.info.value_inputs
        )

    # --- threads --------------------------------------------------------------------------

    @property
    def num_threads(self) -> int:
        """Threads that runs of this context use, the caller's included; setting it to 0 goes back
        to the engine's number. All contexts share one pool, so more contexts never mean more
        threads. Not in TensorRT.

        Raises:
            UsageError: If it is negative.
        """
        return int(self._threads or self._core.threads)

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        count = as_int(count)
        if count < 0:
            raise UsageError(f"num_threads is {count}; give the number of threads, or 0")
        if self._core.gpu is not None and count:
            self._warn("num_threads has no effect: the engine runs on a GPU")
        with self._running:
            self._threads = count
            self._schedules.clear()
            self._invalidate()

    # --- profiling ------------------------------------------------------------------------

    @property
    def profiler(self) -> Any:
        """`IProfiler` that gets the time of every step, or None."""
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: Any) -> None:
        self._profiler = profiler
        self._weigh()

    def _take_times(self, times: list[float]) -> None:
        self._times = times
        if self.enqueue_emits_profile:
            self.report_to_profiler()

    def report_to_profiler(self) -> bool:
        """Tells the profiler the times of the last run, in milliseconds per layer."""
        if self._profiler is None or not self._times:
            return self._fail("report_to_profiler: set a profiler and run first")
        for step, ms in zip(self._core.program.steps, self._times, strict=True):
            self._profiler.report_layer_time(step.name, ms)
        self._times = []
        return True

    # --- output allocators ----------------------------------------------------------------

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        """An `IOutputAllocator` gives the memory of an output once its size is known. None
        takes it away."""
        t = self._tensor(name, "set_output_allocator", is_input=False)
        if t is None:
            return False
        if output_allocator is None:
            self._allocators.pop(t.id, None)
        else:
            self._allocators[t.id] = output_allocator
        self._invalidate()
        self._weigh()
        return True

    def get_output_allocator(self, name: str) -> Any:
        t = self._tensor(name, "get_output_allocator", is_input=False)
        return self._allocators.get(t.id) if t else None

    def _ask_allocator(self, i: int, nbytes: int) -> int:
        """Memory for an output from its allocator.

        Raises:
            ExecutionError: If it gives none.
        """
        name = self._core.program.tensors[i].name
        allocator, old = self._allocators[i], self._addresses[i]
        stream = getattr(self._stream_now, "handle", self._stream_now) or 0
        asynchronous = getattr(allocator, "reallocate_output_async", None)
        plain = getattr(allocator, "reallocate_output", None)
        alignment = alignment_for(self._core.program.target)
        address = None
        if _is_own(allocator, "reallocate_output_async") or plain is None:
            address = asynchronous(name, old, nbytes, alignment, stream) if asynchronous else None
        else:
            address = plain(name, old, nbytes, alignment)
        if not address and nbytes:
            raise ExecutionError(
                f"the output allocator gave no memory for {name!r} ({nbytes} bytes)"
            )
        return int(address or 0)

    def get_max_output_size(self, name: str) -> int:
        """Most bytes an output can take with the current input shapes; -1 (and an error is
        logged) if shapes are missing or nothing bounds it."""
        t = self._tensor(name, "get_max_output_size", is_input=False)
        if t is None:
            return -1
        try:
            layout = self._require_schedule().layout
        except ExecutionError as e:
            self._fail(f"get_max_output_size: {e}")
            return -1
        if layout.nbytes[t.id] >= 0:
            return int(layout.nbytes[t.id])
        bound = self._bounds(layout.known.fork())
        shape = bound.all(self._core.program.tensors[t.id].shape)
        if shape is None:
            self._fail(f"get_max_output_size: nothing bounds the size of {name!r}")
            return -1
        return int(np.prod(shape, dtype=np.int64)) * int(t.ir.size)

    def _bounds(self, known: Any) -> Any:
        """Data symbols at their upper bounds, as far as these are known."""
        symbols = self._core.program.symbols
        todo = [n for n in self._core.info.data_symbols if symbols[n].upper is not None]
        for _ in range(len(todo)):
            for n in todo:
                value = known.get(symbols[n].upper)
                if n not in known.env and value is not None:
                    known.learn(n, value)
        return known

    # --- memory of allocators -------------------------------------------------------------

    @property
    def temporary_allocator(self) -> Any:
        """`IGpuAllocator` for tensors whose sizes a run finds, or None for the system's memory."""
        return self._temporary

    @temporary_allocator.setter
    def temporary_allocator(self, allocator: Any) -> None:
        if allocator is not None and self._core.on_gpu:
            self._warn("IExecutionContext.temporary_allocator has no effect on a GPU: its memory "
                       "comes from the driver's pool")
        self._temporary = allocator
        self._schedules.clear()
        self._invalidate()

    def _take_temporary(self, nbytes: int) -> int:
        return self._borrow(self._temporary, max(nbytes, 1))

    def _borrow(self, allocator: Any, nbytes: int) -> int:
        """Memory from a program's allocator, which gets it back when the context ends.

        Raises:
            ExecutionError: If it gives none, or at a wrong alignment.
        """
        alignment = alignment_for(self._core.program.target)
        address = allocator.allocate(nbytes, alignment, 0)
        if not address or int(address) % alignment:
            raise ExecutionError(
                f"the allocator gave {address!r} for {nbytes} bytes; it must give an address "
                f"that is a multiple of {alignment}"
            )
        self._borrowed.append((allocator, int(address)))
        return int(address)

    # --- debug tensors --------------------------------------------------------------------

    def set_debug_listener(self, listener: Any) -> bool:
        """An `IDebugListener` that is shown debug tensors as soon as they are computed."""
        self._listener = listener
        self._invalidate()
        return True

    def get_debug_listener(self) -> Any:
        return self._listener

    def set_tensor_debug_state(self, name: str, flag: bool) -> bool:
        """Switches the showing of one debug tensor (see `INetworkDefinition.mark_debug`)."""
        if name not in self._engine._debug_tensors():
            return self._fail(f"set_tensor_debug_state: {name!r} is no debug tensor of the engine")
        (self._debug.add if flag else self._debug.discard)(name)
        self._invalidate()
        return True

    def set_all_tensors_debug_state(self, flag: bool) -> bool:
        self._debug = set(self._engine._debug_tensors()) if flag else set()
        self._invalidate()
        return True

    def get_debug_state(self, name: str) -> bool:
        return name in self._debug

    @property
    def unfused_tensors_debug_state(self) -> bool:
        return self._unfused_debug

    @unfused_tensors_debug_state.setter
    def unfused_tensors_debug_state(self, flag: bool) -> None:
        self.set_unfused_tensors_debug_state(flag)

    def get_unfused_tensors_debug_state(self) -> bool:
        return self._unfused_debug

    def set_unfused_tensors_debug_state(self, flag: bool) -> bool:
        """Shows the listener every tensor that fusion left. The network must have been built with
        `INetworkDefinition.mark_unfused_tensors_as_debug_tensors`."""
        if flag and not self._core.program.settings.get("unfused_debug"):
            return self._fail(
                "unfused_tensors_debug_state: the network was built without "
                "mark_unfused_tensors_as_debug_tensors()"
            )
        self._unfused_debug = bool(flag)
        self._invalidate()
        return True

    def _watched(self) -> tuple[int, ...]:
        """Tensors that the listener wants to see."""
        if self._listener is None:
            return ()
        if self._unfused_debug:
            tensors = enumerate(self._core.program.tensors)
            return tuple(i for i, t in tensors if t.kind in ("arena", "dynamic", "view"))
        known = self._engine._debug_tensors()
        return tuple(sorted(known[n] for n in self._debug))

    def _show_debug(self, i: int, array: Array) -> None:
        tensor = self._core.program.tensors[i]
        stream = getattr(self._stream_now, "handle", self._stream_now) or 0
        place = TensorLocation.HOST if self._core.on_gpu else TensorLocation.DEVICE
        self._listener.process_debug_tensor(
            int(array.ctypes.data), place, from_ir(tensor.dtype),
            Dims(array.shape), tensor.name, stream,
        )

    # --- events and streams ---------------------------------------------------------------

    def set_input_consumed_event(self, event: int) -> bool:
        """An event (its handle) to record when a run has read its inputs; 0 for none."""
        try:
            if self._core.on_gpu:
                self._consumed = int(event) or None
            else:
                self._consumed = event_of(event) if event else None
        except (UsageError, TypeError) as e:
            return self._fail(f"set_input_consumed_event: {e}")
        return True

    def get_input_consumed_event(self) -> int:
        return getattr(self._consumed, "handle", self._consumed) or 0

    def set_aux_streams(self, aux_streams: list[int]) -> None:
        """Checks the handles. They get no work: on a GPU branches are part of a CUDA graph, on the
        CPU they run on the thread pool.

        Raises:
            UsageError: If a handle belongs to no stream.
        """
        if not self._core.on_gpu:
            for handle in aux_streams:
                stream_of(handle)

    def set_communicator(self, communicator: Any) -> bool:
        """Multi-device engines only; logs that there is none."""
        return self._fail("set_communicator: the CPU target has no multi-device engines")

    # --- memory ---------------------------------------------------------------------------

    def set_device_memory(self, memory: int, size: int) -> None:
        """Gives the context its memory; for contexts made without.

        Raises:
            UsageError: If it is not aligned to 64 bytes or smaller than the engine needs.
        """
        alignment = alignment_for(self._core.program.target)
        if int(memory) % alignment:
            raise UsageError(
                f"device memory at {int(memory):#x} is not aligned to {alignment} bytes"
            )
        if not self._user_memory:
            raise UsageError(
                "the context has its own memory; create it with "
                "create_execution_context_without_device_memory() to give it yours"
            )
        self._arena, self._arena_at, self._arena_size = None, int(memory), int(size)
        self._schedules.clear()
        self._invalidate()

    def _set_device_memory(self, memory: int) -> None:
        self.set_device_memory(memory, self._engine.device_memory_size)

    device_memory = property(
        None, _set_device_memory,
        doc="Write-only: address of `ICudaEngine.device_memory_size` bytes.",
    )

    def update_device_memory_size_for_shapes(self) -> int:
        """Bytes of memory the current input shapes need; 0 (and logs) if shapes are missing."""
        held = self._arena_size
        try:
            if self._user_memory:
                self._arena_size = 1 << 62
            return int(self._require_schedule().layout.arena)
        except ExecutionError as e:
            self._fail(f"update_device_memory_size_for_shapes: {e}")
            return 0
        finally:
            if self._user_memory:
                self._arena_size = held
                self._schedules.clear()
                self._invalidate()


def _give_back(borrowed: list[tuple[Any, int]]) -> None:
    for allocator, address in borrowed:
        (getattr(allocator, "deallocate", None) or allocator.free)(address)


def _is_own(obj: Any, method: str) -> bool:
    """Whether a user's class defines the method itself (not the interface's base class)."""
    for cls in type(obj).__mro__:
        if method in vars(cls):
            return not cls.__module__.startswith("tactician.network")
    return False
