"""matmul, int_matmul and einsum against numpy, torch and onnxruntime."""

import ml_dtypes
import numpy as np
import pytest
import torch
from ort_oracle import ort_run
from run_op import build, close, run_op

from tactician.ir import dtypes as T
from tactician.ops import OpError

rng = np.random.default_rng(4)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("a,b", [
    ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((3, 4), (2, 4, 5)),
    ((1, 4), (4, 1)), ((0, 4), (4, 5)), ((3, 0), (0, 5)),
])  # fmt: skip
@pytest.mark.parametrize("dt", ["float32", "float64", "float16", "int32", "int64", "uint32"])
def test_matmul(a, b, dt):
    x, y = (np.abs(normal(*s) * 9).astype(dt) for s in (a, b))
    got = run_op("matmul", [x, y], dynamic={0: range(len(a)), 1: range(len(b))} if a[0] else None)
    close(got, (x.astype(np.float64) @ y.astype(np.float64)).astype(dt))


def test_integer_matmul_is_exact_and_wraps():
    a = np.array([[2**53 + 1, 1]], np.int64)
    assert run_op("matmul", [a, a.T])[0, 0] == ((2**53 + 1) ** 2 + 1) % 2**64


@pytest.mark.parametrize("ta", ["none", "transpose", "vector"])
@pytest.mark.parametrize("tb", ["none", "transpose", "vector"])
def test_flags(ta, tb):
    a = {"none": normal(2, 3, 4), "transpose": normal(2, 4, 3), "vector": normal(2, 4)}[ta]
    b = {"none": normal(2, 4, 5), "transpose": normal(2, 5, 4), "vector": normal(2, 4)}[tb]
    left = {"none": "bij", "transpose": "bji", "vector": "bj"}[ta]
    right = {"none": "bjk", "transpose": "bkj", "vector": "bj"}[tb]
    out = "b" + "i" * (ta != "vector") + "k" * (tb != "vector")
    got = run_op("matmul", [a, b], dynamic={0: (0,), 1: (0,)}, ta=ta, tb=tb)
    close(got, np.einsum(f"{left},{right}->{out}", a, b))


def test_halves_accumulate_in_f32():
    a, b = np.ones((1, 4096), np.float16), np.ones((4096, 1), np.float16)
    a[0, 0] = 0.5
    assert run_op("matmul", [a, b])[0, 0] == np.float16(4095.5)
    c = normal(8, 8).astype(ml_dtypes.bfloat16)
    want = c.astype(np.float32) @ c.astype(np.float32)
    close(run_op("matmul", [c, c]), want.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("a,b,text", [
    (normal(3, 4), normal(5, 6), "4 columns but b .* has 5 rows"),
    (normal(4), normal(4, 5), "vector"),
    (normal(3, 4), normal(4, 5).astype(np.float64), "one numeric type"),
    (normal(2, 3, 4), normal(3, 4, 5), "broadcast"),
])  # fmt: skip
def test_matmul_refuses(a, b, text):
    with pytest.raises(OpError, match=text):
        build("matmul", [a, b])


@pytest.mark.parametrize("a_type", [np.int8, np.uint8])
@pytest.mark.parametrize("b_type", [np.int8, np.uint8])
@pytest.mark.parametrize("zero_b", ["none", "scalar", "vector"])
def test_int_matmul(a_type, b_type, zero_b):
    a, b = (rng.integers(0, 256, s).astype(np.uint8).view(t)
            for s, t in (((2, 3, 40), a_type), ((40, 5), b_type)))
    za = np.array(7, a_type)
    zb = {"none": None, "scalar": np.array(3, b_type),
          "vector": rng.integers(0, 100, 5).astype(b_type)}[zero_b]
    got = run_op("int_matmul", [a, b, za, zb])
    wide = (a.astype(np.int64) - 7) @ (b.astype(np.int64) - (0 if zb is None else zb))
    close(got, wide.astype(np.int32))
    if b_type is np.uint8:  # onnxruntime saturates sums of uint8 * int8 on some machines
        close(got, ort_run("MatMulInteger", [a, b, za, zb])[0])


def test_int_matmul_zero_per_row():
    a, b = (rng.integers(0, 256, s).astype(np.uint8) for s in ((3, 4), (4, 5)))
    za = np.array([1, 2, 200], np.uint8)
    want = (a.astype(np.int32) - za[:, None].astype(np.int32)) @ b.astype(np.int32)
    close(run_op("int_matmul", [a, b, za]), want.astype(np.int32))


@pytest.mark.parametrize("ta,tb", [("transpose", "none"), ("none", "transpose")])
def test_int_matmul_of_transposed_operands(ta, tb):
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((2, 4, 6), (2, 6, 5)))
    zb = rng.integers(-9, 9, 5).astype(np.int8)
    want = a.astype(np.int32) @ (b.astype(np.int32) - zb)
    a = a.swapaxes(1, 2).copy() if ta == "transpose" else a
    b = b.swapaxes(1, 2).copy() if tb == "transpose" else b
    close(run_op("int_matmul", [a, b, None, zb], ta=ta, tb=tb), want)


