"""`tactician compare`: an engine's values beside onnxruntime's or torch's, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .build import Level, Precision
from .common import (
    Debug,
    Failure,
    Json,
    Shapes,
    Threads,
    Verbose,
    console,
    emit,
    logger,
    parse_shapes,
    verb,
)

if TYPE_CHECKING:
    import numpy as np

    from ..builder.compare import Comparison, Row

_SHOWN = 12


@verb
def command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", exists=True, dir_okay=False,
                       help="An ONNX file, or an exported program of torch (.pt2)."),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="[NAME=]FILE", help="As for run; else random."),
    ] = None,
    shapes: Shapes = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the random inputs.")] = 0,
    relative: Annotated[
        float | None,
        typer.Option("--rtol", help="Tolerance relative to a tensor's greatest magnitude."),
    ] = None,
    absolute: Annotated[float | None, typer.Option("--atol", help="Absolute tolerance.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every tensor.")] = False,
    precision: Precision = "",
    level: Level = 0,
    threads: Threads = 0,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare every tensor of a model with onnxruntime (ONNX) or torch (.pt2).

    Names the first tensor out of tolerance; then the exit code is 1.
    """
    from .building import Options, precision_flags
    from .tensors import read

    arrays = read(inputs or [])
    options = Options(shapes=shapes, arrays={n: a.shape for n, a in arrays.items()}, level=level,
                      threads=threads, precision=precision)
    precision_flags(precision)
    side = _torch_side if model.suffix == ".pt2" else _onnx_side
    found = side(model, options, arrays, seed, logger(verbose), (relative, absolute))
    if json:
        emit(found.to_json())
    else:
        _show(found, every)
    if not found.ok:
        raise typer.Exit(1)


def _onnx_side(model: Path, options: Any, arrays: Mapping[str, np.ndarray], seed: int, log: Any,
               tolerances: tuple[float | None, float | None]) -> Comparison:
    import tactician as trt

    from ..builder.compare import compare_network
    from .building import configure, parse, precision_flags

    def builder_of() -> Any:
        builder = trt.Builder(log)
        builder.max_threads = options.threads
        return builder

    network = parse(model, builder_of(), options, log)

    def settings() -> tuple[Any, Any]:
        builder = builder_of()
        config = configure(builder, network, options)
        for flag in precision_flags(options.precision):
            config.set_flag(flag)
        return builder, config

    feeds = _feeds(network, arrays, options.shapes, seed)
    return compare_network(network, settings, feeds, onnxruntime_values(model, feeds), *tolerances)


def _feeds(network: Any, arrays: Mapping[str, np.ndarray], shapes: str, seed: int
           ) -> dict[str, np.ndarray]:
    """Inputs by name; random where no file gives them, sizes that nothing says are 1."""
    import numpy as np

    values = network.graph.inputs
    names = [v.name for v in values]
    given = parse_shapes(shapes, names)
    feeds = {names[0] if n == "" else n: a for n, a in arrays.items()}
    unknown = sorted(set(feeds) - set(names))
    if unknown:
        raise typer.BadParameter(f"--input: no input is named {unknown[0]!r}; there are {names}")
    rng = np.random.default_rng(seed)
    for v in values:
        if v.name not in feeds:
            shape = given.get(v.name) or [d if isinstance(d, int) else 1 for d in v.dims]
            dtype = v.dtype.np
            kind = np.dtype(dtype).kind
            feeds[v.name] = rng.integers(0, 2, shape).astype(dtype) if kind in "iub" else \
                rng.random(shape, dtype=np.float32).astype(dtype)
    return feeds


def onnxruntime_values(model: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of an ONNX model as onnxruntime computes it without optimizations.

    Raises:
        Failure: If onnxruntime is not installed.
    """
    import onnx

    try:
        import onnxruntime as ort
    except ImportError:
        raise Failure("compare needs onnxruntime: pip install onnxruntime") from None
    proto = onnx.load(str(model))
    had = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in had:
                had.add(name)
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    values = session.run(names, {n: a for n, a in feeds.items() if n in wanted})
    return {n: v for n, v in zip(names, values, strict=True) if hasattr(v, "dtype")}


def _torch_side(model: Path, options: Any, arrays: Mapping[str, np.ndarray], seed: int, log: Any,
                tolerances: tuple[float | None, float | None]) -> Comparison:
    try:
        import torch
    except ImportError:
        raise Failure("comparing with torch needs torch") from None
    from ..torch.compare import compare
    from .building import PRECISIONS

    program = torch.export.load(str(model))
    call = program.example_inputs
    if arrays or options.shapes or call is None:
        raise typer.BadParameter("an exported program is compared on its example inputs; leave "
                                 "--input and --shapes out" if call is not None else
                                 f"{model} has no example inputs")
    names = [n for n in options.precision.lower().split(",") if n in PRECISIONS and n != "tf32"]
    return compare(program, precisions=names, optimization_level=options.level,
                   threads=options.threads, relative=tolerances[0], absolute=tolerances[1])


def _show(found: Comparison, every: bool) -> None:
    out = console()
    bad = [r for r in found.layers if not r.ok]
    for row in found.layers if every else bad[:_SHOWN]:
        out.print(_line(row), markup=False)
    if not every and len(bad) > _SHOWN:
        out.print(f"… and {len(bad) - _SHOWN} more", markup=False)
    for row in found.outputs:
        out.print("as built: " + _line(row), markup=False)
    out.print(f"{len(found.layers)} tensors compared, {len(bad)} out of tolerance", markup=False)
    if found.first is not None:
        where = f" ({found.first.source})" if found.first.source else ""
        why = "; only when layers are fused" if found.fused else ""
        out.print(f"first out of tolerance: {found.first.name}, computed by layer "
                  f"{found.first.layer!r} [{found.first.op}]{where}{why}", markup=False)


def _line(row: Row) -> str:
    mark = "ok  " if row.ok else "BAD "
    share = "" if row.ok else f", {row.wrong} of {row.count} elements"
    return f"{mark}{row.name}  {list(row.shape)}  error {row.error:.3g} (allowed " \
           f"{row.allowed:.3g}){share}"
