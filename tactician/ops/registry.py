"""How an op is declared: once, as a subclass of `Op` registered with `@register`.

Everything else derives from the declaration: shape inference, constant folding, the fallback
tactic and test oracle (`reference`), native code on every target (`stages`), rewriting into
simpler ops (`decompose`) and the support matrix in the docs.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..ir import dims as D
from ..ir.expr import Stage
from ..ir.graph import Graph, Node, TensorType, Value


class Kind(enum.Enum):
    """What an op is to the fuser."""

    POINTWISE = "pointwise"  # one expression per element, operands broadcast
    INDEX_MAP = "index map"  # moves elements: transpose, slice, pad, concat, gather, resize
    VIEW = "view"  # same elements, same order, other shape: never a copy
    REDUCTION = "reduction"  # reductions with expressions: reduce, softmax, norms, pooling
    CONTRACTION = "contraction"  # matmul, convolution, deconvolution, attention
    CONTROL = "control"  # if, loop: has subgraphs
    OPAQUE = "opaque"  # needs an algorithm of its own: sort, top-k, NMS, RNG, recurrences


class OpError(ValueError):
    """Wrong operands or attributes. The message says what was expected and what to do; the
    caller adds the layer's name."""


@dataclass(frozen=True)
class NoAttrs:
    """For ops without attributes."""


