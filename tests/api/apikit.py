"""Helpers of the API's tests: networks that are built at level 0 and run at once."""

from __future__ import annotations

from typing import Any

import numpy as np

import tactician as trt

KINDS = {np.dtype(np.float32): trt.float32, np.dtype(np.int32): trt.int32,
         np.dtype(np.int64): trt.int64, np.dtype(np.bool_): trt.bool,
         np.dtype(np.float16): trt.float16, np.dtype(np.int8): trt.int8}


class Log(trt.ILogger):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Any, str]] = []

    def log(self, severity: Any, msg: str) -> None:
        self.lines.append((severity, msg))

    def text(self, least: Any = trt.ILogger.WARNING) -> str:
        return "\n".join(m for s, m in self.lines if s <= least)

    @property
    def errors(self) -> str:
        return self.text(trt.ILogger.ERROR)


class Net:
    """A network with arrays for its inputs."""

    def __init__(self, flags: int = 1, **implicit: Any):
        self.log = Log()
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(flags) if not implicit else \
            trt.INetworkDefinition(flags, self.log, self.builder, **implicit)
        self.config = self.builder.create_builder_config()
        self.config.builder_optimization_level = 0
        self.feeds: dict[str, Any] = {}
        self.profile: Any = None

    def input(self, array: Any, name: str = "", shape: Any = None) -> Any:
        """An input that holds ``array`` when the network runs; ``shape`` may have -1."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        name = name or f"in{len(self.feeds)}"
        self.feeds[name] = array
        if shape is not None and -1 in shape:
            if self.profile is None:
                self.profile = self.builder.create_optimization_profile()
                self.config.add_optimization_profile(self.profile)
            self.profile.set_shape(name, *[array.shape] * 3)
        return self.network.add_input(name, KINDS[array.dtype], shape or array.shape)

    def const(self, array: Any) -> Any:
        array = np.asarray(array)
        return self.network.add_constant(array.shape, array).get_output(0)

    def engine(self, *tensors: Any) -> Any:
        """The engine, with these outputs named y0, y1, …"""
        for i, t in enumerate(tensors):
            if not t.is_network_output:
                t.name = f"y{i}"
                self.network.mark_output(t)
        engine = self.builder.build_engine_with_config(self.network, self.config)
        assert engine is not None, self.log.errors
        return engine

    def run(self, *tensors: Any) -> Any:
        """Results of the outputs; one array if there is one. Shapes and types declared while
        building must be right."""
        engine = self.engine(*tensors)
        results = trt.Engine(engine)(self.feeds)
        out = [results[t.name] for t in tensors]
        for t, y in zip(tensors, out, strict=True):
            assert len(t.shape) == y.ndim
            assert all(d in (-1, n) for d, n in zip(t.shape, y.shape, strict=True))
        return out[0] if len(out) == 1 else out

    def fails(self, *tensors: Any) -> str:
        """What the log says of a network that can't be built."""
        for t in tensors:
            self.network.mark_output(t)
        assert self.builder.build_serialized_network(self.network, self.config) is None
        return self.log.errors


def f32(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def close(got: Any, want: Any, tol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tol, atol=tol)
