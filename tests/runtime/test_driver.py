"""pycuda's names on the CPU: memory, copies, streams and events."""

import gc
import threading
import time

import numpy as np
import pytest

import tactician.driver as cuda
from tactician.runtime import streams
from tactician.support.errors import ExecutionError, UsageError


@pytest.fixture
def gate():
    """An event that holds a stream up until it is set."""
    g = threading.Event()
    yield g
    g.set()


def hold(stream, gate):
    stream.submit(lambda: gate.wait(10))


def test_classic_round_trip():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    h = cuda.pagelocked_empty(12, np.float32)
    d = cuda.mem_alloc(a.nbytes)
    cuda.memcpy_htod(d, a)
    cuda.memcpy_dtoh(h, d)
    assert np.array_equal(h, a.ravel())
    assert np.array_equal(cuda.from_device(int(d), (3, 4), np.float32), a)
    assert np.array_equal(cuda.from_device_like(cuda.to_device(a), a), a)


@pytest.mark.parametrize("make, shape", [
    (cuda.pagelocked_empty, 5), (cuda.pagelocked_zeros, (2, 3)), (cuda.managed_empty, (0, 3)),
    (cuda.managed_zeros, np.int64(4)), (cuda.aligned_empty, ()), (cuda.pagelocked_empty, [2, 2]),
])
@pytest.mark.parametrize("order", ["C", "F"])
def test_host_arrays(make, shape, order):
    a = make(shape, np.float16, order)
    assert a.shape == np.empty(shape).shape and a.dtype == np.float16 and type(a) is np.ndarray
    assert a.flags[f"{order}_CONTIGUOUS"] and a.flags.writeable
    assert a.size == 0 or a.ctypes.data % 4096 == 0
    if "zeros" in make.__name__:
        assert not a.any()


def test_async_copies_keep_order(gate):
    s = cuda.Stream()
    host, out = cuda.pagelocked_zeros(4, np.int32), cuda.pagelocked_zeros(4, np.int32)
    d1, d2 = cuda.mem_alloc(16), cuda.mem_alloc(16)
    hold(s, gate)
    cuda.memcpy_htod_async(d1, host, s)
    cuda.memcpy_dtod_async(d2, d1, 16, s)
    cuda.memcpy_dtoh_async(out, d2, s)
    host[:] = 7  # page-locked: read when the copy runs
    assert not s.is_done() and not out.any()
    gate.set()
    s.synchronize()
    assert s.is_done() and out.tolist() == [7] * 4


def test_pageable_memory_is_read_at_the_call(gate):
    s, host, d = cuda.Stream(), np.full(4, 3, np.int32), cuda.mem_alloc(16)
    hold(s, gate)
    cuda.memcpy_htod_async(d, host, s)
    host[:] = 9
    gate.set()
    s.synchronize()
    assert cuda.from_device(d, 4, np.int32).tolist() == [3] * 4


def test_memory_lives_until_queued_copies_ran(gate):
    s, out = cuda.Stream(), cuda.pagelocked_zeros(1000, np.int32)
    hold(s, gate)
    d = cuda.mem_alloc(4000)
    cuda.memset_d32_async(d, 5, 1000, s)
    cuda.memcpy_dtoh_async(out, d, s)
    del d
    gc.collect()
    gate.set()
    s.synchronize()
    assert (out == 5).all()


def test_streams_run_side_by_side(gate):
    a, b = cuda.Stream(), cuda.Stream()
    hold(a, gate)
    done = []
    b.submit(lambda: done.append(1))
    b.synchronize()
    assert done and not a.is_done()


def test_default_stream_comes_after_the_others(gate):
    s, d, out = cuda.Stream(), cuda.mem_alloc(4), np.zeros(1, np.int32)
    hold(s, gate)
    cuda.memset_d32_async(d, 42, 1, s)
    threading.Timer(0.05, gate.set).start()
    cuda.memcpy_dtoh(out, d)
    assert out[0] == 42


def test_events_order_streams(gate):
    a, b, seen = cuda.Stream(), cuda.Stream(), []
    hold(a, gate)
    a.submit(lambda: seen.append("a"))
    event = cuda.Event().record(a)
    b.wait_for_event(event)
    b.submit(lambda: seen.append("b"))
    time.sleep(0.02)
    assert not event.query() and not seen
    gate.set()
    b.synchronize()
    assert event.query() and seen == ["a", "b"]


