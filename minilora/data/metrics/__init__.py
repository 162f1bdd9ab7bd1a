"""Scores of a model's outputs: of texts, and of classes and numbers.

The libraries of the text metrics are loaded when one of them is called.
"""

from .classes import accuracy, f1, matthews, pearson, spearman
from .texts import bleu, cider, meteor, nist, rouge

__all__ = [
    "accuracy", "bleu", "cider", "f1", "matthews", "meteor", "nist", "pearson", "rouge", "spearman",
]
