"""Bindings: how versions 5 to 9 number an engine's inputs and outputs.

Every optimization profile repeats all bindings; binding ``p * n + i`` is I/O tensor ``i`` under
profile ``p``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..network.enums import DataType, TensorFormat, TensorLocation
from ..network.values import Dims

if TYPE_CHECKING:
    from .engine import IoTensor


class BindingsApi:
    """The part of `ICudaEngine` that speaks of bindings."""

    _io: list[IoTensor]
    _by_name: dict[str, IoTensor]

    # of ICudaEngine
    _program: Any
    _fail: Any
    get_tensor_profile_shape: Any
    get_tensor_profile_values: Any
    get_tensor_format_desc: Any

    def _binding(self, which: int | str, what: str) -> IoTensor | None:
        if isinstance(which, str):
            found = self._by_name.get(which)
        else:
            found = self._io[which % len(self._io)] if 0 <= which < self.num_bindings else None
        if found is None:
            self._fail(f"{what}: the engine has no binding {which!r}; it has {self.num_bindings}")
        return found

    @property
    def num_bindings(self) -> int:
        """Inputs and outputs, times profiles."""
        return len(self._io) * len(self._program.profiles)

    def __len__(self) -> int:
        return self.num_bindings

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        """Name of a binding by index, index by name. ``for name in engine`` works."""
        if isinstance(key, str):
            return self.get_binding_index(key)
        if not 0 <= key < self.num_bindings:
            raise IndexError(f"binding {key} of {self.num_bindings}")
        return self.get_binding_name(key)

    def get_binding_name(self, index: int) -> str | None:
        """Name of a binding; those of later profiles end in `` [profile 1]``."""
        t = self._binding(index, "get_binding_name")
        if t is None:
            return None
        profile = index // len(self._io)
        return t.name if not profile else f"{t.name} [profile {profile}]"

    def get_binding_index(self, name: str) -> int:
        """Index of a binding, -1 (and an error is logged) if there is none."""
        base, _, profile = name.partition(" [profile ")
        t = self._by_name.get(name) or self._by_name.get(base)
        if t is None:
            self._fail(f"get_binding_index: the engine has no binding {name!r}")
            return -1
        number = profile.rstrip("]")
        return t.index + (int(number) * len(self._io) if number.isdigit() else 0)

    def binding_is_input(self, which: int | str) -> bool:
        t = self._binding(which, "binding_is_input")
        return bool(t and t.is_input)

    def get_binding_shape(self, which: int | str) -> Dims:
        t = self._binding(which, "get_binding_shape")
        return Dims(t.shape if t else ())

    def get_binding_dtype(self, which: int | str) -> DataType:
        t = self._binding(which, "get_binding_dtype")
        return t.dtype if t else DataType.FLOAT

    def get_location(self, which: int | str) -> TensorLocation:
        t = self._binding(which, "get_location")
        return t.location if t else TensorLocation.DEVICE

    def is_shape_binding(self, binding: int) -> bool:
        t = self._binding(binding, "is_shape_binding")
        return bool(t and t.is_shape)

    def is_execution_binding(self, binding: int) -> bool:
        return self._binding(binding, "is_execution_binding") is not None

    def get_binding_format(self, index: int) -> TensorFormat:
        self._binding(index, "get_binding_format")
        return TensorFormat.LINEAR

    def get_binding_format_desc(self, index: int) -> str:
        t = self._binding(index, "get_binding_format_desc")
        return self.get_tensor_format_desc(t.name) if t else ""

    def get_binding_bytes_per_component(self, index: int) -> int:
        t = self._binding(index, "get_binding_bytes_per_component")
        return t.ir.size if t else -1

    def get_binding_components_per_element(self, index: int) -> int:
        return 1 if self._binding(index, "get_binding_components_per_element") else -1

    def get_binding_vectorized_dim(self, index: int) -> int:
        self._binding(index, "get_binding_vectorized_dim")
        return -1

    def get_profile_shape(self, profile_index: int, binding: int | str) -> list[Dims]:
        """[min, opt, max] shapes of an input binding."""
        t = self._binding(binding, "get_profile_shape")
        return self.get_tensor_profile_shape(t.name, profile_index) if t else []

    def get_profile_shape_input(self, profile_index: int, binding: int | str) -> list[list[int]]:
        """[min, opt, max] contents of a shape input."""
        t = self._binding(binding, "get_profile_shape_input")
        return self.get_tensor_profile_values(t.name, profile_index) if t else []

    @property
    def max_batch_size(self) -> int:
        """Largest batch of an implicit-batch engine; 1 for others, as in TensorRT 7."""
        return self._program.implicit_batch or 1

    @property
    def max_workspace_size(self) -> int:
        """The workspace limit of the build."""
        return int(self._program.settings.get("workspace", 0))
