"""Recompute activations instead of keeping them: less memory, more time (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..backend.blocks import restoring
from ..backend.settings import as_now
from ..nn import Module, generators
from ..tensor import Node, Tensor, gradients, no_grad, recording


def recomputed(module: Module, *xs: Tensor, **how: Any) -> Tensor:
    """Return module(*xs, **how). The tape keeps only xs; the backward pass runs the module again.

    Value and gradients are the same, bit for bit, with the same dropout and kernels. It costs one
    more forward pass, and saves the memory of all activations inside the module.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    wanted = [x for x in dict.fromkeys(xs) if x.requires_grad]
    if not (recording() and (wanted or trained)):
        return module(*xs, **how)
    draws = {path: rng.bit_generator.state for path, rng in generators(module).items()}
    inputs, choices = [*wanted, *trained], as_now()
    with no_grad():
        y = Tensor.of(module(*xs, **how).data)

    def again(g: Array) -> tuple[Array | None, ...]:
        starts, own = {x: Tensor.of(x.data, x.requires_grad) for x in xs}, generators(module)

        def draw_from(states: dict[str, Any]) -> None:
            for path, state in states.items():
                own[path].bit_generator.state = state

        later = {path: rng.bit_generator.state for path, rng in own.items()}
        with restoring(lambda: draw_from(later)), choices():
            draw_from(draws)
            out = module(*(starts[x] for x in xs), **how)
        node, same = out._node, {x for x, start in starts.items() if out is start}
        del out  # free its array
        if node is None:  # the output is an input, or requires no gradient
            return tuple(g if t in same else None for t in inputs)
        grads = {
            leaf: grad if owned or grad is g else grad.copy()
            for leaf, grad, owned in gradients(node, g)
        }
        return tuple(grads.get(starts.get(t, t)) for t in inputs)

    y.requires_grad = True
    y._node = Node("recomputed", y, [([t._node or t for t in inputs], again)])
    return y
