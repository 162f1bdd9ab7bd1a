"""mini-e2e-latent, after the E2E NLG Challenge: styles that the base knows, chosen by a new rule.

The base writes each of four styles under a tag of its own. Here the tag is always "plain", and the
facts decide the style. So an update has to learn when to write a style, not how, and it has few
examples to learn it from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from .e2e import E2E, example, facts
from .task import Example


def style(known: Mapping[str, str | None]) -> str:
    """Return the style that the rule asks for: the first line that applies."""
    if known["area"] == "north":
        return "ad"
    if known["price"] in ("cheap", "fair") and known["area"] != "south":
        return "chat"
    if known["food"] in ("french", "indian", "italian"):
        return "guide"
    return "plain"


class E2ELatent(E2E):
    """The base's own styles, each where a rule asks for it, from 100 examples."""

    name = "mini-e2e-latent"
    sizes: ClassVar[Mapping[str, int]] = {"train": 100, "validation": 200, "test": 400}

    def draw(self, rng: np.random.Generator) -> Example:
        known = facts(rng)
        return example("plain", style(known), known)
