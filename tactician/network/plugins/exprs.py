"""Dimension expressions, with which plugins say their output shapes, and tensor descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...ir import dims as D
from ...ops import OpError
from ..enums import DataType, TensorFormat
from ..enums_build import DimensionOperation, PluginArgDataType, PluginArgType
from ..values import Dims, as_int


class IDimensionExpr:
    """A size: a constant, or an expression over sizes of inputs."""

    def __init__(self, dim: D.DimLike = 0, size_tensor: bool = False):
        self._dim = dim
        self._size_tensor = size_tensor

    def is_constant(self) -> bool:
        """Whether it is known before shapes are set."""
        return not isinstance(self._dim, D.Dim)

    def get_constant_value(self) -> int:
        """The constant.

        Raises:
            RuntimeError: If it is not constant.
        """
        if isinstance(self._dim, D.Dim):
            raise RuntimeError(f"dimension {self._dim} is not constant; test is_constant() first")
        return int(self._dim)

    def is_size_tensor(self) -> bool:
        """Whether an output of the plugin says it at run time."""
        return self._size_tensor

    isConstant = is_constant
    getConstantValue = get_constant_value

    def __repr__(self) -> str:
        return f"<IDimensionExpr {self._dim}>"


def dim_of(x: Any) -> D.DimLike:
    """The dimension behind an expression or int."""
    return x._dim if isinstance(x, IDimensionExpr) else as_int(x)


class DimsExprs:
    """A shape of dimension expressions.

    Args:
        arg0: The expressions, or how many there are (then zeros).
    """

    def __init__(self, arg0: int | Iterable[Any] = 0):
        if isinstance(arg0, int):
            self._d: list[IDimensionExpr] = [IDimensionExpr(0) for _ in range(arg0)]
        else:
            self._d = [x if isinstance(x, IDimensionExpr) else IDimensionExpr(as_int(x))
                       for x in arg0]

    def __len__(self) -> int:
        return len(self._d)

    def __iter__(self) -> Iterator[IDimensionExpr]:
        return iter(self._d)

    def __getitem__(self, i: Any) -> Any:
        return self._d[i]

    def __setitem__(self, i: Any, x: Any) -> None:
        self._d[i] = x if isinstance(x, IDimensionExpr) else IDimensionExpr(as_int(x))

    def __repr__(self) -> str:
        return f"DimsExprs({[e._dim for e in self._d]})"


class IExprBuilder:
    """Makes dimension expressions."""

    def __init__(self) -> None:
        self.size_tensors: dict[int, IDimensionExpr] = {}
        self._symbol: Any = None  # makes the symbol of a size tensor; set by the plugin layer

    def constant(self, arg0: int) -> IDimensionExpr:
        """A constant."""
        return IDimensionExpr(as_int(arg0))

    def operation(self, arg0: DimensionOperation, arg1: IDimensionExpr,
                  arg2: IDimensionExpr) -> IDimensionExpr:
        """An operation on two expressions.

        Raises:
            OpError: For EQUAL and LESS of sizes that are not known.
        """
        a, b, op = dim_of(arg1), dim_of(arg2), DimensionOperation(arg0)
        if op is DimensionOperation.SUM:
            return IDimensionExpr(a + b)
        if op is DimensionOperation.PROD:
            return IDimensionExpr(a * b)
        if op is DimensionOperation.SUB:
            return IDimensionExpr(a - b)
        if op is DimensionOperation.MAX:
            return IDimensionExpr(D.dim_max(a, b))
        if op is DimensionOperation.MIN:
            return IDimensionExpr(D.dim_min(a, b))
        if op is DimensionOperation.FLOOR_DIV:
            return IDimensionExpr(D.floor_div(a, b))
        if op is DimensionOperation.CEIL_DIV:
            return IDimensionExpr(D.ceil_div(a, b))
        difference = a - b
        if isinstance(difference, D.Dim):
            raise OpError(f"{op.name} of {a} and {b} is not known before shapes are set")
        return IDimensionExpr(int(difference == 0 if op is DimensionOperation.EQUAL
                                  else difference < 0))

    def declare_size_tensor(self, arg0: int, arg1: IDimensionExpr,
                            arg2: IDimensionExpr) -> IDimensionExpr:
        """A size that output ``arg0``, a scalar, says at run time.

        Args:
            arg0: Index of the output.
            arg1: Expected size, for tuning.
            arg2: Largest size.
        """
        index = as_int(arg0)
        upper = dim_of(arg2)
        dim = self._symbol(index, upper) if self._symbol else D.sym(f"%size.{index}")
        expr = IDimensionExpr(dim, size_tensor=True)
        self.size_tensors[index] = expr
        return expr


class PluginTensorDesc:
    """What a plugin is told about a tensor.

    Attributes:
        dims: Its shape; -1 where unknown.
        type: Element type.
        format: Memory layout.
        scale: INT8 scale.
    """

    dims: Any
    type: DataType
    format: TensorFormat
    scale: float

    def __init__(self, dims: Any = (), type: DataType = DataType.FLOAT,
                 format: TensorFormat = TensorFormat.LINEAR, scale: float = 0.0):
        self.dims, self.type, self.format, self.scale = Dims(dims), type, format, scale


class DynamicPluginTensorDesc:
    """A tensor's description with its range of shapes.

    Attributes:
        desc: The description.
        min, opt, max: Least, expected and largest shape.
    """

    desc: PluginTensorDesc
    min: Any
    max: Any
    opt: Any

    def __init__(self, desc: PluginTensorDesc | None = None, min: Any = (), opt: Any = (),
                 max: Any = ()):
        self.desc = desc or PluginTensorDesc()
        self.min, self.opt, self.max = Dims(min), Dims(opt), Dims(max)


class ISymExpr:
    """An extra scalar argument of a compiled kernel.

    Attributes:
        type, dtype, expr: Kind, element type and expression of the argument.
    """

    type: PluginArgType
    dtype: PluginArgDataType
    expr: Any

    def __init__(self) -> None:
        self.type, self.dtype = PluginArgType.INT, PluginArgDataType.INT32
        self.expr = IDimensionExpr(0)


class ISymExprs:
    """Extra scalar arguments of a compiled kernel.

    Attributes:
        nbSymExprs: How many there are; setting it resizes.
    """

    def __init__(self, count: int = 0):
        self._exprs = [ISymExpr() for _ in range(count)]

    @property
    def nbSymExprs(self) -> int:
        """How many there are."""
        return len(self._exprs)

    @nbSymExprs.setter
    def nbSymExprs(self, count: int) -> None:
        del self._exprs[count:]
        self._exprs += [ISymExpr() for _ in range(count - len(self._exprs))]

    def __len__(self) -> int:
        return len(self._exprs)

    def __getitem__(self, i: int) -> ISymExpr:
        return self._exprs[i]

    def __setitem__(self, i: int, x: ISymExpr) -> None:
        self._exprs[i] = x


class KernelLaunchParams:
    """How a compiled kernel is launched.

    Attributes:
        grid_x, grid_y, grid_z, block_x, block_y, block_z: Sizes of grid and blocks.
        shared_mem: Bytes of shared memory.
    """

    grid_x: Any
    grid_y: Any
    grid_z: Any
    block_x: Any
    block_y: Any
    block_z: Any
    shared_mem: Any

    def __init__(self) -> None:
        self.grid_x = self.grid_y = self.grid_z = 1
        self.block_x = self.block_y = self.block_z = 1
        self.shared_mem = 0
