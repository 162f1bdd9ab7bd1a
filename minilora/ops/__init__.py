"""Every differentiable rule: what is computed, and under it how its gradient flows."""

from .algebra import (
    add, div, exp, linear, log, lora_linear, matmul, mean, mul, neg, relu, sqrt, sub, sum, tanh,
)
from .fused import attend, attention, cross_entropy, gelu, layer_norm, log_softmax, nll, softmax
from .shape import concat, dropout, embedding, getitem, keep_mask, reshape, take, transpose

__all__ = [
    "add", "attention", "concat", "cross_entropy", "div", "dropout", "embedding", "exp", "gelu",
    "getitem", "layer_norm", "linear", "log", "log_softmax", "lora_linear", "matmul", "mean", "mul",
    "neg", "relu", "reshape", "softmax", "sqrt", "sub", "sum", "tanh", "transpose",
]  # fmt: skip
