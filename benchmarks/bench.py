"""Compare tactician with other runtimes on ONNX models: `make bench`, or

    python benchmarks/bench.py [MODEL …] [--threads N] [--rounds N] [--json FILE]

Every runtime gets the same inputs and number of threads and takes its turns in one process,
alternating, so that what disturbs the machine disturbs all of them. Reported are the best and
the median latency of a call, how many times as long as tactician each other runtime takes
(medians), the peak memory of a process that loads the model and runs it once, and of tactician
how long the build took, the plan's size, and its rate as a share of what the cores could do. A
model is an ONNX file or the name of a network in zoo.py or zoo_int8.py. Without models, the
shipped LeNet and the pretrained models kept beside the checkout are measured. A model's inputs are
the `in::NAME` arrays of MODEL.onnx.npz if that is there, else random. Peers: onnxruntime; OpenVINO
where installed; torch where peers.py has the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import Any

import memory
import numpy as np
import onnx
import peak
import peers
import zoo
import zoo_int8

import tactician
from tactician.cli.building import Options, open_engine
from tactician.cli.common import logger
from tactician.cli.measure import Call, alternate, engine_call
from tactician.cli.tensors import complete
from tactician.runtime.easy import Engine

ROOT = Path(__file__).resolve().parent.parent


def find_models() -> list[Path]:
    """The shipped model, and those in TACTICIAN_SHARED or ../shared beside the checkout."""
    named = os.environ.get("TACTICIAN_SHARED")
    places = [Path(named)] if named else [p / "shared" for p in ROOT.parents[:2]]
    found = [ROOT / "tactician" / "data" / "lenet_digits.onnx"]
    for place in places:
        if (place / "models").is_dir():
            return found + sorted((place / "models").glob("*.onnx"))
    return found


def located(model: str, folder: Path) -> Path:
    """The file of a model; a network of zoo.py is written into `folder` first."""
    made = zoo.MODELS | zoo_int8.models(zoo.MODELS)
    if model not in made:
        return Path(model)
    path = folder / f"{model}.onnx"
    onnx.save(made[model](), path)
    return path


def machine(threads: int) -> dict[str, Any]:
    """What was measured on, and with what."""
    from tactician.targets.cpu.isa import Isa

    versions = {"tactician": tactician.__tactician_version__}
    for name in ("numpy", "onnxruntime", "openvino", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": Isa.host().summary(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "peak": peaks(),
    }


def peaks() -> dict[str, float]:
    """What one core can do at most, measured now."""
    return {
        "gflops_per_core": round(peak.peak_gflops(), 1),
        "read_gbytes_per_core": round(peak.peak_gbytes(), 1),
    }


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time one model by every runtime that takes it.

    Returns:
        ``microseconds`` (runtime to timing), ``ratio`` (runtime to times as long as tactician,
        by medians), ``difference`` (greatest, relative to the output's range, from tactician's),
        ``left_out`` (runtime to why), ``peak_bytes`` (runtime to peak memory of a process),
        ``build_seconds``, ``plan_bytes`` and ``flops`` of one run.
    """
    feeds = peers.feeds_of(model)
    options = Options(
        arrays={name: a.shape for name, a in feeds.items()},
        level=args.level,
        threads=args.threads,
        timing_cache=args.timing_cache,
        precision=args.precision,
    )
    peers.PRECISION = args.precision or "f32"
    began = time.perf_counter()
    engine = open_engine(model, options, logger(args.verbose), quiet=True)
    build = time.perf_counter() - began
    feeds = complete(engine, feeds, "", seed=0)
    calls: dict[str, Call] = {"tactician": engine_call(engine, feeds)}
    ours = list(Engine(engine)(feeds).values())
    left_out, difference = {}, {}
    for name, make in peers.PEERS.items():
        if name in args.without or not util.find_spec(name):
            continue
        try:
            calls[name], outputs = make(model, feeds, args.threads)
        except Exception as error:  # a peer that can't run the model is a result, not an end
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            continue
        difference[name] = peers.difference(ours, outputs)
    timings = alternate(calls, args.rounds, args.seconds)
    base = timings["tactician"].median
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        Engine(engine).save(plan)
        size = plan.stat().st_size
        peaks = {} if args.no_memory else _peaks({"tactician": plan}, calls, model, feeds, args)
    return {
        "build_seconds": round(build, 2),
        "plan_bytes": size,
        "peak_bytes": peaks,
        "flops": flops_of(engine),
        "microseconds": {name: asdict(t) for name, t in timings.items()},
        "ratio": {n: round(t.median / base, 3) for n, t in timings.items() if n != "tactician"},
        "difference": difference,
        "left_out": left_out,
    }


