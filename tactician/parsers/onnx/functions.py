"""Model-local functions, and operators that ONNX defines by a function body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dims as D
from ...ir.graph import Value
from .context import Context
from .errors import NodeProblem, Poisoned
from .node import OnnxNode
from .scope import Scope
from .types import number_of
from .walk import MAX_DEPTH, canonical, import_nodes


def call_local(c: Context, n: OnnxNode, function: Any) -> Sequence[Value | None]:
    """Imports the body of a function that the model itself brings."""
    attributes = {a.name: a for a in function.attribute_proto}
    attributes.update(n.attributes)
    missing = [a for a in function.attribute if a not in attributes]
    known = {a: attributes[a] for a in attributes if a not in missing}
    label = f"function {function.domain}.{function.name} called by node {n.index} '{n.name}'"
    return _call(c, n, function, known, label)


def schema_of(op: str, opset: int, domain: str) -> Any:
    """ONNX's schema of an operator at an opset, or None."""
    from onnx import defs

    try:
        return defs.get_schema(op, opset, domain)
    except defs.SchemaError:
        return None


def call_schema(c: Context, n: OnnxNode, domain: str) -> Sequence[Value | None] | None:
    """Imports an operator through its function body; None if it has none."""
    schema = schema_of(n.op, n.opset, domain)
    if schema is None or schema.deprecated:
        return None
    function = _context_free(schema, n.opset) or _context_dependent(c, schema, n)
    if function is None:
        return None
    attributes = {
        name: a.default_value
        for name, a in schema.attributes.items()
        if a.default_value is not None and a.default_value.name
    }
    attributes.update(n.attributes)
    return _call(c, n, function, attributes, f"body of node {n.index} '{n.name}' ({n.op})")


def _parse(data: bytes) -> Any:
    from onnx import FunctionProto

    out = FunctionProto()
    out.ParseFromString(data)
    return out


def _version(versions: Sequence[int], opset: int) -> int | None:
    fitting = [v for v in versions if v <= opset]
    return max(fitting) if fitting else None


def _context_free(schema: Any, opset: int) -> Any:
    if not schema.has_function:
        return None
    version = _version(schema.function_opset_versions, opset)
    if version is None:
        return None
    return _parse(schema.get_function_with_opset_version(version))


def _context_dependent(c: Context, schema: Any, n: OnnxNode) -> Any:
    """A body that ONNX makes for the attributes and input types of this node."""
    if not schema.has_context_dependent_function:
        return None
    version = _version(schema.context_dependent_function_opset_versions, n.opset)
    if version is None:
        return None
    from onnx import NodeProto

    proto = NodeProto()
    proto.CopyFrom(n.proto)
    del proto.attribute[:]
    for name, a in n.attributes.items():
        copy = proto.attribute.add()
        copy.CopyFrom(a)
        copy.name = name
    types = [b"" if v is None else type_proto(v).SerializeToString() for v in n.inputs]
    data = schema.get_context_dependent_function_with_opset_version(
        version, proto.SerializeToString(), types)
    return _parse(data) if data else None


def type_proto(v: Value) -> Any:
    """A value's type as ONNX writes it."""
    from onnx import TypeProto

    out = TypeProto()
    out.tensor_type.elem_type = number_of(v.dtype)
    out.tensor_type.shape.SetInParent()
    for d in v.dims:
        dim = out.tensor_type.shape.dim.add()
        if isinstance(d, D.Dim):
            dim.dim_param = str(d)
        else:
            dim.dim_value = int(d)
    return out


def _call(
    c: Context, n: OnnxNode, function: Any, attributes: dict[str, Any], label: str
) -> list[Value | None]:
    if c.state.depth >= MAX_DEPTH:
        raise NodeProblem(f"functions are nested more than {MAX_DEPTH} deep: {label}")
    if len(n.inputs) > len(function.input):
        raise NodeProblem(
            f"has {len(n.inputs)} inputs, but function {function.name} takes "
            f"{len(function.input)}")
    scope = Scope(c.graph)
    for i, formal in enumerate(function.input):
        value = n.get(i)
        if value is not None:
            scope.define(formal, value)
    opsets = dict(c.opsets)
    opsets.update({canonical(o.domain): o.version for o in function.opset_import})
    inner = Context(c.state, scope, opsets, (*c.stack, label), attributes)
    before = len(c.state.problems)
    c.state.depth += 1
    try:
        import_nodes(inner, _with_absent_inputs(function, scope))
    finally:
        c.state.depth -= 1
    results: list[Value | None] = []
    for i, name in enumerate(function.output):
        try:
            results.append(scope.lookup(name) if n.wants(i) else None)
        except Poisoned:
            results.append(None)
    if len(c.state.problems) > before:
        raise Poisoned(label)
    for name, value in zip(n.proto.output, results, strict=False):
        if value is not None and value.producer is not None and name:
            value.name = name
    return results


def _with_absent_inputs(function: Any, scope: Scope) -> Sequence[Any]:
    """The body's nodes, with the names of absent optional inputs blanked."""
    absent = {formal for formal in function.input if not scope.defines(formal)}
    if not absent:
        return function.node
    from onnx import FunctionProto

    copy = FunctionProto()
    copy.CopyFrom(function)
    for node in copy.node:
        for i, name in enumerate(node.input):
            if name in absent:
                node.input[i] = ""
    return copy.node
