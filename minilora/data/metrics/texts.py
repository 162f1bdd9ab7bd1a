"""Metrics of texts against references: BLEU, NIST, METEOR, ROUGE and CIDEr-D.

    outputs       one text for each example
    references    the texts that would be right, one or more for each example

A text is words separated by spaces; punctuation is a word of its own. The scales are those of the
paper's tables: BLEU, METEOR and ROUGE in percent, NIST and CIDEr as they are. The values compare
our own methods with each other. Those in the paper come from E2E's script, which splits words in
its own way; what else differs is said below.

All five raise TypeError for what is no text, and ValueError if there is nothing to score, if the
numbers of outputs and references differ, or if a reference has no words. An output without words
scores 0. All but CIDEr need libraries and raise ImportError if one is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import Any

from ... import extras
from ...checks import choice, describe
from ...words import our_words

Text = list[str]  # its words
Grams = tuple[str, ...]


@our_words
def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """100 · BP · exp(¼ Σₙ log pₙ), n = 1..4: BLEU over all outputs together, from 0 to 100.

    pₙ is the share of the outputs' n-grams that are in a reference, and BP is below 1 where the
    outputs are shorter than the closest references. A pₙ of 0 is smoothed as sacreBLEU does by
    default. If no output has four words, BLEU is 0. (Papineni et al. 2002; Post 2018, arXiv
    1804.08771)
    """
    texts, right = _words("bleu", outputs, references)
    if not any(texts):
        return 0.0
    streams = [*zip_longest(*([" ".join(each) for each in several] for several in right))]
    score = need("sacrebleu").corpus_bleu([" ".join(each) for each in texts], streams,
                                           tokenize="none", force=True)  # split already
    return min(100.0, float(score.score))  # rounding may exceed it


@our_words
def nist(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Σₙ (information of the matched n-grams) / (number of n-grams) · penalty, n = 1..5.

    The information of an n-gram is log2(count of its first n - 1 words / its own count) in all
    references, so a rare n-gram counts more, and there is no fixed upper end. The penalty is 0.5
    where outputs have two thirds of the references' words. (Doddington 2002; NLTK)
    """
    texts, right = _words("nist", outputs, references)
    longest = min(5, max(map(len, texts)))  # there are no longer n-grams to score
    if not longest:
        return 0.0
    return float(need("nltk.translate.nist_score").corpus_nist(right, texts, n=longest))


