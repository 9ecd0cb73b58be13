"""Users' own converters, as torch2trt has them: ``@tensorrt_converter("torch.relu")``.

While a module is exported, calls of functions that have a converter become one opaque node each;
when the graph is translated the converter adds the layers. Functions of torch are seen through a
``TorchFunctionMode``, ``forward`` of modules through the instances, other functions are replaced
for the time of the export: nothing stays changed.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..ir.graph import Value
from ..network.network import INetworkDefinition
from ..network.tensor import ITensor
from ..support.errors import UsageError
from .table import AtenProblem
from .types import dtype_of, from_numpy

CONVERTERS: dict[str, dict[str, Any]] = {}
_ALIASES = {"__add__": "add", "__radd__": "add", "__sub__": "sub", "__mul__": "mul",
            "__rmul__": "mul", "__truediv__": "div", "__div__": "div", "__pow__": "pow",
            "__matmul__": "matmul", "__neg__": "neg"}  # fmt: skip
_ids = itertools.count(1)


def tensorrt_converter(method: Any, is_real: bool = True, enabled: bool = True,
                       imports: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Registers the decorated function as what translates a function or a module's ``forward``.

    Args:
        method: Its name, such as ``"torch.nn.functional.relu"`` or ``"torch.nn.Linear.forward"``,
            or the function itself.
        is_real: Kept; every registered converter is used.
        enabled: False: not registered.
        imports: Packages that must be there; otherwise it isn't registered.

    The function takes a `ConversionContext`. It reads ``ctx.method_args`` and
    ``ctx.method_kwargs``, adds layers to ``ctx.network`` and says what the results are by setting
    ``_trt`` of the tensors in ``ctx.method_return``.
    """
    def register(fn: Callable[..., Any]) -> Any:
        try:
            for name in imports:
                import_module(name)
        except ImportError:
            return fn
        name = method if isinstance(method, str) else f"{method.__module__}.{method.__qualname__}"
        if enabled:
            CONVERTERS[name] = {"converter": fn, "is_real": is_real, "method": method}
        return fn

    return register


class ConversionContext:
    """What a converter works with.

    Attributes:
        network: Receives layers.
        method_str: Name the converter was registered for.
        method_args, method_kwargs: The call's arguments. Tensors that the network computes are on
            the meta device and have ``_trt``; weights are real and have none.
        method_return: The call's result, to be given ``_trt``.
        torch2trt_kwargs, builder_config: For converters that look at them; empty here.
    """

    def __init__(self, network: INetworkDefinition, name: str, args: Any, kwargs: Any,
                 result: Any):
        self.network = network
        self.method_str = name
        self.method_args, self.method_kwargs = args, kwargs
        self.method_return = result
        self.torch2trt_kwargs: dict[str, Any] = {}
        self.builder_config: Any = None
        self.lock = False

    def get_trt_tensor(self, x: Any) -> ITensor:
        """A tensor or number as the network's tensor."""
        return add_missing_trt_tensors(self.network, [x])[0]


