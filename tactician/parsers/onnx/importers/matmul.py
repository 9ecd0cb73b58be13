"""Matrix products."""

from __future__ import annotations

from ....ir.graph import Value
from ..context import Context
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer


def _flag(v: Value) -> str:
    return "vector" if v.rank == 1 else "none"


@importer("MatMul")
def matmul(c: Context, n: OnnxNode) -> Value:
    return c.matmul(n[0], n[1], _flag(n[0]), _flag(n[1]))


@importer("Gemm", since=7)
def gemm(c: Context, n: OnnxNode) -> Value:
    a, b = n[0], n[1]
    if a.rank != 2 or b.rank != 2:
        raise NodeProblem(f"A and B must be matrices, not of rank {a.rank} and {b.rank}")
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    flags = ["transpose" if n.flag(t) else "none" for t in ("transA", "transB")]
    y = c.matmul(a, b, *flags)
    if alpha != 1.0:
        y = c.mul(y, c.like(alpha, y))
    bias = n.get(2)
    if bias is not None and beta != 0.0:
        y = c.add(y, bias if beta == 1.0 else c.mul(bias, c.like(beta, bias)))
    return y


@importer("MatMulInteger", since=10)
def matmul_integer(c: Context, n: OnnxNode) -> Value:
    return c.op("int_matmul", n[0], n[1], n.get(2), n.get(3))


@importer("Det", since=11)
def det(c: Context, n: OnnxNode) -> Value:
    return c.op("det", n[0])
