"""Random numbers. Their values differ from other runtimes'; the distributions are the same."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of

_NOTE = "values differ from other runtimes'"


def _fill(c: Context, n: OnnxNode, shape: Value, to: T.DType) -> Value:
    uniform = n.op.startswith("RandomUniform")
    names = (("low", 0.0), ("high", 1.0)) if uniform else (("mean", 0.0), ("scale", 1.0))
    wide = to if to.is_float and to.bits >= 32 else T.f32
    a, b = (c.const(n.attr(name, default), wide) for name, default in names)
    fn = "random_uniform" if uniform else "random_normal"
    return c.cast(c.op("fill", shape, a, b, fn=fn, to=wide, seed=seed_of(n)), to)


def seed_of(n: OnnxNode) -> int | None:
    """The seed as bits of the f32 attribute; None draws a new one for each run."""
    import struct

    seed = n.attr("seed", None)
    return None if seed is None else int.from_bytes(struct.pack("<f", seed), "little") & 0x7FFFFFFF


@importer("RandomUniform", "RandomNormal", note=_NOTE)
def random(c: Context, n: OnnxNode) -> Value:
    return _fill(c, n, c.ints(n.ints("shape")), dtype_of(n.attr("dtype", 1)))


@importer("RandomUniformLike", "RandomNormalLike", note=_NOTE)
def random_like(c: Context, n: OnnxNode) -> Value:
    to = dtype_of(n.attr("dtype")) if "dtype" in n.attributes else n[0].dtype
    return _fill(c, n, c.shape(n[0]), to)


@importer("Multinomial", since=7, note=_NOTE)
def multinomial(c: Context, n: OnnxNode) -> Value:
    to = dtype_of(n.attr("dtype", 6))
    if to not in (T.i32, T.i64):
        raise NodeProblem(f"dtype is {to}; expected i32 or i64")
    return c.op("multinomial", n[0], samples=n.attr("sample_size", 1), to=to, seed=seed_of(n))


@importer("Bernoulli", since=15, note=_NOTE)
def bernoulli(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    to = dtype_of(n.attr("dtype")) if "dtype" in n.attributes else x.dtype
    wide = x.dtype if x.dtype.bits >= 32 else T.f32
    draw = c.op("fill", c.shape(x), c.const(0.0, wide), c.const(1.0, wide),
                fn="random_uniform", to=wide, seed=seed_of(n))
    return c.op("cast", c.binary("lt", draw, c.cast(x, wide)), to=to, saturate=True)
