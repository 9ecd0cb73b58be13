"""`Refitter`: other weights for a built engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..network.enums import TensorLocation, WeightsRole, from_ir
from ..network.values import Weights, weights_array
from ..plan.strip import stripped
from ..runtime.engine import ICudaEngine
from ..runtime.report import Kept, Reporter
from ..runtime.streams import stream_of
from ..support import logger as log
from ..support.errors import TacticianError, UsageError
from .rebuild import Refittable, rebuild, refittable

Array = np.ndarray[Any, Any]
_ROLES = {
    "kernel": WeightsRole.KERNEL, "bias": WeightsRole.BIAS, "shift": WeightsRole.SHIFT,
    "scale": WeightsRole.SCALE, "weights": WeightsRole.CONSTANT,
}  # fmt: skip


class Refitter(Reporter):
    """Replaces weights of an engine that was built with a refit flag.

    The engine's network is built again with the new weights and the tactics chosen before,
    without measuring anything; its contexts go on with the new weights. Layer names in `get_all`
    are those of the network.

    Args:
        engine: Built with `BuilderFlag.REFIT`, `REFIT_INDIVIDUAL` or `REFIT_IDENTICAL`.
        logger: `ILogger` for messages.

    Attributes:
        max_threads: Without effect, which is logged: building takes one thread.
        weights_validation: Whether new weights are checked to be finite.

    Raises:
        UsageError: If the engine can't be refitted.
    """

    max_threads = Kept(1, "building takes one thread")
    weights_validation: bool

    def __init__(self, engine: ICudaEngine, logger: Any):
        self._engine = engine
        self._log_to = logger
        self.weights_validation = True
        if not engine.refittable:
            raise UsageError(
                f"engine {engine.name!r} can't be refitted; build it with BuilderFlag.REFIT"
            )
        self._new: dict[str, Array] = {}
        self._given: dict[str, Weights] = {}
        self._ranges: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Refitter:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    @property
    def logger(self) -> Any:
        return self._log_to

    @property
    def _known(self) -> dict[str, Refittable]:
        program = self._engine._program
        assert program.network is not None
        return {n: w for n, w in refittable(program.network).items() if n in program.weights}

    # --- what there is --------------------------------------------------------------------

    def get_all_weights(self) -> list[str]:
        """Names of all weights that can be replaced."""
        return list(self._known)

    def get_all(self) -> tuple[list[str], list[WeightsRole]]:
        """Layer and role of all weights that can be replaced."""
        known = self._known.values()
        return [w.layer for w in known], [_ROLES.get(w.role, WeightsRole.ANY) for w in known]

    def get_missing_weights(self) -> list[str]:
        """Names of weights that must still be set: those that a stripped plan lacks. Of other
        engines any subset of the weights may be replaced."""
        return [n for n in stripped(self._engine._program) if n not in self._new]

    def get_missing(self) -> tuple[list[str], list[WeightsRole]]:
        """Layer and role of the weights that must still be set."""
        known = [self._known[n] for n in self.get_missing_weights()]
        return [w.layer for w in known], [_ROLES.get(w.role, WeightsRole.ANY) for w in known]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        """Type and count that new weights must have, as zeros; empty for unknown names."""
        w = self._find(weights_name, "get_weights_prototype")
        return Weights() if w is None else Weights(np.zeros(w.value.dims, w.value.dtype.np))

    def get_named_weights(self, weights_name: str) -> Weights:
        """The new weights that were set, else empty ones."""
        return self._given.get(weights_name, Weights())

    def get_weights_location(self, weights_name: str) -> TensorLocation:
        """HOST: memory is host memory."""
        return TensorLocation.HOST

    # --- replacing ------------------------------------------------------------------------

    def set_named_weights(
        self, name: str, weights: Any, location: TensorLocation = TensorLocation.HOST
    ) -> bool:
        """Sets new weights; `refit_cuda_engine` makes the engine use them.

        Returns:
            False (and an error is logged) if the name is unknown, or type or count differ.
        """
        w = self._find(name, "set_named_weights")
        if w is None:
            return False
        array = weights_array(weights)
        old = w.value
        if array is None or array.size != old.numel:
            count = 0 if array is None else array.size
            return self._fail(
                f"set_named_weights: {name!r} has shape {old.dims}, got {count} elements"
            )
        if array.dtype != old.dtype.np:
            return self._fail(
                f"set_named_weights: {name!r} has type {from_ir(old.dtype)}, got {array.dtype}"
            )
        if self.weights_validation and old.dtype.is_float:
            finite = np.isfinite(array.astype(np.float64)).all()
            if not finite:
                return self._fail(
                    f"set_named_weights: {name!r} has NaN or infinite elements; set "
                    "weights_validation = False to use them all the same"
                )
        self._new[name] = array.reshape(old.dims)
        self._given[name] = Weights(self._new[name])
        return True

    def set_weights(self, layer_name: str, role: WeightsRole, weights: Any) -> bool:
        """Sets the new weights of a layer by role."""
        for name, w in self._known.items():
            if w.layer == layer_name and _ROLES.get(w.role, WeightsRole.ANY) == role:
                return self.set_named_weights(name, weights)
        return self._fail(f"set_weights: layer {layer_name!r} has no weights of role {role}")

    def unset_named_weights(self, weights_name: str) -> bool:
        """Takes back what `set_named_weights` set."""
        self._given.pop(weights_name, None)
        if self._new.pop(weights_name, None) is None:
            return self._fail(f"unset_named_weights: {weights_name!r} was not set")
        return True

    def refit_cuda_engine(self) -> bool:
        """Makes the engine and its contexts use the new weights.

        Returns:
            False (and an error is logged) if the network can't be built again.
        """
        try:
            program = rebuild(self._engine._program, self._new, ranges=self._ranges)
            self._engine._replace(program)
        except TacticianError as e:
            return self._fail(f"refit_cuda_engine: {e}")
        log.info(f"Refitted {len(self._new)} weights of {self._engine.name!r}", self._log_to)
        self.release_refit_resources()
        return True

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        """Refits after the work queued on a stream, and waits for it."""
        try:
            stream = stream_of(stream_handle)
        except UsageError as e:
            return self._fail(f"refit_cuda_engine_async: {e}")
        if stream is not None:
            stream.synchronize()
        return self.refit_cuda_engine()

    def release_refit_resources(self) -> None:
        """Forgets weights and ranges that were set and not used."""
        self._new.clear()
        self._given.clear()
        self._ranges.clear()

    def _find(self, name: str, what: str) -> Refittable | None:
        found = self._known.get(name)
        if found is None:
            self._fail(f"{what}: the engine has no refittable weights {name!r}")
        return found

    # --- dynamic ranges -------------------------------------------------------------------

    def set_dynamic_range(self, tensor_name: str, range: Any) -> bool:
        """Sets the range an INT8 tensor is quantized by; `refit_cuda_engine` makes the engine use
        it.

        Returns:
            False (and an error is logged) if the tensor has no range in the engine, or the new
            one is none.
        """
        if tensor_name not in self._ranged():
            return self._fail(
                f"set_dynamic_range: the engine has no dynamic range of {tensor_name!r}; "
                "get_tensors_with_dynamic_range lists those that have"
            )
        low, high = (float(x) for x in range)
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            return self._fail(
                f"set_dynamic_range: [{low}, {high}] is not a finite interval with min <= max"
            )
        self._ranges[tensor_name] = low, high
        return True

    def get_dynamic_range(self, tensor_name: str) -> tuple[float, float]:
        """The range of a tensor, as set or as built; (-1, -1) if it has none."""
        found = self._ranges.get(tensor_name) or self._ranged().get(tensor_name, (-1.0, -1.0))
        return found[0], found[1]

    def get_tensors_with_dynamic_range(self) -> list[str]:
        """Names of the tensors whose ranges can be replaced."""
        return list(self._ranged())

    def _ranged(self) -> dict[str, tuple[float, float]]:
        network = self._engine._program.network
        assert network is not None
        values = [*network.inputs, *(v for n in network.nodes for v in n.outputs)]
        return {v.name: v.meta["dynamic_range"] for v in values if "dynamic_range" in v.meta}