def test_event_times():
    s = cuda.Stream()
    start, end = cuda.Event(), cuda.Event()
    start.record(s)
    s.submit(lambda: time.sleep(0.02))
    end.record(s)
    end.synchronize()
    assert 15 < start.time_till(end) < 2000 and start.time_till(end) == end.time_since(start)
    assert cuda.Event().query() and cuda.Event().record().synchronize().query()
    with pytest.raises(UsageError, match="taken place"):
        cuda.Event().time_since(start)


def test_errors_surface_at_synchronize(gate):
    s, ran = cuda.Stream(), []
    hold(s, gate)
    s.submit(lambda: 1 // 0)
    s.submit(lambda: ran.append(1))
    event = cuda.Event().record(s)
    gate.set()
    event.synchronize()
    with pytest.raises(ExecutionError, match="division"):
        s.synchronize()
    assert not ran, "work behind a failure is skipped"
    s.submit(lambda: ran.append(2))
    s.synchronize()
    assert ran == [2]


def test_waiting_for_oneself_is_refused():
    s = cuda.Stream()
    s.submit(s.synchronize)
    with pytest.raises(ExecutionError, match="forever"):
        s.synchronize()


def test_handles():
    s = cuda.Stream()
    assert isinstance(s.handle, int) and s.handle > 0 and int(s) == s.handle
    assert streams.stream_of(s.handle) is s and streams.stream_of(0) is None
    handle = s.handle
    del s
    gc.collect()
    with pytest.raises(UsageError, match="belongs to no stream"):
        streams.stream_of(handle)


def test_worker_ends_with_its_stream():
    s = cuda.Stream()
    s.submit(lambda: None)
    s.synchronize()
    worker = s._queue.worker
    del s
    gc.collect()
    worker.join(5)
    assert not worker.is_alive()


def test_many_producers_one_stream():
    s, seen = cuda.Stream(), []
    threads = [
        threading.Thread(target=lambda: [s.submit(lambda: seen.append(1)) for _ in range(200)])
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s.synchronize()
    assert len(seen) == 800


def test_allocations():
    d = cuda.mem_alloc(100)
    assert int(d) % 64 == 0 and int(d) + 4 == d.__index__() + 4
    d.as_buffer(4, 8)[:] = b"abcd"
    assert bytes(cuda.from_device(int(d) + 8, 4, np.uint8)) == b"abcd"
    with pytest.raises(cuda.LogicError, match="not within"):
        d.as_buffer(99, 2)
    d.free()
    for use in (lambda: int(d), d.free, lambda: d.as_buffer(1)):
        with pytest.raises(cuda.LogicError):
            use()
    pitched, pitch = cuda.mem_alloc_pitch(100, 3, 4)
    assert pitch == 256 and pitched.size == 768


@pytest.mark.parametrize("call, reason", [
    (lambda d, a: cuda.memcpy_htod(d, np.zeros(9, np.uint8)), "9 bytes do not fit"),
    (lambda d, a: cuda.memcpy_dtoh(np.zeros(9, np.uint8), d), "9 bytes do not fit"),
    (lambda d, a: cuda.memcpy_htod(0, a), "null device pointer"),
    (lambda d, a: cuda.memcpy_htod(None, a), "NoneType is no device pointer"),
    (lambda d, a: cuda.memcpy_htod(d, object()), "object is no host buffer"),
    (lambda d, a: cuda.memcpy_htod(d, np.zeros((4, 4), np.uint8)[:, ::2]), "not contiguous"),
    (lambda d, a: cuda.memcpy_dtoh(b"12345678", d), "read-only"),
    (lambda d, a: cuda.memset_d8(d, 1, 9), "do not fit"),
    (lambda d, a: cuda.mem_alloc(0), "at least 1"),
    (lambda d, a: cuda.Device(1), "one device"),
])
def test_wrong_use(call, reason):
    with pytest.raises(cuda.LogicError, match=reason):
        call(cuda.mem_alloc(8), np.zeros(8, np.uint8))


def test_out_of_memory():
    with pytest.raises(cuda.MemoryError, match="out of memory"):
        cuda.mem_alloc(1 << 62)


def test_device_and_context():
    import tactician.driver.autoinit as autoinit

    assert cuda.Context.get_current() is autoinit.context
    assert cuda.Device.count() == 1 and autoinit.device.name()
    free, total = cuda.mem_get_info()
    assert 0 < free <= total
    context = cuda.Device(0).make_context()
    context.synchronize()
    context.pop()
    cuda.init()
    assert cuda.Context.get_current() is autoinit.context
