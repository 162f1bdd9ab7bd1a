"""Statistics of a few seeds: tables, closed forms, and how often an interval has the truth."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minilora.experiments.statistics import (
    interval,
    noise_floor,
    pooled_sd,
    rank_correlation,
    spread,
    t_quantile,
    vertex,
)

pytestmark = pytest.mark.usefixtures("numpy_only")

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=2, max_size=8)
groups = st.lists(samples, min_size=1, max_size=4)
levels = st.floats(0.01, 0.999)
near = pytest.approx


# Student's quantile

@pytest.mark.parametrize("df, level, t", [  # any table of Student's distribution
    (1, 0.95, 12.7062047362), (2, 0.95, 4.3026527297), (3, 0.95, 3.1824463053),
    (4, 0.95, 2.7764451052), (5, 0.95, 2.5705818356), (10, 0.95, 2.2281388520),
    (30, 0.95, 2.0422724563), (100, 0.95, 1.9839715185), (1, 0.99, 63.6567411629),
    (5, 0.99, 4.0321429836), (10, 0.99, 3.1692726726), (4, 0.90, 2.1318467863),
])
def test_quantiles_of_the_tables(df, level, t):
    assert t_quantile(df, level) == near(t, rel=1e-10)


@given(levels, st.integers(1, 40))
def test_quantiles_in_closed_form_and_by_the_density(level, df):
    assert t_quantile(1, level) == near(math.tan(math.pi * level / 2), rel=1e-9)
    assert t_quantile(2, level) == near(level * math.sqrt(2 / (1 - level * level)), rel=1e-9)
    normal = statistics.NormalDist().inv_cdf((1 + level) / 2)
    assert t_quantile(2000, level) == near(normal, rel=5e-3)
    t = t_quantile(df, level)
    assert t_quantile(df + 1, level) < t < t_quantile(df, level + 0.0005)
    # t = √df tan θ: the density over θ is proportional to cos^(df - 1); by Gauss's quadrature
    node, weight = np.polynomial.legendre.leggauss(40)
    theta = math.atan(t / math.sqrt(df)) * (node + 1) / 2
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    inside = weight @ np.cos(theta) ** (df - 1) * math.atan(t / math.sqrt(df)) * scale
    assert float(inside) == near(level, abs=1e-9)


# Intervals and spread

@given(samples, numbers, st.floats(0.1, 10))
def test_an_interval_moves_with_its_numbers(x, shift, scale):
    mean, low, high = interval(x)
    assert low <= mean <= high and mean == near(statistics.fmean(x), abs=1e-9)
    half = t_quantile(len(x) - 1) * statistics.stdev(x) / math.sqrt(len(x))
    assert (high - low) / 2 == near(half, abs=1e-9)
    assert spread(x) == near(statistics.stdev(x), abs=1e-9)
    moved = interval([shift - scale * v for v in x])
    wanted = (shift - scale * mean, shift - scale * high, shift - scale * low)
    assert moved == near(wanted, abs=1e-7)
    wider = interval(x, 0.99)
    assert wider.low <= low and high <= wider.high


def often(hits, n, level=0.95):
    """The share of hits is as it should be, within four standard errors."""
    assert abs(sum(hits) / n - level) < 4 * math.sqrt(level * (1 - level) / n)


def test_an_interval_has_the_truth_as_often_as_it_says(rng):
    draws = rng.normal(3, 2, (1000, 4))
    often([low <= 3 <= high for _, low, high in map(interval, draws)], 1000)


@given(groups, st.data())
def test_the_pooled_spread_is_within_groups(several, data):
    sd, df = pooled_sd(several)
    assert df == sum(len(x) - 1 for x in several)
    squares = sum((v - statistics.fmean(x)) ** 2 for x in several for v in x)
    assert sd == near(math.sqrt(squares / df), abs=1e-9)
    moved = [[v + shift for v in x] for x in several for shift in [data.draw(numbers)]]
    assert pooled_sd([*moved, [1.5]]) == near((sd, df), abs=1e-6)
    assert pooled_sd(several[:1]) == near((spread(several[0]), len(several[0]) - 1), abs=1e-9)
    for n in (1, 4):
        wanted = t_quantile(df, 0.9) * sd * math.sqrt(2 / n)
        assert noise_floor(several, n, 0.9) == near(wanted, abs=1e-9)


def test_seeds_alone_exceed_the_noise_floor_as_rarely_as_it_says(rng):
    draws = rng.normal(0, 2, (1000, 2, 4)) + 7
    often([abs(np.diff(x.mean(1))[0]) <= noise_floor(x, 4) for x in draws], 1000)


# The best rate

@given(numbers, st.floats(0.5, 20), st.floats(-0.9, 0.9), st.floats(0.1, 10), numbers)
def test_the_vertex_of_a_parabola(middle, half, at, a, c):
    x = middle + half * np.linspace(-1, 1, 5)
    best = middle + half * at
    y = a * ((x - best) / half) ** 2 + c
    got = vertex(x, y, "minimum")
    assert got == near((best, best, best), abs=1e-4)
    assert vertex(x, -y) == near(got, abs=1e-9)
    assert vertex(x, y) is None and vertex(x, -y, "minimum") is None
    assert vertex(x, a * (x - best - 3 * half) ** 2, "minimum") is None  # outside the range
    for straight in (np.full(5, c), np.full(5, -a), a * (x - middle)):
        assert vertex(x, straight) is None and vertex(x, straight, "minimum") is None


@given(st.integers(0, 999), st.floats(0.1, 10), numbers)
def test_the_vertexs_interval_ends_where_the_slope_may_be_0(seed, scale, shift):
    """|slope| = t · its standard error there, by NumPy's fit; and it moves with x."""
    x = np.array([0, 0.5, 1, 1.5, 2, 2, 2, 3, 3, 4, 4, 4, 4.5, 5, 5])
    y = 0.3 * (x - 2.2) ** 2 + np.random.default_rng(seed).normal(0, 0.5, 15)
    got = vertex(x, y, "minimum", 0.9)
    assume(got is not None and math.isfinite(got.low))
    assert got.low <= got.estimate <= got.high
    (a, b, _), C = np.polyfit(x, y, 2, cov=True)
    assert got.estimate == near(-b / (2 * a))
    for v in got[1:]:
        error = math.sqrt(4 * v * v * C[0, 0] + 4 * v * C[0, 1] + C[1, 1])
        assert abs(2 * a * v + b) == near(t_quantile(12, 0.9) * error, rel=1e-6)
    moved = vertex(shift + scale * x, y, "minimum", 0.9)
    assert moved == near(tuple(shift + scale * v for v in got), rel=1e-6, abs=1e-6)


