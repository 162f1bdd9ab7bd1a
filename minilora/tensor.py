"""The engine: `Tensor`, `@op`, `backward`, `no_grad`.

A Tensor is an array. If it was computed from something that requires a gradient, it also has a
`Node` on the tape. A node stores no value. For each input that requires a gradient it stores one
rule (a function from the output's gradient to that input's gradient) and where the result flows to.
The arrays that these rules close over are the only activations that stay alive. A frozen input has
no rule, so the arrays that only its rule would use are freed at once: LoRA saves memory here.
"""
from __future__ import annotations

import functools
import heapq
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import compress, zip_longest
from typing import Any, Self

import numpy as np

from . import display
from .backend import Array, asarray, asnumpy, current, like, total, wide, xp
from .backend.flags import own_flags
from .backend.settings import choose, is_plain, no_grad, plain, recording, thread_settings
from .backend.writes import held, last_write, ticks, wrote
from .conversions import Converts, number, ops_by_name

__all__ = ["OPS", "Node", "Tensor", "composed", "no_grad", "op", "plain", "recording"]

OPS: dict[str, Callable[..., Tensor]] = ops_by_name  # the ops of minilora.ops
Edges = list[tuple[Sequence[Any], Any]]     # (targets, rule): rule(g) is a gradient per target

class Node:
    """One step of the tape. edges: (where gradients flow to, the rule that computes them)."""
    __slots__ = ("dtype", "edges", "name", "serial", "shape")

    def __init__(self, name: str, out: Tensor, edges: Edges) -> None:
        self.name, self.shape, self.dtype = name, out._data.shape, out._data.dtype
        self.edges: Edges | None = edges  # None after a backward pass
        self.serial = next(ticks)         # greater than that of every node it flows to

class Tensor(Converts):
    """An array that may require a gradient: a copy of `data`, so later writes to that do not count.
    .data the array   .grad its gradient (same shape, or None)   .requires_grad is it trained?
    Only leaves, which are not the output of an op, receive `.grad`.
    """
    __slots__ = ("_data", "_node", "grad", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        array = data._data if isinstance(data, Tensor) else data
        self._set(xp.array(array, order="C"), requires_grad)
        if requires_grad and self._data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors have gradients, not {self.dtype}")

    def _set(self, array: Array, requires_grad: bool = False) -> Self:
        self._data, self.requires_grad = array, requires_grad
        self.grad: Array | None = None
        self._node: Node | None = None
        return self
    @classmethod
    def of(cls, array: Array, requires_grad: bool = False) -> Self:
        """Return a tensor of this array itself, not of a copy. Write to it only while no tape may
        need it."""
        return cls.__new__(cls)._set(array, requires_grad)

    @property
    def data(self) -> Array:
        return self._data
    @data.setter
    def data(self, array: Array) -> None:
        if array is self._data:  # t.data -= ... writes to the array, then sets it
            wrote(array)
        self._data = array
    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)
    @property
    def dtype(self) -> Any:
        return self._data.dtype
    @property
    def size(self) -> int:
        return int(self._data.size)
    @property
    def ndim(self) -> int:
        return int(self._data.ndim)
    def detach(self) -> Tensor:
        """Return a tensor of the same array, off the tape."""
        return Tensor.of(self._data)
    @own_flags
    def backward(self) -> None:
        """Add d self / d leaf to the `.grad` of every leaf that requires one; consume the tape.
        Raises ValueError for a non-scalar, RuntimeError if there is no tape (nothing requires a
        gradient, or the tape was consumed) and FloatingPointError for a gradient that is not finite
        (then no `.grad` changes). On a device, to avoid waiting for it, a gradient that is not
        finite makes this tensor nan instead.
        """
        if self._data.size != 1:
            raise ValueError(f"backward: needs a scalar, got {self.shape}: use .sum() or .mean()")
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor depends on nothing that requires a gradient: leave "
                "no_grad(), or call model.requires_grad_() or lora.set_adapter(model, name)")
        arrived = gradients(self._node, xp.ones_like(self._data))
        self._data = current().finite(self._data, [grad for _, grad, _ in arrived])
        before = [(leaf, leaf.grad) for leaf, _, _ in arrived]
        try:
            while arrived:
                leaf, grad, owned = arrived.pop()
                if leaf.grad is None:
                    leaf.grad = asarray(grad if owned else grad.copy(), leaf.dtype)
                else:
                    leaf.grad = wide(leaf.grad) + grad  # halves are added up in float32
        except BaseException:  # an interrupt: all gradients are added, or none
            for leaf, old in before:
                leaf.grad = old
            raise

    # Operators, and the most common ops as methods. Each of them is an op of minilora.ops.
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
    def __pow__(self, exponent: Any) -> Tensor: return OPS["power"](self, exponent=exponent)
    def __neg__(self) -> Tensor: return OPS["neg"](self)
    def __getitem__(self, index: Any) -> Tensor: return OPS["getitem"](self, index=index)
    def sum(self, axis: Any = None, **keepdims: bool) -> Tensor:
        return OPS["sum"](self, axis=axis, **keepdims)
    def mean(self, axis: Any = None, **keepdims: bool) -> Tensor:
        return OPS["mean"](self, axis=axis, **keepdims)
    def max(self, axis: Any = None, **keepdims: bool) -> Tensor:
        return OPS["max"](self, axis=axis, **keepdims)
    def exp(self) -> Tensor: return OPS["exp"](self)
    def log(self) -> Tensor: return OPS["log"](self)
    def relu(self) -> Tensor: return OPS["relu"](self)
    def tanh(self) -> Tensor: return OPS["tanh"](self)
    def reshape(self, *shape: Any) -> Tensor:
        return OPS["reshape"](self, shape=shape[0] if len(shape) == 1 else shape)
    @property
    def T(self) -> Tensor: return OPS["transpose"](self)

    def __repr__(self) -> str:
        """Return one line: dtype, shape, statistics (or the values, if few), and origin."""
        return display.line(self, asnumpy(self.data))

