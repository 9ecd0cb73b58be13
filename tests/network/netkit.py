"""Helpers of the network tests."""

import numpy as np

import tactician as trt
from tactician.ops.interpreter import run_graph

NP = {trt.float32: np.float32, trt.int32: np.int32, trt.int64: np.int64, trt.bool: np.bool_}


class Log(trt.ILogger):
    """Collects errors."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, msg):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(msg)


def network(**options):
    """An empty network, with the errors it logs under ``_logger.errors``."""
    return trt.INetworkDefinition(1, Log(), **options)


def add_inputs(net, arrays, dynamic=False):
    """One input per array, called a, b, c…; all sizes -1 if ``dynamic``."""
    kinds = {np.dtype(v): k for k, v in NP.items()}
    return [
        net.add_input("abcdefgh"[i], kinds[x.dtype], [-1] * x.ndim if dynamic else x.shape)
        for i, x in enumerate(arrays)
    ]


def const(net, array):
    array = np.asarray(array)
    return net.add_constant(array.shape, array).get_output(0)


def run(net, arrays):
    """Marks nothing; lowers, runs on numpy, checks declared shapes and types."""
    graph = net.lower_control()
    results = run_graph(graph, list(arrays))
    for i, r in enumerate(results):
        declared = net.get_output(i)
        assert len(declared.shape) == r.ndim
        assert all(d in (-1, n) for d, n in zip(declared.shape, r.shape, strict=True)), (
            declared, r.shape)
        assert r.dtype == np.dtype(trt.nptype(declared.dtype))
    return results


def f32(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)
