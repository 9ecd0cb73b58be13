"""Whether an engine's independent branches should run at the same time: timed on the GPU."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from ..ir import dims as D
from ..plan.program import Program
from ..runtime.engine import ICudaEngine
from ..support import logger as log
from ..support.errors import TacticianError

if TYPE_CHECKING:
    from ..targets.cuda.driver import Driver

_TRIED = 1  # streams that are tried unless more are allowed: a second seldom finds work
_GAIN = 0.99
_SECONDS = 0.05


def choose_streams(program: Program, most: int, logger: Any) -> None:
    """Notes in a program how many streams its runs use besides the caller's.

    Args:
        program: Complete; for others than the GPU that is here, and for sizes known only at run
            time, it stays 0.
        most: ``IBuilderConfig.max_aux_streams``; -1 leaves it to the builder.
    """
    if program.target != "cuda" or most == 0 or not _is_static(program):
        return
    try:
        times = _times(program, most if most > 0 else _TRIED)
    except TacticianError as e:
        log.warning(f"auxiliary streams are not used: {e}", logger)
        times = []
    finally:
        program.settings["aux_streams"] = 0
    if not times:
        return
    best = min(range(len(times)), key=lambda k: times[k])
    if best and times[best] < times[0] * _GAIN:
        program.settings["aux_streams"] = best
    log.verbose("auxiliary streams: " + ", ".join(
        f"{k}: {ms * 1e3:.1f} µs" for k, ms in enumerate(times)), logger)


def _is_static(program: Program) -> bool:
    kinds = {s.kind for s in program.steps}
    return kinds <= {"kernel", "copy"} and len(program.steps) > 2 and all(
        D.is_static(*t.shape) for t in program.tensors
    )


def _times(program: Program, most: int) -> list[float]:
    """Milliseconds of a run with 0, 1, … ``most`` auxiliary streams; [] if nothing is parallel,
    or the GPU is not here."""
    engine = ICudaEngine(program)
    gpu = engine._core.gpu
    if gpu is None or gpu.driver.is_host or engine._core.host_tensors:
        return []
    found: list[float] = []
    for streams in range(most + 1):
        program.settings["aux_streams"] = streams
        ms = _timed(engine, gpu.driver, bool(streams))
        if ms is None:
            break
        found.append(ms)
    return found if len(found) > 1 else []


def _timed(engine: Any, driver: Driver, branches: bool) -> float | None:
    """Median of a run, or None if it has no branches although it should."""
    from ..targets.cuda.bench import exclusive  # only with a GPU

    context = engine.create_execution_context()
    blocks, stream = [], 0 if driver.is_host else driver.stream()
    begin, end = driver.event(), driver.event()
    try:
        for t in engine._io:
            shape = engine._program.tensors[t.id].shape
            if t.is_input:
                context.set_input_shape(t.name, shape[len(shape) - len(t.shape) :])
            nbytes = max(int(D.product(shape)) * engine._program.tensors[t.id].dtype.size, 1)
            blocks.append(driver.alloc(nbytes))
            driver.fill(blocks[-1], 0, nbytes, stream)
            context.set_tensor_address(t.name, blocks[-1])
        with exclusive():
            for _ in range(3):
                if not context.execute_async_v3(stream):
                    return None
            driver.synchronize(stream)
            if branches and not context._current.has_branches:
                return None
            return _median(driver, context, stream, begin, end)
    finally:
        driver.synchronize(stream)
        for b in blocks:
            driver.free(b)
        driver.drop_event(begin)
        driver.drop_event(end)
        if stream:
            driver.drop_stream(stream)


def _median(driver: Driver, context: Any, stream: int, begin: int, end: int) -> float:
    samples: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(samples) < 5 or (time.perf_counter() < until and len(samples) < 50):
        driver.record(begin, stream)
        for _ in range(10):
            context.execute_async_v3(stream)
        driver.record(end, stream)
        driver.synchronize(stream)
        samples.append(driver.elapsed(begin, end) / 10)
    return statistics.median(samples)
