"""`tactician build`: a model becomes a plan."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, Json, Model, Shapes, Threads, Verbose, emit, logger, verb

MinShapes = Annotated[str, typer.Option("--min-shapes", help="Least shapes of dynamic inputs.")]
OptShapes = Annotated[str, typer.Option("--opt-shapes", help="Shapes to tune for.")]
MaxShapes = Annotated[str, typer.Option("--max-shapes", help="Greatest shapes.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        "-p",
        metavar="P,…",
        help="What kernels may compute in besides FP32: fp16, bf16, int8, fp8, tf32.",
    ),
]
Level = Annotated[
    int,
    typer.Option(
        "--level", "-l", min=0, max=5, help="Effort: 0 times nothing, 5 times everything."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--timing-cache", help="Read timings from this file, then write them back."),
]


@verb
def command(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: MODEL with suffix .plan.")
    ] = None,
    shapes: Shapes = "",
    min_shapes: MinShapes = "",
    opt_shapes: OptShapes = "",
    max_shapes: MaxShapes = "",
    precision: Precision = "",
    strongly_typed: Annotated[
        bool, typer.Option("--strongly-typed", help="Types exactly as the model says.")
    ] = False,
    level: Level = 3,
    timing_cache: Cache = None,
    workspace: Annotated[
        int, typer.Option("--workspace", min=0, help="Most scratch memory in MiB; 0: default.")
    ] = 0,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Caffemodel of a prototxt. Default: of the same name."),
    ] = None,
    threads: Threads = 0,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Build an ONNX or Caffe model into a plan: code and weights for this machine.

    Where inputs are dynamic, --shapes fixes them and --min/opt/max-shapes give a range. If you say
    nothing they may have any size, and kernels are tuned for a batch of 1 and sizes of 64.
    """
    from .building import Options, build_plan
    from .common import Failure, is_plan

    if is_plan(model):
        raise Failure(f"{model} is a plan already; give the model it was built from")
    options = Options(
        precision=precision,
        shapes=shapes,
        min_shapes=min_shapes,
        opt_shapes=opt_shapes,
        max_shapes=max_shapes,
        level=level,
        timing_cache=timing_cache,
        threads=threads,
        workspace_mb=workspace,
        strongly_typed=strongly_typed,
        weights=weights,
    )
    start = time.perf_counter()
    plan = bytes(build_plan(model, options, logger(verbose), quiet=json))
    seconds = time.perf_counter() - start
    target = output or model.with_suffix(".plan")
    target.write_bytes(plan)
    if json:
        emit({"model": model, "plan": target, "bytes": len(plan), "seconds": round(seconds, 3)})
    else:
        typer.echo(f"{target}: {len(plan):,} bytes, built in {seconds:.2f} s")
