"""Symbolic dimensions: integer expressions over named symbols.

A dimension is a plain ``int`` or a `Dim`. A `Dim` is a polynomial in normal form, so equal
expressions compare and hash equal: ``n + n == 2 * n``. Atoms that polynomials cannot hold
(floor division, modulo, min, max) are kept as opaque function atoms with normalized arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Union

DimLike = Union[int, "Dim"]
# A monomial is a sorted tuple of (atom, power); the empty tuple is the constant term.
_Monomial = tuple[tuple["_Atom", int], ...]


class _Atom:
    """A symbol or a function application inside a polynomial."""

    __slots__ = ("args", "fn", "key", "name")

    def __init__(self, fn: str, name: str = "", args: tuple[DimLike, ...] = ()):
        self.fn, self.name, self.args = fn, name, args
        self.key = name if fn == "sym" else f"{fn}({', '.join(map(str, args))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Atom) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __lt__(self, other: _Atom) -> bool:
        return self.key < other.key

    def evaluate(self, env: Mapping[str, DimLike]) -> DimLike:
        if self.fn == "sym":
            return env.get(self.name, _from_atom(self))
        return _FUNCTIONS[self.fn](*(substitute(a, env) for a in self.args))


class Dim:
    """A symbolic integer. Build symbols with `sym`; combine with ``+ - * // %``."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[_Monomial, int]):
        self.terms = dict(sorted(((m, c) for m, c in terms.items() if c), key=_term_order))
        self._hash = hash(tuple(self.terms.items()))

    def __add__(self, other: DimLike) -> DimLike:
        out = dict(self.terms)
        for m, c in _terms(other).items():
            out[m] = out.get(m, 0) + c
        return _simplify(out)

    def __mul__(self, other: DimLike) -> DimLike:
        out: dict[_Monomial, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in _terms(other).items():
                m = _mul_monomials(m1, m2)
                out[m] = out.get(m, 0) + c1 * c2
        return _simplify(out)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> DimLike:
        return self * -1

    def __sub__(self, other: DimLike) -> DimLike:
        return self + (other * -1)

    def __rsub__(self, other: DimLike) -> DimLike:
        return (self * -1) + other

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floor_div(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return floor_div(other, self)

    def __truediv__(self, other: DimLike) -> DimLike:
        return floor_div(self, other)

    def __mod__(self, other: DimLike) -> DimLike:
        return modulo(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        return modulo(other, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        return True  # a symbolic extent is treated as non-zero

    def __index__(self) -> int:
        raise TypeError(f"dimension {self} is symbolic; its value is known only at run time")

    __int__ = __index__

    def __str__(self) -> str:
        return " + ".join(_term_str(m, c) for m, c in self.terms.items()) or "0"

    def __repr__(self) -> str:
        return f"Dim({self})"

    def symbols(self) -> set[str]:
        """Names of the symbols it depends on."""
        out: set[str] = set()
        for m in self.terms:
            for atom, _ in m:
                if atom.fn == "sym":
                    out.add(atom.name)
                else:
                    for a in atom.args:
                        out |= symbols(a)
        return out


def _term_order(item: tuple[_Monomial, int]) -> tuple[int, str]:
    m, _ = item
    return (-sum(p for _, p in m), "*".join(a.key for a, _ in m))


def _term_str(m: _Monomial, c: int) -> str:
    factors = [a.key for a, p in m for _ in range(p)]
    if c != 1 or not factors:
        factors.insert(0, str(c))
    return "*".join(factors)


def _terms(d: DimLike) -> dict[_Monomial, int]:
    return d.terms if isinstance(d, Dim) else {(): int(d)}


def _simplify(terms: dict[_Monomial, int]) -> DimLike:
    terms = {m: c for m, c in terms.items() if c}
    if not terms:
        return 0
    if set(terms) == {()}:
        return terms[()]
    return Dim(terms)


def _mul_monomials(a: _Monomial, b: _Monomial) -> _Monomial:
    powers: dict[_Atom, int] = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return tuple(sorted(powers.items()))


def _from_atom(atom: _Atom) -> Dim:
    return Dim({((atom, 1),): 1})


def sym(name: str) -> Dim:
    """A symbol. Names may hold any character but whitespace, ``* + ( ) ,``."""
    if not re.fullmatch(r"[^\s*+(),]+", name):
        raise ValueError(f"bad symbol name {name!r}")
    return _from_atom(_Atom("sym", name))


def is_static(*dims: DimLike) -> bool:
    """True if every dimension is a plain integer."""
    return all(not isinstance(d, Dim) for d in dims)


def symbols(d: DimLike) -> set[str]:
    return d.symbols() if isinstance(d, Dim) else set()


def floor_div(a: DimLike, b: DimLike) -> DimLike:
    if is_static(a, b):
        return int(a) // int(b) if b else 0
    if b == 1 or a == 0:
        return a
    if a == b:
        return 1
    quotient = _exact_quotient(a, b)
    if quotient is not None:
        return quotient
    if isinstance(b, int) and b > 0 and isinstance(a, Dim):
        # (b*q + r) // b == q + r // b holds for every integer r
        whole = {m: c // b for m, c in a.terms.items() if c % b == 0}
        rest = {m: c for m, c in a.terms.items() if c % b}
        if whole and rest:
            return _simplify(whole) + floor_div(_simplify(rest), b)
    return _from_atom(_Atom("floordiv", args=(a, b)))


def _long_division(a: DimLike, b: Dim) -> DimLike | None:
    """a / b as polynomials when nothing remains, by dividing leading terms."""
    lead = Dim(dict(list(b.terms.items())[:1]))
    quotient: DimLike = 0
    for _ in range(2 * len(_terms(a)) + 2):
        if not isinstance(a, Dim):
            return quotient if a == 0 else None
        term = _exact_quotient(Dim(dict(list(a.terms.items())[:1])), lead)
        if term is None:
            return None
        quotient, a = quotient + term, a - term * b
    return None


def _exact_quotient(a: DimLike, b: DimLike) -> DimLike | None:
    """a / b when nothing remains, as polynomials."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return _long_division(a, b) if isinstance(b, Dim) else None
    (bm, bc), powers = next(iter(divisor.items())), {}
    powers = dict(bm)
    out: dict[_Monomial, int] = {}
    for m, c in _terms(a).items():
        left = dict(m)
        if c % bc or any(left.get(atom, 0) < p for atom, p in powers.items()):
            return None
        for atom, p in powers.items():
            left[atom] -= p
        out[tuple(sorted((x, p) for x, p in left.items() if p))] = c // bc
    return _simplify(out)


def ceil_div(a: DimLike, b: DimLike) -> DimLike:
    return -floor_div(-a, b)


def modulo(a: DimLike, b: DimLike) -> DimLike:
    if is_static(a, b):
        return int(a) % int(b)
    if b == 1 or a == b or _exact_quotient(a, b) is not None:
        return 0
    return _from_atom(_Atom("mod", args=(a, b)))


def _arguments(d: DimLike, fn: str) -> tuple[DimLike, ...]:
    """The arguments of ``d`` if it is one application of ``fn``, else none."""
    if isinstance(d, Dim) and len(d.terms) == 1:
        ((monomial, factor),) = d.terms.items()
        if factor == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0].fn == fn:
            return monomial[0][0].args
    return ()


def _extreme(fn: str, pick: object, dims: tuple[DimLike, ...]) -> DimLike:
    # max(max(a, b), c) is max(a, b, c), and max(min(a, b), a) is a; the same with min and max
    # exchanged.
    flat = [x for d in dims for x in _arguments(d, fn) or (d,)]
    other = "min" if fn == "max" else "max"
    distinct = [d for d in dict.fromkeys(flat) if not set(_arguments(d, other)) & set(flat)]
    ints = [d for d in distinct if not isinstance(d, Dim)]
    rest = [d for d in distinct if isinstance(d, Dim)]
    if ints:
        rest.append(pick(ints))  # type: ignore[operator]
    if len(rest) == 1:
        return rest[0]
    if len(rest) == 2:
        difference = rest[0] - rest[1]
        if not isinstance(difference, Dim):
            first_is_larger = difference > 0
            return rest[0] if first_is_larger == (fn == "max") else rest[1]
    return _from_atom(_Atom(fn, args=tuple(sorted(rest, key=str))))


def dim_max(*dims: DimLike) -> DimLike:
    return _extreme("max", max, dims)


def dim_min(*dims: DimLike) -> DimLike:
    return _extreme("min", min, dims)


_FUNCTIONS: dict[str, Callable[..., DimLike]] = {
    "floordiv": floor_div,
    "mod": modulo,
    "max": dim_max,
    "min": dim_min,
}


def substitute(d: DimLike, env: Mapping[str, DimLike]) -> DimLike:
    """Replaces symbols found in ``env``; the others stay."""
    if not isinstance(d, Dim):
        return int(d)
    total: DimLike = 0
    for m, c in d.terms.items():
        term: DimLike = c
        for atom, p in m:
            value = atom.evaluate(env)
            for _ in range(p):
                term = term * value
        total = total + term
    return total


def evaluate(d: DimLike, env: Mapping[str, int]) -> int:
    """The integer value under ``env``.

    Raises:
        KeyError: If a symbol of ``d`` has no value, naming it.
    """
    value = substitute(d, env)
    if isinstance(value, Dim):
        raise KeyError(f"no value for {', '.join(sorted(value.symbols()))} in dimension {d}")
    return value


def product(dims: Iterable[DimLike]) -> DimLike:
    total: DimLike = 1
    for d in dims:
        total = total * d
    return total


_TOKEN = re.compile(r"\s*(-?\d+|[^\s*+(),]+|[*+(),])")


def parse_dim(text: str) -> DimLike:
    """The inverse of ``str(dim)``."""
    tokens = _TOKEN.findall(text)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1]

    def factor() -> DimLike:
        token = take()
        if token in _FUNCTIONS and peek() == "(":
            take()
            args = [total()]
            while peek() == ",":
                take()
                args.append(total())
            take()
            return _FUNCTIONS[token](*args)
        return int(token) if re.fullmatch(r"-?\d+", token) else sym(token)

    def term() -> DimLike:
        value = factor()
        while peek() == "*":
            take()
            value = value * factor()
        return value

    def total() -> DimLike:
        value = term()
        while peek() == "+":
            take()
            value = value + term()
        return value

    return total()
