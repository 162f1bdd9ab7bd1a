"""Accuracy, F1, Matthews, Pearson, Spearman: by their definitions, written another way."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minilora.data.metrics.classes import accuracy, f1, matthews, pearson, ranks, spearman

classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
numbers = st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=1, max_size=20)
CORRELATIONS = pytest.mark.parametrize("score", [matthews, pearson, spearman])


def near(a, b):
    return math.isclose(a, b, rel_tol=0, abs_tol=1e-12)


@given(classes)
def test_classes_by_the_four_counts(pairs):
    right, predicted = zip(*pairs)
    tp, tn, fp, fn = (pairs.count(x) for x in ((1, 1), (0, 0), (0, 1), (1, 0)))
    assert near(accuracy(right, predicted), (tp + tn) / len(pairs))
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    assert near(f1(right, predicted), 2 * precision * recall / (precision + recall) if tp else 0)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert near(matthews(right, predicted), (tp * tn - fp * fn) / root if root else 0)


@given(numbers)
def test_pearson_by_the_covariance_of_z_scores(pairs):
    x, y = np.array(pairs, float).T
    assume(x.std() and y.std())
    wanted = np.mean((x - x.mean()) / x.std() * (y - y.mean()) / y.std())
    assert near(pearson(x, y), wanted) and near(pearson(y, x), wanted)
    assert near(pearson(3 * x - 7, y), wanted) and near(pearson(-x, y), -wanted)


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_spearman_without_ties_by_the_distances_of_ranks(x, y):
    x, y = np.array(x), np.array(y)
    wanted = 1 - 6 * np.sum((x - y) ** 2) / (8 * 63)
    assert near(spearman(x, y), wanted) and near(spearman(np.exp(x), y**3), wanted)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_rank_is_one_more_than_those_below_and_half_of_its_equals(x):
    wanted = [1 + sum(b < a for b in x) + (x.count(a) - 1) / 2 for a in x]
    assert ranks(np.array(x)).tolist() == wanted


@CORRELATIONS
@given(classes)
def test_a_constant_side_scores_0_and_itself_1(score, pairs):
    x, _ = zip(*pairs)
    assert score(x, [1] * len(x)) == score([0] * len(x), x) == 0
    assert near(score(x, x), len(set(x)) - 1)


def test_known_values():
    right, predicted = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    assert near(f1(right, predicted), 2 / 3) and accuracy(right, predicted) == 0.75
    assert near(matthews(right, predicted), 7 / 15)
    assert near(pearson([1, 2, 3], [1, 3, 2]), 0.5)
    assert near(spearman([1, 2, 2, 4], [10, 20, 30, 40]), 4.5 / math.sqrt(4.5 * 5))
    assert f1([0, 0], [0, 0]) == 0 and f1([0, 0], [1, 0]) == 0


@pytest.mark.parametrize("score", [accuracy, f1, matthews, pearson, spearman])
@pytest.mark.parametrize("pair", [([], []), ([1, 0], [1]), ([[1]], [[1]]), ([1], [math.nan]),
                                  (["a"], ["a"])])
def test_what_is_no_pair_of_rows_of_numbers_is_refused(score, pair):
    with pytest.raises(ValueError, match=f"^{score.__name__}: what is"):
        score(*pair)


def test_other_classes_have_no_matthews_correlation():
    with pytest.raises(ValueError, match="matthews: the classes must be 0 and 1"):
        matthews([0, 2], [0, 1])


def test_large_numbers_do_not_overflow():
    x = np.array([1.0, 2.0, 4.0])
    assert near(pearson(x * 1e300, x), 1) and near(pearson(x * 1e-300, x), 1)
