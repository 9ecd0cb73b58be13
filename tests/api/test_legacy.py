"""What versions 5 to 8 had, as NVIDIA documented it: implicit batch, bindings, recurrent layers,
settings on the builder, calibrators, value classes."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Log, Net, close, f32

import tactician as trt
from tactician.driver import Stream

G = trt.RNNGateType


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Cells:
    """Recurrent cells step by step, from weights by gate: w, r [hidden, size], wb, rb [hidden]."""

    def __init__(self, op, size, hidden, seed=0):
        self.op, self.hidden = op, hidden
        gates = {trt.RNNOperation.LSTM: (G.INPUT, G.OUTPUT, G.FORGET, G.CELL),
                 trt.RNNOperation.GRU: (G.UPDATE, G.RESET, G.HIDDEN)}.get(op, (G.INPUT,))
        self.gates = gates
        self.w = {g: f32(hidden, size, seed=seed + g.value) / 2 for g in gates}
        self.r = {g: f32(hidden, hidden, seed=seed + 10 + g.value) / 2 for g in gates}
        self.wb = {g: f32(hidden, seed=seed + 20 + g.value) for g in gates}
        self.rb = {g: f32(hidden, seed=seed + 30 + g.value) for g in gates}

    def set(self, layer, index):
        for g in self.gates:
            for is_w, w, b in ((True, self.w, self.wb), (False, self.r, self.rb)):
                layer.set_weights_for_gate(index, g, is_w, w[g])
                layer.set_bias_for_gate(index, g, is_w, b[g])

    def packed(self, order):
        """Matrices of all gates, then biases, as `add_rnn` takes them."""
        return (np.concatenate([d[g].reshape(-1) for d in (self.w, self.r) for g in order]),
                np.concatenate([d[g] for d in (self.wb, self.rb) for g in order]))

    def run(self, x, h=None, c=None, skip=False, lens=None):
        """(all states, last hidden, last cell) of one sequence [time, size]."""
        h = np.zeros(self.hidden) if h is None else h
        c = np.zeros(self.hidden) if c is None else c
        out = np.zeros((len(x), self.hidden))
        for t in range(len(x) if lens is None else lens):
            xw = {g: (x[t] if skip else self.w[g] @ x[t]) + self.wb[g] for g in self.gates}
            hr = {g: self.r[g] @ h + self.rb[g] for g in self.gates}
            s = {g: xw[g] + hr[g] for g in self.gates}
            if self.op == trt.RNNOperation.LSTM:
                c = sigmoid(s[G.FORGET]) * c + sigmoid(s[G.INPUT]) * np.tanh(s[G.CELL])
                h = sigmoid(s[G.OUTPUT]) * np.tanh(c)
            elif self.op == trt.RNNOperation.GRU:
                r, z = sigmoid(s[G.RESET]), sigmoid(s[G.UPDATE])
                h = (1 - z) * np.tanh(xw[G.HIDDEN] + r * hr[G.HIDDEN]) + z * h
            else:
                act = np.tanh if self.op == trt.RNNOperation.TANH else lambda v: np.maximum(v, 0)
                h = act(s[G.INPUT])
            out[t] = h
        return out, h, c


class TestRecurrentLayers:
    @pytest.mark.parametrize("op", [trt.RNNOperation.RELU, trt.RNNOperation.TANH,
                                    trt.RNNOperation.LSTM, trt.RNNOperation.GRU])
    def test_two_layers(self, op):
        x = f32(2, 5, 3)
        cells = [Cells(op, 3, 4), Cells(op, 4, 4, seed=50)]
        net = Net()
        layer = net.network.add_rnn_v2(net.input(x), 2, 4, 5, op)
        assert (layer.num_layers, layer.hidden_size, layer.max_seq_length) == (2, 4, 5)
        assert layer.data_length == 3 and layer.op == op
        assert layer.direction == trt.RNNDirection.UNIDIRECTION
        assert layer.input_mode == trt.RNNInputMode.LINEAR
        for i, cell in enumerate(cells):
            cell.set(layer, i)
        g = cells[1].gates[0]
        np.testing.assert_array_equal(layer.get_weights_for_gate(1, g, False),
                                      cells[1].r[g].reshape(-1))
        np.testing.assert_array_equal(layer.get_bias_for_gate(1, g, True), cells[1].wb[g])
        count = 3 if op == trt.RNNOperation.LSTM else 2
        assert layer.num_outputs == count
        got = net.run(*(layer.get_output(i) for i in range(count)))
        for b in range(2):
            first = cells[0].run(x[b])
            second = cells[1].run(first[0])
            close(got[0][b], second[0])
            close(got[1][b], [first[1], second[1]])
            if count == 3:
                close(got[2][b], [first[2], second[2]])

    def test_directions_lengths_and_first_states(self):
        op, x, lens = trt.RNNOperation.LSTM, f32(2, 5, 3), np.array([5, 3], np.int32)
        h, c = f32(2, 2, 4), f32(2, 2, 4, seed=1)
        cells = [Cells(op, 3, 4), Cells(op, 3, 4, seed=50)]
        net = Net()
        layer = net.network.add_rnn_v2(net.input(x), 1, 4, 5, op)
        layer.op = trt.RNNOperation.LSTM
        layer.direction = trt.RNNDirection.BIDIRECTION
        layer.seq_lengths = net.input(lens)
        layer.hidden_state, layer.cell_state = net.input(h), net.input(c)
        assert [t.name for t in (layer.seq_lengths, layer.hidden_state, layer.cell_state)] == [
            "in1", "in2", "in3"]
        for i, cell in enumerate(cells):
            cell.set(layer, i)
        y = net.run(layer.get_output(0))
        for b, n in enumerate(lens):
            ahead = cells[0].run(x[b], h[b, 0], c[b, 0], lens=n)[0]
            back = cells[1].run(x[b, :n][::-1], h[b, 1], c[b, 1])[0][::-1]
            close(y[b, :n], np.concatenate([ahead[:n], back], 1))

    def test_skipping_the_input_product(self):
        x = f32(1, 4, 3)
        cell = Cells(trt.RNNOperation.TANH, 3, 3)
        net = Net()
        layer = net.network.add_rnn_v2(net.input(x), 1, 3, 4, trt.RNNOperation.TANH)
        layer.input_mode = trt.RNNInputMode.SKIP
        cell.set(layer, 0)
        close(net.run(layer.get_output(0))[0], cell.run(x[0], skip=True)[0])

    @pytest.mark.parametrize("op, order", [
        (trt.RNNOperation.LSTM, (G.FORGET, G.INPUT, G.CELL, G.OUTPUT)),
        (trt.RNNOperation.GRU, (G.UPDATE, G.RESET, G.HIDDEN)),
        (trt.RNNOperation.TANH, (G.INPUT,)),
    ])
    def test_packed_weights(self, op, order):
        x, cell = f32(2, 5, 3), Cells(op, 3, 4)
        weights, bias = cell.packed(order)
        net = Net()
        layer = net.network.add_rnn(
            net.input(x), 1, 4, 5, op, trt.RNNInputMode.LINEAR, trt.RNNDirection.UNIDIRECTION,
            np.zeros_like(weights), np.zeros_like(bias))
        assert type(layer) is trt.IRNNLayer and layer.type == trt.LayerType.RNN
        layer.weights, layer.bias = weights, bias
        np.testing.assert_array_equal(layer.weights, weights)
        np.testing.assert_array_equal(layer.bias, bias)
        assert (layer.op, layer.hidden_size, layer.num_layers) == (op, 4, 1)
        assert (layer.max_seq_length, layer.data_length) == (5, 3)
        assert layer.direction == trt.RNNDirection.UNIDIRECTION
        assert layer.input_mode == trt.RNNInputMode.LINEAR
        assert layer.hidden_state is None and layer.cell_state is None
        y = net.run(layer.get_output(0))
        for b in range(2):
            close(y[b], cell.run(x[b])[0])


class TestImplicitBatch:
    """The batch is not part of shapes; `execute` says how many there are."""

    def engine(self, most=4):
        log = Log()
        builder = trt.Builder(log)
        network = trt.INetworkDefinition(0, log, builder, implicit_batch=True)
        assert network.has_implicit_batch_dimension and not network.has_explicit_precision
        builder.max_batch_size, builder.max_workspace_size = most, 1 << 20
        builder.average_find_iterations, builder.min_find_iterations = 4, 2
        builder.strict_type_constraints = builder.refittable = builder.debug_sync = False
        x = network.add_input("x", trt.float32, (2, 4, 4))
        conv = network.add_convolution(x, 3, trt.DimsHW(3, 3), f32(3, 2, 3, 3), f32(3))
        pool = network.add_pooling(conv.get_output(0), trt.PoolingType.AVERAGE, trt.DimsHW(2, 2))
        fc = network.add_fully_connected(pool.get_output(0), 5, f32(5, 3), f32(5))
        assert tuple(fc.get_output(0).shape) == (5, 1, 1)
        fc.get_output(0).name = "y"
        network.mark_output(fc.get_output(0))
        engine = builder.build_cuda_engine(network)
        assert engine is not None, log.errors
        return engine, log

    def want(self, x):
        y = np.zeros((len(x), 3, 2, 2))
        for i in range(3):
            for j in range(3):
                y += np.einsum("nchw,oc->nohw", x[:, :, i:i + 2, j:j + 2],
                               f32(3, 2, 3, 3)[:, :, i, j])
        pooled = (y + f32(3)[:, None, None]).mean((2, 3))
        return (pooled @ f32(5, 3).T + f32(5))[..., None, None]

    @pytest.mark.parametrize("batch", [1, 3, 4])
    def test_execute(self, batch):
        engine, _ = self.engine()
        assert engine.max_batch_size == 4 and engine.has_implicit_batch_dimension
        assert engine.max_workspace_size == 1 << 20
        x, y = f32(batch, 2, 4, 4), np.zeros((batch, 5, 1, 1), np.float32)
        context = engine.create_execution_context()
        assert context.execute(batch, [x.ctypes.data, y.ctypes.data])
        close(y, self.want(x))
        y[...] = 0
        stream, consumed = Stream(), trt.driver.Event()
        assert context.execute_async(batch, [x.ctypes.data, y.ctypes.data], stream.handle,
                                     consumed.handle)
        stream.synchronize()
        assert consumed.query()
        close(y, self.want(x))

    def test_too_many(self):
        engine, log = self.engine()
        x = f32(5, 2, 4, 4)
        context = engine.create_execution_context()
        assert not context.execute(5, [x.ctypes.data, x.ctypes.data])
        assert "max_batch_size 4" in log.errors

    def test_shapes_lack_the_batch(self):
        engine, _ = self.engine()
        assert tuple(engine.get_binding_shape("x")) == (2, 4, 4)
        assert engine.get_binding_dtype(0) == trt.float32 and engine.binding_is_input("x")
        assert engine["y"] == 1 and engine[0] == "x" and list(engine) == ["x", "y"]
        assert [tuple(d) for d in engine.get_profile_shape(0, "x")][2] == (2, 4, 4)


class TestBindings:
    def test_dynamic_shapes_by_binding(self):
        net = Net()
        x = net.input(f32(3, 2), "x", (-1, 2))
        net.profile.set_shape("x", (1, 2), (3, 2), (8, 2))
        engine = net.engine(net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0))
        context = engine.create_execution_context()
        assert not context.all_binding_shapes_specified
        assert context.set_binding_shape(0, (5, 2)) and context.all_binding_shapes_specified
        assert context.all_shape_inputs_specified
        assert tuple(context.get_binding_shape(1)) == (5, 2)
        x, y = f32(5, 2), np.zeros((5, 2), np.float32)
        stream = Stream()
        assert context.execute_async_v2([x.ctypes.data, y.ctypes.data], stream.handle)
        stream.synchronize()
        close(y, np.exp(x))
        assert not context.set_binding_shape(0, (9, 2)) and "goes from" in net.log.errors

    def test_profile_choice_of_version_7(self):
        net = Net()
        x = net.input(f32(3, 2), "x", (-1, 2))
        second = net.builder.create_optimization_profile()
        second.set_shape("x", (4, 2), (6, 2), (8, 2))
        net.config.add_optimization_profile(second)
        engine = net.engine(net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0))
        context = engine.create_execution_context()
        context.active_optimization_profile = 1
        assert context.active_optimization_profile == 1 and context.set_binding_shape(2, (6, 2))
        assert tuple(engine.get_profile_shape(1, "x")[1]) == (6, 2)
        data, y = f32(6, 2), np.zeros((6, 2), np.float32)
        assert context.execute_v2([0, 0, data.ctypes.data, y.ctypes.data])
        close(y, np.exp(data))


class TestBuilderSettings:
    @pytest.mark.parametrize("name, flag", [
        ("fp16_mode", trt.BuilderFlag.FP16), ("int8_mode", trt.BuilderFlag.INT8),
        ("strict_type_constraints", trt.BuilderFlag.STRICT_TYPES),
        ("refittable", trt.BuilderFlag.REFIT), ("debug_sync", trt.BuilderFlag.DEBUG),
    ])
    def test_flags(self, name, flag):
        builder = trt.Builder(Log())
        setattr(builder, name, True)
        assert getattr(builder, name) and builder._config.get_flag(flag)
        setattr(builder, name, False)
        assert not builder._config.get_flag(flag)

    def test_numbers_that_change_nothing_are_logged(self):
        net = Net()
        y = net.network.add_unary(net.input(f32(2), "x"), trt.UnaryOperation.EXP).get_output(0)
        net.network.mark_output(y)
        net.builder.average_find_iterations, net.builder.min_find_iterations = 8, 3
        assert (net.builder.average_find_iterations, net.builder.min_find_iterations) == (8, 3)
        assert net.builder.build_cuda_engine(net.network) is not None
        text = net.log.text()
        assert "avg_timing_iterations has no effect" in text
        assert "min_timing_iterations has no effect" in text

    def test_build_engine(self):
        net = Net()
        net.config.max_workspace_size, net.config.min_timing_iterations = 1 << 22, 2
        y = net.network.add_unary(net.input(f32(2), "x"), trt.UnaryOperation.EXP).get_output(0)
        net.network.mark_output(y)
        engine = net.builder.build_engine(net.network, net.config)
        assert engine.max_workspace_size == 1 << 22 and engine.max_batch_size == 1

    def test_refittable_engines(self):
        net = Net()
        w = f32(2, 2)
        n = trt.MatrixOperation.NONE
        k = net.network.add_constant((2, 2), w)
        k.name = "k"
        y = net.network.add_matrix_multiply(net.input(f32(1, 2), "x"), n, k.get_output(0), n)
        y.get_output(0).name = "y"
        net.network.mark_output(y.get_output(0))
        net.builder.refittable = True
        engine = net.builder.build_cuda_engine(net.network)
        with trt.Refitter(engine, net.log) as refitter:
            assert refitter.set_weights("k", trt.WeightsRole.CONSTANT, 3 * w)
            assert refitter.refit_cuda_engine()
        close(trt.Engine(engine)(f32(1, 2))["y"], f32(1, 2) @ (3 * w))


class TestCalibrators:
    """All four feed batches, keep a cache and read it."""

    @pytest.mark.parametrize("base, algorithm", [
        (trt.IInt8LegacyCalibrator, trt.CalibrationAlgoType.LEGACY_CALIBRATION),
        (trt.IInt8EntropyCalibrator, trt.CalibrationAlgoType.ENTROPY_CALIBRATION),
        (trt.IInt8EntropyCalibrator2, trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2),
        (trt.IInt8MinMaxCalibrator, trt.CalibrationAlgoType.MINMAX_CALIBRATION),
        (trt.IInt8Calibrator, trt.CalibrationAlgoType.MINMAX_CALIBRATION),
    ])
    def test_calibrator(self, base, algorithm):
        plain = base is trt.IInt8Calibrator

        class Mine(base):
            def __init__(self, cache=None):
                base.__init__(self)
                self.cache, self.left, self.asked = cache, 3, 0
                self.batch = f32(8, 16)

            def get_algorithm(self):
                return algorithm if plain else base.get_algorithm(self)

            def get_batch_size(self):
                self.asked += 1
                return 8

            def get_batch(self, names):
                assert names == ["x"]
                self.left -= 1
                self.batch = f32(8, 16, seed=self.left)
                return [self.batch.ctypes.data] if self.left >= 0 else None

            def read_calibration_cache(self):
                return self.cache

            def write_calibration_cache(self, cache):
                self.cache = bytes(cache)

        def build(calibrator):
            net = Net()
            n = trt.MatrixOperation.NONE
            x = net.input(f32(8, 16), "x")
            y = net.network.add_matrix_multiply(x, n, net.const(f32(16, 96)), n).get_output(0)
            net.config.set_flag(trt.BuilderFlag.INT8)
            net.config.int8_calibrator = calibrator
            return net.run(y), net

        first = Mine()
        assert first.get_algorithm() == algorithm and first.get_batch_size() == 8
        y, _ = build(first)
        assert first.left == -1 and b"x: " in first.cache
        want = f32(8, 16) @ f32(16, 96)
        assert 0 < abs(y - want).max() < 0.15 * abs(want).max()
        second = Mine(first.cache)
        again, _ = build(second)
        assert second.left == 3
        np.testing.assert_array_equal(again, y)


class TestValues:
    def test_dimension_types(self):
        kind = trt.DimensionType
        chw, nchw = trt.DimsCHW(3, 4, 5), trt.DimsNCHW(2, 3, 4, 5)
        assert (chw.c, chw.h, chw.w) == (3, 4, 5)
        assert (nchw.n, nchw.c, nchw.h, nchw.w) == (2, 3, 4, 5)
        assert [chw.get_type(i) for i in range(3)] == [kind.CHANNEL, kind.SPATIAL, kind.SPATIAL]
        assert [nchw.get_type(i) for i in range(2)] == [kind.INDEX, kind.CHANNEL]
        assert trt.Dims((1, 2)).get_type(1) == kind.SPATIAL and kind.SEQUENCE != kind.SPATIAL
        chw.h = 9
        assert tuple(chw) == (3, 9, 5) and trt.Dims.MAX_DIMS == 8
        hw = trt.DimsHW(1, 2)
        hw.w = 7
        assert (hw.h, hw.w) == (1, 7)
        assert [len(k(range(n))) for n, k in ((2, trt.Dims2), (3, trt.Dims3), (4, trt.Dims4))] == [
            2, 3, 4]

    def test_fields_of_uff_operators(self):
        field = trt.FieldMap("axis", np.int32([1]), trt.FieldType.INT32, 1)
        assert (field.name, field.type, field.length) == ("axis", trt.FieldType.INT32, 1)
        assert field.data.tolist() == [1]
        collection = trt.FieldCollection([field, field])
        assert collection.num_fields == 2 and collection.fields[0] is field

    def test_shutdown(self):
        assert trt.shutdown_protobuf_library() is None
        assert trt.volume((2, 3, 4)) == 24 and trt.nptype(trt.float32) is np.float32

    def test_with(self):
        thing = object()
        assert trt.common_enter(thing) is thing
        assert trt.common_exit(thing, None, None, None) is None
