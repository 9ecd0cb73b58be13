"""``import tactician.graphsurgeon as gs``: changing TensorFlow graphs before they are parsed or
converted to UFF.

    graph = gs.DynamicGraph("frozen.pb")
    nms = gs.create_plugin_node("NMS", op="NMS_TRT", inputs=["boxes", "scores"], topK=100)
    graph.collapse_namespaces({"Postprocessor": nms})
"""

from .parsers.tensorflow.surgery import (
    DynamicGraph,
    StaticGraph,
    create_node,
    create_plugin_node,
)

__all__ = ["DynamicGraph", "StaticGraph", "create_node", "create_plugin_node"]
