"""The autotuner: chooses the fastest correct kernel for each region on the device.

Candidates of all tactics that support a region are built, checked against the numpy reference
and timed. Times are kept in the timing cache under a key that holds everything they depend on,
so equal regions are measured once and a build with the same cache makes the same choices.
"""

from __future__ import annotations

import math
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Value
from ..ops import evaluate, get
from ..ops._shapes import is_data_dependent
from ..ops.registry import D_ERRORS, Kind
from ..regions.region import Region, is_slice
from ..regions.signature import digest, signature
from ..support.errors import RefusedError
from .agreement import outvoted, wrong_outputs
from .kernel import Kernel
from .operands import aligned_copy, concrete, random_arrays, room, stored
from .sampling import sampled
from .tactic import Tactic, tactics_for

# A slower candidate wins against a faster one within this band if it comes first in the
# catalogue: repeated builds then agree although times are noisy.
_TIE_BAND = 1.03
_LIKE_BAND = 1.05  # the same for what shares constants
_SHARING = 6  # candidates looked at for one that shares constants
_CLOSE = 1.5  # candidates up to so much slower than the best are timed again
_DRIFT = 1.2  # by as much faster or slower than before, and the machine is in another state
_RESTARTS = 3  # times that all candidates are timed anew because of that
# Above this many operations numpy would take seconds; some elements are checked then. Products of
# matrices are quick in numpy.
_CHECK_FLOPS = 2e7
_CHECK_MATRIX_FLOPS = 4e8
UNWRITTEN = 0x7F  # bytes of results before a kernel runs: large or NaN in every type


class Device:
    """What the tuner and the builder need of a target's device; targets derive theirs from it.

    Attributes:
        target: Name of the target.
        fingerprint: Names what code depends on; a plan runs only where it matches.
        precisions: Names of the narrow types (``f16``, ``bf16``, ``i8``, …) that its kernels
            compute in faster than in f32.
        conditions: What times depend on beside the fingerprint; part of the timing cache's keys.
        can_time: Whether it can run kernels; without, choices come from the timing cache or the
            cost models.
        cross_checks: Whether candidates are compared with each other where numpy would take too
            long.
        rounds: Turns that the fastest candidates take when they are timed, so that what else
            runs on the device disturbs all of them; the best time counts.
    """

    target: str
    fingerprint: str
    precisions: frozenset[str] = frozenset()
    conditions = ""
    can_time = True
    cross_checks = False
    rounds = 1

    def start(self, kernel: Kernel) -> Any:
        """Begins to compile a kernel in the background, if the device can do that."""
        return None

    def refuses(self, kernel: Kernel) -> str | None:
        """Why a kernel that was started could not be compiled, or None."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a plan says of the device and its compilers, beside the fingerprint."""
        return {}

    def libraries_of(self, code: Sequence[bytes]) -> dict[str, int]:
        """Libraries that a program's code calls, with the versions here."""
        return {}

    def breadth(self, level: int, seconds: float) -> int:
        """Candidates tried per tactic: by level, and fewer for work too small to matter.

        Args:
            seconds: `floor_seconds` of the region.
        """
        most = {0: 1, 1: 1, 2: 2, 3: 6, 4: 12}.get(level, 1 << 30)
        if level >= 4 or most == 1:
            return most
        return 1 if seconds < 5e-6 else min(most, 2) if seconds < 5e-5 else most

    def floor_seconds(self, flops: float, moved: float, dtype: str) -> float:
        """A rough lower bound of a region's time: on one core 40 GFLOP/s, 10 GB/s."""
        return flops / 40e9 + moved / 10e9

    def bench(
        self, region: Region, arrays: dict[Value, np.ndarray[Any, Any]], env: Mapping[str, int],
        seconds: float,
    ) -> Bench:
        """Runs the candidates of a region."""
        return Bench(self, region, arrays, env, seconds)

    def settle(self) -> None:
        """Waits until nothing compiles any more, so that timing is not disturbed."""

    def time_kernel(
        self, kernel: Kernel, arrays: list[np.ndarray[Any, Any]], env: Mapping[str, int],
        seconds: float,
    ) -> float:
        """Best time of a run in seconds, spending about ``seconds``; outputs are in ``arrays``
        afterwards."""
        raise NotImplementedError


