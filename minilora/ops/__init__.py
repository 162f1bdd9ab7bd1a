"""Every differentiable rule: what is computed, and under it how its gradient flows."""

# ruff: noqa: I001
# fmt: off
from .algebra import add, div, exp, linear, log, lora_linear, matmul, mean, mul, neg, relu, rows
from .algebra import sqrt, sub, sum, tanh
from .attend import attention
from .fused import cross_entropy, gelu, layer_norm, log_softmax, softmax
from .shape import concat, dropout, embedding, getitem, keep_mask, reshape, transpose

__all__ = [
    "add", "attention", "concat", "cross_entropy", "div", "dropout", "embedding", "exp", "gelu",
    "getitem", "keep_mask", "layer_norm", "linear", "log", "log_softmax", "lora_linear", "matmul",
    "mean", "mul", "neg", "relu", "reshape", "rows", "softmax", "sqrt", "sub", "sum", "tanh",
    "transpose",
]
