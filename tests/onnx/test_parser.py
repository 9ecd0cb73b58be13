"""`OnnxParser` as an API: support queries, names, symbols, control flow, functions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from models import BOOL, F32, I64, Quiet, errors, model, parse, tensor, weights
from onnx import helper

import tactician as trt
from tactician.ir.dims import sym
from tactician.ir.verify import verify
from tactician.network.network import INetworkDefinition
from tactician.ops.interpreter import run_graph

node = helper.make_node


def built(m: Any) -> Any:
    parser, network, _ = parse(m)
    assert not parser.num_errors, parser.get_error(0)
    verify(network.graph)
    return network


def run(m: Any, *feeds: Any) -> list[Any]:
    return run_graph(built(m).graph, list(feeds))


def mixed() -> Any:
    return model([node("Relu", ["x"], ["a"]), node("Strange", ["a"], ["b"]),
                  node("Neg", ["b"], ["c"]), node("Abs", ["x"], ["d"])],
                 [tensor("x", [2])], [tensor("c", [2]), tensor("d", [2])])


def test_context_manager_and_flags() -> None:
    network, flag = INetworkDefinition(), trt.OnnxParserFlag.NATIVE_INSTANCENORM
    with trt.OnnxParser(network, trt.Logger()) as parser:
        assert parser.get_flag(flag) and parser.flags == 1 << int(flag)
        parser.clear_flag(flag)
        assert not parser.get_flag(flag)
        parser.set_flag(flag)
        assert parser.get_flag(flag)
        parser.flags = 1 << int(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        assert not parser.get_flag(flag) and parser.flags == 8
        assert parser.get_used_vc_plugin_libraries() == []
    assert trt.get_nv_onnx_parser_version() // 10000 == int(trt.__version__.split(".")[0])


def test_flag_without_effect_says_so() -> None:
    logger = Quiet()
    parser = trt.OnnxParser(INetworkDefinition(), logger)
    parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    assert "no effect" in logger.text()


def test_supports_model() -> None:
    network = INetworkDefinition()
    parser = trt.OnnxParser(network, Quiet())
    ok, subgraphs = parser.supports_model(mixed().SerializeToString())
    assert not ok and subgraphs == [([0], True), ([1], False), ([2, 3], True)]
    assert parser.num_subgraphs == 3 and parser.get_subgraph_nodes(1) == [1]
    assert not parser.is_subgraph_supported(1) and parser.is_subgraph_supported(2)
    assert len(network) == 0 and parser.num_errors == 1
    with pytest.raises(IndexError):
        parser.get_subgraph_nodes(3)
    whole = model([node("Relu", ["x"], ["y"])], [tensor("x", [2])], [tensor("y", [2])])
    assert parser.supports_model_v2(whole.SerializeToString()) and parser.num_subgraphs == 1


@pytest.mark.parametrize("op, known", [("Conv", True), ("AffineGrid", True), ("StringSplit", False),
                                       ("DynamicQuantizeLSTM", True), ("Nothing", False)])
def test_supports_operator(op: str, known: bool) -> None:
    assert trt.OnnxParser(INetworkDefinition(), Quiet()).supports_operator(op) is known


def test_layer_output_tensor() -> None:
    parser, _, _ = parse(model([node("Gemm", ["x", "w", "b"], ["y"], name="fc", alpha=2.0)],
                               [tensor("x", [1, 3])], [tensor("y", [1, 4])],
                               initializers=weights(w=np.ones((3, 4), np.float32),
                                                    b=np.ones(4, np.float32))))
    assert parser.get_layer_output_tensor("fc", 0).name == "y"
    assert parser.get_layer_output_tensor("other", 0) is None


def test_names_are_unique() -> None:
    network = built(model([node("Relu", ["x"], ["a"], name="n"),
                           node("Relu", ["a"], ["b"], name="n"),
                           node("Relu", ["b"], ["y"])], [tensor("x", [2])], [tensor("y", [2])]))
    assert [layer.name for layer in network] == ["n", "n_1", "node_of_y"]


def test_symbols() -> None:
    network = built(model([node("Add", ["x", "z"], ["y"])],
                          [tensor("x", ["n", None, "2 * k", "x.1"]), tensor("z", ["n", 1, 1, 1])],
                          [tensor("y", None)]))
    x, z = network.graph.inputs
    assert x.dims[0] == z.dims[0] == sym("n") and x.dims[1] == sym("x.1")
    assert x.dims[2] == sym("x.2")
    info = network.graph.symbols["n"]
    assert (info.kind, info.source, info.index) == ("dim", "x", 0)


def test_shape_input() -> None:
    """A reshape's target that is an input gives an output of symbolic shape."""
    network = built(model([node("Reshape", ["x", "s"], ["y"])],
                          [tensor("x", [4, 6]), tensor("s", [2], I64)], [tensor("y", None)]))
    assert network.graph.outputs[0].dims == (sym("s@0"), sym("s@1"))
    assert network.graph.symbols["s@1"].kind == "value"
    (y,) = run_graph(network.graph, [np.zeros((4, 6), np.float32), np.int64([8, 3])])
    assert y.shape == (8, 3)


