"""`EngineInspector`: what an engine is made of, as text and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..ir import dims as D
from ..network.enums_build import LayerInformationFormat
from ..plan.program import Program, Step
from .report import Reporter

if TYPE_CHECKING:
    from .engine import ICudaEngine


class EngineInspector(Reporter):
    """Describes the steps of an engine. Made by `ICudaEngine.create_engine_inspector`.

    Attributes:
        execution_context: If set, dimensions that vary are shown as this context has them.
    """

    execution_context: Any

    def __init__(self, engine: ICudaEngine):
        self._engine = engine
        self._log_to = engine._log_to
        self.execution_context = None

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        """One step: its layers, tensors, tactic and measured alternatives; "" (and an error is
        logged) if there is none."""
        steps = self._engine._program.steps
        if not 0 <= layer_index < len(steps):
            self._fail(f"get_layer_information: layer {layer_index} of {len(steps)}")
            return ""
        entry = self._layer(steps[layer_index])
        if format == LayerInformationFormat.JSON:
            return json.dumps(entry, indent=2, ensure_ascii=False)
        return _oneline(entry)

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        """All steps, and the inputs and outputs."""
        program = self._engine._program
        layers = [self._layer(s) for s in program.steps]
        names = [t.name for t in self._engine._io]
        if format != LayerInformationFormat.JSON:
            return "\n".join([*map(_oneline, layers), f"Bindings: {', '.join(names)}"])
        if self._verbosity() == "none":
            layers = []
        return json.dumps(
            {"Layers": layers, "Bindings": names, "Engine": self._summary(program)},
            indent=2, ensure_ascii=False,
        )

    def _verbosity(self) -> str:
        return str(self._engine._program.settings.get("verbosity", "detailed"))

    def _summary(self, program: Program) -> dict[str, Any]:
        return {
            "Name": program.name,
            "Target": program.target,
            "Device": program.device,
            "Steps": len(program.steps),
            "ReferenceSteps": sum(s.kind == "reference" for s in program.steps),
            "WeightsBytes": self._engine._core.weights_size,
            "CodeBytes": sum(map(len, program.code)),
            "MemoryBytes": self._engine.device_memory_size,
            "Profiles": len(program.profiles),
            "Settings": {k: _plain(v) for k, v in program.settings.items()},
        }

    def _layer(self, step: Step) -> dict[str, Any]:
        entry: dict[str, Any] = {"Name": step.name}
        if self._verbosity() == "names":
            return entry | {"TacticName": step.info.get("tactic", step.kind)}
        entry["LayerType"] = step.kind
        entry["Inputs"] = [self._tensor(t) for t in step.inputs if t >= 0]
        entry["Outputs"] = [self._tensor(t) for t in step.outputs]
        entry["TacticName"] = str(step.info.get("tactic", step.kind))
        entry["TacticValue"] = step.symbol
        if isinstance(step.flops, int) and step.flops:
            entry["Flops"] = step.flops
        for key, value in step.info.items():
            if key != "tactic":
                entry[key] = _plain(value)
        return entry

    def _tensor(self, t: int) -> dict[str, Any]:
        tensor = self._engine._program.tensors[t]
        known = None
        context = self.execution_context
        if context is not None and context._current is not None:
            known = context._current.layout.known
        dims = [d if known is None or known.get(d) is None else known.get(d) for d in tensor.shape]
        return {
            "Name": tensor.name,
            "Location": tensor.kind,
            "Dimensions": [str(d) if isinstance(d, D.Dim) else d for d in dims],
            "Format/Datatype": f"{tensor.dtype} linear",
        }


def _plain(x: Any) -> Any:
    """JSON's own types; the rest as text."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    return str(x)


def _oneline(entry: dict[str, Any]) -> str:
    if "Inputs" not in entry:
        return f"{entry['Name']} [{entry['TacticName']}]"

    def shown(tensors: list[dict[str, Any]]) -> str:
        return ", ".join(
            f"{t['Name']}{t['Dimensions']}:{t['Format/Datatype'].split()[0]}" for t in tensors
        )

    return (
        f"{entry['Name']} [{entry['LayerType']}: {entry['TacticName']}] "
        f"{shown(entry['Inputs'])} -> {shown(entry['Outputs'])}"
    )
