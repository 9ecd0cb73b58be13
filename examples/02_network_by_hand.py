"""A Builder, and a network filled layer by layer with weights from numpy arrays."""

from __future__ import annotations

import digits
import numpy as np
import onnx
from onnx import numpy_helper

import tactician as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)


def weights() -> dict[str, np.ndarray]:
    """The trained weights of the shipped LeNet, by name."""
    graph = onnx.load(digits.MODEL).graph
    return {w.name: numpy_helper.to_array(w) for w in graph.initializer}


def dense(
    network: trt.INetworkDefinition, x: trt.ITensor, w: np.ndarray, b: np.ndarray
) -> trt.ITensor:
    """x @ w.T + b, out of three layers."""
    matrix = network.add_constant(w.shape, trt.Weights(np.ascontiguousarray(w))).get_output(0)
    product = network.add_matrix_multiply(
        x, trt.MatrixOperation.NONE, matrix, trt.MatrixOperation.TRANSPOSE
    ).get_output(0)
    bias = network.add_constant((1, len(b)), trt.Weights(np.ascontiguousarray(b))).get_output(0)
    return network.add_elementwise(product, bias, trt.ElementWiseOperation.SUM).get_output(0)


def populate(network: trt.INetworkDefinition, w: dict[str, np.ndarray]) -> None:
    """Fill the network: conv, pool, conv, pool, dense, ReLU, dense, softmax."""
    x = network.add_input(name="image", dtype=trt.float32, shape=(5, 1, 28, 28))
    for name, maps in (("conv1", 12), ("conv2", 24)):
        conv = network.add_convolution_nd(
            input=x,
            num_output_maps=maps,
            kernel_shape=(5, 5),
            kernel=w[f"{name}.weight"],
            bias=w[f"{name}.bias"],
        )
        conv.stride_nd = (1, 1)
        conv.name = name
        pool = network.add_pooling_nd(
            input=conv.get_output(0), type=trt.PoolingType.MAX, window_size=(2, 2)
        )
        pool.stride_nd = (2, 2)
        x = pool.get_output(0)
    flat = network.add_shuffle(x)
    flat.reshape_dims = (5, 24 * 4 * 4)
    x = dense(network, flat.get_output(0), w["fc1.weight"], w["fc1.bias"])
    x = network.add_activation(x, type=trt.ActivationType.RELU).get_output(0)
    x = dense(network, x, w["fc2.weight"], w["fc2.bias"])
    softmax = network.add_softmax(x)
    softmax.axes = 1 << 1
    softmax.get_output(0).name = "probabilities"
    network.mark_output(tensor=softmax.get_output(0))


def main() -> None:
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    with trt.Builder(TRT_LOGGER) as builder, builder.create_network(flags) as network:
        populate(network, weights())
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            print(f"{layer.name:34s} {tuple(layer.get_output(0).shape)}")
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(TRT_LOGGER).deserialize_cuda_engine(plan)
    images, labels = digits.load(5)
    digits.check(digits.infer(engine, images), labels)


if __name__ == "__main__":
    main()
