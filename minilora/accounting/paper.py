"""The paper's numbers of parameters, each computed twice: by a formula, and on the model.

A row gives the place of the printed number, the thing counted, and the exact integer. `formula`
computes it from sizes. `ran` builds the model on arrays without numbers, applies the method and
counts its trained parameters. `status` compares the exact number with the printed one. Rows that do
not match stay, with the reason; so do rows that were tried as an explanation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

from .. import methods
from ..adapters.patterns import below
from ..backend import using
from ..models.families import SHAPES, build
from ..nn import Linear, Module
from .parameters import count


def status(exact: float, printed: str, unit: int = 10**6) -> str:
    """Compare an exact number with a printed one. Return the first of these that is true:

    match      rounded to as many digits as are printed
    truncated  cut to as many digits
    MiB        rounded, in units of a power of 2 instead of 10 (2^20 for a million)
    nominal    rounded or cut to the digits before the printed number's final zeros (125.0, 1500.0)
    mismatch   none of these
    """
    number, value = Decimal(printed.replace(",", "")), Decimal(str(exact))
    binary = {10**6: 2**20, 10**9: 2**30, 10**12: 2**40}.get(unit, unit)
    ways = {
        "match": (value / unit, number, ROUND_HALF_UP),
        "truncated": (value / unit, number, ROUND_DOWN),
        "MiB": (value / binary, number, ROUND_HALF_UP),
    }
    short = number.normalize()
    if (number and short != number) or short.as_tuple().exponent != number.as_tuple().exponent:
        ways["nominal"] = value / unit, short, ROUND_HALF_UP
        ways["nominal, cut"] = value / unit, short, ROUND_DOWN
    for way, (measured, stated, rounding) in ways.items():
        last = Decimal(1).scaleb(int(stated.as_tuple().exponent))  # the last printed digit
        if measured.quantize(last, rounding) == stated:
            return way.partition(",")[0]
    return "mismatch"


@dataclass(frozen=True)
class Chosen:
    """Train some of the model's own parameters, and linear layers beside it. It is no method.

    patterns  of the trained parameters
    formula   config -> their number
    beside    (d_in, d_out, bias) of each layer
    """

    patterns: tuple[str, ...]
    formula: Callable[[Any], int]
    beside: tuple[tuple[int, int, bool], ...] = ()

    def count(self, config: Any) -> int:
        return self.formula(config) + sum(i * o + o * bias for i, o, bias in self.beside)

    def apply(self, model: Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        chosen = below(names, self.patterns, "no parameter")
        for name, p in model.named_parameters():
            p.requires_grad = name in chosen
        model.beside = [  # type: ignore[attr-defined]
            Linear(i, o, bias, rng=0) for i, o, bias in self.beside
        ]


@dataclass(frozen=True)
class Both:
    """Two methods on one model; both train."""

    first: Any
    second: Any

    def count(self, config: Any) -> int:
        return int(self.first.count(config) + self.second.count(config))

    def apply(self, model: Module) -> None:
        self.first.apply(model)
        trained = model.trainable_parameters().values()
        if isinstance(self.second, methods.Method):
            self.second.apply(model, "second")
            methods.activate(model, "default", "second")
        else:
            self.second.apply(model)
        for p in trained:
            p.requires_grad = True


@dataclass(frozen=True)
class Row:
    """A number that the paper prints, and the model and method that give it.

    source   the table or section
    what     the thing counted
    shape    a name of SHAPES, or a config
    method   has `count(config)` and `apply(model)`
    exact    the integer that formula and model must give
    printed  the paper's number, in `unit`s
    why      the reason for a mismatch, as far as it is known
    each     the value of one parameter, such as its bytes
    """

    source: str
    what: str
    shape: Any
    method: Any
    exact: int
    printed: str
    why: str = ""
    unit: int = 10**6
    each: int = 1

    @property
    def config(self) -> Any:
        return SHAPES[self.shape] if isinstance(self.shape, str) else self.shape

    @property
    def formula(self) -> int:
        """Compute the number from sizes."""
        return int(self.method.count(self.config)) * self.each

    def ran(self) -> int:
        """Count the trained parameters of the model, built on arrays without numbers."""
        with using("shapes"):
            model = build(self.config, rng=0)
            self.method.apply(model)
            return count(model).trainable * self.each

    @property
    def status(self) -> str:
        return status(self.exact, self.printed, self.unit)


@dataclass(frozen=True)
class Ratio:
    """A quotient of two rows that the paper prints, times `unit` (100 for a percentage)."""

    source: str
    what: str
    over: Row
    under: Row
    printed: str
    unit: int
    why: str = ""

    @property
    def exact(self) -> float:
        return self.over.exact / self.under.exact * self.unit

    @property
    def status(self) -> str:
        return status(self.exact, self.printed, 1)
