"""The autotuner: chooses the fastest correct kernel for each region on the device.

Candidates of all tactics that support a region are built, checked against the numpy reference
and timed. Times are kept in the timing cache under a key that holds everything they depend on,
so equal regions are measured once and a build with the same cache makes the same choices.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Value
from ..ops import evaluate
from ..ops.registry import D_ERRORS
from ..regions.region import Region, is_slice, pitch
from ..regions.signature import digest, signature
from ..support.errors import RefusedError
from ..support.tolerances import Tolerance, mismatch, tolerance
from .kernel import Kernel
from .tactic import Tactic, tactics_for

# A slower candidate wins against a faster one within this band if it comes first in the
# catalogue: repeated builds then agree although times are noisy.
_TIE_BAND = 1.03
# Checking against numpy is skipped above this many operations: numpy would take seconds.
_CHECK_FLOPS = 2e7
# Ops that round to a grid; results may be one step off.
_ROUNDING = frozenset({"quantize", "dynamic_quantize", "dynamic_quantize_linear"})
_ONE_STEP = Tolerance(0.0, 1.0)
_UNWRITTEN = 0x7F  # bytes of results before a kernel runs: large or NaN in every type


class Device:
    """What the tuner and the builder need of a target's device; targets derive theirs from it.

    Attributes:
        target: Name of the target.
        fingerprint: Names what code depends on; a plan runs only where it matches.
        precisions: Names of the narrow types (``f16``, ``bf16``, ``i8``, …) that its kernels
            compute in faster than in f32.
    """

    target: str
    fingerprint: str
    precisions: frozenset[str] = frozenset()

    def start(self, kernel: Kernel) -> Any:
        """Begins to compile a kernel in the background, if the device can do that."""
        return None

    def settle(self) -> None:
        """Waits until nothing compiles any more, so that timing is not disturbed."""

    def time_kernel(
        self, kernel: Kernel, arrays: list[np.ndarray[Any, Any]], env: Mapping[str, int],
        seconds: float,
    ) -> float:
        """Best time of a run in seconds, spending about ``seconds``; outputs are in ``arrays``
        afterwards."""
        raise NotImplementedError


@dataclass
class TunerSettings:
    """The part of the build settings that concerns choosing.

    Attributes:
        level: Optimization level: 0 takes the first candidate untimed; 1 and 2 time the first
            candidate of each tactic; 3 up to 6 candidates; 4 up to 12; 5 all.
        cache: Timing cache, or None.
        sources: Names of tactic sources that are on, or None for all.
        most: Most candidates timed per region; -1 leaves that to the level.
        error_on_miss: Raise instead of timing.
        env: Symbol values the kernels are tuned for.
        seconds: Time spent on measuring one candidate.
    """

    level: int = 3
    cache: MutableMapping[str, Any] | None = None
    sources: frozenset[str] | None = None
    most: int = -1
    error_on_miss: bool = False
    env: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.004


@dataclass
class Choice:
    """What the tuner decided for a region.

    Attributes:
        tactic, candidate: The winner, or ``reference`` / "" if no tactic supports the region.
        kernel: Its kernel, or None for ``reference``.
        info: Report entry: time, all candidates with times, and why others were rejected.
    """

    tactic: str
    candidate: str
    kernel: Kernel | None
    info: dict[str, Any]


class CacheMiss(LookupError):
    """A region has no timing in the cache although the build insists on it."""


class Tuner:
    """Chooses kernels for the regions of one build."""

    def __init__(self, device: Device, settings: TunerSettings):
        self.device = device
        self.settings = settings
        self.measured = 0
        self.hits = 0

    def choose(self, region: Region) -> Choice:
        """The best kernel for ``region``.

        Raises:
            CacheMiss: If measuring is needed but forbidden.
        """
        options, rejected = self._options(region)
        if not options:
            return Choice("reference", "", None, {"rejected": rejected})
        if self.settings.level == 0 or (len(options) == 1 and self.settings.level < 3):
            for tactic, candidate in options:
                kernel = self._built(region, tactic, candidate, rejected)
                if kernel is not None:
                    known = {_label(tactic, candidate): kernel}
                    return self._chosen(region, tactic, candidate, {}, rejected, known)
            return Choice("reference", "", None, {"rejected": rejected})
        key = self._key(region)
        kernels: dict[str, Kernel] = {}
        times = self._cached(key, options)
        if times is None:
            if self.settings.error_on_miss:
                raise CacheMiss(f"no timing for {region.describe()} in the timing cache")
            times, kernels = self._measure(region, options, rejected)
            if self.settings.cache is not None:
                self.settings.cache[key] = {"times": dict(times)}
        else:
            self.hits += 1
        return self._winner(region, options, times, rejected, kernels)

    # --- options -----------------------------------------------------------------------

    def _options(
        self, region: Region
    ) -> tuple[list[tuple[Tactic, Hashable]], dict[str, str]]:
        options: list[tuple[Tactic, Hashable]] = []
        rejected: dict[str, str] = {}
        per_tactic = self._breadth(region)
        for tactic in tactics_for(self.device.target):
            on = self.settings.sources
            if on is not None and tactic.source and tactic.source not in on:
                rejected[tactic.name] = f"tactic source {tactic.source} is off"
                continue
            moved = region.anchor is not None and bool(region.physical)
            if moved and not tactic.wants_channels_last(region, self.device):
                rejected[tactic.name] = "operands are stored channels-last"
                continue
            reason = tactic.refuse(region, self.device)
            if reason is not None:
                rejected[tactic.name] = reason
                continue
            found = list(tactic.candidates(region, self.device))[:per_tactic]
            options.extend((tactic, c) for c in found)
        return options[: self.settings.most] if self.settings.most > 0 else options, rejected

    def _breadth(self, region: Region) -> int:
        """Candidates tried per tactic: by level, and fewer for work too small to matter."""
        level = self.settings.level
        most = {0: 1, 1: 1, 2: 2, 3: 6, 4: 12}.get(level, 1 << 30)
        if level >= 4 or most == 1:
            return most
        seconds = _floor_seconds(region, self.settings.env)
        return 1 if seconds < 5e-6 else min(most, 2) if seconds < 5e-5 else most

    def _key(self, region: Region) -> str:
        text = signature(region)
        used = {s for v in (*region.inputs, *region.outputs) for d in v.dims
                for s in D.symbols(d)}
        sizes = ",".join(f"{s}={self.settings.env.get(s, 0)}" for s in sorted(used))
        return f"{self.device.target}/{self.device.fingerprint}/{digest(text + sizes)}"

    def _cached(
        self, key: str, options: list[tuple[Tactic, Hashable]]
    ) -> dict[str, float | None] | None:
        entry = None if self.settings.cache is None else self.settings.cache.get(key)
        if not entry:
            return None
        kept = entry.get("times", {})
        # in the catalogue's order, so that a build says the same however the cache is stored
        times = {name: kept[name] for t, c in options if (name := _label(t, c)) in kept}
        return times or None

    # --- measuring -----------------------------------------------------------------------

    def _measure(
        self, region: Region, options: list[tuple[Tactic, Hashable]], rejected: dict[str, str]
    ) -> tuple[dict[str, float | None], dict[str, Kernel]]:
        arrays = _random_arrays(region, self.settings.env)
        expected = _expected(region, arrays, self.settings.env)
        plain: dict[Value, np.ndarray[Any, Any]] | None = None  # the first tactic's results
        times: dict[str, float | None] = {}
        kernels: dict[str, Kernel] = {}
        for tactic, candidate in options:
            kernel = self._built(region, tactic, candidate, rejected)
            if kernel is not None:
                kernels[_label(tactic, candidate)] = kernel
                self.device.start(kernel)
        self.device.settle()
        for tactic, candidate in options:
            label = _label(tactic, candidate)
            if label not in kernels:
                times[label] = None
                continue
            kernel = kernels[label]
            call = [arrays[a] if isinstance(a, Value) else a for a in kernel.args]
            for v in region.outputs:  # what the candidate before wrote proves nothing
                whole = arrays[v].base if is_slice(v) else arrays[v]
                assert whole is not None
                whole.reshape(-1).view(np.uint8).fill(_UNWRITTEN)
            seconds = self.device.time_kernel(
                kernel, call, self.settings.env, self.settings.seconds
            )
            self.measured += 1
            against = expected
            if against is None and tactic.approximate:
                against = plain
            elif against is None and plain is None:
                plain = {v: arrays[v].copy() for v in region.outputs}
            wrong = _wrong(region, arrays, against)
            if wrong is None:
                times[label] = round(seconds * 1e6, 3)
            else:
                times[label] = None
                rejected[label] = wrong
        return times, kernels

    def _built(
        self, region: Region, tactic: Tactic, candidate: Hashable, rejected: dict[str, str]
    ) -> Kernel | None:
        """A candidate's kernel; None, with the reason noted, if a library refuses it."""
        try:
            return tactic.build(region, candidate, self.device)
        except RefusedError as e:
            rejected[_label(tactic, candidate)] = str(e)
            return None

    def _winner(
        self, region: Region, options: list[tuple[Tactic, Hashable]],
        times: dict[str, float | None], rejected: dict[str, str], kernels: dict[str, Kernel],
    ) -> Choice:
        good = [(times.get(_label(t, c)), t, c) for t, c in options]
        valid = [(x, t, c) for x, t, c in good if x is not None]
        if not valid:
            return Choice("reference", "", None, {"rejected": rejected, "times_us": times})
        best = min(x for x, _, _ in valid)
        _, tactic, candidate = next(v for v in valid if v[0] <= best * _TIE_BAND)
        return self._chosen(region, tactic, candidate, times, rejected, kernels)

    def _chosen(
        self, region: Region, tactic: Tactic, candidate: Hashable,
        times: dict[str, float | None], rejected: dict[str, str], kernels: dict[str, Kernel],
    ) -> Choice:
        kernel = kernels.get(_label(tactic, candidate))
        if kernel is None:
            kernel = tactic.build(region, candidate, self.device)
        info: dict[str, Any] = {"tactic": tactic.name, "candidate": str(candidate)}
        if times:
            info["time_us"] = times[_label(tactic, candidate)]
            info["times_us"] = times
        if rejected:
            info["rejected"] = rejected
        return Choice(tactic.name, str(candidate), kernel, info)


