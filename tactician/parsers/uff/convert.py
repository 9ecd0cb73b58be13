"""TensorFlow graphs to UFF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..onnx.errors import ModelProblem
from ..tensorflow.model import default_outputs
from ..tensorflow.types import attr_value, dtype_of, to_numpy
from .schema import INCREMENT, messages, number_of, set_data

_SKIPPED = frozenset("Identity StopGradient PreventGradient CheckNumerics Snapshot".split())
_HIDDEN = ("T", "Tidx", "Tperm", "Tshape", "Tdim", "_output_shapes", "_class")

FUNCS = {  # UFF operation: its functions by TensorFlow operator
    "Binary": {"Add": "add", "AddV2": "add", "BiasAdd": "add", "Sub": "sub", "Mul": "mul",
               "Div": "div", "RealDiv": "div", "Minimum": "min", "Maximum": "max", "Pow": "pow"},
    "Unary": {"Neg": "neg", "Abs": "abs", "Sqrt": "sqrt", "Rsqrt": "rsqrt", "Exp": "exp",
              "Log": "log", "Square": "square", "Sin": "sin", "Cos": "cos", "Floor": "floor",
              "Ceil": "ceil", "Reciprocal": "reciprocal"},
    "Activation": {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Relu6": "relu6",
                   "Elu": "elu", "Selu": "selu", "Softplus": "softplus", "Softsign": "softsign",
                   "LeakyRelu": "leakyrelu"},
    "Reduce": {"Mean": "mean", "Sum": "sum", "Max": "max", "Min": "min", "Prod": "prod"},
    "Pool": {"MaxPool": "max", "AvgPool": "avg"},
}  # fmt: skip


class NotConstant(ModelProblem):
    """An operand that UFF has as a field is computed."""


class Converter:
    """One conversion.

    Args:
        graph: A ``GraphDef`` of this project.
        outputs: Names of the output nodes; None: nodes that nothing reads.
        name: The graph's name.
    """

    def __init__(self, graph: Any, outputs: Sequence[str] | None = None, name: str = "main"):
        self.nodes = {n.name: n for n in graph.node}
        self.outputs = list(outputs) if outputs else default_outputs(graph)
        self.meta = messages()["MetaGraph"](version=1, descriptor_core_version=1)
        self.meta.descriptors.add(id="tf_extra", version=1)
        self.graph = self.meta.graphs.add(id=name)
        self.inputs: list[str] = []
        self.custom: list[str] = []
        self.warnings: list[str] = []

    def run(self) -> Any:
        """The ``MetaGraph``.

        Raises:
            ModelProblem: If the graph can't be converted; the message names every reason.
        """
        missing = [o for o in self.outputs if o not in self.nodes]
        if missing or not self.outputs:
            raise ModelProblem(f"the graph has no output node {', '.join(missing) or 'at all'}")
        problems = []
        for node in self._order():
            try:
                self._convert(node)
            except NotConstant:
                self.generic(node)
            except (ModelProblem, ValueError, TypeError, KeyError) as e:
                problems.append(f"node {node.name!r} ({node.op}): {e}")
        if problems:
            raise ModelProblem("\n".join(problems))
        for k, name in enumerate(self.outputs):
            self.graph.nodes.add(id=f"MarkOutput_{k}", operation="MarkOutput",
                                 inputs=[self.name(name)])
        return self.meta

    def _order(self) -> list[Any]:
        """Nodes the outputs need, inputs first."""
        out: dict[str, Any] = {}
        active: set[str] = set()
        stack = [(o, False) for o in reversed(self.outputs)]
        while stack:
            name, done = stack.pop()
            if done:
                active.discard(name)
                out[name] = self.nodes[name]
                continue
            if name in out:
                continue
            if name in active:
                raise ModelProblem(f"the graph has a cycle through {name!r}; UFF has no loops")
            if name not in self.nodes:
                raise ModelProblem(f"the graph has no node {name!r}, which others read")
            active.add(name)
            stack.append((name, True))
            refs = [r.split(":")[0] for r in self._data(self.nodes[name])]
            stack += [(r, False) for r in reversed(refs) if r not in out]
        return list(out.values())

    @staticmethod
    def _data(node: Any) -> list[str]:
        return [i for i in node.input if not i.startswith("^")]

    def name(self, ref: str) -> str:
        """What a reference is called in UFF, past identities."""
        base, _, k = ref.partition(":")
        node = self.nodes.get(base)
        while node is not None and node.op in _SKIPPED:
            base, _, k = self._data(node)[0].partition(":")
            node = self.nodes.get(base)
        return base if k in ("", "0") else f"{base}:{k}"

    def constant(self, ref: str) -> Any:
        """The value of a constant input.

        Raises:
            NotConstant: If it is none.
        """
        node = self.nodes[self.name(ref)]
        if node.op != "Const":
            raise NotConstant(f"its input {ref!r} must be a constant, not {node.op}")
        return to_numpy(node.attr["value"].tensor)

    # --- nodes --------------------------------------------------------------------------------

    def add(self, node: Any, operation: str, inputs: Sequence[str], **fields: Any) -> Any:
        """Adds a UFF node."""
        new = self.graph.nodes.add(id=node.name, operation=operation,
                                   inputs=[self.name(i) for i in inputs])
        for key, value in fields.items():
            if value is not None:
                set_data(new.fields[key], value)
        return new

    def _convert(self, node: Any) -> None:
        if node.op in _SKIPPED or node.op in ("NoOp", "Assert"):
            return
        for operation, funcs in FUNCS.items():
            if node.op in funcs:
                _WITH_FUNC[operation](self, node, funcs[node.op])
                return
        rule = _RULES.get(node.op)
        if rule is not None:
            rule(self, node)
        else:
            self.generic(node)

    def generic(self, node: Any) -> None:
        """Any other node: a custom operation, with an underscore and all attributes."""
        if not node.op.startswith("_"):
            self.custom.append(node.op)
        operation = node.op if node.op.startswith("_") else f"_{node.op}"
        new = self.add(node, operation, self._data(node))
        for key in sorted(node.attr):
            if key in _HIDDEN:
                continue
            attr = node.attr[key]
            kind = attr.WhichOneof("value")
            value = attr_value(attr)
            if kind == "type":
                set_data(new.fields[key], dtype_of(value))
            elif kind == "tensor":
                self._weights(new, key, value)
            elif kind == "list" and len(attr.list.type):
                new.fields[key].dtype_list.val.extend(
                    number_of(dtype_of(t)) for t in attr.list.type)
            elif value is not None:
                set_data(new.fields[key], value)

    def _weights(self, new: Any, key: str, array: Any) -> None:
        """An array as a field, kept among the referenced data."""
        number = number_of(array.dtype)
        from .schema import dtype_of as uff_dtype

        kept = np.ascontiguousarray(array.astype(uff_dtype(number).np))  # type: ignore[union-attr]
        ref = f"weights_{new.id}" if key == "values" else f"weights_{new.id}_{key}"
        self.meta.referenced_data[ref].blob = kept.tobytes()
        new.fields[key].ref = ref
        suffix = "" if key == "values" else f"{key}_"
        new.fields[f"{suffix}dtype"].dtype = number
        set_data(new.fields[f"{suffix}shape"], [int(d) for d in array.shape])


# --- rules ------------------------------------------------------------------------------------


def _attr(node: Any, name: str, default: Any = None) -> Any:
    return attr_value(node.attr[name]) if name in node.attr else default


def _last(node: Any) -> bool:
    return str(_attr(node, "data_format", "NHWC")).endswith("C")


def _spatial(node: Any, name: str) -> list[int]:
    values = [int(v) for v in _attr(node, name, ()) or (1, 1, 1, 1)]
    return values[1:-1] if _last(node) else values[2:]


def _orders(c: Converter, new: Any, node: Any, count: int = 1) -> None:
    """Where batch, channels and positions lie: the order that makes N, C, H, W of it."""
    rank = len(_attr(node, "strides", (1,) * 4)) or 4
    order = [0, rank - 1, *range(1, rank - 1)] if _last(node) else list(range(rank))
    for name in ("inputs_orders", "outputs_orders"):
        orders = new.fields[name].dim_orders_list
        for _ in range(count if name[0] == "i" else 1):
            orders.val.add().orders[INCREMENT].val.extend(order)


def _padding(node: Any) -> dict[str, Any]:
    mode = _attr(node, "padding")
    if mode in ("SAME", "VALID"):
        return {"implicit_padding": mode}
    pads = [int(p) for p in _attr(node, "explicit_paddings")]
    before, after = (p[1:-1] if _last(node) else p[2:] for p in (pads[0::2], pads[1::2]))
    if before != after:
        raise ModelProblem(f"padding {before} before and {after} after: UFF has only the same on "
                           "both sides; pad with a Pad node")
    return {"padding": before}


def _binary(c: Converter, node: Any, func: str) -> None:
    c.add(node, "Binary", c._data(node), func=func)


def _unary(c: Converter, node: Any, func: str) -> None:
    c.add(node, "Unary", c._data(node), func=func)


def _activation(c: Converter, node: Any, func: str) -> None:
    c.add(node, "Activation", c._data(node), func=func,
          alpha=float(_attr(node, "alpha", 0.2)) if func == "leakyrelu" else None)


def _reduce(c: Converter, node: Any, func: str) -> None:
    x, axes = c._data(node)
    keep = bool(_attr(node, "keep_dims", _attr(node, "keepdims", False)))
    c.add(node, "Reduce", [x], func=func, keepdims=keep,
          axes=[int(a) for a in c.constant(axes).reshape(-1)])


def _pool(c: Converter, node: Any, func: str) -> None:
    new = c.add(node, "Pool", c._data(node), func=func, kernel=_spatial(node, "ksize"),
                strides=_spatial(node, "strides"), **_padding(node))
    _orders(c, new, node)


_WITH_FUNC: dict[str, Callable[[Converter, Any, str], None]] = {
    "Binary": _binary, "Unary": _unary, "Activation": _activation, "Reduce": _reduce,
    "Pool": _pool,
}


def _input(c: Converter, node: Any) -> None:
    shape = _attr(node, "shape", ()) if "shape" in node.attr else None
    if shape is None:
        raise ModelProblem("its shape is unknown; give one (convert-to-uff -I "
                           "NAME,NEW_NAME,DTYPE,DIM,...)")
    c.inputs.append(node.name)
    c.add(node, "Input", [], dtype=dtype_of(_attr(node, "dtype")),
          shape=[int(d) for d in shape])


def _const(c: Converter, node: Any) -> None:
    new = c.graph.nodes.add(id=node.name, operation="Const")
    c._weights(new, "values", to_numpy(node.attr["value"].tensor))


def _conv(c: Converter, node: Any) -> None:
    new = c.add(node, "Conv", c._data(node), strides=_spatial(node, "strides"),
                dilation=_spatial(node, "dilations"), **_padding(node))
    _orders(c, new, node)


def _depthwise(c: Converter, node: Any) -> None:
    """A convolution of as many groups as channels; its kernel [h, w, c, m] is kept as
    [h, w, 1, c * m]."""
    x, kernel = c._data(node)
    data = c.constant(kernel)
    height, width, channels, times = data.shape
    made = messages()["Node"](id=f"{node.name}/kernel", operation="Const")
    c.graph.nodes.append(made)
    c._weights(c.graph.nodes[-1], "values", data.reshape(height, width, 1, channels * times))
    new = c.add(node, "Conv", [x], strides=_spatial(node, "strides"),
                dilation=_spatial(node, "dilations"), number_groups=int(channels), **_padding(node))
    new.inputs.append(made.id)
    _orders(c, new, node)


def _conv_transpose(c: Converter, node: Any) -> None:
    shape, kernel, x = c._data(node)
    new = c.add(node, "ConvTranspose", [x, kernel, shape], strides=_spatial(node, "strides"),
                dilation=_spatial(node, "dilations"), **_padding(node))
    _orders(c, new, node)


def _batch_norm(c: Converter, node: Any) -> None:
    if _attr(node, "is_training", True):
        raise ModelProblem("it is a batch normalization in training mode; freeze the graph for "
                           "inference")
    new = c.add(node, "BatchNorm", c._data(node), epsilon=float(_attr(node, "epsilon", 1e-4)))
    _orders(c, new, node)


def _concat(c: Converter, node: Any) -> None:
    *values, axis = c._data(node)
    c.add(node, "Concat", values, axis=int(c.constant(axis)))


def _dense(c: Converter, node: Any) -> None:
    if _attr(node, "transpose_a", False) or _attr(node, "transpose_b", False):
        c.generic(node)
    else:
        c.add(node, "FullyConnected", c._data(node))


def _transpose(c: Converter, node: Any) -> None:
    x, perm = c._data(node)
    c.add(node, "Transpose", [x], permutation=[int(p) for p in c.constant(perm)])


def _squeeze(c: Converter, node: Any) -> None:
    axes = [int(a) for a in _attr(node, "squeeze_dims", ())]
    c.add(node, "Squeeze", c._data(node), axes=axes)


def _strided_slice(c: Converter, node: Any) -> None:
    masks = {f"{m}_mask": int(_attr(node, f"{m}_mask", 0))
             for m in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    c.add(node, "StridedSlice", c._data(node), **masks)


def _gather(c: Converter, node: Any) -> None:
    x, indices, *axis = c._data(node)
    c.add(node, "GatherV2", [x, indices], axis=int(c.constant(axis[0])) if axis else 0)


_RULES: dict[str, Callable[[Converter, Any], None]] = {
    "Placeholder": _input,
    "Const": _const,
    "Conv2D": _conv,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _conv_transpose,
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), _batch_norm),
    "Softmax": lambda c, n: c.add(n, "Softmax", c._data(n), axis=-1) and None,
    "ConcatV2": _concat,
    "Reshape": lambda c, n: c.add(n, "Reshape", c._data(n)) and None,
    "Transpose": _transpose,
    "MatMul": _dense,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Gather": _gather,
    "GatherV2": _gather,
    "Pack": lambda c, n: c.add(n, "Stack", c._data(n), axis=int(_attr(n, "axis", 0))) and None,
    "Shape": lambda c, n: c.add(n, "Shape", c._data(n)) and None,
}
