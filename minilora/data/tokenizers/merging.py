"""Byte pairs: joined in the order of merges, and counted to learn which merges there should be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

Pair = tuple[int, int]

NONE = -1  # the id of an empty place: after a word, and where a token was joined to another


def joined(ids: Iterable[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """Return a word's ids after all merges: of the pairs in it, the one of least rank goes first.

    ranks: pair -> its place in the order of merges. made: the id of the joined token, by rank.
    Among equal pairs the leftmost goes first. A pair is looked at when it comes to be, so the work
    is n log n for n ids.
    """
    places = Places(ids)
    joins = [(ranks[pair], at, pair) for at in range(len(places.ids))
             if (pair := places.pair(at)) in ranks]
    heapify(joins)
    while joins:
        rank, at, pair = heappop(joins)
        if places.pair(at) == pair:  # else it was joined before
            places.join(at, made[rank])
            for i in (places.before[at], at):
                if (pair := places.pair(i)) in ranks:
                    heappush(joins, (ranks[pair], i, pair))
    return [i for i in places.ids if i != NONE]


def learned(words: Mapping[bytes, int], most: int) -> list[Pair]:
    """Return at most `most` merges: each time, the most frequent pair of ids is merged.

    words: word -> how often it occurs. Ids below 256 are bytes, and id 256 + i is merge i. Among
    equally frequent pairs the one with smaller ids goes first. There are fewer merges if no pair
    is left. Source: Sennrich et al. 2016, algorithm 1.
    """
    ids, weights = list[int](), list[int]()  # of all words; how often each occurs
    for word, times in words.items():
        ids += [*word, NONE]
        weights += [times] * (len(ids) - len(weights))
    places = Places(ids)
    total: Counter[Pair] = Counter()
    starts: defaultdict[Pair, list[int]] = defaultdict(list)  # where each pair starts

    def count(at: int, sign: int) -> None:
        pair = places.pair(at)
        total[pair] += sign * weights[at]
        if sign > 0:
            starts[pair].append(at)

    for at in range(len(ids)):
        count(at, +1)
    likeliest = [(-times, pair) for pair, times in total.items()]
    heapify(likeliest)
    merges: list[Pair] = []
    while likeliest and len(merges) < most:
        times, best = heappop(likeliest)
        if NONE in best or not total[best]:
            continue
        if -times != total[best]:  # some of its pairs were changed by other merges
            heappush(likeliest, (-total[best], best))
            continue
        changed = set[int]()
        for at in starts[best]:  # in order, from left to right
            if places.pair(at) == best:
                left, right = places.before[at], places.after[at]
                for i in (left, at, right):
                    count(i, -1)
                places.join(at, 256 + len(merges))
                for i in (left, at):
                    count(i, +1)
                changed |= {left, at}
        for pair in {places.pair(at) for at in changed}:
            heappush(likeliest, (-total[pair], pair))
        merges.append(best)
    return merges


class Places:
    """A sequence of tokens as a linked list: joining two neighbours takes constant time."""

    def __init__(self, ids: Iterable[int]) -> None:
        """Append NONE to the ids: it is after the last id and, at index -1, before the first."""
        self.ids = [*ids, NONE]
        self.before = [*range(-1, len(self.ids) - 1)]
        self.after = [*range(1, len(self.ids)), -1]

    def pair(self, at: int) -> Pair:
        """Return the ids of the token at this place and of the next one."""
        return self.ids[at], self.ids[self.after[at]]

    def join(self, at: int, merged: int) -> None:
        """Replace the token at this place and the next one by the token `merged`."""
        removed = self.after[at]
        self.ids[at], self.ids[removed] = merged, NONE
        self.after[at] = self.after[removed]
        self.before[self.after[at]] = at
