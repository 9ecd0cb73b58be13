"""Engines kept on disk, by what they were made of.

A key covers the graph, the weights, the settings, the ranges of shapes, the device and the
versions of tactician and torch; so a key that is found gives an engine that would be built
likewise.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..builder.compile import make_device
from ..builder.target import why_no_gpu
from ..network.enums import DeviceType
from ..runtime.easy import write_atomically
from ..runtime.runtime import Runtime
from ..support import knobs, version
from ..support import logger as log
from ..support.errors import PlanError
from .calls import Triple
from .engines import Settings
from .lower import Piece
from .module import TRTModule
from .table import table

_SUFFIX = ".engine"
_HEADER = 8  # bytes that say how long the description before the plan is


class EngineCache:
    """A folder of engines.

    Args:
        folder: By default ``$TACTICIAN_ENGINE_CACHE``, or ``~/.cache/tactician/engines``.
        most: Bytes it may take; the engines that were used longest ago go first.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, most: int = 5 << 30):
        self.folder = Path(folder if folder is not None else knobs.engine_cache())
        self.most = most

    def load(self, key: str) -> TRTModule | None:
        """The engine of a key; None if there is none, or it can't be used here."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            length = int.from_bytes(data[:_HEADER], "little")
            about = json.loads(data[_HEADER : _HEADER + length])
            plan = memoryview(data)[_HEADER + length :]
            engine = Runtime(log.Logger()).deserialize_cuda_engine(plan)
            if engine is None:
                return None
        except (PlanError, ValueError) as e:
            log.warning(f"the cached engine {path} is not used: {e}")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        calling = about["calling"]
        return TRTModule(engine, about["input_names"], about["output_names"], calling)

    def save(self, key: str, module: TRTModule) -> None:
        """Keeps an engine; a folder that can't be written is only worth a warning."""
        about = json.dumps({
            "input_names": module.input_names, "output_names": module.output_names,
            "calling": module.calling,
        }).encode()
        assert module.engine is not None
        data = len(about).to_bytes(_HEADER, "little") + about + bytes(module.engine.serialize())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(key), data)
            self._trim()
        except OSError as e:
            log.warning(f"the engine is not kept in {self.folder}: {e}")

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def _trim(self) -> None:
        held = [(p.stat(), p) for p in self.folder.glob("*" + _SUFFIX)]
        total = sum(s.st_size for s, _ in held)
        for stat, path in sorted(held, key=lambda x: x[0].st_mtime):
            if total <= self.most:
                break
            total -= stat.st_size
            with contextlib.suppress(OSError):
                path.unlink()


def engine_key(piece: Piece, settings: Settings, given: Mapping[int, Triple],
               names: tuple[Any, Any] = (None, None)) -> str:
    """The key of the engine that a graph would become."""
    h = hashlib.blake2b(digest_size=20)
    for part in (version.TACTICIAN, torch.__version__, settings.text(), _device(settings),
                 repr(sorted(given.items())), repr(names), graph_text(piece),
                 _own_importers(piece)):
        h.update(part.encode() + b"\0")
    for node in piece.module.graph.nodes:
        held: Any = None
        if node.op == "placeholder" and node.name in piece.bound:
            held = piece.bound[node.name][0]
        elif node.op == "get_attr":
            held = functools.reduce(getattr, node.target.split("."), piece.module)
        if isinstance(held, torch.Tensor):
            h.update(_bytes(held))
    return h.hexdigest()


def _bytes(t: torch.Tensor) -> Any:
    flat = t.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _device(settings: Settings) -> str:
    from ..builder.settings import BuildSettings

    target = "cpu" if settings.device == DeviceType.CPU or why_no_gpu() else "cuda"
    device = make_device(BuildSettings(target=target, threads=settings.threads))
    return f"{target} {device.fingerprint}"


def graph_text(piece: Piece) -> str:
    """A graph in words that don't depend on the names of its nodes."""
    order = {n: i for i, n in enumerate(piece.module.graph.nodes)}

    def shown(x: Any) -> str:
        if isinstance(x, torch.fx.Node):
            return f"%{order[x]}"
        if isinstance(x, (tuple, list)):
            return "[" + ",".join(map(shown, x)) + "]"
        if isinstance(x, Mapping):
            return "{" + ",".join(f"{k}:{shown(v)}" for k, v in sorted(x.items())) + "}"
        return repr(x)

    lines = []
    for n in piece.module.graph.nodes:
        role = str(n.target)
        if n.op == "placeholder":
            role = f"user {piece.user[n.name]}" if n.name in piece.user else "bound"
        elif n.op == "get_attr":
            role = ""
        val = [_type_text(v) for v in torch.utils._pytree.tree_leaves(n.meta.get("val"))]
        lines.append(f"{n.op} {role} {shown(n.args)} {shown(n.kwargs)} {val}")
    lines += [f"{k} {v}" for k, v in sorted(piece.limits.items())]
    return "\n".join(lines)


def _type_text(v: Any) -> str:
    if isinstance(v, torch.Tensor):
        return f"{v.dtype}{[str(s) for s in v.shape]}"
    return str(v)


def _own_importers(piece: Piece) -> str:
    """The code of importers that are not part of tactician."""
    rows = {table()[n.target] for n in piece.module.graph.nodes
            if n.op == "call_function" and n.target in table()}
    own = [r.fn for r in rows if not r.fn.__module__.startswith(f"{__package__}.importers")]
    return "".join(sorted(f"{f.__qualname__}{_code(f.__code__)}" for f in own))


def _code(code: Any) -> str:
    inner = [_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{inner}"
