"""Layers that multiply and sum: convolutions, matrix products, einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import LayerType, MatrixOperation, NetworkDefinitionCreationFlag, PaddingMode
from ..layer import Attr, Emitter, ILayer, WeightsAttr
from ..tensor import ITensor
from ..values import Dims, DimsHW, as_int, dims
from .formulas import CONVOLUTION, DECONVOLUTION, fitted


def dims_attr(x: Any) -> Dims:
    """Converts an attribute to `Dims` (copied)."""
    return Dims(dims(x))


class HW:
    """The 2-D spelling of an attribute: reads and writes ``name`` as `DimsHW`."""

    def __init__(self, name: str):
        self.target = name
        self.__doc__ = f"2-D spelling of `{name}`."

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else DimsHW(tuple(getattr(layer, self.target)))

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer, self.target, DimsHW(dims(value, 2)))


class Symmetric:
    """``padding_nd``: padding that is the same before and after."""

    __doc__ = "Padding of both sides; setting it sets `pre_padding` and `post_padding`."

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else layer._state["pre_padding"]

    def __set__(self, layer: Any, value: Any) -> None:
        layer._state["pre_padding"] = dims_attr(value)
        layer._state["post_padding"] = dims_attr(value)
        layer._changed()


_PADDING = {
    PaddingMode.CAFFE_ROUND_DOWN: "explicit_down", PaddingMode.CAFFE_ROUND_UP: "explicit_up",
    PaddingMode.EXPLICIT_ROUND_DOWN: "explicit_down",
    PaddingMode.EXPLICIT_ROUND_UP: "explicit_up",
    PaddingMode.SAME_UPPER: "same_upper", PaddingMode.SAME_LOWER: "same_lower",
}


def padding_attrs(state: dict[str, Any], n: int, stride: str = "stride_nd") -> dict[str, Any]:
    """Attributes that windowed ops share; every one must have ``n`` sizes."""
    out: dict[str, Any] = {"padding_mode": _PADDING[state["padding_mode"]]}
    names = {stride: "stride", "pre_padding": "pre", "post_padding": "post",
             "dilation_nd": "dilation"}
    for attr, op_attr in names.items():
        if attr in state:
            sizes = tuple(state[attr])
            if len(sizes) != n:
                raise OpError(f"{attr} has {len(sizes)} sizes, the window has {n}")
            out[op_attr] = sizes
    return out


def window_state(n: int) -> dict[str, Any]:
    """Defaults of strides and padding."""
    return {
        "stride_nd": Dims([1] * n), "pre_padding": Dims([0] * n), "post_padding": Dims([0] * n),
        "padding_mode": PaddingMode.EXPLICIT_ROUND_DOWN,
    }


class _ConvolutionBase(ILayer):
    """What convolutions and deconvolutions share.

    Attributes:
        num_output_maps: Channels of the output.
        kernel, bias: Weights, flat; empty if they come as inputs 1 and 2.
        kernel_size_nd: Sizes of the window.
        stride_nd, dilation_nd: Steps between windows, and inside a window.
        pre_padding, post_padding, padding_nd: Padding before, after, or both.
        padding_mode: How padding and output sizes are computed.
        num_groups: Groups of channels that are convolved separately.
    """

    _optional_inputs = frozenset({1, 2})
    _incomplete = True
    num_output_maps = Attr(as_int, "Channels of the output.")
    kernel = WeightsAttr("The kernel, flat.")
    bias = WeightsAttr("The bias, flat; may be empty.")
    kernel_size_nd = Attr(dims_attr, "Sizes of the window.")
    stride_nd = Attr(dims_attr, "Steps between windows.")
    dilation_nd = Attr(dims_attr, "Steps inside a window.")
    pre_padding = Attr(dims_attr, "Padding before.")
    post_padding = Attr(dims_attr, "Padding after.")
    padding_nd = Symmetric()
    padding_mode = Attr(PaddingMode, "How padding and output sizes are computed.")
    num_groups = Attr(as_int, "Groups of channels.")
    kernel_size = HW("kernel_size_nd")
    stride = HW("stride_nd")
    padding = HW("padding_nd")
    dilation = HW("dilation_nd")

    def _max_inputs(self) -> int:
        return 2

    def _operand(self, e: Emitter, i: int, key: str, shape: list[int] | None) -> Value | None:
        """Kernel or bias: the input if there is one, else the weights, shaped."""
        v = self._in(i)
        if v is not None:
            return self._x(i)
        w = self._weights.get(key)
        if w is None or w.const is None:
            return None
        if shape is not None:
            missing = shape.count(-1)
            known = int(np.prod([d for d in shape if d >= 0]))
            if known == 0 or (w.const.size % known if missing else w.const.size != known):
                raise OpError(f"{key} has {w.const.size} weights, which does not fit shape"
                              f" {tuple(shape)}")
            shaped = w.const.reshape(shape)
        else:
            shaped = w.const
        x = self._x()
        typed = self._net.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if x.dtype is not w.dtype and x.dtype.is_float and w.dtype.is_float and not typed:
            shaped = shaped.astype(x.dtype.np)  # weights take the type the layer computes in
        elif shaped.shape == w.const.shape:
            return w
        value = e.graph.constant(shaped, w.name)
        value.meta.update(w.meta)
        return value

    def _check_spatial(self, x: Value) -> int:
        n = len(self._state["kernel_size_nd"])
        if x.rank != n + 2:
            raise OpError(f"a {n}-D kernel needs an input of {n + 2} dimensions"
                          f"{' (with the batch)' if self._net._off else ''}, got {x!r}")
        return n

    def _maps(self) -> tuple[int, int]:
        """Output maps and groups."""
        out, groups = self._state["num_output_maps"], self._state["num_groups"]
        if out <= 0 or groups <= 0 or out % groups:
            raise OpError(f"{out} output maps cannot be split into {groups} groups")
        return out, groups


class IConvolutionLayer(_ConvolutionBase):
    __doc__ = "Convolution. " + (_ConvolutionBase.__doc__ or "")
    _layer_type = LayerType.CONVOLUTION
    _title = "Convolution"
    _formula_kind = CONVOLUTION

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        n = self._check_spatial(x)
        out, groups = self._maps()
        channels = x.dims[1]
        per_group = -1 if isinstance(channels, D.Dim) else channels // groups
        w = self._operand(e, 1, "kernel", [out, per_group, *s["kernel_size_nd"]])
        if w is None:
            raise OpError("it has no kernel: give weights, or a tensor with set_input(1, tensor)")
        b = self._operand(e, 2, "bias", [out])
        attrs = fitted(self, CONVOLUTION, x.dims[2:], s["kernel_size_nd"], padding_attrs(s, n))
        return [e.value("convolution", x, w, b, groups=groups, **attrs)]


class IDeconvolutionLayer(_ConvolutionBase):
    __doc__ = "Deconvolution (transposed convolution). " + (_ConvolutionBase.__doc__ or "")
    _layer_type = LayerType.DECONVOLUTION
    _title = "Deconvolution"
    _formula_kind = DECONVOLUTION

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        n = self._check_spatial(x)
        out, groups = self._maps()
        channels = x.dims[1]
        inner = -1 if isinstance(channels, D.Dim) else channels
        w = self._operand(e, 1, "kernel", [inner, out // groups, *s["kernel_size_nd"]])
        if w is None:
            raise OpError("it has no kernel: give weights, or a tensor with set_input(1, tensor)")
        b = self._operand(e, 2, "bias", [out])
        attrs = fitted(self, DECONVOLUTION, x.dims[2:], s["kernel_size_nd"], padding_attrs(s, n))
        return [e.value("deconvolution", x, w, b, groups=groups, **attrs)]


class IFullyConnectedLayer(_ConvolutionBase):
    """``x @ kernel.T + bias`` over the last three dimensions of the input, flattened (legacy).

    Attributes:
        num_output_channels: Channels of the output, whose last two dimensions are 1.
        kernel, bias: Weights, flat.
    """

    _layer_type = LayerType.FULLY_CONNECTED
    _title = "Fully Connected"
    num_output_channels = Attr(as_int, "Channels of the output.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x = self._x()
        if x.rank < 3 + self._net._off:
            raise OpError(f"its input needs at least three dimensions, got {x!r}")
        out = self._state["num_output_channels"]
        inner = D.product(x.dims[-3:])
        if isinstance(inner, D.Dim):
            raise OpError(f"the last three dimensions of its input must be static, got {x!r}")
        w = self._operand(e, 1, "kernel", [out, inner])
        if w is None:
            raise OpError("it has no kernel")
        lead = len(x.dims) - 3
        flat = e.value("reshape", x, e.ints([0] * lead + [inner]), zero_copies=True)
        y = e.value("matmul", flat, w, ta="none", tb="transpose")
        b = self._operand(e, 2, "bias", [out])
        if b is not None:
            y = e.value("binary", y, b, fn="add")
        return [e.value("reshape", y, e.ints([0] * (lead + 1) + [1, 1]), zero_copies=True)] \
            if lead + 1 else [y]


_MATRIX = {m: m.name.lower() for m in MatrixOperation}


class IMatrixMultiplyLayer(ILayer):
    """Matrix product; leading dimensions broadcast.

    Attributes:
        op0, op1: How the operands are read: as they are, transposed, or as (rows of) vectors.
    """

    _layer_type = LayerType.MATRIX_MULTIPLY
    _title = "Matrix Multiply"
    op0 = Attr(MatrixOperation, "How the first operand is read.")
    op1 = Attr(MatrixOperation, "How the second operand is read.")

    @property
    def transpose0(self) -> bool:
        """Whether `op0` is TRANSPOSE (version 7)."""
        return self.op0 is MatrixOperation.TRANSPOSE

    @transpose0.setter
    def transpose0(self, on: bool) -> None:
        self.op0 = MatrixOperation.TRANSPOSE if on else MatrixOperation.NONE

    @property
    def transpose1(self) -> bool:
        """Whether `op1` is TRANSPOSE (version 7)."""
        return self.op1 is MatrixOperation.TRANSPOSE

    @transpose1.setter
    def transpose1(self, on: bool) -> None:
        self.op1 = MatrixOperation.TRANSPOSE if on else MatrixOperation.NONE

    def _emit(self, e: Emitter) -> Sequence[Value]:
        a, b = self._x(0), self._x(1)
        return [e.value("matmul", a, b, ta=_MATRIX[self.op0], tb=_MATRIX[self.op1])]


class IEinsumLayer(ILayer):
    """Einstein summation.

    Attributes:
        equation: As numpy's, e.g. ``"bij,bjk->bik"``.
    """

    _layer_type = LayerType.EINSUM
    _title = "Einsum"
    equation = Attr(str, "The equation.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        inputs = [self._x(i) for i in range(len(self._inputs))]
        return [e.value("einsum", *inputs, equation=self._state["equation"])]


class ContractionAdders(NetworkCore):
    """``add_*`` methods of convolutions and products."""

    def _conv(self, cls: type[_ConvolutionBase], input: ITensor, maps: int, kernel_shape: Any,
              kernel: Any, bias: Any) -> Any:
        shape = Dims(dims(kernel_shape))
        return self._add(cls, [input], num_output_maps=as_int(maps), kernel_size_nd=shape,
                         dilation_nd=Dims([1] * len(shape)), num_groups=1,
                         given={"kernel": kernel, "bias": bias}, **window_state(len(shape)))

    def add_convolution_nd(self, input: ITensor, num_output_maps: int, kernel_shape: Any,
                           kernel: Any = None, bias: Any = None) -> IConvolutionLayer:
        """Adds a convolution; the kernel's layout is [output maps, channels / groups, window…]."""
        return self._conv(IConvolutionLayer, input, num_output_maps, kernel_shape, kernel, bias)

    def add_convolution(self, input: ITensor, num_output_maps: int, kernel_shape: Any,
                        kernel: Any = None, bias: Any = None) -> IConvolutionLayer:
        """Adds a 2-D convolution (legacy spelling)."""
        return self.add_convolution_nd(input, num_output_maps, DimsHW(dims(kernel_shape, 2)),
                                       kernel, bias)

    def add_deconvolution_nd(self, input: ITensor, num_output_maps: int, kernel_shape: Any,
                             kernel: Any = None, bias: Any = None) -> IDeconvolutionLayer:
        """Adds a deconvolution; the kernel's layout is [channels, output maps / groups,
        window…]."""
        return self._conv(IDeconvolutionLayer, input, num_output_maps, kernel_shape, kernel, bias)

    def add_deconvolution(self, input: ITensor, num_output_maps: int, kernel_shape: Any,
                          kernel: Any = None, bias: Any = None) -> IDeconvolutionLayer:
        """Adds a 2-D deconvolution (legacy spelling)."""
        return self.add_deconvolution_nd(input, num_output_maps, DimsHW(dims(kernel_shape, 2)),
                                         kernel, bias)

    def add_fully_connected(self, input: ITensor, num_outputs: int, kernel: Any,
                            bias: Any = None) -> IFullyConnectedLayer:
        """Adds a fully connected layer (legacy): the last three dimensions become
        (``num_outputs``, 1, 1)."""
        return self._add(IFullyConnectedLayer, [input], num_output_channels=as_int(num_outputs),
                         given={"kernel": kernel, "bias": bias})

    def add_matrix_multiply(self, input0: ITensor, op0: MatrixOperation, input1: ITensor,
                            op1: MatrixOperation) -> IMatrixMultiplyLayer:
        """Adds a matrix product."""
        return self._add(IMatrixMultiplyLayer, [input0, input1], op0=_matrix_op(op0),
                         op1=_matrix_op(op1))

    def add_matrix_multiply_deprecated(self, input0: ITensor, transpose0: bool, input1: ITensor,
                                       transpose1: bool) -> IMatrixMultiplyLayer:
        """Adds a matrix product (version 7 spelling)."""
        return self.add_matrix_multiply(input0, transpose0, input1, transpose1)  # type: ignore

    def add_einsum(self, inputs: Sequence[ITensor], equation: str) -> IEinsumLayer:
        """Adds an Einstein summation."""
        return self._add(IEinsumLayer, list(inputs), equation=str(equation))


def _matrix_op(op: Any) -> MatrixOperation:
    if isinstance(op, bool):  # version 5 took transpose flags
        return MatrixOperation.TRANSPOSE if op else MatrixOperation.NONE
    return MatrixOperation(op)
