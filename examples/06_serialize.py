"""An engine becomes a file, and a file an engine, without building again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import digits

import tactician as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def main() -> None:
    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network(EXPLICIT_BATCH) as network,
        trt.OnnxParser(network, TRT_LOGGER) as parser,
        tempfile.TemporaryDirectory() as folder,
    ):
        assert parser.parse(digits.MODEL.read_bytes())
        network.get_input(0).shape = (8, 1, 28, 28)
        start = time.perf_counter()
        engine = builder.build_cuda_engine(network)
        print(f"built in {time.perf_counter() - start:.2f} s")

        path = Path(folder) / "lenet.plan"
        with open(path, "wb") as file:
            file.write(engine.serialize())
        print(f"{path.name}: {path.stat().st_size:,} bytes")

        start = time.perf_counter()
        with open(path, "rb") as file, trt.Runtime(TRT_LOGGER) as runtime:
            again = runtime.deserialize_cuda_engine(file.read())
        print(f"loaded in {time.perf_counter() - start:.3f} s")

        images, labels = digits.load(8)
        first, second = digits.infer(engine, images), digits.infer(again, images)
        digits.check(second, labels)
        assert (first == second).all(), "the same plan must give the same numbers"


if __name__ == "__main__":
    main()
