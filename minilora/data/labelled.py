"""Labelled texts: read from a CSV file, split by a seed, and put into batches of like lengths."""

from __future__ import annotations

import csv
import io
import operator
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import describe, integer, real
from ..files.text import read
from ..words import our_words
from .padding import padded
from .tokenizers.special import Tokenizer

COLUMNS = ("text", "label")
POOL = 50  # batches whose rows are sorted together: their lengths are alike, their order random
Inputs = tuple[NDArray[np.int64], NDArray[np.int64], None]
Batch = tuple[Inputs, NDArray[np.int64]]


class Labelled(NamedTuple):
    """Texts, the class of each as a number, and the names of the classes: names[labels[i]]."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def some(self, rows: Sequence[int] | NDArray[np.int64]) -> Labelled:
        """Return these rows, with the same classes."""
        return Labelled(tuple(self.texts[i] for i in rows), self.labels[rows], self.names)


@our_words
def read_labelled(
    path: str | os.PathLike[str], names: Sequence[str] | None = None
) -> Labelled:
    """Return the columns `text` and `label` of a CSV file with a header; others are not read.

    names: the classes, where they are known; None: those of the file, in the order of their
    numbers, or of the alphabet if they are not all integers. Spaces around a label do not count.

    Raises ValueError that names the file and the row: a header without the two columns, a row of
    another length than the header's, an empty text or label, a label that is not in `names`, quotes
    that are not closed, or fewer than two classes. Row 1 is the header.
    """
    def wrong(row: int, why: str) -> ValueError:
        return ValueError(f"{path}: row {row}: {why}")

    rows = csv.reader(io.StringIO(read(path), newline=""), strict=True)
    texts, labels, row = list[str](), list[str](), 1
    try:
        if (head := next(rows, None)) is None:
            raise ValueError(f"{path} is empty: give a CSV file with the columns text and label")
        at = _columns(head, wrong)
        for row, fields in enumerate(rows, 2):
            if not fields:  # an empty line
                continue
            if len(fields) != len(head):
                raise wrong(row, f"{len(fields)} fields, but the header has {len(head)}: put a "
                                 "text with commas in quotes")
            text, label = fields[at[0]], fields[at[1]].strip()
            for name, value in zip(COLUMNS, (text.strip(), label)):
                if not value:
                    raise wrong(row, f"its {name} is empty: leave the row out")
            if names is not None and label not in names:
                raise wrong(row, f"its label {label!r} is not one of {', '.join(names)}")
            texts.append(text)
            labels.append(label)
    except csv.Error as error:
        raise wrong(row + 1, f"{error}: close its quotes") from None
    known = tuple(names) if names is not None else _in_order({*labels})
    if len(known) < 2:
        what = f"has one label alone, {known[0]!r}" if known else "has no rows below its header"
        raise ValueError(f"{path} {what}: give examples of two classes at least")
    if not texts:
        raise ValueError(f"{path} has no rows below its header: give one at least")
    return Labelled(tuple(texts), np.array([known.index(x) for x in labels], np.int64), known)


def _columns(head: list[str], wrong: Any) -> list[int]:
    """Return the places of `text` and `label` in a header."""
    given = [name.strip() for name in head]
    for name in COLUMNS:
        if (n := given.count(name)) != 1:
            how = "no column" if not n else f"{n} columns"
            raise wrong(1, f"{how} {name!r} in the header {', '.join(given)!r}: name one column "
                           "text and one label")
    return [given.index(name) for name in COLUMNS]


def _in_order(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


@our_words
def split_labelled(
    data: Labelled, held_out: float = 0.1, seed: int = 0
) -> tuple[Labelled, Labelled]:
    """Return (rows to train on, held-out rows), drawn with the seed: a file may be sorted by label.

    The held-out part is the fraction `held_out`, one row at least. Raises ValueError for fewer
    than two rows, or a fraction outside (0, 1).
    """
    n = len(data.texts)
    real("split_labelled", "held_out", held_out, "(0, 1)")
    if n < 2:
        raise ValueError(f"split_labelled: {n} row is too few to hold one out: give at least 2")
    rows = np.random.default_rng(seed).permutation(n)
    few = min(max(1, round(n * held_out)), n - 1)
    return data.some(rows[few:]), data.some(rows[:few])


@our_words
def token_rows(texts: Sequence[str], tokenizer: Any, most: int) -> list[NDArray[np.int64]]:
    """Return the ids of each text, cut to `most` tokens; the last id stays, such as BERT's [SEP].

    tokenizer: anything whose `encode(text)` returns ids; one of a model's folder puts its special
    tokens around them. Raises ValueError for a text of no token.
    """
    integer("token_rows", "most", most, 2)
    around = {"add_special": True} if isinstance(tokenizer, Tokenizer) else {}
    result = []
    for i, text in enumerate(texts):
        ids = np.asarray(tokenizer.encode(text, **around), np.int64)
        if not ids.size:
            raise ValueError(f"token_rows: text {i}, {describe(text)}, has no token: leave it out")
        result.append(ids if len(ids) <= most else np.append(ids[: most - 1], ids[-1]))
    return result


def inputs_of(rows: Sequence[NDArray[np.int64]], padding: int) -> Inputs:
    """Return (ids, mask, None): rows of ids with `padding` on the right, and 1 for each token."""
    ids, mask = padded(rows, padding)
    return ids, mask.astype(np.int64), None


class Buckets:
    """buckets[i] is batch i of rows of like lengths: ((ids, mask, None), labels), labels (batch,).

    rows: the ids of each text     labels: (n,)     padding: the id of <pad>, which the mask hides

    An epoch is `per_epoch` batches, in which each row is once. Its order is random; each POOL of
    batches is sorted by length, so a batch has little padding. Batch i depends only on the seed
    and i, so an interrupted run can continue at any step. There is no last batch.
    """

    @our_words
    def __init__(
        self, rows: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], batch: int,
        seed: int = 0, padding: int = 0,
    ) -> None:
        """Use the rows without a copy. Raises ValueError if there are none."""
        self.rows, self.labels = _checked("Buckets", rows, labels)
        self.batch = integer("Buckets", "batch", batch, 1)
        self.seed, self.padding = integer("Buckets", "seed", seed, 0), padding
        self.lengths = np.array([len(row) for row in rows])
        self.per_epoch = -(-len(rows) // self.batch)
        self._epoch, self._order = -1, list[NDArray[np.int64]]()

    def __getitem__(self, i: int) -> Batch:
        epoch, at = divmod(operator.index(i), self.per_epoch)
        if epoch < 0:
            raise IndexError(f"Buckets: index {i} is negative, and there is no last batch")
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        return self.of(self._order[at])

    def order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the numbers of the rows of each batch of an epoch."""
        rng, size = np.random.default_rng([self.seed, epoch]), POOL * self.batch
        shuffled = rng.permutation(len(self.rows))
        batches = [
            part for at in range(0, len(shuffled), size)
            for part in cut(shuffled[at : at + size], self.lengths, self.batch)
        ]
        return [batches[i] for i in rng.permutation(len(batches))]

    def of(self, some: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""
        return inputs_of([self.rows[i] for i in some], self.padding), self.labels[some]


@our_words
def by_length(
    rows: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], batch: int, padding: int = 0
) -> list[Batch]:
    """Return all rows once, in batches by length, for evaluation: see `Buckets`."""
    rows, labels = _checked("by_length", rows, labels)
    lengths = np.array([len(row) for row in rows])
    return [
        (inputs_of([rows[i] for i in some], padding), labels[some])
        for some in cut(np.arange(len(rows)), lengths, integer("by_length", "batch", batch, 1))
    ]


def cut(
    some: NDArray[np.int64], lengths: NDArray[np.int64], batch: int
) -> list[NDArray[np.int64]]:
    """Return the numbers of some rows, sorted by length, in parts of `batch`."""
    ordered = some[np.argsort(lengths[some], kind="stable")]
    return [ordered[at : at + batch] for at in range(0, len(ordered), batch)]


def _checked(who: str, rows: Any, labels: Any) -> tuple[Any, NDArray[np.int64]]:
    labels = np.asarray(labels)
    if not len(rows) or labels.shape != (len(rows),):
        raise ValueError(
            f"{who}: {len(rows)} rows of ids and labels {labels.shape}: give one label for each "
            "row, and one row at least"
        )
    return rows, labels
