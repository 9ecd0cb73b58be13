"""Base class of the API's enums.

They behave like the enums of a pybind11 extension module: members are not ints (so programs
that ask ``isinstance(x, int)`` can tell them apart) but convert with ``int()``, work as indices,
hash by value, and support ``1 << int(member)``, ``1 << member`` and ``a | b``.
"""

from __future__ import annotations

import enum
from typing import Any


class ApiEnum(enum.Enum):
    """An enum whose members convert to int without being ints.

    ``str(member)`` is ``"Class.NAME"``, ``repr(member)`` is ``"<Class.NAME: value>"``, and
    ``Class(value)`` finds a member. Members compare equal only to themselves; ordering and bit
    operators accept members of the same enum and ints.
    """

    def __int__(self) -> int:
        return int(self._value_)

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self._value_)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self._name_}"

    def __repr__(self) -> str:
        return f"<{self}: {self._value_}>"

    def _operand(self, other: Any) -> int | None:
        if isinstance(other, (type(self), int)):
            return int(other)
        return None

    def __lt__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ < n

    def __le__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ <= n

    def __gt__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ > n

    def __ge__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ >= n

    def __or__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ | n

    def __and__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ & n

    def __xor__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ ^ n

    def __lshift__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else self._value_ << n

    def __rlshift__(self, other: Any) -> Any:
        n = self._operand(other)
        return NotImplemented if n is None else n << self._value_

    __ror__ = __or__
    __rand__ = __and__
    __rxor__ = __xor__