def gradients(node: Node, g: Array) -> list[tuple[Tensor, Array, bool]]:
    """Return (leaf, its gradient, may it be written to?) of all leaves, if g arrives at `node`.
    Consumes the tape. Every node has a greater serial than the nodes it flows to, so descending
    serials are a topological order, and a heap of the nodes reached so far gives the next one.
    """
    nodes, heap = {node.serial: node}, [-node.serial]
    flowing: dict[int, tuple[Array, bool]] = {node.serial: (g, False)}
    arrived, leaves = dict[int, tuple[Array, bool]](), dict[int, Tensor]()
    written = last_write()
    while heap:
        node = nodes.pop(-heapq.heappop(heap))
        g = like(node, flowing.pop(node.serial)[0])  # halves: a sum in float32 is rounded once
        if node.edges is None:
            raise RuntimeError(
                f"backward: the tape behind {node.name} was consumed by an earlier backward(); "
                "run the forward pass again, or add the losses and call backward() once")
        edges, node.edges = node.edges, None
        while edges:
            targets, rule = edges.pop()
            if written > node.serial:
                _unchanged(rule, node)
            for target, grad in zip(targets, _results(rule(g), len(targets), node.name)):
                if target is None or grad is None:
                    continue  # frozen, or without influence
                if not hasattr(grad, "shape"):
                    raise TypeError(f"{node.name}: a rule returned a {type(grad).__name__}, "
                                    "not an array")
                owned = grad is not g and current().owns(grad)
                if grad.shape != target.shape:
                    grad, owned = unbroadcast(grad, target.shape, node.name), True
                if isinstance(target, Tensor):
                    leaves[id(target)] = target
                    _add(arrived, id(target), grad, owned)
                    continue
                if target.serial not in nodes:
                    nodes[target.serial] = target
                    heapq.heappush(heap, -target.serial)
                _add(flowing, target.serial, grad, owned)
            del grad, rule  # free what the rule used before the next one runs
        del g
    return [(leaf, *arrived.pop(key)) for key, leaf in leaves.items()]

def _results(result: Any, count: int, name: str) -> tuple[Any, ...]:
    """Return a rule's result as a tuple; raise TypeError unless it has one item per target."""
    results = result if isinstance(result, tuple) else (result,)
    if result is None or len(results) != count:
        number = "None: is a return missing?" if result is None else f"{len(results)} arrays"
        raise TypeError(f"{name}: a rule for {count} input{'s' * (count > 1)} returned {number}")
    return results

