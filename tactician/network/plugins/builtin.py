"""Plugins that come with tactician under the names TensorRT's plugin library has: they call ops.

`init_libnvinfer_plugins` registers their creators.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ...ops.detection import CODES, prior_boxes
from ...ops.interpreter import run_graph
from ...support import logger as log
from ..enums import DataType, TensorFormat, to_ir
from .exprs import DimsExprs, IDimensionExpr, dim_of
from .fields import PluginField, PluginFieldCollection_, pack_fields, unpack_fields
from .interfaces import IPluginCreator, IPluginV2DynamicExt

Array = np.ndarray[Any, Any]


class Fields:
    """A plugin's fields by name.

    Args:
        arrays: Flat arrays.
        version: The plugin's version.

    Attributes:
        scales: What one step of 8 bits stands for, of inputs and of outputs, from their dynamic
            ranges; those that are missing or None have no range.
    """

    def __init__(self, arrays: Mapping[str, Array], version: str = "1"):
        self.arrays, self.version = dict(arrays), version
        self.scales: tuple[Sequence[float | None], Sequence[float | None]] = ((), ())

    def one(self, name: str, default: float | None = None) -> Any:
        """A number.

        Raises:
            OpError: If it is absent and has no default.
        """
        found = self.many(name)
        if len(found):
            return found[0].item()
        if default is None:
            raise ops.OpError(f"field {name!r} is missing")
        return default

    def many(self, name: str) -> Array:
        """Numbers; none if the field is absent."""
        return self.arrays.get(name, np.zeros(0))

    def text(self, name: str, default: str) -> str:
        """Characters."""
        found = self.arrays.get(name)
        if found is None:
            return default
        if found.dtype.kind in "SU":
            return "".join(np.char.decode(found) if found.dtype.kind == "S" else found)
        return found.astype(np.uint8).tobytes().decode().rstrip("\0")


@dataclass(frozen=True)
class Kind:
    """A built-in plugin.

    Attributes:
        fields: Names of its fields.
        types: Element type of each output.
        build: Adds its ops to a graph; returns the outputs. With `compute` these say shapes only.
        inputs: Element types of the inputs; those that are not named are FLOAT.
        compute: Arrays of the outputs from those of the inputs, where no ops do that.
        ignored: Fields that have no effect here; a warning says so where one is set.
        versions: Versions of its creator.
        half: Field that is not 0 where outputs are HALF instead of FLOAT; "": they are what the
            inputs are.
        count: Field that says how many outputs there are (or what counts them from the fields), all
            of the first type; "": as `types`.
        bytes: Whether INT8 may take the place of FLOAT.
        other: Versions that differ from these.
    """

    fields: tuple[str, ...]
    types: tuple[DataType, ...]
    build: Callable[[Graph, Sequence[Value], Fields], Sequence[Value]]
    inputs: tuple[DataType, ...] = ()
    compute: Callable[[Sequence[Array], Fields], Sequence[Array]] | None = None
    ignored: tuple[str, ...] = ()
    versions: tuple[str, ...] = ("1",)
    half: str = ""
    count: str | Callable[[Fields], int] = ""
    bytes: bool = False
    other: Mapping[str, Kind] = field(default_factory=dict)

    def outputs(self, fields: Fields) -> tuple[DataType, ...]:
        """Element types of the outputs."""
        if not self.count:
            return self.types
        of = self.count
        return self.types[:1] * int(fields.one(of) if isinstance(of, str) else of(fields))

    def input(self, index: int) -> DataType:
        """Element type of an input."""
        return self.inputs[index] if index < len(self.inputs) else DataType.FLOAT


class OpPlugin(IPluginV2DynamicExt):
    """A built-in plugin.

    Args:
        name: Its kind.
        fields: Its fields.
    """

    host_memory = True

    def __init__(self, name: str, fields: Fields):
        super().__init__()
        self.plugin_type, self.fields = name, fields
        self.kind = kind_of(name, fields.version)
        self.types = self.kind.outputs(fields)
        self.num_outputs = len(self.types)
        for unused in self.kind.ignored:
            if np.any(fields.many(unused) != 0):
                log.warning(f"plugin {name}: field {unused!r} has no effect on this target")

    @property
    def native(self) -> bool:
        """Whether it is made of ops, which take its place when a network is built."""
        return self.kind.compute is None

    def emit(self, graph: Graph, inputs: Sequence[Value],
             outputs: Sequence[Value] = ()) -> list[Value]:
        """Adds what it computes to a graph; FP16 inputs are taken as FP32.

        Args:
            graph: The graph.
            inputs: The inputs; their dynamic ranges, and those of the outputs, are those of INT8.
            outputs: The outputs that the results take the place of.

        Raises:
            OpError: If shapes or fields are wrong.
        """
        wide = [ops.emit(graph, "cast", [v], to=T.f32).output if v.dtype is T.f16 else v
                for v in inputs]
        if self.kind.bytes and outputs:
            self.fields.scales = ([_step(v) for v in inputs], [_step(v) for v in outputs])
        return list(self.kind.build(graph, wide, self.fields))

    def graph(self, shapes: Sequence[Sequence[Any]]) -> Graph:
        """What it computes for inputs of these shapes, in FP32.

        Raises:
            OpError: If shapes or fields are wrong.
        """
        g = Graph(self.plugin_type)
        inputs = [g.add_input(f"x{i}", to_ir(self.kind.input(i)), s)
                  for i, s in enumerate(shapes)]
        g.outputs.extend(self.emit(g, inputs))
        return g

    def get_output_dimensions(self, output_index: int, inputs: Sequence[DimsExprs],
                              expr_builder: Any) -> DimsExprs:
        g = self.graph([tuple(dim_of(d) for d in s) for s in inputs])
        return DimsExprs([IDimensionExpr(d) for d in g.outputs[output_index].dims])

    def get_output_datatype(self, index: int, input_types: Sequence[DataType]) -> DataType:
        return self._half(self.types[index], input_types)

    def _half(self, want: DataType, input_types: Sequence[DataType]) -> DataType:
        """HALF, or INT8, in the place of FLOAT where the first input that may be either is that."""
        if want != DataType.FLOAT:
            return want
        if self.kind.half:
            return DataType.HALF if self.fields.one(self.kind.half, 0) else want
        kinds = (t for i, t in enumerate(input_types) if self.kind.input(i) == DataType.FLOAT)
        found = next(kinds, want)
        return found if found == DataType.HALF or (
            self.kind.bytes and found == DataType.INT8) else want

    def supports_format_combination(self, pos: int, in_out: Sequence[Any],
                                    num_inputs: int) -> bool:
        want = self.kind.input(pos) if pos < num_inputs else self.types[pos - num_inputs]
        want = self._half(want, [d.type for d in in_out[:num_inputs]])
        return in_out[pos].type == want and in_out[pos].format == TensorFormat.LINEAR

    def enqueue(self, input_desc: Sequence[Any], output_desc: Sequence[Any],
                inputs: Sequence[int], outputs: Sequence[int], workspace: int,
                stream: int) -> None:
        given = [_view(p, tuple(d.dims), d.type)
                 for p, d in zip(inputs, input_desc, strict=True)]
        given = [a.astype(np.float32) if a.dtype == np.float16 else a for a in given]
        if self.kind.compute is not None:
            results = self.kind.compute(given, self.fields)
        else:
            results = run_graph(self.graph([x.shape for x in given]), given)
        for r, p, d in zip(results, outputs, output_desc, strict=True):
            _view(p, tuple(d.dims), d.type)[...] = r

    def serialize(self) -> bytes:
        return pack_fields(PluginField(k, v) for k, v in self.fields.arrays.items())

    def clone(self) -> OpPlugin:
        twin = OpPlugin(self.plugin_type, self.fields)
        twin.plugin_namespace, twin.plugin_version = self.plugin_namespace, self.plugin_version
        return twin


def _step(v: Value) -> float | None:
    """What a step of 8 bits stands for in a tensor with a dynamic range."""
    found = v.meta.get("dynamic_range")
    largest = max(map(abs, found)) if found is not None else 0.0
    return largest / 127 if largest else None


def _view(address: int, shape: tuple[int, ...], t: DataType) -> Array:
    """The memory at an address as an array."""
    dtype = np.dtype(to_ir(t).np)
    size = max(int(np.prod(shape)) * dtype.itemsize, 1)
    memory = (ctypes.c_byte * size).from_address(int(address))
    return np.frombuffer(memoryview(memory), dtype, count=int(np.prod(shape))).reshape(shape)


class OpPluginCreator(IPluginCreator):
    """Makes plugins of one kind.

    Args:
        name: The kind.
        version: One of its versions.
    """

    def __init__(self, name: str, version: str = "1"):
        super().__init__()
        self.name, self.plugin_version, self.plugin_namespace = name, version, ""
        self.field_names = PluginFieldCollection_(
            [PluginField(f) for f in kind_of(name, version).fields])

    def create_plugin(self, name: str, field_collection: PluginFieldCollection_,
                      phase: Any = None) -> OpPlugin:
        """A plugin from fields; versions whose creator is of version 3 are told a phase."""
        arrays = {f.name: _flat(f.data) for f in field_collection if f.data is not None}
        return self._made(Fields(arrays, self.plugin_version))

    def deserialize_plugin(self, name: str, serialized_plugin: bytes) -> OpPlugin:
        fields = unpack_fields(serialized_plugin)
        arrays = {f.name: _flat(f.data) for f in fields}
        return self._made(Fields(arrays, self.plugin_version))

    def _made(self, fields: Fields) -> OpPlugin:
        plugin = OpPlugin(self.name, fields)
        plugin.plugin_namespace, plugin.plugin_version = self.plugin_namespace, self.plugin_version
        return plugin


def kind_of(name: str, version: str) -> Kind:
    """A built-in plugin in one of its versions."""
    kind = KINDS[name]
    return kind.other.get(version, kind)


def _flat(data: Any) -> Array:
    if isinstance(data, (str, bytes)):
        return np.frombuffer(data.encode() if isinstance(data, str) else data, np.uint8)
    return np.asarray(data).reshape(-1)


# --- the kinds ------------------------------------------------------------------------------


def _nms(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    order = [int(i) for i in f.many("inputOrder")] or [0, 1, 2]
    if len(inputs) != 3 or sorted(order) != [0, 1, 2]:
        raise ops.OpError(f"{len(inputs)} inputs in the order {order}: boxes, scores and priors "
                          "are needed")
    loc, conf, prior = (inputs[i] for i in order)
    if f.one("confSigmoid", 0):
        conf = ops.emit(g, "activation", [conf], fn="sigmoid").output
    code = int(f.one("codeType", 0))
    if not 0 <= code < len(CODES):
        raise ops.OpError(f"codeType is {code}; it can be 0 to {len(CODES) - 1}: "
                          f"{', '.join(CODES)}")
    return ops.emit(
        g, "detection_output", [loc, conf, prior], classes=int(f.one("numClasses")),
        background=int(f.one("backgroundLabelId", 0)),
        share_location=bool(f.one("shareLocation", 1)), code=CODES[code],
        variance_in_target=bool(f.one("varianceEncodedInTarget", 0)),
        iou=float(f.one("nmsThreshold", 0.3)), top_k=int(f.one("topK", -1)),
        keep=int(f.one("keepTopK")), confidence=float(f.one("confidenceThreshold", 0.0))).outputs


def _prior(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    sizes = [v.dims[2:] for v in inputs]
    if len(sizes) != 2 or any(len(s) != 2 or not all(isinstance(d, int) for d in s)
                              for s in sizes):
        raise ops.OpError("feature map and image need four dimensions, with known sizes")
    image = (int(f.one("imgH", 0)) or sizes[1][0], int(f.one("imgW", 0)) or sizes[1][1])
    boxes = prior_boxes(
        sizes[0], image, f.many("minSize").tolist(),  # type: ignore[arg-type]
        f.many("maxSize").tolist(), f.many("aspectRatios").tolist(), bool(f.one("flip", 1)),
        (float(f.one("stepH", 0)), float(f.one("stepW", 0))), float(f.one("offset", 0.5)),
        f.many("variance").tolist(), bool(f.one("clip", 0)))
    return [ops.emit(g, "constant", [], value=boxes[..., None]).output]


def _normalize(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    (x,) = inputs
    axes = tuple(range(1, x.rank)) if f.one("acrossSpatial", 1) else (1,)
    total = ops.emit(g, "reduce", [x], fn="sum_square", axes=axes, keepdims=True).output
    eps = g.constant(np.float32(f.one("eps", 1e-10)))
    root = ops.emit(g, "unary", [ops.emit(g, "binary", [total, eps], fn="add").output],
                    fn="sqrt").output
    y = ops.emit(g, "binary", [x, root], fn="div").output
    scale = f.many("weights").astype(np.float32).reshape(-1, *(1,) * (x.rank - 2))
    return [ops.emit(g, "binary", [y, g.constant(scale)], fn="mul").output]


def _rproi(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    scores, offsets, features, info = inputs
    post = int(f.one("nmsMaxOut"))
    high, wide = int(f.one("poolingH")), int(f.one("poolingW"))
    rois = ops.emit(
        g, "proposals", [scores, offsets, info], stride=int(f.one("featureStride")),
        ratios=tuple(map(float, f.many("anchorsRatios"))),
        scales=tuple(map(float, f.many("anchorsScales"))), min_size=float(f.one("minBoxSize")),
        pre=int(f.one("preNmsTop")), post=post, iou=float(f.one("iouThreshold"))).output
    pooled = ops.emit(g, "max_roi_pool", [features, rois], output_height=high, output_width=wide,
                      spatial_scale=float(f.one("spatialScale"))).output

    def ints(*values: int) -> Value:
        return g.constant(np.array(values, np.int64))

    boxes = ops.emit(g, "strided_slice", [rois, ints(1), ints(5), ints(1), ints(1)]).output
    return [ops.emit(g, "reshape", [boxes, ints(-1, 1, post, 4)], zero_copies=False).output,
            ops.emit(g, "reshape", [pooled, ints(-1, post, *map(int, pooled.dims[1:]))],
                     zero_copies=False).output]


KINDS = {
    "NMS_TRT": Kind(
        ("shareLocation", "varianceEncodedInTarget", "backgroundLabelId", "numClasses", "topK",
         "keepTopK", "confidenceThreshold", "nmsThreshold", "inputOrder", "confSigmoid",
         "isNormalized", "codeType"), (DataType.FLOAT, DataType.INT32), _nms),
    "PriorBox_TRT": Kind(
        ("minSize", "maxSize", "aspectRatios", "flip", "clip", "variance", "imgH", "imgW",
         "stepH", "stepW", "offset"), (DataType.FLOAT,), _prior),
    "Normalize_TRT": Kind(("weights", "acrossSpatial", "channelShared", "nbWeights", "eps"),
                          (DataType.FLOAT,), _normalize),
    "RPROI_TRT": Kind(
        ("poolingH", "poolingW", "featureStride", "preNmsTop", "nmsMaxOut", "iouThreshold",
         "minBoxSize", "spatialScale", "anchorsRatios", "anchorsScales"),
        (DataType.FLOAT, DataType.FLOAT), _rproi),
}
