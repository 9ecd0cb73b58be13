"""Schedule walker and thread pool: every step kind, partition, contention, fork, exit."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tactician.support.errors import ExecutionError
from tactician.targets.cpu import native, native_ir
from tactician.targets.cpu.isa import Isa
from tactician.targets.cpu.native import CALLBACK, COPY, END, JUMP, JUMP_IF_ZERO, KERNEL
from tactician.targets.cpu.toolchain import Toolchain, toolchain

# data[i] += dims[0] for its items; scratch[0] counts calls on that thread.
ADD = """define void @add(ptr %args, ptr %dims, i64 %b, i64 %e, ptr %s) {
entry:
  %p = load ptr, ptr %args
  %n = load i64, ptr %dims
  %calls = load i64, ptr %s
  %calls1 = add i64 %calls, 1
  store i64 %calls1, ptr %s
  br label %l
l:
  %i = phi i64 [ %b, %entry ], [ %i1, %l ]
  %q = getelementptr i64, ptr %p, i64 %i
  %v = load i64, ptr %q
  %v1 = add i64 %v, %n
  store i64 %v1, ptr %q
  %i1 = add i64 %i, 1
  %c = icmp slt i64 %i1, %e
  br i1 %c, label %l, label %x
x:
  ret void
}"""


@pytest.fixture(scope="module")
def code():
    return toolchain().load(ADD)


@pytest.fixture(params=[True, False], ids=["futex", "pthread"])
def pool(request):
    if request.param and "linux" not in Isa.host().triple:
        pytest.skip("no futex here")
    pool = native.Pool(max_threads=8, spin_ns=20_000, futex=request.param)
    yield pool
    assert pool.close()


class Program:
    """Builds step tables and keeps what they point to."""

    def __init__(self, code, threads=4):
        self.kernel = code.address("add")
        self.keep = []
        self.rows = []
        self.scratch = native.aligned(64 * threads)
        self.scratch[:] = 0

    def cell(self, *values):
        a = np.array(values, np.int64)
        self.keep.append(a)
        return a.ctypes.data

    def array(self, n):
        a = np.zeros(n, np.int64)
        self.keep.append(a)
        return a

    def add(self, data, amount=1, work=None, grain=1):
        args = self.cell(data.ctypes.data)
        size = self.cell(len(data) if work is None else work)
        self.rows.append([KERNEL, self.kernel, args, self.cell(amount), size, grain, 0, 0])

    def row(self, *words):
        self.rows.append([*words, *[0] * (8 - len(words))])

    def table(self):
        return np.array([*self.rows, [END] + [0] * 7], np.int64)

    def run(self, pool, callback=None, threads=1, ticks=None, start=0):
        pool.run(self.table(), callback, threads, ticks, self.scratch.ctypes.data, 64, start)

    @property
    def calls(self):
        return self.scratch.view(np.int64)[::8].tolist()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("work", [0, 1, 2, 5, 1000])
def test_every_item_is_done_once(code, pool, threads, work):
    p = Program(code)
    data = p.array(max(1, work))
    p.add(data, 7, work)
    for _ in range(3):
        p.run(pool, threads=threads)
    assert data.tolist() == [21] * work + [0] * (len(data) - work)


@pytest.mark.parametrize(
    ("work", "grain", "threads", "parts"),
    [(100, 1, 3, 3), (100, 40, 3, 2), (100, 51, 3, 1), (2, 1, 4, 2), (100, 1, 1, 1), (8, 0, 2, 2)],
)
def test_grain_limits_parts(code, pool, work, grain, threads, parts):
    p = Program(code)
    p.add(p.array(work), 1, work, grain)
    p.run(pool, threads=threads)
    assert sum(p.calls) == parts


def test_workers_wake_after_sleep(code, pool):
    p = Program(code)
    data = p.array(64)
    p.add(data)
    for _ in range(5):
        p.run(pool, threads=2)
        time.sleep(0.005)  # far beyond the spin time
    assert data.tolist() == [5] * 64


def test_workers_do_take_part(code, pool):
    """The caller takes over parts of workers that do not come, but not those of ones that do."""
    p = Program(code)
    data = p.array(300_000)
    p.add(data)
    deadline = time.monotonic() + 20
    runs = 0
    while p.calls[1] < 3 and time.monotonic() < deadline:
        p.run(pool, threads=2)
        runs += 1
    assert p.calls[1] >= 3
    assert sum(p.calls) == 2 * runs
    assert (data == runs).all()


def test_many_steps_in_parallel(code, pool):
    p = Program(code)
    data = p.array(33)
    for _ in range(300):
        p.add(data)
    for _ in range(10):
        p.run(pool, threads=2)
    assert data.tolist() == [3000] * 33


def test_copy_jump_branch_and_callback(code, pool):
    p = Program(code)
    data, flag, seen = p.array(4), np.zeros(1, np.uint8), []
    source, target = np.arange(5.0), np.zeros(5)

    def called(ident):
        seen.append(ident)
        flag[0] = len(seen) < 3

    p.add(data)  # 0: loop body
    p.row(CALLBACK, 0, 0, 0, 0, 0, 42)  # 1
    p.row(JUMP_IF_ZERO, flag.ctypes.data, 0, 0, 0, 0, 4)  # 2
    p.row(JUMP, 0, 0, 0, 0, 0, 0)  # 3
    addresses = [p.cell(a.ctypes.data) for a in (target, source)]
    p.row(COPY, *addresses, 0, p.cell(source.nbytes))  # 4
    p.run(pool, native.Callback(called), threads=2)
    assert seen == [42] * 3
    assert data.tolist() == [3] * 4
    assert target.tolist() == source.tolist()


def test_start_in_the_middle(code, pool):
    p = Program(code)
    first, second = p.array(3), p.array(3)
    p.add(first)
    p.add(second)
    p.run(pool, start=1)
    assert (first.tolist(), second.tolist()) == ([0] * 3, [1] * 3)


def test_exception_in_callback_stops_the_run(code, pool):
    p = Program(code)
    data = p.array(3)

    def fail(ident):
        raise KeyError(ident)

    p.row(CALLBACK, 0, 0, 0, 0, 0, 9)
    p.add(data)
    with pytest.raises(KeyError, match="9"):
        p.run(pool, native.Callback(fail), threads=2)
    assert data.tolist() == [0] * 3
    p.run(pool, threads=2, start=1)  # the pool is free again
    assert data.tolist() == [1] * 3


def test_unknown_step_raises(code, pool):
    p = Program(code)
    p.row(77)
    with pytest.raises(ExecutionError, match="unknown step"):
        p.run(pool)


def test_ticks_rise(code, pool):
    p = Program(code)
    for _ in range(5):
        p.add(p.array(1000))
    ticks = np.zeros(6, np.int64)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    p.run(pool, threads=2, ticks=ticks)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    stamps = [before, *ticks.tolist(), after]
    assert stamps == sorted(stamps)


def test_nested_run_works_alone(code, pool):
    """The pool is taken while its own callback runs."""
    outer, inner = Program(code), Program(code)
    data = inner.array(50)
    inner.add(data)
    outer.row(CALLBACK)
    outer.run(pool, native.Callback(lambda _: inner.run(pool, threads=3)), threads=3)
    outer_data = outer.array(50)
    outer.add(outer_data)
    assert inner.calls == [1, 0, 0, 0]
    assert data.tolist() == [1] * 50


def test_contexts_compete(code, pool):
    programs = [Program(code) for _ in range(4)]
    arrays = [p.array(97) for p in programs]
    for p, a in zip(programs, arrays, strict=True):
        for _ in range(20):
            p.add(a)

    def work(p):
        for _ in range(25):
            p.run(pool, threads=2)

    threads = [threading.Thread(target=work, args=(p,)) for p in programs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(a.tolist() == [500] * 97 for a in arrays)


def test_pool_restarts_after_close(code, pool):
    p = Program(code)
    data = p.array(10)
    p.add(data)
    launch = pool.prepare(p.table(), threads=2, scratch=p.scratch.ctypes.data, scratch_stride=64)
    launch()
    assert pool.workers == 1
    assert pool.close()
    assert pool.workers == 0
    launch()
    assert data.tolist() == [2] * 10
    assert sum(p.calls) == 4


def test_close_refuses_while_running(code, pool):
    p = Program(code)
    p.add(p.array(8))
    p.row(CALLBACK)
    closed = []
    p.run(pool, native.Callback(lambda _: closed.append(pool.close())), threads=2)
    assert closed == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_gets_its_own_workers(code, pool):
    p = Program(code)
    data = p.array(64)
    p.add(data)
    p.run(pool, threads=2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            p.run(pool, threads=2)
            status = 0 if data.tolist() == [2] * 64 and pool.workers == 1 else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    done = (0, 0)
    while not done[0] and time.monotonic() < deadline:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done[0]:
        os.kill(child, 9)
    assert done == (child, 0)


def test_process_exits_with_live_workers():
    root = Path(__file__).resolve().parents[2]
    script = (
        "import numpy as np\n"
        "from tactician.targets.cpu import native\n"
        "pool = native.default_pool()\n"
        "pool.ensure(3)\n"
        "pool.run(np.zeros((1, 8), np.int64), threads=3)\n"
        "print(pool.workers)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "2", "")


def test_a_step_costs_little(code):
    """Generous bounds; typical values are 12 ns a step and 2 µs a launch."""
    p = Program(code)
    for _ in range(1000):
        p.add(p.array(1))
    long = native.default_pool().prepare(p.table(), threads=1, scratch=p.scratch.ctypes.data)
    short = native.default_pool().prepare(np.zeros((1, 8), np.int64), threads=1)
    best = {}
    for name, launch in (("long", long), ("short", short)):
        times = []
        for _ in range(200):
            t = time.perf_counter()
            launch()
            times.append(time.perf_counter() - t)
        best[name] = min(times)
    assert best["long"] / 1000 < 200e-9
    assert best["short"] < 20e-6


@pytest.mark.parametrize("cpu", ["sapphirerapids", "neoverse-n1"])
@pytest.mark.parametrize("futex", [True, False])
def test_walker_compiles_for_other_cpus(cpu, futex):
    isa = Isa.named(cpu)
    assert len(Toolchain(isa).compile(native_ir.generate(isa.triple, futex))) > 1000


def test_callback_address_is_callable():
    seen = []
    callback = native.Callback(seen.append)
    assert ctypes.cast(callback.address, native.CALLBACK_TYPE)(None, 5) == 0
    assert seen == [5]
