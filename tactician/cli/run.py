"""`tactician run`: inputs in, outputs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .build import Level, Precision
from .common import Debug, Json, Model, Shapes, Threads, Verbose, console, emit, logger, verb


@verb
def command(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="[NAME=]FILE",
            help="An .npz with arrays named like inputs, or one .npy; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz.")
    ] = None,
    shapes: Shapes = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the random inputs.")] = 0,
    precision: Precision = "",
    level: Level = 3,
    threads: Threads = 0,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a plan, or a model that is built first, once.

    Inputs that no file gives are random: floats in 0..1, integers 0 or 1.
    """
    import numpy as np

    from ..runtime.easy import Engine
    from .building import Options, open_engine
    from .tensors import complete, match, read, summary

    arrays = read(inputs or [])
    options = Options(
        shapes=shapes,
        arrays={name: a.shape for name, a in arrays.items()},
        level=level,
        threads=threads,
        precision=precision,
    )
    engine = open_engine(model, options, logger(verbose), quiet=json)
    feeds = complete(engine, match(arrays, engine), shapes, seed)
    results = Engine(engine)(feeds)
    if output is not None:
        np.savez(output, **results)  # type: ignore[arg-type]
    table = {name: summary(a) for name, a in results.items()}
    if json:
        ins = {name: summary(a) for name, a in feeds.items()}
        emit({"inputs": ins, "outputs": table, "file": output})
        return
    out = console()
    for name, a in results.items():
        s = table[name]
        out.print(f"{name}  {s['dtype']} {s['shape']}", markup=False)
        with np.printoptions(threshold=40, edgeitems=4, precision=5, suppress=True):
            out.print(str(a), markup=False)
    if output is not None:
        out.print(f"written to {output}", markup=False)
