"""Graphs survive being written as JSON and blobs."""

import json
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.dtypes import all_dtypes, bf16, f32, i64
from tactician.ir.graph import Graph, Node, SymbolInfo, Value
from tactician.ir.serialize import (
    BlobWriter,
    Decoder,
    Encoder,
    SerializeError,
    renumber_data_symbols,
)


@dataclass(frozen=True)
class Attrs:
    axis: int = 0
    to: object = None
    pads: tuple = ()
    alpha: float = 0.0
    label: str = ""
    flag: bool = False
    table: object = None


def through_json(x, method="value"):
    blobs = BlobWriter()
    text = json.dumps(getattr(Encoder(blobs), method)(x))
    decoder = Decoder(blobs.blobs, {"op": Attrs, "outer": Attrs}.__getitem__, {"Attrs": Attrs})
    return getattr(decoder, method)(json.loads(text)), decoder


@pytest.mark.parametrize("x", [
    None, True, 0, -(2**70), 1.5, -0.0,
    float("inf"), "text ∑ \ud800", (), (1, (2.0, "a"), None), [1, (2, [])],
    bf16, D.sym("n") * 2 + 1, D.floor_div(D.sym("x.0") + 3, 4), {"a": 1, 2: (3,)}, Attrs(axis=3),
    D.dim_max(D.sym("a"), D.sym("b"), 7) - D.modulo(D.sym("a"), 5),
])
def test_values(x):
    assert through_json(x)[0] == x


def test_nan_and_numpy_scalars():
    assert np.isnan(through_json(float("nan"))[0])
    assert through_json(np.float32(0.5))[0] == 0.5
    assert through_json(np.int64(5))[0] == 5


@pytest.mark.parametrize("dt", [f32, bf16, i64], ids=str)
def test_repeated_elements_take_no_room(dt):
    a = np.broadcast_to(np.ones((), dt.np), (100, 7))
    blobs = BlobWriter()
    text = json.dumps(Encoder(blobs).value(a))
    assert sum(map(len, blobs.blobs)) == dt.size
    back = Decoder(blobs.blobs, {}.__getitem__).value(json.loads(text))
    assert back.shape == a.shape and back.dtype == a.dtype and (back == a).all()
    with pytest.raises(SerializeError):
        Decoder(blobs.blobs, {}.__getitem__).value({"b": [0, dt.name, [-1, 7]]})


