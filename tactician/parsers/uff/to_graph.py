"""UFF graphs as TensorFlow graphs, which the TensorFlow importers understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.dtypes import dtype
from ..onnx.errors import Problem
from ..tensorflow import table
from ..tensorflow.graph import constant, new_graph, new_node
from ..tensorflow.walk import FAILED
from .convert import FUNCS
from .schema import INCREMENT, get_data

_FUNCS = {op: {f: t for t, f in reversed(list(funcs.items()))} for op, funcs in FUNCS.items()}
_FUNCS["Binary"]["add"] = "AddV2"
_FUNCS["Binary"]["div"] = "RealDiv"


class UffProblem(Exception):
    """A problem of one UFF node."""


class ToGraph:
    """Translates one UFF graph.

    Args:
        meta: The ``MetaGraph``.

    Attributes:
        proto: The ``GraphDef`` made.
        inputs: UFF's inputs: name to declared shape.
        outputs: Names that its MarkOutput nodes mark.
        problems: What can't be translated.
    """

    def __init__(self, meta: Any):
        self.meta = meta
        self.proto = new_graph()
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.outputs: list[str] = []
        self.problems: list[Problem] = []
        for node in meta.graphs[0].nodes:
            try:
                self._node(node)
            except UffProblem as e:
                self.problems.append(Problem(
                    "INVALID_NODE", f"node '{node.id}' ({node.operation}): {e}\n    inputs: "
                    f"{', '.join(node.inputs) or 'none'}", -1, node.id, node.operation))
                self.proto.node.append(new_node(node.id, FAILED, node.inputs))

    @property
    def channels_last(self) -> bool:
        """Whether its images have their channels last."""
        return not any(n.attr["data_format"].s == b"NCHW" for n in self.proto.node
                       if "data_format" in n.attr)

    def _node(self, node: Any) -> None:
        fields = {k: self._value(node, k) for k in node.fields}
        rule = _RULES.get(node.operation)
        if node.operation in _FUNCS:
            rule = _with_func
        if rule is not None:
            rule(self, node, fields)
        else:
            self._custom(node, fields)

    def _value(self, node: Any, key: str) -> Any:
        """A field; a reference is followed."""
        data = node.fields[key]
        if data.WhichOneof("type") != "ref":
            return get_data(data)
        if data.ref not in self.meta.referenced_data:
            raise UffProblem(f"field {key!r} refers to {data.ref!r}, which the file does not hold")
        return get_data(self.meta.referenced_data[data.ref])

    def add(self, node: Any, op: str, inputs: Any = None, **attrs: Any) -> None:
        """Adds a TensorFlow node of the UFF node's name."""
        refs = list(node.inputs) if inputs is None else list(inputs)
        made = new_node(node.id, op, refs, **attrs)
        made.attr["_uff_op"].s = node.operation.encode()
        self.proto.node.append(made)

    def const(self, node: Any, suffix: str, value: Any) -> str:
        """A constant operand; returns its name."""
        name = f"{node.id}/uff_{suffix}"
        self.proto.node.append(constant(name, value))
        return name

    def _custom(self, node: Any, fields: dict[str, Any]) -> None:
        """Operators UFF has no own operation for begin with an underscore; so do plugins."""
        op = node.operation.removeprefix("_")
        if table.find(op) is None:
            op = node.operation
        arrays = {k for k in node.fields if node.fields[k].WhichOneof("type") == "ref"}
        attrs: dict[str, Any] = {}
        for key, value in fields.items():
            owner = next((a for a in arrays if key in (f"{a}_dtype", f"{a}_shape")), None)
            if key in arrays:
                attrs[key] = self._array(value, fields.get(f"{key}_dtype"),
                                         fields.get(f"{key}_shape"))
            elif owner is None and value is not None and not key.endswith("_orders"):
                attrs[key] = value.np if hasattr(value, "np") else value
        self.add(node, op, **attrs)

    @staticmethod
    def _array(raw: Any, dt: Any, shape: Any) -> np.ndarray[Any, Any]:
        dt = dt or dtype("f32")
        if not isinstance(raw, bytes):
            return np.asarray(raw, dt.np).reshape(shape if shape is not None else np.shape(raw))
        count = int(np.prod(shape, dtype=np.int64)) if shape is not None \
            else len(raw) // dt.np.itemsize
        if len(raw) != count * dt.np.itemsize:
            raise UffProblem(f"its data {dt}{list(shape or [count])} needs "
                             f"{count * dt.np.itemsize} bytes but has {len(raw)}; the file is "
                             "damaged")
        return np.frombuffer(raw, dt.np).reshape(shape if shape is not None else (count,))


Fields = dict[str, Any]


def _need(node: Any, fields: Fields, key: str) -> Any:
    if fields.get(key) is None:
        raise UffProblem(f"field {key!r} is missing; {node.operation} needs it")
    return fields[key]


def _operands(node: Any, count: int) -> None:
    if len(node.inputs) < count:
        raise UffProblem(f"it has {len(node.inputs)} inputs; {node.operation} needs {count}")


# --- rules ------------------------------------------------------------------------------------


def _with_func(g: ToGraph, node: Any, fields: Fields) -> None:
    known = _FUNCS[node.operation]
    func = _need(node, fields, "func")
    if func not in known:
        raise UffProblem(f"function {func!r} is not known; expected one of {', '.join(known)}")
    op = known[func]
    _operands(node, 2 if node.operation == "Binary" else 1)
    if node.operation == "Reduce":
        axes = g.const(node, "axes", np.asarray(_need(node, fields, "axes"), np.int32).reshape(-1))
        g.add(node, op, [node.inputs[0], axes], keep_dims=bool(fields.get("keepdims", False)))
    elif node.operation == "Pool":
        g.add(node, op, ksize=_per_axis(fields, _need(node, fields, "kernel")),
              **_window(fields))
    elif func == "leakyrelu":
        g.add(node, op, alpha=float(fields.get("alpha", 0.2)))
    else:
        g.add(node, op)


