"""The ops: each with its formula, and below it the gradient of each input.

They are the formulas of a textbook, and under `plain()` they run as they are printed. An op has a
slot, `op.kernel`, for a fast version. This package leaves all slots empty: minilora/kernels fills
them, and the package face (minilora/__init__.py) loads it as soon as the ops are loaded.
"""

from collections.abc import Callable, Iterator

from ..backend.blocks import block
from ..backend.settings import choose, plain, thread_settings
from ..tensor import OPS, Tensor, op
from .algebra import (
    add,
    div,
    exp,
    linear,
    log,
    lora_linear,
    matmul,
    max,
    mean,
    mul,
    neg,
    power,
    quantised_linear,
    relu,
    rows,
    sigmoid,
    sqrt,
    sub,
    sum,
    tanh,
)
from .neural import (
    attention,
    cross_entropy,
    gelu,
    layer_norm,
    log_softmax,
    rms_norm,
    rotary,
    softmax,
    swiglu,
)
from .shape import concat, dropout, dropout_mask, embedding, getitem, reshape, transpose

__all__ = [
    "add", "attention", "concat", "cross_entropy", "div", "dropout", "dropout_mask", "embedding",
    "exp", "gelu", "getitem", "layer_norm", "linear", "log", "log_softmax", "lora_linear", "matmul",
    "max", "mean", "mul", "neg", "op", "plain", "power", "quantised_linear", "relu", "replaced",
    "reshape", "rms_norm", "rotary", "rows", "sigmoid", "softmax", "sqrt", "sub", "sum", "swiglu",
    "tanh", "transpose",
]
OPS.update({name: f for name, f in list(vars().items()) if hasattr(f, "formula")})


@block
def replaced(**substitutes: Callable[..., Tensor]) -> Iterator[None]:
    """Replace ops by name in the block, everywhere in the engine, for this thread.
    with ops.replaced(softmax=my_softmax): model(ids)
    A substitute is an `@op` or a function of Tensors, and is called as the op is. Raises ValueError
    for an unknown name.
    """
    unknown = [name for name in substitutes if name not in OPS]
    if unknown:
        raise ValueError(f"replaced: unknown op {unknown[0]!r}: choose from "
                         f"{', '.join(sorted(OPS))}")
    by_op = {OPS[name]: substitute for name, substitute in substitutes.items()}
    with choose(replaced={**thread_settings.replaced, **by_op}):
        yield