# --- recording calls ------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a function that has a converter."""

    name: str
    fn: Callable[..., Any]
    leaves: list[Any]  # tensors are None
    spec: Any
    where: list[int]
    result_spec: Any = None
    result_leaves: list[Any] = field(default_factory=list)

    def arguments(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        full = list(self.leaves)
        for i, t in zip(self.where, tensors, strict=True):
            full[i] = t
        args, kwargs = pytree.tree_unflatten(full, self.spec)
        return args, kwargs

    def run(self, tensors: Sequence[Any]) -> list[torch.Tensor]:
        """The results' tensors; notes how they are nested."""
        args, kwargs = self.arguments(tensors)
        if args and isinstance(args[0], torch.nn.Module):
            result = _run_module(self.fn, args, kwargs, tensors)
        else:
            result = self.fn(*args, **kwargs)
        leaves, self.result_spec = pytree.tree_flatten(result)
        self.result_leaves = [None if isinstance(x, torch.Tensor) else x for x in leaves]
        return [x.clone() for x in leaves if isinstance(x, torch.Tensor)]


_calls: dict[int, _Call] = {}


def _run_module(fn: Any, args: Any, kwargs: Any, tensors: Sequence[Any]) -> Any:
    """A module's ``forward``; its weights become fake where the arguments are."""
    from torch._subclasses.fake_tensor import FakeTensor

    module = args[0]
    fake = next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
    if fake is None:
        return fn(*args, **kwargs)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    fakes: dict[str, torch.Tensor] = {
        k: v if isinstance(v, FakeTensor) else fake.from_tensor(v)
        for k, v in held.items()}
    wrapper = module.__dict__.pop("forward", None)
    try:
        return torch.func.functional_call(module, fakes, args[1:], kwargs)
    finally:
        if wrapper is not None:
            module.__dict__["forward"] = wrapper


@torch.library.custom_op("tactician::user_call", mutates_args=())
def user_call(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    """Stands for a call that a user's converter translates."""
    return _calls[call].run(tensors)


@user_call.register_fake
def _(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    return _calls[call].run(tensors)


def _record(name: str, fn: Any, args: Any, kwargs: Any) -> Any:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    where = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    tensors = [leaves[i] for i in where]
    if not tensors:
        return fn(*args, **kwargs)
    rest = [None if isinstance(x, torch.Tensor) else x for x in leaves]
    number = next(_ids)
    call = _calls[number] = _Call(name, fn, rest, spec, where)
    results = iter(torch.ops.tactician.user_call(tensors, number))
    full = [next(results) if x is None else x for x in call.result_leaves]
    return pytree.tree_unflatten(full, call.result_spec)


class _Watch(TorchFunctionMode):
    """Sees calls of torch's functions."""

    def __init__(self, names: dict[Any, str]):
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        name = self.names.get(func)
        if name is None:
            return func(*args, **(kwargs or {}))
        return _record(name, func, args, kwargs or {})


@contextmanager
def capturing(module: torch.nn.Module) -> Iterator[list[int]]:
    """Makes calls that have converters opaque, within ``with``; gives their numbers."""
    if not CONVERTERS:
        yield []
        return
    first = next(_ids)
    watched: dict[Any, str] = {}
    with ExitStack() as undo:
        for name in CONVERTERS:
            _watch(name, module, watched, undo)
        undo.enter_context(_Watch(watched))
        made: list[int] = []
        yield made
    made += [n for n in _calls if n > first]


def forget_with(program: Any, calls: Sequence[int]) -> None:
    """Drops recorded calls when a program goes."""
    if calls:
        weakref.finalize(program, lambda: [_calls.pop(n, None) for n in calls])


def _watch(name: str, module: torch.nn.Module, watched: dict[Any, str], undo: ExitStack) -> None:
    owner, attribute = _resolve(name)
    target = getattr(owner, attribute)
    if isinstance(owner, type) and issubclass(owner, torch.nn.Module):
        for m in module.modules():
            if type(m).__dict__.get(attribute, getattr(type(m), attribute, None)) is target:
                _replace(m, attribute, _wrapped(name, target, m), undo)
    elif (getattr(owner, "__module__", None) or owner.__name__).partition(".")[0] == "torch":
        watched[target] = name
        alias = _ALIASES.get(attribute)
        if alias and owner is torch.Tensor:
            watched[getattr(torch.Tensor, alias)] = name
    else:
        _replace(owner, attribute, _wrapped(name, target), undo)


def _wrapped(name: str, target: Any, bound: Any = None) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        first = () if bound is None else (bound,)
        return _record(name, target, (*first, *args), kwargs)

    return call


def _replace(owner: Any, attribute: str, value: Any, undo: ExitStack) -> None:
    had = attribute in vars(owner)
    before = vars(owner).get(attribute)

    def restore() -> None:
        if had:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)

    setattr(owner, attribute, value)
    undo.callback(restore)


def _resolve(name: str) -> tuple[Any, str]:
    """The object that has a function, and the function's name there.

    Raises:
        UsageError: If there is no such function.
    """
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:k]))
        except ImportError:
            continue
        try:
            for part in parts[k:-1]:
                owner = getattr(owner, part)
            getattr(owner, parts[-1])
        except AttributeError:
            break
        return owner, parts[-1]
    raise UsageError(f"a converter is registered for {name!r}, which doesn't exist")


# --- translating ----------------------------------------------------------------------------------


def is_user_call(node: Any) -> bool:
    return node.op == "call_function" and str(node.target) == "tactician.user_call.default"


def convert_call(network: INetworkDefinition, values: Sequence[Value], number: int,
                 samples: Sequence[Any], results: Sequence[Any]) -> list[Value]:
    """Lets a converter add its layers.

    Args:
        values: The call's tensors.
        number: Which call.
        samples, results: torch's (fake) tensors of the arguments and results.

    Raises:
        AtenProblem: If the converter fails or leaves a result without ``_trt``.
    """
    call = _calls[number]
    tensors = [_shown(network, v, s) for v, s in zip(values, samples, strict=True)]
    args, kwargs = call.arguments(tensors)
    blank = [_meta(r) for r in results]
    given = iter(blank)
    full = [next(given) if x is None else x for x in call.result_leaves]
    ctx = ConversionContext(network, call.name, args, kwargs,
                            pytree.tree_unflatten(full, call.result_spec))
    try:
        CONVERTERS[call.name]["converter"](ctx)
    except Exception as e:
        raise AtenProblem(f"the converter of {call.name} failed: {type(e).__name__}: {e}") from e
    out = []
    for t in blank:
        made = getattr(t, "_trt", None)
        if not isinstance(made, ITensor):
            raise AtenProblem(f"the converter of {call.name} set no _trt of a result of shape "
                              f"{tuple(t.shape)}")
        out.append(network._value(made, call.name))
    return out


