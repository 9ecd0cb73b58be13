"""``import tactician.uff as uff``: TensorFlow graphs to UFF files, with the functions of the `uff`
package that came with TensorRT 3 to 7."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .parsers.onnx.errors import ModelProblem
from .parsers.tensorflow.graph import load
from .parsers.tensorflow.surgery import DynamicGraph
from .parsers.uff.convert import Converter
from .parsers.uff.file import to_bytes, to_text
from .support import logger as log

__all__ = ["ModelProblem", "from_tensorflow", "from_tensorflow_frozen_model"]


def from_tensorflow(
    graphdef: Any,
    output_nodes: Sequence[str] = (),
    preprocessor: str | os.PathLike[str] | Callable[[DynamicGraph], None] | None = None,
    output_filename: str | os.PathLike[str] | None = None,
    write_preprocessed: bool = False,
    text: bool = False,
    quiet: bool = False,
    debug_mode: bool = False,
    return_graph_info: bool = False,
    input_nodes: Sequence[str] = (),
    list_nodes: bool = False,
) -> Any:
    """Converts a frozen graph to UFF.

    Args:
        graphdef: A ``GraphDef`` (TensorFlow's or this package's), bytes, or a file.
        output_nodes: Names of output nodes; by default those that nothing reads.
        preprocessor: A Python file that defines ``preprocess(dynamic_graph)``, or such a function;
            it changes the graph in place.
        output_filename: The file to write.
        write_preprocessed: Whether the preprocessed graph is written too, beside the output.
        text: Whether the text form is written too (``.pbtxt`` beside the output).
        quiet: Whether to print nothing but problems.
        debug_mode: Whether to print each node as it is converted.
        return_graph_info: Whether to return ``(bytes, input nodes, output nodes)``.
        input_nodes: Placeholders to put in place of nodes: ``"name,new_name,dtype,dim1,dim2,..."``.
        list_nodes: Only print the graph's nodes.

    Returns:
        The UFF file's bytes, or what ``return_graph_info`` says; None with ``list_nodes``.

    Raises:
        ModelProblem: If the graph can't be read or converted, with every reason.
    """
    graph = DynamicGraph(load(graphdef))
    if preprocessor is not None:
        _preprocess(graph, preprocessor)
    for spec in input_nodes:
        _replace_input(graph, spec)
    if list_nodes:
        for k, node in enumerate(graph):
            print(f"{k} {node.op}: \"{node.name}\"")
        return None
    if write_preprocessed:
        if output_filename is None:
            raise ModelProblem("write_preprocessed needs output_filename, beside which it writes")
        path = Path(output_filename).with_suffix(".preprocessed.pb")
        graph.write(path)
        _say(quiet, f"preprocessed graph written to {path}")
    converter = Converter(graph.as_graph_def(), list(output_nodes))
    meta = converter.run()
    _report(converter, meta, quiet, debug_mode)
    data = to_bytes(meta)
    if output_filename is not None:
        _write(Path(output_filename), data, meta, text, quiet)
    elif text:
        raise ModelProblem("text needs output_filename, beside which it writes")
    if return_graph_info:
        nodes = graph.node_map
        return (data, [nodes[n] for n in converter.inputs], [nodes[n] for n in converter.outputs])
    return data


def from_tensorflow_frozen_model(
    frozen_file: str | os.PathLike[str], output_nodes: Sequence[str] = (), **options: Any
) -> Any:
    """Converts a frozen graph's file; options as for `from_tensorflow`."""
    return from_tensorflow(frozen_file, output_nodes, **options)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text)


def _preprocess(graph: DynamicGraph, preprocessor: Any) -> None:
    function = preprocessor
    if not callable(preprocessor):
        function = runpy.run_path(os.fspath(preprocessor)).get("preprocess")
        if function is None:
            raise ModelProblem(f"{preprocessor} defines no function preprocess(dynamic_graph)")
    function(graph)


def _replace_input(graph: DynamicGraph, spec: str) -> None:
    """Puts a placeholder in place of a node."""
    from .graphsurgeon import create_node

    parts = [p.strip() for p in spec.split(",")]
    if len(parts) < 4:
        raise ModelProblem(f"input {spec!r}: expected NAME,NEW_NAME,DTYPE,DIM1,DIM2,...")
    name, new_name, kind, *sizes = parts
    if name not in graph.node_map:
        raise ModelProblem(f"input {spec!r}: the graph has no node {name!r}")
    import numpy as np

    try:
        dt = np.dtype(kind.removeprefix("np.").removeprefix("tf."))
        shape = [int(s) for s in sizes]
    except (TypeError, ValueError) as e:
        raise ModelProblem(f"input {spec!r}: {e}") from None
    node = create_node(new_name, "Placeholder", dtype=dt, shape=shape)
    graph.collapse_namespaces({name: node})
    for made in graph.find_nodes_by_name(new_name):
        del made.input[:]


def _report(converter: Converter, meta: Any, quiet: bool, debug: bool) -> None:
    for op in dict.fromkeys(converter.custom):
        log.warning(f"UFF has no operation for {op}; it is written as the custom operation _{op}")
    if debug:
        for node in meta.graphs[0].nodes:
            print(f"{node.operation} {node.id!r}: {', '.join(node.inputs)}")
    _say(quiet, f"{len(meta.graphs[0].nodes)} nodes; inputs {', '.join(converter.inputs)}; outputs "
         f"{', '.join(converter.outputs)}")


def _write(path: Path, data: bytes, meta: Any, text: bool, quiet: bool) -> None:
    path.write_bytes(data)
    _say(quiet, f"UFF written to {path}")
    if text:
        readable = path.with_suffix(".pbtxt")
        readable.write_text(to_text(meta))
        _say(quiet, f"text form written to {readable}")
