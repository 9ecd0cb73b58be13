"""Layer by layer: where an engine's values first leave those of a reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..network.interfaces import IDebugListener
from ..network.network import INetworkDefinition
from ..runtime.easy import Engine
from ..support.errors import BuildError, UsageError
from ..support.tolerances import tolerance

Array = np.ndarray[Any, Any]
Configure = Callable[[], tuple[Any, Any]]  # a builder, and a configuration with profiles


@dataclass(frozen=True)
class Row:
    """One tensor beside its reference.

    Attributes:
        name: The tensor's.
        layer, op: What computes it.
        source: Where that stands in the model.
        error: Greatest difference.
        allowed: The greatest that is within tolerance.
        wrong: Elements out of tolerance.
        count: All elements.
    """

    name: str
    layer: str
    op: str
    source: str
    shape: tuple[int, ...]
    error: float
    allowed: float
    wrong: int
    count: int

    @property
    def ok(self) -> bool:
        """Whether every element is within tolerance."""
        return not self.wrong


@dataclass
class Comparison:
    """What `compare_network` found.

    Attributes:
        layers: Every tensor that the reference has, in the order of computation, each kept apart
            from fusion.
        outputs: The results of the engine as it is built otherwise.
        first: The first tensor out of tolerance.
        fused: Whether it is only out of tolerance when layers are fused as usual.
    """

    layers: list[Row] = field(default_factory=list)
    outputs: list[Row] = field(default_factory=list)
    first: Row | None = None
    fused: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything is within tolerance."""
        return self.first is None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        def plain(row: Row) -> dict[str, Any]:
            return {**asdict(row), "ok": row.ok}

        return {"ok": self.ok, "first": self.first and plain(self.first), "fused": self.fused,
                "layers": [plain(r) for r in self.layers],
                "outputs": [plain(r) for r in self.outputs]}


class _Listener(IDebugListener):
    """Keeps what an engine computes."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Array] = {}

    def process_debug_tensor(self, addr: int, location: Any, type: Any, shape: Any, name: str,
                             stream: int) -> bool:
        from ..network.enums import nptype

        kind = np.dtype(nptype(type))
        size = int(np.prod(tuple(shape), dtype=np.int64)) * kind.itemsize
        data = ctypes.string_at(addr, size) if size else b""
        self.values[name] = np.frombuffer(data, kind).reshape(tuple(shape))
        return True


def compare_network(network: INetworkDefinition, settings: Configure, feeds: Mapping[str, Array],
                    reference: Mapping[str, Array], relative: float | None = None,
                    absolute: float | None = None) -> Comparison:
    """Compares an engine's values with a reference's.

    Every tensor that the reference names is compared with fusion kept away from it, and so are
    the results of the engine as it is built otherwise. If only these differ, layers are kept
    apart up to more and more of them until the first is found that fusion spoils.

    Args:
        network: The network; marks for debugging are changed.
        settings: Makes a builder and a configuration for each build.
        feeds: Inputs by name.
        reference: What tensors should be, by name; tensors of other names are left out.
        relative: Tolerance relative to the greatest magnitude of a tensor; by default that of its
            element type.
        absolute: Absolute tolerance; by default that of the element type.

    Raises:
        BuildError: If the network can't be built.
        UsageError: If the reference names no tensor of the network.
    """
    names = [v.name for n in network.graph.nodes for v in n.outputs
             if v.name in reference and v.numel != 0]
    names = list(dict.fromkeys(names))
    if not names:
        raise UsageError("the reference has no tensor of the network's")
    results, every = _run(network, settings, feeds, names)
    outputs, _ = _run(network, settings, feeds, [])

    def rows(values: Mapping[str, Array], which: Sequence[str]) -> list[Row]:
        return [_row(network, n, values[n], reference[n], relative, absolute) for n in which
                if n in values]

    out = Comparison(rows({**results, **every}, names),
                     rows(outputs, [n for n in outputs if n in reference]))
    out.first = next((r for r in out.layers if not r.ok), None)
    bad = next((r for r in out.outputs if not r.ok), None)
    if out.first is None and bad is not None:
        out.fused = True
        out.first = _search(network, settings, feeds, names, rows) or bad
    return out


def _search(network: INetworkDefinition, settings: Configure, feeds: Mapping[str, Array],
            names: list[str], rows: Callable[..., list[Row]]) -> Row | None:
    """The first tensor that is wrong if all before it may be fused."""
    low, high, found = 0, len(names) - 1, None
    while low <= high:
        middle = (low + high) // 2
        results, values = _run(network, settings, feeds, [names[middle]])
        row = rows({**results, **values}, [names[middle]])
        if row and not row[0].ok:
            found, high = row[0], middle - 1
        else:
            low = middle + 1
    return found


def _run(network: INetworkDefinition, settings: Configure, feeds: Mapping[str, Array],
         names: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Results, and the tensors of some names, of one engine."""
    wanted = set(names)
    marked = [network._tensor(v) for n in network.graph.nodes for v in n.outputs
              if v.name in wanted]
    for t in marked:
        network.mark_debug(t)
    try:
        builder, config = settings()
        engine = builder.build_engine_with_config(network, config)
    finally:
        for t in marked:
            network.unmark_debug(t)
    if engine is None:
        raise BuildError("the network can't be built; the log says why")
    easy, listener = Engine(engine), _Listener()
    with easy._context() as context:
        context.set_debug_listener(listener)
        context.set_all_tensors_debug_state(True)
        results = easy._run(context, easy._feeds(dict(feeds), {}))
    return results, listener.values


def _row(network: INetworkDefinition, name: str, value: Array, expected: Any,
         relative: float | None, absolute: float | None) -> Row:
    v = next(v for n in network.graph.nodes for v in n.outputs if v.name == name)
    node = v.producer
    usual = tolerance(v.dtype.name)
    want = np.asarray(expected)
    if value.shape != want.shape:
        raise UsageError(f"tensor {name!r} has shape {value.shape}, the reference has {want.shape}")
    a, b = (np.asarray(x).astype(np.float64) for x in (value, want))
    finite = np.abs(b[np.isfinite(b)])
    span = float(finite.max()) if finite.size else 0.0
    allowed = (usual.absolute if absolute is None else absolute) + span * (
        usual.relative if relative is None else relative)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    error = np.where(np.isnan(error), np.inf, error)
    layer = str(node.name or node.op) if node is not None else ""
    return Row(name, layer, node.op if node else "", node.source if node else "",
               tuple(value.shape), float(error.max(initial=0.0)), allowed,
               int((error > allowed).sum()), int(error.size))
