"""The GPU benchmark in one call: several networks are built at a time, each is timed alone.

    PYTHONPATH=. python benchmarks/gpu_suite.py --out DIR --seconds 540 [--cache FILE] [JOB…]

A job is ``NAME:BATCH[:WORD…]`` of `zoo.MODELS`; words: ``int8`` (quantized, Q/DQ), ``serial``
(``TACTICIAN_OVERLAP=0``), ``l2`` (level 2; any digit), ``alone`` (nothing else runs meanwhile, so
that its build time says something). Kernels compile in parallel; whatever is timed holds a lock.
``peers`` runs torch: eager in a CUDA graph, then ``torch.compile``, plain and in a CUDA graph.
Results are printed as they come and again at the end. ``DIR`` gets ``suite.json``,
``timing.cache`` (also what ``--cache`` gives to the next run) and ``steps.txt``: what every step
took, its floor, and all candidates with their times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import gpu  # noqa: E402
import gpu_steps  # noqa: E402

from tactician.targets.cuda.bench import exclusive  # noqa: E402

JOBS = (
    "resnet50:1:alone", "peers", "bert_base:1", "vit_b16:1", "resnet50:128:int8:l2",
    "bert_base:32", "vit_b16:32", "resnet50:128:l2", "resnet50:32:l2", "resnet50:1:serial",
    "bert_base:1:serial", "vit_b16:32:serial",
)
PEER_ORDER = (
    ("bert_base", 1), ("vit_b16", 1), ("resnet50", 1), ("bert_base", 32), ("vit_b16", 32),
    ("resnet50", 32), ("resnet50", 128),
)
GOALS = {**gpu.GOALS, "resnet50:128:int8": 2.0}
START = float(os.environ.get("GPU_SUITE_START", time.time()))


def say(text: str) -> None:
    print(f"[{time.time() - START:6.1f}] {text}", flush=True)


# --- a job, in a process of its own ------------------------------------------------------------


def model_of(name: str, batch: int, words: list[str]) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The model to build, the model that says what is right, and inputs."""
    import zoo

    if "int8" in words:
        import zoo_qdq

        plain = zoo_qdq.with_batch(zoo_qdq.quantized(zoo.MODELS[name](1)), batch)
        right = zoo_qdq.with_batch(plain, 1)
        return plain, right, gpu.feeds_for(plain)
    plain = zoo.MODELS[name](batch)
    # weights do not depend on the batch (but for ViT's token): one row by itself tells as much
    right = plain if name == "vit_b16" else zoo.MODELS[name](1)
    return plain, right, gpu.feeds_for(plain)


