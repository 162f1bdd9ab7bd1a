"""What exercise 03 expects of lines such as "c = a * b": computed forwards, from each name on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Values = Mapping[str, Any]  # name -> a number or an array


def slopes(values: Values, lines: Sequence[str], ends: Iterable[str]) -> dict[str, Any]:
    """name -> the slope of the sum of the ends, computed forwards for one name at a time."""
    each = {}
    for start in [*values, *(line[0] for line in lines)]:
        value, slope = dict(values), dict.fromkeys(values, 0.0)
        slope[start] = 1.0
        for line in lines:
            name, a, how, b = line[0], *line[4:].split()
            u, v, du, dv = value[a], value[b], slope[a], slope[b]
            value[name] = u * v if how == "*" else u + v if how == "+" else u - v
            slope[name] = du * v + u * dv if how == "*" else du + dv if how == "+" else du - dv
            if name == start:
                slope[name] = 1.0
        each[start] = sum(slope[end] for end in ends)
    return each


def sizes(values: Values, lines: Sequence[str], ends: Iterable[str]) -> dict[str, Any]:
    """The same with the sizes of all terms, which may cancel in a slope."""
    return slopes({name: np.abs(value) for name, value in values.items()},
                   [line.replace("-", "+") for line in lines], ends)


def below(end: str, lines: Sequence[str]) -> int:
    """The number of lines from which this name was computed."""
    needed, count = {end}, 0
    for line in reversed(lines):
        if line[0] in needed:
            needed |= {*line[4:].split()}
            count += 1
    return count