def test_integer_inputs_that_are_data_have_no_symbols() -> None:
    network = built(model([node("Gather", ["x", "i"], ["y"])],
                          [tensor("x", [4]), tensor("i", [3], I64)], [tensor("y", None)]))
    assert not network.graph.symbols and network.graph.inputs[1].content is None


# --- control flow -----------------------------------------------------------------------------


def branch(name: str, op: str, *inputs: str) -> Any:
    return helper.make_graph([node(op, inputs, [name])], name, [], [tensor(name, None)])


def conditional(cond_inputs: Any, nodes: Any = ()) -> Any:
    return model([*nodes, node("If", ["c"], ["y"], name="if", then_branch=branch("t", "Neg", "x"),
                               else_branch=branch("e", "Add", "x", "w"))],
                 [tensor("x", ["n", 2]), *cond_inputs], [tensor("y", None)],
                 initializers=weights(w=np.ones(2, np.float32)))


def test_if_captures() -> None:
    network = built(conditional([tensor("c", [], BOOL)]))
    (if_node,) = (n for n in network.graph.nodes if n.op == "if")
    assert [v.name for v in if_node.inputs] == ["c", "x"]
    assert [[v.name for v in g.inputs] for g in if_node.subgraphs] == [["x"], ["x"]]
    x = np.ones((3, 2), np.float32)
    for c, value in ((True, -1), (False, 2)):
        assert (run_graph(network.graph, [x, np.bool_(c)])[0] == value).all()


def test_if_with_a_condition_on_shapes_is_folded() -> None:
    m = conditional([], [node("Shape", ["x"], ["s"], start=1), node("Equal", ["s", "two"], ["c"])])
    m.graph.initializer.extend(weights(two=np.int64([2])))
    network = built(m)
    assert all(n.op != "if" for n in network.graph.nodes)
    assert (run_graph(network.graph, [np.ones((1, 2), np.float32)])[0] == -1).all()


def test_problems_of_both_branches_are_reported() -> None:
    m = model([node("If", ["c"], ["y"], then_branch=branch("t", "Odd", "x"),
                    else_branch=branch("e", "Strange", "x"))],
              [tensor("c", [], BOOL), tensor("x", [2])], [tensor("y", None)])
    parser, _, _ = parse(m)
    assert [parser.get_error(i).node_operator() for i in range(2)] == ["Odd", "Strange"]
    assert "then_branch" in parser.get_error(0).local_function_stack()[0]


def loop_model(body_nodes: Any, carried: Any, scans: int = 0, shape: Any = (2,)) -> Any:
    outs = [tensor("cond_out", [], BOOL), tensor("v_out", None),
            *(tensor(f"s{k}", None) for k in range(scans))]
    body = helper.make_graph(body_nodes, "body", [tensor("i", [], I64), tensor("cond", [], BOOL),
                                                  tensor("v", None)], outs)
    return model([node("Loop", ["trips", "", "x"], ["y", *(f"z{k}" for k in range(scans))],
                       body=body)],
                 [tensor("trips", [], I64), tensor("x", shape)],
                 [tensor("y", None), *(tensor(f"z{k}", None) for k in range(scans))],
                 initializers=carried)


def test_loop() -> None:
    m = loop_model([node("Identity", ["cond"], ["cond_out"]), node("Add", ["v", "w"], ["v_out"]),
                    node("Identity", ["v"], ["s0"])], weights(w=np.float32([1, 2])), scans=1)
    y, z = run(m, np.int64(3), np.float32([0, 0]))
    assert y.tolist() == [3, 6] and z.tolist() == [[0, 0], [1, 2], [2, 4]]


def test_loop_whose_carried_value_grows() -> None:
    m = loop_model([node("Identity", ["cond"], ["cond_out"]),
                    node("Concat", ["v", "w"], ["v_out"], axis=0)], weights(w=np.float32([1])))
    (y,) = run(m, np.int64(3), np.float32([0, 0]))
    assert y.tolist() == [0, 0, 1, 1, 1]


def test_loop_whose_carried_type_changes_is_refused() -> None:
    m = loop_model([node("Identity", ["cond"], ["cond_out"]), node("Shape", ["v"], ["v_out"])], [])
    assert "type and rank" in errors(m)


@pytest.mark.parametrize("back", [0, 1])
def test_scan(back: int) -> None:
    body = helper.make_graph([node("Add", ["s", "x"], ["s_out"]),
                              node("Mul", ["s_out", "k"], ["o"])],
                             "body", [tensor("s", [2]), tensor("x", [2])],
                             [tensor("s_out", [2]), tensor("o", [2])])
    m = model([node("Scan", ["init", "xs"], ["last", "ys"], body=body, num_scan_inputs=1,
                    scan_input_directions=[back], scan_output_axes=[1])],
              [tensor("init", [2]), tensor("xs", ["t", 2])],
              [tensor("last", [2]), tensor("ys", None)], initializers=weights(k=np.float32(10)))
    xs = np.arange(6, dtype=np.float32).reshape(3, 2)
    last, ys = run(m, np.zeros(2, np.float32), xs)
    assert last.tolist() == [6, 9]
    sums = np.cumsum(xs[::-1] if back else xs, axis=0)
    assert (ys == 10 * sums.T).all()


