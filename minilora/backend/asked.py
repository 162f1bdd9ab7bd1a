"""What the engine asks of an array library beside its hooks: functions of `xp`, methods of arrays.

Each line is a function as the engine calls it. Keywords are given by name, because not every
library takes them by place. A test derives these lines from the code.

PLAIN    what all code asks for, but the kernels
KERNELS  what they ask for beyond that: most write into an array that is there already, `out=`
ARRAY    what an array has, beside its operators and its indices
"""

from __future__ import annotations

from typing import Any

PLAIN = """
arange(stop, dtype=)
array(x, order=)
asarray(x, dtype=)
broadcast_to(x, shape)
concatenate(arrays, axis=)
copyto(into, x, where=)
empty(shape, dtype=)
equal(x, y)
exp(x)
finfo(dtype)
full(shape, value, dtype=)
greater(x, y)
greater_equal(x, y)
isfinite(x)
less(x, y)
less_equal(x, y)
log(x)
maximum(x, y)
minimum(x, y)
not_equal(x, y)
ones(shape, dtype=)
ones_like(x)
rint(x)
sqrt(x)
squeeze(x, axis=)
stack(arrays, axis=)
take(x, indices, axis=)
tanh(x)
transpose(x, axes)
triu(x, k=)
where(condition, x, y)
zeros(shape, dtype=)
zeros_like(x)
""".strip().splitlines()
KERNELS = """
add(x, y, out=)
divide(x, y, out=)
empty_like(x)
exp(x, out=)
matmul(x, y, out=)
minimum(x, y, out=)
multiply(x, y, out=)
negative(x, out=)
result_type(x, y)
sqrt(x, out=)
square(x)
subtract(x, y, out=)
""".strip().splitlines()
ARRAY = ("T", "all", "astype", "copy", "dtype", "max", "mean", "nbytes", "ndim", "reshape", "shape",
         "size", "strides", "sum", "swapaxes", "transpose")


def missing(library: Any) -> list[str]:
    """Return the names that the module of this `Backend`, or its arrays, lack.

    What only kernels ask for does not count if the library runs every op plain.
    """
    asked = PLAIN if library.plain else PLAIN + KERNELS
    names = dict.fromkeys(line.partition("(")[0] for line in asked)
    lacks = [name for name in names if not hasattr(library.module, name)]
    array = library.module.zeros((1, 1), dtype="float32") if "zeros" not in lacks else None
    return lacks + [f"array.{name}" for name in ARRAY if array is None or not hasattr(array, name)]
