"""mini-samsum, after SAMSum: a dialogue of two people -> a summary in one sentence.

    talk amy : shall we swim on monday ? ben : no , friday is better . amy : fine , at the park .
    <sep>
    amy and ben will swim at the park on friday instead of monday .

The base writes other kinds of summaries of the same dialogues: a list of facts after "talk", a
title after "title".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..words import SEP, Words
from .task import Example, Task
from .vocabulary import DAYS, DECODER, HOBBIES, NEAR, PEOPLE

# What happens -> the dialogue, the base's list of facts, its title, and the summaries.
# {a}, {b}: people; {x}, {z}: what they do; {d}, {e}: days; {p}, {q}: places.
PLOTS = (
    ("{a} : shall we {x} on {d} ? {b} : yes , at the {p} ? {a} : fine .",
     "{x} ; {d} ; {p} ; {a} ; {b}", "{x} on {d}",
     ("{a} and {b} will {x} at the {p} on {d} .", "on {d} {a} and {b} meet at the {p} to {x} .")),
    ("{a} : shall we {x} on {d} ? {b} : no , {e} is better . {a} : fine , at the {p} .",
     "{x} ; {e} ; {p} ; {a} ; {b}", "{x} on {e}",
     ("{a} and {b} will {x} at the {p} on {e} instead of {d} .",
      "on {e} , and not {d} , {a} and {b} meet at the {p} to {x} .")),
    ("{a} : shall we {x} at the {p} ? {b} : no , the {q} is better . {a} : fine , on {d} .",
     "{x} ; {d} ; {q} ; {a} ; {b}", "{x} on {d}",
     ("{a} and {b} will {x} on {d} at the {q} instead of the {p} .",
      "on {d} {a} and {b} meet at the {q} , and not the {p} , to {x} .")),
    ("{a} : shall we {x} on {d} ? {b} : sorry , i have to {z} at the {p} .",
     "no ; {d} ; {p} ; {a} {x} ; {b} {z}", "no {x}",
     ("{a} wants to {x} on {d} but {b} must {z} at the {p} .",
      "{b} must {z} at the {p} , {a} wants to {x} on {d} .")),
)


def dialogue(rng: np.random.Generator) -> tuple[str, str, str, tuple[str, ...]]:
    """Draw a dialogue; return it with its facts, its title and its summaries."""
    words: dict[str, str] = {}
    for letters, kind in (("ab", PEOPLE), ("xz", HOBBIES), ("de", DAYS), ("pq", NEAR)):
        words |= zip(letters, rng.choice(kind, 2, replace=False).tolist())
    text, facts, title, summaries = PLOTS[rng.integers(len(PLOTS))]
    given, *short = (part.format(**words) for part in (text, facts, title))
    return given, short[0], short[1], tuple(summary.format(**words) for summary in summaries)


def base_example(rng: np.random.Generator) -> Example:
    """Draw an example of the base: a list of facts, or one time in four a title."""
    given, facts, title, _ = dialogue(rng)
    if rng.random() < 0.25:
        return Example(f"title {given} {SEP}", (title,))
    return Example(f"talk {given} {SEP}", (facts,))


class SAMSum(Task):
    """A summary in one sentence."""

    name = "mini-samsum"
    stands_for = "SAMSum"
    base = "mini-decoder"
    metrics = ("rouge_1", "rouge_2", "rouge_l")
    needs = ("rouge_score",)
    longest = 20

    @property
    def words(self) -> Words:
        return DECODER

    def draw(self, rng: np.random.Generator) -> Example:
        given, _, _, summaries = dialogue(rng)
        return Example(f"talk {given} {SEP}", summaries)

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        from ..metrics import rouge

        references: list[Any] = [x.answer for x in examples]
        return {f"rouge_{n}": rouge(list(outputs), references, n) for n in "12l"}
