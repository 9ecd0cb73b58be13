"""Layers where data come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir.graph import Value
from ....network.enums import DataType
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


def _add_inputs(c: Context, n: CaffeLayer, shapes: Sequence[Sequence[int]]) -> list[Value]:
    if len(shapes) not in (1, len(n.tops)):
        raise LayerProblem(f"has {len(n.tops)} tops and {len(shapes)} shapes; give one shape, or "
                           "one for each top")
    out = []
    for i, top in enumerate(n.tops):
        shape = [int(d) for d in shapes[i if len(shapes) > 1 else 0]]
        if not shape or any(d == 0 or d < -1 for d in shape):
            raise LayerProblem(f"the shape of {top!r} is {shape}; sizes are positive, or -1 if "
                               "they are known only at run time (explicit batch)")
        if c.implicit:
            if c.batch is None:
                c.batch = shape[0]
            shape = shape[1:]
        t: Any = c.network.add_input(top, DataType.FLOAT, shape)
        if t is None:
            raise LayerProblem(f"the network refuses an input {top!r} of shape {shape}; the log "
                               "says why")
        out.append(t._v)
    return out


@importer("Input", inputs=0, does="an input of the network")
def input_layer(c: Context, n: CaffeLayer) -> list[Value]:
    shapes = [list(s.dim) for s in n.proto.input_param.shape]
    if not shapes:
        raise LayerProblem("has no shape; give it input_param { shape { dim: … } }")
    return _add_inputs(c, n, shapes)


@importer("DummyData", inputs=0, does="an input of the network",
          notes="what the filler would give is up to the program")
def dummy_data(c: Context, n: CaffeLayer) -> list[Value]:
    p = n.proto.dummy_data_param
    shapes = [list(s.dim) for s in p.shape] or [
        list(s) for s in zip(p.num, p.channels, p.height, p.width, strict=False)]
    if not shapes:
        raise LayerProblem("has no shape; give it dummy_data_param { shape { dim: … } }")
    return _add_inputs(c, n, shapes)


@importer("MemoryData", inputs=0, does="an input of the network (its first top)",
          notes="labels, the second top, are an input of one number per image")
def memory_data(c: Context, n: CaffeLayer) -> list[Value]:
    p = n.proto.memory_data_param
    if not (p.batch_size and p.channels and p.height and p.width):
        raise LayerProblem("memory_data_param needs batch_size, channels, height and width")
    return _add_inputs(c, n, [[p.batch_size, p.channels, p.height, p.width], [p.batch_size]]
                       [: max(len(n.tops), 1)])