@our_words
def meteor(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """100 · F · (1 - ½ (chunks / matches)³), F = PR / (0.9 P + 0.1 R): the mean over outputs.

    Words match if they are equal in lower case, or have the same stem (Porter). Each output counts
    with its best reference. Matches that are adjacent in both texts are one chunk, so m words in
    perfect order score 100 (1 - ½ / m³). WordNet's synonyms are left out because they need a
    download; E2E's script has them, and other weights. (Lavie and Agarwal 2007; NLTK)
    """
    texts, right = _words("meteor", outputs, references)
    score = need("nltk.translate.meteor_score").meteor_score
    return 100 * _mean([score(each, text, wordnet=_NoSynonyms())
                        for each, text in zip(right, texts)])


class _NoSynonyms:
    """A WordNet without words: METEOR asks it, instead of loading the real one."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


@our_words
def rouge(
    outputs: Sequence[str], references: Sequence[Sequence[str]], kind: str = "l"
) -> float:
    """100 · 2PR / (P + R): ROUGE-1, ROUGE-2 or ROUGE-L (kind "1", "2", "l"), the mean over outputs.

    P and R are the shares of the output's and the reference's n-grams that match; for "l", the
    longest common subsequence over the number of words. Words are not stemmed. Each output counts
    with the reference that gives the largest F. E2E's script takes the largest P and the largest R,
    even of two references, and weighs R more (β = 1.2). (Lin 2004; rouge-score)
    """
    choice("rouge", "kind", kind, ("1", "2", "l"))
    texts, right = _words("rouge", outputs, references)
    name = f"rouge{kind.upper()}"
    scorer = need("rouge_score.rouge_scorer").RougeScorer([name], tokenizer=_Split())
    return 100 * _mean([
        scorer.score_multi([" ".join(one) for one in each], " ".join(text))[name].fmeasure
        for each, text in zip(right, texts)])


class _Split:
    """The tokenizer for rouge-score: words are separated by spaces already."""

    def tokenize(self, text: str) -> Text:
        return text.split()


@our_words
def cider(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """10 · mean of exp(-δ² / 2·6²) · Σ min(hₖ, rₖ) rₖ / (‖h‖ ‖r‖): CIDEr-D, from 0 to 10.

    The mean is over outputs, over each one's references, and over n = 1..4. h and r are the counts
    of the n-grams of output and reference, weighed by log(examples / examples that have the n-gram
    in a reference). δ is the difference of their lengths. What is in every example's references
    weighs 0, so a single example scores 0. An output scores 10 if it equals its only reference and
    has an n-gram of weight above 0 for each n. As in the authors' code, counts are not divided by
    lengths, and words are not stemmed. (Vedantam et al. 2015, arXiv 1411.5726: Section 3, and
    CIDEr-D)
    """
    texts, right = _words("cider", outputs, references)
    having = Counter(gram for each in right for gram in {g for r in each for g in _grams(r)})

    def weighed(text: Text) -> list[dict[Grams, float]]:
        counts, idf = _grams(text), math.log(len(texts))
        return [{gram: count * (idf - math.log(max(1, having[gram])))
                 for gram, count in counts.items() if len(gram) == n} for n in (1, 2, 3, 4)]

    def alike(text: Text, reference: Text) -> float:
        penalty = math.exp(-((len(text) - len(reference)) ** 2) / (2 * 6**2))
        return penalty * _mean([*map(_clipped_cosine, weighed(text), weighed(reference))])

    return 10 * _mean([_mean([alike(text, one) for one in each])
                       for text, each in zip(texts, right)])


def _clipped_cosine(h: dict[Grams, float], r: dict[Grams, float]) -> float:
    """Σ min(hₖ, rₖ) rₖ / (‖h‖ ‖r‖); 0 where either is 0."""
    norms = math.hypot(*h.values()) * math.hypot(*r.values())
    return math.fsum(min(h[k], r[k]) * r[k] for k in h if k in r) / norms if norms else 0.0


def _grams(text: Text) -> Counter[Grams]:
    """Count the n-grams of a text, n = 1..4."""
    return Counter(tuple(text[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(text) - n + 1))


def _mean(values: Collection[float]) -> float:
    """The mean; the order of the values does not matter."""
    return math.fsum(values) / len(values)


def _words(
    who: str, outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Text], list[list[Text]]]:
    """Return the words of each output, and of each of its references."""
    for name, value in {"outputs": outputs, "references": references}.items():
        if isinstance(value, str) or not isinstance(value, Collection):
            raise TypeError(f"{who}: {name} must be a list, not {describe(value)}")
    if len(outputs) != len(references):
        raise ValueError(f"{who}: there are {len(outputs)} outputs, but references for "
                         f"{len(references)}")
    if not len(outputs):
        raise ValueError(f"{who}: there are no outputs to score")
    texts = [_text(who, f"outputs[{i}]", text) for i, text in enumerate(outputs)]
    right = []
    for i, each in enumerate(references):
        name = f"references[{i}]"
        if isinstance(each, str) or not isinstance(each, Collection):
            raise TypeError(f"{who}: {name} must be a list of texts, not {describe(each)}")
        if not len(each):
            raise ValueError(f"{who}: {name} is empty: each output needs a reference")
        right.append([_text(who, f"{name}[{j}]", text) for j, text in enumerate(each)])
        if not all(right[-1]):
            raise ValueError(f"{who}: {name}[{right[-1].index([])}] has no words")
    return texts, right


def _text(who: str, name: str, text: str) -> Text:
    """Return the words of a text."""
    if not isinstance(text, str):
        raise TypeError(f"{who}: {name} must be a text (str), not {describe(text)}")
    return text.split()


def need(module: str) -> Any:
    """Return the module. Raises ImportError, with the command to install it."""
    return extras.need(module, "text metrics", "metrics")
