"""Activations recomputed instead of kept: memory for time (Chen et al. 2016)."""

from __future__ import annotations

from .backend import Array
from .backend.choices import as_now
from .nn import Module
from .surgery import generators
from .tensor import Node, Tensor, gradients, no_grad, recording


def recomputed(module: Module, x: Tensor) -> Tensor:
    """module(x), of which the tape keeps x alone; the backward pass runs the module again.

    The same value and the same gradients, to the bit, dropout and the choice of kernels included.
    It costs one more forward pass, and saves all that the module's own rules would have kept until
    then.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not (recording() and (x.requires_grad or trained)):
        return module(x)
    draws = {path: rng.bit_generator.state for path, rng in generators(module).items()}
    inputs, choices = [x, *trained] if x.requires_grad else trained, as_now()
    with no_grad():
        y = Tensor(module(x).data)

    def again(g: Array) -> tuple[Array | None, ...]:
        start, own = Tensor(x.data, x.requires_grad), generators(module)
        later = {path: rng.bit_generator.state for path, rng in own.items()}
        for path, state in draws.items():
            own[path].bit_generator.state = state
        with choices():
            out = module(start)
        node, same = out._node, out is start
        del out  # its numbers are not needed
        for path, state in later.items():
            own[path].bit_generator.state = state
        if node is None:  # it gave back its own input, or nothing that is trained
            return tuple(g if same and t is x else None for t in inputs)
        made = {
            id(x if leaf is start else leaf): grad if owned or grad is g else grad.copy()
            for leaf, grad, owned in gradients(node, g)
        }
        return tuple(made.get(id(t)) for t in inputs)

    y.requires_grad = True
    y._node = Node("recomputed", y.shape, [([t._node or t for t in inputs], again)])
    return y
