"""Toolchain and ISA descriptions: compile, link, cross-compile, and fail clearly."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tactician.support.errors import BuildError, PlanError
from tactician.targets.cpu import isa as isa_module
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.toolchain import Toolchain, link, toolchain

ADD = "define i64 @NAME(i64 %a) {\n%r = add i64 %a, N\nret i64 %r\n}"
FMA = """declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define void @f(ptr %p) {
%x = load <16 x float>, ptr %p
%y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> %x)
store <16 x float> %y, ptr %p
ret void
}"""


def adder(name, n):
    return ADD.replace("NAME", name).replace("N\n", f"{n}\n")


def call(code, name, value):
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address(name))(value)


@pytest.mark.parametrize("level", ["none", "kernel", "loops"])
def test_compile_link_run(level):
    assert call(toolchain().load(adder("f", 5), level), "f", 37) == 42


def test_many_objects_link_together_and_equal_ones_once():
    objects = [toolchain().compile(adder(f"g{i}", i)) for i in (1, 2, 2)]
    code = link(objects)
    assert [call(code, f"g{i}", 40) for i in (1, 2)] == [41, 42]


def test_same_text_gives_same_bytes():
    assert Toolchain().compile(FMA) == Toolchain().compile(FMA)


def test_threads_compile_at_once():
    texts = [adder(f"p{i}", i) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        objects = list(pool.map(Toolchain().compile, texts))
    code = link(objects)
    assert all(call(code, f"p{i}", 1) == 1 + i for i in range(16))


def test_externals_are_called():
    answer = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 42)
    address = ctypes.cast(answer, ctypes.c_void_p).value
    text = "declare i64 @tact_test_answer()\ndefine i64 @f(i64 %x) {\n"
    text += "%r = call i64 @tact_test_answer()\nret i64 %r\n}"
    code = link([toolchain().compile(text)], {"tact_test_answer": address})
    assert call(code, "f", 0) == 42


def test_syntax_error_names_line():
    with pytest.raises(BuildError, match="line 2: ret i65"):
        toolchain().compile("define i64 @f() {\nret i65 0\n}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: o[:100], "damaged"),
        (lambda o: b"\0" + o[1:], "damaged"),
        (lambda o: o[:40] + b"\xff" * 8 + o[48:], "damaged"),
        (lambda o: b"", "damaged"),
    ],
)
def test_damaged_objects_raise(damage, message):
    with pytest.raises(PlanError, match=message):
        link([damage(toolchain().compile(adder("f", 1)))])


def test_missing_function_raises():
    text = "declare void @no_such_function()\ndefine void @f() {\n"
    text += "call void @no_such_function()\nret void\n}"
    with pytest.raises(PlanError, match="no_such_function"):
        link([toolchain().compile(text)])
    with pytest.raises(PlanError, match="nothing"):
        toolchain().load(adder("f", 1)).address("nothing")


def test_two_definitions_raise():
    with pytest.raises(PlanError, match="two kernels define 'f'"):
        link([toolchain().compile(adder("f", i)) for i in (1, 2)])


@pytest.mark.parametrize(
    ("cpu", "expect", "reject"),
    [
        ("sapphirerapids", "zmm", None),
        ("haswell", "ymm", "zmm"),
        ("x86-64", "xmm", "ymm"),
        ("neoverse-n1", "fmla", None),
    ],
)
def test_other_cpus_get_their_instructions(cpu, expect, reject):
    chain = Toolchain(Isa.named(cpu))
    assert chain.compile(FMA)[:4] == b"\x7fELF"
    text = chain.assembly(FMA)
    assert expect in text
    assert reject is None or reject not in text


def test_foreign_object_is_refused():
    arch = "neoverse-n1" if Isa.host().triple.startswith("x86") else "haswell"
    with pytest.raises(PlanError, match="object code is for"):
        link([Toolchain(Isa.named(arch)).compile(FMA)])


def test_host_is_described():
    host = Isa.host()
    assert host.vector_bits in (128, 256, 512)
    assert host.l1d >= 8 << 10
    assert host.cores >= 1
    assert not host.missing_on(host)
    assert Isa.named("sapphirerapids").missing_on(Isa.named("haswell"))


def test_features_can_be_switched_off():
    spr = Isa.named("sapphirerapids")
    narrow = spr.without("avx512f")
    assert (narrow.vector_bits, narrow.vector_registers, narrow.masks) == (256, 16, False)
    assert not (narrow.amx or narrow.bf16_dot)
    assert narrow.fingerprint != spr.fingerprint
    assert "zmm" not in Toolchain(narrow).assembly(FMA)


def test_unknown_cpu_lists_known_ones():
    with pytest.raises(ValueError, match="haswell"):
        Isa.named("z80")


def test_cpu_lists_and_quotas(tmp_path: Path):
    assert isa_module._cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert isa_module._quota_cores(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert isa_module._quota_cores(tmp_path) == float("inf")