def _format(fields: Fields) -> str:
    orders = fields.get("inputs_orders") or ()
    first = (orders if isinstance(orders, dict) else orders[0] if orders else {}).get(INCREMENT)
    return "NCHW" if first is not None and list(first) == list(range(len(first))) else "NHWC"


def _per_axis(fields: Fields, values: Any) -> list[int]:
    inner = [int(v) for v in values]
    return [1, *inner, 1] if _format(fields) == "NHWC" else [1, 1, *inner]


def _window(fields: Fields) -> Fields:
    """Strides, dilation and padding as TensorFlow writes them."""
    out: Fields = {"strides": _per_axis(fields, fields.get("strides", (1, 1))),
                   "dilations": _per_axis(fields, fields.get("dilation", (1, 1))),
                   "data_format": _format(fields)}
    implicit = fields.get("implicit_padding")
    pads = [int(p) for p in fields.get("padding", ()) if not isinstance(p, str)]
    if implicit in ("SAME", "VALID"):
        out["padding"] = implicit
    elif pads:
        each = [x for p in pads for x in (p, p)]
        ends = ([0, 0], [0, 0]) if _format(fields) == "NHWC" else ([0, 0, 0, 0], [])
        out |= {"padding": "EXPLICIT", "explicit_paddings": [*ends[0], *each, *ends[1]]}
    else:
        out["padding"] = "VALID"
    return out


def _input(g: ToGraph, node: Any, fields: Fields) -> None:
    dt = fields.get("dtype") or dtype("f32")
    shape = tuple(int(d) for d in fields.get("shape") or ())
    g.inputs[node.id] = shape
    g.add(node, "Placeholder", [], dtype=dt, shape=shape)


def _const(g: ToGraph, node: Any, fields: Fields) -> None:
    array = g._array(_need(node, fields, "values"), fields.get("dtype"), fields.get("shape"))
    made = constant(node.id, array)
    made.attr["_uff_op"].s = b"Const"
    g.proto.node.append(made)


def _conv(g: ToGraph, node: Any, fields: Fields) -> None:
    _operands(node, 2)
    if "lhs_dilation" in fields and any(int(d) != 1 for d in fields["lhs_dilation"]):
        raise UffProblem("lhs_dilation is not supported")
    g.add(node, "Conv2D", **_window(fields))


def _conv_transpose(g: ToGraph, node: Any, fields: Fields) -> None:
    _operands(node, 3)
    x, kernel, shape = node.inputs[:3]
    g.add(node, "Conv2DBackpropInput", [shape, kernel, x], **_window(fields))


def _batch_norm(g: ToGraph, node: Any, fields: Fields) -> None:
    _operands(node, 5)
    g.add(node, "FusedBatchNormV3", epsilon=float(_need(node, fields, "epsilon")),
          is_training=False, data_format=_format(fields))


def _axis_last(op: str, key: str = "axis") -> Callable[[ToGraph, Any, Fields], None]:
    """A node whose field becomes TensorFlow's last operand."""
    def rule(g: ToGraph, node: Any, fields: Fields) -> None:
        value = np.asarray(_need(node, fields, key), np.int32)
        g.add(node, op, [*node.inputs, g.const(node, key, value)])
    return rule


def _softmax(g: ToGraph, node: Any, fields: Fields) -> None:
    axis = int(fields.get("axis", -1))
    if axis not in (-1, 1, 3):
        raise UffProblem(f"axis is {axis}; the last axis is supported")
    g.add(node, "Softmax")


def _flatten(g: ToGraph, node: Any, fields: Fields) -> None:
    axis = int(fields.get("axis", 1))
    if axis != 1:
        raise UffProblem(f"axis is {axis}; 1 is supported")
    g.add(node, "Flatten")


def _squeeze(g: ToGraph, node: Any, fields: Fields) -> None:
    g.add(node, "Squeeze", squeeze_dims=[int(a) for a in fields.get("axes") or ()])


def _masks(g: ToGraph, node: Any, fields: Fields) -> None:
    g.add(node, "StridedSlice", **{k: int(v) for k, v in fields.items() if k.endswith("_mask")})


def _mark(g: ToGraph, node: Any, fields: Fields) -> None:
    _operands(node, 1)
    g.outputs += list(node.inputs)


_RULES: dict[str, Callable[[ToGraph, Any, Fields], None]] = {
    "Input": _input,
    "Const": _const,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNorm": _batch_norm,
    "Concat": _axis_last("ConcatV2"),
    "GatherV2": _axis_last("GatherV2"),
    "Transpose": _axis_last("Transpose", "permutation"),
    "Softmax": _softmax,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "StridedSlice": _masks,
    "Stack": lambda g, n, f: g.add(n, "Pack", axis=int(f.get("axis", 0))),
    "FullyConnected": lambda g, n, f: g.add(n, "MatMul"),
    "Reshape": lambda g, n, f: g.add(n, "Reshape"),
    "Shape": lambda g, n, f: g.add(n, "Shape"),
    "Identity": lambda g, n, f: g.add(n, "Identity"),
    "MarkOutput": _mark,
}


def operations() -> dict[str, list[str]]:
    """UFF's operations and, where they have them, their functions, for the documentation."""
    out = {op: sorted(funcs) for op, funcs in _FUNCS.items()}
    return dict(sorted((out | {op: [] for op in _RULES}).items()))
