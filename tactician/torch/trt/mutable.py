"""`MutableTorchTensorRTModule`: a module whose engines follow its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...support import logger as log
from ...support.errors import UsageError
from ..calls import Triple
from . import dynamo
from .inputs import Input
from .refit import refit_engine


class MutableTorchTensorRTModule(torch.nn.Module):
    """Runs engines of a module; when its weights change they are refitted, when its structure or
    the arguments' shapes do they are built again, both at the next call.

    Attributes of the module can be read and set through it.

    Args:
        pytorch_model: In eval mode.
        settings: torch_tensorrt's options.
    """

    def __init__(self, pytorch_model: torch.nn.Module, *, use_python_runtime: bool | None = None,
                 immutable_weights: bool = False, **settings: Any):
        super().__init__()
        if immutable_weights:
            raise UsageError("MutableTorchTensorRTModule is for weights that change; leave "
                             "immutable_weights out")
        own = self.__dict__
        own["original_model"] = pytorch_model
        own["settings"] = {**settings, "immutable_weights": False}
        own["compiled"] = None
        own["_seen"] = {}
        own["_spec"] = None
        own["_ranges"] = None

    def set_expected_dynamic_shape_range(self, args_dynamic_shape: Any,
                                         kwargs_dynamic_shape: Any = None) -> None:
        """Sizes that may vary.

        Args:
            args_dynamic_shape, kwargs_dynamic_shape: For each argument a dict from dimension to
                an object with ``min`` and ``max`` (``torch.export.Dim``), or None.
        """
        self.__dict__["_ranges"] = (args_dynamic_shape, kwargs_dynamic_shape or {})
        self.__dict__["compiled"] = None

    def refit_gm(self) -> None:
        """Gives the engines the module's present weights."""
        state = {**dict(self.original_model.named_parameters()),
                 **dict(self.original_model.named_buffers())}
        changed = {k: v for k, v in state.items() if self._seen.get(k) != _mark(v)}
        found: set[str] = set()
        for engine in dynamo.flat_engines(self.compiled):
            found |= refit_engine(engine, changed)
        used = {n for e in dynamo.flat_engines(self.compiled) for n in e.calling["weights"]}
        left = sorted(used.intersection(changed) - found)
        if left:
            log.info(f"weights {left} can't be refitted; building again")
            self.__dict__["compiled"] = None
        self._remember()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        kinds = (spec, [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves])
        if self.compiled is not None and self._structure() != self._names:
            self.__dict__["compiled"] = None
        elif self.compiled is not None and self._changed():
            self.refit_gm()
        if self.compiled is not None and not self._fits(kinds):
            self.__dict__["compiled"] = None
        if self.compiled is None:
            self._compile(args, kwargs)
            self.__dict__["_spec"] = kinds
        return self.compiled(*args, **kwargs)

    def _fits(self, kinds: Any) -> bool:
        if self._ranges is None:
            return bool(kinds == self._spec)
        if kinds[0] != self._spec[0]:
            return False
        shapes = [s[0] if isinstance(s, tuple) else None for s in kinds[1]]
        return all(t is None or s is None or (len(s) == len(t[0]) and all(
            a <= n <= b for a, n, b in zip(t[0], s, t[2], strict=True)))
            for s, t in zip(shapes, self._triples, strict=True))

    def _compile(self, args: Any, kwargs: Any) -> None:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        triples = self._range_of(args, kwargs)
        inputs = [Input(min_shape=t[0], opt_shape=t[1], max_shape=t[2], torch_tensor=x)
                  if t is not None and t[0] != t[2] else x
                  for x, t in zip(leaves, triples, strict=True)]
        by_position, by_name = pytree.tree_unflatten(inputs, spec)
        program = dynamo.trace(self.original_model, arg_inputs=by_position,
                               kwarg_inputs=by_name)
        own = self.__dict__
        own["_triples"] = triples
        own["compiled"] = dynamo.compile(program, arg_inputs=by_position, kwarg_inputs=by_name,
                                         **self.settings)
        own["_names"] = self._structure()
        self._remember()

    def _range_of(self, args: Any, kwargs: Any) -> list[Triple | None]:
        given: Any = self._ranges or ((None,) * len(args), {})
        pairs = [*zip(args, given[0], strict=True),
                 *((v, given[1].get(k)) for k, v in kwargs.items())]
        out: list[Triple | None] = []
        for x, dims in pairs:
            parts = pytree.tree_leaves(x)
            if len(parts) != 1 and dims:
                raise UsageError("sizes of nested arguments can't vary")
            for t in parts:
                if not isinstance(t, torch.Tensor):
                    out.append(None)
                    continue
                low, high = list(t.shape), list(t.shape)
                for axis, d in (dims or {}).items():
                    low[axis], high[axis] = max(int(d.min), 1), int(d.max)
                opt = tuple(min(max(n, a), b) for n, a, b in zip(t.shape, low, high, strict=True))
                out.append((tuple(low), opt, tuple(high)))
        return out

    def _tensors(self) -> dict[str, torch.Tensor]:
        m = self.original_model
        return {**dict(m.named_parameters()), **dict(m.named_buffers())}

    def _structure(self) -> Any:
        return [(k, v.shape, v.dtype) for k, v in self._tensors().items()]

    def _changed(self) -> bool:
        return {k: _mark(v) for k, v in self._tensors().items()} != self._seen

    def _remember(self) -> None:
        self.__dict__["_seen"] = {k: _mark(v) for k, v in self._tensors().items()}

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__:
            return self.__dict__[name]
        return getattr(self.__dict__["original_model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if "original_model" in own and name not in own:
            setattr(own["original_model"], name, value)
        else:
            own[name] = value

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original module's."""
        return self.original_model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads into the original module; the engines follow at the next call."""
        return self.original_model.load_state_dict(*args, **kwargs)

    @staticmethod
    def save(module: MutableTorchTensorRTModule, path: Any) -> None:
        """Writes module, settings and engines."""
        own = module.__dict__
        keep = ("original_model", "settings", "compiled", "_spec", "_ranges", "_triples", "_names")
        torch.save({k: own.get(k) for k in keep}, path)

    @staticmethod
    def load(path: Any) -> MutableTorchTensorRTModule:
        """What `save` wrote (a pickle: load only what you trust)."""
        held = torch.load(path, weights_only=False)
        out = MutableTorchTensorRTModule(held["original_model"])
        out.__dict__.update(held)
        if out.compiled is not None:
            out._remember()
        return out


def _mark(t: torch.Tensor) -> tuple[int, int]:
    return t.data_ptr(), 0 if t.is_inference() else t._version
