"""What all readers of tensors share: a model of zeros to fill, and the check that names what does
not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ..checks import choice
from ..files.budget import budget
from ..files.safetensors import FLOATS, Entry

Shape = tuple[int, ...]
PRECISIONS = "float64", "float32", "float16"


def check_dtype(who: str, dtype: Any) -> None:
    """Raise ValueError unless a model can have this dtype."""
    choice(who, "dtype", getattr(dtype, "__name__", str(dtype)), PRECISIONS)


def zeros(shapes: Iterable[Shape]) -> np.random.Generator:
    """Return the `rng` of a model whose weights come from a file with tensors of these shapes.

    A larger model may be built, so that `check` can name all that the file lacks.
    """
    total = sum(map(math.prod, shapes))
    return budget(total, spare=3 * total + (1 << 20))


def check(
    of: str, found: Mapping[str, Entry], wanted: Mapping[str, Shape], known: Collection[str] = (),
    named: Callable[[str], str] = str,
) -> None:
    """Raise ValueError, with all names, unless the tensors found are floats, and those wanted.

    wanted: name -> shape   known: others that may be there   of: whose they are, for the error
    named: a name as it is in the file
    """
    both = [name for name in wanted if name in found]
    problems = {
        "missing": [named(name) for name in wanted if name not in found],
        "unknown": [named(name) for name in found if name not in wanted and name not in known],
        "of another shape": [f"{named(name)} {found[name].shape}, not {wanted[name]}"
                             for name in both if found[name].shape != wanted[name]],
        "no floats": [f"{named(name)} ({found[name].dtype})" for name in [*both, *known]
                      if found[name].dtype not in FLOATS],
    }
    if any(problems.values()):
        raise ValueError(f"its tensors are not those of {of}: " + "; ".join(
            f"{problem}: {', '.join(sorted(names))}" for problem, names in problems.items()
            if names))
