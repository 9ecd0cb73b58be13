"""From a network to an engine, in the spelling of TensorRT 5 and in that of TensorRT 7."""

from __future__ import annotations

import digits

import tactician as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def parse(network: trt.INetworkDefinition) -> None:
    """Import the shipped LeNet for one image at a time."""
    with trt.OnnxParser(network, TRT_LOGGER) as parser:
        assert parser.parse(digits.MODEL.read_bytes())
    network.get_input(0).shape = (1, 1, 28, 28)


def main() -> None:
    image, label = digits.load(1)
    with trt.Builder(TRT_LOGGER) as builder, builder.create_network(EXPLICIT_BATCH) as network:
        parse(network)
        # TensorRT 5: the builder itself holds the settings.
        builder.max_batch_size = 1
        builder.max_workspace_size = 1 << 28
        with builder.build_cuda_engine(network) as engine:
            print("build_cuda_engine:", [engine[i] for i in range(engine.num_bindings)])
            digits.check(digits.infer(engine, image), label)

    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network(EXPLICIT_BATCH) as network,
        builder.create_builder_config() as config,
    ):
        parse(network)
        # TensorRT 7 and later: a configuration object does.
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
        with builder.build_engine(network, config) as engine:
            print("build_engine:", engine.num_layers, "steps")
            digits.check(digits.infer(engine, image), label)


if __name__ == "__main__":
    main()
