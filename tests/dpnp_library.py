"""dpnp behind the backend's hooks: the array library of somebody else, with a device of its own.

It runs on a processor, through the OpenCL that its wheels bring. `pip install dpnp`, then
`pytest -m dpnp` runs on it every test that can.
"""

import copyreg
import functools
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from minilora.backend import host, wide
from minilora.backend.device import Device

MISSING = "" if importlib.util.find_spec("dpnp") else "dpnp is not installed: pip install dpnp"
FAULTS = {  # what dpnp cannot do, nor this file for it: its message -> what it means
    r"cannot create weak reference to 'dpnp_array'": "nobody can watch its arrays go",
    r"got <class 'minilora\.tensor\.Tensor'>": "its operators do not leave a Tensor to the Tensor",
    r"No \w+ implementation is available": "some matrix products are not there for halves",
    r"is not c-contiguous nor f-contiguous": "no matrix product takes a matrix of stride 0",
}
OPENCL = Path(sys.prefix, "lib", "libintelocl.so")  # where its wheels put it


def fault(error):
    """Return which fault of dpnp an error, or the error behind it, comes from; "" for another."""
    while error is not None:
        for message, meaning in FAULTS.items():
            if re.search(message, str(error)):
                return meaning
        error = error.__cause__
    return ""


class Module:
    """dpnp, and what it has not in the form that the engine asks for."""

    def __init__(self):
        os.environ.setdefault("DPCPP_CPU_NUM_CUS", "1")  # one thread, as NumPy has in the tests
        if OPENCL.exists():
            os.environ.setdefault("OCL_ICD_FILENAMES", str(OPENCL))
        self.dpnp = dpnp = importlib.import_module("dpnp")
        self.maximum, self.minimum = map(self._in_place, ("maximum", "minimum"))
        copyreg.pickle(dpnp.ndarray, lambda x: (dpnp.asarray, (dpnp.asnumpy(x),)))  # for deepcopy

    def __getattr__(self, name):
        return getattr(self.dpnp, name)

    def broadcast_to(self, x, shape):
        return self.dpnp.broadcast_to(x, shape).copy()  # else no matrix product takes it

    def _in_place(self, name):
        """Return a function whose result may be one of its operands, which dpnp refuses."""
        function = getattr(self.dpnp, name)

        @functools.wraps(function)
        def call(x, y, out=None):
            result = function(x, y)
            if out is None:
                return result
            out[...] = result
            return out

        return call


class DpnpBackend(Device):
    """dpnp 0.20."""

    name = "dpnp"

    def __init__(self):
        self.module = Module()
        self._special = importlib.import_module("dpnp.scipy.special")

    def describe(self):
        return f"dpnp {self.module.__version__} on {self.module.empty(0).sycl_device.name}"

    def synchronize(self):
        self.module.synchronize_array_data(self.module.empty(0))

    def asnumpy(self, x):
        return self.module.asnumpy(x)

    def owner(self, x):
        return x.get_array().usm_data  # one object for an array and its views

    def owns(self, x):
        return sys.getrefcount(self.owner(x)) == 2  # that of x, and of this call: no view is alive

    def reserved(self):
        return host.reserved()  # the device is the processor

    def meter(self):
        pytest.skip("dpnp has no allocator to ask")

    def scatter_add(self, target, index, rows):
        chosen = self.module.arange(len(target))[:, None] == index[None]
        target += chosen.astype(rows.dtype) @ rows

    def erf(self, x):
        return self._special.erf(wide(x)).astype(x.dtype, copy=False)  # halves lose half their bits
