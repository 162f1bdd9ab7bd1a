"""Activations recomputed instead of kept: memory for time (Chen et al. 2016)."""

from __future__ import annotations

from .backend import Array
from .nn import Module, generators
from .tensor import Node, Rule, Tensor, gradients, no_grad, once, recorded, recording


def recomputed(module: Module, x: Tensor) -> Tensor:
    """module(x), of which the tape keeps x alone; the backward pass runs the module again.

    The same value and the same gradients, to the bit, dropout included. It costs one more forward
    pass, and saves all that the module's own rules would have kept until then.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not (recording() and (x.requires_grad or trained)):
        return module(x)
    draws = {path: rng.bit_generator.state for path, rng in generators(module).items()}
    with no_grad():
        y = Tensor(module(x).data)

    @once
    def again(g: Array) -> dict[int, Array]:
        start, own = Tensor(x.data, x.requires_grad), generators(module)
        later = {path: rng.bit_generator.state for path, rng in own.items()}
        for path, state in draws.items():
            own[path].bit_generator.state = state
        with recorded(True):
            out = module(start)
        node, same = out._node, out is start
        del out  # its numbers are not needed
        for path, state in later.items():
            own[path].bit_generator.state = state
        if node is None:  # it gave back its own input, or nothing that is trained
            return {id(x): g} if same else {}
        arrived = gradients(node, g)
        return {
            id(x if leaf is start else leaf): grad if owned or grad is g else grad.copy()
            for leaf, grad, owned in arrived
        }

    def rule(target: Tensor) -> Rule:
        return lambda g: again(g).pop(id(target), None)

    inputs = [x, *trained] if x.requires_grad else trained
    y.requires_grad = True
    y._node = Node("recomputed", y.shape, [(t._node or t, rule(t)) for t in inputs])
    return y
