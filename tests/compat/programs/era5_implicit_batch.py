"""A digit classifier by hand with an implicit batch, as programs for TensorRT 5 were written."""

import common_buffers as common
import numpy as np
import tensorrt as trt

LOGGER = trt.Logger(trt.Logger.WARNING)
rng = np.random.default_rng(5)
W = {
    "conv": rng.standard_normal((4, 1, 3, 3), np.float32),
    "conv_b": rng.standard_normal(4, np.float32),
    "fc": rng.standard_normal((10, 4 * 5 * 5), np.float32) / 10,
    "fc_b": rng.standard_normal(10, np.float32),
}


def build_engine():
    with trt.Builder(LOGGER) as builder, builder.create_network() as network:
        builder.max_batch_size = 4
        builder.max_workspace_size = 1 << 20
        data = network.add_input(name="data", dtype=trt.float32, shape=(1, 12, 12))
        conv = network.add_convolution(data, 4, (3, 3), W["conv"], W["conv_b"])
        conv.stride = (1, 1)
        relu = network.add_activation(conv.get_output(0), trt.ActivationType.RELU)
        pool = network.add_pooling(relu.get_output(0), trt.PoolingType.MAX, (2, 2))
        pool.stride = (2, 2)
        fc = network.add_fully_connected(pool.get_output(0), 10, W["fc"], W["fc_b"])
        prob = network.add_softmax(fc.get_output(0))
        prob.get_output(0).name = "prob"
        network.mark_output(tensor=prob.get_output(0))
        return builder.build_cuda_engine(network)


def reference(x):
    y = np.zeros((len(x), 4, 10, 10), np.float32)
    for i in range(3):
        for j in range(3):
            y += np.einsum("nchw,oc->nohw", x[:, :, i:i + 10, j:j + 10], W["conv"][:, :, i, j])
    y = np.maximum(y + W["conv_b"][:, None, None], 0)
    y = y.reshape(len(x), 4, 5, 2, 5, 2).max((3, 5)).reshape(len(x), -1)
    z = y @ W["fc"].T + W["fc_b"]
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


with build_engine() as engine:
    plan = engine.serialize()
with trt.Runtime(LOGGER) as runtime, runtime.deserialize_cuda_engine(plan) as engine:
    assert engine.max_batch_size == 4 and engine.has_implicit_batch_dimension
    assert tuple(engine.get_binding_shape("data")) == (1, 12, 12)
    inputs, outputs, bindings, stream = common.allocate_buffers(engine)
    x = rng.standard_normal((3, 1, 12, 12), np.float32)
    with engine.create_execution_context() as context:
        np.copyto(inputs[0].host[:x.size], x.ravel())
        [out] = common.do_inference(context, bindings, inputs, outputs, stream, batch_size=3)
    np.testing.assert_allclose(out[:30].reshape(3, 10), reference(x), rtol=1e-4, atol=1e-5)
print("OK")
