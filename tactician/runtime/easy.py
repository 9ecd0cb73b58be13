"""Engines as functions of numpy arrays: ``engine({"x": array})["y"]``."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..support import logger as log
from ..support.errors import ExecutionError, UsageError
from .buffers import Array, aligned_block
from .context import IExecutionContext
from .engine import ICudaEngine, IoTensor
from .gpu_memory import DeviceBlock
from .runtime import Runtime


class Collector(log.ILogger):
    """Keeps what a context logs, to be raised."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity: log.Severity, msg: str) -> None:
        if severity <= log.Severity.ERROR:
            self.messages.append(msg)

    def take(self) -> str:
        text, self.messages = "; ".join(self.messages), []
        return text


class Grower:
    """An output allocator whose memory becomes the result arrays."""

    def __init__(self) -> None:
        self.blocks: dict[str, Array] = {}

    def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
        self.blocks[name] = aligned_block(max(size, 1))
        return int(self.blocks[name].ctypes.data)

    def notify_shape(self, name: str, shape: Any) -> None:
        pass


class DeviceGrower:
    """The same on a GPU."""

    def __init__(self, driver: Any):
        self.driver = driver
        self.blocks: dict[str, DeviceBlock] = {}

    def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
        self.blocks[name] = DeviceBlock(self.driver, max(size, 1))
        return self.blocks[name].address

    def notify_shape(self, name: str, shape: Any) -> None:
        pass


