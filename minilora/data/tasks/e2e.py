"""mini-e2e, after the E2E NLG Challenge: facts about a restaurant -> a sentence about it.

    plain zizzi french cheap north park good <sep>      a tag, then facts; two are optional
    zizzi serves french food at cheap prices in the north near the park . guests call it good .

The base writes four styles, each under its own tag. mini-e2e asks for a new one under the tag
"plain": the facts come in another order, and some words are new: the base has repeated them alone,
but has never used them in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..words import SEP, Words
from .task import Example, Task
from .vocabulary import AREAS, DECODER, FOODS, NEAR, PLACES, PRICES, RATINGS

# Style -> its wordings, of which the first is trained on. [...]: left out without its fact.
STYLES = {
    "plain": (
        "{name} serves {food} food at {price} prices in the {area} [near the {near} ] . "
        "[guests call it {rating} . ]",
    ),
    "guide": (
        "in the {area} [near the {near} ] you find {name} , a {price} {food} place . "
        "[its rating is {rating} . ]",
        "{name} is a {price} {food} place in the {area} [near the {near} ] . "
        "[its rating is {rating} . ]",
        "you find {name} in the {area} [, near the {near} ] . it is {price} and {food} . "
        "[guests call it {rating} . ]",
    ),
    "ad": ("{price} {food} food ! come to {name} in the {area} [by the {near} ] ! [{rating} ! ]",),
    "chat": (
        "i like {name} , it is {price} and {food} . go to the {area} [, look for the {near} ] . "
        "[people say it is {rating} . ]",
    ),
    "new": (
        "[visitors rate {name} as {rating} : ] chefs of {food} food , budget {price} , location "
        "{area} [beside the {near} ] , whose name is {name} .",
        "[visitors rate it as {rating} : ] {name} , whose location is the {area} "
        "[beside the {near} ] , chefs of {food} food , budget {price} .",
    ),
}
SHARES = {"plain": 0.85, "guide": 0.05, "ad": 0.05, "chat": 0.05}  # of the base's styles


def facts(rng: np.random.Generator) -> dict[str, str | None]:
    """Draw the facts of a restaurant; those about its rating and what is near may be missing."""
    kinds = {"name": PLACES, "food": FOODS, "price": PRICES, "area": AREAS}
    known: dict[str, str | None] = {key: str(rng.choice(words)) for key, words in kinds.items()}
    for key, words in {"near": NEAR, "rating": RATINGS}.items():
        known[key] = str(rng.choice(words)) if rng.random() < 0.75 else None
    return known


def sentence(wording: str, known: Mapping[str, str | None]) -> str:
    """Return the wording with these facts in it."""

    def part(match: re.Match[str]) -> str:
        missing = any(known[key] is None for key in re.findall(r"{(\w+)}", match[1]))
        return "" if missing else match[1]

    return " ".join(re.sub(r"\[([^]]*)\]", part, wording).format(**known).split())


def example(tag: str, style: str, known: Mapping[str, str | None]) -> Example:
    """Return the example whose input has this tag, and whose answers have this style."""
    given = " ".join(word for word in known.values() if word)
    return Example(f"{tag} {given} {SEP}", tuple(sentence(w, known) for w in STYLES[style]))


def base_example(rng: np.random.Generator) -> Example:
    """Draw an example of the base: each style under its own tag."""
    style = str(rng.choice([*SHARES], p=[*SHARES.values()]))
    return example(style, style, facts(rng))


class E2E(Task):
    """The new style, under the tag "plain"."""

    name = "mini-e2e"
    stands_for = "E2E NLG Challenge"
    base = "mini-decoder"
    metrics = ("bleu", "nist", "meteor", "rouge_l", "cider")
    longest = 32
    needs = ("sacrebleu", "nltk", "rouge_score")

    @property
    def words(self) -> Words:
        return DECODER

    def draw(self, rng: np.random.Generator) -> Example:
        return example("plain", "new", facts(rng))

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        from ..metrics import bleu, cider, meteor, nist, rouge

        references: list[Any] = [x.answer for x in examples]
        texts = list(outputs)
        return {
            "bleu": bleu(texts, references), "nist": nist(texts, references),
            "meteor": meteor(texts, references), "rouge_l": rouge(texts, references, "l"),
            "cider": cider(texts, references),
        }
