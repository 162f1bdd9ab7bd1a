"""Labelled texts: what a CSV file may be, and batches of like lengths."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import data
from minilora.data.labelled import POOL, inputs_of
from minilora.models.pretrained import with_head
from minilora.tensor import no_grad
from minilora.training.losses import encoder_loss, share_right

pytestmark = pytest.mark.usefixtures("numpy_only")
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9).filter(
    lambda text: text.strip())


def written(rows, folder):
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    path = folder / "a.csv"
    path.write_bytes(file.getvalue().encode())
    return path


# The file.


@given(rows=st.lists(st.tuples(TEXT, st.sampled_from(["good", "bad", "10", "9"])), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    rows = [*rows, ("a, \"quoted\"\nline", "good"), ("b", "bad")]
    path = written([["id", "label", "text"], *([i, y, x] for i, (x, y) in enumerate(rows))], folder)
    read = data.read_labelled(path)
    assert [*read.texts] == [x for x, _ in rows]
    assert [read.names[i] for i in read.labels] == [y for _, y in rows]
    assert list(read.names) == sorted({y for _, y in rows})


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    path = written([["text", "label"], ["a", " 10 "], ["b", "9"], [], ["c", "-1"]], tmp_path)
    assert data.read_labelled(path).names == ("-1", "9", "10")
    known = data.read_labelled(path, ["10", "9", "-1"])
    assert known.labels.tolist() == [0, 1, 2] and known.names == ("10", "9", "-1")


@pytest.mark.parametrize(("content", "words"), {
    "": "is empty: give a CSV file with the columns text and label",
    "a,b\n": "row 1: no column 'text' in the header 'a, b': name one column text and one label",
    "text,label,text\n": "row 1: 2 columns 'text' in the header",
    "text,kind\nx,1\n": "row 1: no column 'label' in the header 'text, kind'",
    "text,label\n": "has no rows below its header: give examples of two classes at least",
    "text,label\na,1\nb,1\n": "has one label alone, '1': give examples of two classes at least",
    "text,label\na,1\nb, c,0\n": "row 3: 3 fields, but the header has 2: put a text with commas in",
    "text,label\na,1\nb\n": "row 3: 1 fields, but the header has 2",
    "text,label\na,1\n  ,0\n": "row 3: its text is empty: leave the row out",
    "text,label\na,1\nb,\n": "row 3: its label is empty: leave the row out",
    "text,label\na,1\n\"b,0\n": "row 3: .*: close its quotes",
}.items())
def test_a_file_that_is_wrong_is_refused_by_its_row(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"a.csv:? {words}"):
        data.read_labelled(path)


def test_an_unknown_label_is_refused_where_the_labels_are_known(tmp_path):
    path = written([["text", "label"], ["a", "1"], ["b", "2"]], tmp_path)
    with pytest.raises(ValueError, match=r"a.csv: row 3: its label '2' is not one of 0, 1"):
        data.read_labelled(path, ["0", "1"])
    (tmp_path / "b.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"b.csv has no rows below its header: give one at least"):
        data.read_labelled(tmp_path / "b.csv", ["0", "1"])


@given(n=st.integers(2, 40), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_split_has_each_row_once_and_depends_on_its_seed(n, share, seed):
    whole = data.Labelled(tuple(map(str, range(n))), np.arange(n) % 2, ("0", "1"))
    parts = data.split_labelled(whole, share, seed)
    assert sorted(int(x) for part in parts for x in part.texts) == [*range(n)]
    assert all(int(x) % 2 == y for part in parts for x, y in zip(part.texts, part.labels))
    assert 1 <= len(parts[1].texts) < n and abs(len(parts[1].texts) - n * share) <= 1
    assert parts[0].texts == data.split_labelled(whole, share, seed)[0].texts


def test_a_file_that_is_sorted_by_label_is_shuffled():
    n = 400
    whole = data.Labelled(tuple(map(str, range(n))), np.arange(n) // (n // 2), ("0", "1"))
    one, other = (data.split_labelled(whole, 0.1, seed)[1] for seed in (0, 1))
    assert one.texts != other.texts and 0.25 < one.labels.mean() < 0.75  # 0.5 ± 3 · 0.08


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="1 row is too few to hold one out"):
        data.split_labelled(data.Labelled(("a",), np.array([0]), ("0", "1")))


# Tokens and batches.


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]


@given(texts=st.lists(st.text("abc", min_size=1, max_size=12), min_size=1), most=st.integers(2, 9))
def test_a_long_text_is_cut_before_its_last_token(texts, most):
    for text, row in zip(texts, data.token_rows(texts, Letters(), most)):
        whole = Letters().encode(text)
        assert len(row) == min(len(whole), most) and row[-1] == whole[-1]
        assert row[:-1].tolist() == whole[: len(row) - 1]
    with pytest.raises(ValueError, match=r"text 1, .*, has no token: leave it out"):
        data.token_rows(["a", ""], Letters(), most)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def rows_of(lengths):
    """Rows that say who they are: row i is i + 1 repeated."""
    return [np.full(n, i + 1) for i, n in enumerate(lengths)], np.arange(len(lengths))


@given(lengths=LENGTHS, batch=st.integers(1, 7), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_an_epoch_has_each_row_once_unchanged_with_its_label(lengths, batch, seed, epoch):
    rows, labels = rows_of(lengths)
    buckets = data.Buckets(rows, labels, batch, seed)
    n = buckets.per_epoch
    found = []
    for (ids, mask, types), some in [buckets[i] for i in range(epoch * n, epoch * n + n)]:
        assert types is None and 1 <= len(ids) <= batch and mask.sum(1).max() == ids.shape[1]
        for row, kept, label in zip(ids, mask, some):
            assert (row[kept == 1] == label + 1).all() and not row[kept == 0].any()
            assert (np.diff(kept) <= 0).all() and kept.sum() == lengths[label]
            found.append(label)
    assert sorted(found) == [*range(len(lengths))]
    again = data.Buckets(rows, labels, batch, seed)[epoch * n]  # in whatever order it is asked
    assert np.array_equal(again[0][0], buckets[epoch * n][0][0])


@given(lengths=LENGTHS, batch=st.integers(1, 7))
def test_batches_by_length_have_each_row_once_and_the_least_padding(lengths, batch):
    rows, labels = rows_of(lengths)
    batches = data.by_length(rows, labels, batch)
    assert sorted(x for _, some in batches for x in some) == [*range(len(lengths))]
    order = [lengths[x] for _, some in batches for x in some]
    assert order == sorted(lengths)
    in_order = sum(max(lengths[at : at + batch]) * len(lengths[at : at + batch])
                   for at in range(0, len(lengths), batch))
    full = len(lengths) % batch == 0  # else a short batch may fall on other rows
    assert not full or sum(ids.size for (ids, _, _), _ in batches) <= in_order


def test_a_pool_is_sorted_and_its_batches_are_in_random_order():
    rng = np.random.default_rng(0)
    rows, labels = rows_of(rng.integers(1, 30, 4 * POOL))
    order = data.Buckets(rows, labels, 4).order(0)
    longest = [max(len(rows[i]) for i in some) for some in order]
    assert longest != sorted(longest)
    spread = [np.ptp([len(rows[i]) for i in some]) for some in order]
    assert np.mean(spread) < 2  # in random order it would be 29 * 3 / 5


@pytest.mark.parametrize(("change", "words"), [
    ({"rows": []}, "0 rows of ids"), ({"labels": np.array([1])}, "give one label for each row"),
])
def test_rows_without_their_labels_are_refused(change, words):
    given = {"rows": [np.array([1])] * 2, "labels": np.array([0, 1])} | change
    for make in (data.Buckets, data.by_length):
        with pytest.raises(ValueError, match=words):
            make(**given, batch=1)
    with pytest.raises(IndexError, match="there is no last batch"):
        data.Buckets([np.array([1])], np.array([0]), 1)[-1]


def test_padding_is_never_scored_and_the_order_of_the_batches_changes_nothing():
    config = ml.BertConfig(vocab_size=20, n_positions=12, d_model=8, n_layers=2, n_heads=2)
    model = with_head(ml.Bert(config, rng=0, dtype="float64"), 3, rng=1).eval()
    rng = np.random.default_rng(2)
    rows = [rng.integers(1, 20, n) for n in rng.integers(1, 12, 17)]
    labels = rng.integers(0, 3, 17)
    with no_grad():
        alone = [model(row[None]).data[0] for row in rows]
        for padding in (0, 7):
            ids, mask, _ = inputs_of(rows, padding)
            assert (ids[mask == 0] == padding).all() and not mask.all()
            assert np.allclose(model(ids, mask).data, alone, rtol=1e-10, atol=1e-12)
    losses, shares = set(), set()
    for batch in (1, 4, 17):
        batches = data.by_length(rows, labels, batch)
        for some in (batches, batches[::-1]):
            losses.add(round(ml.evaluate(model, some, encoder_loss), 10))
            shares.add(share_right(model, some))
    assert len(losses) == 1
    assert shares == {float(np.mean([x.argmax() == y for x, y in zip(alone, labels)]))}