class Engine:
    """A built network that is called like a function. Made by `tactician.build` and `load`.

    Threads may share it; each call uses an execution context of its own.

    Attributes:
        cuda_engine: The `ICudaEngine` underneath.
    """

    def __init__(self, engine: ICudaEngine):
        self.cuda_engine = engine
        self._free: list[IExecutionContext] = []
        self._lock = threading.Lock()
        self._inputs = {t.name: t for t in engine._io if t.is_input}
        self._outputs = [t for t in engine._io if not t.is_input]

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape (-1 where it varies) and type of each input."""
        return {n: (t.shape, t.ir.np) for n, t in self._inputs.items()}

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape (-1 where it varies) and type of each output."""
        return {t.name: (t.shape, t.ir.np) for t in self._outputs}

    def __call__(self, inputs: Any = None, /, **named: Any) -> dict[str, Array]:
        """Runs the network.

        Args:
            inputs: Arrays by input name, or the array itself if there is one input.
            named: Arrays by input name.

        Returns:
            A new array per output, by name.

        Raises:
            UsageError: If inputs are missing, unknown, or of a wrong shape or type.
            ExecutionError: If a layer fails.
        """
        feeds = self._feeds(inputs, named)
        with self._context() as context:
            return self._run(context, feeds)

    def _feeds(self, inputs: Any, named: Mapping[str, Any]) -> dict[str, Array]:
        given: dict[str, Any] = dict(named)
        if isinstance(inputs, Mapping):
            given.update(inputs)
        elif inputs is not None:
            if len(self._inputs) != 1:
                raise UsageError(
                    f"the engine has {len(self._inputs)} inputs ({', '.join(self._inputs)}); pass "
                    "a dict of arrays"
                )
            given[next(iter(self._inputs))] = inputs
        missing = [n for n in self._inputs if n not in given]
        unknown = [n for n in given if n not in self._inputs]
        if missing or unknown:
            raise UsageError(
                f"inputs are {', '.join(map(repr, self._inputs))}; missing: {missing or 'none'}, "
                f"unknown: {unknown or 'none'}"
            )
        return {n: _as_input(t, given[n]) for n, t in self._inputs.items()}

    @contextlib.contextmanager
    def _context(self) -> Iterator[IExecutionContext]:
        with self._lock:
            context = self._free.pop() if self._free else None
        if context is None:
            context = self.cuda_engine.create_execution_context()
            if context is None:
                raise ExecutionError("there is no memory for another execution context")
            context._log_to = Collector()
        try:
            yield context
        finally:
            with self._lock:
                self._free.append(context)

    def _run(self, context: IExecutionContext, feeds: dict[str, Array]) -> dict[str, Array]:
        if self.cuda_engine.has_implicit_batch_dimension:
            return self._run_batch(context, feeds)
        if context._gpu is not None:
            return self._run_gpu(context, feeds)
        for name, array in feeds.items():
            context._addresses[self._inputs[name].id] = array.ctypes.data
            if not context.set_input_shape(name, array.shape):
                raise UsageError(context._log_to.take())
        results = {}
        grower = Grower()
        schedule = context._require_schedule()
        late = [t for t in self._outputs if schedule.layout.nbytes[t.id] < 0]
        for t in self._outputs:
            if t in late:
                context.set_output_allocator(t.name, grower)
            else:
                out = np.empty(schedule.layout.shapes[t.id] or (), t.ir.np)
                results[t.name] = out
                context._addresses[t.id] = out.ctypes.data
        context._checked = False
        if not context.execute_async_v3(0):
            raise ExecutionError(context._log_to.take())
        for t in late:
            shape = tuple(context.get_tensor_shape(t.name))
            size = int(np.prod(shape, dtype=np.int64)) * t.ir.size
            results[t.name] = grower.blocks[t.name][:size].view(t.ir.np).reshape(shape)
            context.set_output_allocator(t.name, None)
        return {t.name: results[t.name] for t in self._outputs}

    def _run_gpu(self, context: IExecutionContext, feeds: dict[str, Array]) -> dict[str, Array]:
        """The same through device memory, which stays with the context."""
        assert context._gpu is not None
        driver = context._gpu.driver
        held: dict[int, Any] = context.__dict__.setdefault("_easy_blocks", {})

        def room(t: IoTensor, nbytes: int) -> int:
            if t.id not in held or held[t.id].nbytes < nbytes:
                held[t.id] = DeviceBlock(driver, max(nbytes, 1))
            return int(held[t.id].address)

        driver.enter()
        for name, array in feeds.items():
            t = self._inputs[name]
            at = int(array.ctypes.data)
            if t.id not in context._core.host_tensors:
                at = room(t, array.nbytes)
                driver.upload(at, array.ctypes.data, array.nbytes)
            if not context.set_tensor_address(name, at) or not context.set_input_shape(
                name, array.shape
            ):
                raise UsageError(context._log_to.take())
        results: dict[str, Array] = {}
        blocks = DeviceGrower(driver)
        schedule = context._require_schedule()
        for t in self._outputs:
            nbytes = schedule.layout.nbytes[t.id]
            if nbytes < 0:
                context.set_output_allocator(t.name, blocks)
                continue
            out = results[t.name] = np.empty(schedule.layout.shapes[t.id] or (), t.ir.np)
            on_host = t.id in context._core.host_tensors
            context.set_tensor_address(t.name, out.ctypes.data if on_host else room(t, nbytes))
        if not context.execute_async_v3(0):
            raise ExecutionError(context._log_to.take())
        for t in self._outputs:
            if t.name in blocks.blocks:
                shape = tuple(context.get_tensor_shape(t.name))
                results[t.name] = driver.get(blocks.blocks[t.name].address, shape, t.ir.np)
                context.set_output_allocator(t.name, None)
            elif t.id not in context._core.host_tensors:
                out = results[t.name]
                driver.download(out.ctypes.data, held[t.id].address, out.nbytes)
        driver.synchronize()
        return {t.name: results[t.name] for t in self._outputs}

    def _run_batch(self, context: IExecutionContext, feeds: dict[str, Array]) -> dict[str, Array]:
        single = {n for n, t in self._inputs.items() if self.cuda_engine._is_single(t)}
        sizes = {a.shape[:1] for n, a in feeds.items() if n not in single}
        for name, array in feeds.items():
            shape = self._inputs[name].shape
            if name in single and array.shape in (shape, (1, *shape)):
                continue
            if array.shape[1:] != shape or len(sizes) != 1:
                raise UsageError(
                    f"input {name!r} must have shape (batch, *{self._inputs[name].shape}) with "
                    f"one batch for all inputs, got {array.shape}"
                )
        (batch,) = sizes.pop()
        results = {t.name: np.empty((batch, *t.shape), t.ir.np) for t in self._outputs}
        arrays = [*(feeds[n] for n in self._inputs), *results.values()]
        driver = None if context._gpu is None else context._gpu.driver
        if driver is None:
            bindings = [int(a.ctypes.data) for a in arrays]
        else:
            driver.enter()
            blocks = [DeviceBlock(driver, a.nbytes) for a in arrays]
            bindings = [b.address for b in blocks]
            for name, at in zip(self._inputs, bindings, strict=False):
                driver.upload(at, feeds[name].ctypes.data, feeds[name].nbytes)
        if not context.execute(batch, bindings):
            raise UsageError(context._log_to.take())
        if driver is not None:
            for out, at in zip(results.values(), bindings[len(self._inputs) :], strict=True):
                driver.download(out.ctypes.data, at, out.nbytes)
            driver.synchronize()
        return results

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan. The file appears whole or not at all."""
        write_atomically(Path(path), self.cuda_engine.serialize())

    def __repr__(self) -> str:
        def shown(table: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
            return ", ".join(f"{n}: {d}{list(s)}" for n, (s, d) in table.items())

        return f"<Engine {self.cuda_engine.name!r}: {shown(self.inputs)} -> {shown(self.outputs)}>"


def _as_input(t: IoTensor, x: Any) -> Array:
    """The array an input is fed with: contiguous, of the input's type if nothing is lost."""
    array = np.asarray(x)
    if array.dtype != t.ir.np:
        same_kind = np.can_cast(array.dtype, t.ir.np, "same_kind")
        if not same_kind and not (array.dtype.kind in "iu" and t.ir.is_int):
            raise UsageError(
                f"input {t.name!r} has type {t.ir.np}, got {array.dtype}; convert the array"
            )
        array = array.astype(t.ir.np)
    return np.ascontiguousarray(array).reshape(array.shape)


def load(source: Any, logger: Any = None) -> Engine:
    """The engine of a plan.

    Args:
        source: A file's path, or the plan's bytes.
        logger: `ILogger`; by default warnings go to stderr.

    Raises:
        PlanError: If the plan is damaged or for another version or device.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _map(Path(source))
    engine = Runtime(logger if logger is not None else log.Logger()).deserialize_cuda_engine(source)
    assert engine is not None
    return Engine(engine)


def _map(path: Path) -> memoryview:
    """A plan file mapped into memory: kernels use its weights where they lie, and processes
    share them. `write_atomically` never changes a file that may be mapped."""
    with path.open("rb") as f:
        if not os.fstat(f.fileno()).st_size:
            return memoryview(b"")
        if hasattr(mmap, "MAP_POPULATE"):  # one walk through the page cache, no faults later
            flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
            return memoryview(mmap.mmap(f.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
        return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that readers see the old or the new content, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
