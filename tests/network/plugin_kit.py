"""Builds and runs built-in plugins."""

from __future__ import annotations

from typing import Any

import numpy as np

import tactician as trt


def run(name: str, fields: dict[str, Any], *feeds: np.ndarray, version: str = "1",
        native: bool | None = None, ranges: dict[str, float] | None = None) -> Any:
    """Results of a built-in plugin in an engine that was loaded from a plan.

    Args:
        native: Whether it must (not) have become ops.
        ranges: Largest magnitudes of inputs (x0, x1 …) and outputs (y0, y1 …).
    """
    assert trt.init_libnvinfer_plugins(None, "")
    creator = trt.get_plugin_registry().get_creator(name, version, "")
    assert creator is not None and {f.name for f in creator.field_names} >= set(fields)
    plugin = creator.create_plugin(name, trt.PluginFieldCollection(
        [trt.PluginField(k, v if isinstance(v, str) else np.atleast_1d(v))
         for k, v in fields.items()]))
    net = trt.INetworkDefinition(0, trt.Logger(trt.Logger.ERROR), implicit_batch=False)
    types = {np.dtype(np.float32): trt.float32, np.dtype(np.float16): trt.float16,
             np.dtype(np.int32): trt.int32, np.dtype(np.int64): trt.int64,
             np.dtype(np.int8): trt.int8}
    inputs = [net.add_input(f"x{i}", types[x.dtype], x.shape) for i, x in enumerate(feeds)]
    layer = net.add_plugin_v2(inputs, plugin)
    for i in range(layer.num_outputs):
        layer.get_output(i).name = f"y{i}"
        net.mark_output(layer.get_output(i))
    tensors = [*inputs, *(layer.get_output(i) for i in range(layer.num_outputs))]
    for t in tensors:
        if t.name in (ranges or {}):
            assert t.set_dynamic_range(-ranges[t.name], ranges[t.name])
    built = trt.build(net, level=0).cuda_engine
    if native is not None:
        called = [s for s in built._program.steps if s.kind == "reference"]
        assert (not called) is native
    engine = trt.load(bytes(built.serialize()))  # from its state
    out = engine({f"x{i}": x for i, x in enumerate(feeds)})
    return [out[f"y{i}"] for i in range(layer.num_outputs)]
