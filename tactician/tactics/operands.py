"""Operands for regions that are measured: random contents, laid out as the runtime does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Value
from ..regions.region import Region, is_slice, pitch

_BLOCK = 1_000_003  # a prime
_SPREADS = 5  # standard deviations that ranges of activations cover
_ALIGNMENT = 64  # of tensors in plans and arenas: times of kernels depend on it


def concrete(v: Value, env: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(D.evaluate(d, env) for d in v.dims)


def random_arrays(
    region: Region, env: Mapping[str, int]
) -> dict[Value, np.ndarray[Any, Any]]:
    """Operands with well-scaled random contents; constants are themselves."""
    rng = np.random.default_rng(0)
    addressing = {
        inner.value for s in region.stages for ld in E.loads(s.expr)
        for part in ld.index for inner in E.loads(part)
    }
    arrays: dict[Value, np.ndarray[Any, Any]] = {}
    for physical in region.inputs:
        v = physical.meta.get("logical", physical)
        if v.const is not None:
            arrays[v] = aligned_copy(np.asarray(v.const))  # kernels get its address
            continue
        if v in arrays:
            continue
        shape = concrete(v, env)
        if v.content is not None:
            ints = [D.evaluate(d, env) for d in v.content.flat]
            arrays[v] = np.array(ints, dtype=v.dtype.np).reshape(shape)
        elif v.dtype.is_float:
            arrays[v] = _normal(rng, shape, v.dtype.np)
        elif v.dtype.kind == "b":
            arrays[v] = np.asarray(rng.random(shape) < 0.5)  # a lone element is no array else
        elif _quantized(region, v):
            arrays[v] = _quantized_numbers(rng, region, v, shape)
        elif region.anchor is not None or v in addressing:
            arrays[v] = np.zeros(shape, v.dtype.np)  # may be indices: zero is always in range
        else:
            low = 0 if v.dtype.kind == "u" else -3
            arrays[v] = rng.integers(low, 4, shape).astype(v.dtype.np)
    for physical in region.inputs:
        if "logical" in physical.meta:
            arrays[physical] = stored(physical, arrays[physical.meta["logical"]])
        elif is_slice(physical):
            apart = room(physical, arrays[physical].shape)
            apart[...] = arrays[physical]
            arrays[physical] = apart
        elif arrays[physical].ctypes.data % _ALIGNMENT:
            arrays[physical] = aligned_copy(arrays[physical])
    for v in region.outputs:
        arrays[v] = room(v, concrete(v, env))
    return arrays


def _quantized(region: Region, v: Value) -> bool:
    """Whether an integer operand holds quantized numbers rather than indices."""
    anchor = region.anchor
    return anchor is not None and anchor.op in ("int_matmul", "int_conv") and v.dtype.bits <= 8


def _quantized_numbers(
    rng: np.random.Generator, region: Region, v: Value, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Normal numbers around the zero point, as calibrated activations are: kernels may be slower
    where most numbers are extreme."""
    assert region.anchor is not None
    x, _, zero = (*region.anchor.inputs, None)[:3]
    limits, middle = np.iinfo(v.dtype.np), 0.0
    if v is x and zero is not None and zero.const is not None:
        middle = float(np.reshape(zero.const, -1)[0])
    spread = max(limits.max - middle, middle - limits.min) / _SPREADS
    numbers = middle + spread * _normal(rng, shape, np.float32)
    clipped = np.clip(np.rint(numbers), limits.min, limits.max)
    return np.asarray(clipped, v.dtype.np)  # a lone element is no array else


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any
) -> np.ndarray[Any, Any]:
    """Normal numbers. Large arrays repeat a block whose length divides no extent, as drawing and
    rounding millions of numbers takes longer than timing kernels does."""
    count = math.prod(shape)
    block = rng.standard_normal(min(count, _BLOCK), dtype=np.float32).astype(dtype)
    return block.reshape(shape) if count <= _BLOCK else np.resize(block, shape)


def stored(v: Value, logical: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as the value stores it."""
    out = room(v, logical.transpose(v.meta["perm"]).shape)
    out[...] = logical.transpose(v.meta["perm"])
    return out


def room(v: Value, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Zeros laid out as the value is, in the middle of others if it is a slice."""
    if not is_slice(v):
        return aligned_zeros(shape, v.dtype.np)
    wide = aligned_zeros((*shape[:-1], int(pitch(v))), v.dtype.np)  # type: ignore[arg-type]
    return wide[..., : shape[-1]]


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Zeros that begin where the runtime would have them begin."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    # by way of a memoryview, so that this array is what slices of it name as their base
    start = -raw.ctypes.data % _ALIGNMENT
    return np.ndarray(shape, dtype, memoryview(raw), start)  # type: ignore[arg-type]


def aligned_copy(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array, contiguous and aligned; itself if it is that already."""
    if a.flags.c_contiguous and a.ctypes.data % _ALIGNMENT == 0:
        return a
    out = aligned_zeros(a.shape, a.dtype)
    out[...] = a
    return out
