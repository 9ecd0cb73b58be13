"""Walks a net's layers and imports them one by one, collecting every problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...network.network import INetworkDefinition
from ...ops.registry import OpError
from .context import Context
from .errors import CaffeProblem, LayerProblem, Poisoned
from .node import CaffeLayer, describe
from .plugins import PluginFactories
from .table import DATA, TRAIN_ONLY, table
from .text import Prototxt
from .upgrade import included, layers_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Absent:
    """A blob that is not there, and why."""

    reason: str
    poisoned: bool = False


@dataclass
class Imported:
    """What an import gave.

    Attributes:
        blobs: Each blob's last value, by name.
        unread: Names of blobs that no layer reads: the net's results.
        problems, warnings: Texts for the log.
        made_up: Weights by layer name, where none were given.
    """

    blobs: dict[str, Value] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    made_up: dict[str, list[Array]] = field(default_factory=dict)


class NetImport:
    """Imports one net.

    Args:
        prototxt: The net.
        weights: Blobs by layer name; None: weights are made up.
        network: Receives the layers.
        where: The prototxt's name in messages.
        half: Whether weights are rounded to half precision.
        factories: The program's plugins.
    """

    def __init__(self, prototxt: Prototxt, weights: Mapping[str, Sequence[Array]] | None,
                 network: INetworkDefinition, where: str, half: bool = False,
                 factories: PluginFactories | None = None):
        self.prototxt, self.weights, self.where, self.half = prototxt, weights, where, half
        self.factories = factories or PluginFactories()
        self.c = Context(network)
        self.out = Imported()
        self.blobs: dict[str, Value | Absent] = {}
        self.read: set[str] = set()
        self.made_by: dict[str, tuple[str, int]] = {}
        self.layers: list[tuple[Any, int]] = []

    def run(self) -> Imported:
        """Imports everything; problems are in the result."""
        out = self.out
        for path, line in self.prototxt.unknown:
            out.warnings.append(f"{self.where}, line {line}: field {path!r} is not known and has "
                                "no influence")
        try:
            layers = layers_of(self.prototxt, self.where)
        except CaffeProblem as e:
            out.problems.append(str(e))
            return out
        state = self.prototxt.net.state
        self.layers = [(x, line) for x, line in layers if included(x, state)]
        if not self.layers:
            out.problems.append(f"{self.where} has no layers" + (
                " for the TEST phase" if layers else "; is it a prototxt of a net?"))
            return out
        for proto, line in self.layers:
            self._import(proto, line)
        for name, v in self.blobs.items():
            if isinstance(v, Value):
                out.blobs[name] = v
                if name not in self.read:
                    out.unread.append(name)
        for name, v in out.blobs.items():
            if v.producer is not None:
                v.name = name
        self._warn_unused_weights()
        return out

    def _warn_unused_weights(self) -> None:
        known = {proto.name for proto, _ in self.layers}
        extra = [name for name in self.weights or {} if name not in known]
        if extra and len(extra) == len(self.weights or {}):
            self.out.problems.append(
                f"no layer of the caffemodel is in {self.where}: it has {', '.join(extra[:5])}…; "
                "the two files don't belong together")

    # --- one layer ------------------------------------------------------------------------------

    def _import(self, proto: Any, line: int) -> None:
        n = CaffeLayer(proto, line, [], self._blobs_of(proto), self.half)
        self.c.node, self.c.added = n, []
        try:
            self._claim_tops(n)
            if proto.type in TRAIN_ONLY:
                self._absent(n, f"is the top of the {proto.type} layer {n.name!r}, which only "
                             "training needs and was left out")
                return
            if proto.type in DATA:
                self._data(n)
                return
            problem = None
            try:
                n.bottoms = self._bottoms(n)
            except LayerProblem as e:
                problem = e
            self._check_known(n)
            if problem is not None:
                raise problem
            results = self._distinct(n, self._results(n))
            self.c.name_layers(results)
            if n.made:
                self.out.made_up[n.name] = [n.made[i] for i in sorted(n.made)]
            for name, v in zip(proto.top, results, strict=True):
                self.blobs[name] = v
        except Poisoned:
            self._absent(n, "", poisoned=True)
        except (CaffeProblem, OpError) as e:
            self._report(n, str(e))
        except Exception as e:  # a defect of an importer must not hide the model's other problems
            self._report(n, f"internal error, please report it: {type(e).__name__}: {e}")

    def _blobs_of(self, proto: Any) -> list[Array] | None:
        return None if self.weights is None else list(self.weights.get(proto.name, ()))

    def _results(self, n: CaffeLayer) -> list[Value]:
        plugin = self.factories.find(n)
        if plugin is not None:
            results = self.factories.add(self.c, n, plugin)
        else:
            row = table()[n.type]
            low, high = row.inputs
            if len(n) < low or (high is not None and len(n) > high):
                span = f"{low}" if low == high else f"{low} or more" if high is None \
                    else f"{low} to {high}"
                raise LayerProblem(f"has {len(n)} bottoms; {n.type} takes {span}")
            found = row.fn(self.c, n)
            results = [found] if isinstance(found, Value) else list(found)
        if len(results) < len(n.tops):
            raise LayerProblem(f"has {len(n.tops)} tops; {n.type} gives {len(results)}")
        if not n.tops:
            raise LayerProblem("has no top; give it one, or remove the layer")
        return results[: len(n.tops)]

    def _distinct(self, n: CaffeLayer, results: list[Value]) -> list[Value]:
        """A blob that is another under a second name becomes a tensor of its own."""
        out: list[Value] = []
        for top, v in zip(n.tops, results, strict=True):
            # a softmax's labels may be missing from the bottoms
            bottom = next((b for b, x in zip(n.proto.bottom, n.bottoms, strict=False) if x is v),
                          None)
            if any(v is x for x in out) or bottom not in (None, top):
                v = self.c.layer("add_identity", v)
            out.append(v)
        return out

    def _check_known(self, n: CaffeLayer) -> None:
        if n.type not in table() and self.factories.find(n) is None:
            close = [t for t in table() if t.lower() == n.type.lower()]
            hint = f"did you mean {close[0]!r}? " if close else ""
            self._absent(n, "", poisoned=True)
            raise LayerProblem(
                f"there is no layer type {n.type!r}; {hint}write it with layers that are known "
                "(docs/caffe.md lists them), or set plugin_factory_v2 to one that makes it")

    # --- blobs ----------------------------------------------------------------------------------

    def _bottoms(self, n: CaffeLayer) -> list[Value]:
        out, missing = [], []
        poisoned = False
        for name in n.proto.bottom:
            self.read.add(name)
            found = self.blobs.get(name)
            if isinstance(found, Value):
                out.append(found)
            elif found is None:
                missing.append(self._why_missing(n, name))
            elif found.poisoned:
                poisoned = True
            elif not (n.type == "SoftmaxWithLoss" and out):
                missing.append(f"reads {name!r}, which {found.reason}")
        if missing:
            raise LayerProblem("; ".join(missing))
        if poisoned and table().get(n.type):
            raise Poisoned
        return out

    def _why_missing(self, n: CaffeLayer, name: str) -> str:
        later = next(((p, line) for p, line in self.layers if name in p.top), None)
        if later is None:
            return f"reads {name!r}, which no layer or input before it gives; check the spelling"
        cycle = self._cycle(n.proto, name)
        if cycle:
            return f"reads {name!r}, which depends on it: the graph has a cycle, {cycle}"
        return (f"reads {name!r}, which layer {later[0].name!r} at line {later[1]} gives only "
                "later; Caffe runs layers in the order of the file: move that one up")

    def _cycle(self, start: Any, name: str) -> str:
        """The way from a blob that isn't there yet back to the layer that reads it, as text."""
        makers = {t: p for p, _ in self.layers for t in p.top}
        work, came = [name], {name: ""}
        while work:
            blob = work.pop()
            maker = makers.get(blob)
            if maker is None:
                continue
            if maker is start:
                path = [blob]
                while came[path[-1]]:
                    path.append(came[path[-1]])
                return " → ".join([*path, blob])
            for b in maker.bottom:
                if b not in came:
                    came[b] = blob
                    work.append(b)
        return ""

    def _claim_tops(self, n: CaffeLayer) -> None:
        """Each blob has one maker, but for layers that work in place."""
        wrong = []
        for i, top in enumerate(n.tops):
            if top in n.tops[:i]:
                wrong.append(f"has top {top!r} twice")
            elif top in self.made_by and top not in n.proto.bottom:
                other, line = self.made_by[top]
                wrong.append(f"gives {top!r}, which layer {other!r} at line {line} gives already; "
                             "rename one of the two tops, or list it as a bottom to work in place")
        self.made_by.update((top, (n.name, n.line)) for top in n.tops if not wrong)
        if wrong:
            raise LayerProblem("; ".join(wrong))

    def _data(self, n: CaffeLayer) -> None:
        self._absent(n, f"comes from the {n.type} layer {n.name!r}, which reads files; replace "
                     "that layer by an Input layer with the images' shape")

    def _absent(self, n: CaffeLayer, reason: str, poisoned: bool = False) -> None:
        for top in n.tops:
            if poisoned or not isinstance(self.blobs.get(top), Value):
                self.blobs[top] = Absent(reason, poisoned)

    def _report(self, n: CaffeLayer, reason: str) -> None:
        for prefix in (f"{n.source}: ", n.source):
            reason = reason.split(prefix, 1)[-1]
        bottoms = ", ".join(self._describe(b) for b in n.proto.bottom) or "none"
        self.out.problems.append(f"{self.where}, line {n.line}: layer {n.name!r} ({n.type}): "
                                 f"{reason}\n    bottoms: {bottoms}")
        self._absent(n, "", poisoned=True)

    def _describe(self, name: str) -> str:
        v = self.blobs.get(name)
        if isinstance(v, Value):
            return describe(v).replace(v.name, name, 1)
        return f"{name}: ?"
