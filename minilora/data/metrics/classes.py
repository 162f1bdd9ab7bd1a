"""Scores of classes and of numbers: accuracy, F1, and the correlations of GLUE.

Each takes what is right and what was predicted, of equal length, and returns one number. Where a
correlation has no value, because one side is constant, it is 0, as for a predictor without skill.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def _pair(who: str, right: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays (n,), or raise ValueError."""
    a, b = np.asarray(right), np.asarray(predicted)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(
            f"{who}: what is right is {a.shape} and what is predicted {b.shape}: both must be "
            "(n,), one number for each example"
        )
    for what, x in (("what is right", a), ("what is predicted", b)):
        if x.dtype.kind not in "iufb" or not np.isfinite(x).all():
            raise ValueError(f"{who}: {what} must be finite numbers, not {x.dtype} {x[:3]}")
    return a, b


def accuracy(right: Any, predicted: Any) -> float:
    """Return the share of predictions that are right."""
    a, b = _pair("accuracy", right, predicted)
    return float((a == b).mean())


def f1(right: Any, predicted: Any) -> float:
    """Return 2 TP / (2 TP + FP + FN) of class 1; 0 if class 1 is nowhere."""
    a, b = (x == 1 for x in _pair("f1", right, predicted))
    both, either = int((a & b).sum()), int(a.sum()) + int(b.sum())
    return 2 * both / either if either else 0.0


def matthews(right: Any, predicted: Any) -> float:
    """Return (TP TN - FP FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)) of the classes 0 and 1.

    It is the correlation of both, from -1 to 1; 0 if one of them is constant (Matthews 1975).
    """
    a, b = _pair("matthews", right, predicted)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("matthews: the classes must be 0 and 1")
    return pearson(a, b)


def pearson(right: Any, predicted: Any) -> float:
    """Return Σ (x - x̄)(y - ȳ) / √(Σ (x - x̄)² Σ (y - ȳ)²); 0 if x or y is constant."""
    a, b = (x.astype(np.float64) for x in _pair("pearson", right, predicted))
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = (x / np.abs(x).max() for x in (a, b))  # so that no square overflows
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(np.clip(a @ b / length, -1.0, 1.0)) if length else 0.0


def spearman(right: Any, predicted: Any) -> float:
    """Return the Pearson correlation of the ranks; equal values share their mean rank."""
    a, b = _pair("spearman", right, predicted)
    return pearson(ranks(a), ranks(b))


def ranks(x: np.ndarray) -> np.ndarray:
    """Return the rank of each number, from 1; equal ones share their mean rank.   x: (n,)"""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]
