"""`IExecutionContext`: one caller's state of an engine, and the running of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..network.enums_build import ExecutionContextAllocationStrategy
from ..network.values import Dims, as_int
from ..support.errors import ExecutionError, UsageError
from . import streams
from .buffers import array_at, weakly
from .config import IRuntimeConfig
from .context_legacy import BindingsContextApi
from .context_options import ContextOptions
from .engine import ICudaEngine, IoTensor
from .layout import Extents
from .report import FAILED, INVALID, STATE, Reporter
from .schedule import Schedule
from .streams import Stream, default_stream_barrier, event_of, stream_of

_SCHEDULES = 16


class IExecutionContext(BindingsContextApi, ContextOptions, Reporter):
    """Runs an engine. Made by `ICudaEngine.create_execution_context`.

    Contexts of one engine are independent: each may run on a thread or stream of its own. One
    context runs one inference at a time; calls from several threads wait for each other.
    Methods log errors and return False, as TensorRT's do; what fails while running raises
    `ExecutionError`, asynchronously at ``stream.synchronize()``.
    """

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig):
        self._engine = engine
        self._core = engine._core
        self._log_to = engine._log_to
        self._config = config
        self._lock = threading.RLock()  # shapes, addresses, schedules; held shortly
        self._running = threading.Lock()  # tables and memory; held while a run lasts
        self._graph: Any = None  # what does the whole run, while nothing changes
        self._take_tensors()
        self._profile_index = 0
        self._shapes: dict[int, Extents | None] = {}
        self._values: dict[int, Extents] = {}
        self._addresses: dict[int, int] = dict.fromkeys(self._ids, 0)
        self._schedules: OrderedDict[Any, Schedule] = OrderedDict()
        self._current: Schedule | None = None
        self._ran: Schedule | None = None
        self._bound: list[Any] | None = None
        self._checked = False
        self._arena: Any = None
        self._arena_at = 0
        self._arena_size = 0
        self._user_memory = (
            config.get_execution_context_allocation_strategy()
            == ExecutionContextAllocationStrategy.USER_MANAGED
        )
        engine._contexts.add(self)
        self._threads = 0
        self._init_options()
        self._weigh()
        self._reset_shapes()
        if config.num_threads:
            self.num_threads = config.num_threads

    def _fail(self, message: str, code: Any = INVALID) -> bool:
        return super()._fail(f"context {self.name!r}: {message}" if self.name else message, code)

    def _take_tensors(self) -> None:
        self._inputs = [t for t in self._engine._io if t.is_input]
        self._outputs = [t for t in self._engine._io if not t.is_input]
        self._ids = [t.id for t in self._engine._io]
        self._gpu = self._core.gpu
        self._on_gpu = self._core.on_gpu

    def _reload(self) -> None:
        """Goes on with the engine's new program: shapes, addresses and allocators stay."""
        with self._running, self._lock:
            names = {i: t.name for i, t in enumerate(self._core.program.tensors)}
            self._core = self._engine._core
            self._take_tensors()
            now = {t.name: t.id for t in self._engine._io}

            def moved(table: Any) -> Any:
                return {now[names[i]]: x for i, x in table.items()}

            self._shapes, self._values = moved(self._shapes), moved(self._values)
            self._addresses = moved(self._addresses)
            self._allocators = moved(self._allocators)
            self._schedules.clear()
            self._invalidate()

    def __enter__(self) -> IExecutionContext:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    def get_runtime_config(self) -> IRuntimeConfig:
        return self._config

    # --- shapes ---------------------------------------------------------------------------

    def _reset_shapes(self) -> None:
        self._batch = self._core.program.implicit_batch
        for t in self._inputs:
            dynamic = -1 in t.shape
            self._shapes[t.id] = None if dynamic else self._with_batch(t, t.shape)
        self._values.clear()
        self._invalidate()

    def _with_batch(self, t: IoTensor, shape: Sequence[int]) -> Extents:
        if not self._batch:
            return tuple(shape)
        return (1 if self._engine._is_single(t) else self._batch, *shape)

    def _invalidate(self) -> None:
        self._current = None
        self._checked = False
        self._bound = None
        self._graph = None

    def _tensor(self, name: str, what: str, *, is_input: bool | None = None) -> IoTensor | None:
        t = self._engine._by_name.get(name)
        if t is not None and is_input in (None, t.is_input):
            return t
        kind = {None: "input or output", True: "input", False: "output"}[is_input]
        known = ", ".join(
            repr(o.name) for o in self._engine._io if is_input in (None, o.is_input)
        )
        self._fail(f"{what}: the engine has no {kind} {name!r}; it has {known}")
        return None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """Sets the shape of an input for the inferences to come.

        Returns:
            False (and an error is logged) if there is no such input, or the shape contradicts
            the network or lies outside the current optimization profile.
        """
        t = self._tensor(name, "set_input_shape", is_input=True)
        if t is None:
            return False
        try:
            new = tuple(as_int(d) for d in shape)
        except TypeError as e:
            return self._fail(f"set_input_shape({name!r}): {e}")
        full = self._with_batch(t, new)
        if self._shapes[t.id] == full:
            return True
        problem = self._shape_problem(t, new)
        if problem:
            return self._fail(f"set_input_shape({name!r}, {new}): {problem}")
        with self._lock:
            self._shapes[t.id] = full
            self._invalidate()
        return True

    def _shape_problem(self, t: IoTensor, shape: Extents) -> str:
        if len(shape) != len(t.shape):
            return f"the input has {len(t.shape)} dimensions, {t.shape}, not {len(shape)}"
        for i, (n, static) in enumerate(zip(shape, t.shape, strict=True)):
            if static >= 0 and n != static:
                return f"dimension {i} is {static} in the network (shape {t.shape})"
            if n < 0:
                return f"dimension {i} must be given"
        skip = 1 if self._batch else 0
        given = self._core.program.profiles[self._profile_index].shapes.get(t.name)
        if given is not None:
            lo, _, hi = (s[skip:] for s in given)
            for i, n in enumerate(shape):
                if not lo[i] <= n <= hi[i]:
                    return (
                        f"dimension {i} is {n}, but optimization profile {self._profile_index} "
                        f"goes from {lo} to {hi}; choose a shape within it, or build with a "
                        "wider profile"
                    )
        return ""

    def get_tensor_shape(self, name: str) -> Dims:
        """The shape as far as it is known: -1 for what input shapes (or a run) must decide."""
        t = self._tensor(name, "get_tensor_shape")
        if t is None:
            return Dims()
        skip = 1 if self._batch else 0
        if t.is_input:
            own = self._shapes[t.id]
            return Dims(t.shape if own is None else own[skip:])
        schedule = self._schedule(quiet=True)
        shape = None
        if schedule is not None:
            shape = schedule.shapes[t.id] if self._ran is schedule else None
            shape = shape or schedule.layout.shapes[t.id]
        if shape is None and schedule is not None:
            known = schedule.layout.known
            dims = [known.get(d) for d in self._core.program.tensors[t.id].shape]
            return Dims([-1 if n is None else n for n in dims][skip:])
        return Dims(t.shape if shape is None else shape[skip:])

    def get_tensor_strides(self, name: str) -> Dims:
        """Elements from one index to the next in each dimension; -1 while unknown."""
        shape = list(self.get_tensor_shape(name))
        strides, step = [], 1
        for n in reversed(shape):
            strides.append(step)
            step = -1 if n < 0 or step < 0 else step * n
        return Dims(strides[::-1])

    def infer_shapes(self) -> list[str]:
        """Names of inputs whose shape, or (for shape inputs) address, is still to be given.
        If there is none, shapes of all outputs that don't depend on data are known.

        Raises:
            ExecutionError: If the shapes given contradict each other.
        """
        missing = self._missing()
        if not missing:
            self._require_schedule()
        return missing

    def _missing(self) -> list[str]:
        tensors = self._core.program.tensors
        out = [tensors[i].name for i, s in self._shapes.items() if s is None]
        for i in self._core.info.value_inputs:
            if i not in self._values and not self._addresses[i] and tensors[i].name not in out:
                out.append(tensors[i].name)
        return out

    @property
    def all_binding_shapes_specified(self) -> bool:
        return all(s is not None for s in self._shapes.values())

    @property
    def all_shape_inputs_specified(self) -> bool:
        return all(i in self._values or self._addresses[i] for i in self._core.info.value_inputs)

    # --- profiles -------------------------------------------------------------------------

    @property
    def active_optimization_profile(self) -> int:
        """Index of the profile in use; setting it is how version 7 chose one."""
        return self._profile_index

    @active_optimization_profile.setter
    def active_optimization_profile(self, profile_index: int) -> None:
        self.set_optimization_profile_async(profile_index, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Chooses the profile; shapes of varying inputs must be set anew if it changes."""
        count = len(self._core.program.profiles)
        if not 0 <= profile_index < count:
            return self._fail(f"set_optimization_profile_async: profile {profile_index} of {count}")
        if self._stream(stream_handle, "set_optimization_profile_async") is False:
            return False
        if profile_index != self._profile_index:
            with self._lock:
                self._profile_index = profile_index
                self._reset_shapes()
        return True

    # --- addresses ------------------------------------------------------------------------

    def set_tensor_address(self, name: str, memory: Any) -> bool:
        """Where an input is read or an output written: an address, or what converts to one."""
        t = self._tensor(name, "set_tensor_address")
        if t is None:
            return False
        try:
            address = as_int(memory)
        except TypeError:
            return self._fail(
                f"set_tensor_address({name!r}): {type(memory).__name__} is no address; pass an "
                "int, e.g. array.ctypes.data or int(allocation)"
            )
        if address < 0:
            return self._fail(f"set_tensor_address({name!r}): negative address {address}")
        if self._addresses[t.id] != address:
            self._addresses[t.id] = address
            self._checked = False
            self._bound = None
        return True

    def get_tensor_address(self, name: str) -> int:
        t = self._tensor(name, "get_tensor_address")
        return self._addresses[t.id] if t else 0

    # --- schedules ------------------------------------------------------------------------

    def _input_values(self) -> dict[int, Extents]:
        out = {}
        for i in self._core.info.value_inputs:
            given = self._values.get(i)
            if given is None:
                tensor = self._core.program.tensors[i]
                array = array_at(self._addresses[i], self._shapes[i] or (), tensor.dtype.np)
                given = tuple(int(x) for x in array.reshape(-1))
            out[i] = given
        return out

    def _require_schedule(self) -> Any:
        """The tables for the current shapes.

        Raises:
            ExecutionError: If shapes are missing or wrong.
        """
        info = self._core.info
        if self._current is not None and not info.value_inputs:
            return self._current
        missing = self._missing()
        if missing:
            raise ExecutionError(
                f"the shape (or, for shape inputs, address) of {', '.join(map(repr, missing))} "
                "is not set; call set_input_shape(name, shape) for every input that varies"
            )
        with self._lock:
            shapes: dict[int, Extents] = {i: s for i, s in self._shapes.items() if s is not None}
            values = self._input_values()
            watched = self._watched()
            key = (tuple(shapes.values()), tuple(values.values()), watched, self._arena_at)
            found = self._schedules.get(key)
            if found is None:
                layout = self._core.layout(shapes, values)
                self._fit_arena(layout.arena)
                key = (*key[:-1], self._arena_at)
                found = self._core.schedule(
                    layout, self._arena_at, self._arena, watched, weakly(self._show_debug),
                    self.num_threads,
                )
                self._schedules[key] = found
                while len(self._schedules) > _SCHEDULES:
                    self._schedules.popitem(last=False)
            else:
                self._schedules.move_to_end(key)
            if found is not self._current:
                self._current, self._checked = found, False
            return found

    def _schedule(self, quiet: bool = False) -> Schedule | None:
        try:
            return self._require_schedule()
        except ExecutionError as e:
            if not quiet:
                self._fail(str(e), STATE)
            return None

    def _fit_arena(self, nbytes: int) -> None:
        if nbytes <= self._arena_size:
            return
        if self._user_memory:
            raise ExecutionError(
                f"the context needs {nbytes} bytes of device memory and has {self._arena_size}; "
                "call set_device_memory(address, size), see engine.device_memory_size"
            )
        self._arena, self._arena_at = self._take_memory(nbytes)
        self._arena_size = nbytes
        self._schedules.clear()

    def _take_memory(self, nbytes: int) -> tuple[Any, int]:
        """A block from the runtime's allocator, if it has one, else from the system: (its
        owner, address)."""
        allocator = getattr(self._engine._runtime, "_allocator", None)
        if allocator is None:
            return self._core.memory(nbytes)
        return None, self._borrow(allocator, nbytes)

    def _get_ready(self) -> Schedule | None:
        """The schedule, with everything a run needs checked; None if something is missing."""
        if self._engine._lacks_weights:
            self._fail(
                f"the plan of {self._engine.name!r} was stripped of its weights; give them with "
                "Refitter or OnnxParserRefitter before running", STATE
            )
            return None
        schedule = self._schedule()
        if schedule is None or (self._checked and not self._allocators):
            return schedule
        for t in self._engine._io:
            nbytes = schedule.layout.nbytes[t.id]
            if t.id in self._allocators:
                if nbytes >= 0:
                    self._addresses[t.id] = self._ask_allocator(t.id, nbytes)
            elif not self._addresses[t.id] and nbytes:
                self._fail(
                    f"the address of {'input' if t.is_input else 'output'} {t.name!r} is not "
                    "set; call set_tensor_address(name, address) or pass it in bindings", STATE
                )
                return None
        ask = weakly(self._ask_allocator)
        schedule.allocate = {
            i: ask for i in self._allocators if schedule.layout.nbytes[i] < 0
        }
        schedule.temporary = self._temporary and weakly(self._take_temporary)
        self._checked = True
        return schedule

    # --- running --------------------------------------------------------------------------

    def execute_v2(self, bindings: Sequence[int]) -> bool:
        """Runs once, synchronously.

        Args:
            bindings: Addresses of all inputs and outputs, in the engine's order.

        Returns:
            False (and an error is logged) if shapes or addresses are missing.

        Raises:
            ExecutionError: If a layer fails.
        """
        if streams._busy and not self._on_gpu:
            default_stream_barrier()
        with self._running:
            schedule = self._current
            if schedule is None or self._slow or (
                bindings != self._bound and not self._rebind(schedule, bindings)
            ):
                found = self._bind(bindings)
                if found is None:
                    return False
                schedule = found
            if self._slow:
                self._run(schedule, None)
            else:
                schedule.run()
                self._ran = schedule
            if self._gpu is not None:
                self._gpu.driver.synchronize()
        return True

    def _rebind(self, schedule: Schedule, bindings: Sequence[int]) -> bool:
        """Patches the addresses that differ from the last run's; False if it takes more."""
        last, new = self._bound, list(bindings)
        if last is None or len(new) != len(last):
            return False
        for i, address in enumerate(new):
            if address != last[i]:
                if type(address) is not int or address <= 0:
                    return False
                t = self._ids[i]
                self._addresses[t] = address
                schedule.bind_one(t, address)
                last[i] = address
                self._graph = None
        return True

    def _bind(self, bindings: Sequence[int]) -> Schedule | None:
        """Takes addresses from a list; the slow path of `execute_v2`."""
        with self._lock:
            schedule = self._get_ready() if self._take_bindings(bindings) else None
        if schedule is not None:
            schedule.bind(self._addresses)
            self._bound = None if self._core.info.value_inputs else list(bindings)
        return schedule

    def _take_bindings(self, bindings: Sequence[int]) -> bool:
        count = len(self._ids)
        try:
            given = [as_int(b) for b in bindings]
        except TypeError as e:
            return self._fail(f"bindings must be addresses: {e}; pass int(allocation)")
        if len(given) == count * len(self._core.program.profiles):
            given = given[self._profile_index * count :][:count]
        if len(given) != count:
            names = ", ".join(t.name for t in self._engine._io)
            return self._fail(f"expected {count} bindings ({names}), got {len(given)}")
        self._checked = False
        for t, address in zip(self._ids, given, strict=True):
            self._addresses[t] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queues one run on a stream, with the shapes and addresses set now.

        Args:
            stream_handle: ``tactician.driver.Stream.handle``; 0 runs at once.

        Returns:
            False (and an error is logged) if shapes or addresses are missing. Errors of the run
            itself raise at ``stream.synchronize()``.
        """
        if self._graph is not None and self._checked and not self._slow:
            return self._replay(stream_handle)
        stream = self._stream(stream_handle, "execute_async_v3")
        if stream is False:
            return False
        with self._lock:
            schedule = self._get_ready()
            addresses = dict(self._addresses)
        return schedule is not None and self._launch(schedule, addresses, stream)

    def _replay(self, stream: Any) -> bool:
        """Launches the graph of the last run again: nothing changed since."""
        gpu, graph = self._gpu, self._graph
        assert gpu is not None
        with self._running:
            gpu.driver.enter()
            gpu.driver.launch_graph(graph.handle, int(stream))
        if self._consumed is not None:
            gpu.driver.record(int(self._consumed), int(stream))
        return True

    def _enqueue(self, schedule: Schedule, addresses: dict[int, int], stream: Any) -> bool:
        """Queues a run on a GPU's stream; steps in numpy are done before this returns."""
        assert self._gpu is not None
        driver = self._gpu.driver
        try:
            with self._running:
                self._bound = None
                schedule.bind(addresses)
                self._run(schedule, stream)
                self._graph = None if self._slow else schedule.graph()  # type: ignore[attr-defined]
        except ExecutionError as e:
            self._fail(str(e), FAILED)
            raise
        if self._allocators:
            self._notify(schedule)
        if self._consumed is not None:
            driver.record(int(self._consumed), stream)
        return True

    def _launch(self, schedule: Schedule, addresses: dict[int, int], stream: Any) -> bool:
        """Runs at once (default stream), or queues the run; nothing is locked meanwhile."""
        if self._on_gpu:
            return self._enqueue(schedule, addresses, stream)
        if stream is None:
            if streams._busy:
                default_stream_barrier()
            self._run_now(schedule, addresses, None)
        else:
            stream.submit(partial(self._run_later, schedule, addresses, stream))
            self._tell_shapes(schedule, stream)
        if self._consumed is not None:
            event_of(self._consumed).record(stream)
        return True

    def _stream(self, handle: Any, what: str) -> Any:
        """The stream of a handle; False (and an error is logged) if there is none. On a GPU the
        handle itself: any library's streams will do."""
        if self._on_gpu:
            try:
                return int(getattr(handle, "handle", handle))
            except TypeError:
                return self._fail(f"{what}: {type(handle).__name__} is no stream handle")
        try:
            return stream_of(handle)
        except (UsageError, TypeError) as e:
            return self._fail(f"{what}: {e}")

    def _run_later(self, schedule: Schedule, addresses: dict[int, int], stream: Stream) -> None:
        try:
            self._run_now(schedule, addresses, stream)
        except ExecutionError as e:
            self._fail(str(e), FAILED)
            raise

    def _run_now(self, schedule: Schedule, addresses: dict[int, int], stream: Any) -> None:
        with self._running:
            self._bound = None
            schedule.bind(addresses)
            self._run(schedule, stream)

    def _run(self, schedule: Schedule, stream: Stream | None) -> None:
        """One run with everything that may hang on it: profiler, debug tensors, allocators."""
        self._stream_now = stream
        if self._gpu is not None:
            schedule.debug_sync = self.debug_sync  # type: ignore[attr-defined]
        queue = (stream or 0,) if self._on_gpu else ()
        if self.profiler is not None:
            times = schedule.run_timed(*queue)
            self._ran = schedule
            self._take_times(times)
        else:
            schedule.run(*queue)
            self._ran = schedule
        if stream is None:
            self._notify(schedule)

    def _tell_shapes(self, schedule: Schedule, stream: Stream) -> None:
        """Allocators learn shapes before the call that queued the run returns; where these depend
        on data that means waiting for the run."""
        if not self._allocators:
            return
        if any(schedule.layout.nbytes[i] < 0 for i in self._allocators):
            stream._queue.wait()  # what went wrong stays with the stream
            if stream._queue.error is not None:
                return
        self._notify(schedule)

    def _notify(self, schedule: Schedule) -> None:
        skip = 1 if self._batch else 0
        for t in self._outputs:
            if t.id in self._allocators:
                shape = schedule.shapes[t.id] or ()
                self._allocators[t.id].notify_shape(t.name, Dims(shape[skip:]))
