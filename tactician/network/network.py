"""`INetworkDefinition`."""

from __future__ import annotations

from .core import NetworkCore
from .layers.contraction import ContractionAdders
from .layers.control import ControlAdders
from .layers.data import DataAdders
from .layers.formulas import FormulaProperties
from .layers.image import ImageAdders
from .layers.movement import MovementAdders
from .layers.plugin import PluginAdders
from .layers.pointwise import PointwiseAdders
from .layers.quantize import QuantizeAdders
from .layers.recurrent import RecurrentAdders
from .layers.reduction import ReductionAdders
from .layers.transformer import TransformerAdders


class INetworkDefinition(
    PointwiseAdders, MovementAdders, DataAdders, ReductionAdders, ContractionAdders,
    QuantizeAdders, ImageAdders, ControlAdders, PluginAdders, RecurrentAdders, TransformerAdders,
    FormulaProperties,
):
    """A network: inputs, layers, outputs. Made by `Builder.create_network`.

    Layers are added with ``add_*`` methods, which infer shapes at once. Clearly wrong arguments
    log an error and give None, as in TensorRT.
    """

    __doc__ = (__doc__ or "") + (NetworkCore.__doc__ or "")
