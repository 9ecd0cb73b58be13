"""``onnx2trt``: ONNX files to plans, with the options of onnx-tensorrt's tool."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tactician as trt

PRECISIONS = {32: None, 16: "FP16", 8: "INT8"}


class _Stop(Exception):
    """The message says what failed."""


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="onnx2trt", description="Converts ONNX models to plans.", allow_abbrev=False)
    p.add_argument("model", nargs="?", help="the ONNX file, binary or text")
    p.add_argument("-o", dest="engine", metavar="FILE", help="write the plan here")
    p.add_argument("-t", dest="text", metavar="FILE", help="write it as text, weights left out")
    p.add_argument("-T", dest="full_text", metavar="FILE", help="write it as text, all of it")
    p.add_argument("-m", dest="onnx", metavar="FILE", help="write the model as ONNX")
    p.add_argument("-b", dest="batch", type=int, default=32, metavar="N",
                   help="largest batch, where the model leaves it open (default 32)")
    p.add_argument("-w", dest="workspace", type=int, default=1 << 30, metavar="BYTES",
                   help="most scratch memory (default 1 GiB)")
    p.add_argument("-d", dest="bits", type=int, default=32, choices=sorted(PRECISIONS),
                   help="bits of the types kernels may use (default 32; 8 needs a quantized model)")
    p.add_argument("-O", dest="passes", metavar="PASSES",
                   help="run these onnxoptimizer passes first; joined by ;")
    p.add_argument("-p", dest="list_passes", action="store_true", help="list the passes and stop")
    p.add_argument("-F", dest="fixed", action="store_true", help="repeat until nothing changes")
    p.add_argument("-l", dest="layers", action="store_true", help="list layers and their shapes")
    p.add_argument("-g", dest="debug", action="store_true", help="check values while building")
    p.add_argument("-v", dest="more", action="count", default=0, help="print more")
    p.add_argument("-q", dest="less", action="count", default=0, help="print less")
    p.add_argument("-V", dest="version", action="store_true", help="print versions and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 done, 1 it failed, 2 wrong use."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.version:
            _print_versions()
        elif args.list_passes:
            print("\n".join(_optimizer().get_available_passes()))
        elif args.model is None:
            parser.error("the ONNX file is missing")
        else:
            _convert(args)
    except (_Stop, OSError) as e:
        print(f"onnx2trt: {e}", file=sys.stderr)
        return 1
    return 0


def _convert(args: argparse.Namespace) -> None:
    import tactician as trt

    severity = max(0, min(int(trt.Logger.WARNING) + args.more - args.less, 4))
    logger = _Record(trt.Logger(trt.Logger.Severity(severity)))
    talk = severity >= int(trt.Logger.WARNING)
    path = Path(args.model)
    model = _read(path)
    if args.passes is not None or args.fixed:
        run = _optimizer().optimize_fixedpoint if args.fixed else _optimizer().optimize
        model = run(model, [p for p in (args.passes or "").split(";") if p] or None)
    if talk:
        _describe(path, model)
    _write_model(args, model)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _Stop(f"{path} can't be imported:\n" + "\n".join(problems))
    if args.layers:
        _list_layers(network)
    if args.engine:
        plan = _build(builder, network, args, logger)
        from ..runtime.easy import write_atomically

        write_atomically(Path(args.engine), plan)
        if talk:
            print(f"wrote {args.engine} ({len(plan)} bytes)")


def _build(builder: trt.Builder, network: Any, args: argparse.Namespace, logger: Any) -> bytes:
    import tactician as trt

    from ..builder.easy import default_range

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, args.workspace)
    flag = PRECISIONS[args.bits]
    if flag is not None:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if args.debug:
        config.set_flag(trt.BuilderFlag.DEBUG)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        low, opt, high = default_range(shape)
        if shape[0] == -1:
            opt, high = (args.batch, *opt[1:]), (args.batch, *high[1:])
        profile.set_shape(tensor.name, low, opt, high)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _Stop("the model can't be built:\n" + "\n".join(logger.errors))
    return bytes(plan)


class _Record:
    """A logger that keeps errors for the message at the end."""

    def __new__(cls, shown: Any) -> Any:
        import tactician as trt

        class Record(trt.ILogger):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    self.errors.append(message)
                else:
                    shown.log(severity, message)

        return Record()


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        if model.graph.node or model.ir_version:
            onnx.load_external_data_for_model(model, str(path.parent))
            return model
    except DecodeError:
        pass
    try:
        return text_format.Parse(data.decode(), onnx.ModelProto())
    except (text_format.ParseError, UnicodeDecodeError):
        raise _Stop(f"{path} is no ONNX model, or it is cut off or damaged") from None


def _describe(path: Path, model: Any) -> None:
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    rows = {
        "Input filename": path, "ONNX IR version": model.ir_version, "Opset version": opsets,
        "Producer name": model.producer_name, "Producer version": model.producer_version,
        "Domain": model.domain, "Model version": model.model_version,
        "Doc string": model.doc_string,
    }
    print("\n".join(f"{k + ':':18}{v}".rstrip() for k, v in rows.items()))


def _write_model(args: argparse.Namespace, model: Any) -> None:
    from google.protobuf import text_format

    from ..runtime.easy import write_atomically

    if args.onnx:
        write_atomically(Path(args.onnx), model.SerializeToString())
    if args.full_text:
        write_atomically(Path(args.full_text), text_format.MessageToString(model).encode())
    if args.text:
        bare = type(model)()
        bare.CopyFrom(model)
        for tensor in bare.graph.initializer:
            kept = (tensor.name, tensor.data_type, list(tensor.dims))
            tensor.Clear()
            tensor.name, tensor.data_type = kept[:2]
            tensor.dims.extend(kept[2])
        write_atomically(Path(args.text), text_format.MessageToString(bare).encode())


def _list_layers(network: Any) -> None:
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        outs = [layer.get_output(k) for k in range(layer.num_outputs)]
        shapes = ", ".join(f"{t.name} {tuple(t.shape)}" for t in outs if t is not None)
        print(f"{i:4} {layer.type.name:18} {layer.name} -> {shapes}")


def _optimizer() -> Any:
    try:
        import onnxoptimizer
    except ImportError:
        raise _Stop("-O, -F and -p need the package onnxoptimizer; pip install onnxoptimizer. "
                    "(Plans need no such passes: the builder has its own)") from None
    return onnxoptimizer


def _print_versions() -> None:
    import onnx

    import tactician as trt

    print(f"TensorRT API version:  {trt.__version__}")
    print(f"ONNX version:          {onnx.__version__}")


if __name__ == "__main__":
    sys.exit(main())
