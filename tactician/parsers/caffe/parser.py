"""`CaffeParser`: Caffe models into an `INetworkDefinition`, with the API of TensorRT 5 to 8."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...network.enums import DataType
from ...network.enums_build import ErrorCodeTRT
from ...network.network import INetworkDefinition
from ...network.tensor import ITensor
from ...support import logger as log
from .errors import CaffeProblem
from .net import NetImport
from .plugins import PluginFactories
from .text import read_prototxt
from .weights import read_blob, read_caffemodel

Array = np.ndarray[Any, Any]


class IBlobNameToTensor:
    """Finds the tensors of a parsed net by the names of blobs."""

    def __init__(self, network: INetworkDefinition, blobs: dict[str, Value], results: list[str]):
        self._network, self._blobs, self._results = network, blobs, results

    def find(self, name: str) -> ITensor | None:
        """The tensor of a blob as the last layer leaves it, or None (and an error is logged)."""
        v = self._blobs.get(name)
        if v is None:
            close = ", ".join(sorted(self._blobs)[:20])
            self._network._error(f"find: the net has no blob {name!r}; it has {close}")
            return None
        return self._network._tensor(v)

    @property
    def results(self) -> list[str]:
        """Names of blobs that no layer reads: what Caffe gives as the net's results."""
        return list(self._results)

    def __repr__(self) -> str:
        return f"<IBlobNameToTensor {len(self._blobs)} blobs, results {self._results}>"


class CaffeParser:
    """Parses Caffe models into a network. Usable as a context manager.

    Works with implicit and explicit batch: with implicit batch the first dimension of the
    prototxt's inputs is left to run time. Outputs are not marked: find their tensors by name and
    call ``network.mark_output``. All problems of a model are logged together, each with layer,
    type, line, bottoms and what to do, and reported to `error_recorder`.

    Attributes:
        plugin_factory, plugin_factory_ext, plugin_factory_v2: Make layers that are plugins.
        plugin_namespace: Namespace given to plugins that have none.
        protobuf_buffer_size: Largest file to read, in bytes.
        error_recorder: Receives problems.
        problems: Texts of what the last parse found wrong.
    """

    plugin_factory: Any
    plugin_factory_ext: Any
    plugin_factory_v2: Any
    plugin_namespace: str
    protobuf_buffer_size: int
    error_recorder: Any

    def __init__(self) -> None:
        self.plugin_factory = self.plugin_factory_ext = self.plugin_factory_v2 = None
        self.plugin_namespace = ""
        self.protobuf_buffer_size = (1 << 31) - 1
        self.error_recorder = None
        self.problems: list[str] = []

    def __enter__(self) -> CaffeParser:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    def set_protobuf_buffer_size(self, size: int) -> None:
        """Sets `protobuf_buffer_size`."""
        self.protobuf_buffer_size = size

    def parse(self, deploy: str, model: str | None, network: INetworkDefinition,
              dtype: DataType = DataType.FLOAT) -> IBlobNameToTensor | None:
        """Parses a model from files.

        Args:
            deploy: The prototxt.
            model: The caffemodel; None makes up weights (for measuring speed).
            network: Receives inputs and layers.
            dtype: FLOAT, or HALF to round weights to half precision.

        Returns:
            The tensors by blob name, or None if there were problems; see the log.
        """
        try:
            text = self._read(deploy)
            data = None if model is None else self._read(model)
        except CaffeProblem as e:
            return self._fail([str(e)], network)
        return self._parse(text, data, network, dtype, os.path.basename(os.fspath(deploy)),
                           "" if model is None else os.path.basename(os.fspath(model)))

    def parse_buffer(self, deploy_buffer: Any, model_buffer: Any, network: INetworkDefinition,
                     dtype: DataType = DataType.FLOAT) -> IBlobNameToTensor | None:
        """Parses a model from memory; see `parse`."""
        data = None if model_buffer is None else bytes(model_buffer)
        text = deploy_buffer.encode() if isinstance(deploy_buffer, str) else bytes(deploy_buffer)
        return self._parse(text, data, network, dtype, "the prototxt", "the caffemodel")

    parse_buffers = parse_buffer

    def parse_binary_proto(self, filename: str) -> Array | None:
        """Reads a file with one blob, such as a mean image, as an f32 array; None (and an error
        is logged) if it can't be read."""
        try:
            blob = read_blob(self._read(filename), os.path.basename(os.fspath(filename)))
        except CaffeProblem as e:
            return self._fail([str(e)], None)
        return np.array(blob, dtype=np.float32)

    # --- inside ---------------------------------------------------------------------------------

    def _read(self, path: str) -> bytes:
        try:
            size = os.path.getsize(path)
            if size > self.protobuf_buffer_size:
                raise CaffeProblem(f"{path} has {size:,} bytes, protobuf_buffer_size allows "
                                   f"{self.protobuf_buffer_size:,}; set it higher")
            with open(path, "rb") as file:
                return file.read()
        except OSError as e:
            raise CaffeProblem(f"{path} can't be read: {e.strerror}") from None

    def _parse(self, text: bytes, data: bytes | None, network: INetworkDefinition,
               dtype: DataType, where: str, model: str) -> IBlobNameToTensor | None:
        if not isinstance(network, INetworkDefinition):
            raise TypeError(f"network must be an INetworkDefinition, not {type(network).__name__}")
        self.problems = []
        if dtype not in (DataType.FLOAT, DataType.HALF):
            return self._fail([f"dtype is {dtype}; weights can be FLOAT or HALF"], network)
        problems, prototxt, weights = [], None, None
        try:
            prototxt = read_prototxt(text, where)
        except CaffeProblem as e:
            problems.append(str(e))
        try:
            weights = None if data is None else read_caffemodel(data, model)
        except CaffeProblem as e:
            problems.append(str(e))
        if problems or prototxt is None:
            return self._fail(problems, network)
        if data is None:
            log.warning(f"{where}: no caffemodel was given, weights are made up", network._logger)
        factories = PluginFactories(self.plugin_factory, self.plugin_factory_ext,
                                    self.plugin_factory_v2, self.plugin_namespace)
        done = NetImport(prototxt, weights, network, where, dtype == DataType.HALF,
                         factories).run()
        if prototxt.net.name:
            network.name = prototxt.net.name
        for warning in done.warnings:
            log.warning(warning, network._logger)
        if done.problems:
            return self._fail(done.problems, network)
        return IBlobNameToTensor(network, done.blobs, done.unread)

    def _fail(self, problems: list[str], network: INetworkDefinition | None) -> Any:
        """Logs problems; returns None for callers to return."""
        self.problems = problems
        for text in problems:
            log.error(text, None if network is None else network._logger)
            if self.error_recorder is not None:
                self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, text)
        return None
