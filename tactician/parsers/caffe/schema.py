"""The messages of Caffe's model files, declared in Python.

Prototxts are read with `NetParameter`: the fields that decide what a network computes, and their
numbers as Caffe has them. Fields that only training reads are listed in `WITHOUT_INFLUENCE`.
Caffemodels are read with `NetWeights`: only names and blobs, so that forks of Caffe that give
other meanings to the numbers of layer parameters are no problem, and the floats of a blob stay
bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PACKAGE = "tactician.caffe"

# Message (not indented), its enums, and its fields: number, name, type (* repeated), default.
_NET = """
BlobShape
  1 dim int64*
NetParameter
  1 name string
  2 layers V1LayerParameter*
  3 input string*
  4 input_dim int32*
  6 state NetState
  8 input_shape BlobShape*
  100 layer LayerParameter*
NetState
  enum Phase TRAIN=0 TEST=1
  1 phase Phase TEST
  2 level int32 0
  3 stage string*
NetStateRule
  1 phase NetState.Phase
  2 min_level int32
  3 max_level int32
  4 stage string*
  5 not_stage string*
LayerParameter
  1 name string
  2 type string
  3 bottom string*
  4 top string*
  8 include NetStateRule*
  9 exclude NetStateRule*
  10 phase NetState.Phase
  103 argmax_param ArgMaxParameter
  104 concat_param ConcatParameter
  106 convolution_param ConvolutionParameter
  109 dummy_data_param DummyDataParameter
  110 eltwise_param EltwiseParameter
  111 exp_param ExpParameter
  117 inner_product_param InnerProductParameter
  118 lrn_param LRNParameter
  119 memory_data_param MemoryDataParameter
  120 mvn_param MVNParameter
  121 pooling_param PoolingParameter
  122 power_param PowerParameter
  123 relu_param ReLUParameter
  125 softmax_param SoftmaxParameter
  126 slice_param SliceParameter
  128 threshold_param ThresholdParameter
  131 prelu_param PReLUParameter
  133 reshape_param ReshapeParameter
  134 log_param LogParameter
  135 flatten_param FlattenParameter
  136 reduction_param ReductionParameter
  137 embed_param EmbedParameter
  138 tile_param TileParameter
  139 batch_norm_param BatchNormParameter
  140 elu_param ELUParameter
  141 bias_param BiasParameter
  142 scale_param ScaleParameter
  143 input_param InputParameter
  144 crop_param CropParameter
  146 recurrent_param RecurrentParameter
  147 swish_param SwishParameter
  148 clip_param ClipParameter
  201 interp_param InterpParameter
  202 permute_param PermuteParameter
  203 prior_box_param PriorBoxParameter
  204 detection_output_param DetectionOutputParameter
  205 upsample_param UpsampleParameter
  206 norm_param NormalizeParameter
  207 shuffle_channel_param ShuffleChannelParameter
  208 region_proposal_param RegionProposalParameter
  8266711 roi_pooling_param ROIPoolingParameter
ArgMaxParameter
  1 out_max_val bool false
  2 top_k uint32 1
  3 axis int32
ConcatParameter
  1 concat_dim uint32 1
  2 axis int32 1
BatchNormParameter
  1 use_global_stats bool
  3 eps float 1e-5
  7 scale_bias bool false
BiasParameter
  1 axis int32 1
  2 num_axes int32 1
ClipParameter
  1 min float
  2 max float
ConvolutionParameter
  1 num_output uint32
  2 bias_term bool true
  3 pad uint32*
  4 kernel_size uint32*
  5 group uint32 1
  6 stride uint32*
  9 pad_h uint32 0
  10 pad_w uint32 0
  11 kernel_h uint32
  12 kernel_w uint32
  13 stride_h uint32
  14 stride_w uint32
  16 axis int32 1
  18 dilation uint32*
CropParameter
  1 axis int32 2
  2 offset uint32*
DummyDataParameter
  2 num uint32*
  3 channels uint32*
  4 height uint32*
  5 width uint32*
  6 shape BlobShape*
EltwiseParameter
  enum EltwiseOp PROD=0 SUM=1 MAX=2
  1 operation EltwiseOp SUM
  2 coeff float*
ELUParameter
  1 alpha float 1
EmbedParameter
  1 num_output uint32
  2 input_dim uint32
  3 bias_term bool true
ExpParameter
  1 base float -1
  2 scale float 1
  3 shift float 0
FlattenParameter
  1 axis int32 1
  2 end_axis int32 -1
InnerProductParameter
  1 num_output uint32
  2 bias_term bool true
  5 axis int32 1
  6 transpose bool false
InputParameter
  1 shape BlobShape*
InterpParameter
  1 height int32 0
  2 width int32 0
  3 zoom_factor int32 1
  4 shrink_factor int32 1
  5 pad_beg int32 0
  6 pad_end int32 0
LogParameter
  1 base float -1
  2 scale float 1
  3 shift float 0
