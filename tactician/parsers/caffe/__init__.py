"""Caffe models into networks. `parser` has the API of TensorRT 5 to 8; `importers/` one function
per layer type; `table` says how they are registered."""

from .parser import CaffeParser, IBlobNameToTensor
from .plugins import ICaffePluginFactory, ICaffePluginFactoryExt, ICaffePluginFactoryV2

__all__ = [
    "CaffeParser", "IBlobNameToTensor", "ICaffePluginFactory", "ICaffePluginFactoryExt",
    "ICaffePluginFactoryV2",
]
