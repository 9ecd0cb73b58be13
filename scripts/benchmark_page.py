"""Writes docs/NAME.md (default: benchmarks) and its chart from what benchmarks/bench.py measured,
in one run or in several on the same machine.

    python benchmarks/bench.py MODEL … --threads 2 --json results.json
    python scripts/benchmark_page.py results.json … [--name benchmarks-avx2]
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PEERS = ("onnxruntime", "openvino", "torch")


def main(files: list[Path], name: str) -> None:
    """Reads measurements and writes the page."""
    data = [json.loads(f.read_text()) for f in files]
    rows = {
        model.removesuffix(".onnx"): r for d in data for model, r in d["models"].items()
        if "microseconds" in r
    }
    machine = data[0]["machine"]
    for key in machine["peak"]:
        machine["peak"][key] = max(d["machine"]["peak"][key] for d in data)
    (DOCS / f"{name}.md").write_text(page(machine, rows, name))
    chart(rows, DOCS / f"{name}.svg")


def ratio(row: dict[str, Any], which: str = "best") -> float:
    """Best (or median) time of the fastest peer over tactician's."""
    times = row["microseconds"]
    peers = [times[p][which] for p in PEERS if p in times]
    return min(peers) / times["tactician"][which] if peers else math.nan


def mean(rows: dict[str, Any], which: str) -> float:
    """Geometric mean of the ratios that there are."""
    found = [r for r in (ratio(row, which) for row in rows.values()) if not math.isnan(r)]
    return math.exp(sum(map(math.log, found)) / len(found))


def page(machine: dict[str, Any], rows: dict[str, Any], name: str) -> str:
    """The page's text."""
    peak, versions = machine["peak"], machine["versions"]
    used = ", ".join(f"{k} {v}" for k, v in versions.items() if k in ("tactician", *PEERS))
    lines = [
        "# Benchmarks",
        "",
        f"{date.today().isoformat()}, {machine['cpu']}, {machine['threads']} threads; {used}.",
        f"One core's measured peak: {peak['gflops_per_core']} GFLOP/s (FP32), "
        f"{peak['read_gbytes_per_core']} GB/s read. Load average at the start: "
        f"{machine['load_average']:.1f}.",
        "",
        "All runtimes get the same FP32 inputs and threads, and take turns in one process. Times",
        "are the best of all calls, in milliseconds; the ratio is the fastest peer's time over",
        "tactician's (above 1: tactician is faster), by best times and by medians. Models other",
        "than the pretrained ones have random weights (`benchmarks/zoo.py`).",
        "",
        "Share: operations of contractions over what the cores could do in that time (above 100%",
        "where Winograd's algorithm saves multiplications). Memory: peak of a process that loads",
        "the model and runs it once, tactician's and onnxruntime's.",
        "",
        "| model | tactician | " + " | ".join(PEERS) + " | ratio | medians | share "
        "| build s | plan MiB | memory MiB |",
        "| --- | ---: | " + " | ".join("---:" for _ in PEERS) + " | ---: | ---: | ---: | ---: "
        "| ---: | ---: |",
    ]
    for model, row in rows.items():
        times = row["microseconds"]
        cells = [f"{times[p]['best'] / 1e3:.3f}" if p in times else "" for p in PEERS]
        mine = f"{times['tactician']['best'] / 1e3:.3f}"
        lines.append(
            f"| {model} | {mine} | {' | '.join(cells)} | {ratio(row):.2f} "
            f"| {ratio(row, 'median'):.2f} | {' | '.join(_others(row, machine))} |"
        )
    lines += [
        "",
        f"Geometric mean of the ratios over {len(rows)} models: {mean(rows, 'best'):.2f}, of "
        f"medians {mean(rows, 'median'):.2f}.",
        "",
        f"![Ratio to the fastest peer]({name}.svg)",
        "",
        "Measure again with `make bench`, then `python scripts/benchmark_page.py RESULTS.json`.",
        "",
    ]
    return "\n".join(lines)


def _others(row: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """Share of peak, build time, plan size and memory; empty where they were not measured."""
    could = machine["peak"]["gflops_per_core"] * 1e9 * (machine["threads"] or 1)
    seconds = row["microseconds"]["tactician"]["best"] / 1e6
    share = row.get("flops", 0) / seconds / could
    peaks = [row.get("peak_bytes", {}).get(p) for p in ("tactician", "onnxruntime")]
    return [
        f"{share:.0%}" if share else "",
        f"{row['build_seconds']:.1f}" if "build_seconds" in row else "",
        f"{row['plan_bytes'] / 2**20:.1f}" if "plan_bytes" in row else "",
        " / ".join(f"{p / 2**20:.0f}" if p else "?" for p in peaks) if any(peaks) else "",
    ]


def chart(rows: dict[str, Any], out: Path) -> None:
    """Bars of the ratio to the fastest peer."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tactician"
    import matplotlib.pyplot as plt

    names = list(rows)[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(names) + 1))
    axes.barh(names, [ratio(rows[n]) for n in names], color="#3b6ea5")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the fastest peer / time of tactician")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--name", default="benchmarks")
    options = parser.parse_args()
    main(options.results, options.name)
