"""What is inside an update ΔW (§7): its rank, its directions, and how they relate to those of W.

Each function takes ΔW as a matrix, or as its factors B and A, and computes in float64. `updates`
reads the ΔW of an adapted model, `difference` those between two models. No number means much
alone: compare it with chance, which `random_similarity` and the docstrings give, and
`random_like` draws.
"""

from .relation import Amplification, Intruders, amplification, intruders
from .spectra import random_like, rank_for, spectrum
from .subspaces import random_similarity, subspace_grid, subspace_similarity
from .updates import difference, updates

__all__ = [
    "Amplification", "Intruders", "amplification", "difference", "intruders", "random_like",
    "random_similarity", "rank_for", "spectrum", "subspace_grid", "subspace_similarity", "updates",
]
