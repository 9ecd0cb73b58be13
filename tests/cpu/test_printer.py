"""Text of modules against llvmlite's own, as LLVM reads both."""

import pytest
from llvmlite import ir

from tactician.targets.cpu.printer import text_of
from tactician.targets.cpu.toolchain import toolchain

I32, I64, F32, PTR = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
V4 = ir.VectorType(F32, 4)


def function(module, result, *args, name="f"):
    fn = ir.Function(module, ir.FunctionType(result, args), name)
    return fn, ir.IRBuilder(fn.append_basic_block("entry"))


def arithmetic():
    m = ir.Module("arithmetic")
    fn, b = function(m, F32, F32, I64, V4)
    x, n, v = fn.args
    s = b.add(b.mul(n, I64(3), flags=("nsw",)), I64(-1), flags=("nsw", "nuw"), name="sum")
    y = b.fadd(x, ir.Constant(F32, 0.1), flags=("fast",))
    y = b.fmul(b.fneg(y), b.sitofp(s, F32))
    c = b.and_(b.icmp_signed("<", s, I64(5)), b.fcmp_ordered("<", x, y, flags=("nnan",)))
    y = b.select(c, x, y, flags=("nsz",))
    w = b.insert_element(v, y, I32(2))
    w = b.shuffle_vector(w, v, ir.Constant(ir.VectorType(I32, 4), [I32(i) for i in (0, 5, 2, 7)]))
    w = b.fmul(w, ir.Constant(V4, [1.0, -2.0, float("inf"), ir.Undefined]))
    y = b.fadd(b.extract_element(w, I32(1)), b.bitcast(b.trunc(n, I32), F32))
    b.ret(y)
    return m


def memory():
    m = ir.Module("memory")
    table = ir.GlobalVariable(m, ir.ArrayType(I32, 3), "table")
    table.initializer = ir.Constant(table.value_type, [1, 2, 3])
    table.global_constant = True
    fn, b = function(m, ir.VoidType(), PTR, PTR, I64)
    p, q, n = fn.args
    p.name = 'odd "name"'
    p.add_attribute("noalias")
    room = b.alloca(I32, size=I32(4), name="room")
    b.store(b.load(p, typ=I32, align=4), room)
    b.store(b.load(room, typ=I32), b.gep(q, [n], inbounds=True, source_etype=I32), align=4)
    at = b.gep(table, [I64(0), n], source_etype=table.value_type)
    b.store(b.load(at, typ=I32), b.gep(q, [I64(1)], source_etype=I32))
    b.store(b.load_atomic(q, "acquire", 4, typ=I32), q)
    pair = ir.Constant(ir.LiteralStructType([I32, I64]), ir.Undefined)
    pair = b.insert_value(pair, I32(1), 0)
    b.store(b.extract_value(pair, 0), b.inttoptr(b.ptrtoint(q, I64), PTR))
    b.fence("acquire")
    b.ret_void()
    return m


def control():
    m = ir.Module("control")
    fn, b = function(m, I64, I64)
    other = ir.Function(m, ir.FunctionType(I64, [I64]), "other name")
    loop, done = fn.append_basic_block("loop"), fn.append_basic_block("strange block")
    entry = b.block
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64, name="i")
    i.add_incoming(I64(0), entry)
    following = b.call(other, [i], tail=True)
    following = b.add(following, b.call(other, [i]))
    following = b.add(following, b.call(other, [i], attrs=("nounwind",)))
    asm = ir.InlineAsm(ir.FunctionType(I64, [I64]), "mov $1, $0", "=r,r")
    following = b.add(following, b.call(asm, [following]))
    i.add_incoming(following, loop)
    end = b.cbranch(b.icmp_unsigned(">=", following, fn.args[0]), done, loop)
    end.set_weights([1, 99])
    b.position_at_end(done)
    with b.if_then(b.icmp_signed("==", i, I64(7))):
        b.call(ir.Function(m, ir.FunctionType(I32, [PTR], var_arg=True), "printf"),
               [ir.Constant(PTR, None), i])  # fmt: skip
    switch = b.switch(i, done_too := fn.append_basic_block())
    switch.add_case(I64(1), done_too)
    b.position_at_end(done_too)
    b.comment("the end")
    b.ret(following)
    return m


def as_read(text):
    return toolchain().optimized(text, "none")


@pytest.mark.parametrize("make", [arithmetic, memory, control])
def test_llvm_reads_the_same(make):
    module = make()
    text = text_of(module)
    assert as_read(text) == as_read(str(module))
    assert text == text_of(module)


def test_code_is_the_same():
    module = arithmetic()
    assert toolchain().compile(text_of(module)) == toolchain().compile(str(module))


def test_simple_names_go_without_quotes():
    text = text_of(arithmetic())
    assert "%sum = add nuw nsw" not in text and "%sum = add nsw nuw" in text
    assert '"' not in text.split("entry:", 1)[1]
    assert '%"odd \\22name\\22"' in text_of(memory())
