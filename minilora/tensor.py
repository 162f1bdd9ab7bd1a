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
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from . import display
from .backend import Array, asarray, asnumpy, current, xp
from .backend.choices import choose, is_plain, no_grad, own, plain, recording

__all__ = ["OPS", "Node", "Tensor", "composed", "no_grad", "op", "plain", "recording"]

Rule = Callable[[Array], Any]  # gradient of the output -> of one input, or a tuple: of each input
OPS: dict[str, Callable[..., Tensor]] = {}  # the ops of minilora.ops, by name
_serials = itertools.count()


class Node:
    """One step of the tape. edges: (where gradients flow to, the rule that makes them)."""

    __slots__ = ("edges", "name", "serial", "shape")

    def __init__(
        self, name: str, shape: tuple[int, ...], edges: list[tuple[Sequence[Any], Rule]]
    ) -> None:
        self.name, self.shape = name, shape
        self.edges: list[tuple[Sequence[Any], Rule]] | None = edges  # None once backward has passed
        self.serial = next(_serials)  # younger than every node it flows to


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
            raise RuntimeError("backward: nothing that this was computed from requires a gradient")
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
    flowing, arrived, leaves = _Gradients(), _Gradients(), dict[int, Tensor]()
    flowing.add(node.serial, g, owned=False)
    while youngest:
        node = nodes.pop(-heapq.heappop(youngest))
        g, _ = flowing.pop(node.serial)
        if node.edges is None:
            raise RuntimeError(
                f"backward: the tape behind {node.name} was consumed by an earlier backward(); "
                "run the forward pass again, or add the losses and call backward() once"
            )
        edges, node.edges = node.edges, None
        while edges:
            targets, rule = edges.pop()
            made = rule(g)
            for target, grad in zip(targets, made if isinstance(made, tuple) else (made,)):
                if target is None or (grad is None and isinstance(made, tuple)):
                    continue  # frozen, or not used after all
                if grad is None:
                    raise TypeError(f"{node.name}: a rule gave nothing: does it end in return?")
                owned = grad is not g and grad.base is None
                if grad.shape != target.shape:
                    grad, owned = unbroadcast(grad, target.shape, node.name), True
                if isinstance(target, Tensor):
                    leaves[id(target)] = target
                    arrived.add(id(target), grad, owned)
                    continue
                if target.serial not in nodes:
                    nodes[target.serial] = target
                    heapq.heappush(youngest, -target.serial)
                flowing.add(target.serial, grad, owned)
            del made, grad, rule
        del g
    return [(leaf, *arrived.pop(key)) for key, leaf in leaves.items()]


