"""What a few seeds can say: intervals, the noise floor, the best rate, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import choice, describe, integer, real
from ..words import our_words

Numbers = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@our_words
def spread(values: Numbers) -> float:
    """√(Σ (x - mean)² / (n - 1)): the standard deviation of a sample, such as a result's seeds.

    Raises ValueError for fewer than two values.
    """
    return float(np.std(_numbers("spread", "values", values, 2), ddof=1))


@our_words
def interval(differences: Numbers, level: float = 0.95) -> Interval:
    """mean ± t · s / √n: the mean of paired differences and its confidence interval.

    One difference for each seed, of two methods that share all else; t is Student's quantile with
    n - 1 degrees of freedom. Raises ValueError for fewer than two differences.
    """
    x = _numbers("interval", "differences", differences, 2)
    mean = float(np.mean(x))
    half = t_quantile(len(x) - 1, level) * spread(x) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


@our_words
def pooled_sd(groups: Collection[Numbers]) -> tuple[float, int]:
    """√(Σ (x - its group's mean)² / df), and df = Σ (n - 1): the standard deviation within groups.

    A group is one setting's results over seeds. A group of one value adds nothing. Raises
    ValueError if all are such.
    """
    if not isinstance(groups, Collection) or not len(groups):
        raise ValueError(f"pooled_sd: groups must be lists of numbers, not {describe(groups)}")
    each = [_numbers("pooled_sd", f"groups[{i}]", group, 1) for i, group in enumerate(groups)]
    df = sum(len(x) - 1 for x in each)
    if not df:
        raise ValueError("pooled_sd: no group has two values or more: there is no spread to see")
    return math.sqrt(math.fsum(len(x) * float(np.var(x)) for x in each) / df), df


@our_words
def noise_floor(groups: Collection[Numbers], n: int, level: float = 0.95) -> float:
    """t · s · √(2 / n): how far two means of n seeds each may be apart by the seeds alone.

    s is the groups' pooled standard deviation, and t Student's quantile with its degrees of
    freedom: half the width of the confidence interval of such a difference.
    """
    sd, df = pooled_sd(groups)
    return t_quantile(df, level) * sd * math.sqrt(2 / integer("noise_floor", "n", n, 1))


@our_words
def vertex(
    x: Numbers, y: Numbers, of: str = "maximum", level: float = 0.95
) -> Interval | None:
    """-b / 2a of the least-squares parabola y = a x² + b x + c: the x at which y is best.

    x: such as the logarithm of the rate. of: "maximum" for a score, "minimum" for a loss. Returns
    None if the parabola has no such vertex, or has it outside the range of x. The interval is
    Fieller's: all v at which the slope 2a v + b may be 0 by a t test. It is exact if the residuals
    are Gaussian. It may end outside the range of x, and is (-inf, inf) if y may be straight. Raises
    ValueError for fewer than four points, or than three different x. (Fieller 1954)
    """
    choice("vertex", "of", of, ("maximum", "minimum"))
    at, values = _numbers("vertex", "x", x, 4), _numbers("vertex", "y", y, 4)
    _equal_lengths("vertex", "x", at, "y", values)
    if len(np.unique(at)) < 3:
        raise ValueError("vertex: x must have three different values or more")
    low, high = float(at.min()), float(at.max())
    middle, half = (low + high) / 2, (high - low) / 2
    u = (at - middle) / half
    powers = np.stack([np.ones_like(u), u, u * u], axis=1)  # (points, 3)
    inverse = np.linalg.inv(powers.T @ powers)
    c, b, a = (float(z) for z in inverse @ (powers.T @ values))
    opens = a if of == "minimum" else -a
    if opens <= 1e-12 * float(np.abs(values).max()) or abs(b) > 2 * abs(a):
        return None
    left = values - (c + b * u + a * u * u)
    variance = float(left @ left) / (len(u) - 3)
    t2 = t_quantile(len(u) - 3, level) ** 2 * variance
    # (b + 2a v)² <= t² Var(b + 2a v), as p v² + 2 q v + s <= 0
    p = 4 * (a * a - t2 * float(inverse[2, 2]))
    q = 2 * (a * b - t2 * float(inverse[1, 2]))
    s = b * b - t2 * float(inverse[1, 1])
    best = middle - half * b / (2 * a)
    if p <= 0:
        return Interval(best, -math.inf, math.inf)
    root = math.sqrt(max(0.0, q * q - p * s))
    return Interval(best, middle + half * (-q - root) / p, middle + half * (-q + root) / p)


@our_words
def rank_correlation(a: Numbers, b: Numbers) -> float:
    """The correlation of the ranks of a and of b, from -1 to 1: Spearman's rho.

    Equal values share the mean of their ranks. nan if all values of a or of b are equal. Raises
    ValueError for unlike lengths, or fewer than two values.
    """
    x, y = _numbers("rank_correlation", "a", a, 2), _numbers("rank_correlation", "b", b, 2)
    _equal_lengths("rank_correlation", "a", x, "b", y)
    x, y = _ranks(x), _ranks(y)
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else math.nan


@our_words
def t_quantile(df: int, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level for Student's T with df degrees of freedom.

    By bisection of the finite sums for t = √df · tan θ (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    df, level = integer("t_quantile", "df", df, 1), real("t_quantile", "level", level, "(0, 1)")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves of the interval: the last one is about the rounding of π / 2
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _within(angle: float, df: int) -> float:
    """P(|T| <= √df · tan θ)."""
    odd, cos = df % 2, math.cos(angle)
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for k in range(1, (df - odd) // 2 + 1):
        total += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * cos * cos
    if odd:
        return (angle + math.sin(angle) * total) * 2 / math.pi
    return math.sin(angle) * total


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks minus their mean; equal values share the mean of theirs."""
    below = np.sum(values[:, None] > values, axis=1, dtype=np.float64)
    equal = np.sum(values[:, None] == values, axis=1, dtype=np.float64)
    return np.asarray(below + (equal - len(values)) / 2)


def _numbers(who: str, name: str, values: Any, least: int) -> np.ndarray:
    """Return values as float64 if they are `least` finite numbers or more, in one row."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of unlike lengths
        array = np.empty(())
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise ValueError(f"{who}: {name} must be a list of numbers, not {describe(values)}")
    if len(array) < least:
        raise ValueError(f"{who}: {name} must have {least} values or more, not {len(array)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{who}: {name} must be finite, not {describe(values)}")
    return array.astype(np.float64)


def _equal_lengths(who: str, a: str, x: np.ndarray, b: str, y: np.ndarray) -> None:
    if len(x) != len(y):
        raise ValueError(f"{who}: {a} has {len(x)} values, {b} has {len(y)}")
