"""``convert-to-uff``: TensorFlow graphs to UFF files, with the options of TensorRT's tool."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import uff


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="convert-to-uff", description="Converts a frozen TensorFlow graph to UFF.")
    p.add_argument("input_file", help="the frozen graph (.pb, .pbtxt, or a SavedModel's folder)")
    p.add_argument("-l", "--list-nodes", action="store_true", help="list the nodes and stop")
    p.add_argument("-t", "--text", action="store_true", help="write the text form, too (.pbtxt)")
    p.add_argument("--write_preprocessed", action="store_true",
                   help="write the preprocessed graph, too (.preprocessed.pb)")
    p.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
    p.add_argument("-d", "--debug", action="store_true", help="print every node converted")
    p.add_argument("-o", "--output", help="the file to write (default: the input's name, .uff)")
    p.add_argument("-O", "--output-node", action="append", default=[], metavar="NAME",
                   help="an output node (may be repeated; default: nodes that nothing reads)")
    p.add_argument("-I", "--input-node", action="append", default=[],
                   metavar="NAME,NEW_NAME,DTYPE,DIM1,DIM2,...",
                   help="put an input in place of a node (may be repeated)")
    p.add_argument("-p", "--preprocessor", metavar="FILE",
                   help="a Python file with preprocess(dynamic_graph), which changes the graph")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 done, 1 it failed, 2 wrong use."""
    args = _parser().parse_args(argv)
    output = args.output or str(Path(args.input_file).with_suffix(".uff"))
    try:
        uff.from_tensorflow_frozen_model(
            args.input_file, args.output_node, preprocessor=args.preprocessor,
            output_filename=output, write_preprocessed=args.write_preprocessed, text=args.text,
            quiet=args.quiet, debug_mode=args.debug, input_nodes=args.input_node,
            list_nodes=args.list_nodes)
    except (uff.ModelProblem, OSError) as e:
        print(f"convert-to-uff: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
