"""Tensors of implicit-batch networks that have one value for the whole batch, against numpy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from apikit import Log, close, f32

import tactician as trt

X, TABLE = f32(3, 2, 4), f32(2, 4, seed=1)
SUM, PROD = trt.ElementWiseOperation.SUM, trt.ElementWiseOperation.PROD


class Implicit:
    """A network of an input ``table`` that is broadcast and an input ``x``."""

    def __init__(self, first=True):
        self.log = Log()
        self.builder = trt.Builder(self.log)
        self.builder.max_batch_size = 4
        self.network = trt.INetworkDefinition(0, self.log, self.builder, implicit_batch=True)
        names = ("table", "x") if first else ("x", "table")
        tensors = {n: self.network.add_input(n, trt.float32, (2, 4)) for n in names}
        self.x, self.table = tensors["x"], tensors["table"]
        self.table.broadcast_across_batch = True

    def engine(self, *tensors):
        for i, t in enumerate(tensors):
            t.name = f"y{i}"
            self.network.mark_output(t)
        engine = self.builder.build_cuda_engine(self.network)
        assert engine is not None, self.log.errors
        return engine


def run(engine, batch, **feeds):
    """Results by name, through bindings of which those that are broadcast hold one copy."""
    arrays = {n: np.ascontiguousarray(a) for n, a in feeds.items()}
    for name in engine:
        if not engine.binding_is_input(name):
            arrays[name] = np.full((batch, *engine.get_binding_shape(name)), np.nan, np.float32)
    context = engine.create_execution_context()
    assert context.execute(batch, [arrays[n].ctypes.data for n in engine])
    return arrays


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_copy_serves_every_batch(first, batch):
    net = Implicit(first)
    table = net.network.add_unary(net.table, trt.UnaryOperation.EXP).get_output(0)
    total = net.network.add_elementwise(net.x, table, SUM).get_output(0)
    cat = net.network.add_concatenation([net.table, total])
    cat.axis = 0
    engine = net.engine(total, cat.get_output(0))
    assert tuple(engine.get_binding_shape("table")) == (2, 4)
    # the bytes behind the one copy are not read
    room = np.concatenate([TABLE[None], np.full((3, 2, 4), np.nan, np.float32)])
    got = run(engine, batch, x=X[:batch], table=room)
    want = X[:batch] + np.exp(TABLE)
    close(got["y0"], want)
    close(got["y1"], np.concatenate([np.broadcast_to(TABLE, want.shape), want], 1))
    again = trt.Runtime(net.log).deserialize_cuda_engine(bytes(engine.serialize()))
    close(run(again, batch, x=X[:batch], table=room)["y0"], want)
    close(trt.Engine(engine)({"x": X[:batch], "table": TABLE})["y0"], want)


def test_outputs_that_depend_on_it_alone_are_repeated():
    net = Implicit()
    y = net.network.add_unary(net.table, trt.UnaryOperation.EXP).get_output(0)
    z = net.network.add_unary(net.x, trt.UnaryOperation.NEG).get_output(0)
    got = run(net.engine(y, z), 3, x=X, table=TABLE)
    close(got["y0"], np.broadcast_to(np.exp(TABLE), X.shape))
    close(got["y1"], -X)


def test_flags_of_other_tensors_follow():
    net = Implicit()
    y = net.network.add_unary(net.table, trt.UnaryOperation.EXP).get_output(0)
    c = net.network.add_constant((2, 4), TABLE).get_output(0)
    scaled = net.network.add_elementwise(y, c, PROD).get_output(0)
    mixed = net.network.add_elementwise(scaled, net.x, SUM).get_output(0)
    flags = [t.broadcast_across_batch for t in (net.table, net.x, y, c, scaled, mixed)]
    assert flags == [True, False, True, True, True, False]
    net.table.broadcast_across_batch = False
    assert not scaled.broadcast_across_batch and c.broadcast_across_batch
    y.broadcast_across_batch = True
    assert "can be set for inputs of the network only" in net.log.errors
    assert not y.broadcast_across_batch


def test_explicit_batch_takes_no_notice():
    builder = trt.Builder(Log())
    x = builder.create_network(1).add_input("x", trt.float32, (2, 4))
    x.broadcast_across_batch = True
    assert not x.broadcast_across_batch


def test_something_must_tell_the_batch():
    net = Implicit()
    net.x.broadcast_across_batch = True
    y = net.network.add_elementwise(net.table, net.x, SUM).get_output(0)
    net.network.mark_output(y)
    assert net.builder.build_cuda_engine(net.network) is None
    assert "'table', 'x' are all broadcast across the batch" in net.log.errors


TOLD: list = []


def at(address, *shape):
    raw = (ctypes.c_byte * (4 * int(np.prod(shape)))).from_address(int(address))
    return np.frombuffer(raw, np.float32).reshape(shape)


class Scaled(trt.IPluginV2Ext):
    """y = x * table, z = 2 * table."""

    takes_one = gives_one = False
    host_memory = True

    def __init__(self, takes_one, gives_one):
        trt.IPluginV2Ext.__init__(self)
        self.takes_one, self.gives_one = takes_one, gives_one
        self.plugin_type, self.plugin_version, self.num_outputs = "Scaled", "1", 2
        self.plugin_namespace = ""

    def get_output_shape(self, index, inputs):
        assert [tuple(s) for s in inputs] == [(2, 4), (2, 4)]
        return inputs[index]

    def can_broadcast_input_across_batch(self, input_index):
        TOLD.append(("asked", input_index))
        return self.takes_one

    def is_output_broadcast_across_batch(self, output_index, input_is_broadcasted, nb_inputs):
        assert (list(input_is_broadcasted), nb_inputs) == ([False, True], 2)
        return self.gives_one and output_index == 1

    def configure_plugin(self, in_shapes, out_shapes, in_types, out_types, in_once, out_once,
                         format, max_batch_size):
        TOLD.append((list(in_once), list(out_once)))

    def supports_format(self, dtype, format):
        return dtype == trt.float32

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        x = at(inputs[0], batch_size, 2, 4)
        table = at(inputs[1], 1 if self.takes_one else batch_size, 2, 4)
        at(outputs[0], batch_size, 2, 4)[...] = x * table
        at(outputs[1], 1 if self.gives_one else batch_size, 2, 4)[...] = 2 * table[:1]
        return 0

    def serialize(self):
        return bytes([self.takes_one, self.gives_one])

    def clone(self):
        return Scaled(self.takes_one, self.gives_one)


class ScaledCreator(trt.IPluginCreator):
    def __init__(self):
        trt.IPluginCreator.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "Scaled", "1", ""
        self.field_names = trt.PluginFieldCollection([])

    def deserialize_plugin(self, name, data):
        return Scaled(*map(bool, data))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("gives_one", [False, True])
@pytest.mark.parametrize("takes_one", [False, True])
def test_plugins_are_asked(takes_one, gives_one, computed):
    creator = ScaledCreator()
    registry = trt.get_plugin_registry()
    registry.register_creator(creator, "")
    try:
        TOLD.clear()
        net = Implicit()
        table = net.table
        if computed:  # one value, though it is computed for the batch
            table = net.network.add_unary(table, trt.UnaryOperation.NEG).get_output(0)
        layer = net.network.add_plugin_v2([net.x, table], Scaled(takes_one, gives_one))
        assert layer.get_output(1).broadcast_across_batch is gives_one
        y = net.network.add_unary(layer.get_output(1), trt.UnaryOperation.EXP).get_output(0)
        engine = net.engine(layer.get_output(0), layer.get_output(1), y)
        assert ("asked", 1) in TOLD and ("asked", 0) not in TOLD
        assert ([False, True], [False, gives_one]) in TOLD
        again = trt.Runtime(net.log).deserialize_cuda_engine(bytes(engine.serialize()))
        for e in (engine, again):
            for batch in (3, 1):
                got = run(e, batch, x=X[:batch], table=TABLE)
                t = -TABLE if computed else TABLE
                close(got["y0"], X[:batch] * t)
                close(got["y1"], np.broadcast_to(2 * t, (batch, 2, 4)))
                close(got["y2"], np.exp(got["y1"]))
    finally:
        registry.deregister_creator(creator)


def test_plugins_get_copies_of_constants():
    creator = ScaledCreator()
    registry = trt.get_plugin_registry()
    registry.register_creator(creator, "")
    try:
        net = Implicit()
        c = net.network.add_constant((2, 4), 3 * TABLE).get_output(0)
        layer = net.network.add_plugin_v2([net.x, c], Scaled(False, False))
        got = run(net.engine(layer.get_output(0)), 3, x=X, table=TABLE)
        close(got["y0"], X * 3 * TABLE)
    finally:
        registry.deregister_creator(creator)
