"""Code is placed in memory without LLVM, and plans run in processes that never load it."""

from __future__ import annotations

import ctypes
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tactician as trt
from tactician.support.errors import PlanError
from tactician.targets.cpu import isa, linker
from tactician.targets.cpu.toolchain import link, toolchain

pytestmark = pytest.mark.skipif(not linker._here(), reason="this linker is for x86-64 Linux")

LENET = Path(trt.__file__).parent / "data" / "lenet_digits.onnx"

CALLS = """
declare double @cos(double)
declare i64 @labs(i64)
@table = private constant [3 x double] [double 1.0, double 2.0, double 4.0]
define double @calls(i64 %i) {
  %j = call i64 @labs(i64 %i)
  %p = getelementptr [3 x double], ptr @table, i64 0, i64 %j
  %x = load double, ptr %p
  %y = call double @cos(double %x)
  ret double %y
}
"""

SWITCH = """
define i64 @pick(i64 %i) {
  switch i64 %i, label %other [ i64 0, label %a  i64 1, label %b  i64 2, label %c
                                i64 3, label %d  i64 4, label %e ]
a: ret i64 17
b: ret i64 4
c: ret i64 23
d: ret i64 5
e: ret i64 19
other: ret i64 -1
}
"""

ADDRESS = """
declare double @cos(double)
define ptr @address() {
  ret ptr @cos
}
"""


def function(text: str, name: str, result: type, *arguments: type):
    code = link([toolchain().compile(text)])
    assert isinstance(code._engine, linker.Placed)
    call = ctypes.CFUNCTYPE(result, *arguments)(code.address(name))
    call.code = code
    return call


def test_constants_and_calls_that_leave_the_code():
    calls = function(CALLS, "calls", ctypes.c_double, ctypes.c_int64)
    assert [calls(i) for i in (0, -1, 2)] == [math.cos(x) for x in (1.0, 2.0, 4.0)]


def test_tables_of_jumps():
    pick = function(SWITCH, "pick", ctypes.c_int64, ctypes.c_int64)
    assert [pick(i) for i in range(6)] == [17, 4, 23, 5, 19, -1]


def test_what_it_does_not_know_is_left_to_llvm():
    object_code = toolchain().compile(ADDRESS)
    code = link([object_code])
    address = ctypes.CFUNCTYPE(ctypes.c_void_p)(code.address("address"))()
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)(0.5) == math.cos(0.5)
    assert not isinstance(code._engine, linker.Placed)


def test_memory_is_given_back():
    object_code = toolchain().compile(SWITCH)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(50):
        link([object_code])
    assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 20


def test_code_is_never_writable():
    code = link([toolchain().compile(SWITCH)])
    at = code.address("pick")
    for line in Path("/proc/self/maps").read_text().splitlines():
        lo, hi = (int(x, 16) for x in line.split()[0].split("-"))
        if lo <= at < hi:
            assert line.split()[1].startswith("r-x")
            return
    raise AssertionError("the code is nowhere")


def test_a_relocation_past_its_section_is_an_error():
    object_code = bytearray(toolchain().compile(CALLS))
    at = struct.unpack_from("<Q", object_code, 40)[0]
    count = struct.unpack_from("<H", object_code, 60)[0]
    headers = [linker._SECTION.unpack_from(object_code, at + 64 * i) for i in range(count)]
    for header in headers:
        if header[1] == linker._RELOCATIONS and headers[header[7]][2] & linker._EXECUTE:
            struct.pack_into("<Q", object_code, header[4], 1 << 40)
            break
    with pytest.raises(PlanError, match="damaged"):
        link([bytes(object_code)])


RUN = """
import sys
import numpy as np
import tactician as trt
engine = trt.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], next(iter(engine({"image": x}).values())))
print("llvmlite" in sys.modules)
"""


def run_plan(folder: Path, plan: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, plan, folder / "x.npy", folder / "y.npy"],
        capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_plan_runs_without_llvm(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    trt.build(LENET, level=0).save(tmp_path / "plan")
    assert run_plan(tmp_path, tmp_path / "plan") == "False"
    session = ort.InferenceSession(str(LENET))
    want = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, rtol=1e-4, atol=1e-5)


def test_another_machines_description_is_not_believed(monkeypatch):
    told: dict[str, str] = {}
    monkeypatch.setattr(isa, "_told", told)
    here = isa.host_description()
    isa.tell_host({**here, "stamp": "another", "cpu": "znver9"})
    assert not told
    isa.tell_host(here)
    assert told == here
