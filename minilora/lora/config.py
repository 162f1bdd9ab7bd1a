"""LoRA's settings: the layers that get A and B, their rank and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..adapters.patterns import first, hidden, matching, patterns_of
from ..adapters.places import adaptable, bare, is_bias
from ..adapters.registry import Method, base_of
from ..checks import choice, describe, integer, real, warn
from ..nn import Embedding, Linear, Module
from .layers import LoRAEmbedding, LoRALinear

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRAConfig(Method, called="lora"):
    """W0 + (alpha / r) B A in the target layers (§4.1). A: (r, d_in), B: (d_out, r).

    B starts at 0, so the model starts as the base. Only A and B are trained, plus the parameters
    that the config names: |Θ| = Σ r (d_in + d_out) over the layers, or 2 L_LoRA d r if they are
    square (§5.1). A pattern is a layer's name ("q"), a glob, or its path.

    targets        patterns of the layers that get an adapter (§4.2: attention weights; the paper
                   adapts q and v); "all-linear": every Linear layer that `trainable` does not name
    dropout        of the adapter's input, in training only; embeddings have no dropout
    init           of A: "gaussian", σ² = 1/k (§4.1 does not give σ), or "kaiming", uniform in
                   ±1/√k, as in the authors' code. B is 0. In an embedding, A has σ² = 1/r
    bias           "none", "lora" (train the adapted layers' biases), "all" (train every bias)
    trainable      patterns of other parameters to train in full, such as a task's head
    rank_pattern   pattern -> r, alpha_pattern: pattern -> alpha, for layers that differ
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

    layers: ClassVar[Mapping[type, Any]] = {Linear: LoRALinear, Embedding: LoRAEmbedding}

    def __post_init__(self) -> None:
        who = "LoRAConfig"
        super().__post_init__()
        self._set(targets=patterns_of(f"{who}: targets", self.targets))
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(given := getattr(self, name), Mapping):
                raise ValueError(
                    f'{who}: {name} must be a mapping such as {{"attn.q": 4}}, not '
                    f"{describe(given)}"
                )
            patterns_of(f"{who}: {name}", given)
        self._set(
            r=integer(who, "r", self.r, 1),
            alpha=_alpha("alpha", self.alpha),
            dropout=real(who, "dropout", self.dropout, "[0, 1)"),
            rank_pattern={
                at: integer(who, f"rank_pattern[{at!r}]", r, 1)
                for at, r in self.rank_pattern.items()
            },
            alpha_pattern={
                at: _alpha(f"alpha_pattern[{at!r}]", alpha)
                for at, alpha in self.alpha_pattern.items()
            },
        )
        for name, known in (("init", ("gaussian", "kaiming")), ("bias", ("none", "lora", "all"))):
            choice(who, name, getattr(self, name), known)

    def around(self, model: Module, rng: np.random.Generator) -> Mapping[str, LoRALinear]:
        layers = adaptable(model)
        paths = self.paths(model)
        matching(paths, (*self.rank_pattern, *self.alpha_pattern),
                 "rank_pattern, alpha_pattern: no adapted layer")
        unique = {id(bare(layers[at])): at for at in reversed(paths)}  # one layer in two places
        parts, warnings = {}, [
            f"{self.called}: pattern {later!r} has no effect, because {earlier!r} before it "
            "matches the same layers: put the special one first"
            for patterns in (self.rank_pattern, self.alpha_pattern)
            for later, earlier in hidden(patterns, paths).items()
        ]
        for at in reversed(unique.values()):
            layer = bare(layers[at])
            r = first(self.rank_pattern, at, self.r)
            alpha = first(self.alpha_pattern, at, self.alpha)
            kind = next((k for base, k in self.layers.items() if isinstance(layer, base)), None)
            if kind is None:
                raise ValueError(
                    f"{self.called}: {at} is an Embedding: name targets that are Linear layers"
                )
            parts[at] = kind(
                layer, r, self.scaled(alpha, r), init=self.init, dropout=self.dropout, rng=rng)
            if r > min(layer.W.shape):
                warnings.append(f"ΔW of {at} has rank {min(layer.W.shape)} at most, not r = {r}")
        if self.dropout and not any(isinstance(bare(layers[at]), Linear) for at in parts):
            warnings.append(f"{self.called}: dropout has no effect: all targets are embeddings")
        if warnings:
            more = f" (and {len(warnings) - 1} others)" * (len(warnings) > 1)
            warn(f"{warnings[0]}{more}")
        return parts

    def paths(self, model: Module) -> list[str]:
        """Return the paths of the target layers; ValueError for a pattern without a match."""
        layers = adaptable(model)
        named = [target for target in self.targets if target != ALL_LINEAR]
        paths = matching(layers, named or [""] * (not self.targets), "targets: no layer")
        if ALL_LINEAR in self.targets:
            trained = set(self.in_full(model))
            paths = [at for at, layer in layers.items() if at in paths
                     or (isinstance(bare(layer), Linear) and f"{at}.W" not in trained)]
        return paths

    def copied(self, model: Module) -> list[str]:
        base, paths = base_of(model), self.paths(model)
        biases = [at for at in base if is_bias(at, *base[at])]
        if self.bias == "lora":
            biases = [at for at in biases if at.rpartition(".")[0] in paths]
        if self.bias != "none" and not biases:
            warn(f'{self.called}: bias="{self.bias}" has no effect: there is no such bias')
        chosen = {*self.in_full(model), *(biases if self.bias != "none" else ())}
        return [at for at in base if at in chosen]

    def scaled(self, alpha: float, r: int) -> float:
        """Return the alpha of a layer's adapter; its scale is alpha / r."""
        return alpha

    def count(self, config: Any) -> int:
        sides = {name: config.n_layers * sum(shape) for name, shape in config.linears().items()}
        for target in self.targets:
            if target not in sides or self.rank_pattern or self.bias != "none" or self.trainable:
                raise ValueError(
                    f"count: the formula is for targets among {', '.join(sides)} of one rank, not "
                    f"for {self}: use accounting.plan"
                )
        return sum(self.r * sides[target] for target in {*self.targets})


def _alpha(name: str, given: Any) -> float:
    alpha = real("LoRAConfig", name, given)
    if alpha == 0:
        raise ValueError(
            f"LoRAConfig: {name} must not be 0: the adapter could change and learn nothing"
        )
    if alpha < 0:
        warn(f"LoRAConfig: {name} is {alpha:g}: a negative alpha reverses the update")
    return alpha
