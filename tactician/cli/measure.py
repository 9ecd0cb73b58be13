"""Timing of things that compete: alternating rounds in one process, percentiles, ratios."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tactician as trt

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What was measured for one contender; times in microseconds.

    Attributes:
        calls: Number of timed calls.
        best, median, mean, p90, p95, p99: Of the latency of one call.
        per_second: Calls per second, one after another.
    """

    calls: int
    best: float
    median: float
    mean: float
    p90: float
    p95: float
    p99: float
    per_second: float

    @staticmethod
    def of(nanoseconds: list[int]) -> Timing:
        """Summarize latencies of single calls."""
        us = np.asarray(nanoseconds, np.float64) / 1e3
        p50, p90, p95, p99 = np.percentile(us, [50, 90, 95, 99])
        mean = float(us.mean())
        best, median, p90, p95, p99 = (float(v) for v in (us.min(), p50, p90, p95, p99))
        return Timing(len(us), best, median, mean, p90, p95, p99, 1e6 / mean)


def alternate(
    contenders: Mapping[str, Call],
    rounds: int = 5,
    seconds: float = 0.2,
    warmup: float = 0.1,
    pause: float = 0.02,
) -> dict[str, Timing]:
    """Time contenders in turns, so that whatever disturbs the machine disturbs all of them.

    Args:
        contenders: Name to function; each call is one inference.
        rounds: How often each has its turn.
        seconds: Length of a turn; at least three calls are made.
        warmup: Untimed calls at the start of each contender's first turn, in seconds.
        pause: Rest between turns, so that threads of the previous one stop spinning.
    """
    times: dict[str, list[int]] = {name: [] for name in contenders}
    for index in range(rounds):
        for name, call in contenders.items():
            time.sleep(pause)
            _turn(call, warmup if index == 0 else 0.0)
            times[name] += _turn(call, seconds)
    return {name: Timing.of(t) for name, t in times.items()}


def _turn(call: Call, seconds: float) -> list[int]:
    """Latencies of calls made one after another for some time; the first is not counted."""
    call()
    clock = time.perf_counter_ns
    out: list[int] = []
    end = clock() + int(seconds * 1e9)
    while len(out) < 3 or clock() < end:
        start = clock()
        call()
        out.append(clock() - start)
    return out


def engine_call(engine: trt.ICudaEngine, feeds: Mapping[str, np.ndarray]) -> Call:
    """One synchronous inference with inputs and outputs where they are, as `execute_v2` does it.

    Engines whose output sizes depend on data have no fixed buffers; they are called with arrays.
    """
    import tactician as trt
    from tactician import driver as cuda
    from tactician.runtime.easy import Engine

    context = engine.create_execution_context()
    held = []  # device memory must outlive the calls
    bindings = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if name in feeds:
            context.set_input_shape(name, feeds[name].shape)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if name in feeds:
            array = np.ascontiguousarray(feeds[name])
        else:
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                return functools.partial(Engine(engine), feeds)
            array = np.zeros(shape, trt.nptype(engine.get_tensor_dtype(name)))
        memory = cuda.mem_alloc(max(array.nbytes, 1))
        if name in feeds and array.nbytes:
            cuda.memcpy_htod(memory, array)
        held.append(memory)
        bindings.append(int(memory))

    def call() -> object:
        if not context.execute_v2(bindings):
            raise RuntimeError("execute_v2 failed; the log says why")
        return held

    return call


def onnxruntime_call(model: str, feeds: Mapping[str, np.ndarray], threads: int) -> Call:
    """The same by onnxruntime, with all its graph optimizations and bound buffers.

    Args:
        model: Path of the ONNX file.
        feeds: Inputs.
        threads: Threads inside an operator; 0 leaves onnxruntime's default.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def call() -> object:
        session.run_with_iobinding(binding)
        return feeds  # bound inputs must outlive the calls

    return call
