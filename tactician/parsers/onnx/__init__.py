"""ONNX models into networks. `parser` has TensorRT's API; `importers/` one function per
operator; `table` says how they are registered."""

from .parser import NodeIndices, OnnxParser, SubGraphCollection, get_nv_onnx_parser_version
from .parser_error import ParserError
from .refitter import OnnxParserRefitter

__all__ = [
    "NodeIndices", "OnnxParser", "OnnxParserRefitter", "ParserError", "SubGraphCollection",
    "get_nv_onnx_parser_version",
]