@pytest.mark.parametrize("dt", all_dtypes(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_keep_type_shape_and_bytes(dt, shape):
    a = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dt.np)
    b = through_json(a)[0]
    assert b.dtype == a.dtype and b.shape == a.shape and b.tobytes() == a.tobytes()


def test_arrays_that_are_not_contiguous_or_native():
    a = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    b = through_json(a)[0]
    assert b.dtype == np.int32 and np.array_equal(a, b)


def test_equal_arrays_are_stored_once():
    blobs = BlobWriter()
    ones = np.ones(4, np.float32)
    assert len({blobs.add(ones), blobs.add(ones.copy()), blobs.add(ones)}) == 1
    assert blobs.add(np.zeros(4, np.float32)) == 1


def test_object_arrays_hold_dims():
    a = np.empty((2,), dtype=object)
    a[:] = [3, D.sym("n")]
    assert list(through_json(a)[0]) == [3, D.sym("n")]


def test_what_plans_cannot_hold_is_named():
    with pytest.raises(SerializeError, match=r"Attrs.table.*object"):
        Encoder(BlobWriter()).value(Attrs(table=object()))


def build(first_id_offset=0):
    for _ in range(first_id_offset):
        Node("op", [], None)
    g = Graph("g")
    x = g.add_input("x", f32, (D.sym("x.0"), 3))
    g.symbols["x.0"] = SymbolInfo("x.0", "dim", "x", 0, 1, 8)
    weight = g.constant(np.arange(3, dtype=np.float32), "w")
    node = Node("op", [x, None, weight], Attrs(axis=1, to=f32, table=np.eye(2)), "first")
    node.source, node.meta = "onnx node 3", {"precision": f32, "layer": object()}
    count = f"%{node.id}.0"
    g.symbols[count] = SymbolInfo(count, "data", str(node.id), 0, 0, D.sym("x.0") * 3)
    y = Value("y", i64, (2, D.sym(count)))
    y.producer = node
    y.content = np.array([[D.sym(count)], [1]], dtype=object)
    node.outputs.append(y)
    g.insert(node)
    body = Graph("body", [Value("a", f32, (D.sym(count),))])
    body.outputs = [body.inputs[0]]
    outer = Node("outer", [y], Attrs(), "second")
    outer.subgraphs = (body,)
    out = Value("z", f32, None)
    out.producer = outer
    outer.outputs.append(out)
    g.insert(outer)
    g.outputs = [out, weight]
    return g


def encode(g):
    blobs = BlobWriter()
    return json.dumps(Encoder(blobs).graph(g)), [bytes(b) for b in blobs.blobs]


def test_graph_round_trip():
    g = build()
    back, decoder = through_json(g, "graph")
    first, second = back.nodes
    assert str(back).replace("%0", f"%{g.nodes[0].id}") == str(g)
    assert first.attrs.axis == 1 and np.array_equal(first.attrs.table, np.eye(2))
    assert first.source == "onnx node 3" and first.meta == {"precision": f32}
    assert first.inputs[1] is None and first.inputs[2] is back.outputs[1]
    assert first.outputs[0].users == {second: 1} and second.subgraphs[0].name == "body"
    renumber_data_symbols(back, decoder.numbers)
    count = D.sym(f"%{first.id}.0")
    assert first.outputs[0].shape == (2, count)
    assert second.subgraphs[0].inputs[0].shape == (count,)
    assert back.symbols[str(count)].source == str(first.id)
    assert encode(back) == encode(g)


def test_text_does_not_depend_on_node_numbers():
    assert encode(build()) == encode(build(first_id_offset=7))


@pytest.mark.parametrize("j, reason", [
    ({"d": "+"}, "no dimension"), ({"d": 3}, "no dimension"), ({"t": "f31"}, "f31"),
    ({"a": [0, "f32", [1]]}, "section 0"), ({"a": []}, "unknown value"),
    ({"a": [True, "f32", [1]]}, "section True"), ({"x": 1}, "unknown value"),
    ({"t": "f32", "d": "1"}, "unknown value"), ({"r": ["Attrs", {"nope": 1}]}, "nope"),
    ({"r": ["Other", {}]}, "Other"), ({"m": [1]}, "unknown value"), ({"o": [[1], [2]]}, "unknown"),
    ({"f": "x"}, "unknown value"), ({"r": ["Attrs", []]}, "Attrs"),
])
def test_malformed_values(j, reason):
    with pytest.raises(SerializeError, match=reason):
        Decoder([], {}.__getitem__, {"Attrs": Attrs}).value(j)


def test_array_larger_than_its_section():
    with pytest.raises(SerializeError, match="does not fit"):
        Decoder([memoryview(b"abc")], {}.__getitem__).value({"a": [0, "u8", [4]]})


def _graph_json():
    blobs = BlobWriter()
    return Encoder(blobs).graph(build()), blobs.blobs


def _spoil(path, new):
    j, blobs = _graph_json()
    at = j
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return j, blobs


@pytest.mark.parametrize("path, new", [
    (("values",), 1), (("values", 0), []), (("values", 0, "dtype"), "q"), (("inputs", 0), -1),
    (("inputs", 0), 99), (("inputs", 0), "x"), (("nodes", 0), 3), (("nodes", 0, "op"), "huh"),
    (("nodes", 0, "attrs"), None), (("nodes", 0, "attrs"), {"size": 1}), (("outputs",), None),
    (("nodes", 1, "out"), [2, 2, 3]), (("symbols",), [1]), (("nodes", 1, "sub", 0), None),
    (("values", 0, "shape"), [1.5]), (("name",), None), (("nodes", 0, "in"), [10**9]),
])
def test_malformed_graphs(path, new):
    j, blobs = _spoil(path, new)
    with pytest.raises(SerializeError):
        Decoder(blobs, {"op": Attrs, "outer": Attrs}.__getitem__).graph(j)


def test_bfloat16_constants():
    a = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert through_json(a)[0].tolist() == [1.5, -2]
