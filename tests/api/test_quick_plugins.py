"""Quick plugins: descriptions, tactics, aliases, creators, which kind is preferred."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt
import tactician.plugin as trtp


@trtp.register("apitest::plus_one")
def describe_plus_one(x: trtp.TensorDesc) -> trtp.TensorDesc:
    out = x.aliased()
    assert out.is_aliased() and out.get_aliased() is x and not x.is_aliased()
    return out


@trtp.impl("apitest::plus_one")
def plus_one(x: trtp.Tensor, outputs, stream):
    y = outputs[0]
    assert x.data_ptr == y.data_ptr
    flat = y.aliased((6,))
    assert flat.is_aliased() and flat.get_aliased() is y and tuple(flat.shape) == (6,)
    assert not y.is_aliased() and y.get_aliased() is None
    assert y.ndim == x.ndim == 2 and y.numel() == 6 and y.shape == (2, 3) and y.strides == (3, 1)
    assert not y.is_data_dependent and y.dtype == trt.float32 and y.scale == 0
    assert y.format == trt.TensorFormat.LINEAR
    np.asarray(y)[...] += 1


@trtp.register("apitest::blocks")
def describe_blocks(x: trtp.TensorDesc, size: int) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
    rows = x.shape_expr[0]
    most, least = trtp.max(rows, 4), trtp.min(rows, 4)
    parts = trtp.from_shape_expr((trtp.cdiv(rows, size), x.shape_expr[1]), x.dtype)
    return parts, trtp.from_shape_expr((most, least), trt.float32)


@trtp.autotune("apitest::blocks")
def tune_blocks(x, size, outputs):
    combination = trtp.AutoTuneCombination()
    combination.pos([0, 1], "FP32|FP16")
    combination.pos(2, "FP32")
    combination.tactics([5, 9])
    return [trtp.AutoTuneCombination("FP32, FP32, FP32", "HWC8", [1]), combination]


@trtp.impl("apitest::blocks")
def blocks(x, size, outputs, stream, tactic):
    a, y = np.asarray(x), np.asarray(outputs[0])
    for i in range(len(y)):
        y[i] = a[i * size:(i + 1) * size].sum(0)
    np.asarray(outputs[1])[...] = tactic


class TestQuickPlugins:
    def test_aliases(self):
        net, x = Net(), f32(2, 3)
        layer = net.network.add_plugin(trtp.op.apitest.plus_one(net.input(x, "x")))
        same = net.network.add_identity(net.network.get_input(0))
        y, kept = net.run(layer.get_output(0), same.get_output(0))
        close(y, f32(2, 3) + 1)
        np.testing.assert_array_equal(kept, f32(2, 3))

    @pytest.mark.parametrize("rows", [3, 5])
    def test_tuning_and_shapes(self, rows):
        net, x = Net(), f32(rows, 2)
        layer = net.network.add_plugin(
            trtp.op.apitest.blocks(net.input(x, "x", (-1, 2)), size=2))
        parts, tactic = net.run(*(layer.get_output(i) for i in (0, 1)))
        close(parts, [x[i:i + 2].sum(0) for i in range(0, rows, 2)])
        assert tactic.shape == (max(rows, 4), min(rows, 4))
        assert (tactic == 5).all() or (tactic == 9).all()  # the faster one

    def test_the_decorators(self):
        """Functions come back as they were; a plugin without tactics gets 0."""
        def describe(x: trtp.TensorDesc) -> trtp.TensorDesc:
            return x.like()

        def compute(x, outputs, stream, tactic):
            np.asarray(outputs[0])[...] = np.asarray(x) - tactic

        def tune(x, outputs):
            return [trtp.AutoTuneCombination("FP32, FP32", "LINEAR", [4])]

        assert trtp.register("apitest::minus")(describe) is describe
        assert trtp.impl("apitest::minus")(compute) is compute
        net = Net()
        layer = net.network.add_plugin(trtp.op.apitest.minus(net.input(f32(3), "x")))
        close(net.run(layer.get_output(0)), f32(3))
        assert trtp.autotune("apitest::minus")(tune) is tune
        net = Net()
        layer = net.network.add_plugin(trtp.op.apitest.minus(net.input(f32(3), "x")))
        close(net.run(layer.get_output(0)), f32(3) - 4)
        net = Net()
        x = net.network.add_input("x", trt.float16, (3,))
        net.network.add_plugin(trtp.op.apitest.minus(x))
        assert "refuses" in net.log.errors

    def test_creators_of_quick_plugins(self):
        creator = trt.get_plugin_registry().get_creator("blocks", "1", "apitest")
        assert isinstance(creator, trt.IPluginCreatorV3Quick)
        assert [f.name for f in creator.field_names] == ["size"]
        assert creator.name == "blocks" and creator.plugin_namespace == "apitest"
        made = creator.create_plugin(
            "blocks", "apitest",
            trt.PluginFieldCollection([trt.PluginField("size", np.int32([2]))]),
            trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.PREFER_JIT)
        assert (made.plugin_name, made.plugin_namespace) == ("blocks", "apitest")
        assert made.plugin_version == creator.plugin_version == "1"
        for base in (trt.IPluginV3QuickCore, trt.IPluginV3QuickBuild, trt.IPluginV3QuickRuntime):
            assert isinstance(made, base)

    @pytest.mark.parametrize("flag, given, aot", [
        (None, (), False), (trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS, (), True),
        (trt.NetworkDefinitionCreationFlag.PREFER_JIT_PYTHON_PLUGINS, (), False),
        (trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS, (False,), False),
        (None, (True,), True),
    ])
    def test_which_kind_is_preferred(self, flag, given, aot):
        net = Net(0 if flag is None else 1 << int(flag))
        layer = net.network.add_plugin(
            trtp.op.apitest.plus_one(net.input(f32(2, 3), "x")), *given)
        assert layer.plugin.aot is aot
        close(net.run(layer.get_output(0)), f32(2, 3) + 1)

    def test_without_a_device_kernels_are_not_compiled(self):
        @trtp.aot_impl("apitest::plus_one")
        def compiled(x, outputs, tactic):
            raise AssertionError("not called")

        net = Net()
        layer = net.network.add_plugin(trtp.op.apitest.plus_one(net.input(f32(2, 3), "x")),
                                       aot=True)
        close(net.run(layer.get_output(0)), f32(2, 3) + 1)

    def test_descriptions(self):
        desc = trtp.from_shape_expr((2, 3), trt.float16)
        assert desc.ndim == 2 and desc.has_shape and desc.has_shape_expr and not desc.is_dynamic
        shape = desc.shape
        assert list(shape) == [2, 3] and shape.numel() == 6 and not shape.is_dynamic
        assert list(shape.min) == list(shape.opt) == list(shape.max) == [2, 3]
        assert not desc.is_size_tensor and desc.like().dtype == trt.float16
        assert desc.numel().constant_value() == 6 and desc.shape_expr.numel().is_constant
        assert (desc.format, desc.scale) == (trt.TensorFormat.LINEAR, 0)
        size = trtp.size_tensor(2, 5)
        assert size.is_size_tensor and (size.opt, size.upper_bound, size.index) == (2, 5, None)
        assert size.expr().is_size_tensor and not size.expr().is_constant
        assert isinstance(size.expr(), trtp.SizeTensorShapeExpr)
        unknown = trtp.from_shape_expr((size.expr(), 2), trt.float32)
        assert unknown.is_dynamic and not unknown.has_shape and list(unknown.shape) == [-1, 2]
        with pytest.raises(ValueError, match="dynamic"):
            unknown.shape.numel()

    def test_expressions(self):
        exprs = trtp.ShapeExprs.from_tuple((2, trtp.ShapeExpr(3)))
        assert exprs.numel().constant_value() == 6 and not exprs[0].is_fake
        assert not exprs[0].is_size_tensor
        assert trtp.ShapeExpr().is_fake
        assert len(trtp.SymExprs.from_tuple((1, 2))) == 2
        for kind in (trtp.SymInt8, trtp.SymInt16, trtp.SymInt32):
            assert (kind(5) * 2).constant_value() == 10
        assert len(trtp.SymIntExprs.from_tuple([trtp.SymInt32(1)])) == 1
        assert trtp.cdiv(trtp.ShapeExpr(7), 2).constant_value() == 4
        assert trtp.max(trtp.ShapeExpr(7), 9).constant_value() == 9
        assert trtp.min(trtp.ShapeExpr(7), 9).constant_value() == 7
