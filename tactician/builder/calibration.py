"""INT8 calibration: finds the ranges of tensors from sample batches, as TensorRT's calibrators do.

The f32 network runs on the batches with the needed tensors as outputs; histograms of magnitudes
are kept, and each algorithm makes a threshold of them. Results go to and come from the
calibration cache, whose text format is TensorRT's.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Graph, Value
from ..passes.implicit_quantize import (
    LARGEST,
    averaged_operand,
    contraction_operand,
    ranged,
    residual_operand,
)
from ..passes.pipeline import optimize
from ..passes.quantized import is_quantized
from ..support import logger as log
from ..support import version
from ..support.errors import BuildError
from .settings import BuildSettings, ProfileSettings

Array = np.ndarray[Any, Any]

_BINS = 2048
_LEVELS = 128  # of i8 magnitudes
_STEP = 8  # thresholds tried are this many bins apart
_QUANTILE = 0.9999  # of the legacy algorithm
_CHUNK = 1 << 29  # bytes of tensors that are looked at in one run
_ALGORITHMS = {0: "LegacyCalibration", 1: "EntropyCalibration", 2: "EntropyCalibration2",
               3: "MinMaxCalibration"}  # fmt: skip


# --- histograms -----------------------------------------------------------------------------------


class Histogram:
    """Counts magnitudes in equal bins from 0; the bins widen when larger ones come.

    Attributes:
        counts: Elements per bin; zeros are not counted.
        width: Width of a bin.
        largest: The largest magnitude seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.float64)
        self.width = 0.0
        self.largest = 0.0

    def add(self, x: Array) -> None:
        """Takes in an array; what is not finite is left out."""
        a = np.abs(x.reshape(-1).astype(np.float32))
        a = a[np.isfinite(a) & (a > 0)]
        if not a.size:
            return
        top = float(a.max())
        self.largest = max(self.largest, top)
        if not self.width:
            self.width = top / _BINS
        while top > self.width * _BINS * (1 + 1e-6):
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(_BINS // 2)])
            self.width *= 2
        at = np.minimum((a / np.float32(self.width)).astype(np.int64), _BINS - 1)
        self.counts += np.bincount(at, minlength=_BINS)


def threshold(h: Histogram, algorithm: str) -> float:
    """The largest magnitude that i8 should tell apart.

    Args:
        algorithm: A name as in the cache's header.
    """
    if algorithm == "MinMaxCalibration" or not h.largest:
        return h.largest
    if algorithm == "LegacyCalibration":
        shares = np.cumsum(h.counts) / h.counts.sum()
        return min(float(np.searchsorted(shares, _QUANTILE) + 1) * h.width, h.largest)
    return min(_least_divergence(h.counts) * h.width, h.largest)


def _least_divergence(counts: Array) -> int:
    """The number of bins that, clipped there and quantized to 128 levels, lose least information:
    the least Kullback-Leibler divergence of the quantized distribution from the clipped one."""
    used = int(np.nonzero(counts)[0][-1]) + 1
    if used <= _LEVELS:
        return used
    best, chosen = float("inf"), used
    for bins in [*range(_LEVELS, used, _STEP), used]:
        p = counts[:bins].copy()
        p[-1] += counts[bins:].sum()
        q = _quantized(counts[:bins])
        loss = _divergence(p, q)
        if loss < best:
            best, chosen = loss, bins
    return chosen


def _quantized(counts: Array) -> Array:
    """Counts spread evenly over the used bins of each of 128 levels."""
    level = np.arange(counts.size) * _LEVELS // counts.size
    used = counts > 0
    totals = np.bincount(level, counts, _LEVELS)
    holders = np.bincount(level, used, _LEVELS)
    mean = np.divide(totals, holders, out=np.zeros(_LEVELS), where=holders > 0)
    spread: Array = np.where(used, mean[level], 0.0)
    return spread


def _divergence(p: Array, q: Array) -> float:
    if not q.sum():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    floor = 1e-7  # of what was clipped into a bin that was empty
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], floor))))


# --- the cache ------------------------------------------------------------------------------------


def write_cache(ranges: Mapping[str, float], algorithm: str) -> bytes:
    """A calibration cache: a header, then ``name: scale`` with the scale's bits in hexadecimal."""
    major, minor, patch = (int(x) if x.isdigit() else 0 for x in version.tensorrt().split(".")[:3])
    number = major * 10000 + minor * 100 + patch if major >= 10 else (
        major * 1000 + minor * 100 + patch)
    lines = [f"TRT-{number}-{algorithm}"]
    for name, top in ranges.items():
        bits = struct.pack(">f", top / LARGEST).hex()
        lines.append(f"{name}: {bits}")
    return ("\n".join(lines) + "\n").encode()