def _add(sums: dict[int, tuple[Array, bool]], key: int, grad: Array, owned: bool) -> None:
    """Add a gradient to a sum. The first one is stored by reference, the second allocates the sum,
    later ones are added in place. An array that is not `owned` may belong to others: it is never
    written to."""
    if key in sums:
        before, writable = sums[key]
        if wide(before) is not before:  # halves are added up in float32
            before, writable = wide(before), True
        if writable:
            before += grad
        elif owned:
            grad += before
            before = grad
        else:
            before = before + grad
        grad, owned = before, True
    sums[key] = grad, owned

def unbroadcast(g: Array, shape: tuple[int, ...], name: str = "unbroadcast") -> Array:
    """Return the gradient of broadcasting: g, summed along every axis that was stretched."""
    extra = g.ndim - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:])):
        raise ValueError(f"{name}: an input is {shape}, and its rule returned a gradient "
                         f"{tuple(g.shape)}: return {shape}, or a shape it broadcasts to")
    stretched = [extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1]
    axes = tuple(range(extra)) + tuple(stretched)
    return (total(g, axes, keepdims=True) if axes else g).reshape(shape)

def _unchanged(rule: Any, node: Node) -> None:
    """Raise RuntimeError if an array that the rule uses was written to since the forward pass."""
    for array in held(rule):
        if last_write(array) > node.serial:
            raise RuntimeError(
                f"backward: {node.name} needs an array {tuple(array.shape)} as it was in the "
                "forward pass, but it was written to since then: call backward() before "
                "optimizer.step() or load_state_dict(), or run the forward pass again")

