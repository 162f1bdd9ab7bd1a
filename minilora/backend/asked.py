"""What the engine asks of an array library beside its hooks: functions of `xp`, methods of arrays.

Each line is a function as the engine calls it: keywords are given by name, because not every
library takes them by place. A test derives the lines from the code.
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


def missing(library: Any) -> list[str]:
    """Return the functions that `xp` is asked for and that the module of this `Backend` lacks.

    If it is plain, those that only kernels ask for do not count.
    """
    asked = PLAIN if library.plain else PLAIN + KERNELS
    names = dict.fromkeys(line.partition("(")[0] for line in asked)
    return [name for name in names if not hasattr(library.module, name)]
