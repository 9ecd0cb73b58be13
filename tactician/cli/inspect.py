"""`tactician inspect`: what is inside a model or a plan."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .build import Level, Precision
from .common import Debug, Json, Model, Shapes, Verbose, console, emit, logger, verb

if TYPE_CHECKING:
    import tactician as trt


@verb
def command(
    model: Model,
    network: Annotated[
        bool, typer.Option("--network", help="List a model's layers without building it.")
    ] = False,
    shapes: Shapes = "",
    precision: Precision = "",
    level: Level = 0,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show tensors, steps, tactics and memory of a plan or a model.

    A model is built first (quickly, level 0, unless --level says more).
    """
    from .building import Options, open_engine
    from .common import is_plan

    log = logger(verbose)
    options = Options(shapes=shapes, level=level, precision=precision)
    if network:
        if is_plan(model):
            raise typer.BadParameter("--network needs a model; a plan has no layers any more")
        report = describe_network(model, options, log)
        emit(report) if json else show_network(report)
        return
    engine = open_engine(model, options, log, quiet=json)
    report = describe_engine(engine)
    report["bytes"] = model.stat().st_size if is_plan(model) else None
    emit(report) if json else show_engine(report, str(model))


def describe_network(path: Any, options: Any, log: Any) -> dict[str, Any]:
    """Inputs, layers and outputs of a model as parsed."""
    import tactician as trt

    from .building import parse

    builder = trt.Builder(log)
    net = parse(path, builder, options, log)

    def tensor(t: trt.ITensor) -> dict[str, Any]:
        return {"name": t.name, "type": t.dtype.name, "shape": list(t.shape)}

    layers = []
    for index in range(net.num_layers):
        layer = net.get_layer(index)
        outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
        sources = [layer.get_input(k) for k in range(layer.num_inputs)]
        layers.append(
            {
                "name": layer.name,
                "type": layer.type.name,
                "op": getattr(layer, "op", None),
                "inputs": [t.name for t in sources if t is not None],
                "outputs": [tensor(t) for t in outputs if t is not None],
            }
        )
    return {
        "inputs": [tensor(net.get_input(i)) for i in range(net.num_inputs)],
        "outputs": [tensor(net.get_output(i)) for i in range(net.num_outputs)],
        "layers": layers,
    }


def describe_engine(engine: trt.ICudaEngine) -> dict[str, Any]:
    """Tensors, steps and memory of an engine."""
    import tactician as trt

    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode = engine.get_tensor_mode(name)
        entry: dict[str, Any] = {
            "name": name,
            "mode": mode.name.lower(),
            "type": engine.get_tensor_dtype(name).name,
            "shape": list(engine.get_tensor_shape(name)),
        }
        if mode == trt.TensorIOMode.INPUT and -1 in entry["shape"]:
            ranges = engine.get_tensor_profile_shape(name, 0)
            entry["profile"] = dict(zip(("min", "opt", "max"), map(list, ranges), strict=True))
        tensors.append(entry)
    inspector = engine.create_engine_inspector()
    info = jsonlib.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    whole = info["Engine"]
    return {
        "name": engine.name,
        "target": whole["Target"],
        "device": whole["Device"],
        "tensors": tensors,
        "profiles": whole["Profiles"],
        "context_memory": whole["MemoryBytes"],
        "weights": whole["WeightsBytes"],
        "code": whole["CodeBytes"],
        "reference_steps": whole["ReferenceSteps"],
        "settings": whole["Settings"],
        "steps": info["Layers"],
    }


def show_network(report: dict[str, Any]) -> None:
    """Print a model's layers as a table."""
    from rich.table import Table

    table = Table()
    for column in ("layer", "type", "outputs"):
        table.add_column(column, overflow="fold")
    for tensor in report["inputs"]:
        table.add_row(tensor["name"], "input", _typed(tensor))
    for layer in report["layers"]:
        outputs = "\n".join(_typed(t) for t in layer["outputs"])
        table.add_row(layer["name"], layer["op"] or layer["type"].lower(), outputs)
    out = console()
    out.print(table)
    names = ", ".join(t["name"] for t in report["outputs"])
    out.print(f"{len(report['layers'])} layers; outputs: {names}", markup=False)


def _typed(tensor: dict[str, Any]) -> str:
    return f"{tensor['type'].lower()}[{', '.join(map(str, tensor['shape']))}]"


def show_engine(report: dict[str, Any], title: str) -> None:
    """Print an engine's tensors and steps as tables."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    tensors = Table(title=escape(title), title_justify="left")
    for column in ("tensor", "", "type", "profile"):
        tensors.add_column(column, overflow="fold")
    for tensor in report["tensors"]:
        ranges = tensor.get("profile")
        extra = "\n".join(f"{k} {v}" for k, v in ranges.items()) if ranges else ""
        tensors.add_row(tensor["name"], tensor["mode"], escape(_typed(tensor)), escape(extra))
    out.print(tensors)
    table = Table()
    for column in ("step", "tactic", "time, µs", "output"):
        table.add_column(column, overflow="fold")
    for step in report["steps"]:
        outputs = (f"{t['Name']} {t['Dimensions']}" for t in step.get("Outputs", ()))
        tactic = " ".join(filter(None, (step["TacticName"], step.get("candidate"))))
        time = step.get("time_us")
        cells = (step["Name"], tactic, "" if time is None else f"{time:.1f}", "\n".join(outputs))
        table.add_row(*(escape(c) for c in cells))
    out.print(table)
    out.print(
        f"{len(report['steps'])} steps, {report['reference_steps']} of them in numpy (slow); "
        f"weights {report['weights']:,}, code {report['code']:,}, "
        f"memory of a context {report['context_memory']:,} bytes"
    )
    out.print(f"for {report['device']}", markup=False)
