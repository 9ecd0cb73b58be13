"""The messages of TensorFlow's graph files, declared in Python.

Only the fields that say what a graph computes, with the numbers they have in TensorFlow's files.
The protobuf library keeps the others when a file is read and written again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PACKAGE = "tactician.tensorflow"

# Enum lines: name number… Message lines: number name type; * repeated, [k,v] a map.
ENUMS = {
    "DataType": """
        DT_INVALID=0 DT_FLOAT=1 DT_DOUBLE=2 DT_INT32=3 DT_UINT8=4 DT_INT16=5 DT_INT8=6 DT_STRING=7
        DT_COMPLEX64=8 DT_INT64=9 DT_BOOL=10 DT_QINT8=11 DT_QUINT8=12 DT_QINT32=13 DT_BFLOAT16=14
        DT_QINT16=15 DT_QUINT16=16 DT_UINT16=17 DT_COMPLEX128=18 DT_HALF=19 DT_RESOURCE=20
        DT_VARIANT=21 DT_UINT32=22 DT_UINT64=23 DT_FLOAT8_E5M2=24 DT_FLOAT8_E4M3FN=25
        DT_FLOAT_REF=101 DT_DOUBLE_REF=102 DT_INT32_REF=103 DT_UINT8_REF=104 DT_BOOL_REF=110
        DT_INT64_REF=109""",
}
MESSAGES = """
GraphDef
  1 node NodeDef*
  4 versions VersionDef
  3 version int32
  2 library FunctionDefLibrary
VersionDef
  1 producer int32
  2 min_consumer int32
  3 bad_consumers int32*
NodeDef
  1 name string
  2 op string
  3 input string*
  4 device string
  5 attr [string,AttrValue]
AttrValue
  2 s bytes value
  3 i int64 value
  4 f float value
  5 b bool value
  6 type DataType value
  7 shape TensorShapeProto value
  8 tensor TensorProto value
  1 list ListValue value
  10 func NameAttrList value
  9 placeholder string value
ListValue
  2 s bytes*
  3 i int64*
  4 f float*
  5 b bool*
  6 type DataType*
  7 shape TensorShapeProto*
  8 tensor TensorProto*
  9 func NameAttrList*
NameAttrList
  1 name string
  2 attr [string,AttrValue]
TensorShapeProto
  2 dim Dim*
  3 unknown_rank bool
Dim
  1 size int64
  2 name string
TensorProto
  1 dtype DataType
  2 tensor_shape TensorShapeProto
  3 version_number int32
  4 tensor_content bytes
  13 half_val int32*
  5 float_val float*
  6 double_val double*
  7 int_val int32*
  8 string_val bytes*
  9 scomplex_val float*
  10 int64_val int64*
  11 bool_val bool*
  12 dcomplex_val double*
  16 uint32_val uint32*
  17 uint64_val uint64*
FunctionDefLibrary
  1 function FunctionDef*
FunctionDef
  1 signature OpDef
  3 node_def NodeDef*
  4 ret [string,string]
  6 control_ret [string,string]
  5 attr [string,AttrValue]
OpDef
  1 name string
  2 input_arg ArgDef*
  3 output_arg ArgDef*
ArgDef
  1 name string
  3 type DataType
  4 type_attr string
  5 number_attr string
  6 type_list_attr string
SavedModel
  1 saved_model_schema_version int64
  2 meta_graphs MetaGraphDef*
MetaGraphDef
  1 meta_info_def MetaInfoDef
  2 graph_def GraphDef
  5 signature_def [string,SignatureDef]
MetaInfoDef
  4 tags string*
SignatureDef
  1 inputs [string,TensorInfo]
  2 outputs [string,TensorInfo]
  3 method_name string
TensorInfo
  1 name string
  2 dtype DataType
  3 tensor_shape TensorShapeProto
BundleHeaderProto
  1 num_shards int32
  2 endianness int32
BundleEntryProto
  1 dtype DataType
  2 shape TensorShapeProto
  3 shard_id int32
  4 offset int64
  5 size int64
  7 slices bytes*
"""


def declare(table: str, enums: dict[str, str], package: str) -> dict[str, Any]:
    """Message classes by name.

    Args:
        table: Messages; per field its number, name, type and, if it is one, its oneof.
        enums: Members of enums by name, as ``NAME=number`` words.
        package: A protobuf package of their own.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3")
    for name, members in enums.items():
        enum = file.enum_type.add(name=name)
        for pair in members.split():
            member, number = pair.split("=")
            enum.value.add(name=member, number=int(number))
    message: Any = None
    for line in table.strip().splitlines():
        if not line.startswith(" "):
            message = file.message_type.add(name=line.strip())
        else:
            _add_field(message, line.split(), set(enums), package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    types = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(d) for name, d in types.items()}


def _add_field(message: Any, words: list[str], enums: set[str], package: str) -> None:
    number, name, kind = words[:3]
    field = message.field.add(name=name, number=int(number), label=3 if kind[-1] in "*]" else 1)
    if kind.startswith("["):
        key, value = kind.strip("[]").split(",")
        entry = message.nested_type.add(
            name="".join(p.capitalize() for p in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _set_type(entry.field.add(name="key", number=1, label=1), key, enums, package)
        _set_type(entry.field.add(name="value", number=2, label=1), value, enums, package)
        field.type, field.type_name = 11, f".{package}.{message.name}.{entry.name}"
        return
    _set_type(field, kind.rstrip("*"), enums, package)
    if len(words) > 3:
        if not message.oneof_decl:
            message.oneof_decl.add(name=words[3])
        field.oneof_index = 0


def _set_type(field: Any, kind: str, enums: set[str], package: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as F

    number = getattr(F, f"TYPE_{kind.upper()}", None)
    if number is not None:
        field.type = number
        return
    field.type = F.TYPE_ENUM if kind in enums else F.TYPE_MESSAGE
    field.type_name = f".{package}.{kind}"


@lru_cache(1)
def messages() -> dict[str, Any]:
    """Message classes by name: ``GraphDef``, ``NodeDef``, …"""
    return declare(MESSAGES, ENUMS, PACKAGE)
