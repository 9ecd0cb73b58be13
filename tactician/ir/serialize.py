"""Graphs and the values inside attributes as JSON, with arrays kept apart as blobs.

Everything a plan stores goes through `Encoder` and `Decoder`. JSON's own types stand for
themselves; tuples become arrays; the rest is an object with one tag::

    {"t": "f16"}                 element type          {"d": "n + 1"}      dimension
    {"f": "inf"}                 non-finite float      {"m": [[k, v], …]}  dict, in order
    {"a": [blob, "f32", [2, 3]]} numpy array           {"o": [[…], [2]]}   object array
    {"b": [blob, "f32", [2, 3]]} one element broadcast to a shape
    {"l": [1, 2]}                list
    {"r": [name, {…}]}           record (dataclass) that the decoder was told of

Numbers of nodes differ from run to run, and so do the names of data-dependent symbols
(``%<node id>.<k>``); both are renumbered in order of appearance, so that equal graphs give equal
text.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from . import dims as D
from .dtypes import DType, all_dtypes, dtype
from .graph import Graph, Node, SymbolInfo, Value

Json = Any
Array = np.ndarray[Any, Any]
T = TypeVar("T")
_SAMPLE = 128
_PLAIN = frozenset((type(None), bool, int, float, str))
_DTYPES = {d.name: d for d in all_dtypes()}
_DATA_SYMBOL = re.compile(r"%(\d+)\.(\d+)")


class SerializeError(ValueError):
    """Text that is no graph, or an attribute that can't be written."""


class BlobWriter:
    """Collects byte strings; equal contents are kept once."""

    def __init__(self) -> None:
        self.blobs: list[memoryview] = []
        self._alike: dict[tuple[int, bytes], list[int]] = {}
        self._by_id: dict[int, int] = {}
        self._alive: list[Any] = []

    def add(self, data: Any) -> int:
        """Adds a buffer (or C-contiguous array); returns its number."""
        known = self._by_id.get(id(data))
        if known is not None:
            return known
        view = _bytes_of(data)
        alike = self._alike.setdefault((len(view), _sample(view)), [])
        index = next((i for i in alike if _equal(self.blobs[i], view)), len(self.blobs))
        if index == len(self.blobs):
            self.blobs.append(view)
            alike.append(index)
        self._by_id[id(data)] = index
        self._alive.append(data)  # ids stay unique while the object lives
        return index


def _sample(view: memoryview) -> bytes:
    """Some bytes, by which contents that differ mostly do."""
    middle = len(view) // 2
    return bytes(view[:_SAMPLE]) + bytes(view[middle : middle + _SAMPLE]) + bytes(view[-_SAMPLE:])


def _equal(a: memoryview, b: memoryview) -> bool:
    return np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8))


def _bytes_of(data: Any) -> memoryview:
    if not isinstance(data, np.ndarray):
        return memoryview(data).cast("B")
    array = np.ascontiguousarray(data).reshape(-1)
    # ml_dtypes have no buffer format: look at their bytes
    return array.view(np.uint8).data if array.size else memoryview(b"")