LRNParameter
  enum NormRegion ACROSS_CHANNELS=0 WITHIN_CHANNEL=1
  1 local_size uint32 5
  2 alpha float 1
  3 beta float 0.75
  4 norm_region NormRegion ACROSS_CHANNELS
  5 k float 1
MemoryDataParameter
  1 batch_size uint32
  2 channels uint32
  3 height uint32
  4 width uint32
MVNParameter
  1 normalize_variance bool true
  2 across_channels bool false
  3 eps float 1e-9
NormalizeParameter
  1 across_spatial bool true
  3 channel_shared bool true
  4 eps float 1e-10
PermuteParameter
  1 order uint32*
PoolingParameter
  enum PoolMethod MAX=0 AVE=1 STOCHASTIC=2
  enum RoundMode CEIL=0 FLOOR=1
  1 pool PoolMethod MAX
  2 kernel_size uint32
  3 stride uint32 1
  4 pad uint32 0
  5 kernel_h uint32
  6 kernel_w uint32
  7 stride_h uint32
  8 stride_w uint32
  9 pad_h uint32 0
  10 pad_w uint32 0
  12 global_pooling bool false
  13 round_mode RoundMode CEIL
  14 ceil_mode bool true
PowerParameter
  1 power float 1
  2 scale float 1
  3 shift float 0
PReLUParameter
  2 channel_shared bool false
PriorBoxParameter
  enum CodeType CORNER=1 CENTER_SIZE=2 CORNER_SIZE=3
  1 min_size float*
  2 max_size float*
  3 aspect_ratio float*
  4 flip bool true
  5 clip bool false
  6 variance float*
  7 img_size uint32
  8 img_h uint32
  9 img_w uint32
  10 step float
  11 step_h float
  12 step_w float
  13 offset float 0.5
NonMaximumSuppressionParameter
  1 nms_threshold float 0.3
  2 top_k int32
  3 eta float 1
DetectionOutputParameter
  1 num_classes uint32
  2 share_location bool true
  3 background_label_id int32 0
  4 nms_param NonMaximumSuppressionParameter
  6 code_type PriorBoxParameter.CodeType CORNER
  7 keep_top_k int32 -1
  8 variance_encoded_in_target bool false
  9 confidence_threshold float
RecurrentParameter
  1 num_output uint32 0
  5 expose_hidden bool false
ReductionParameter
  enum ReductionOp SUM=1 ASUM=2 SUMSQ=3 MEAN=4
  1 operation ReductionOp SUM
  2 axis int32 0
  3 coeff float 1
RegionProposalParameter
  1 feature_stride uint32
  2 prenms_top uint32
  3 nms_max_out uint32
  4 anchor_ratio_count uint32
  5 anchor_scale_count uint32
  6 iou_threshold float
  7 min_box_size float
  8 spatial_scale float
  9 pooled_h uint32
  10 pooled_w uint32
  11 anchor_ratio float*
  12 anchor_scale float*
ReLUParameter
  1 negative_slope float 0
ReshapeParameter
  1 shape BlobShape
  2 axis int32 0
  3 num_axes int32 -1
ROIPoolingParameter
  1 pooled_h uint32 0
  2 pooled_w uint32 0
  3 spatial_scale float 1
ScaleParameter
  1 axis int32 1
  2 num_axes int32 1
  4 bias_term bool false
ShuffleChannelParameter
  1 group uint32 1
SliceParameter
  1 slice_dim uint32 1
  2 slice_point uint32*
  3 axis int32 1
SoftmaxParameter
  2 axis int32 1
SwishParameter
  1 beta float 1
ThresholdParameter
  1 threshold float 0
TileParameter
  1 axis int32 1
  2 tiles int32
UpsampleParameter
  1 scale int32 1
  2 scale_h int32
  3 scale_w int32
  4 height int32
  5 width int32
  6 upsample_h int32
  7 upsample_w int32
V1LayerParameter
  enum LayerType NONE=0 ACCURACY=1 BNLL=2 CONCAT=3 CONVOLUTION=4 DATA=5 DROPOUT=6 EUCLIDEAN_LOSS=7 FLATTEN=8 HDF5_DATA=9 HDF5_OUTPUT=10 IM2COL=11 IMAGE_DATA=12 INFOGAIN_LOSS=13 INNER_PRODUCT=14 LRN=15 MULTINOMIAL_LOGISTIC_LOSS=16 POOLING=17 RELU=18 SIGMOID=19 SOFTMAX=20 SOFTMAX_LOSS=21 SPLIT=22 TANH=23 WINDOW_DATA=24 ELTWISE=25 POWER=26 SIGMOID_CROSS_ENTROPY_LOSS=27 HINGE_LOSS=28 MEMORY_DATA=29 ARGMAX=30 THRESHOLD=31 DUMMY_DATA=32 SLICE=33 MVN=34 ABSVAL=35 SILENCE=36 CONTRASTIVE_LOSS=37 EXP=38 DECONVOLUTION=39
  1 layer V0LayerParameter
  2 bottom string*
  3 top string*
  4 name string
  5 type LayerType
  9 concat_param ConcatParameter
  10 convolution_param ConvolutionParameter
  17 inner_product_param InnerProductParameter
  18 lrn_param LRNParameter
  19 pooling_param PoolingParameter
  21 power_param PowerParameter
  22 memory_data_param MemoryDataParameter
  23 argmax_param ArgMaxParameter
  24 eltwise_param EltwiseParameter
  25 threshold_param ThresholdParameter
  26 dummy_data_param DummyDataParameter
  30 relu_param ReLUParameter
  31 slice_param SliceParameter
  32 include NetStateRule*
  33 exclude NetStateRule*
  34 mvn_param MVNParameter
  39 softmax_param SoftmaxParameter
  41 exp_param ExpParameter