def _label(tactic: Tactic, candidate: Hashable) -> str:
    return f"{tactic.name}({candidate})"


def _concrete(v: Value, env: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(D.evaluate(d, env) for d in v.dims)


def _random_arrays(
    region: Region, env: Mapping[str, int]
) -> dict[Value, np.ndarray[Any, Any]]:
    """Operands with well-scaled random contents; constants are themselves."""
    rng = np.random.default_rng(0)
    addressing = {
        inner.value for s in region.stages for ld in E.loads(s.expr)
        for part in ld.index for inner in E.loads(part)
    }
    arrays: dict[Value, np.ndarray[Any, Any]] = {}
    for physical in region.inputs:
        v = physical.meta.get("logical", physical)
        if v.const is not None:
            arrays[v] = np.asarray(v.const, order="C")  # kernels get its address
            continue
        if v in arrays:
            continue
        shape = _concrete(v, env)
        if v.content is not None:
            ints = [D.evaluate(d, env) for d in v.content.flat]
            arrays[v] = np.array(ints, dtype=v.dtype.np).reshape(shape)
        elif v.dtype.is_float:
            arrays[v] = rng.standard_normal(shape, dtype=np.float32).astype(v.dtype.np)
        elif v.dtype.kind == "b":
            arrays[v] = np.asarray(rng.random(shape) < 0.5)  # a lone element is no array else
        elif _quantized(region, v):
            limits = np.iinfo(v.dtype.np)
            arrays[v] = rng.integers(limits.min, limits.max + 1, shape, v.dtype.np)
        elif region.anchor is not None or v in addressing:
            arrays[v] = np.zeros(shape, v.dtype.np)  # may be indices: zero is always in range
        else:
            low = 0 if v.dtype.kind == "u" else -3
            arrays[v] = rng.integers(low, 4, shape).astype(v.dtype.np)
    for physical in region.inputs:
        if "logical" in physical.meta:
            arrays[physical] = _stored(physical, arrays[physical.meta["logical"]])
        elif is_slice(physical):
            apart = _room(physical, arrays[physical].shape)
            apart[...] = arrays[physical]
            arrays[physical] = apart
    for v in region.outputs:
        arrays[v] = _room(v, _concrete(v, env))
    return arrays


def _quantized(region: Region, v: Value) -> bool:
    """Whether an integer operand holds quantized numbers rather than indices."""
    anchor = region.anchor
    return anchor is not None and anchor.op in ("int_matmul", "int_conv") and v.dtype.bits <= 8


def _stored(v: Value, logical: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as the value stores it."""
    out = _room(v, logical.transpose(v.meta["perm"]).shape)
    out[...] = logical.transpose(v.meta["perm"])
    return out


def _room(v: Value, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Zeros laid out as the value is, in the middle of others if it is a slice."""
    if not is_slice(v):
        return np.zeros(shape, v.dtype.np)
    return np.zeros((*shape[:-1], int(pitch(v))), v.dtype.np)[..., : shape[-1]]  # type: ignore[arg-type]


def _expected(
    region: Region, arrays: dict[Value, np.ndarray[Any, Any]], env: Mapping[str, int]
) -> dict[Value, np.ndarray[Any, Any]] | None:
    """The region's outputs by numpy, or None if that would take too long or can't be done."""
    if _reference_cost(region, env) > _CHECK_FLOPS:
        return None
    values: dict[Value, Any] = dict(arrays)
    if region.reformat:
        return None
    try:
        with np.errstate(all="ignore"):
            for node in region.nodes:
                ins = [_operand(v, values, env) for v in node.inputs]
                values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    except (KeyError, *D_ERRORS):
        return None
    expected = {}
    for v in region.outputs:
        logical = v.meta.get("logical", v)
        if logical in values:
            expected[v] = values[v] if logical is v else _stored(v, values[logical])
    return expected


def _operand(v: Value | None, values: Mapping[Value, Any], env: Mapping[str, int]) -> Any:
    if v is None:
        return None
    if v in values:
        return values[v]
    if v.const is not None:
        return v.const
    if v.content is not None:
        ints = [D.evaluate(d, env) for d in v.content.flat]
        return np.array(ints, dtype=v.dtype.np).reshape(_concrete(v, env))
    raise KeyError(v.name)


def _reference_cost(region: Region, env: Mapping[str, int]) -> float:
    sizes = (float(np.prod(_concrete(v, env), dtype=float)) for v in region.outputs)
    points = max(sizes, default=1.0)
    anchor = region.anchor
    if anchor is not None and len(anchor.inputs) > 1 and anchor.inputs[1] is not None:
        shape = _concrete(anchor.inputs[1], env)
        if anchor.op in ("matmul", "int_matmul"):
            points *= shape[-1 if anchor.attrs.tb == "transpose" else -2] if len(shape) > 1 else 1
        else:
            points *= float(np.prod(shape[1:], dtype=float))
    return points


def _floor_seconds(region: Region, env: Mapping[str, int]) -> float:
    """A rough lower bound of the region's time on one core: 40 GFLOP/s, 10 GB/s."""
    values = {*region.inputs, *region.outputs}
    moved = sum(float(np.prod(_concrete(v, env), dtype=float)) * v.dtype.size for v in values)
    return _reference_cost(region, env) * 2 / 40e9 + moved / 10e9


def _wrong(
    region: Region, arrays: Mapping[Value, np.ndarray[Any, Any]],
    expected: Mapping[Value, np.ndarray[Any, Any]] | None,
) -> str | None:
    """Why the outputs are wrong, or None. Without expectations any finite result passes."""
    if expected is None:
        return None
    rounds = any(n.op in _ROUNDING for n in region.nodes)
    for v, want in expected.items():
        # a sum in another order may fall on the other side of a rounding boundary
        tol = _ONE_STEP if rounds and v.dtype.is_int else tolerance(v.dtype.name)
        if rounds and v.dtype.is_float:
            continue
        why = mismatch(arrays[v], want, tol)
        if why is not None:
            return f"accuracy: {why} in {v.name!r}"
    return None
