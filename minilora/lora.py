"""LoRA (arXiv 2106.09685): W = W0 + (alpha / r) · B A, with W0 frozen and B, A trained (§4.1).

Conversions, not modes: `attach` swaps the named layers for ones that add an adapter's output,
`merge` swaps them for plain layers that hold W0 + ΔW, `detach` puts the base's own layers back.
Nothing hangs on train() or eval(), no flag changes what a layer computes, W0 is never written.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, ops
from .backend import Array, Rng, asarray, asnumpy, generator, xp
from .nn import Embedding, Linear, Module, Parameter
from .tensor import Tensor


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt and how. Patterns are a layer's name ("q"), a glob, or its whole path.

    targets        layers that get an adapter (§4.2: attention weights; the paper chose q and v)
    dropout        of the adapter's input, in training only; tables of rows (embeddings) have none
    init           of A: "gaussian", σ² = 1/k (§4.1 leaves σ open), or "kaiming", uniform
                   in ±1/√k, as the authors' code has it. B is 0. A table's A: σ² = 1/r.
    bias           "none", "lora" (the adapted layers' biases train too), "all" (every bias)
    trainable      more parameters to train whole, such as a task's head
    rank_pattern   pattern -> r, alpha_pattern: pattern -> alpha, where a layer differs
    """

    r: int = 8
    alpha: float = 8.0
    targets: Sequence[str] = ("q", "v")
    dropout: float = 0.0
    init: str = "gaussian"
    bias: str = "none"
    trainable: Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("targets", "trainable"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for r in (self.r, *self.rank_pattern.values()):
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise ValueError(f"LoRAConfig: r must be a whole number from 1, not {r!r}")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise ValueError(f"LoRAConfig: alpha must be finite, not {alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRAConfig: dropout must be in [0, 1), not {self.dropout}")
        for name, known in (("init", ("gaussian", "kaiming")), ("bias", ("none", "lora", "all"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"LoRAConfig: {name} is one of {', '.join(known)}, not {getattr(self, name)!r}"
                )


class Adapter(Module):
    """One update ΔW = scale · B A        A: (r, k)   B: (d, r)   scale = alpha / r"""

    def __init__(
        self, layer: LoRALayer, r: int, alpha: float, config: LoRAConfig, rng: np.random.Generator
    ) -> None:
        W = layer.base.W
        d, k = layer.oriented(W.data).shape
        std = 1 / math.sqrt(r if isinstance(layer, LoRAEmbedding) else k)
        normal = config.init == "gaussian"
        draw = rng.standard_normal((r, k)) if normal else rng.uniform(-1, 1, (r, k))
        self.A = Parameter(asarray((draw * std).astype(np.dtype(str(W.dtype)))))
        self.B = Parameter(xp.zeros((d, r), W.dtype))
        self.r, self.alpha, self.dropout = r, float(alpha), config.dropout
        self.rng, self.training = np.random.default_rng(rng.integers(2**63)), layer.training

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def mask(self, x: Tensor) -> Array | None:
        """What x is multiplied by before A: None outside training."""
        if not (self.training and self.dropout):
            return None
        return ops.keep_mask(x.shape, self.dropout, self.rng, x.dtype)

    def delta(self) -> Array:
        """scale · B A in float64, (d, k)."""
        return self.B.data.astype("float64") @ self.A.data.astype("float64") * self.scale

    def extra(self) -> str:
        return f" r={self.r} alpha={self.alpha:g}"


class LoRALayer(Module):
    """A base layer and its named adapters, of which the active ones count."""

    def __init__(self, base: Any) -> None:
        self.base, self.training = base, base.training
        self.adapters: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        yield "base", self.base
        yield from self.adapters.items()

    def in_use(self) -> list[Adapter]:
        return [self.adapters[name] for name in self.active]

    def delta(self) -> Array:
        """Σ ΔW of the active adapters, float64, in W's orientation."""
        zero = xp.zeros(self.base.W.shape, "float64")
        return sum((self.oriented(adapter.delta()) for adapter in self.in_use()), zero)

    @staticmethod
    def oriented(delta: Array) -> Array:
        """Between B A's orientation and W's."""
        return delta

    def plain(self, path: str) -> tuple[Any, float]:
        """(a plain layer with W0 + ΔW, the share of ΔW that rounding to W0's dtype lost).

        Added in float64, rounded once. Raises FloatingPointError where the result is not finite in
        W0's dtype.
        """
        W0, delta = self.base.W.data, self.delta()
        wide = W0.astype("float64") + delta
        if not float(abs(wide).max()) <= float(xp.finfo(W0.dtype).max):  # false for nan, too
            raise FloatingPointError(
                f"merge: {path}: W0 + ΔW is not finite in {W0.dtype}: the "
                "model is left as it was; look at this adapter's A, B, alpha"
            )
        W = wide.astype(W0.dtype)
        size = float(xp.sqrt((delta * delta).sum()))
        lost = (W.astype("float64") - W0.astype("float64")) - delta
        layer = copy(self.base)
        layer.W = Parameter(W, requires_grad=False)
        return layer, float(xp.sqrt((lost * lost).sum())) / size if size else 0.0


class LoRALinear(LoRALayer):
    """y = W0 x + b + Σ scale · B A x        x: (..., k)   y: (..., d)   equation 3"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)  # type: ignore[no-any-return]
        first, *others = self.in_use()
        W, b, mask = self.base.W, self.base.b, first.mask(x)
        y = ops.lora_linear(x, W, b, first.A, first.B, mask, scale=first.scale)
        for other in others:
            mask = other.mask(x)
            inner = ops.linear(x if mask is None else x * mask, other.A)
            y = y + ops.linear(inner, other.B) * other.scale
        return y


class LoRAEmbedding(LoRALayer):
    """W0[ids] + Σ scale · (B A)ᵀ[ids]        A: (r, n)   B: (d, r)

    One table, one ΔW: a head tied to the table reads W0 + ΔW too, so merging keeps the tie.
    """

    @staticmethod
    def oriented(delta: Array) -> Array:
        return delta.T

    def forward(self, ids: Any) -> Tensor:
        y = self.base(ids)
        for adapter in self.in_use():
            y = y + ops.linear(ops.embedding(adapter.A.T, ids), adapter.B) * adapter.scale
        return y  # type: ignore[no-any-return]

    def project(self, x: Tensor) -> Tensor:
        y = self.base.project(x)
        for adapter in self.in_use():
            y = y + (x @ adapter.B @ adapter.A) * adapter.scale
        return y  # type: ignore[no-any-return]


class Adapters:
    """What `attach` left on a model, as `model.adapters`: who is there, who is active, what was."""

    def __init__(self, model: Module) -> None:
        self.layers: dict[str, LoRALayer] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self.active: tuple[str, ...] = ()
        self.flags = [(p, p.requires_grad) for p in model.parameters()]
        # Parameters trained whole. Each adapter has its own copy, which stands in the model while
        # that adapter is active; the base's own is never written and comes back.
        self.own: dict[str, dict[str, Parameter]] = {}
        self.places: dict[str, tuple[Any, str, Parameter]] = {}  # path -> owner, attribute, base's
        self.merged = False


def attach(model: Module, config: LoRAConfig, name: str = "default", rng: Rng = None) -> list[str]:
    """Freeze the whole model, give the target layers an adapter, activate it; returns their paths.

    At first B = 0, so the model computes exactly what it did. Only A and B require a gradient, plus
    what the config names. Raises ValueError, leaving the model as it was, for a pattern that
    matches nothing and for a name that is taken.
    """
    state, paths = _add(model, config, name, generator(rng))
    copies = [p for own in state.own.values() for p in own.values()]
    for p in [*model.parameters(), *copies]:
        p.requires_grad, p.grad = False, None
    for p in _parameters(state, name).values():
        p.requires_grad = True
    activate(model, name)
    return paths


def activate(model: Module, *names: str) -> None:
    """Let these adapters count, their updates added up, and no others; none: the base alone.

    What requires a gradient does not change. Raises KeyError for a name that is not attached.
    """
    state = _state(model, *names)
    for path, (owner, attribute, base) in state.places.items():
        copies = [state.own[name][path] for name in names if path in state.own[name]]
        if len(copies) > 1:
            raise ValueError(f"activate: {' and '.join(names)} each have a {path} of their own")
        setattr(owner, attribute, copies[0] if copies else base)
    state.active = names
    for layer in state.layers.values():
        layer.active = tuple(name for name in names if name in layer.adapters)


@contextmanager
def disabled(model: Module) -> Iterator[None]:
    """Inside, the model is the base, bit for bit; afterwards the same adapters are active."""
    before = _state(model).active
    activate(model)
    try:
        yield
    finally:
        activate(model, *before)


def detach(model: Module, name: str | None = None) -> Module:
    """Take one adapter off, or all of them: then the base's own layers and flags are back."""
    state = _state(model, *([] if name is None else [name]))
    if name is None or list(state.configs) == [name]:
        activate(model)
        swap(model, {path: layer.base for path, layer in state.layers.items()})
        _forget(model)
        return model
    activate(model, *(active for active in state.active if active != name))
    del state.configs[name], state.own[name]
    for path, layer in list(state.layers.items()):
        layer.adapters.pop(name, None)
        if not layer.adapters:
            swap(model, {path: state.layers.pop(path).base})
    return model


def merge(model: Module) -> dict[str, float]:
    """Put plain layers with W0 + ΔW of the active adapters in place, for good (§4.1: no latency).

    Returns path -> the share of ΔW lost in rounding. All layers are merged, or, where one raises
    (FloatingPointError), none. A model without adapters is left alone: twice is once.
    """
    if not hasattr(model, "adapters"):
        return {}
    state = _state(model)
    idle = sorted(set(state.configs) - set(state.active))
    if idle:
        raise ValueError(
            f"merge: {idle[0]!r} is attached but not active, and would be lost: save "
            f"it, then detach(model, {idle[0]!r}), or activate it as well"
        )
    merged = {path: layer.plain(path) for path, layer in state.layers.items()}
    flags = {path: _flag(state, layer.base.W) for path, layer in state.layers.items()}
    swap(model, {path: layer for path, (layer, _) in merged.items()})
    for owner, attribute, base in state.places.values():
        getattr(owner, attribute).requires_grad = _flag(state, base)
    _forget(model)
    for path, (layer, _) in merged.items():
        layer.W.requires_grad = flags[path]
    return {path: lost for path, (_, lost) in merged.items()}


@contextmanager
def merged(model: Module) -> Iterator[None]:
    """Inside, the model is merged: plain layers. Afterwards W0 and adapters are back, bit for bit.

    What is written into the model inside would be lost, so loading, attaching and saving raise.
    """
    state = _state(model)
    plain = {path: layer.plain(path)[0] for path, layer in state.layers.items()}

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("load_state_dict: the model is merged for this block only")

    vars(model)["load_state_dict"] = refuse
    swap(model, plain)
    state.merged = True
    try:
        yield
    finally:
        state.merged = False
        del vars(model)["load_state_dict"]
        swap(model, state.layers)


def save(model: Module, path: str | os.PathLike[str], name: str | None = None) -> Path:
    """Write one adapter alone (.npz): A and B, what it trains whole, r, alpha and scale of each.

    `name`: which; None where only one is attached.
    """
    state = _state(model, *([] if name is None else [name]))
    if name is None and len(state.configs) > 1:
        raise ValueError(f"save: which adapter? There are {sorted(state.configs)}")
    name = name or next(iter(state.configs))
    held = {at: x.adapters[name] for at, x in state.layers.items() if name in x.adapters}
    meta = {
        "kind": "adapter", "name": name, "config": asdict(state.configs[name]),
        "layers": {at: {"r": a.r, "alpha": a.alpha, "scale": a.scale} for at, a in held.items()},
        "whole": list(state.own[name]), "base": _fingerprint(state, name),
    }  # fmt: skip
    arrays = {at: asnumpy(p.data) for at, p in _parameters(state, name).items()}
    return checkpoint.write(path, arrays, meta)


def load(
    model: Module, path: str | os.PathLike[str], name: str | None = None, trainable: bool = False
) -> list[str]:
    """Add the adapter in a file that `save` made, and activate it; returns the adapted paths.

    It is frozen unless `trainable`; a base without adapters is frozen, other adapters keep their
    flags. Strict: a missing or unexpected array, or a shape that does not fit, raises ValueError
    and leaves the model as it was. Warns where W0 is not what the adapter was trained on.
    """
    arrays, meta = checkpoint.read(path, kind="adapter")
    config, name, layers = LoRAConfig(**meta["config"]), name or meta["name"], meta["layers"]
    exact = replace(
        config, targets=tuple(layers), trainable=tuple(meta["whole"]), bias="none",
        rank_pattern={at: facts["r"] for at, facts in layers.items()},
        alpha_pattern={at: facts["alpha"] for at, facts in layers.items()},
    )  # fmt: skip
    fresh = not hasattr(model, "adapters")
    try:
        state, paths = _add(model, exact, name, generator(0))
    except ValueError as error:
        raise ValueError(f"load: {path} does not fit this model: {error}") from error
    state.configs[name] = config
    ours = {at: (p, p.shape) for at, p in _parameters(state, name).items()}
    shapes = {at: array.shape for at, array in arrays.items()}
    wrong = sorted({at: shape for at, (_, shape) in ours.items()}.items() ^ shapes.items())
    if wrong:
        detach(model, name)
        raise ValueError(
            f"load: {path} does not fit this model: only one of the two has {wrong[:4]}"
        )
    if fresh:
        model.requires_grad(False)
    for at, (p, _) in ours.items():
        p.data[...] = asarray(arrays[at], p.dtype)
        p.requires_grad = trainable
    activate(model, name)
    if _fingerprint(state, name) != meta["base"]:
        warnings.warn(f"load: {path} was trained on another base than this model", stacklevel=2)
    return paths


# What the functions above share.


def matches(path: str, pattern: str) -> bool:
    """Is `pattern` this path, its end ("q", "attn.q"), or a glob for it ("blocks.*.attn.[qv]")?"""
    return path == pattern or path.endswith(f".{pattern}") or fnmatchcase(path, pattern)


def _state(model: Module, *names: str) -> Adapters:
    """The model's adapters; raises where there are none, or none of these names."""
    state = getattr(model, "adapters", None)
    if not isinstance(state, Adapters):
        raise ValueError("this model has no adapter: lora.attach(model, LoRAConfig(...)) first")
    if state.merged:
        raise RuntimeError("the model is merged for this block only: leave lora.merged(...) first")
    for name in names:
        if name not in state.configs:
            raise KeyError(f"there is no adapter {name!r}: there are {sorted(state.configs)}")
    return state


def adaptable(model: Module) -> dict[str, Any]:
    """The layers that can be adapted, or are, by path."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        adapted = (f"{p}." for p, layer in found.items() if isinstance(layer, LoRALayer))
        adaptable = isinstance(module, Linear | Embedding | LoRALayer)
        if adaptable and not path.startswith(tuple(adapted)):
            found[path] = module
    return found


def _places(model: Module) -> dict[str, tuple[Any, str, Parameter]]:
    """Every parameter of the base, under the name that it has in the plain base."""
    adapted = [path for path, layer in adaptable(model).items() if isinstance(layer, LoRALayer)]
    found: dict[str, tuple[Any, str, Parameter]] = {}
    for path, module in model.named_modules():
        at = next((a for a in adapted if path.startswith(f"{a}.")), None)
        if at is None or path == f"{at}.base":
            for name, child in module.children():
                if isinstance(child, Parameter):
                    found[".".join(filter(None, (at or path, name)))] = module, name, child
    return found


def _targets(model: Module, config: LoRAConfig) -> list[str]:
    layers = adaptable(model)
    for pattern in config.targets:
        if not any(matches(path, pattern) for path in layers):
            names = sorted({path.split(".")[-1] for path in layers})
            raise ValueError(
                f"attach: no layer matches {pattern!r}: there are {', '.join(names)}, "
                f"such as {next(iter(layers), 'none')}"
            )
    paths = [path for path in layers if any(matches(path, p) for p in config.targets)]
    if not paths:
        raise ValueError("attach: the config names no targets")
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(f"attach: the pattern {pattern!r} matches no adapted layer")
    return paths


def _whole(names: Sequence[str], config: LoRAConfig, paths: Sequence[str]) -> list[str]:
    """Those of the base's parameters that the config trains whole."""
    chosen: set[str] = set()
    for pattern in config.trainable:
        hits = {n for n in names if any(matches(part, pattern) for part in _and_above(n))}
        if not hits:
            raise ValueError(f"attach: trainable: no parameter matches {pattern!r}")
        chosen |= hits
    if config.bias != "none":
        chosen |= {
            n
            for n in names
            if n.split(".")[-1] == "b" and (config.bias == "all" or n[:-2] in paths)
        }
    both = [n for n in sorted(chosen) if n.endswith(".W") and n[:-2] in paths]
    if both:
        raise ValueError(f"attach: {both[0]} is to be trained whole and adapted: choose one")
    return [n for n in names if n in chosen]


def _and_above(path: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c": naming a module names all that is in it."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _add(
    model: Module, config: LoRAConfig, name: str, rng: np.random.Generator
) -> tuple[Adapters, list[str]]:
    """Put the adapter in, neither active nor trained yet; all of it, or an error and nothing."""
    state = _state(model) if hasattr(model, "adapters") else Adapters(model)
    if name in state.configs or name == "base" or not name or "." in name:
        raise ValueError(
            f"attach: {name!r} cannot be the adapter's name: it is taken, empty, "
            f"'base' or has a dot in it; there are {sorted(state.configs)}"
        )
    paths, layers, places = _targets(model, config), adaptable(model), _places(model)
    whole = _whole(list(places), config, paths)
    for at in paths:
        layer = layers[at]
        if not isinstance(layer, LoRALayer):
            layer = (LoRALinear if isinstance(layer, Linear) else LoRAEmbedding)(layer)
        r = next((v for p, v in config.rank_pattern.items() if matches(at, p)), config.r)
        alpha = next((v for p, v in config.alpha_pattern.items() if matches(at, p)), config.alpha)
        layer.adapters[name] = Adapter(layer, r, alpha, config, rng)
        state.layers[at] = layer
    swap(model, state.layers)
    for at in whole:
        state.places.setdefault(at, places[at])
    state.own[name] = {at: Parameter(state.places[at][2].data.copy()) for at in whole}
    state.configs[name] = config
    vars(model)["adapters"] = state
    return state, paths


def _parameters(state: Adapters, name: str) -> dict[str, Parameter]:
    """What this adapter trains, by the name that it has in the adapter's file."""
    held = {at: x.adapters[name] for at, x in state.layers.items() if name in x.adapters}
    return {f"{at}.{x}": getattr(a, x) for at, a in held.items() for x in "AB"} | state.own[name]


def _flag(state: Adapters, p: Parameter) -> bool:
    return next((flag for known, flag in state.flags if known is p), False)


def _forget(model: Module) -> None:
    """Drop the adapters; the base's parameters require what they did before the first one."""
    for p, flag in model.adapters.flags:  # type: ignore[attr-defined]
        p.requires_grad = flag
    del vars(model)["adapters"]


def swap(model: Module, new: Mapping[str, Module]) -> None:
    """Put each module in its place in the model, found by its path."""
    for path, module in new.items():
        owner: Any = model
        *way, last = path.split(".")
        for step in way:
            owner = (
                owner[int(step)]
                if isinstance(owner, list)
                else (owner[step] if isinstance(owner, dict) else getattr(owner, step))
            )
        if isinstance(owner, list):
            owner[int(last)] = module
        elif isinstance(owner, dict):
            owner[last] = module
        else:
            setattr(owner, last, module)


def _fingerprint(state: Adapters, name: str) -> str:
    held = [layer for layer in state.layers.values() if name in layer.adapters]
    return checkpoint.fingerprint(asnumpy(layer.base.W.data) for layer in held)
