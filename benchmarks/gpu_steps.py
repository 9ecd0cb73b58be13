"""What the steps of an engine on a GPU take, beside their floors."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np

# Peaks of an H200, measured: dense f16 products, copies counting both ways; i8 is twice f16.
PEAK_FLOPS, BANDWIDTH = 790e12, 4.3e12


def peak(int8: bool) -> float:
    """Operations per second of dense products."""
    return PEAK_FLOPS * (2 if int8 else 1)


class Sampler:
    """Where the thread that made it spends its time: seconds by function, callees included."""

    def __init__(self, every: float = 0.05):
        self._thread, self._every, self._end = threading.get_ident(), every, threading.Event()
        self._counts: dict[str, float] = {}
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self._end.set()
        self._watcher.join()

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._end.wait(self._every):
            frame, seen = sys._current_frames().get(self._thread), set()
            while frame is not None:
                code = frame.f_code
                seen.add(f"{os.path.basename(code.co_filename)}:{code.co_name}")
                frame = frame.f_back
            now = time.perf_counter()
            for name in seen:
                self._counts[name] = self._counts.get(name, 0.0) + now - last
            last = now

    def top(self, most: int = 45) -> list[tuple[float, str]]:
        return sorted(((round(t, 2), n) for n, t in self._counts.items()), reverse=True)[:most]


def described(program: Any) -> list[dict[str, Any]]:
    """Steps with what was timed for their candidates, and their floors."""
    sizes = {}
    for i, t in enumerate(program.tensors):
        fixed = all(isinstance(d, int) for d in t.shape)
        sizes[i] = float(np.prod(t.shape)) * t.dtype.size if fixed else 0.0
    out = []
    for s in program.steps:
        moved = sum(sizes.get(t, 0.0) for t in {*s.args, *s.inputs, *s.outputs} if t >= 0)
        flops = float(s.flops) if isinstance(s.flops, (int, float)) else 0.0
        int8 = any(op in ("int_conv", "int_matmul") for op in s.info.get("ops", []))
        out.append({
            "name": s.name, "kind": s.kind, "tactic": s.info.get("tactic"), "symbol": s.symbol,
            "candidate": s.info.get("candidate"), "us": s.info.get("time_us"),
            "ops": "+".join(s.info.get("ops", [])[:8]),
            "shapes": " ".join("x".join(map(str, program.tensors[t].shape))
                               for t in (*s.inputs[:2], *s.outputs[:1]) if t >= 0),
            "floor_us": round(max(flops / peak(int8), moved / BANDWIDTH) * 1e6, 2),
            "all": s.info.get("times_us"), "rejected": s.info.get("rejected"),
            "blocks": int(np.prod([g for g in s.grid if isinstance(g, int)] or [1])),
        })
    return out


def profiled(engine: Any, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Kernels of one run of the whole engine as the profiler saw them: name, start and length in
    µs, in order."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.init()
    with engine._context() as context:
        for _ in range(4):
            engine._run(context, feeds)
        with profile(activities=[ProfilerActivity.CUDA]) as p:
            for _ in range(3):
                engine._run(context, feeds)
            torch.cuda.synchronize()
    events = sorted((e.time_range.start, e.time_range.end, e.name) for e in p.events()
                    if "memcpy" not in e.name.lower() and "memset" not in e.name.lower())
    third = len(events) // 3
    mine = events[2 * third :]
    if not mine:
        return {"events": []}
    first = mine[0][0]
    busy = sum(end - begin for begin, end, _ in mine)
    return {
        "span_us": round(mine[-1][1] - first, 2), "busy_us": round(busy, 2),
        "events": [[name[:80], round(begin - first, 2), round(end - begin, 2)]
                   for begin, end, name in mine],
    }


def table(record: dict[str, Any]) -> str:
    """Equal steps together, the most time first; then all candidates of each."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for s in record["steps"]:
        groups.setdefault((s["tactic"], s["candidate"], s["ops"], s["shapes"]), []).append(s)
    rows = sorted(groups.values(), key=lambda g: -len(g) * (g[0]["us"] or 0.0))
    total = sum(s["us"] or 0.0 for s in record["steps"])
    kernels = record.get("kernels") or {}
    lines = [
        f"--- {record['job']}: {record.get('ms', 0) * 1e3:.1f} us, tuned sum {total:.1f}, "
        f"profiler: busy {kernels.get('busy_us')} of {kernels.get('span_us')} us in "
        f"{len(kernels.get('events', []))} kernels",
        "   n   us(tuned) in network  floor blocks tactic candidate ops shapes",
    ]
    seen: dict[str, list[float]] = {}
    for name, _, took in kernels.get("events", []):
        seen.setdefault(name, []).append(took)
    for g in rows:
        s = g[0]
        own = [float(np.mean(seen[x["symbol"][:80]])) for x in g if x["symbol"][:80] in seen]
        inside = f"{np.mean(own):8.2f}" if own else "       ?"
        lines.append(
            f"{len(g):4d} {s['us'] or 0:9.2f} {inside}  {s['floor_us']:7.2f} {s['blocks']:5d} "
            f"{s['tactic']} {str(s['candidate'])[:60]} {s['ops'][:70]} {s['shapes'][:80]}"
        )
    for g in rows:
        s = g[0]
        lines.append(f"* {s['name'][:70]} {s['ops']} {s['shapes']}")
        timed = sorted((t, n) for n, t in (s["all"] or {}).items() if t is not None)
        lines += [f"      {t:9.2f} {n}" for t, n in timed]
        refused = (s["rejected"] or {}).items()
        lines += [f"      refused {n}: {str(why)[:160]}" for n, why in refused]
    lines += [f"    build {t:8.2f} s {name}" for t, name in record.get("build", [])]
    return "\n".join(lines)
