"""Operation graphs for cuDNN as plain data, and the plans its engines make of them.

A `GraphSpec` says what is computed: tensors with numbers, sizes and strides, and operations
between them. It goes into payloads as JSON. `engines` asks cuDNN's heuristics which engines could
run it, best first; `plan` makes one of them ready. Both work for a GPU that is not there, if its
properties are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...ir.dtypes import dtype as element_type
from . import cudnn_api as api
from .cudnn_api import Descriptor
from .libraries import LibraryError

ALIGNMENT = 16


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph.

    Attributes:
        uid: Its number, unique in the graph.
        dtype: Element type by our name.
        dims, strides: Logical order (N, C, spatial…; or batch…, rows, columns), in elements.
        virtual: Whether it exists inside the fused kernel only.
        value: Content of a scalar that is passed by value; None for memory.
    """

    uid: int
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    virtual: bool = False
    value: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last."""
        last = sum((d - 1) * s for d, s in zip(self.dims, self.strides, strict=True)) + 1
        return last * element_type(self.dtype).size


@dataclass(frozen=True)
class OpSpec:
    """One operation.

    Attributes:
        kind: ``conv``, ``dgrad`` (transposed convolution), ``matmul``, ``reduce``, ``pointwise``
            or ``sdpa``.
        args: Numbers of the tensors read, in the operation's order.
        out: Number of the tensor written.
        attrs: Further attributes: ``fn``, ``stride``, ``pre``, ``post``, ``dilation``, ….
    """

    kind: str
    args: tuple[int, ...]
    out: int
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class GraphSpec:
    """A graph and the order in which a call's pointers name its tensors.

    Attributes:
        compute: Element type of contractions' sums; pointwise operations are done in f32.
        pointers: Numbers of the tensors whose addresses a launch is given, in order.
    """

    tensors: list[TensorSpec] = field(default_factory=list)
    ops: list[OpSpec] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    compute: str = "f32"

    def tensor(
        self, dtype: str, dims: Sequence[int], strides: Sequence[int], virtual: bool = False,
        value: float | None = None,
    ) -> int:
        """Adds a tensor; its number."""
        uid = len(self.tensors) + 1
        self.tensors.append(TensorSpec(uid, dtype, tuple(dims), tuple(strides), virtual, value))
        return uid

    def op(self, kind: str, args: Sequence[int], out: int, **attrs: Any) -> int:
        """Adds an operation; the number of its result."""
        self.ops.append(OpSpec(kind, tuple(args), out, attrs))
        return out

    def find(self, uid: int) -> TensorSpec:
        return self.tensors[uid - 1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> GraphSpec:
        tensors = [
            TensorSpec(**{**t, "dims": tuple(t["dims"]), "strides": tuple(t["strides"])})
            for t in data["tensors"]
        ]
        ops = [
            OpSpec(o["kind"], tuple(o["args"]), o["out"], {
                k: tuple(x) if isinstance(x, list) else x for k, x in o["attrs"].items()
            })
            for o in data["ops"]
        ]
        return GraphSpec(tensors, ops, list(data["pointers"]), data["compute"])


# --- descriptors -----------------------------------------------------------------------------


def _tensor(t: TensorSpec) -> Descriptor:
    d = Descriptor(api.TENSOR)
    d.set(906, api.T_INT64, t.uid)
    d.set(901, api.T_DATA_TYPE, api.DATA_TYPES[t.dtype])
    d.set(902, api.T_INT64, t.dims)
    d.set(903, api.T_INT64, t.strides)
    d.set(900, api.T_INT64, ALIGNMENT)
    if t.virtual:
        d.set(907, api.T_BOOLEAN, True)
    if t.value is not None:
        d.set(908, api.T_BOOLEAN, True)
    return d.finalize()


def _convolution(attrs: dict[str, Any], compute: str) -> Descriptor:
    d = Descriptor(api.CONVOLUTION)
    d.set(106, api.T_INT64, len(attrs["stride"]))
    d.set(100, api.T_DATA_TYPE, api.DATA_TYPES[compute])
    d.set(101, api.T_CONVOLUTION_MODE, 1)  # cross-correlation
    d.set(105, api.T_INT64, attrs["pre"])
    d.set(104, api.T_INT64, attrs["post"])
    d.set(102, api.T_INT64, attrs["dilation"])
    d.set(103, api.T_INT64, attrs["stride"])
    return d.finalize()


def _op(op: OpSpec, t: dict[int, Descriptor], g: GraphSpec) -> Descriptor:
    compute = op.attrs.get("compute", g.compute)
    if op.kind in ("conv", "dgrad"):
        conv = _convolution(op.attrs, compute)
        forward = op.kind == "conv"
        d = Descriptor(api.OP_CONV_FORWARD if forward else api.OP_CONV_BWD_DATA)
        base = 700 if forward else 706
        d.set(base, api.T_FLOAT, 1.0).set(base + 1, api.T_FLOAT, 0.0)
        d.set(base + 2, api.T_DESCRIPTOR, conv)
        x, w = t[op.args[0]], t[op.args[1]]
        d.set(base + 3, api.T_DESCRIPTOR, w)
        # forward: X, Y; backward data: DX (what we compute), DY (what we read)
        d.set(base + 4, api.T_DESCRIPTOR, x if forward else t[op.out])
        d.set(base + 5, api.T_DESCRIPTOR, t[op.out] if forward else x)
        return d.finalize()
    if op.kind == "matmul":
        inner = Descriptor(api.MATMUL).set(1500, api.T_DATA_TYPE, api.DATA_TYPES[compute])
        d = Descriptor(api.OP_MATMUL)
        d.set(1520, api.T_DESCRIPTOR, t[op.args[0]]).set(1521, api.T_DESCRIPTOR, t[op.args[1]])
        d.set(1522, api.T_DESCRIPTOR, t[op.out])
        return d.set(1523, api.T_DESCRIPTOR, inner.finalize()).finalize()
    if op.kind == "reduce":
        inner = Descriptor(api.REDUCTION)
        inner.set(1600, api.T_REDUCTION_OPERATOR, api.REDUCTIONS[op.attrs["fn"]])
        inner.set(1601, api.T_DATA_TYPE, api.DATA_TYPES["f32"])
        d = Descriptor(api.OP_REDUCTION).set(1610, api.T_DESCRIPTOR, t[op.args[0]])
        d.set(1611, api.T_DESCRIPTOR, t[op.out])
        return d.set(1612, api.T_DESCRIPTOR, inner.finalize()).finalize()
    if op.kind == "sdpa":
        d = Descriptor(api.OP_SDPA_FWD)
        for attribute, uid in zip((2800, 2801, 2802, 2805), op.args, strict=True):
            d.set(attribute, api.T_DESCRIPTOR, t[uid])
        return d.set(2803, api.T_DESCRIPTOR, t[op.out]).finalize()
    assert op.kind == "pointwise", op.kind
    return _pointwise(op, t)


def _pointwise(op: OpSpec, t: dict[int, Descriptor]) -> Descriptor:
    mode, operands = api.POINTWISE_MODES[op.attrs["fn"]]
    pw = Descriptor(api.POINTWISE)
    pw.set(0, api.T_POINTWISE_MODE, mode).set(1, api.T_DATA_TYPE, api.DATA_TYPES["f32"])
    # cuDNN takes these attributes as doubles
    for name, attribute in (("lower", 3), ("upper", 4), ("slope", 5), ("alpha", 6), ("beta", 8)):
        if name in op.attrs:
            pw.set(attribute, api.T_DOUBLE, float(op.attrs[name]))
    d = Descriptor(api.OP_POINTWISE).set(750, api.T_DESCRIPTOR, pw.finalize())
    places = (751, 752) if operands < 3 else (751, 752, 758)
    for attribute, uid in zip(places[:operands], op.args, strict=True):
        d.set(attribute, api.T_DESCRIPTOR, t[uid])
    return d.set(753, api.T_DESCRIPTOR, t[op.out]).finalize()


def operation_graph(g: GraphSpec, on_device: bool = False) -> Descriptor:
    """The finalized operation graph.

    Args:
        on_device: Whether it belongs to the current context's handle; if not, engines and plans
            need a device descriptor.

    Raises:
        LibraryError: If cuDNN does not take it.
    """
    t = {x.uid: _tensor(x) for x in g.tensors}
    d = Descriptor(api.GRAPH).set(801, api.T_DESCRIPTOR, [_op(o, t, g) for o in g.ops])
    if on_device:
        d.set(800, api.T_HANDLE, api.handle().value.value)
    return d.finalize()


# --- plans -----------------------------------------------------------------------------------


@dataclass
class Plan:
    """A plan ready to run.

    Attributes:
        descriptor: cuDNN's execution plan.
        workspace: Bytes it needs.
    """

    descriptor: Descriptor
    workspace: int

    def text(self) -> str:
        """The plan as text, from which `load_plan` makes it again."""
        return self.descriptor.text(405).decode()


def engines(
    graph: Descriptor, modes: Sequence[int] = (api.HEUR_A,), most: int = 8,
    device: Descriptor | None = None,
) -> Iterator[Descriptor]:
    """Engine configurations for a graph, the likely fastest first."""
    for mode in modes:
        heur = Descriptor(api.ENGINEHEUR).set(201, api.T_DESCRIPTOR, graph)
        heur.set(200, api.T_HEUR_MODE, mode)
        if device is not None:
            heur.set(204, api.T_DESCRIPTOR, device)
        try:
            heur.finalize()
            count = min(heur.count(202, api.T_DESCRIPTOR), most)
            configs = [Descriptor(api.ENGINECFG) for _ in range(count)]
            filled = heur.fill(202, configs)
        except LibraryError:
            continue  # this heuristic does not know the graph
        for c in configs[:filled]:
            c._keep.append(heur)
            yield c


def notes(config: Descriptor) -> tuple[list[int], list[int]]:
    """Numerical and behaviour notes of an engine configuration."""
    engine = Descriptor(api.ENGINE)
    config.fill(300, [engine])
    numerical = engine.get(1303, api.T_NUMERICAL_NOTE, 10)
    behaviour = engine.get(1305, api.T_BEHAVIOR_NOTE, 5)
    return numerical, behaviour


def plan(config: Descriptor, device: Descriptor | None = None) -> Plan:
    """Makes an engine configuration ready; this may compile a kernel.

    Raises:
        LibraryError: If the engine can't do the graph after all.
    """
    d = Descriptor(api.PLAN).set(401, api.T_DESCRIPTOR, config)
    return _finish(d, device)


def load_plan(text: str, device: Descriptor | None = None) -> Plan:
    """A plan from its text.

    Raises:
        LibraryError: If this cuDNN or this GPU does not take it.
    """
    d = Descriptor(api.PLAN)
    if device is None:
        d.set(400, api.T_HANDLE, api.handle().value.value)
    else:
        d.set(407, api.T_DESCRIPTOR, device)
    d.set(405, api.T_CHAR, text.encode())
    d.finalize()
    return Plan(d, d.get(402, api.T_INT64)[0])


def _finish(d: Descriptor, device: Descriptor | None) -> Plan:
    if device is None:
        d.set(400, api.T_HANDLE, api.handle().value.value)
    else:
        d.set(407, api.T_DESCRIPTOR, device)
    d.finalize()
    return Plan(d, d.get(402, api.T_INT64)[0])