class Op:
    """Base class of op declarations.

    Attributes:
        name: The op's name in graphs, ``snake_case``.
        kind: See `Kind`.
        Attrs: Frozen dataclass of attributes. Field types are limited to int, float, bool, str,
            `DType`, None, tuples of these, and numpy arrays, so that plans can carry them.
        symbolic: True if `reference` also works on object arrays that hold `Dim`s. Results on
            small integer tensors are then known symbolically and can be shapes.
        symbolic_floats: True if that holds for floats too (Python floats, and `Dim`s as whole
            numbers); sizes computed in floats are then known as well.
        pure: What `is_pure` says of every node of this op, unless the op overrides it.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    Attrs: ClassVar[type] = NoAttrs
    symbolic: ClassVar[bool] = False
    symbolic_floats: ClassVar[bool] = False
    pure: ClassVar[bool] = True

    def num_outputs(self, node: Node) -> int:
        """How many outputs a node with these attributes has."""
        return 1

    def is_pure(self, node: Node) -> bool:
        """False if the node must be neither folded nor merged with an equal one (random numbers,
        plugins), nor removed when it has no outputs (assertions)."""
        return self.pure

    def infer(self, node: Node) -> Sequence[TensorType]:
        """Types of the outputs from the types (and known contents) of the inputs.

        Raises:
            OpError: If operands or attributes are wrong.
        """
        raise NotImplementedError

    def reference(self, node: Node, *inputs: Any) -> Any:
        """Outputs in numpy: an array, or a tuple of them. Absent inputs are None. Reads
        ``node.attrs`` and output dtypes, never input shapes of ``node`` (they may be symbolic)."""
        raise NotImplementedError

    def stages(self, node: Node) -> list[Stage] | None:
        """What the node computes, in the compute language, or None if it can't be said so.

        The last stages write the node's outputs; earlier ones may write intermediate values
        made with `temp`. Size arguments come from ``known_ints()`` of inputs, not from loads.
        """
        return None

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        """Rewrites the node into simpler ones with `emit(..., before=node)`; returns the values
        that replace its outputs, or None if the op stays."""
        return None


_REGISTRY: dict[str, Op] = {}
_OpT = TypeVar("_OpT", bound=type[Op])


def register(cls: _OpT) -> _OpT:
    """Class decorator: makes the op known under its name."""
    if cls.name in _REGISTRY:
        raise ValueError(f"op {cls.name!r} is declared twice")
    _REGISTRY[cls.name] = cls()
    return cls


def get(name: str) -> Op:
    """The declaration of an op.

    Raises:
        KeyError: If there is none.
    """
    try:
        return _REGISTRY[name]
    except KeyError:
        raise KeyError(f"no op is called {name!r}") from None


def all_ops() -> dict[str, Op]:
    return dict(_REGISTRY)


# --- nodes --------------------------------------------------------------------------------


def emit(
    graph: Graph,
    op: str,
    inputs: Sequence[Value | None],
    name: str = "",
    *,
    before: Node | None = None,
    source: str = "",
    subgraphs: Sequence[Graph] = (),
    meta: dict[str, Any] | None = None,
    **attrs: Any,
) -> Node:
    """Adds a node with inferred output types. Operand errors raise at once.

    Raises:
        OpError: If inference fails; the message names the layer.
    """
    node = create(graph, op, inputs, name, before=before, source=source, subgraphs=subgraphs,
                  meta=meta, **attrs)
    if node.error:
        graph.remove(node)
        raise OpError(node.error)
    return node


def create(
    graph: Graph,
    op: str,
    inputs: Sequence[Value | None],
    name: str = "",
    *,
    before: Node | None = None,
    source: str = "",
    subgraphs: Sequence[Graph] = (),
    meta: dict[str, Any] | None = None,
    **attrs: Any,
) -> Node:
    """Like `emit`, but an invalid node stays, with ``node.error`` set and untyped outputs; the
    network API uses it, where attributes may be corrected after the layer was added."""
    decl = get(op)
    node = Node(op, inputs, decl.Attrs(**attrs), name)
    node.source = source or (before.source if before is not None else "")
    node.subgraphs = tuple(subgraphs)
    node.meta.update(meta or {})
    for i in range(decl.num_outputs(node)):
        _add_output(node, i)
    graph.insert(node, before)
    infer_node(node)
    return node


def _add_output(node: Node, i: int) -> None:
    from ..ir.dtypes import f32

    v = Value(f"{node.name or node.op}_{node.id}:{i}", f32, None)
    v.producer, v.index = node, i
    node.outputs.append(v)


def infer_node(node: Node) -> bool:
    """Infers the node's output types in place; returns whether any changed.

    On failure outputs lose their shapes and ``node.error`` says why.
    """
    decl = get(node.op)
    for note in ("assumptions", "data_dims"):  # of other inputs or attributes, perhaps
        node.meta.pop(note, None)
    try:
        untyped = next((v for v in node.present_inputs() if v.shape is None), None)
        if untyped is not None:
            raise OpError(f"its input {untyped.name!r} has no valid shape")
        types = list(decl.infer(node))
        contents = _contents(decl, node, types) if decl.symbolic else None
        node.error = None
    except (OpError, *D_ERRORS) as e:
        node.error = f"{node.describe()}: {e}"
        changed = any(v.shape is not None for v in node.outputs)
        for v in node.outputs:
            v.shape, v.content = None, None
        return changed
    for i in range(len(node.outputs), len(types)):
        _add_output(node, i)
    contents = contents or [None] * len(types)
    return any([_set(v, t, c) for v, t, c in zip(node.outputs, types, contents, strict=True)])


def _set(v: Value, t: TensorType, content: Any) -> bool:
    """Gives a value its type and known content; float content is kept aside, because only
    integers can be sizes. Returns whether anything changed."""
    if not t.dtype.is_float:
        return v.set_type(t if content is None else TensorType(t.dtype, t.shape, content))
    old = v.meta.pop(_NUMBERS, None)
    if content is not None:
        v.meta[_NUMBERS] = content
    same = old is content or (
        old is not None and content is not None and old.tolist() == content.tolist()
    )
    return v.set_type(t) or not same


D_ERRORS = (TypeError, ValueError, IndexError, ZeroDivisionError)


def update(node: Node) -> None:
    """Re-infers a node after a change and, where types changed, everything downstream."""
    work = [node]
    while work:
        n = work.pop(0)
        if infer_node(n):
            work.extend(u for v in n.outputs for u in v.users)


_MAX_CONTENT = 1024
_MAX_FLOATS = 64
_NUMBERS = "numbers"  # key of known float contents in `Value.meta`


def _known(v: Value | None, floats: bool) -> Any:
    """Contents of an operand as an object array, or None if they are not known."""
    if v is None or not v.dtype.is_float:
        return None if v is None else v.known_ints()
    if not floats:
        return None
    if v.const is not None and v.const.size <= _MAX_FLOATS:
        return v.const.astype(np.float64).astype(object)
    return v.meta.get(_NUMBERS)


def _contents(decl: Op, node: Node, types: list[TensorType]) -> list[Any] | None:
    """Contents of outputs, if those of all inputs are known and the arithmetic is symbolic."""
    floats = decl.symbolic_floats
    if any(t.dtype.kind not in ("iubf" if floats else "iub") for t in types):
        return None
    known = [_known(v, floats) for v in node.inputs]
    if any(k is None and v is not None for k, v in zip(known, node.inputs, strict=True)):
        return None
    if any(not D.is_static(*t.shape) or int(D.product(t.shape)) > _MAX_CONTENT  # type: ignore
           for t in types):
        return None
    try:
        results = decl.reference(node, *known)
        results = results if isinstance(results, tuple) else (results,)
        return [_exact(r, t) for r, t in zip(results, types, strict=True)]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None  # the arithmetic is not symbolic after all (e.g. a comparison of Dims)


def _exact(result: Any, t: TensorType) -> Any:
    """A result as content of its type: floats rounded to it, at most a few of them."""
    out = np.asarray(result, dtype=object).reshape(t.shape)
    if not t.dtype.is_float:
        return out
    if out.size > _MAX_FLOATS:
        raise ValueError("too many floats to keep track of")
    rounded = [
        x if isinstance(x, D.Dim) else float(np.asarray(x, np.float64).astype(t.dtype.np))
        for x in out.reshape(-1)
    ]
    out = np.empty(len(rounded), dtype=object)
    out[:] = rounded
    return out.reshape(t.shape)


def evaluate(node: Node, *inputs: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """Runs the numpy reference and gives outputs their declared dtypes."""
    results = get(node.op).reference(node, *inputs)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(
        np.asarray(r).astype(v.dtype.np, copy=False)
        for r, v in zip(results, node.outputs, strict=True)
    )


def temp(node: Node, suffix: str, dt: Any, shape: Sequence[D.DimLike]) -> Value:
    """An intermediate value for `Op.stages`."""
    return Value(f"{node.name or node.op}_{node.id}.{suffix}", dt, tuple(shape))
