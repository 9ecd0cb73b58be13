"""Signal processing."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of


@importer("DFT", since=17, until=19)
def dft_attribute(c: Context, n: OnnxNode) -> Value:
    return _dft(c, n, c.const(axis_of(n.attr("axis", 1), n[0].rank), T.i64))


@importer("DFT", since=20)
def dft(c: Context, n: OnnxNode) -> Value:
    axis = n.get(2)
    return _dft(c, n, None if axis is None else c.scalar(c.index(axis)))


def _dft(c: Context, n: OnnxNode, axis: Value | None) -> Value:
    length = n.get(1)
    return c.op("dft", n[0], None if length is None else c.scalar(c.index(length)), axis,
                inverse=n.flag("inverse"), onesided=n.flag("onesided"))


@importer("STFT", since=17)
def stft(c: Context, n: OnnxNode) -> Value:
    length = n.get(3)
    return c.op("stft", n[0], c.scalar(c.index(n[1])), n.get(2),
                None if length is None else c.scalar(c.index(length)),
                onesided=n.flag("onesided", True))


@importer("MelWeightMatrix", since=17)
def mel_weight_matrix(c: Context, n: OnnxNode) -> Value:
    return c.op("mel_weight_matrix", *(c.scalar(n[i]) for i in range(5)),
                to=dtype_of(n.attr("output_datatype", 1)))
