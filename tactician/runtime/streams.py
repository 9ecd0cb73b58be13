"""Streams and events of the CPU target.

A stream is an in-order queue with a worker thread of its own; native work releases the GIL, so
streams really run side by side. Programs pass streams as integers (``Stream.handle``), as they
pass ``cudaStream_t``. Handle 0 is the default stream: synchronous, and ordered after everything
queued on other streams before it, as CUDA's legacy default stream is.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..support.errors import ExecutionError, UsageError

Work = Callable[[], object]
_handles = itertools.count(1)
_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
_events: weakref.WeakValueDictionary[int, Event] = weakref.WeakValueDictionary()


class _Queue:
    """What a stream and its worker share; the worker keeps no stream alive."""

    def __init__(self) -> None:
        self.items: SimpleQueue[tuple[Work, bool] | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.progress = threading.Condition(self.lock)
        self.submitted = 0
        self.completed = 0
        self.waiting = 0
        self.error: BaseException | None = None
        self.worker: threading.Thread | None = None

    def submit(self, work: Work, always: bool) -> None:
        with self.lock:
            if self.worker is None:
                self.worker = threading.Thread(
                    target=self._run, name="tactician-stream", daemon=True
                )
                self.worker.start()
            self.submitted += 1
            _busy.add(self)
            self.items.put((work, always))

    def _run(self) -> None:
        while (item := self.items.get()) is not None:
            work, always = item
            try:
                if always or self.error is None:
                    work()
            except BaseException as e:
                if self.error is None:
                    self.error = e
            del item, work
            with self.lock:
                self.completed += 1
                if self.completed == self.submitted:
                    _busy.discard(self)
                if self.waiting:
                    self.progress.notify_all()

    def wait(self) -> None:
        """Until everything submitted so far is done."""
        if threading.current_thread() is self.worker:
            raise UsageError("work on a stream can't wait for that stream: it would wait forever")
        with self.lock:
            goal = self.submitted
            self.waiting += 1
            try:
                while self.completed < goal:
                    self.progress.wait()
            finally:
                self.waiting -= 1

    def take_error(self) -> BaseException | None:
        with self.lock:
            error, self.error = self.error, None
            return error


_busy: set[_Queue] = set()


class Stream:
    """An in-order queue of work (pycuda's ``Stream``, CUDA's ``cudaStream_t``).

    Args:
        flags: CUDA's creation flags. All streams order themselves with the default stream, so
            they change nothing.

    Attributes:
        handle: Integer that stands for the stream in `IExecutionContext.execute_async_v3` and
            its older forms.
    """

    def __init__(self, flags: int = 0):
        self.flags = flags
        self.handle = next(_handles)
        self._queue = _Queue()
        _streams[self.handle] = self
        weakref.finalize(self, self._queue.items.put, None)

    def submit(self, work: Work, *, always: bool = False) -> None:
        """Queues a function. If work before it failed, it is skipped, unless ``always``."""
        self._queue.submit(work, always)

    def synchronize(self) -> None:
        """Waits until the queue is empty.

        Raises:
            ExecutionError: If queued work failed since the last call (the first failure; work
                queued behind it was skipped).
        """
        self._queue.wait()
        error = self._queue.take_error()
        if error is not None:
            if isinstance(error, ExecutionError):
                raise error
            raise ExecutionError(f"work on a stream failed: {error}") from error

    def is_done(self) -> bool:
        """Whether all queued work is done. Doesn't report errors; `synchronize` does."""
        return self._queue.completed == self._queue.submitted

    def wait_for_event(self, event: Event) -> None:
        """Makes work queued from now on wait for the last recording of ``event``."""
        mark = event._mark
        if mark is not None and not mark.done.is_set():
            self.submit(mark.done.wait, always=True)

    def __int__(self) -> int:
        return self.handle

    __index__ = __int__

    def __repr__(self) -> str:
        return f"<Stream {self.handle}{'' if self.is_done() else ', busy'}>"


class _Mark:
    """One recording of an event."""

    __slots__ = ("done", "time")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.time = 0

    def set(self) -> None:
        self.time = time.perf_counter_ns()
        self.done.set()


class Event:
    """A point in a stream's work (pycuda's ``Event``, CUDA's ``cudaEvent_t``)."""

    def __init__(self, flags: int = 0):
        self.flags = flags
        self.handle = next(_handles)
        self._mark: _Mark | None = None
        _events[self.handle] = self

    def record(self, stream: Stream | int | None = None) -> Event:
        """Takes place when the work queued on ``stream`` so far is done."""
        self._mark = mark = _Mark()
        target = stream_of(stream)
        if target is None:
            default_stream_barrier()
            mark.set()
        else:
            target.submit(mark.set, always=True)
        return self

    def synchronize(self) -> Event:
        """Waits for the last recording; returns at once if there was none."""
        if self._mark is not None:
            self._mark.done.wait()
        return self

    def query(self) -> bool:
        """Whether the last recording has taken place."""
        return self._mark is None or self._mark.done.is_set()

    def time_since(self, event: Event) -> float:
        """Milliseconds from ``event`` to this one.

        Raises:
            UsageError: If one of them was never recorded or hasn't taken place.
        """
        marks = (event._mark, self._mark)
        if any(m is None or not m.done.is_set() for m in marks):
            raise UsageError("both events must have taken place: record and synchronize them")
        return (marks[1].time - marks[0].time) / 1e6  # type: ignore[union-attr]

    def time_till(self, event: Event) -> float:
        """Milliseconds from this event to ``event``."""
        return event.time_since(self)

    def __int__(self) -> int:
        return self.handle

    __index__ = __int__


def stream_of(stream: Any) -> Stream | None:
    """The stream of an object or handle; None for the default stream (None or 0).

    Raises:
        UsageError: If the handle belongs to no living stream.
    """
    if stream is None or isinstance(stream, Stream):
        return stream
    handle = int(getattr(stream, "handle", stream))
    if handle == 0:
        return None
    try:
        return _streams[handle]
    except KeyError:
        raise UsageError(
            f"stream handle {handle} belongs to no stream of tactician.driver; create one with "
            "tactician.driver.Stream() and keep it alive, or use 0 for the default stream"
        ) from None


def event_of(event: Any) -> Event:
    """The event of an object or handle.

    Raises:
        UsageError: If the handle belongs to no living event.
    """
    if isinstance(event, Event):
        return event
    found = _events.get(int(getattr(event, "handle", event)))
    if found is None:
        raise UsageError(f"event handle {event} belongs to no event of tactician.driver")
    return found


def default_stream_barrier() -> None:
    """Waits for all streams: what work on the default stream does first. Their errors stay with
    them."""
    if not _busy:
        return
    me = threading.current_thread()
    queues = list(_busy)
    if any(q.worker is me for q in queues):
        return  # called from a stream's own work, which has its place already
    for q in queues:
        q.wait()


atexit.register(default_stream_barrier)  # workers must not run native code in a dying interpreter
