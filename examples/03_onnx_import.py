"""A network filled by the ONNX parser instead, everything as context managers."""

from __future__ import annotations

import digits

import tactician as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def main() -> None:
    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network(EXPLICIT_BATCH) as network,
        trt.OnnxParser(network, TRT_LOGGER) as parser,
    ):
        with open(digits.MODEL, "rb") as model:
            if not parser.parse(model.read()):
                for error in range(parser.num_errors):
                    print(parser.get_error(error))
                raise SystemExit("the model can't be imported")
        image, out = network.get_input(0), network.get_output(0)
        print(f"{image.name} {tuple(image.shape)} -> {out.name} {tuple(out.shape)}")
        print(*(network.get_layer(i).name for i in range(network.num_layers)))
        assert (image.name, tuple(image.shape)) == ("image", (-1, 1, 28, 28))
        assert (out.name, tuple(out.shape)) == ("probabilities", (-1, 10))

    # What is wrong with a model is said in full, not merely that something is.
    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network(EXPLICIT_BATCH) as network,
        trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR)) as parser,
    ):
        damaged = digits.MODEL.read_bytes()[:1000]
        assert not parser.parse(damaged)
        print("a damaged file:", parser.get_error(0).desc())


if __name__ == "__main__":
    main()