def run_job(args: argparse.Namespace, job: str) -> dict[str, Any]:
    """Builds a network, compares its results and times it."""
    name, number, *words = job.split(":")
    batch = int(number)
    os.environ["TACTICIAN_OVERLAP"] = "0" if "serial" in words else "1"
    level = next((int(w[1:]) for w in words if w[:1] == "l" and w[1:].isdigit()), args.level)
    import tactician
    from tactician.support import logger as log

    record: dict[str, Any] = {"job": job}
    plain, right, feeds = model_of(name, batch, words)
    right = right.SerializeToString()  # before the inputs of the model become halves
    data = gpu.half_io(plain).SerializeToString()
    cache = Path(args.work) / f"{job.replace(':', '_')}.cache"
    began = time.time()
    class Kept(log.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.texts: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            self.texts.append(text)
            if severity <= log.Severity.WARNING:
                say(f"{job}: {text[:300]}")

    logger = Kept()
    with gpu_steps.Sampler() as sampler:
        engine = tactician.build(
            data, device="gpu", fp16=True, int8="int8" in words, level=level, timing_cache=cache,
            logger=logger,
        )
    record["build"] = sampler.top()
    record["notes"] = [t for t in logger.texts if "auxiliary" in t]
    record["build_s"] = round(time.time() - began, 1)
    program = engine.cuda_engine._program
    record["launches"] = len(program.steps)
    record["host"] = [s.name for s in program.steps if s.kind == "reference"]
    given = {n: a.astype(engine.inputs[n][1]) for n, a in feeds.items()}
    record["floor_ms"] = max(
        gpu.GFLOPS.get(name, 0) * 1e9 * batch / gpu_steps.peak("int8" in words),
        gpu.program_bytes(program) / gpu_steps.BANDWIDTH,
    ) * 1e3
    record["steps"] = gpu_steps.described(program)
    say(f"{job}: built in {record['build_s']} s, {record['launches']} steps")
    if gpu.IS_HOST:
        return record
    with exclusive():
        record.update(gpu.times_of(engine, given, 1.0))
        say(line_of(record))
        try:
            record["kernels"] = gpu_steps.profiled(engine, given)
        except Exception as e:
            say(f"{job}: no profile: {type(e).__name__}: {str(e)[:200]}")
    record.update(gpu.plan_load(engine))
    rows = batch if name == "vit_b16" else 1
    want = gpu.expected(right, {n: a[:rows] for n, a in feeds.items()})
    got = list(engine(given).values())
    record["error"] = max(gpu.error(g[:rows], w) for g, w in zip(got, want, strict=True))
    return record


def line_of(r: dict[str, Any], peers: dict[str, Any] | None = None) -> str:
    """One line of the table."""
    job = r["job"]
    words = job.split(":")
    plain = ":".join(words[:2] + [w for w in words[2:] if w == "int8"])
    goal = GOALS.get(plain)
    peer = (peers or {}).get(":".join(words[:2]), {})
    ms = r.get("ms", 0.0)
    text = f"{job:26s} {ms:8.4f} ms goal {goal} {'ok ' if goal and ms <= goal else 'NO '}"
    text += f"floor {r['floor_ms']:.3f} launches {r['launches']} build {r['build_s']} s"
    text += f" err {r.get('error', -1):.1e} load {r.get('load_ms', -1)} ms"
    text += f" python {r.get('python_us', 0):.1f} us, queued {r.get('queued_us', 0):.1f} us"
    for kind in ("eager", "compile", "compile_graph"):
        if peer.get(kind) and ms:
            text += f" | {kind} {peer[kind]:.3f} ({peer[kind] / ms:.2f}x)"
    text += f" {r['notes'][0]}" if r.get("notes") else ""
    return text + (f" HOST {r['host'][:3]}" if r.get("host") else "")


# --- torch --------------------------------------------------------------------------------------


def torch_times(net: Any, x: Any) -> tuple[float, float]:
    """Milliseconds of a call, and of a call in a CUDA graph (both by events)."""
    import torch

    stream = torch.cuda.Stream()

    def timed(call: Any) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples = []
        for _ in range(9):
            begin.record(stream)
            for _ in range(20):
                call()
            end.record(stream)
            stream.synchronize()
            samples.append(begin.elapsed_time(end) / 20)
        return statistics.median(samples)

    with torch.no_grad(), torch.cuda.stream(stream):
        net(x)  # compiles
        with exclusive():
            for _ in range(3):
                net(x)
            stream.synchronize()
            plain = timed(lambda: net(x))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                net(x)
            return plain, timed(graph.replay)


def run_peers(args: argparse.Namespace) -> dict[str, Any]:
    """torch's times, eager ones first; whatever time allows."""
    import torch

    torch.backends.cudnn.benchmark = True
    found: dict[str, Any] = {}
    out = Path(args.work) / "peers.json"
    for kind in ("eager", "compile"):
        for name, batch in PEER_ORDER:
            label = f"{name}:{batch}"
            if left(args) < 40:
                return found
            began = time.time()
            try:
                net, x = gpu.torch_network(name, batch)
                if kind == "compile":
                    torch._dynamo.reset()
                    net = torch.compile(net)
                plain, graph = torch_times(net, x)
                found.setdefault(label, {}).update(
                    {"compile": plain, "compile_graph": graph} if kind == "compile"
                    else {"eager_calls": plain, "eager": graph})
                say(f"torch {kind} {label}: {plain:.3f} ms by calls, {graph:.3f} ms in a graph "
                    f"(after {time.time() - began:.0f} s)")
            except Exception as e:
                say(f"torch {kind} {label}: {type(e).__name__}: {str(e)[:300]}")
            net = x = None
            torch.cuda.empty_cache()
            out.write_text(json.dumps(found))
    return found


# --- the parent ---------------------------------------------------------------------------------


def left(args: argparse.Namespace) -> float:
    return float(args.seconds) - (time.time() - START)


def start(args: argparse.Namespace, job: str, processes: int) -> subprocess.Popen[bytes]:
    cache = Path(args.work) / "timing.cache"
    mine = Path(args.work) / f"{job.replace(':', '_')}.cache"
    if cache.exists():
        mine.write_bytes(cache.read_bytes())
    env = {
        **os.environ, "GPU_SUITE_START": str(START),
        "TACTICIAN_COMPILE_PROCESSES": str(processes), "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    say(f"start {job}")
    return subprocess.Popen([
        sys.executable, str(Path(__file__).resolve()), "--out", args.out, "--work", args.work,
        "--seconds", str(args.seconds), "--level", str(args.level), "--job", job], env=env)


def merge(args: argparse.Namespace, job: str) -> None:
    """Adds a job's timings to the common cache."""
    from tactician.builder.timing_cache import ITimingCache

    mine = Path(args.work) / f"{job.replace(':', '_')}.cache"
    if not mine.exists():
        return
    common = Path(args.work) / "timing.cache"
    whole = ITimingCache.load(common.read_bytes() if common.exists() else b"")
    whole.combine(ITimingCache.load(mine.read_bytes()), True)
    data = bytes(whole.serialize())
    common.write_bytes(data)
    Path(args.out, "timing.cache").write_bytes(data)


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What the jobs have written so far, kept in ``DIR``."""
    results = {p.stem: json.loads(p.read_text()) for p in sorted(Path(args.work).glob("*.json"))}
    slim = {k: {n: v for n, v in r.items() if n != "steps"} for k, r in results.items()}
    Path(args.out, "suite.json").write_text(json.dumps(slim, indent=0, default=str))
    text = "\n\n".join(gpu_steps.table(r) for r in results.values() if "steps" in r)
    Path(args.out, "steps.txt").write_text(text[: 15 << 20])
    return results


def run_all(args: argparse.Namespace) -> None:
    """Runs jobs, some at a time, until they or the time are over."""
    waiting, running = list(args.jobs), {}
    while (waiting or running) and left(args) > 12:
        alone = any("alone" in j for j in running)
        builds = sum(j != "peers" for j in running)
        while waiting and not alone and left(args) > 45:
            next_alone = "alone" in waiting[0]
            if (next_alone and running) or (waiting[0] != "peers" and builds >= args.parallel):
                break
            job = waiting.pop(0)
            running[job] = start(args, job, args.cores if next_alone else args.each)
            alone, builds = next_alone, builds + (job != "peers")
        time.sleep(0.5)
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                if process.returncode:
                    say(f"{job}: ended with status {process.returncode}")
                merge(args, job)
                collect(args)
    for job, process in running.items():
        say(f"{job}: out of time")
        process.kill()
    for job in waiting:
        say(f"{job}: no time left to start it")


def summary(args: argparse.Namespace) -> None:
    results = collect(args)
    peers = results.pop("peers", {})
    for r in results.values():
        if "steps" in r and not gpu.IS_HOST:
            print("\n".join(gpu_steps.table(r).splitlines()[: 1 + (args.top and args.top + 1)]))
    print(f"\n=== summary {json.dumps(gpu.facts(), default=str)[:700]}")
    for r in results.values():
        print(line_of(r, peers))
    for label, p in peers.items():
        print(f"torch {label}: " + ", ".join(f"{k} {v:.3f}" for k, v in p.items()))
    sys.stdout.flush()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("jobs", nargs="*", default=list(JOBS))
    p.add_argument("--out", default=".")
    p.add_argument("--seconds", type=float, default=540)
    p.add_argument("--level", type=int, default=3)
    p.add_argument("--cache", default="", help="timing cache to begin with")
    p.add_argument("--parallel", type=int, default=3, help="builds at a time")
    p.add_argument("--cores", type=int, default=os.cpu_count() or 8)
    p.add_argument("--each", type=int, default=0, help="compiling processes of each build")
    p.add_argument("--top", type=int, default=0, help="steps shown of each network")
    p.add_argument("--work", default="", help=argparse.SUPPRESS)
    p.add_argument("--job", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.each = args.each or max(2, args.cores // 2)
    args.work = args.work or tempfile.mkdtemp(prefix="gpu_suite")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.job:
        try:
            found = run_peers(args) if args.job == "peers" else run_job(args, args.job)
        except Exception as e:
            say(f"FAIL {args.job}: {type(e).__name__}: {str(e)[:500]}")
            print("\n".join(traceback.format_exc().splitlines()[-8:]), flush=True)
            sys.exit(1)
        name = f"{args.job.replace(':', '_')}.json"
        Path(args.work, name).write_text(json.dumps(found, default=str))
        if args.job != "peers" and not gpu.IS_HOST:
            say(line_of(found))
        return
    if args.cache and Path(args.cache).exists():
        Path(args.work, "timing.cache").write_bytes(Path(args.cache).read_bytes())
    say(f"facts {gpu.facts()}")
    run_all(args)
    summary(args)


if __name__ == "__main__":
    main()
