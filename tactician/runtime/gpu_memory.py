"""Device memory that belongs to objects."""

from __future__ import annotations

import contextlib
import weakref

from ..targets.cuda.driver import Driver


class DeviceBlock:
    """Device memory that is freed with the object.

    Attributes:
        address: At a multiple of 256.
        nbytes: Its size.
    """

    def __init__(self, driver: Driver, nbytes: int):
        self.nbytes = nbytes
        self.address = driver.alloc(max(nbytes, 1))
        self._finalizer = weakref.finalize(self, _free, driver, self.address)

    def free(self) -> None:
        """Gives the memory back now."""
        self._finalizer()


def _free(driver: Driver, address: int) -> None:
    with contextlib.suppress(Exception):  # the driver may be gone when a process ends
        driver.free(address)
