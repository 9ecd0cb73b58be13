"""How versions 5 to 9 run an engine: by bindings, and with a batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..network.values import Dims, as_int
from ..support.errors import ExecutionError
from .streams import event_of


class BindingsContextApi:
    """The part of `IExecutionContext` that speaks of bindings."""

    # of IExecutionContext
    _addresses: dict[int, int]
    _engine: Any
    _core: Any
    _fail: Any
    _inputs: Any
    _shapes: Any
    _values: Any
    _batch: Any
    _with_batch: Any
    _lock: Any
    _invalidate: Any
    _bind: Any
    _take_bindings: Any
    _run: Any
    _stream: Any
    _launch: Any
    _on_gpu: bool
    _gpu: Any
    _get_ready: Any
    _bound: Any
    _require_schedule: Any
    get_tensor_shape: Any
    get_tensor_strides: Any
    set_input_shape: Any
    set_optimization_profile_async: Any
    execute_v2: Any

    def execute(self, batch_size: int = 1, bindings: Sequence[int] = ()) -> bool:
        """Runs once, synchronously. ``batch_size`` counts for implicit-batch engines only."""
        return self._set_batch(batch_size, "execute") and bool(self.execute_v2(bindings))

    def execute_async(
        self, batch_size: int = 1, bindings: Sequence[int] = (), stream_handle: int = 0,
        input_consumed: Any = None,
    ) -> bool:
        """Queues one run. ``batch_size`` counts for implicit-batch engines only."""
        return self._set_batch(batch_size, "execute_async") and self.execute_async_v2(
            bindings, stream_handle, input_consumed
        )

    def execute_async_v2(
        self, bindings: Sequence[int], stream_handle: int, input_consumed: Any = None
    ) -> bool:
        """Queues one run on a stream.

        Args:
            bindings: Addresses of all inputs and outputs, in the engine's order.
            stream_handle: ``tactician.driver.Stream.handle``; 0 runs at once.
            input_consumed: An event to record when the inputs may be overwritten.
        """
        stream = self._stream(stream_handle, "execute_async_v2")
        if stream is False:
            return False
        with self._lock:
            if not self._take_bindings(bindings):
                return False
            schedule = self._get_ready()
            addresses = dict(self._addresses)
        if schedule is None:
            return False
        self._launch(schedule, addresses, stream)
        if input_consumed is not None and self._on_gpu:
            self._gpu.driver.record(int(input_consumed), stream)
        elif input_consumed is not None:
            event_of(input_consumed).record(stream)
        return True

    def _set_batch(self, batch_size: int, what: str) -> bool:
        most = self._core.program.implicit_batch
        if not most:
            return True
        batch = as_int(batch_size)
        if not 1 <= batch <= most:
            return bool(self._fail(
                f"{what}: batch size {batch} is not within 1 and the engine's max_batch_size {most}"
            ))
        if batch != self._batch:
            with self._lock:
                self._batch = batch
                for t in self._inputs:
                    shape = self._shapes[t.id]
                    if shape is not None:
                        self._shapes[t.id] = self._with_batch(t, shape[1:])
                self._invalidate()
        return True

    # --- shapes by binding ----------------------------------------------------------------

    def _name(self, binding: int | str, what: str) -> str | None:
        t = self._engine._binding(binding, what)
        return t.name if t else None

    def set_binding_shape(self, binding: int | str, shape: Any) -> bool:
        """Sets the shape of an input binding; see `set_input_shape`."""
        name = self._name(binding, "set_binding_shape")
        return name is not None and bool(self.set_input_shape(name, shape))

    def get_binding_shape(self, binding: int | str) -> Dims:
        name = self._name(binding, "get_binding_shape")
        return self.get_tensor_shape(name) if name is not None else Dims()

    def get_strides(self, binding: int | str) -> Dims:
        """Elements from one index to the next in each dimension."""
        name = self._name(binding, "get_strides")
        return self.get_tensor_strides(name) if name is not None else Dims()

    def set_shape_input(self, binding: int | str, shape: Any) -> bool:
        """Gives the contents of a shape input."""
        t = self._engine._binding(binding, "set_shape_input")
        if t is None or not t.is_input:
            return bool(self._fail(f"set_shape_input: binding {binding!r} is no shape input"))
        values = tuple(as_int(v) for v in shape)
        pairs = self._core.info.value_inputs.get(t.id, ())
        need = 1 + max((element for element, _ in pairs), default=-1)
        if len(values) < need:
            return bool(self._fail(
                f"set_shape_input: {t.name!r} has at least {need} elements, got {len(values)}"
            ))
        with self._lock:
            self._values[t.id] = values
            self._invalidate()
        return True

    def get_shape(self, binding: int | str) -> list[int]:
        """Contents of a shape input, or of a shape output once inputs are known; [] else."""
        t = self._engine._binding(binding, "get_shape")
        if t is None:
            return []
        if t.is_input:
            return list(self._values.get(t.id, ()))
        try:
            schedule = self._require_schedule()
        except ExecutionError as e:
            self._fail(f"get_shape: {e}")
            return []
        content = schedule.layout.known.all(self._core.program.tensors[t.id].content)
        return list(content or ())
