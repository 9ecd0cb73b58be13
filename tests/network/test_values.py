"""Dims, weights and host memory."""

import copy
import io
import pickle

import numpy as np
import pytest

import tactician as trt
from tactician.network.values import InvalidDims, as_int, weights_array


def test_dims_is_a_mutable_sequence():
    d = trt.Dims([1, -1, 3])
    assert len(d) == 3 and tuple(d) == (1, -1, 3) and d[-1] == 3 and d[:2] == (1, -1)
    d[1] = np.int32(7)
    d[0:1] = [4]
    assert d == (4, 7, 3) == d and d == [4, 7, 3] and d != (4, 7) and str(d) == "(4, 7, 3)"
    assert np.zeros(d).shape == (4, 7, 3) and 7 in d and d.__add__((1,)) == (4, 7, 3, 1)
    assert trt.Dims() == () and trt.Dims.MAX_DIMS == 8 and copy.copy(d) == d
    assert pickle.loads(pickle.dumps(d)) == d
    with pytest.raises(IndexError):
        d[0:2] = [1]


def test_dims_of_fixed_rank():
    hw = trt.DimsHW(3, 5)
    hw.h = 4
    assert hw == (4, 5) and hw.w == 5 and isinstance(hw, trt.Dims2) and trt.Dims3() == (0, 0, 0)
    assert trt.Dims4([1, 2, 3, 4]) == trt.Dims4(1, 2, 3, 4)
    assert trt.DimsNCHW(1, 2, 3, 4).c == trt.DimsCHW((2, 3, 4)).c == 2
    with pytest.raises(ValueError):
        trt.DimsHW([1, 2, 3])


def test_invalid_dims_say_why():
    with pytest.raises(ValueError, match="kernel too large"):
        len(InvalidDims("kernel too large"))


class Wrapped(int):
    def __add__(self, other):
        raise AssertionError("arithmetic of a subclass was called")

    __int__ = __index__ = lambda self: self


def test_ints_of_subclasses_become_plain():
    assert type(as_int(Wrapped(3))) is int and trt.Dims([Wrapped(2)]) == (2,)
    with pytest.raises(TypeError):
        as_int(2.5)


def test_weights_of_an_array():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    w = trt.Weights(a)
    assert w.dtype is trt.float32 and w.size == len(w) == 6 and w.nbytes == 24
    assert w.numpy() is a and trt.Weights(a.T).numpy().flags.c_contiguous


def test_weights_from_an_address():
    a = np.arange(4, dtype=np.int8)
    w = trt.Weights(trt.int8, a.ctypes.data, 4)
    a[0] = 9
    assert w.numpy().tolist() == [9, 1, 2, 3]
    packed = np.array([0x21, 0xF8], np.uint8)
    w = trt.Weights(trt.DataType.INT4, packed.ctypes.data, 4)
    assert w.numpy().astype(int).tolist() == [1, 2, -8, -1] and w.nbytes == 2


@pytest.mark.parametrize("empty", [None, trt.Weights(), trt.Weights(trt.float16), np.empty(0)])
def test_empty_weights(empty):
    assert weights_array(empty) is None


def test_weights_are_copied():
    a = np.ones(2, np.float32)
    copy_ = weights_array(trt.Weights(a))
    a[:] = 5
    assert copy_.tolist() == [1, 1]
    with pytest.raises(TypeError):
        weights_array(np.array(["a"]))


def test_host_memory_is_a_buffer():
    with trt.IHostMemory(b"plan") as m:
        out = io.BytesIO()
        out.write(m)
        assert bytearray(m) == b"plan" == bytes(m) == out.getvalue() == memoryview(m)
        assert m.nbytes == len(m) == 4 and m.dtype is trt.int8
        assert np.frombuffer(m, np.uint8)[0] == ord("p")


def test_volume():
    assert trt.volume(trt.Dims((2, 3))) == 6 and trt.volume(()) == 1
