"""INT8 calibrators that feed sample calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..network.enums_build import CalibrationAlgoType
from ..network.interfaces import (
    IInt8EntropyCalibrator,
    IInt8EntropyCalibrator2,
    IInt8LegacyCalibrator,
    IInt8MinMaxCalibrator,
)
from ..support import logger as log
from .calls import split_call
from .lower import Converted

_CALIBRATORS = {
    CalibrationAlgoType.ENTROPY_CALIBRATION_2: IInt8EntropyCalibrator2,
    CalibrationAlgoType.ENTROPY_CALIBRATION: IInt8EntropyCalibrator,
    CalibrationAlgoType.MINMAX_CALIBRATION: IInt8MinMaxCalibrator,
    CalibrationAlgoType.LEGACY_CALIBRATION: IInt8LegacyCalibrator,
}


def calibrator(algorithm: CalibrationAlgoType, calls: Any, done: Converted,
               shapes: Mapping[int, tuple[int, ...]] | None = None) -> Any:
    """A calibrator that feeds sample calls, one at a time.

    Args:
        calls: A sequence of calls, each as `torch2trt`'s ``inputs``.
        done: Which arguments are the network's inputs.
        shapes: The shape that calibration takes, by position of arguments; calls of other shapes
            are left out, with a warning.
    """
    base: Any = _CALIBRATORS[algorithm]

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.index = 0
            self.held: list[torch.Tensor] = []

        def get_algorithm(self) -> CalibrationAlgoType:
            return algorithm

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            while self.index < len(calls):
                leaves = pytree.tree_leaves(split_call(calls[self.index]))
                self.index += 1
                if all(tuple(leaves[p].shape) == tuple(s) for p, s in (shapes or {}).items()):
                    break
                log.warning(f"call {self.index - 1} of the calibration data has other shapes than "
                            f"{list((shapes or {}).values())} and is left out")
            else:
                return None
            feeds = dict(zip(done.input_names, (leaves[p] for p in done.inputs), strict=True))
            self.held = [feeds[n].detach().contiguous() for n in names]
            return [t.data_ptr() for t in self.held]

        def read_calibration_cache(self, *args: Any) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None:
            return None

    return Calibrator()
