"""ONNX's backend cases through engines for CUDA, in parallel processes and within a time limit.

    PYTHONPATH=. python benchmarks/gpu_onnx.py --seconds 150

The cases are those that `tests/onnx` runs on the CPU, the engines of level 0. Prints how many
passed, failed, were excluded, and the names of those that failed; a case that crashes its process
or hangs has failed. Also counts the steps that ran in numpy, by op. Compiling kernels takes nearly
all the time; they stay in the cache of compiled kernels, so that a second run is quick.
``TACTICIAN_GPU=interpreter`` rehearses without a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 6  # neighbours by name, which often share kernels, go to one process


@dataclass
class Tally:
    """What became of the cases.

    Attributes:
        passed, excluded, left: Names; ``left`` were not reached in time.
        failed: Name → why.
        host: Steps in numpy by op.
        kernels: Distinct kernels.
        slowest: (seconds, name).
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    host: Counter[str] = field(default_factory=Counter)
    kernels: set[str] = field(default_factory=set)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A summary."""
        count = len(self.passed) + len(self.failed)
        rate = 100 * len(self.passed) / max(count, 1)
        out = [
            f"ONNX backend suite: {len(self.passed)} passed, {len(self.failed)} failed "
            f"({rate:.2f} % of {count} pass), {len(self.excluded)} excluded, "
            f"{len(self.left)} not reached in time, {len(self.kernels)} kernels",
            f"steps in numpy: {sum(self.host.values())} ("
            + ", ".join(f"{op} {n}" for op, n in self.host.most_common()) + ")",
        ]
        out += [f"FAILED {name}: {why}" for name, why in sorted(self.failed.items())]
        return out


class Process:
    """A process that runs cases one after the other."""

    def __init__(self, device: str):
        self.device = device
        context = multiprocessing.get_context("fork")  # the cases are there already
        self.link, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, device), daemon=True)
        self.process.start()
        other.close()
        self.todo: list[str] = []
        self.name, self.began = "", 0.0

    def next(self) -> None:
        """Begins with the next case of its chunk."""
        self.name, self.began = self.todo.pop(0), time.time()
        self.link.send(self.name)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


def _serve(link: Connection, device: str) -> None:
    os.environ.setdefault("TACTICIAN_COMPILE_PROCESSES", "1")
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    while True:
        name = link.recv()
        link.send(_run(name, device))


def _run(name: str, device: str) -> dict[str, Any]:
    """Runs one case; says whether it passed, why not, and what ran where."""
    import numpy as np
    from suite import cases, run_case

    from tactician import onnx_backend

    made: list[Any] = []

    def prepare(model: Any) -> Any:
        made.append(onnx_backend.prepare(model, device))
        return made[-1]

    out: dict[str, Any] = {"error": "", "broken": False}
    try:
        with np.errstate(all="ignore"):
            run_case(cases()[name], prepare)
    except AssertionError as e:
        out["error"] = f"wrong: {' '.join(str(e).split())[:300]}"
    except Exception as e:  # what a failed launch leaves behind may spoil the cases after it
        out["error"] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        out["broken"] = True
    steps = [s for rep in made for e in rep.engines for s in e.cuda_engine._program.steps]
    out["host"] = [s.info["ops"][0] for s in steps if s.kind == "reference"]
    out["kernels"] = [s.symbol for s in steps if s.symbol]
    return out


def run_suite(
    seconds: float = 150.0, processes: int = 0, only: str = "", device: str = "CUDA",
    case_seconds: float = 60.0, say: Any = print,
) -> Tally:
    """Runs the cases.

    Args:
        seconds: Time limit, with the ten or so that loading the cases takes; cases not reached by
            then are listed as such.
        processes: How many at a time; 0: one per processor.
        only: A part of the names to run.
        case_seconds: After which a case is taken to hang.
        say: Called with progress.
    """
    sys.path.insert(0, str(ROOT / "tests" / "onnx"))
    from exclusions import reason
    from suite import cases

    from tactician import onnx_backend  # the processes inherit it

    assert onnx_backend
    end, tally = time.time() + seconds, Tally()
    names = sorted(n for n in cases() if only in n)
    tally.excluded = [n for n in names if reason(n) is not None]
    names = [n for n in names if reason(n) is None]
    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    say(f"suite: {len(names)} cases, {len(tally.excluded)} excluded")
    count = min(processes or len(os.sched_getaffinity(0)), max(len(chunks), 1))
    running: list[Process] = []
    noted = time.time()
    while time.time() < end and (chunks or any(p.name or p.todo for p in running)):
        while len(running) < count and chunks:
            running.append(Process(device))
        for p in running:
            if not p.name and (p.todo or chunks):
                p.todo = p.todo or chunks.pop(0)
                p.next()
        _collect(running, tally, case_seconds)
        if time.time() - noted > 20:
            noted = time.time()
            say(f"suite: {len(tally.passed)} passed, {len(tally.failed)} failed so far")
    for p in running:
        tally.left += [*([p.name] if p.name else []), *p.todo]
        p.end()
    tally.left += [n for c in chunks for n in c]
    return tally


def _collect(running: list[Process], tally: Tally, case_seconds: float) -> None:
    """Takes what has arrived; processes that died or hang are replaced by their successors."""
    busy = [p for p in running if p.name]
    ready = wait([p.link for p in busy], timeout=0.2)
    for p in busy:
        took = time.time() - p.began
        if p.link in ready:
            try:
                reply = p.link.recv()
            except (EOFError, OSError):
                p.process.join()
                reply = {"error": f"crashed its process (exit code {p.process.exitcode})",
                         "broken": True}  # fmt: skip
        elif took > case_seconds:
            reply = {"error": f"hangs (more than {case_seconds:.0f} s)", "broken": True}
        else:
            continue
        tally.slowest = sorted([*tally.slowest, (took, p.name)], reverse=True)[:10]
        tally.host.update(reply.get("host", ()))
        tally.kernels.update(reply.get("kernels", ()))
        if reply["error"]:
            tally.failed[p.name] = reply["error"]
        else:
            tally.passed.append(p.name)
        p.name = ""
        if reply["broken"]:
            successor = Process(p.device)
            successor.todo = p.todo
            running[running.index(p)] = successor
            p.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150, help="time limit")
    parser.add_argument("--processes", type=int, default=0, help="default: one per processor")
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--case-seconds", type=float, default=60)
    parser.add_argument("--out", default="", help="file for everything, as JSON")
    args = parser.parse_args()
    tally = run_suite(args.seconds, args.processes, args.only, case_seconds=args.case_seconds)
    print("\n".join(tally.lines()))
    print("slowest:", ", ".join(f"{n} {s:.1f} s" for s, n in tally.slowest))
    if args.out:
        data = {k: sorted(v) if isinstance(v, set) else v for k, v in vars(tally).items()}
        data["summary"] = tally.lines()
        Path(args.out).write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