class Encoder:
    """Turns values, graphs and records into JSON."""

    def __init__(self, blobs: BlobWriter):
        self.blobs = blobs
        self._numbers: dict[int, int] = {}

    def symbol(self, name: str) -> str:
        """The name a symbol has in the file."""
        m = _DATA_SYMBOL.fullmatch(name)
        if not m:
            return name
        return f"%{self._numbers.setdefault(int(m[1]), len(self._numbers))}.{m[2]}"

    def dim(self, d: D.DimLike) -> Json:
        if not isinstance(d, D.Dim):
            return int(d)
        data = sorted(
            (s for s in d.symbols() if _DATA_SYMBOL.fullmatch(s)),
            key=lambda s: [int(n) for n in s[1:].split(".")],
        )
        renamed = D.substitute(d, {s: D.sym(self.symbol(s)) for s in data}) if data else d
        return {"d": str(renamed)}

    def value(self, x: Any) -> Json:
        """Any attribute value.

        Raises:
            SerializeError: For a type plans can't carry, naming it.
        """
        if x is None or isinstance(x, (bool, str)):
            return x
        if isinstance(x, D.Dim):
            return self.dim(x)
        if isinstance(x, DType):
            return {"t": x.name}
        if isinstance(x, np.ndarray):
            return self.array(x)
        if isinstance(x, np.generic):
            return self.value(x.item())
        if type(x) is int:
            return x
        if isinstance(x, float):
            return float(x) if math.isfinite(x) else {"f": repr(float(x))}
        if isinstance(x, tuple):
            return [self.value(e) for e in x]
        if isinstance(x, list):
            return {"l": [self.value(e) for e in x]}
        if isinstance(x, Mapping):
            return {"m": [[self.value(k), self.value(v)] for k, v in x.items()]}
        if is_dataclass(x) and not isinstance(x, type):
            return {"r": [type(x).__name__, self.record(x)]}
        if isinstance(x, (set, frozenset)):
            return [self.value(e) for e in sorted(x)]
        raise SerializeError(f"a plan can't hold {x!r} of type {type(x).__name__}")

    def array(self, a: Array) -> Json:
        if a.dtype == object:
            return {"o": [[self.value(e) for e in a.reshape(-1)], list(a.shape)]}
        if not a.dtype.isnative:
            a = a.astype(a.dtype.newbyteorder("="))
        if a.size > 1 and not any(a.strides):
            one = np.array(a.reshape(-1)[0], a.dtype)
            return {"b": [self.blobs.add(one), dtype(a.dtype).name, list(a.shape)]}
        return {"a": [self.blobs.add(a), dtype(a.dtype).name, list(a.shape)]}

    def record(self, x: Any) -> dict[str, Json]:
        """Fields of a dataclass that differ from their plain defaults."""
        out = {}
        for f in fields(x):
            v = getattr(x, f.name)
            if f.default is not MISSING and type(v) is type(f.default) and _same(v, f.default):
                continue
            try:
                out[f.name] = self.value(v)
            except SerializeError as e:
                raise SerializeError(f"{type(x).__name__}.{f.name}: {e}") from None
        return out

    def symbols(self, table: Mapping[str, SymbolInfo]) -> Json:
        out = []
        for name, info in table.items():
            entry = self.record(info)
            entry["name"] = self.symbol(name)
            if info.kind == "data" and info.source.isdigit():
                entry["source"] = self.symbol(f"%{info.source}.0")[1:].partition(".")[0]
            out.append(entry)
        return out

    def graph(self, graph: Graph) -> dict[str, Json]:
        """A graph, its subgraphs, and constants (as blobs)."""
        ids: dict[Value, int] = {}
        values: list[Json] = []

        def ref(v: Value | None) -> int:
            if v is None:
                return -1
            if v not in ids:
                ids[v] = len(values)
                values.append(self._value_entry(v))
            return ids[v]

        inputs = [ref(v) for v in graph.inputs]
        nodes = []
        for node in graph.nodes:
            entry: dict[str, Json] = {
                "op": node.op,
                "name": node.name,
                "in": [ref(v) for v in node.inputs],
                "out": [ref(v) for v in node.outputs],
                "attrs": self._attrs(node),
            }
            if node.source:
                entry["source"] = node.source
            if node.subgraphs:
                entry["sub"] = [self.graph(g) for g in node.subgraphs]
            if meta := self._meta(node.meta):
                entry["meta"] = meta
            entry["number"] = self._numbers.setdefault(node.id, len(self._numbers))
            nodes.append(entry)
        outputs = [ref(v) for v in graph.outputs]
        return {
            "name": graph.name, "values": values, "inputs": inputs, "nodes": nodes,
            "outputs": outputs, "symbols": self.symbols(graph.symbols),
        }

    def _attrs(self, node: Node) -> Json:
        if node.attrs is None:
            return {}
        try:
            return self.record(node.attrs)
        except SerializeError as e:
            raise SerializeError(f"{node.describe()}: {e}") from None

    def _value_entry(self, v: Value) -> Json:
        entry: dict[str, Json] = {"name": stable_name(v), "dtype": v.dtype.name}
        if v.shape is not None:
            entry["shape"] = [self.dim(d) for d in v.shape]
        if v.const is not None:
            entry["const"] = self.array(v.const)
        elif v.content is not None:
            entry["content"] = self.array(v.content.astype(object))
        if meta := self._meta(v.meta):
            entry["meta"] = meta
        return entry

    def _meta(self, meta: Mapping[str, Any]) -> Json:
        """Annotations; those that are live objects of the front end mean nothing in a file."""
        kept = []
        for k, v in meta.items():
            try:
                kept.append([k, self.value(v)])
            except SerializeError:
                continue
        return kept


