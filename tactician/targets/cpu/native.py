"""The thread pool and the schedule walker, as Python sees them.

One native call runs a whole schedule (docs/architecture.md, 'CPU target'). Workers are Python
threads that spend their life inside native code without the interpreter's lock, so the same
code serves every system that Python runs on, and a process ends without waiting for them.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ...support.errors import ExecutionError
from . import native_ir
from .isa import Isa, host_description
from .toolchain import toolchain

END, KERNEL, CALLBACK, JUMP, JUMP_IF_ZERO, COPY = range(6)
STEP_WORDS = 8
MAX_THREADS = 1024
SPIN_NS = 200_000

CALLBACK_TYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_LAUNCH_TYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


class _Functions:
    """The walker's entry points. Its code stays in memory until the process ends, because
    workers may be inside it."""

    def __init__(self, futex: bool | None = None):
        code = toolchain().load(native_ir.generate(Isa.host().triple, futex)).keep_forever()
        names = ("tact_launch", "tact_run", "tact_worker", "tact_stop", "tact_init")
        at = code.addresses(names)
        self.run_address = at["tact_run"]
        self.launch = _LAUNCH_TYPE(at["tact_launch"])
        self.worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(at["tact_worker"])
        self.stop = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(
            at["tact_stop"]
        )
        self.init = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at["tact_init"])


def equip(program: Any) -> None:
    """Has a plan's program carry what spares the process that only runs it LLVM: the walker's
    object code under its `Toolchain.key`, and what LLVM says of this machine."""
    program.walker = compile_walker()
    program.host = host_description()


def compile_walker() -> tuple[str, bytes]:
    """The walker's object code, after its key; what was compiled once is at hand."""
    ir = native_ir.generate(Isa.host().triple)
    return toolchain().key(ir), toolchain().compile(ir)


def adopt_walker(key: str, code: bytes) -> None:
    """Spares compiling the walker if ``code`` is what this process would compile."""
    if key == toolchain().key(native_ir.generate(Isa.host().triple)):
        toolchain().adopt(key, code)


@functools.cache
def functions(futex: bool | None = None) -> _Functions:
    """The linked walker; compiled at the first call (some 50 ms), then shared."""
    return _Functions(futex)


def aligned(nbytes: int, alignment: int = 64) -> np.ndarray[Any, Any]:
    """Uninitialized bytes at a multiple of ``alignment``."""
    raw = np.empty(max(1, nbytes) + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + max(1, nbytes)]


