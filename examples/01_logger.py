"""Every object of the API is made from a logger: the ready one, or your own."""

from __future__ import annotations

import tactician as trt

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)


class Collector(trt.ILogger):
    """A logger of one's own derives from ILogger and has `log`."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[tuple[trt.ILogger.Severity, str]] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        self.messages.append((severity, msg))


def main() -> None:
    TRT_LOGGER.log(trt.Logger.WARNING, "this one is shown")
    TRT_LOGGER.log(trt.Logger.INFO, "this one is not: INFO is below WARNING")

    collector = Collector()
    builder = trt.Builder(collector)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    # A network without outputs can't be built. The builder says so to its logger.
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is None
    errors = [text for severity, text in collector.messages if severity == trt.Logger.ERROR]
    assert errors, "expected the builder to complain"
    print("the builder says:", errors[0])


if __name__ == "__main__":
    main()
