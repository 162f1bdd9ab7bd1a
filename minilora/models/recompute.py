"""Activations recomputed instead of kept: memory for time (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..backend.settings import as_now
from ..nn import Module, generators
from ..tensor import Node, Tensor, gradients, no_grad, recording


def recomputed(module: Module, *xs: Tensor, **how: Any) -> Tensor:
    """module(*xs, **how), of which the tape keeps xs alone; the backward pass runs it again.

    The same value and the same gradients, to the bit, dropout and the choice of kernels included.
    It costs one more forward pass, and saves all that the module's own rules would have kept until
    then.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    wanted = [x for x in dict.fromkeys(xs) if x.requires_grad]
    if not (recording() and (wanted or trained)):
        return module(*xs, **how)
    draws = {path: rng.bit_generator.state for path, rng in generators(module).items()}
    inputs, choices = [*wanted, *trained], as_now()
    with no_grad():
        y = Tensor(module(*xs, **how).data)

    def again(g: Array) -> tuple[Array | None, ...]:
        starts, own = {x: Tensor(x.data, x.requires_grad) for x in xs}, generators(module)
        later = {path: rng.bit_generator.state for path, rng in own.items()}
        for path, state in draws.items():
            own[path].bit_generator.state = state
        with choices():
            out = module(*(starts[x] for x in xs), **how)
        node, same = out._node, [x for x, start in starts.items() if out is start]
        del out  # its numbers are not needed
        for path, state in later.items():
            own[path].bit_generator.state = state
        if node is None:  # it gave back its own input, or nothing that is trained
            return tuple(g if t in same else None for t in inputs)
        made = {
            leaf: grad if owned or grad is g else grad.copy()
            for leaf, grad, owned in gradients(node, g)
        }
        return tuple(made.get(starts.get(t, t)) for t in inputs)

    y.requires_grad = True
    y._node = Node("recomputed", y.shape, [([t._node or t for t in inputs], again)])
    return y