class Callback:
    """A Python function as the walker's callback.

    The function gets the callback id of the step and returns nothing. An exception stops the
    run; `Pool.run` raises it.
    """

    def __init__(self, function: Callable[[int], object]):
        self.error: BaseException | None = None

        def enter(_user: int | None, ident: int) -> int:
            try:
                function(ident)
            except BaseException as error:
                self.error = error
                return 1
            return 0

        self._entry = CALLBACK_TYPE(enter)
        self.address = ctypes.cast(self._entry, ctypes.c_void_p).value or 0

    def raise_pending(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class Pool:
    """Worker threads for schedules. One run at a time uses the workers; a run that finds them
    taken works alone on the calling thread."""

    def __init__(
        self, max_threads: int = MAX_THREADS, spin_ns: int = SPIN_NS, futex: bool | None = None
    ):
        """Args:
        max_threads: Most threads a run can ever use, the caller's included.
        spin_ns: How long an idle worker watches for work before it sleeps.
        futex: Which of the two ways of sleeping to use; None chooses.
        """
        self.max_threads = max_threads
        self._functions = functions(futex)
        self._spin_ns = spin_ns
        self._starting = threading.Lock()
        self._workers = 0
        size = native_ir.MAILBOX * (max_threads + 1) + native_ir.SYNC_BYTES
        self._memory = aligned(size, 128)
        self.address = self._memory.ctypes.data
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """Back to no workers. The memory stays where it is: launches hold its address."""
        mailboxes = native_ir.MAILBOX * (self.max_threads + 1)
        self._memory[:] = 0
        words = self._memory[:64].view(np.int64)
        words[1], words[3] = self._spin_ns, mailboxes
        self._functions.init(self.address)
        self._workers = 0

    @property
    def workers(self) -> int:
        """Worker threads running; the calling thread is not among them."""
        return self._workers

    def ensure(self, threads: int) -> None:
        """Starts workers until a run can use ``threads`` threads."""
        want = min(threads, self.max_threads) - 1
        if want <= self._workers:
            return
        with self._starting:
            while self._workers < want:
                if not self._start_worker(self._workers + 1):
                    return
                self._workers += 1
                self._memory[16:24].view(np.int64)[0] = self._workers

    def _start_worker(self, index: int) -> bool:
        ready = self._memory[index * native_ir.MAILBOX + 8 :][:4].view(np.int32)
        # The thread must keep the pool's memory, but not the pool, so that pools can be freed.
        memory, address, worker = self._memory, self.address, self._functions.worker

        def live(_keep: Any = memory) -> None:
            worker(address, index)

        try:
            _thread.start_new_thread(live, ())
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            return False
        deadline = time.monotonic() + 10
        while not ready[0]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.00005)
        return True

    def run(
        self,
        steps: np.ndarray[Any, Any] | int,
        callback: Callback | None = None,
        threads: int = 0,
        ticks: np.ndarray[Any, Any] | None = None,
        scratch: int = 0,
        scratch_stride: int = 0,
        start: int = 0,
    ) -> None:
        """Runs a schedule.

        Args:
            steps: int64 ``[n, 8]``, C-contiguous, or its address.
            callback: Runs callback steps.
            threads: Threads to use; 0: one per physical core.
            ticks: int64 array of at least n elements; element k receives the monotonic clock in
                nanoseconds when step k began (the last time), the end record's when all ended.
            scratch: Address of scratch memory, 64-byte aligned.
            scratch_stride: Bytes of it for each thread; a multiple of 64.
            start: Index of the first step.

        Raises:
            ExecutionError: If the table holds an unknown step.
            Exception: What the callback raised.
        """
        self.prepare(steps, callback, threads, ticks, scratch, scratch_stride)(start)

    def prepare(
        self,
        steps: np.ndarray[Any, Any] | int,
        callback: Callback | None = None,
        threads: int = 0,
        ticks: np.ndarray[Any, Any] | None = None,
        scratch: int = 0,
        scratch_stride: int = 0,
    ) -> Launch:
        """`run` with its arguments settled, to be called any number of times (by one thread at
        a time): a call costs about 2 µs."""
        return Launch(self, steps, callback, threads, ticks, scratch, scratch_stride)

    def close(self) -> bool:
        """Ends the workers; later runs start new ones. Returns False (and does nothing) while a
        run uses them."""
        with self._starting:
            count, self._workers = self._workers, 0
            self._memory[16:24].view(np.int64)[0] = 0
            if count and not self._functions.stop(self.address, count):
                self._workers = count
                self._memory[16:24].view(np.int64)[0] = count
                return False
            if count:
                self._reset()
            return True

    def _after_fork(self) -> None:
        """In a forked child the workers do not exist: begin anew."""
        self._starting = threading.Lock()
        self._reset()

    def __del__(self) -> None:
        if self.__dict__.get("_workers"):
            self.close()


class Launch:
    """A schedule with all arguments of its run; see `Pool.prepare`."""

    def __init__(
        self,
        pool: Pool,
        steps: np.ndarray[Any, Any] | int,
        callback: Callback | None,
        threads: int,
        ticks: np.ndarray[Any, Any] | None,
        scratch: int,
        scratch_stride: int,
    ):
        self._pool = pool
        self._threads = threads or Isa.host().cores
        self._workers = min(self._threads, pool.max_threads) - 1
        self._callback = callback
        self._keep = (steps, ticks)
        self._call = np.array(
            [
                pool.address,
                steps if isinstance(steps, int) else steps.ctypes.data,
                0,
                callback.address if callback is not None else 0,
                0,
                self._threads,
                scratch,
                scratch_stride,
                0 if ticks is None else ticks.ctypes.data,
            ],
            np.int64,
        )
        self._argument = ctypes.c_void_p(self._call.ctypes.data)
        self._start = 0
        self._native = pool._functions.launch

    def __call__(self, start: int = 0) -> None:
        """Runs the schedule from step ``start``; raises as `Pool.run` does."""
        if self._pool._workers < self._workers:
            self._pool.ensure(self._threads)
        if start != self._start:
            self._start = start
            self._call[2] = start
        status = self._native(self._argument)
        if status:
            if self._callback is not None:
                self._callback.raise_pending()
            raise ExecutionError(f"the schedule stopped with status {status}: unknown step kind")


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@functools.cache
def default_pool() -> Pool:
    """The pool that all contexts of the process share, so that they never oversubscribe."""
    return Pool()


def _forked() -> None:
    for pool in list(_pools):
        pool._after_fork()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
