"""The fast versions of some ops, and the one table that says which.

A kernel has its op's signature and contract, and is told besides which inputs need a gradient. It
gives the value, in x's dtype, and one function from the gradient of the output to those of the
inputs (None where none is needed). Of Adam's, which is no op, only the signature is the same.
All that makes a step fast is in here: work shared by the cores, pieces that
fit the cache, memory that is reused, halves widened at once, formulas that become one kernel on a
GPU. `plain()` runs everything without them; tests hold each to its op in ops/, at every shape.
"""

from typing import Any

from .. import ops
from ..training.adam import adam
from . import attention, products, rowwise

TABLE: dict[Any, Any] = {
    ops.linear: products.linear,
    ops.lora_linear: products.lora_linear,
    ops.attention: attention.attention,
    ops.layer_norm: rowwise.layer_norm,
    ops.gelu: rowwise.gelu,
    ops.cross_entropy: rowwise.cross_entropy,
    adam: rowwise.adam,
}
for _plain, _fast in TABLE.items():
    _plain.kernel = _fast
