"""Old ways of writing nets, in the present one: ``layers`` with type numbers (V1), nested
``layers { layer { } }`` with lower-case types (V0), ``input`` and ``input_dim``."""

from __future__ import annotations

from typing import Any

from .errors import CaffeProblem
from .schema import net_messages
from .text import Prototxt

_V1 = {
    "NONE": "", "ABSVAL": "AbsVal", "ARGMAX": "ArgMax", "BNLL": "BNLL",
    "CONTRASTIVE_LOSS": "ContrastiveLoss", "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss", "HDF5_DATA": "HDF5Data", "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col", "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN",
    "MEMORY_DATA": "MemoryData", "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN", "RELU": "ReLU", "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SOFTMAX_LOSS": "SoftmaxWithLoss", "TANH": "TanH", "WINDOW_DATA": "WindowData",
}
_V0 = {
    "accuracy": "Accuracy", "bnll": "BNLL", "concat": "Concat", "conv": "Convolution",
    "data": "Data", "dropout": "Dropout", "euclidean_loss": "EuclideanLoss",
    "flatten": "Flatten", "hdf5_data": "HDF5Data", "hdf5_output": "HDF5Output",
    "im2col": "Im2col", "images": "ImageData", "infogain_loss": "InfogainLoss",
    "innerproduct": "InnerProduct", "lrn": "LRN",
    "multinomial_logistic_loss": "MultinomialLogisticLoss", "pool": "Pooling", "relu": "ReLU",
    "sigmoid": "Sigmoid", "softmax": "Softmax", "softmax_loss": "SoftmaxWithLoss",
    "split": "Split", "tanh": "TanH", "window_data": "WindowData", "padding": "padding",
}


def layers_of(p: Prototxt, where: str) -> list[tuple[Any, int]]:
    """All layers in the present form, with their lines; inputs of the net are ``Input`` layers.

    Raises:
        CaffeProblem: If the net mixes forms, or its inputs have no shape.
    """
    net = p.net
    if net.layer and net.layers:
        raise CaffeProblem(f"{where} has both 'layer' and 'layers' (line {p.lines[0]}); a net is "
                           "written in one of the two forms")
    out = _inputs(p, where)
    lines = p.lines + [0] * len(net.layer or net.layers)  # 0: the outline missed one
    if net.layer:
        return out + list(zip(net.layer, lines, strict=False))
    old = list(zip(net.layers, lines, strict=False))
    if any(layer.HasField("layer") for layer, _ in old):
        return out + _without_padding([(_from_v0(v, line), line) for v, line in old])
    return out + [(_from_v1(v), line) for v, line in old]


def _inputs(p: Prototxt, where: str) -> list[tuple[Any, int]]:
    net, out = p.net, []
    for i, name in enumerate(net.input):
        if i < len(net.input_shape):
            shape = list(net.input_shape[i].dim)
        else:
            shape = list(net.input_dim[4 * i : 4 * i + 4])
        line = p.inputs[i] if i < len(p.inputs) else 1
        if not shape or (not net.input_shape and len(shape) < 4):
            raise CaffeProblem(
                f"{where}, line {line}: input {name!r} has no shape; give it input_shape, or four "
                "input_dim (num, channels, height, width)")
        layer = net_messages()["LayerParameter"](name=name, type="Input", top=[name])
        layer.input_param.shape.add(dim=shape)
        out.append((layer, line))
    return out


def _from_v1(old: Any) -> Any:
    new = net_messages()["LayerParameter"]()
    for f, value in old.ListFields():
        if f.name == "type":
            name = f.enum_type.values_by_number[value].name
            new.type = _V1.get(name, name.capitalize())
        elif f.name != "layer":
            _copy(new, f, value)
    return new


def _copy(new: Any, f: Any, value: Any) -> None:
    if f.message_type is None and not hasattr(value, "extend"):
        setattr(new, f.name, value)
    elif hasattr(value, "extend"):
        getattr(new, f.name).extend(value)
    else:
        getattr(new, f.name).CopyFrom(value)


def _from_v0(old: Any, line: int) -> Any:
    v = old.layer
    new = net_messages()["LayerParameter"](
        name=v.name, bottom=old.bottom, top=old.top, type=_V0.get(v.type, v.type))
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    if v.type == "conv":
        c = new.convolution_param
        c.num_output, c.bias_term, c.group = v.num_output, v.biasterm, v.group
        c.pad.append(v.pad)
        c.kernel_size.append(v.kernelsize)
        c.stride.append(v.stride)
    elif v.type == "pool":
        q = new.pooling_param
        q.pool, q.pad, q.kernel_size, q.stride = v.pool, v.pad, v.kernelsize, v.stride
    elif v.type == "innerproduct":
        new.inner_product_param.num_output = v.num_output
        new.inner_product_param.bias_term = v.biasterm
    elif v.type == "lrn":
        r = new.lrn_param
        r.local_size, r.alpha, r.beta, r.k = v.local_size, v.alpha, v.beta, v.k
    elif v.type == "concat":
        new.concat_param.concat_dim = v.concat_dim
    elif v.type == "padding":
        new.convolution_param.pad.append(v.pad)
    return new


def _without_padding(layers: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """V0 nets pad in layers of their own; now the layer that reads the result pads."""
    pads: dict[str, tuple[str, int]] = {}
    out = []
    for layer, line in layers:
        if layer.type == "padding":
            pads[layer.top[0]] = layer.bottom[0], layer.convolution_param.pad[0]
            continue
        for i, name in enumerate(layer.bottom):
            if name not in pads:
                continue
            source, pad = pads[name]
            if layer.type == "Convolution":
                layer.convolution_param.pad[0] = pad
            elif layer.type == "Pooling":
                layer.pooling_param.pad = pad
            else:
                raise CaffeProblem(f"line {line}: layer {layer.name!r} ({layer.type}) reads a "
                                   "padding layer; only conv and pool can")
            layer.bottom[i] = source
        out.append((layer, line))
    return out


def included(layer: Any, state: Any) -> bool:
    """Whether a layer takes part in the net for testing, by its include and exclude rules."""
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: Any, state: Any) -> bool:
    if rule.HasField("phase") and rule.phase != 1:  # TEST
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    stages = set(state.stage)
    return all(s in stages for s in rule.stage) and not stages & set(rule.not_stage)
