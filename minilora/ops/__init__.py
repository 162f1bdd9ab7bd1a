"""Every differentiable rule: what is computed, and under it how its gradient flows.

These are the textbook's formulas, and every one of them runs as it stands under `plain()`. Where a
fast version pays, minilora/kernels has one with the same contract, and that runs otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..backend.settings import choose, own, plain
from ..tensor import OPS, Tensor, op
from .algebra import (
    add,
    div,
    exp,
    linear,
    log,
    lora_linear,
    matmul,
    mean,
    mul,
    neg,
    relu,
    rows,
    sqrt,
    sub,
    sum,
    tanh,
)
from .neural import attention, cross_entropy, gelu, layer_norm, log_softmax, softmax
from .shape import concat, dropout, dropout_mask, embedding, getitem, reshape, transpose

__all__ = [
    "add", "attention", "concat", "cross_entropy", "div", "dropout", "dropout_mask", "embedding",
    "exp", "gelu", "getitem", "layer_norm", "linear", "log", "log_softmax", "lora_linear", "matmul",
    "mean", "mul", "neg", "op", "plain", "relu", "replaced", "reshape", "rows", "softmax", "sqrt",
    "sub", "sum", "tanh", "transpose",
]
OPS.update({name: f for name, f in list(vars().items()) if hasattr(f, "formula")})


@contextmanager
def replaced(**mine: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, `mine` stand in for the ops of these names, in all of the engine, in this thread.
    with ops.replaced(softmax=my_softmax): model(ids)      each: an `@op`, or composed of Tensors.
    It is called as the op is. Raises ValueError for a name that no op has.
    """
    odd = [name for name in mine if name not in OPS]
    if odd:
        raise ValueError(f"replaced: there is no op {odd[0]!r}: there are {', '.join(sorted(OPS))}")
    with choose(replaced={**own.replaced, **{OPS[name]: f for name, f in mine.items()}}):
        yield
