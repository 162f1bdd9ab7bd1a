"""Fast versions of some ops, and the table of them. Importing this package fills the ops' slots.

A kernel has its op's signature and contract. It also receives `needs`: which inputs require a
gradient. It returns the value, in x's dtype, and one rule for all inputs: a function from the
output's gradient to a tuple of theirs (None where none is needed). Adam is not an op: its kernel
has the same signature and works in place, too.

The speed of a step comes from here: work shared by the cores, pieces that fit the cache, memory
that is reused, halves widened at once, formulas that are one kernel on a GPU. `plain()` switches
all kernels off. Tests compare each with its op, at many shapes.
"""

from typing import Any

from .. import ops
from ..backend import Backend, threads
from ..training.adam import adam
from . import attention, products, rowwise

TABLE: dict[Any, Any] = {
    ops.linear: products.linear,
    ops.quantised_linear: products.quantised_linear,
    ops.lora_linear: products.lora_linear,
    ops.attention: attention.attention,
    ops.layer_norm: rowwise.layer_norm,
    ops.rms_norm: rowwise.rms_norm,
    ops.gelu: rowwise.gelu,
    ops.swiglu: rowwise.swiglu,
    ops.cross_entropy: rowwise.cross_entropy,
    adam: rowwise.adam,
}
Backend.on_cores = staticmethod(threads.share)  # type: ignore[method-assign]
for _op, _kernel in TABLE.items():
    _op.kernel = _kernel