class Bench:
    """Runs and times the candidates of one region; here with operands in host memory.

    Args:
        arrays: Operands of the region.
        env: Values of symbols.
        seconds: Time to spend on a candidate.
    """

    def __init__(
        self, device: Device, region: Region, arrays: dict[Value, np.ndarray[Any, Any]],
        env: Mapping[str, int], seconds: float,
    ):
        self.device, self.region, self.arrays = device, region, arrays
        self.env, self.seconds = env, seconds

    def time(self, kernel: Kernel) -> float:
        """Best time in seconds. Results are overwritten before: what the candidate before wrote
        proves nothing.

        Raises:
            RefusedError: If the kernel can't be compiled or launched.
        """
        call = [self._argument(a) for a in kernel.args]
        for v in self.region.outputs:
            storage_of(v, self.arrays[v]).reshape(-1).view(np.uint8).fill(UNWRITTEN)
        return self.device.time_kernel(kernel, call, self.env, self.seconds)

    def _argument(self, a: Value | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not isinstance(a, Value):
            return aligned_copy(a)
        if a in self.arrays:
            return self.arrays[a]
        return room(a, concrete(a, self.env))  # the kernel's own memory

    def results(self, whole: bool) -> dict[Value, np.ndarray[Any, Any]]:
        """What the last candidate computed.

        Args:
            whole: False: a part, the same for all candidates, will do.
        """
        return {v: self.arrays[v] for v in self.region.outputs}

    def close(self) -> None:
        """Gives memory back."""


def storage_of(v: Value, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The contiguous array that holds a value's operand: a slice lies in a wider one."""
    if not is_slice(v):
        return array
    # not its base: that may be a buffer around the wider array
    row = array.strides[-2] // array.itemsize
    return np.lib.stride_tricks.as_strided(array, (*array.shape[:-1], row), array.strides)


@dataclass(frozen=True)
class Option:
    """A correct candidate, for a `Select` function.

    Attributes:
        tactic, candidate: Names.
        seconds: Its time; 0 if it was not timed.
        workspace: Bytes of scratch memory.
    """

    tactic: str
    candidate: str
    seconds: float
    workspace: int


Select = Callable[[Region, Sequence[Option]], "Sequence[int] | None"]
"""Given a region and its correct candidates in the order of trial, gives the numbers of those that
may be used, or None for any."""


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
        workspace: Most bytes of scratch memory that a kernel may use, or None.
        exact: Leave out tactics that are approximate: they may spread a NaN or an infinity.
        select: Asked which of a region's candidates may be used; see `Select`.
        seconds: Time spent on measuring one candidate.
    """

    level: int = 3
    cache: MutableMapping[str, Any] | None = None
    sources: frozenset[str] | None = None
    most: int = -1
    error_on_miss: bool = False
    env: Mapping[str, int] = field(default_factory=dict)
    workspace: int | None = None
    exact: bool = False
    select: Select | None = None
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
        self._built_before: dict[tuple[Region, str], Kernel] = {}

    def prefetch(self, regions: Sequence[Region]) -> None:
        """Begins to compile what `choose` will measure, so that compilers never wait for the
        device."""
        if self.settings.level == 0 or not (self.device.cross_checks and self.device.can_time):
            return
        seen: set[str] = set()
        for region in regions:
            if region.anchor is not None and get(region.anchor.op).kind is Kind.CONTROL:
                continue
            options, rejected = self._options(region)
            key = self.key(region)
            if not options or key in seen or self._cached(key, options) is not None:
                continue
            if not all(t.timed for t, _ in options):
                continue
            seen.add(key)
            for tactic, candidate in options:
                kernel = self._built(region, tactic, candidate, rejected)
                if kernel is not None:
                    self._built_before[region, _label(tactic, candidate)] = kernel
                    self.device.start(kernel)

    def choose(self, region: Region, like: str = "", timed: bool = False) -> Choice:
        """The best kernel for ``region``.

        Args:
            timed: Time it even if there is no choice, as it is compared with other regions.
            like: Tactic and candidate, as reports write them, that is taken if it is hardly
                slower than the best: it shares packed constants with another kernel.

        Raises:
            CacheMiss: If measuring is needed but forbidden.
        """
        # results of unknown size are nothing to time
        late = region.anchor is not None and is_data_dependent(region.anchor)
        if late or (self.settings.level == 0 and self.settings.select is None):
            reasons: dict[str, str] = {}
            return self._first(region, self._found(region, reasons), reasons)
        options, rejected = self._options(region)
        if not options:
            return Choice("reference", "", None, {"rejected": rejected})
        alone = len(options) == 1 and self.settings.level < 3 and not timed
        if alone and self.settings.select is None:
            return self._first(region, options, rejected)
        if not any(t.timed for t, _ in options):
            return self._first(region, options, rejected)
        options = [(t, c) for t, c in options if t.timed]
        key = self.key(region)
        kernels: dict[str, Kernel] = {}
        times = self._cached(key, options)
        if times is None and not self.device.can_time:
            return self._first(region, options, rejected)
        if times is None:
            if self.settings.error_on_miss:
                raise CacheMiss(f"no timing for {region.describe()} in the timing cache")
            times, kernels = self._measure(region, options, rejected)
            if self.settings.cache is not None:
                self.settings.cache[key] = {"times": dict(times)}
        else:
            self.hits += 1
        return self._winner(region, options, times, rejected, kernels, like)

    def same(self, region: Region, like: Choice) -> Choice | None:
        """A kernel of another choice's tactic that reads the constants which that one's kernel has
        packed, if there is one: of the same candidate, else the fastest."""
        options, rejected = self._options(region)
        mine = [(t, c) for t, c in options if t.name == like.tactic]
        times = self._cached(self.key(region), mine) or {}
        own = f"{like.tactic}({like.candidate})"
        best = sorted(mine, key=lambda o: (_label(*o) != own, times.get(_label(*o)) or math.inf))
        for tactic, candidate in best[:_SHARING]:
            kernel = self._built(region, tactic, candidate, rejected)
            if kernel is not None and like.kernel is not None and _share(kernel, like.kernel):
                label = _label(tactic, candidate)
                known = times if label in times else {}
                return self._chosen(region, tactic, candidate, known, rejected, {label: kernel})
        return None

    def _first(
        self, region: Region, options: Iterable[tuple[Tactic, Hashable]], rejected: dict[str, str]
    ) -> Choice:
        """The first candidate that can be made."""
        for tactic, candidate in options:
            kernel = self._built(region, tactic, candidate, rejected)
            if kernel is not None:
                known = {_label(tactic, candidate): kernel}
                return self._chosen(region, tactic, candidate, {}, rejected, known)
        return Choice("reference", "", None, {"rejected": rejected})

    # --- options -----------------------------------------------------------------------

    def _options(
        self, region: Region
    ) -> tuple[list[tuple[Tactic, Hashable]], dict[str, str]]:
        rejected: dict[str, str] = {}
        return list(self._found(region, rejected)), rejected

    def _found(
        self, region: Region, rejected: dict[str, str]
    ) -> Iterator[tuple[Tactic, Hashable]]:
        """Candidates in the catalogue's order, one tactic after the other as they are asked for,
        and reasons against other tactics."""
        per_tactic = self._breadth(region)
        left = self.settings.most if self.settings.most > 0 else -1
        for tactic in tactics_for(self.device.target):
            reason = self._refusal(region, tactic)
            if reason is not None:
                rejected[tactic.name] = reason
                continue
            for candidate in list(tactic.candidates(region, self.device))[:per_tactic]:
                if left == 0:
                    return
                left -= 1
                yield tactic, candidate

    def _refusal(self, region: Region, tactic: Tactic) -> str | None:
        """Why a tactic can't or must not do a region."""
        if self.settings.exact and tactic.approximate:
            return "NaN and infinity are to be kept where they are"
        on = self.settings.sources
        if on is not None and tactic.source and tactic.source not in on:
            return f"tactic source {tactic.source} is off"
        if region.parts:
            return tactic.refuse(region, self.device) if tactic.joins else "one layer"
        moved = region.anchor is not None and bool(region.physical)
        if moved and not tactic.wants_channels_last(region, self.device):
            return "operands are stored channels-last"
        return tactic.refuse(region, self.device)

    def _breadth(self, region: Region) -> int:
        """Candidates tried per tactic."""
        flops, moved = _work(region, self.settings.env)
        dtype = region.outputs[0].dtype.name if region.outputs else "f32"
        seconds = self.device.floor_seconds(flops, moved, dtype)
        return self.device.breadth(self.settings.level, seconds)

    def key(self, region: Region) -> str:
        """The region's key in the timing cache."""
        text = signature(region)
        used = {s for v in (*region.inputs, *region.outputs) for d in v.dims
                for s in D.symbols(d)}
        sizes = ",".join(f"{s}={self.settings.env.get(s, 0)}" for s in sorted(used))
        place = f"{self.device.target}/{self.device.fingerprint}{self.device.conditions}"
        return f"{place}/{digest(text + sizes)}"

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
        arrays = random_arrays(region, self.settings.env)
        expected = _expected(region, arrays, self.settings.env)
        places = None
        if expected is None and not self.device.cross_checks:
            places = sampled(region, arrays, self.settings.env)
        plain: dict[Value, np.ndarray[Any, Any]] | None = None  # the first tactic's results
        times: dict[str, float | None] = {}
        kernels: dict[str, Kernel] = {}
        for tactic, candidate in options:
            kernel = self._built(region, tactic, candidate, rejected)
            if kernel is not None:
                kernels[_label(tactic, candidate)] = kernel
                self.device.start(kernel)
        self.device.settle()
        bench = self.device.bench(region, arrays, self.settings.env, self.settings.seconds)
        samples: dict[str, dict[Value, np.ndarray[Any, Any]]] = {}
        for tactic, candidate in options:
            label = _label(tactic, candidate)
            times[label] = None
            if label not in kernels:
                continue
            try:
                seconds = bench.time(kernels[label])
            except RefusedError as e:
                rejected[label] = str(e)
                continue
            self.measured += 1
            got = bench.results(expected is not None)
            against = expected
            if places is not None:
                against = {v: want for v, (_, want) in places.items()}
                got = {v: got[v][index] for v, (index, _) in places.items()}
            elif against is None and tactic.approximate:
                against = plain
            elif against is None and plain is None and not self.device.cross_checks:
                plain = {v: a.copy() for v, a in got.items()}
            wrong = wrong_outputs(region, got, against)
            if wrong is None:
                times[label] = round(seconds * 1e6, 3)
                if expected is None and self.device.cross_checks:
                    samples[label] = got
            else:
                rejected[label] = wrong
        self._in_one_state(bench, kernels, times)
        self._again(bench, kernels, times)
        bench.close()
        for label in kernels:
            self._built_before.pop((region, label), None)
        for label, wrong in outvoted(region, samples).items():
            times[label] = None
            rejected[label] = wrong
        return times, kernels

    def _again(
        self, bench: Bench, kernels: Mapping[str, Kernel], times: dict[str, float | None]
    ) -> None:
        """More turns for the candidates that may be the best yet."""
        for _ in range(self.device.rounds - 1):
            known = {label: t for label, t in times.items() if t is not None}
            near = [x for x, t in known.items() if t <= _CLOSE * min(known.values())]
            if len(near) < 2:
                return
            for label in near:
                times[label] = min(known[label], round(bench.time(kernels[label]) * 1e6, 3))

    def _in_one_state(
        self, bench: Bench, kernels: Mapping[str, Kernel], times: dict[str, float | None]
    ) -> None:
        """Times all candidates anew if the first one shows that the machine is in another state
        than when it had its turn: programs that share a core come and go, clocks change."""
        known = [label for label, t in times.items() if t is not None]
        if self.device.rounds < 2 or len(known) < 2:
            return
        for _ in range(_RESTARTS):
            before, now = times[known[0]], round(bench.time(kernels[known[0]]) * 1e6, 3)
            assert before is not None
            if before / _DRIFT <= now <= before * _DRIFT:
                return
            times[known[0]] = now
            for label in known[1:]:
                times[label] = round(bench.time(kernels[label]) * 1e6, 3)

    def _built(
        self, region: Region, tactic: Tactic, candidate: Hashable, rejected: dict[str, str]
    ) -> Kernel | None:
        """A candidate's kernel; None, with the reason noted, if a library or a compiler refuses
        it."""
        label = _label(tactic, candidate)
        kernel = self._built_before.get((region, label))
        try:
            if kernel is None:
                kernel = tactic.build(region, candidate, self.device)
        except RefusedError as e:
            rejected[label] = str(e)
            return None
        reason = self.device.refuses(kernel) or self._too_large(kernel)
        if reason is not None:
            rejected[label] = reason
            return None
        return kernel

    def _too_large(self, kernel: Kernel) -> str | None:
        need, most = self._workspace(kernel), self.settings.workspace
        if most is None or need <= most:
            return None
        return f"it needs {need} bytes of workspace, the limit is {most}"

    def _workspace(self, kernel: Kernel) -> int:
        """Scratch memory of all threads, or on the device."""
        env = self.settings.env
        if kernel.launch is not None:
            return D.evaluate(kernel.launch.workspace, env)
        return D.evaluate(kernel.scratch, env) * max(int(getattr(self.device, "threads", 1)), 1)

    def _selected(
        self, region: Region, valid: list[tuple[float, Tactic, Hashable]],
        rejected: dict[str, str], kernels: dict[str, Kernel],
    ) -> list[tuple[float, Tactic, Hashable]]:
        """The candidates that `TunerSettings.select` leaves."""
        if self.settings.select is None or not valid:
            return valid
        options, usable = [], []
        for x, tactic, candidate in valid:
            label = _label(tactic, candidate)
            kernel = kernels.get(label) or self._built(region, tactic, candidate, rejected)
            if kernel is not None:
                kernels[label] = kernel
                usable.append((x, tactic, candidate))
                options.append(
                    Option(tactic.name, str(candidate), x / 1e6, self._workspace(kernel))
                )
        chosen = self.settings.select(region, options)
        return usable if chosen is None else [usable[i] for i in chosen]

    def _winner(
        self, region: Region, options: list[tuple[Tactic, Hashable]],
        times: dict[str, float | None], rejected: dict[str, str], kernels: dict[str, Kernel],
        like: str,
    ) -> Choice:
        good = [(times.get(_label(t, c)), t, c) for t, c in options]
        valid = [(x, t, c) for x, t, c in good if x is not None]
        valid = self._selected(region, valid, rejected, kernels)
        while valid:
            best = min(x for x, _, _ in valid)
            chosen = next(v for v in valid if v[0] <= best * _TIE_BAND)
            same = (v for v in valid if _label(v[1], v[2]) == like and v[0] <= best * _LIKE_BAND)
            chosen = next(same, chosen)
            _, tactic, candidate = chosen
            kernel = self._built(region, tactic, candidate, rejected)
            if kernel is not None:
                kernels[_label(tactic, candidate)] = kernel
                return self._chosen(region, tactic, candidate, times, rejected, kernels)
            valid.remove(chosen)
        return Choice("reference", "", None, {"rejected": rejected, "times_us": times})

    def _chosen(
        self, region: Region, tactic: Tactic, candidate: Hashable,
        times: dict[str, float | None], rejected: dict[str, str], kernels: dict[str, Kernel],
    ) -> Choice:
        kernel = kernels[_label(tactic, candidate)]
        info: dict[str, Any] = {"tactic": tactic.name, "candidate": str(candidate)}
        if times:
            info["time_us"] = times[_label(tactic, candidate)]
            info["times_us"] = times
        if rejected:
            info["rejected"] = rejected
        return Choice(tactic.name, str(candidate), kernel, info)


def _share(kernel: Kernel, other: Kernel) -> bool:
    """Whether all constants that a kernel has packed are among those of another."""
    theirs = [a for a in other.args if isinstance(a, np.ndarray)]
    return all(
        any(a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b) for b in theirs)
        for a in kernel.args if isinstance(a, np.ndarray)
    )


def _label(tactic: Tactic, candidate: Hashable) -> str:
    return f"{tactic.name}({candidate})"


def _expected(
    region: Region, arrays: dict[Value, np.ndarray[Any, Any]], env: Mapping[str, int]
) -> dict[Value, np.ndarray[Any, Any]] | None:
    """The region's outputs by numpy, or None if that would take too long or can't be done."""
    quick = region.anchor is not None and region.anchor.op in ("matmul", "attention")
    if _reference_cost(region, env) > (_CHECK_MATRIX_FLOPS if quick else _CHECK_FLOPS):
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
            expected[v] = values[v] if logical is v else stored(v, values[logical])
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
        return np.array(ints, dtype=v.dtype.np).reshape(concrete(v, env))
    raise KeyError(v.name)


def _reference_cost(region: Region, env: Mapping[str, int]) -> float:
    sizes = (float(np.prod(concrete(v, env), dtype=float)) for v in region.outputs)
    points = max(sizes, default=1.0)
    anchor = region.anchor
    if anchor is not None and len(anchor.inputs) > 1 and anchor.inputs[1] is not None:
        shape = concrete(anchor.inputs[1], env)
        if anchor.op in ("matmul", "int_matmul"):
            points *= shape[-1 if anchor.attrs.tb == "transpose" else -2] if len(shape) > 1 else 1
        elif anchor.op == "attention":
            points *= 2 * shape[-2]
        else:
            points *= float(np.prod(shape[1:], dtype=float))
    return points


def _work(region: Region, env: Mapping[str, int]) -> tuple[float, float]:
    """Roughly the operations of a region and the bytes it moves."""
    values = {*region.inputs, *region.outputs}
    moved = sum(float(np.prod(concrete(v, env), dtype=float)) * v.dtype.size for v in values)
    return _reference_cost(region, env) * 2, moved