# --- functions --------------------------------------------------------------------------------


def test_local_function_with_attributes() -> None:
    leaky = node("LeakyRelu", ["a"], ["t"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=1)
    opsets = [helper.make_opsetid("", 17)]
    f = helper.make_function("my", "F", ["a", "b"], ["c"],
                             [leaky, node("Add", ["t", "b"], ["c"])], opsets, ["slope"])
    m = model([node("F", ["x", "x"], ["h"], domain="my", slope=0.5),
               node("F", ["h", "x"], ["y"], domain="my", slope=2.0)],
              [tensor("x", [2])], [tensor("y", [2])], functions=[f], domains=["my"])
    x = np.float32([-2, 1])
    h = np.where(x > 0, x, 0.5 * x) + x
    assert run(m, x)[0].tolist() == (np.where(h > 0, h, 2 * h) + x).tolist()


def test_function_problems_name_the_call() -> None:
    f = helper.make_function("my", "F", ["a"], ["b"], [node("Odd", ["a"], ["b"], name="inner")],
                             [helper.make_opsetid("", 17)])
    m = model([node("F", ["x"], ["y"], name="call", domain="my")], [tensor("x", [2])],
              [tensor("y", [2])], functions=[f], domains=["my"])
    parser, _, _ = parse(m)
    e = parser.get_error(0)
    assert parser.num_errors == 1 and e.node_name() == "inner"
    assert e.local_function_stack_size() == 1 and "'call'" in e.local_function_stack()[0]


def test_sequences_known_while_parsing_leave_no_trace() -> None:
    m = model([node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0),
               node("SequenceAt", ["s", "one"], ["a"]), node("SequenceInsert", ["s", "a"], ["t"]),
               node("ConcatFromSequence", ["t"], ["y"], axis=0, new_axis=1),
               node("SequenceLength", ["t"], ["n"])],
              [tensor("x", [2, 3])], [tensor("y", None), tensor("n", None)],
              initializers=weights(one=np.int64(1)))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y, n = run(m, x)
    assert (y == np.stack([x[0], x[1], x[1]])).all() and n == 3


def test_onnx_is_imported_late() -> None:
    code = "import sys, tactician; tactician.OnnxParser; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_types_of_outputs() -> None:
    network = built(model([node("Cast", ["x"], ["y"], to=I64)], [tensor("x", [2], F32)],
                          [tensor("y", [2], I64)]))
    assert network.get_output(0).dtype == trt.int64


# --- plugins ----------------------------------------------------------------------------------


class Scale(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """Multiplies by a factor."""

    def __init__(self, factor: float):
        trt.IPluginV3.__init__(self)
        self.factor = factor
        self.num_outputs = 1
        self.plugin_name, self.plugin_version, self.plugin_namespace = "ScaleBy", "1", ""

    def get_capability_interface(self, type: Any) -> Any:
        return self

    def get_output_data_types(self, input_types: Any) -> Any:
        return [input_types[0]]

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, exprs: Any) -> Any:
        return [trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
        return True

    def configure_plugin(self, inp: Any, out: Any) -> None: ...

    def on_shape_change(self, inp: Any, out: Any) -> None: ...

    def attach_to_context(self, context: Any) -> Any:
        return self

    def clone(self) -> Any:
        return Scale(self.factor)

    def get_fields_to_serialize(self) -> Any:
        return trt.PluginFieldCollection([trt.PluginField("factor", np.float32([self.factor]))])


class ScaleCreator(trt.IPluginCreatorV3One):
    def __init__(self) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "ScaleBy", "1", ""
        self.field_names = trt.PluginFieldCollection([])

    def create_plugin(self, name: str, fc: Any, phase: Any) -> Any:
        return Scale(float(next(f for f in fc if f.name == "factor").data[0]))


def test_plugin() -> None:
    m = model([node("ScaleBy", ["x"], ["y"], name="twice", factor=2.0, domain="my")],
              [tensor("x", ["n", 2])], [tensor("y", None)], domains=["my"])
    assert "no plugin called 'ScaleBy'" in errors(m)
    creator = ScaleCreator()
    assert trt.get_plugin_registry().register_creator(creator, "")
    try:
        network = built(m)
        layer = network.get_layer(0)
        assert isinstance(layer, trt.IPluginV3Layer) and layer.plugin.factor == 2
        assert layer.name == "twice" and network.graph.outputs[0].dims == (sym("n"), 2)
    finally:
        trt.get_plugin_registry().deregister_creator(creator)
