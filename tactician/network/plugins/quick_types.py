"""What functions of quick plugins receive and return: shapes, descriptions, tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ops import OpError
from ..enums import DataType, TensorFormat, to_ir
from ..values import as_int
from .exprs import DimsExprs, IDimensionExpr, IExprBuilder, PluginTensorDesc, dim_of


def _dim(x: Any) -> D.DimLike:
    return x._dim if isinstance(x, ShapeExpr) else dim_of(x)


class ShapeExpr:
    """A size, with arithmetic."""

    def __init__(self, value: Any = None):
        self._dim: D.DimLike = 0 if value is None else _dim(value)
        self._fake = value is None

    @property
    def is_fake(self) -> bool:
        """Whether it stands for no size (a default-made one)."""
        return self._fake

    @property
    def is_size_tensor(self) -> bool:
        """Whether an output says it at run time."""
        return False

    @property
    def is_constant(self) -> bool:
        """Whether it is known before shapes are set."""
        return not isinstance(self._dim, D.Dim)

    def constant_value(self) -> int:
        """The constant.

        Raises:
            RuntimeError: If it is not constant.
        """
        if isinstance(self._dim, D.Dim):
            raise RuntimeError(f"size {self._dim} is not constant")
        return int(self._dim)

    def _new(self, dim: D.DimLike) -> ShapeExpr:
        out = ShapeExpr(0)
        out._dim = dim
        return out

    def __add__(self, other: Any) -> ShapeExpr:
        return self._new(self._dim + _dim(other))

    def __sub__(self, other: Any) -> ShapeExpr:
        return self._new(self._dim - _dim(other))

    def __rsub__(self, other: Any) -> ShapeExpr:
        return self._new(_dim(other) - self._dim)

    def __mul__(self, other: Any) -> ShapeExpr:
        return self._new(self._dim * _dim(other))

    def __floordiv__(self, other: Any) -> ShapeExpr:
        return self._new(D.floor_div(self._dim, _dim(other)))

    def __rfloordiv__(self, other: Any) -> ShapeExpr:
        return self._new(D.floor_div(_dim(other), self._dim))

    def __mod__(self, other: Any) -> ShapeExpr:
        return self._new(D.modulo(self._dim, _dim(other)))

    __radd__, __rmul__ = __add__, __mul__

    def _compare(self, other: Any, what: str) -> int:
        difference = self._dim - _dim(other)
        if isinstance(difference, D.Dim):
            raise OpError(f"{self._dim} {what} {_dim(other)} is not known before shapes are set")
        return difference

    def __lt__(self, other: Any) -> bool:
        return self._compare(other, "<") < 0

    def __gt__(self, other: Any) -> bool:
        return self._compare(other, ">") > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (ShapeExpr, IDimensionExpr, int)):
            return NotImplemented
        return self._dim == _dim(other)

    def __hash__(self) -> int:
        return hash(self._dim)

    def __repr__(self) -> str:
        return f"ShapeExpr[{self._dim}]"


class SizeTensorShapeExpr(ShapeExpr):
    """A size that an output says at run time."""

    @property
    def is_size_tensor(self) -> bool:
        return True

    @property
    def is_constant(self) -> bool:
        return False


def cdiv(first: Any, second: Any) -> Any:
    """``ceil(first / second)``."""
    return ShapeExpr(0)._new(D.ceil_div(_dim(first), _dim(second)))


def max(first: Any, second: Any) -> Any:
    """The larger size."""
    return ShapeExpr(0)._new(D.dim_max(_dim(first), _dim(second)))


def min(first: Any, second: Any) -> Any:
    """The smaller size."""
    return ShapeExpr(0)._new(D.dim_min(_dim(first), _dim(second)))


class SymExprs:
    """A sequence of expressions."""

    def __init__(self, length: int = 0):
        self._items: list[Any] = [ShapeExpr() for _ in range(length)]

    @classmethod
    def from_tuple(cls, shape_exprs: Sequence[Any]) -> Any:
        """The expressions given; ints become constants."""
        out = cls(0)
        out._items = [x if isinstance(x, ShapeExpr) else ShapeExpr(x) for x in shape_exprs]
        return out

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __getitem__(self, i: Any) -> Any:
        return self._items[i]

    def __setitem__(self, i: Any, x: Any) -> None:
        self._items[i] = x if isinstance(x, ShapeExpr) else ShapeExpr(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._items})"


class ShapeExprs(SymExprs):
    """A shape of expressions."""

    def numel(self) -> ShapeExpr:
        """The number of elements."""
        return ShapeExpr(0)._new(D.product(_dim(x) for x in self._items))


class SymInt32(ShapeExpr):
    """A 32-bit extra argument of a compiled kernel."""


class SymInt16(ShapeExpr):
    """A 16-bit extra argument of a compiled kernel."""


class SymInt8(ShapeExpr):
    """An 8-bit extra argument of a compiled kernel."""


class SymIntExprs(SymExprs):
    """Extra integer arguments of a compiled kernel."""


class Shape:
    """Numbers of a shape, with the range they may have."""

    def __init__(self, sizes: Sequence[int]):
        self._sizes = tuple(as_int(d) for d in sizes)

    @property
    def is_dynamic(self) -> bool:
        """Whether a size is not known."""
        return -1 in self._sizes

    min = property(lambda s: s._sizes, doc="Least sizes.")
    opt = property(lambda s: s._sizes, doc="Expected sizes.")
    max = property(lambda s: s._sizes, doc="Largest sizes.")

    def numel(self) -> int:
        """The number of elements.

        Raises:
            ValueError: If a size is not known.
        """
        if self.is_dynamic:
            raise ValueError(f"the shape {self._sizes} is dynamic")
        return int(np.prod(self._sizes))

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __getitem__(self, i: Any) -> Any:
        return self._sizes[i]

    def __setitem__(self, i: int, size: int) -> None:
        sizes = list(self._sizes)
        sizes[i] = as_int(size)
        self._sizes = tuple(sizes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Shape, tuple, list)):
            return self._sizes == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._sizes)

    def __repr__(self) -> str:
        return f"Shape{self._sizes}"


class TensorDesc:
    """Type and shape of a tensor.

    Attributes:
        dtype, format, scale: Element type, layout, INT8 scale.
        shape_expr: The shape as expressions.
    """

    dtype: DataType
    format: TensorFormat
    scale: float
    shape_expr: ShapeExprs

    def __init__(self, shape_expr: Any = (), dtype: DataType = DataType.FLOAT):
        self.shape_expr = ShapeExprs.from_tuple(list(shape_expr))
        self.dtype, self.format, self.scale = DataType(dtype), TensorFormat.LINEAR, 0.0
        self._aliased: TensorDesc | None = None

    def numel(self) -> ShapeExpr:
        """The number of elements, as an expression."""
        return self.shape_expr.numel()

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self.shape_expr)

    @property
    def is_size_tensor(self) -> bool:
        """Whether it is a size that is known at run time."""
        return False

    @property
    def has_shape(self) -> bool:
        """Whether all sizes are numbers."""
        return all(x.is_constant for x in self.shape_expr)

    @property
    def has_shape_expr(self) -> bool:
        """Whether sizes are expressions: always."""
        return True

    @property
    def is_dynamic(self) -> bool:
        """Whether a size is not known."""
        return not self.has_shape

    @property
    def shape(self) -> Shape:
        """Numbers of the shape; -1 where unknown."""
        return Shape([x.constant_value() if x.is_constant else -1 for x in self.shape_expr])

    def like(self) -> TensorDesc:
        """A description with the same type and shape."""
        return TensorDesc(list(self.shape_expr), self.dtype)

    def aliased(self) -> TensorDesc:
        """A description of an output that shares this input's memory."""
        out = self.like()
        out._aliased = self
        return out

    def is_aliased(self) -> bool:
        """Whether it shares another tensor's memory."""
        return self._aliased is not None

    def get_aliased(self) -> TensorDesc | None:
        """The tensor whose memory it shares, or None."""
        return self._aliased


