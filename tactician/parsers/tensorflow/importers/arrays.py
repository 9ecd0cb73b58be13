"""Tensor arrays of TensorFlow 1.x and tensor lists of 2.x."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ...onnx.errors import NodeProblem
from ..arrays import ArrayHandle, EmptyArray, contents, filled, gather, read, scatter, write
from ..context import Context
from ..node import TfNode
from ..table import importer


def _fresh(c: Context, n: TfNode, dtype: Any, size: Value, shape: Any) -> EmptyArray:
    if shape is not None:
        shape = tuple(-1 if d is None else int(d) for d in shape)
    return EmptyArray(dtype, c.vector(size), shape)


@importer("TensorArrayV3", outputs="handle flow")
def tensor_array(c: Context, n: TfNode) -> list[Any]:
    empty = _fresh(c, n, n.dtype("dtype"), n[0], n.attr("element_shape", None))
    return [ArrayHandle(empty), empty]


@importer("TensorArrayWriteV3")
def array_write(c: Context, n: TfNode) -> Value:
    return write(c, contents(n.inputs[3], "the flow"), n[1], n[2])


@importer("TensorArrayReadV3")
def array_read(c: Context, n: TfNode) -> Value:
    return read(c, contents(n.inputs[2], "the flow"), n[1])


@importer("TensorArrayScatterV3")
def array_scatter(c: Context, n: TfNode) -> Value:
    return scatter(c, contents(n.inputs[3], "the flow"), n[1], n[2])


@importer("TensorArrayGatherV3")
def array_gather(c: Context, n: TfNode) -> Value:
    return gather(c, contents(n.inputs[2], "the flow"), n[1])


@importer("TensorArraySizeV3")
def array_size(c: Context, n: TfNode) -> Value:
    return _length(c, n.inputs[1])


@importer("TensorArrayCloseV3", note="left out")
def array_close(c: Context, n: TfNode) -> list[Any]:
    return []


def _length(c: Context, x: Any) -> Value:
    size = contents(x, "the array")
    count = size.size if isinstance(size, EmptyArray) else c.shape_of(size, [0])
    return c.cast(c.scalar(count), T.i32)


# --- lists ------------------------------------------------------------------------------------


def _element_shape(v: Any) -> Any:
    known = v.known_ints() if isinstance(v, Value) else None
    if known is None or known.ndim == 0:
        return None
    return [d if isinstance(d, (int, np.integer)) else -1 for d in known]


@importer("TensorListReserve", "EmptyTensorList")
def list_reserve(c: Context, n: TfNode) -> Any:
    if n.op == "EmptyTensorList":
        raise NodeProblem("lists that grow are not supported; only TensorListReserve is")
    return _fresh(c, n, n.dtype("element_dtype"), n[1], _element_shape(n.inputs[0]))


@importer("TensorListFromTensor")
def list_from_tensor(c: Context, n: TfNode) -> Any:
    return n[0]


@importer("TensorListGetItem")
def list_get(c: Context, n: TfNode) -> Value:
    return read(c, contents(n.inputs[0], "the list"), n[1])


@importer("TensorListSetItem")
def list_set(c: Context, n: TfNode) -> Value:
    return write(c, contents(n.inputs[0], "the list"), n[1], n[2])


@importer("TensorListStack")
def list_stack(c: Context, n: TfNode) -> Value:
    return filled(c, contents(n.inputs[0], "the list"))


@importer("TensorListGather")
def list_gather(c: Context, n: TfNode) -> Value:
    return gather(c, contents(n.inputs[0], "the list"), n[1])


@importer("TensorListLength")
def list_length(c: Context, n: TfNode) -> Value:
    return _length(c, n.inputs[0])