class _Gradients:
    """Gradients on their way, by key. The first is held as it came, the second makes a sum of its
    own, later ones are added in place: never into an array that belongs to somebody else."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Array, bool]] = {}

    def add(self, key: int, grad: Array, owned: bool) -> None:
        if key not in self._held:
            self._held[key] = grad, owned
            return
        held, ours = self._held[key]
        if ours:
            held += grad
        elif owned:
            grad += held
            held = grad
        else:
            held = held + grad
        self._held[key] = held, True

    def pop(self, key: int) -> tuple[Array, bool]:
        return self._held.pop(key)


def unbroadcast(g: Array, shape: tuple[int, ...], name: str = "unbroadcast") -> Array:
    """Sum g down to `shape`: the gradient of broadcasting, along every axis that it stretched."""
    extra = g.ndim - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:])):
        raise ValueError(f"{name}: an input is {shape}, and its rule gave a gradient "
                         f"{tuple(g.shape)}: that shape is needed, or one it broadcasts to")
    stretched = [extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1]
    axes = tuple(range(extra)) + tuple(stretched)
    return g.sum(axis=axes, keepdims=True).reshape(shape) if axes else g.reshape(shape)


def op(formula: Callable[..., tuple[Array, tuple[Rule, ...]]]) -> Callable[..., Tensor]:
    """Make a differentiable op of `formula(*arrays, **settings) -> value, (a rule per array)`.

    Arrays are positional (Tensor, array, number or None), settings are keywords. A rule is kept
    only for inputs that require a gradient; a ValueError gets the op's name and the shapes. Where
    the op has a `.kernel`, that runs instead: kernel(*arrays, needs, **settings) -> value, and one
    function from the gradient of the output to a tuple of those of the arrays. needs: which of the
    arrays want one. TypeError for a rule too few or too many, or a Tensor among the settings.
    """
    name, signature = formula.__name__, inspect.signature(formula)
    kinds = {p.name: p.kind for p in signature.parameters.values()}
    names = [n for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(formula)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if own.replaced and apply in own.replaced:
            return _stand_in(apply, inputs, settings)
        if settings:
            if not settings.keys().isdisjoint(names):  # an array by its name
                bound = signature.bind(*inputs, **settings)
                inputs, settings = bound.args, bound.kwargs
            odd = [key for key, value in settings.items() if isinstance(value, Tensor)]
            if odd:
                raise TypeError(f"{name}: {odd[0]} is a setting, not an array: it takes no Tensor")
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        keep = own.recording
        needs = [keep and isinstance(x, Tensor) and x.requires_grad for x in inputs]
        needs += [False] * (len(names) - len(needs))
        kernel = None if is_plain() else apply.kernel  # type: ignore[attr-defined]
        try:
            if kernel:
                value, rules = kernel(*arrays, needs=needs, **settings)
            else:
                value, rules = formula(*arrays, **settings)
        except (ValueError, IndexError) as error:
            if str(error).startswith(f"{name}:"):
                raise
            told = ", ".join(
                f"{names[i] if i < len(names) else f'input {i}'} is {tuple(x.shape)}"
                for i, x in enumerate(arrays)
                if hasattr(x, "shape")
            )
            raise type(error)(f"{name}: {told}: {error}") from error
        if not kernel:
            expected = names or [f"input {i}" for i in range(len(arrays))]
            if len(rules) != len(expected) or any(n and not r for n, r in zip(needs, rules)):
                given = [bool(rule) for rule in rules]
                raise TypeError(f"{name}: rules are {given}, and its arrays are {expected}: return "
                                "value, (a rule for each array that may want a gradient)")
        out = Tensor(value)
        if any(needs):
            out.requires_grad = True
            targets = [x._node or x if need else None for x, need in zip(inputs, needs)]
            edges = [((t,), r) for t, r in zip(targets, () if kernel else rules) if t is not None]
            out._node = Node(name, out.shape, edges or [(targets, rules)])
        return out

    apply.kernel, apply.formula = None, formula  # type: ignore[attr-defined]
    return apply


def composed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An op that is written in other ops, with no rule of its own; its `.kernel`, if it has one, is
    used where nothing is replaced, so that what stands in for an op is met inside of others."""
    whole = op(functools.wraps(function)(lambda *arrays, **settings: None))  # never without kernel

    @functools.wraps(function)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if own.replaced and apply in own.replaced:
            return _stand_in(apply, inputs, settings)
        kernel = apply.kernel  # type: ignore[attr-defined]
        if kernel is None or own.replaced or is_plain():
            return function(*inputs, **settings)
        whole.kernel = kernel  # type: ignore[attr-defined]
        return whole(*inputs, **settings)

    apply.kernel, apply.formula = None, function  # type: ignore[attr-defined]
    return apply


def _stand_in(apply: Any, inputs: Any, settings: Any) -> Tensor:
    """What the reader put in an op's place; inside, that op is the engine's own again."""
    others = {which: f for which, f in own.replaced.items() if which is not apply}
    mine = own.replaced[apply]
    with choose(replaced=others):
        out = mine(*inputs, **settings)
    if not isinstance(out, Tensor):
        raise TypeError(f"{apply.__name__}: what replaces it gave a {type(out).__name__}: it takes "
                        "Tensors and gives one: make it an @op, or compose it of ops")  # fmt: skip
    return out
