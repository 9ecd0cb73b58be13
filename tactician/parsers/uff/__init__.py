"""UFF: `schema` and `file` have the format, `convert` makes it from TensorFlow graphs, `to_graph`
and `parser` make networks of it. Written from the format's public description."""

from .parser import IUffPluginFactory, IUffPluginFactoryExt, UffParser

__all__ = ["IUffPluginFactory", "IUffPluginFactoryExt", "UffParser"]
