"""tactician: an open inference optimizer and runtime with TensorRT's Python API.

``import tactician as trt``. Names load on first use; see the table below for where they live.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import Any as _Any

from .support import version as _version

__tactician_version__ = _version.TACTICIAN
__version__ = _version.tensorrt()

# module -> names it provides
_TABLE: dict[str, str] = {
    "support.logger": "ILogger Logger",
    "network.enums": """
        ActivationType AttentionIOForm AttentionNormalizationOp BoundingBoxFormat CausalMaskKind
        CollectiveOperation CumulativeOperation DataType DeviceType DimensionType
        ElementWiseOperation FillOperation GatherMode InterpolationMode KVCacheMode LayerType
        LoopOutput MatrixOperation MoEActType NetworkDefinitionCreationFlag PaddingMode PoolingType
        RNNDirection RNNGateType RNNInputMode RNNOperation ReduceOperation
        ResizeCoordinateTransformation ResizeMode ResizeRoundMode ResizeSelector SampleMode
        ScaleMode ScatterMode SliceMode TensorFormat TensorIOMode TensorLocation TopKOperation
        TripLimit UnaryOperation WeightsRole bfloat16 bool e8m0 float16 float32 fp4 fp8 int32 int4
        int64 int8 nptype uint8""",
    "network.enums_build": """
        APILanguage AllocatorFlag BuilderFlag CalibrationAlgoType DLAWorkspaceAllocationStrategy
        DimensionOperation EngineCapability EngineStat ErrorCode ErrorCodeTRT
        ExecutionContextAllocationStrategy FieldType HardwareCompatibilityLevel
        LayerInformationFormat MemoryPoolType OnnxParserFlag PluginArgDataType PluginArgType
        PluginCapabilityType PluginCreatorVersion PluginFieldType PluginFormat PreviewFeature
        ProfilingVerbosity QuantizationFlag QuickPluginCreationRequest RuntimePlatform SeekPosition
        SerializationFlag TacticSource TempfileControlFlag TensorRTPhase TilingOptimizationLevel
        UffInputOrder""",
    "network.values": """
        Dims Dims2 Dims3 Dims4 DimsCHW DimsHW DimsNCHW IHostMemory Permutation Weights volume""",
    "network.network": "INetworkDefinition",
    "network.tensor": "ITensor",
    "network.layer": "ILayer",
    "network.layers.pointwise": """
        IActivationLayer IAssertionLayer ICastLayer IElementWiseLayer IIdentityLayer
        IParametricReLULayer IScaleLayer ISelectLayer IUnaryLayer""",
    "network.layers.contraction": """
        IConvolutionLayer IDeconvolutionLayer IEinsumLayer IFullyConnectedLayer
        IMatrixMultiplyLayer""",
    "network.layers.movement": """
        IConcatenationLayer IPaddingLayer IReverseSequenceLayer IShapeLayer IShuffleLayer
        ISliceLayer ISqueezeLayer IUnsqueezeLayer""",
    "network.layers.reduction": """
        ICumulativeLayer ILRNLayer INormalizationLayer IPoolingLayer IRaggedSoftMaxLayer
        IReduceLayer ISoftMaxLayer ITopKLayer""",
    "network.layers.data": """
        IConstantLayer IFillLayer IGatherLayer INMSLayer INonZeroLayer IOneHotLayer
        IScatterLayer""",
    "network.layers.quantize": "IDequantizeLayer IDynamicQuantizeLayer IQuantizeLayer",
    "network.layers.image": "IGridSampleLayer IResizeLayer",
    "network.layers.control": """
        IConditionLayer IIfConditional IIfConditionalBoundaryLayer IIfConditionalInputLayer
        IIfConditionalOutputLayer IIteratorLayer ILoop ILoopBoundaryLayer ILoopOutputLayer
        IRecurrenceLayer ITripLimitLayer""",
    "network.layers.recurrent": "IRNNLayer IRNNv2Layer",
    "network.layers.transformer": """
        IAttention IAttentionBoundaryLayer IAttentionInputLayer IAttentionOutputLayer
        IDistCollectiveLayer IKVCacheUpdateLayer IMoELayer IRotaryEmbeddingLayer""",
    "network.layers.plugin": "IPluginLayer IPluginV2Layer IPluginV3Layer",
    "network.layers.formulas": "IOutputDimensionsFormula",
    "network.interfaces": """
        IAlgorithm IAlgorithmContext IAlgorithmIOInfo IAlgorithmSelector IAlgorithmVariant
        IDebugListener IErrorRecorder IGpuAllocator IGpuAsyncAllocator IInt8Calibrator
        IInt8EntropyCalibrator IInt8EntropyCalibrator2 IInt8LegacyCalibrator IInt8MinMaxCalibrator
        IOutputAllocator IProfiler IProgressMonitor IStreamReader IStreamReaderV2 IStreamWriter
        IVersionedInterface InterfaceInfo Profiler""",
    "network.plugins.fields": """
        FallbackString FieldCollection FieldMap PluginField PluginFieldCollection
        PluginFieldCollection_""",
    "network.plugins.exprs": """
        DimsExprs DynamicPluginTensorDesc IDimensionExpr IExprBuilder ISymExpr ISymExprs
        KernelLaunchParams PluginTensorDesc""",
    "network.plugins.interfaces": """
        IPlugin IPluginCapability IPluginCreator IPluginCreatorInterface IPluginCreatorV3One
        IPluginCreatorV3Quick IPluginExt IPluginFactory IPluginResource IPluginResourceContext
        IPluginV2 IPluginV2DynamicExt IPluginV2DynamicExtBase IPluginV2Ext IPluginV3
        IPluginV3OneBuild IPluginV3OneBuildV2 IPluginV3OneCore IPluginV3OneRuntime
        IPluginV3QuickAOTBuild IPluginV3QuickBuild IPluginV3QuickCore IPluginV3QuickRuntime""",
    "network.plugins.registry": """
        IPluginRegistry get_builder_plugin_registry get_plugin_registry init_libnvinfer_plugins""",
    "parsers.caffe": """
        CaffeParser IBlobNameToTensor ICaffePluginFactory ICaffePluginFactoryExt
        ICaffePluginFactoryV2""",
    "parsers.onnx": """
        NodeIndices OnnxParser OnnxParserRefitter ParserError SubGraphCollection
        get_nv_onnx_parser_version""",
    "parsers.tensorflow": "TensorFlowParser",
    "parsers.uff": "IUffPluginFactory IUffPluginFactoryExt UffParser",
    "builder": """
        Builder IBuilderConfig IOptimizationProfile ITimingCache Refitter TimingCacheKey
        TimingCacheValue build""",
    "runtime": """
        Engine EngineInspector ICudaEngine IExecutionContext IRuntimeConfig ISerializationConfig
        Runtime load""",
}
_WHERE = {name: module for module, names in _TABLE.items() for name in names.split()}
_SUBMODULES = frozenset(
    "builder cli compat driver graphsurgeon ir network ops parsers plan plugin runtime support "
    "targets testing tensorrt torch uff".split()
)


def __getattr__(name: str) -> _Any:
    module = _WHERE.get(name)
    if module is not None:
        value = getattr(_import_module(f"{__name__}.{module}"), name)
    elif name in _SUBMODULES:
        try:
            return _import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as e:
            if e.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE} - {"__getattr__", "__dir__"})


def common_enter(this: _Any) -> _Any:
    """What ``with`` does on entering an object of the API: gives the object."""
    return this


def common_exit(this: _Any, exc_type: _Any, exc_value: _Any, traceback: _Any) -> None:
    """What ``with`` does on leaving an object of the API: nothing, memory is collected."""


def shutdown_protobuf_library() -> None:
    """Frees nothing: kept for programs of versions 5 to 8."""