_placeholders = itertools.count()


class SizeTensorDesc(TensorDesc):
    """An output that says a size at run time.

    Attributes:
        opt, upper_bound: Expected and largest size.
        index: Which output it is.
    """

    opt: Any
    upper_bound: Any
    index: int | None

    def __init__(self, opt: Any, upper_bound: Any):
        super().__init__((), DataType.INT64)
        self.opt, self.upper_bound, self.index = opt, upper_bound, None
        self._expr = SizeTensorShapeExpr(0)
        self._expr._dim = D.sym(f"%size{next(_placeholders)}")

    @property
    def is_size_tensor(self) -> bool:
        return True

    def expr(self) -> SizeTensorShapeExpr:
        """The size as an expression."""
        return self._expr


def size_tensor(opt: Any, upper_bound: Any) -> SizeTensorDesc:
    """An output that says a size at run time."""
    return SizeTensorDesc(opt, upper_bound)


def from_shape_expr(shape_expr: Any, dtype: DataType) -> TensorDesc:
    """A description with a given shape and type."""
    return TensorDesc(shape_expr, dtype)


def bind_size_tensors(outputs: Sequence[TensorDesc], builder: IExprBuilder) -> list[DimsExprs]:
    """Shapes of outputs, with size tensors declared to the builder."""
    env: dict[str, D.DimLike] = {}
    for i, o in enumerate(outputs):
        if isinstance(o, SizeTensorDesc):
            o.index = i
            real = builder.declare_size_tensor(
                i, IDimensionExpr(_dim(o.opt)), IDimensionExpr(_dim(o.upper_bound)))
            env[str(o.expr()._dim)] = dim_of(real)
    return [DimsExprs([IDimensionExpr(D.substitute(_dim(x), env)) for x in o.shape_expr])
            for o in outputs]


