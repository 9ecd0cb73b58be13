"""What `install` puts in place, and CUDA's Python API on host memory."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tactician
from tactician import compat
from tactician.compat import cudart as rt
from tactician.compat import cudriver as cu

OK = rt.cudaError_t.cudaSuccess
E = rt.cudaError_t


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = {n: m for n, m in sys.modules.items()
            if n.partition(".")[0] in ("tensorrt", "pycuda", "cuda", "tensorrt_bindings")}
    compat.install(shadow=True, cuda=True)
    yield
    compat.uninstall()
    sys.modules.update(real)


NAMES = ["tensorrt", "tensorrt.tensorrt", "tensorrt.plugin", "tensorrt.plugin._lib",
         "tensorrt_bindings", "tensorrt_bindings.tensorrt", "pycuda.driver", "pycuda.autoinit",
         "pycuda.tools", "pycuda.gpuarray", "cuda.bindings.runtime", "cuda.bindings.driver",
         "cuda.cudart", "cuda.cuda", "cuda.bindings.nvrtc", "cuda.nvrtc", "uff", "graphsurgeon"]


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_found(installed: None, name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None and spec.origin
    module = importlib.import_module(name)
    assert module.__spec__.name == name and module.__file__ == spec.origin
    assert importlib.util.find_spec(name + ".nothing") is None if hasattr(module, "__path__") \
        else True


def test_tensorrt_is_tactician(installed: None) -> None:
    import tactician

    trt = importlib.import_module("tensorrt")
    assert trt.Builder is tactician.Builder is trt.tensorrt.Builder
    assert trt.__version__ == tactician.__version__ and trt.__path__
    assert "ICudaEngine" in dir(trt) and trt.plugin.register
    space: dict[str, object] = {}
    exec("from tensorrt import *", space)
    assert space["Logger"] is tactician.Logger and "cli" not in space
    with pytest.raises(AttributeError):
        trt.no_such_name  # noqa: B018


def test_uninstall() -> None:
    before = ctypes.CDLL
    compat.install(shadow=True, cuda=True)
    assert compat.is_installed() and ctypes.CDLL is not before
    compat.uninstall()
    assert not compat.is_installed() and ctypes.CDLL is before
    assert "tensorrt" not in sys.modules


def test_what_is_installed_stays(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = 'real'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt" not in compat.install()
    assert importlib.import_module("tensorrt").__version__ == "real"
    assert "tensorrt" in compat.install(shadow=True)
    assert importlib.import_module("tensorrt").__version__ != "real"
    compat.uninstall()
    sys.modules.pop("tensorrt", None)


def test_version(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTICIAN_TRT_VERSION", "10.13")
    compat.install(shadow=True, version="8.6")
    assert importlib.import_module("tensorrt").__version__ == "8.6.0"
    compat.install(shadow=True, version="10.13")
    assert importlib.import_module("tensorrt").__version__ == "10.13.0"
    with pytest.raises(ValueError, match="numbers and points"):
        compat.install(version="ten")


def test_memory_goes_there_and_back() -> None:
    x = np.arange(100, dtype=np.float32)
    y = np.zeros_like(x)
    kinds = rt.cudaMemcpyKind
    error, p = rt.cudaMalloc(x.nbytes)
    assert error == OK
    assert rt.cudaMemcpy(p, x, x.nbytes, kinds.cudaMemcpyHostToDevice) == (OK,)
    assert rt.cudaMemset(p + 40, 0, 40) == (OK,)
    assert rt.cudaMemcpy(y.ctypes.data, p, y.nbytes, kinds.cudaMemcpyDeviceToHost) == (OK,)
    x[10:20] = 0
    assert np.array_equal(x, y)
    assert rt.cudaFree(p) == (OK,) and rt.cudaFree(0) == (OK,)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: rt.cudaFree(64), E.cudaErrorInvalidValue),
        (lambda: rt.cudaMalloc(1 << 60), E.cudaErrorMemoryAllocation),
        (lambda: rt.cudaMalloc(-1), E.cudaErrorInvalidValue),
        (lambda: rt.cudaMemcpy(0, 0, 4, 1), E.cudaErrorInvalidValue),
        (lambda: rt.cudaMemcpy(rt.cudaMalloc(8)[1], bytes(16), 16, 1), E.cudaErrorInvalidValue),
        (lambda: rt.cudaSetDevice(1), E.cudaErrorInvalidDevice),
        (lambda: rt.cudaStreamSynchronize(987654), E.cudaErrorInvalidResourceHandle),
        (lambda: rt.cudaStreamDestroy(987654), E.cudaErrorInvalidResourceHandle),
        (lambda: rt.cudaEventRecord(987654), E.cudaErrorInvalidResourceHandle),
        (lambda: rt.cudaStreamBeginCapture(0, 0), E.cudaErrorNotSupported),
    ],
)
def test_errors(call, error) -> None:
    assert call()[0] == error
    assert rt.cudaGetLastError() == (error,) and rt.cudaGetLastError() == (OK,)


def test_asynchronous_copies_read_pageable_memory_at_the_call() -> None:
    stream = rt.cudaStreamCreate()[1]
    n = 1 << 16
    p, locked = rt.cudaMalloc(n)[1], rt.cudaMallocHost(n)[1]
    x = np.ones(n, np.uint8)
    assert rt.cudaMemcpyAsync(p, x, n, 1, stream) == (OK,)
    x[:] = 2
    assert rt.cudaMemcpyAsync(locked, p, n, 2, stream) == (OK,)
    assert rt.cudaStreamSynchronize(stream) == (OK,)
    y = np.ctypeslib.as_array(ctypes.cast(locked, ctypes.POINTER(ctypes.c_uint8)), (n,))
    assert (y == 1).all()
    assert rt.cudaFreeHost(locked) == rt.cudaFree(p) == rt.cudaStreamDestroy(stream) == (OK,)


def test_events() -> None:
    stream, a, b = (f()[1] for f in (rt.cudaStreamCreate, rt.cudaEventCreate, rt.cudaEventCreate))
    assert rt.cudaEventElapsedTime(a, b)[0] == E.cudaErrorInvalidResourceHandle
    assert rt.cudaEventRecord(a, stream) == rt.cudaEventRecord(b, stream) == (OK,)
    assert rt.cudaStreamWaitEvent(stream, b, 0) == rt.cudaEventSynchronize(b) == (OK,)
    assert rt.cudaEventElapsedTime(a, b)[1] >= 0
    assert rt.cudaEventDestroy(a) == (OK,)


def test_driver_api() -> None:
    assert cu.cuInit(0) == (cu.CUresult.CUDA_SUCCESS,)
    error, context = cu.cuCtxCreate(0, cu.cuDeviceGet(0)[1])
    assert error == cu.CUresult.CUDA_SUCCESS and cu.cuCtxGetCurrent()[1] == context
    error, p = cu.cuMemAlloc(16)
    assert isinstance(p, cu.CUdeviceptr)
    assert cu.cuMemsetD32(p, 7, 4)[0] == 0
    y = np.zeros(4, np.uint32)
    assert cu.cuMemcpyDtoH(y, p, 16)[0] == 0 and y.tolist() == [7] * 4
    assert cu.cuMemFree(p)[0] == 0 and cu.cuMemFree(p)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
    assert cu.cuGetErrorName(cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY)[1] \
        == b"CUDA_ERROR_OUT_OF_MEMORY"
    assert cu.cuDeviceGet(3)[0] == cu.CUresult.CUDA_ERROR_INVALID_DEVICE
    assert cu.cuCtxDestroy(context)[0] == 0


def test_gpuarray(installed: None) -> None:
    gpuarray = importlib.import_module("pycuda.gpuarray")
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    a = gpuarray.to_gpu(x)
    assert np.array_equal(a.get(), x) and a.ptr == int(a.gpudata) and len(a) == 2
    assert (gpuarray.zeros((2, 2), np.float32).get() == 0).all()
    with pytest.raises(ValueError, match="cannot set"):
        a.set(x[0])


def test_programs_that_come_from_tensorflow(installed: None) -> None:
    import graphsurgeon as gs
    import uff

    data = Path(tactician.__file__).parent / "data" / "lenet_digits.pb"
    graph = gs.DynamicGraph(data)
    graph.remove(graph.graph_outputs, remove_exclusive_dependencies=False)
    made = uff.from_tensorflow(graph.as_graph_def(), ["fc2/BiasAdd"], quiet=True)
    assert uff.from_tensorflow_frozen_model(data, ["fc2/BiasAdd"], quiet=True) == made


@pytest.mark.parametrize(("version", "kind"), [("8.6", "INT32"), ("10.13", "INT64")])
def test_type_of_shapes(monkeypatch: pytest.MonkeyPatch, version: str, kind: str) -> None:
    import tactician as trt

    monkeypatch.setenv("TACTICIAN_TRT_VERSION", version)
    net = trt.INetworkDefinition(1, trt.Logger(trt.Logger.ERROR))
    x = net.add_input("x", trt.float32, (-1, 3))
    assert net.add_shape(x).get_output(0).dtype.name == kind


def test_the_run_time_compiler_refuses(installed: None) -> None:
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    error, program = nvrtc.nvrtcCreateProgram(b"__global__ void f() {}", b"f.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_ERROR_PROGRAM_CREATION_FAILURE and program is None
    assert nvrtc.nvrtcGetErrorString(error)[1] == b"NVRTC_ERROR_PROGRAM_CREATION_FAILURE"
    assert nvrtc.nvrtcVersion()[1:] == (12, 8)