def test_a_vertex_is_in_its_interval_as_often_as_it_says(rng):
    x = np.repeat(np.arange(5.0), 2)
    found = [vertex(x, -0.5 * (x - 2) ** 2 + rng.normal(0, 0.4, 10)) for _ in range(800)]
    assert None not in found
    often([low <= 2 <= high for _, low, high in found], 800)


def test_a_vertex_that_noise_may_have_made_has_no_ends():
    got = vertex([0, 1, 2, 3, 4, 5], [0, 1.1, 0, 1, 0.1, 0])
    assert got is not None and got[1:] == (-math.inf, math.inf)


# Ranks

@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_the_rank_correlation_is_that_of_mean_ranks(pairs):
    a, b = zip(*pairs)
    rho = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(rho)
        return

    def ranks(values):
        order = sorted(values)
        return [(2 * order.index(v) + order.count(v) + 1) / 2 for v in values]

    assert rho == near(statistics.correlation(ranks(a), ranks(b)), abs=1e-9)
    assert -1 <= rho <= 1 and rank_correlation(b, a) == rho
    assert rank_correlation([math.exp(v) for v in a], [-v for v in b]) == near(-rho)
    assert rank_correlation(a, a) == 1


def test_the_rank_correlation_of_a_textbook():
    """1 - 6 Σ d² / n (n² - 1) without ties: Σ d² = 194 for these (IQ and hours of television)."""
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert rank_correlation(iq, hours) == near(1 - 6 * 194 / 990)


# Mistakes

@pytest.mark.parametrize("call, words", [
    (lambda: spread([1]), "spread: values must have 2 values or more, not 1"),
    (lambda: interval([1.0, math.nan]), "interval: differences must be finite"),
    (lambda: interval([1, 2], 95), r"level must be in \(0, 1\), not 95"),
    (lambda: interval("12"), "differences must be a list of numbers, not the str '12'"),
    (lambda: interval([[1, 2], [3]]), "differences must be a list of numbers"),
    (lambda: interval([True, False]), "differences must be a list of numbers"),
    (lambda: pooled_sd([[1], [2]]), "pooled_sd: no group has two values"),
    (lambda: pooled_sd([]), "pooled_sd: groups must be lists"),
    (lambda: pooled_sd(3), "pooled_sd: groups must be lists"),
    (lambda: pooled_sd([1, 2]), r"pooled_sd: groups\[0\] must be a list"),
    (lambda: pooled_sd([[1, 2], []]), r"groups\[1\] must have 1 values"),
    (lambda: noise_floor([[1, 2]], 0), "noise_floor: n must be an integer >= 1, not 0"),
    (lambda: vertex([1, 2, 3], [1, 2, 3]), "vertex: x must have 4 values"),
    (lambda: vertex([1, 1, 2, 2], [1, 2, 3, 4]), "three different values"),
    (lambda: vertex([1, 2, 3, 4], [1, 2, 3, 4, 5]), "vertex: x has 4 values, y has 5"),
    (lambda: vertex([1, 2, 3, 4], [1, 2, 3, 4], of="best"), "of must be one of maximum, minimum"),
    (lambda: rank_correlation([1, 2], [1, 2, 3]), "rank_correlation: a has 2 values, b has 3"),
    (lambda: t_quantile(0), "t_quantile: df must be an integer >= 1, not 0"),
])
def test_bad_numbers_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
