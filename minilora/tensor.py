"""The engine: `Tensor`, `@op`, `backward`, `no_grad`.

A Tensor is an array plus, if it was computed from something that is trained, a `Node` on the tape.
A node holds no value: it holds, per input that needs a gradient, one rule (a function from the
gradient of the output to the gradient of that input) and the node that the result flows to. The
arrays that those rules close over are the only activations that stay alive. A frozen input has no
rule, so what only its rule would have needed is freed at once: that is where LoRA saves memory.
"""
from __future__ import annotations

import functools
import heapq
import inspect
from collections.abc import Callable, Sequence
from itertools import compress, count, zip_longest
from typing import Any

from . import display
from .backend import Array, asarray, asnumpy, current, xp
from .backend.settings import kernel_of, no_grad, own, plain, recording, stand_in

__all__ = ["OPS", "Node", "Tensor", "composed", "no_grad", "op", "plain", "recording"]

OPS: dict[str, Callable[..., Tensor]] = {}  # the ops of minilora.ops, by name
Edges = list[tuple[Sequence[Any], Any]]  # a rule: the output's gradient -> that of its targets
_serials = count()

class Node:
    """One step of the tape. edges: (where gradients flow to, the rule that makes them)."""
    __slots__ = ("edges", "name", "serial", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], edges: Edges) -> None:
        self.name, self.shape = name, shape
        self.edges: Edges | None = edges  # None once backward has passed
        self.serial = next(_serials)      # younger than every node it flows to

class Tensor:
    """An array that may want a gradient.
    .data the array   .grad its gradient (same shape, or None)   .requires_grad is it trained?
    Only leaves, the tensors that were not computed, receive `.grad`.
    """
    __slots__ = ("_node", "data", "grad", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self.data: Array = data.data if isinstance(data, Tensor) else asarray(data)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self._node: Node | None = None
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors have gradients, not {self.data.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)
    @property
    def dtype(self) -> Any:
        return self.data.dtype
    def item(self) -> float:
        """The one number in this tensor, on the host."""
        return float(asnumpy(self.data).reshape(()))
    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.data)
    def backward(self) -> None:
        """Add d self / d leaf to the `.grad` of every leaf that requires one; consumes the tape.
        Raises ValueError for a non-scalar, RuntimeError where there is no tape (nothing requires a
        gradient, or it was consumed already), FloatingPointError for a gradient that is not finite
        (no `.grad` is touched then). A device is not waited for: there, this becomes nan instead.
        """
        if self.data.size != 1:
            raise ValueError(f"backward: needs a scalar, got {self.shape}: use .sum() or .mean()")
        if self._node is None:
            raise RuntimeError("backward: nothing that this was computed from requires a gradient: "
                               "leave no_grad(), model.requires_grad_(), lora.set_adapter(...)")
        arrived = gradients(self._node, xp.ones_like(self.data))
        self.data = current().finite(self.data, [grad for _, grad, _ in arrived])
        while arrived:
            leaf, grad, owned = arrived.pop()
            if leaf.grad is not None:
                leaf.grad += grad
            else:
                leaf.grad = asarray(grad if owned else grad.copy(), leaf.dtype)

    # Operators and the commonest ops as methods: all of them are the ops of minilora.ops.
    def __add__(self, other: Any) -> Tensor: return OPS["add"](self, other)
    def __radd__(self, other: Any) -> Tensor: return OPS["add"](other, self)
    def __sub__(self, other: Any) -> Tensor: return OPS["sub"](self, other)
    def __rsub__(self, other: Any) -> Tensor: return OPS["sub"](other, self)
    def __mul__(self, other: Any) -> Tensor: return OPS["mul"](self, other)
    def __rmul__(self, other: Any) -> Tensor: return OPS["mul"](other, self)
    def __truediv__(self, other: Any) -> Tensor: return OPS["div"](self, other)
    def __rtruediv__(self, other: Any) -> Tensor: return OPS["div"](other, self)
    def __matmul__(self, other: Any) -> Tensor: return OPS["matmul"](self, other)
    def __rmatmul__(self, other: Any) -> Tensor: return OPS["matmul"](other, self)
    def __neg__(self) -> Tensor: return OPS["neg"](self)
    def __getitem__(self, index: Any) -> Tensor: return OPS["getitem"](self, index=index)
    def sum(self, axis: Any = None) -> Tensor: return OPS["sum"](self, axis=axis)
    def mean(self, axis: Any = None) -> Tensor: return OPS["mean"](self, axis=axis)
    def reshape(self, *shape: int) -> Tensor: return OPS["reshape"](self, shape=shape)
    @property
    def T(self) -> Tensor: return OPS["transpose"](self)
    __array_ufunc__ = None  # so that ndarray + Tensor comes to Tensor.__radd__

    def __len__(self) -> int:
        return len(self.data)
    def __repr__(self) -> str:
        """One line: dtype, shape, statistics (or the values, when few), and what it is."""
        return display.line(self, asnumpy(self.data))