def _peaks(
    files: dict[str, Path], calls: dict[str, Call], model: Path, feeds: Any,
    args: argparse.Namespace,
) -> dict[str, int]:
    """Peak memory of one process for each runtime that was timed."""
    found = {}
    for name in calls:
        if name in memory.RUNTIMES:
            try:
                found[name] = memory.peak_memory(
                    name, files.get(name, model), feeds, args.threads
                )
            except RuntimeError as error:
                print(f"{model.name}: memory of {name}: {error}", file=sys.stderr)
    return found


def flops_of(engine: tactician.ICudaEngine) -> int:
    """Operations of the contractions in one run of an engine with fixed shapes; 0: unknown."""
    text = engine.create_engine_inspector().get_engine_information(
        tactician.LayerInformationFormat.JSON
    )
    counts = [layer.get("Flops", 0) for layer in json.loads(text)["Layers"]]
    return sum(c for c in counts if isinstance(c, int))


def share_of_peak(result: dict[str, Any], machine: dict[str, Any]) -> float:
    """FP32 operations per second of the best run over what all threads could do; 0: unknown.
    Above 1 where Winograd's algorithm saves multiplications, or integers are multiplied."""
    threads = machine["threads"] or os.cpu_count() or 1
    could = machine["peak"]["gflops_per_core"] * 1e9 * threads
    best = result["microseconds"]["tactician"]["best"] / 1e6
    return float(result.get("flops", 0) / best / could)


def show(results: dict[str, dict[str, Any]], machine: dict[str, Any]) -> None:
    """Print a table: a line per model and runtime."""
    head = f"{'best µs':>10s} {'median µs':>10s}   ratio {'memory':>11s} differs"
    print(f"{'model':34s} {'runtime':12s} {head}")
    for model, result in results.items():
        if "error" in result:
            print(f"{model:34s} {result['error']}")
            continue
        for name, t in result["microseconds"].items():
            ratio = result["ratio"].get(name, 1.0)
            gap = result["difference"].get(name)
            tail = "" if gap is None else f"{gap:.1e}"
            times = f"{t['best']:10,.1f} {t['median']:10,.1f}"
            held = result["peak_bytes"].get(name)
            mib = f"{held / 2**20:7.0f} MiB" if held else " " * 11
            print(f"{model:34s} {name:12s} {times} {ratio:7.2f} {mib} {tail}")
        about = f"built in {result['build_seconds']} s, plan {result['plan_bytes'] / 2**20:.1f} MiB"
        share = share_of_peak(result, machine)
        if share:
            about += f", {share:.0%} of the cores' peak"
        print(f"{'':34s} {about}")
        for name, why in result["left_out"].items():
            print(f"{model:34s} {name:12s} left out: {why}")
    ratios = [r.get("ratio", {}).get("onnxruntime") for r in results.values()]
    logs = [np.log(r) for r in ratios if r]
    if logs:
        mean = float(np.exp(np.mean(logs)))
        print(f"onnxruntime takes {mean:.2f} times as long (geometric mean of {len(logs)} models)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", help="ONNX files, or networks of the zoo")
    parser.add_argument("--threads", "-t", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn")
    parser.add_argument("--level", type=int, default=3, help="builder optimization level")
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument(
        "--precision", default="", choices=["", "bf16"],
        help="that kernels may use besides FP32; OpenVINO's, too (onnxruntime has none but FP32)",
    )
    parser.add_argument("--without", action="append", default=[], help="leave a peer out")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    parser.add_argument("--verbose", "-v", action="store_true")
    args = parser.parse_args()
    about = machine(args.threads)
    print(json.dumps(about, indent=2))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        models = [located(m, Path(folder)) for m in args.models] or find_models()
        for model in models:
            try:
                results[model.name] = measure(model, args)
            except Exception as error:  # the others are still worth measuring
                text = (str(error).splitlines() or [""])[0]
                results[model.name] = {"error": f"{type(error).__name__}: {text}"}
            print(model.name, file=sys.stderr)
    show(results, about)
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "models": results}, indent=2) + "\n")
    return int(any("error" in r for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