def read_cache(data: bytes) -> dict[str, float]:
    """Largest magnitudes by tensor name.

    Raises:
        ValueError: If it is no calibration cache.
    """
    lines = bytes(data).decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].startswith("TRT-"):
        raise ValueError("it does not begin with TRT-<version>-<algorithm>")
    out = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, _, bits = line.rpartition(": ")
        try:
            (scale,) = struct.unpack(">f", bytes.fromhex(bits.strip()))
        except (ValueError, struct.error):
            raise ValueError(f"line {number} is not 'name: scale in hexadecimal': {line!r}") \
                from None
        out[name] = float(scale) * LARGEST
    return out


# --- calibrating ----------------------------------------------------------------------------------


def wants_calibration(graph: Graph, settings: BuildSettings) -> bool:
    """Whether a calibrator is to be asked; if not, the log says why."""
    reason = None
    if settings.strongly_typed:
        reason = "the network is strongly typed"
    elif "i8" not in settings.precisions:
        reason = "BuilderFlag.INT8 is not set"
    elif is_quantized(graph):
        reason = "the network has quantize and dequantize layers"
    if reason is not None:
        log.warning(f"the INT8 calibrator is not used: {reason}", settings.logger)
    return reason is None


def calibrate(
    graph: Graph, settings: BuildSettings, runner: Callable[[Graph], Any],
    implicit_batch: bool = False,
) -> bool:
    """Gives the values of a network their ranges, from the calibrator's cache or its batches.

    Ranges that were set by hand stay.

    Args:
        graph: The network, with control flow lowered; only ``meta["dynamic_range"]`` changes.
        settings: Those of the build; ``settings.calibrator`` is asked.
        runner: Makes a function (arrays by name -> arrays by name) of a graph.
        implicit_batch: Whether batches have as many samples as the calibrator says; otherwise
            their shapes are those of the calibration profile (or the first one).

    Returns:
        Whether there are ranges now.

    Raises:
        BuildError: If the calibrator fails, or gives no batches.
    """
    calibrator = settings.calibrator
    algorithm = _ALGORITHMS.get(int(_ask(calibrator, "get_algorithm")), "EntropyCalibration2")
    cache = _ask(calibrator, "read_calibration_cache")
    if cache is not None and len(cache):
        try:
            ranges = read_cache(bytes(cache))
        except ValueError as e:
            log.warning(f"the calibration cache is not used: {e}", settings.logger)
        else:
            return _annotate(graph, ranges)
    names = needed_tensors(graph)
    if not names:
        log.warning("nothing in the network can be calibrated", settings.logger)
        return False
    batch = int(_ask(calibrator, "get_batch_size")) if implicit_batch else 0
    histograms = _collect(graph, names, settings, runner, batch)
    ranges = {n: threshold(h, algorithm) for n, h in histograms.items()}
    try:
        calibrator.write_calibration_cache(memoryview(write_cache(ranges, algorithm)))
    except Exception as e:
        raise BuildError(f"calibrator.write_calibration_cache failed: {e!r}") from e
    return _annotate(graph, ranges)


def _ask(calibrator: Any, method: str, *args: Any) -> Any:
    try:
        return getattr(calibrator, method)(*args)
    except Exception as e:
        raise BuildError(f"calibrator.{method} failed: {e!r}") from e


def _annotate(graph: Graph, ranges: Mapping[str, float]) -> bool:
    found = False
    for v in graph.values():
        if v.name in ranges and v.dtype.is_float and "dynamic_range" not in v.meta:
            v.meta["dynamic_range"] = (-ranges[v.name], ranges[v.name])
            found = True
    return found


def needed_tensors(graph: Graph) -> list[str]:
    """Names of the tensors whose ranges implicit quantization of the network will ask for."""
    known = {v.name: v for v in graph.values() if v.dtype is T.f32 and v.const is None}
    twin, _ = graph.clone()
    for v in twin.values():  # everything has some range, so that the tensor asked for is found
        v.meta.pop("dynamic_range", None)
        if v.name in known:  # passes keep a value's notes where they give it another name
            v.meta["dynamic_range"], v.meta["range_of"] = (-1.0, 1.0), v.name
    optimize(twin)
    wanted: dict[str, None] = {}
    for node in twin.nodes:
        for of in (contraction_operand, residual_operand, averaged_operand):
            operand = of(node)
            found = None if operand is None else ranged(operand)
            if found is not None:
                wanted.setdefault(found[0].meta["range_of"])
    return [n for n in wanted if "dynamic_range" not in known[n].meta]


