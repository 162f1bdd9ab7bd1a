"""Scores of a model's outputs. The libraries of the text metrics are loaded when one is called."""

from .texts import bleu, cider, meteor, nist, rouge

__all__ = ["bleu", "cider", "meteor", "nist", "rouge"]
