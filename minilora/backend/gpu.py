"""CuPy behind the backend's hooks: the same code on a GPU. No other file may import CuPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..words import INSTALL
from .device import Device
from .library import Array


class CupyBackend(Device):
    """CuPy 14.

    device: a CUDA device's index, as text; "" for the device that the thread uses. Raises
    ImportError without CuPy, RuntimeError if no device answers, ValueError for an unknown device.
    """

    name = "cupy"

    def __init__(self, device: str = "") -> None:
        try:
            self.module, self._special = self.libraries()
        except ImportError as error:
            raise ImportError(f"CuPy is missing: {INSTALL('gpu')} ({error})") from error
        try:
            count = self.module.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise RuntimeError(f"CuPy is installed, but no CUDA device answers: {error}") from error
        self.devices = count
        if device and not (device.isdecimal() and int(device) < count):
            raise ValueError(f"no CUDA device {device!r}: there are {count}, numbered from 0")
        self.device = self.module.cuda.Device(int(device) if device else None)
        self._kernels: dict[Callable[..., None], Callable[..., None]] = {}

    def libraries(self) -> tuple[Any, Any]:
        """Return CuPy, and the module that has its erf."""
        return importlib.import_module("cupy"), importlib.import_module("cupyx.scipy.special")

    def enter(self) -> None:
        """Make it the device of this thread; RuntimeError if it cannot be used."""
        try:
            self.device.use()
        except Exception as error:
            raise RuntimeError(
                f"CUDA device {self.device.id} cannot be used: {error}: is it full, or in use "
                "by another process? Free it, or choose another one: cupy:1, cupy:2"
            ) from error

    def fuse(self, formula: Callable[..., None]) -> Callable[..., None]:
        """Return `cupy.fuse` of the formula, which compiles a kernel per combination of dtypes."""
        if formula not in self._kernels:
            self._kernels[formula] = self.module.fuse(formula)
        return self._kernels[formula]

    def synchronize(self) -> None:
        self.device.synchronize()

    def asnumpy(self, x: Any) -> np.ndarray:
        return self.module.asnumpy(x)  # type: ignore[no-any-return]

    def scatter_add(self, target: Array, index: Array, rows: Array) -> None:
        """Rows of one index are added in no fixed order: the last bits may differ between runs."""
        self.module.add.at(target, index, rows)

    def erf(self, x: Array) -> Array:
        return self._special.erf(x)

    def reserved(self) -> int:
        """Return the bytes that the memory pool has taken from the device."""
        return int(self.module.get_default_memory_pool().total_bytes())

    def meter(self) -> Any:
        """Count the blocks (multiples of 512 bytes) that the pool hands out and takes back in this
        thread. Only one meter at a time."""
        used = self.module.get_default_memory_pool().used_bytes()
        return _counting(self.module.cuda.MemoryHook)(used)

    def describe(self) -> str:
        version = self.module.__version__
        return f"{self.name} {version} on device {self.device.id}, {self.named(self.device.id)}"

    def named(self, device: int) -> str:
        """Return the manufacturer's name of that device."""
        return str(self.module.cuda.runtime.getDeviceProperties(device)["name"].decode())


LIBRARY = CupyBackend


def devices() -> str:
    """Return one line that names the devices for `use("cupy")`, or says why there is none."""
    try:
        backend = CupyBackend()
    except (ImportError, RuntimeError) as error:
        return str(error)
    count = backend.module.cuda.runtime.getDeviceCount()
    return ", ".join(f"cupy:{i} {backend.named(i)}" for i in range(count))


def _counting(hook: type[Any]) -> type[Any]:
    """Return a meter, a subclass of CuPy's memory hook."""

    class Counter(hook):  # type: ignore[misc]
        name = "minilora"

        def __init__(self, used: int) -> None:
            self.used = self.peak = used

        def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
            self.used += mem_size
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            self.used -= mem_size

        def read(self) -> tuple[int, int]:
            return self.used, self.peak

        def reset(self) -> None:
            self.peak = self.used

    return Counter