def _collect(
    graph: Graph, names: list[str], settings: BuildSettings, runner: Callable[[Graph], Any],
    batch: int,
) -> dict[str, Histogram]:
    """Histograms of the named tensors over all batches."""
    profile = settings.calibration_profile or (
        settings.profiles[0] if settings.profiles else ProfileSettings())
    shapes = {v.name: _shape(v, profile, batch) for v in graph.inputs}
    groups = list(_groups(graph, names, shapes))
    runs = [runner(_with_outputs(graph, group)) for group in groups]
    histograms = {n: Histogram() for n in names}
    read, batches = reader(settings), 0
    while (pointers := _ask(settings.calibrator, "get_batch", list(shapes))) not in (None, []):
        if len(pointers) != len(shapes):
            raise BuildError(f"calibrator.get_batch gave {len(pointers)} addresses for "
                             f"{len(shapes)} inputs: {', '.join(shapes)}")
        feeds = {v.name: read(int(p), shapes[v.name], v.dtype.np)
                 for v, p in zip(graph.inputs, pointers, strict=True)}
        for group, run in zip(groups, runs, strict=True):
            results = {**feeds, **run(feeds)}
            for n in group:
                histograms[n].add(results[n])
        batches += 1
    if not batches:
        raise BuildError("the calibrator gave no batches, and no calibration cache")
    log.info(f"Calibrated {len(names)} tensors with {batches} batches", settings.logger)
    return histograms


def _shape(v: Value, profile: ProfileSettings, batch: int) -> tuple[int, ...]:
    if batch and all(isinstance(d, int) for d in v.dims[1:]):
        return (batch, *(int(d) for d in v.dims[1:]))  # type: ignore[arg-type]
    if v.is_static:
        return tuple(int(d) for d in v.dims)  # type: ignore[arg-type]
    triple = profile.shapes.get(v.name)
    if triple is None:
        raise BuildError(f"input {v.name!r} varies, and no calibration profile gives its shape; "
                         "use config.set_calibration_profile")
    return tuple(triple[1])


def _groups(
    graph: Graph, names: list[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[list[str]]:
    """Tensors that are looked at together: about half a gigabyte of them."""
    from ..ir import dims as D

    env: dict[str, int] = {}
    for v in graph.inputs:
        for d, n in zip(v.dims, shapes[v.name], strict=True):
            env.update(dict.fromkeys(D.symbols(d), n))
    values = {v.name: v for v in graph.values()}
    groups: list[list[str]] = [[]]
    room = _CHUNK
    for name in names:
        try:
            size = 4 * D.evaluate(values[name].numel, env)
        except KeyError:
            size = _CHUNK // 16  # depends on data
        if groups[-1] and size > room:
            groups.append([])
            room = _CHUNK
        groups[-1].append(name)
        room -= size
    return groups


def _with_outputs(graph: Graph, names: list[str]) -> Graph:
    """A copy of the network whose outputs are the named tensors (inputs among them excepted)."""
    twin, _ = graph.clone()
    values = {v.name: v for n in twin.nodes for v in n.outputs}
    twin.outputs = [values[n] for n in names if n in values]
    return twin


def reader(settings: BuildSettings) -> Callable[[int, tuple[int, ...], Any], Array]:
    """Reads an array at an address the calibrator gave: in host memory, or on the GPU that the
    engine is for."""

    def from_host(address: int, shape: tuple[int, ...], dt: Any) -> Array:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dt).itemsize
        raw = (ctypes.c_ubyte * nbytes).from_address(address)
        return np.frombuffer(raw, dtype=dt).reshape(shape).copy()

    if settings.target != "cuda":
        return from_host
    from ..targets.cuda.driver import NoGpuError, open_gpu

    try:
        driver = open_gpu(0)
    except NoGpuError:
        return from_host  # kernels run on the host, too

    def from_gpu(address: int, shape: tuple[int, ...], dt: Any) -> Array:
        out = np.empty(shape, dt)
        driver.enter()
        driver.synchronize()
        driver.download(out.ctypes.data, address, out.nbytes)
        driver.synchronize()
        return out

    return from_gpu


def engine_runner(settings: BuildSettings) -> Callable[[Graph], Any]:
    """Makes functions of graphs: f32 engines on the CPU, built quickly."""
    plain = replace(
        settings, target="cpu", precisions=frozenset(), calibrator=None, optimization_level=0,
        refit="none", progress=None, timing_cache=None, precision_constraints="none",
        version_compatible=False,
        profiles=(settings.calibration_profile,) if settings.calibration_profile
        else settings.profiles,
    )

    def make(graph: Graph) -> Callable[[dict[str, Array]], dict[str, Array]]:
        if not graph.outputs:
            return lambda feeds: {}
        from ..runtime.easy import Engine
        from ..runtime.engine import ICudaEngine
        from ..targets.cpu.native import equip
        from .compile import compile_network

        program, _ = compile_network(graph, plain, "calibration")
        equip(program)
        return Engine(ICudaEngine(program, logger=settings.logger, runtime=None))

    return make