def stable_name(v: Value) -> str:
    """The value's name; names that were made from a node's number lose the number, which differs
    from run to run."""
    node = v.producer
    if node is not None:
        base = node.name or node.op
        if v.name == f"{base}_{node.id}:{v.index}":
            return f"{base}:{v.index}"
    return v.name


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return False


class Decoder:
    """Turns JSON back into values.

    Args:
        blobs: Byte buffers by number.
        attrs_of: Gives the Attrs dataclass of an op name (KeyError if there is none).
        records: Dataclasses that may appear inside values, by name.

    Every method raises `SerializeError` for JSON that doesn't fit.
    """

    def __init__(
        self,
        blobs: Sequence[memoryview],
        attrs_of: Callable[[str], type],
        records: Mapping[str, type] | None = None,
    ):
        self.blobs = blobs
        self.attrs_of = attrs_of
        self.records = records or {}
        self.numbers: dict[str, int] = {}  # a node's number in the file -> its id here
        self._dims: dict[str, D.DimLike] = {}

    def dim(self, j: Json) -> D.DimLike:
        if type(j) is int:
            return j
        if isinstance(j, dict) and len(j) == 1 and isinstance(j.get("d"), str):
            text = j["d"]
            if text not in self._dims:
                try:
                    self._dims[text] = D.parse_dim(text)
                except (IndexError, ValueError, TypeError):
                    raise SerializeError(f"no dimension: {text!r}") from None
            return self._dims[text]
        raise SerializeError(f"no dimension: {j!r}")

    def value(self, j: Json) -> Any:
        if type(j) in _PLAIN:
            return j
        if isinstance(j, list):
            return tuple([e if type(e) in _PLAIN else self.value(e) for e in j])
        if not isinstance(j, dict) or len(j) != 1:
            raise SerializeError(f"unknown value {str(j)[:80]}")
        ((tag, x),) = j.items()
        if tag == "d":
            return self.dim(j)
        try:
            return self._TAGS[tag](self, x)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            if isinstance(e, SerializeError):
                raise
            raise SerializeError(f"unknown value {str(j)[:80]}: {e}") from None

    def _array(self, x: Json) -> Array:
        number, name, shape = x
        shape, kind = tuple(int(n) for n in shape), _DTYPES[name]
        if type(number) is not int or not 0 <= number < len(self.blobs):
            raise SerializeError(f"array in section {number!r}, which does not exist")
        data = self.blobs[number]
        if any(n < 0 for n in shape) or math.prod(shape) * kind.size != len(data):
            raise SerializeError(
                f"array {name}{list(shape)} does not fit the {len(data)} bytes of section {number}"
            )
        return np.frombuffer(data, np.uint8).view(kind.np).reshape(shape)

    def _broadcast(self, x: Json) -> Array:
        number, name, shape = x
        return np.broadcast_to(self._array([number, name, []]), tuple(shape))

    def _objects(self, x: Json) -> Array:
        elements, shape = x
        out = np.empty(len(elements), dtype=object)
        out[:] = [self.value(e) for e in elements]
        return out.reshape(tuple(shape))

    def _record(self, x: Json) -> Any:
        name, entries = x
        if name not in self.records:
            raise SerializeError(f"unknown record {name!r}")
        return self.record(self.records[name], entries)

    _TAGS: dict[str, Callable[[Decoder, Any], Any]] = {
        "t": lambda self, x: _DTYPES[x],
        "f": lambda self, x: float(x),
        "l": lambda self, x: [self.value(e) for e in x],
        "m": lambda self, x: {self.value(k): self.value(v) for k, v in x},
        "a": _array,
        "b": _broadcast,
        "o": _objects,
        "r": _record,
    }

    def record(self, cls: type[T], j: Json) -> T:
        """A dataclass from its fields; absent ones take their defaults."""
        if not isinstance(j, dict):
            raise SerializeError(f"expected the fields of {cls.__name__}, found {str(j)[:80]}")
        known = _field_names(cls)  # type: ignore[arg-type]
        if not j.keys() <= known:
            unknown = ", ".join(sorted(j.keys() - known))
            raise SerializeError(f"{cls.__name__} has no field {unknown}")
        try:
            return cls(**{
                k: v if type(v) in _PLAIN else self.value(v) for k, v in j.items()
            })
        except SerializeError:
            raise
        except (TypeError, ValueError) as e:
            raise SerializeError(f"{cls.__name__}: {e}") from None

    def symbols(self, j: Json) -> dict[str, SymbolInfo]:
        infos = [self.record(SymbolInfo, e) for e in _expect(j, list, "symbols")]
        return {info.name: info for info in infos}

    def graph(self, j: Json) -> Graph:
        """A graph; its nodes get new numbers (data symbols keep the file's names)."""
        entries = _expect(j, dict, "graph")
        values = [self._value_entry(e) for e in _expect(entries.get("values"), list, "values")]

        def get(i: Json) -> Value | None:
            if type(i) is not int or not -1 <= i < len(values):
                raise SerializeError(f"value {i!r} of {len(values)}")
            return None if i < 0 else values[i]

        def present(ids: Json) -> list[Value]:
            out = [get(i) for i in _expect(ids, list, "value list")]
            if None in out:
                raise SerializeError("an absent value where one is needed")
            return out  # type: ignore[return-value]

        graph = Graph(_expect(entries.get("name"), str, "name"), present(entries.get("inputs")))
        for e in _expect(entries.get("nodes"), list, "nodes"):
            graph.nodes.append(self._node(_expect(e, dict, "node"), get, present))
        graph.outputs = present(entries.get("outputs"))
        graph.symbols = self.symbols(entries.get("symbols"))
        return graph

    def _node(
        self,
        e: dict[str, Json],
        get: Callable[[Json], Value | None],
        present: Callable[[Json], list[Value]],
    ) -> Node:
        op = _expect(e.get("op"), str, "op")
        try:
            attrs_type = self.attrs_of(op)
        except KeyError:
            raise SerializeError(f"no op is called {op!r}") from None
        attrs: Any = self.record(attrs_type, e.get("attrs"))
        inputs = [get(i) for i in _expect(e.get("in"), list, "inputs")]
        node = Node(op, inputs, attrs, _expect(e.get("name"), str, "name"))
        node.source = _expect(e.get("source", ""), str, "source")
        node.subgraphs = tuple(self.graph(g) for g in _expect(e.get("sub", []), list, "sub"))
        node.meta = self._meta(e)
        self.numbers[str(e.get("number"))] = node.id
        node.outputs = present(e.get("out"))
        for i, v in enumerate(node.outputs):
            if v.producer is not None:
                raise SerializeError(f"value {v.name!r} is computed twice")
            v.producer, v.index = node, i
        return node

    def _value_entry(self, j: Json) -> Value:
        e = _expect(j, dict, "value")
        shape = e.get("shape")
        if shape is not None:
            shape = tuple(self.dim(d) for d in _expect(shape, list, "shape"))
        kind = self.value({"t": e.get("dtype")})
        v = Value(_expect(e.get("name"), str, "name"), kind, shape)
        if "const" in e:
            v.const = self.value(e["const"])
        if "content" in e:
            v.content = self.value(e["content"])
        v.meta = self._meta(e)
        return v

    def _meta(self, e: dict[str, Json]) -> dict[str, Any]:
        return {k: self.value(v) for k, v in _expect(e.get("meta", []), list, "meta")}


