"""The builder that leaves out what needs no instruction."""

import ctypes

import pytest
from llvmlite import ir

from tactician.targets.cpu import vecmath as V
from tactician.targets.cpu.folding import FoldingBuilder
from tactician.targets.cpu.toolchain import toolchain
from tactician.targets.cpu.vecmath import F32, I32, I64, PTR


def function(types, result):
    module = ir.Module("folding")
    fn = ir.Function(module, ir.FunctionType(result, types), "fold")
    return module, fn, FoldingBuilder(fn.append_basic_block("entry"))


def test_known_numbers_need_no_instruction():
    _, fn, b = function([I64, PTR], I64)
    x, p = fn.args
    assert b.add(I64(2), I64(3)).constant == 5
    assert b.sub(I64(2), I64(3)).constant == -1
    assert b.mul(I64(2), I64(3)).constant == 6
    assert b.mul(x, I64(0)).constant == 0
    for same in (b.add(x, I64(0)), b.add(I64(0), x), b.sub(x, I64(0)), b.mul(I64(1), x)):
        assert same is x
    assert b.gep(p, [I64(0)], source_etype=F32) is p
    assert not b.block.instructions


def test_others_are_computed():
    module, fn, b = function([I64], I64)
    x = fn.args[0]
    y = b.sub(b.mul(b.add(x, I64(3)), I64(5)), x)  # 4 x + 15
    big = b.add(I64(1 << 40), I64(1 << 40))  # not worth wrapping by hand
    b.ret(b.add(b.add(y, b.sub(I64(0), x)), big))
    linked = toolchain().load(str(module))
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(linked.address("fold"))
    for n in (-7, 0, 11):
        assert call(n) == 3 * n + 15 + (1 << 41)


@pytest.mark.parametrize("count", [2, 8, 16])
def test_vector_constants_have_short_forms(count):
    module, fn, b = function([PTR, ir.FloatType()], ir.VoidType())
    p, x = fn.args
    t = ir.VectorType(F32, count)
    y = b.fadd(V.splat(b, x, count), V.const(t, 1.5))
    y = b.insert_element(y, b.extract_element(y, I32(0)), I32(count - 1))
    y = b.fadd(y, V.splat(b, F32(2.0), count))
    b.store(y, p, align=4)
    b.ret_void()
    text = str(module)
    assert text.count("splat (") == 3 and "undef, float undef" not in text
    linked = toolchain().load(text)
    out = (ctypes.c_float * count)()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_float)(linked.address("fold"))
    call(ctypes.addressof(out), 4.0)
    assert list(out) == [7.5] * count
