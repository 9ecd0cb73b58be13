"""Signal processing."""

from __future__ import annotations

from ....ir.graph import Value
from ..context import Context, axis_of, require_ints
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of


@importer("DFT", since=17, until=19)
def dft_attribute(c: Context, n: OnnxNode) -> Value:
    return _dft(c, n, n.attr("axis", 1))


@importer("DFT", since=20)
def dft(c: Context, n: OnnxNode) -> Value:
    axis = -2 if not n.has(2) else int(require_ints(n[2], "axis").reshape(-1)[0])
    return _dft(c, n, axis)


def _dft(c: Context, n: OnnxNode, axis: int) -> Value:
    x, length = n[0], n.get(1)
    return c.op("dft", x, None if length is None else c.scalar(c.index(length)),
                axis=axis_of(axis, x.rank), inverse=n.flag("inverse"),
                onesided=n.flag("onesided"))


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