@functools.cache
def _field_names(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls))


def _expect(x: Json, kind: type[T], what: str) -> T:
    if not isinstance(x, kind):
        raise SerializeError(f"{what}: expected {kind.__name__}, found {type(x).__name__}")
    return x


def renumber_data_symbols(graph: Graph, number_of: Mapping[str, int]) -> None:
    """Renames the data symbols of a decoded graph after its nodes, so that it can be compiled.

    Args:
        graph: From `Decoder.graph`.
        number_of: `Decoder.numbers`.
    """
    env: dict[str, D.DimLike] = {}
    for name, info in list(graph.symbols.items()):
        m = _DATA_SYMBOL.fullmatch(name)
        if m and m[1] in number_of:
            new = f"%{number_of[m[1]]}.{m[2]}"
            env[name] = D.sym(new)
            del graph.symbols[name]
            info.name, info.source = new, str(number_of[m[1]])
            graph.symbols[new] = info
    _rename(graph, env)


def _rename(graph: Graph, env: Mapping[str, D.DimLike]) -> None:
    for v in graph.values():
        if v.shape is not None:
            v.shape = tuple(D.substitute(d, env) for d in v.shape)
        if v.content is not None:
            content = np.empty(v.content.size, dtype=object)
            content[:] = [D.substitute(d, env) for d in v.content.reshape(-1)]
            v.content = content.reshape(v.content.shape)
    for info in graph.symbols.values():
        if info.upper is not None:
            info.upper = D.substitute(info.upper, env)
    for node in graph.nodes:
        for sub in node.subgraphs:
            _rename(sub, env)