def test_matmul_to_a_wider_type():
    a, b = normal(3, 40).astype(np.float16), normal(40, 5).astype(np.float16)
    got = run_op("matmul", [a, b], to=T.f32)
    assert got.dtype == np.float32
    close(got, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("equation,shapes", [
    ("ij,jk->ik", [(3, 4), (4, 5)]), ("ij,jk", [(3, 4), (4, 5)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("i,i->", [(5,), (5,)]), ("i,j->ij", [(3,), (4,)]), ("ij->ji", [(3, 4)]), ("ij->", [(3, 4)]),
    ("ij->j", [(3, 4)]), ("ii->i", [(4, 4)]), ("ii", [(4, 4)]), ("iij->ij", [(3, 3, 2)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 6)]), ("...i,i", [(2, 3, 4), (4,)]),
    ("b...,b...->b", [(2, 3), (2, 3)]), ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]), ("ab,cd,a->dc", [(2, 3), (4, 5), (2,)]),
    ("i j , j k -> i k", [(3, 4), (4, 5)]), ("aB,Bc->ac", [(2, 3), (3, 4)]),
    ("bnij,bjnd->bind", [(2, 3, 4, 5), (2, 5, 3, 6)]), ("ij,ij->ij", [(3, 4), (3, 4)]),
    ("abc,ad->bd", [(2, 3, 4), (2, 5)]), ("...->...", [(2, 3)]),
])  # fmt: skip
def test_einsum(equation, shapes):
    xs = [normal(*s) for s in shapes]
    got = run_op("einsum", xs, equation=equation)
    close(got, torch.einsum(equation.replace(" ", ""), *map(torch.from_numpy, xs)).numpy())


@pytest.mark.parametrize("equation,shapes", [
    ("ij,jk->ik", [(3, 1), (4, 5)]), ("bij,bjk->bik", [(1, 3, 4), (2, 4, 5)]),
    ("ij,ij->i", [(3, 4), (1, 4)]),
])  # fmt: skip
def test_einsum_broadcasts_ones(equation, shapes):
    xs = [normal(*s) for s in shapes]
    close(run_op("einsum", xs, equation=equation), np.einsum(equation, *xs))


def test_einsum_dynamic():
    run_op("einsum", [normal(2, 3, 4, 5), normal(2, 3, 6, 5)], equation="bhid,bhjd->bhij",
           dynamic={0: (0, 2), 1: (0, 2)})


@pytest.mark.parametrize("equation,shapes,text", [
    ("ij,jk->ik", [(3, 4)], "names 2 operands"), ("ij->i", [(3, 4, 5)], "3 dimensions"),
    ("ij,jk->ik", [(3, 4), (5, 6)], "label 'j' has sizes 4 and 5"),
    ("ij->il", [(3, 4)], "labels of the operands"), ("i1->i", [(3, 4)], "letters"),
])  # fmt: skip
def test_einsum_refuses(equation, shapes, text):
    with pytest.raises(OpError, match=text):
        build("einsum", [normal(*s) for s in shapes], equation=equation)