V0LayerParameter
  enum PoolMethod MAX=0 AVE=1 STOCHASTIC=2
  1 name string
  2 type string
  3 num_output uint32
  4 biasterm bool true
  7 pad uint32 0
  8 kernelsize uint32
  9 group uint32 1
  10 stride uint32 1
  11 pool PoolMethod MAX
  13 local_size uint32 5
  14 alpha float 1
  15 beta float 0.75
  22 k float 1
  104 concat_dim uint32 1
"""  # noqa: E501

# The floats are declared as bytes: their packed encoding is their memory.
_WEIGHTS = """
BlobShape
  1 dim int64*
BlobProto
  enum Type DOUBLE=0 FLOAT=1 FLOAT16=2 INT=3 UINT=4
  1 num int32
  2 channels int32
  3 height int32
  4 width int32
  5 data bytes*
  7 shape BlobShape
  8 double_data bytes*
  10 raw_data_type Type
  12 raw_data bytes
UnpackedBlob
  5 data float*
  8 double_data double*
NetWeights
  1 name string
  2 layers V1LayerWeights*
  100 layer LayerWeights*
LayerWeights
  1 name string
  2 type string
  7 blobs BlobProto*
V1LayerWeights
  1 layer V0LayerWeights
  4 name string
  6 blobs BlobProto*
V0LayerWeights
  1 name string
  50 blobs BlobProto*
"""

# What only training, or the choice of an implementation, reads.
WITHOUT_INFLUENCE = frozenset("""
    param blobs_lr weight_decay loss_weight propagate_down weight_filler bias_filler filler
    scale_filler engine transform_param loss_param force_nd_im2col stable_prod_grad force_backward
    debug_info moving_average_fraction dropout_param dropout_ratio sigmoid_param tanh_param
    accuracy_param data_param image_data_param hdf5_data_param hdf5_output_param
    window_data_param hinge_loss_param infogain_loss_param contrastive_loss_param blob_share_mode
    share_mode source batchsize cropsize meanfile mirror rand_skip save_output_param
    detection_evaluate_param data_filler forward_type backward_type cudnn_math_override
    default_forward_type default_backward_type default_forward_math default_backward_math
""".split())


def _field_type(text: str, owner: str, enums: set[str]) -> dict[str, Any]:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as F

    kind = getattr(F, f"TYPE_{text.upper()}", None)
    if kind is not None:
        return {"type": kind}
    if f"{owner}.{text}" in enums:
        text = f"{owner}.{text}"
    kind = F.TYPE_ENUM if text in enums else F.TYPE_MESSAGE
    return {"type": kind, "type_name": text}


def _declare(table: str, package: str) -> dict[str, Any]:
    """Message classes of a table like `_NET`, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto2")
    lines = table.strip().splitlines()
    enums: set[str] = set()
    owner = ""
    for line in lines:
        words = line.split()
        if not line.startswith(" "):
            owner = line
        elif words[0] == "enum":
            enums.add(f"{owner}.{words[1]}")
    for line in lines:
        words = line.split()
        if not line.startswith(" "):
            message = file.message_type.add(name=line)
        elif words[0] == "enum":
            enum = message.enum_type.add(name=words[1])
            for pair in words[2:]:
                name, number = pair.split("=")
                enum.value.add(name=name, number=int(number))
        else:
            repeated = words[2].endswith("*")
            kind = _field_type(words[2].rstrip("*"), message.name, enums)
            if "type_name" in kind:
                kind["type_name"] = f".{package}.{kind['type_name']}"
            f = message.field.add(name=words[1], number=int(words[0]),
                                  label=3 if repeated else 1, **kind)
            if words[1] == "dim":
                f.options.packed = True
            if len(words) > 3:
                f.default_value = words[3]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    return {name: message_factory.GetMessageClass(d)
            for name, d in found.message_types_by_name.items()}


@lru_cache(1)
def net_messages() -> dict[str, Any]:
    """Message classes of prototxts, by name."""
    return _declare(_NET, PACKAGE)


@lru_cache(1)
def weight_messages() -> dict[str, Any]:
    """Message classes of caffemodels, by name."""
    return _declare(_WEIGHTS, f"{PACKAGE}.weights")