def gradients(node: Node, g: Array) -> list[tuple[Tensor, Array, bool]]:
    """(leaf, its gradient, may it be written to?) of all leaves, if g arrives at `node`.
    Consumes the tape. Every node is younger than the nodes it flows to: from the youngest to the
    oldest is a topological order; a heap of the nodes reached so far is all the search it takes.
    """
    nodes, youngest = {node.serial: node}, [-node.serial]
    flowing: dict[int, tuple[Array, bool]] = {node.serial: (g, False)}
    arrived, leaves = dict[int, tuple[Array, bool]](), dict[int, Tensor]()
    while youngest:
        node = nodes.pop(-heapq.heappop(youngest))
        g, _ = flowing.pop(node.serial)
        if node.edges is None:
            raise RuntimeError(
                f"backward: the tape behind {node.name} was consumed by an earlier backward(); "
                "run the forward pass again, or add the losses and call backward() once")
        edges, node.edges = node.edges, None
        while edges:
            targets, rule = edges.pop()
            made = rule(g)
            made = made if isinstance(made, tuple) or made is None else (made,)
            if made is None or len(made) != len(targets):
                told = "nothing: does it end in return?" if made is None else f"{len(made)} arrays"
                raise TypeError(f"{node.name}: a rule for one input gave {told}")
            for target, grad in zip(targets, made):
                if target is None or grad is None:
                    continue  # frozen, or not used after all
                if not hasattr(grad, "shape"):
                    raise TypeError(f"{node.name}: a rule gave a {type(grad).__name__}, no array")
                owned = grad is not g and grad.base is None
                if grad.shape != target.shape:
                    grad, owned = unbroadcast(grad, target.shape, node.name), True
                if isinstance(target, Tensor):
                    leaves[id(target)] = target
                    _add(arrived, id(target), grad, owned)
                    continue
                if target.serial not in nodes:
                    nodes[target.serial] = target
                    heapq.heappush(youngest, -target.serial)
                _add(flowing, target.serial, grad, owned)
            del made, grad, rule
        del g
    return [(leaf, *arrived.pop(key)) for key, leaf in leaves.items()]

def _add(held: dict[int, tuple[Array, bool]], key: int, grad: Array, owned: bool) -> None:
    """The first gradient is held as it came, the second makes a sum of its own, later ones are
    added in place: never into an array that belongs to somebody else."""
    if key in held:
        sofar, ours = held[key]
        if ours:
            sofar += grad
        elif owned:
            grad += sofar
            sofar = grad
        else:
            sofar = sofar + grad
        grad, owned = sofar, True
    held[key] = grad, owned

