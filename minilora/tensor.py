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
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from .backend import Array, asarray, asnumpy, current, xp

Rule = Callable[[Array], Array]  # or None, where the input was not used after all
OPS: dict[str, Callable[..., Tensor]] = {}  # every op by name; Tensor's operators look here
_serials = itertools.count()
_recording = True


class Early(NamedTuple):
    """A rule with something to prepare in the forward pass, only if the tape keeps the rule.

    prepare() -> kept, run at once;   rule(g, kept) -> gradient, run in the backward pass.
    """

    prepare: Callable[[], Any]
    rule: Callable[[Array, Any], Array]


class Node:
    """One step of the tape. edges: (where the gradient flows to, the rule that makes it)."""

    __slots__ = ("edges", "name", "serial", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], edges: list[tuple[Any, Rule]]) -> None:
        self.name, self.shape = name, shape
        self.edges: list[tuple[Any, Rule]] | None = edges  # None once backward has passed
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
        doubt: Any = 0.0  # on a device, which is not waited for: times 0 it is 0, or nan
        for leaf, grad, _ in arrived:
            total = grad.sum(dtype=grad.dtype if grad.dtype.itemsize > 2 else "float32")
            if not current().numbers_are_free:
                doubt = doubt + total
            elif not math.isfinite(float(total)):
                raise FloatingPointError(
                    f"backward: the gradient of a tensor of shape {leaf.shape} is not finite "
                    f"(the loss is {self.item():.4g}): lower the learning rate or clip"
                )
        if arrived and not current().numbers_are_free:
            self.data = self.data + (doubt * 0).astype(self.dtype)
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
        x = asnumpy(self.data)
        parts = [f"{x.dtype.kind}{8 * x.itemsize} {self.shape}"]
        if x.size <= 8:
            parts.append(str(x.tolist()))
        elif x.dtype.kind == "f":
            parts.append(f"mean {x.mean():.3g} sd {x.std():.3g}")
            parts.append(f"min {x.min():.3g} max {x.max():.3g}")
        if self._node is not None:
            parts.append(f"from {self._node.name}")
        if self.requires_grad:
            parts.append("grad")
        return f"Tensor({', '.join(parts)})"


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
            target, rule = edges.pop()
            grad = rule(g)
            if grad is None:
                continue
            owned = grad is not g and grad.base is None
            if grad.shape != target.shape:
                grad, owned = unbroadcast(grad, target.shape), True
            if isinstance(target, Tensor):
                leaves[id(target)] = target
                arrived.add(id(target), grad, owned)
                continue
            if target.serial not in nodes:
                nodes[target.serial] = target
                heapq.heappush(youngest, -target.serial)
            flowing.add(target.serial, grad, owned)
            del grad, rule
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


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum g down to `shape`: the gradient of broadcasting, along every axis that it stretched."""
    extra = g.ndim - len(shape)
    stretched = [extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1]
    axes = tuple(range(extra)) + tuple(stretched)
    return g.sum(axis=axes, keepdims=True).reshape(shape) if axes else g.reshape(shape)


def op(rule: Callable[..., tuple[Array, tuple[Any, ...]]]) -> Callable[..., Tensor]:
    """Make a differentiable op of `rule(*arrays, **settings) -> value, (a rule per array)`.

    Arrays are positional (Tensor, array, number or None), settings are keywords. A rule is kept
    only for inputs that require a gradient; a ValueError gets the op's name and the shapes.
    """
    parameters = inspect.signature(rule).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(rule)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        try:
            value, rules = rule(*arrays, **settings)
        except (ValueError, IndexError) as error:
            told = ", ".join(
                f"{names[i] if i < len(names) else f'input {i}'} is {tuple(x.shape)}"
                for i, x in enumerate(arrays)
                if hasattr(x, "shape")
            )
            raise type(error)(f"{rule.__name__}: {told}: {error}") from error
        out = Tensor(value)
        if _recording:
            edges: list[tuple[Any, Rule]] = [
                (x._node or x, _ready(rule))
                for x, rule in zip(inputs, rules)
                if isinstance(x, Tensor) and x.requires_grad
            ]
            if edges:
                out.requires_grad = True
                out._node = Node(rule.__name__, out.shape, edges)
        return out

    OPS[rule.__name__] = apply
    return apply


def _ready(rule: Rule | Early) -> Rule:
    if not isinstance(rule, Early):
        return rule
    kept, late = rule.prepare(), rule.rule
    return lambda g: late(g, kept)


def once(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, run at its first call only, later calls get that result: for work two gradients share."""
    result: list[Any] = []

    def get(*args: Any) -> Any:
        if not result:
            result.append(f(*args))
        return result[0]

    return get


@contextmanager
def recorded(flag: bool) -> Iterator[None]:
    """Inside, a tape is kept, or (False) not."""
    global _recording
    before, _recording = _recording, flag
    try:
        yield
    finally:
        _recording = before


def no_grad() -> AbstractContextManager[None]:
    """Inside, nothing is recorded: no tape, no rules, no activations kept."""
    return recorded(False)


def recording() -> bool:
    """Is a tape being kept, that is, are we outside `no_grad`?"""
    return _recording