class Tensor:
    """A tensor while a plugin runs. ``np.asarray(tensor)`` is its memory where that is the host's;
    in engines for CUDA ``torch.as_tensor(tensor, device="cuda")`` and the like take it.

    Args:
        desc: Type and shape.
        address: Of the first element.
        on_device: Whether that is an address of a GPU.

    Attributes:
        dtype, format, scale: Element type, layout, INT8 scale.
        data_ptr: Address of the first element.
    """

    dtype: DataType
    format: TensorFormat
    scale: float
    data_ptr: int

    def __init__(self, desc: PluginTensorDesc, address: int, on_device: bool = False):
        self.dtype, self.format, self.scale = desc.type, desc.format, desc.scale
        self.data_ptr = address
        self._shape = tuple(desc.dims)
        self._on_device = on_device
        self._aliased: Tensor | None = None

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return Shape(self._shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides, in elements."""
        out, step = [], 1
        for d in reversed(self._shape):
            out.append(step)
            step *= d
        return tuple(reversed(out))

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self._shape)

    def numel(self) -> int:
        """The number of elements."""
        return int(np.prod(self._shape, dtype=np.int64))

    @property
    def is_data_dependent(self) -> bool:
        """Whether a size is known only after the plugin ran: its memory has the largest size."""
        return -1 in self._shape

    def aliased(self, shape: Any = None) -> Tensor:
        """Another tensor over the same memory.

        Args:
            shape: Its shape; None: the same.
        """
        sizes = self._shape if shape is None else tuple(as_int(d) for d in shape)
        out = Tensor(PluginTensorDesc(sizes, self.dtype, self.format, self.scale), self.data_ptr,
                     self._on_device)
        out._aliased = self
        return out

    def is_aliased(self) -> bool:
        """Whether it shares another tensor's memory."""
        return self._aliased is not None

    def get_aliased(self) -> Tensor | None:
        """The tensor whose memory it shares, or None."""
        return self._aliased

    def _interface(self, name: str, on_device: bool) -> dict[str, Any]:
        if self._on_device is not on_device:
            raise AttributeError(f"a tensor in {'GPU' if self._on_device else 'host'} memory has"
                                 f" no {name}")
        return {"shape": self._shape, "typestr": to_ir(self.dtype).np.str,
                "data": (self.data_ptr, False), "strides": None, "version": 3}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._interface("__array_interface__", False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface("__cuda_array_interface__", True)


class AutoTuneCombination:
    """Types and layouts a plugin takes, and the tactics it has for them.

    Args:
        io_types: Text like ``"FP32|FP16, FP32|FP16"``, one entry per tensor.
        layouts: Text like ``"LINEAR"``.
        tactics: Numbers of tactics.
    """

    _TYPES = {"FP32": DataType.FLOAT, "FP16": DataType.HALF, "BF16": DataType.BF16,
              "INT8": DataType.INT8, "INT32": DataType.INT32, "INT64": DataType.INT64,
              "BOOL": DataType.BOOL, "FP8": DataType.FP8}

    def __init__(self, io_types: str = "", layouts: str = "LINEAR",
                 tactics: Sequence[int] = ()):
        self._types = [p.strip() for p in io_types.split(",")] if io_types else []
        self._layouts = layouts
        self.tactic_list = list(tactics)

    def pos(self, pos: int | Sequence[int], io_types: str, layouts: str = "LINEAR") -> None:
        """Sets the types of one or several tensors."""
        for p in [pos] if isinstance(pos, int) else pos:
            self._types += [""] * (p + 1 - len(self._types))
            self._types[p] = io_types
        self._layouts = layouts

    def tactics(self, custom_tactics: Sequence[int]) -> None:
        """Sets the numbers of tactics."""
        self.tactic_list = list(custom_tactics)

    def allows(self, pos: int, dtype: DataType) -> bool:
        """Whether tensor ``pos`` may have an element type, in linear layout."""
        if self._layouts and "LINEAR" not in self._layouts:
            return False
        if pos >= len(self._types) or not self._types[pos]:
            return True
        return dtype in [self._TYPES.get(t.strip()) for t in self._types[pos].split("|")]