def unbroadcast(g: Array, shape: tuple[int, ...], name: str = "unbroadcast") -> Array:
    """Sum g down to `shape`: the gradient of broadcasting, along every axis that it stretched."""
    extra = g.ndim - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:])):
        raise ValueError(f"{name}: an input is {shape}, and its rule gave a gradient "
                         f"{tuple(g.shape)}: it must be {shape}, or what {shape} broadcasts to")
    stretched = [extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1]
    axes = tuple(range(extra)) + tuple(stretched)
    return g.sum(axis=axes, keepdims=True).reshape(shape) if axes else g.reshape(shape)

def op(formula: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a differentiable op of `formula(*arrays, **settings) -> value, (a rule per array)`.
    Arrays are positional (Tensor, array, number or None), settings are keywords. A rule is kept
    only for inputs that require a gradient; None stands for what has none, such as integers. A
    ValueError gets the op's name and the shapes. Where the table of minilora/kernels has a fast
    version, that runs instead: it is told besides which arrays `needs` say want a gradient, and
    gives one function from the gradient of the output to a tuple of theirs. TypeError for a rule
    too few or too many, or a Tensor among the settings.
    """
    name, signature = formula.__name__, inspect.signature(formula)
    names = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(formula)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if own.replaced and (mine := stand_in(apply)):
            return mine(*inputs, **settings)  # type: ignore[no-any-return]
        if settings:
            if not settings.keys().isdisjoint(names):  # an array by its name
                bound = signature.bind(*inputs, **settings)
                bound.apply_defaults()
                inputs, settings = bound.args, bound.kwargs
            if odd := [key for key, x in settings.items() if isinstance(x, Tensor)]:
                raise TypeError(f"{name}: {odd[0]} is a setting, not an array: it takes no Tensor")
        arrays, keep = [x.data if isinstance(x, Tensor) else x for x in inputs], own.recording
        needs = [keep and isinstance(x, Tensor) and x.requires_grad for x in inputs]
        needs += [False] * (len(names) - len(needs))
        kernel, called = kernel_of(apply), names or [f"input {i}" for i in range(len(inputs))]
        try:
            made = (kernel(*arrays, needs=needs, **settings) if kernel else
                    formula(*arrays, **settings))
        except (ValueError, IndexError) as error:
            if str(error).startswith(f"{name}:"): raise
            shapes = ((n, tuple(x.shape)) for n, x in zip(called, arrays) if hasattr(x, "shape"))
            has = ", ".join(f"{n} is {shape}" for n, shape in shapes)
            raise type(error)(f"{name}: {has}: {error}") from error
        value, rules = made if type(made) is tuple and len(made) == 2 else (made, ())
        if not kernel and (type(rules) not in (tuple, list) or len(rules) != len(called)
                           or not all(compress(rules, needs))):
            there = [bool(rule) for rule in rules] if isinstance(rules, tuple | list) else []
            raise TypeError(f"{name}: its arrays are {', '.join(called)}; of their rules there "
                            f"are {there}: return value, (a rule for each), in a tuple")
        out = Tensor(value)
        if any(needs):
            out.requires_grad = True
            targets = [x._node or x if need else None for x, need in zip_longest(inputs, needs)]
            edges: Edges = [(targets, rules)]
            if not kernel:
                edges = [((t,), rule) for t, rule in zip(targets, rules) if t is not None]
            out._node = Node(name, out.shape, edges)
        return out

    apply.kernel, apply.formula = None, formula  # type: ignore[attr-defined]
    return apply

def composed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An op that is written in other ops, with no rule of its own. Its kernel, if it has one, runs
    where nothing is replaced, so that what stands in for an op is met inside of others."""
    whole = op(functools.wraps(function)(lambda *arrays, **settings: (None, ())))  # kernel alone

    @functools.wraps(function)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if own.replaced and (mine := stand_in(apply)):
            return mine(*inputs, **settings)  # type: ignore[no-any-return]
        if own.replaced or not (kernel := kernel_of(apply)):
            return function(*inputs, **settings)
        whole.kernel = kernel  # type: ignore[attr-defined]
        return whole(*inputs, **settings)

    apply.kernel, apply.formula = None, function  # type: ignore[attr-defined]
    return apply