def _meta(sample: Any) -> torch.Tensor:
    sizes = [int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in sample.shape]
    return torch.empty(sizes, dtype=sample.dtype, device="meta")


def _shown(network: INetworkDefinition, v: Value, sample: Any) -> torch.Tensor:
    if v.const is not None:
        return from_numpy(v.const, v.dtype)
    t = _meta(sample)
    t._trt = network._tensor(v)  # type: ignore[attr-defined]
    return t


# --- what converters call -------------------------------------------------------------------------


def get_arg(ctx: ConversionContext, name: str, pos: int, default: Any) -> Any:
    """An argument given by name or by position, or its default."""
    if name in ctx.method_kwargs:
        return ctx.method_kwargs[name]
    return ctx.method_args[pos] if len(ctx.method_args) > pos else default


def add_trt_constant(network: INetworkDefinition, tensor: Any) -> ITensor:
    """A tensor as a constant of the network."""
    array = tensor.detach().cpu().contiguous().numpy()
    out = network.add_constant(array.shape, np.ascontiguousarray(array)).get_output(0)
    assert out is not None
    return out


def add_missing_trt_tensors(network: INetworkDefinition, tensors: Sequence[Any]) -> list[ITensor]:
    """The network's tensors for tensors and numbers; constants are added for those without.

    Raises:
        UsageError: If something is neither.
    """
    dtype = check_torch_dtype(*tensors)
    out = []
    for t in tensors:
        if isinstance(t, ITensor):
            out.append(t)
        elif isinstance(t, (int, float)):
            rank = max((x.dim() for x in tensors if isinstance(x, torch.Tensor)), default=0)
            out.append(add_trt_constant(network, torch.full((1,) * rank, t, dtype=dtype)))
        elif isinstance(t, torch.Tensor):
            made = getattr(t, "_trt", None)
            if made is None and t.device.type == "meta":
                raise UsageError("a tensor that the network doesn't compute has no values")
            out.append(add_trt_constant(network, t) if made is None else made)
        else:
            raise UsageError(f"{type(t).__name__} is neither a tensor nor a number")
    return out


def broadcast_trt_tensors(network: INetworkDefinition, trt_tensors: Sequence[ITensor],
                          broadcast_ndim: int) -> list[ITensor]:
    """Tensors of one rank: sizes of 1 in front of those that have fewer dimensions."""
    out = []
    for t in trt_tensors:
        rank = len(tuple(t.shape))
        if rank < broadcast_ndim:
            layer = network.add_shuffle(t)
            # 0 copies a size, which only works in place: so the shape is told where it is known
            layer.reshape_dims = (*(1,) * (broadcast_ndim - rank), *tuple(t.shape))
            made = layer.get_output(0)
            assert made is not None
            t = made
        out.append(t)
    return out


def trt_(network: INetworkDefinition, *tensors: Any) -> Any:
    """Tensors and numbers as the network's tensors of one rank; one gives one."""
    made = add_missing_trt_tensors(network, tensors)
    out = broadcast_trt_tensors(network, made, max(len(tuple(t.shape)) for t in made))
    return out[0] if len(out) == 1 else tuple(out)


def check_torch_dtype(*tensors: Any) -> torch.dtype:
    """The element type that tensors share; FP32 if there are none.

    Raises:
        UsageError: If they differ.
    """
    kinds = {t.dtype for t in tensors if isinstance(t, torch.Tensor)}
    if len(kinds) > 1:
        raise UsageError(f"tensors have different types: {sorted(map(str, kinds))}")
    return kinds.pop() if kinds else torch.float32


def torch_dtype_to_trt(dtype: torch.dtype) -> Any:
    """TensorRT's element type for torch's."""
    from ..network.enums import from_ir

    return from_ir(dtype_of(dtype))


def torch_dim_resolve_negative(dim: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the front."""
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    return tuple(d + ndim if d < 0 else d for d in dims)


def torch_dim_to_trt_axes(dim: Any, ndim: int) -> int:
    """Dimensions as TensorRT's bits."""
    return sum(1 << d for d in set(torch_dim_resolve_negative(dim, ndim)))