def op(formula: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a differentiable op of `formula(*arrays, **settings) -> value, (one rule per array)`.
    Arrays are positional (Tensor, array, number or None), settings are keywords. The rule of an
    array without a gradient, such as integers, is None. A ValueError gets the op's name and the
    shapes. Raises TypeError for too few or too many rules, or a Tensor among the settings.
    The op has a slot, `op.kernel`, for a fast version: kernel(*arrays, needs=needs, **settings) ->
    value, rule. needs: which inputs require a gradient; the rule returns a tuple of theirs.
    """
    @functools.wraps(formula)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if thread_settings.replaced and (substitute := substitute_for(apply)):
            return substitute(*inputs, **settings)  # type: ignore[no-any-return]
        return _run(apply, kernel_of(apply), inputs, settings)

    return _with_slot(apply, formula)

def composed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an op of a function of other ops: it has no rule of its own, but it may have a kernel.
    The kernel does not run while any op is replaced, so that a replaced op also counts in here."""
    @functools.wraps(function)
    def apply(*inputs: Any, **settings: Any) -> Tensor:
        if thread_settings.replaced:
            return (substitute_for(apply) or function)(*inputs, **settings)
        if kernel := kernel_of(apply):
            return _run(apply, kernel, inputs, settings)
        return function(*inputs, **settings)

    return _with_slot(apply, function)

def has_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function of arrays, which is not an op, a slot for a kernel."""
    @functools.wraps(function)
    def apply(*args: Any, **settings: Any) -> Any:
        return (kernel_of(apply) or function)(*args, **settings)

    apply.kernel = None  # type: ignore[attr-defined]
    return apply

def kernel_of(op: Any) -> Any:
    """Return the kernel in an op's slot; None if the slot is empty, or while ops run plain."""
    return None if op.kernel is None or is_plain() else op.kernel

def substitute_for(op: Any) -> Callable[..., Any] | None:
    """Return what `ops.replaced` put in an op's place, or None. It may call the original op."""
    if op not in thread_settings.replaced:
        return None
    substitute = thread_settings.replaced[op]

    def call(*inputs: Any, **settings: Any) -> Any:
        with choose(replaced={key: f for key, f in thread_settings.replaced.items() if key != op}):
            out = substitute(*inputs, **settings)
        if not isinstance(out, Tensor):
            raise TypeError(f"{op.__name__}: its replacement returned a {type(out).__name__}, not "
                            "a Tensor: make it an @op, or compose it of ops")
        return out

    return call

def _with_slot(apply: Any, formula: Callable[..., Any]) -> Callable[..., Tensor]:
    """Set what `_run` reads of an op: an empty slot, its formula and the names of its arrays."""
    apply.kernel, apply.formula, apply.signature = None, formula, inspect.signature(formula)
    apply.arrays = [name for name, p in apply.signature.parameters.items()
                    if p.kind is p.POSITIONAL_OR_KEYWORD]
    return apply  # type: ignore[no-any-return]

@own_flags
def _run(op: Any, kernel: Any, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Tensor:
    """Compute an op, by its kernel if there is one, and record its rules."""
    if settings:
        inputs, settings = _bound(op, inputs, settings)
    needs = _needs(inputs, len(op.arrays))
    arrays = [x._data if isinstance(x, Tensor) else _constant(x) for x in inputs]
    try:
        result = (kernel(*arrays, needs=needs, **settings) if kernel else
                  op.formula(*arrays, **settings))
    except (ValueError, IndexError) as error:
        if str(error).startswith(f"{op.__name__}:"):
            raise
        raise type(error)(f"{op.__name__}: {_shapes(op, arrays)}: {error}") from error
    value, rules = result if kernel else _checked(op, result, needs)
    out = Tensor.of(value)
    if any(needs):
        _record(out, op.__name__, inputs, needs, rules)
    return out

def _record(out: Tensor, name: str, inputs: Sequence[Any], needs: list[bool], rules: Any) -> None:
    """Put `out` on the tape: a rule is kept only for inputs that require a gradient.
    The other rules are dropped, and with them the arrays that only they would use.
    """
    targets = [x._node or x if need else None for x, need in zip_longest(inputs, needs)]
    edges: Edges
    if callable(rules):  # a kernel's: one rule for all inputs
        edges = [(targets, rules)]
    else:
        edges = [((t,), rule) for t, rule in zip(targets, rules) if t is not None]
    out.requires_grad, out._node = True, Node(name, out, edges)

def _bound(op: Any, inputs: tuple[Any, ...], settings: Mapping[str, Any]) -> Any:
    """Return (inputs, settings) with arrays that were passed by name moved to the inputs."""
    if not settings.keys().isdisjoint(op.arrays):
        bound = op.signature.bind(*inputs, **settings)
        bound.apply_defaults()
        inputs, settings = bound.args, bound.kwargs
    for name, value in settings.items():
        if isinstance(value, Tensor):
            raise TypeError(
                f"{op.__name__}: {name} is a setting, not an array: it takes no Tensor")
        if isinstance(value, np.generic):
            settings = {**settings, name: number(value)}
    return inputs, settings

def _constant(x: Any) -> Any:
    """Return an input that is no Tensor: a scalar of NumPy as the number that it is, so that it
    widens nothing; an array that the tape may keep as a copy, so that the caller may reuse it."""
    if isinstance(x, np.generic):
        return number(x)
    return x.copy() if hasattr(x, "dtype") and thread_settings.recording else x

def _needs(inputs: Sequence[Any], count: int) -> list[bool]:
    """Return which of an op's `count` arrays require a gradient; the last may be left out."""
    if not thread_settings.recording:
        return [False] * max(count, len(inputs))
    needs = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    return needs if len(needs) >= count else needs + [False] * (count - len(needs))

def _checked(op: Any, result: Any, needs: list[bool]) -> Any:
    """Return (value, rules) of a formula; raise TypeError unless it has one rule per array."""
    rules = result[1] if type(result) is tuple and len(result) == 2 else ()
    if type(rules) in (tuple, list) and len(rules) == len(needs) and all(compress(rules, needs)):
        return result
    given = [bool(rule) for rule in rules] if isinstance(rules, tuple | list) else []
    raise TypeError(f"{op.__name__}: return value, (one rule for each of "
                    f"{', '.join(_names(op, len(needs)))}); the rules given are {given}")

def _names(op: Any, count: int) -> list[str]:
    """Return the names of an op's arrays, for an error message; "input 0" for one of `*parts`."""
    return [*op.arrays, *(f"input {i}" for i in range(len(op.arrays), count))]

def _shapes(op: Any, arrays: list[Any]) -> str:
    """Return "x is (2, 3), W is (4, 5)": the shapes of the arrays, for an error message."""
    pairs = zip(_names(op, len(arrays)), arrays)
    return ", ".join(f"{name} is {tuple(x.shape)}" for name, x in pairs if hasattr(x, "shape"))
