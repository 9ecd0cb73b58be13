"""`tactician bench`: latency and throughput, alone or against onnxruntime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .build import Cache, Level, Precision
from .common import Debug, Json, Model, Shapes, Threads, Verbose, console, emit, logger, verb

if TYPE_CHECKING:
    from .measure import Timing

COLUMNS = ("best", "median", "p90", "p99")


@verb
def command(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="[NAME=]FILE", help="As for run; else random."),
    ] = None,
    shapes: Shapes = "",
    compare: Annotated[
        str,
        typer.Option("--compare", "-c", metavar="PEER", help="Also time 'onnxruntime'."),
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option("--model", help="The ONNX file for --compare where MODEL is a plan."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Length of a turn.")] = 0.5,
    precision: Precision = "",
    level: Level = 3,
    timing_cache: Cache = None,
    threads: Threads = 0,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure latency percentiles and throughput of a plan or a model.

    With --compare the two take turns in one process on the same inputs and threads.
    """
    from .building import Options, open_engine
    from .common import is_plan
    from .measure import alternate, engine_call, onnxruntime_call
    from .tensors import complete, match, read

    if compare not in ("", "onnxruntime"):
        raise typer.BadParameter(f"--compare: {compare!r} is not known; there is: onnxruntime")
    source = reference or model
    if compare and is_plan(source):
        raise typer.BadParameter("--compare needs the ONNX file: give it with --model")
    arrays = read(inputs or [])
    options = Options(
        shapes=shapes,
        arrays={name: a.shape for name, a in arrays.items()},
        level=level,
        threads=threads,
        precision=precision,
        timing_cache=timing_cache,
    )
    engine = open_engine(model, options, logger(verbose), quiet=json)
    feeds = complete(engine, match(arrays, engine), shapes, seed=0)
    contenders = {"tactician": engine_call(engine, feeds)}
    if compare:
        contenders["onnxruntime"] = onnxruntime_call(str(source), feeds, threads)
    timings = alternate(contenders, rounds, seconds)
    report = {name: asdict(t) for name, t in timings.items()}
    if json:
        shapes_used = {name: list(a.shape) for name, a in feeds.items()}
        result: dict[str, Any] = {"model": model, "shapes": shapes_used, "microseconds": report}
        if compare:
            result["ratio"] = ratio(timings)
        emit(result)
        return
    show(timings)


def ratio(timings: dict[str, Timing]) -> float:
    """How many times faster tactician is than onnxruntime, by medians."""
    return round(timings["onnxruntime"].median / timings["tactician"].median, 3)


def show(timings: dict[str, Timing]) -> None:
    """Print a table of latencies."""
    from rich.table import Table

    table = Table(title="latency of one inference, microseconds", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in (*COLUMNS, "per second", "calls"):
        table.add_column(column, justify="right")
    for name, t in timings.items():
        cells = [f"{getattr(t, c):,.1f}" for c in COLUMNS]
        table.add_row(name, *cells, f"{t.per_second:,.0f}", f"{t.calls:,}")
    out = console()
    out.print(table)
    if "onnxruntime" in timings:
        out.print(f"onnxruntime takes {ratio(timings):.2f} times as long (medians)")
