"""The decoder's tasks: parts, words, scores, and batches in which padding never counts."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import minilora as ml
from minilora.cli.contents import contents
from minilora.data.tasks import BASE_TEXTS, PARTS, TASKS, base_batches, sql
from minilora.data.words import END, PAD, SPECIAL
from minilora.files import checkpoint
from minilora.generate import answers
from minilora.models.pretrained import base_path
from minilora.pretrain import RECIPES

pytestmark = pytest.mark.usefixtures("numpy_only")
NAMES = ["mini-e2e", "mini-e2e-latent", "mini-sql", "mini-mnli", "mini-samsum"]
METRICS = all(map(importlib.util.find_spec, ("sacrebleu", "nltk", "rouge_score")))
every = pytest.mark.parametrize("name", NAMES)
OPEN = {"nist", "cider", "meteor"}  # metrics whose value for a reference depends on the texts


def all_of(name):
    return TASKS.get(name) or BASE_TEXTS[name]


def scored(task, examples, outputs):
    """Scores, as far as there is what they are computed with."""
    if not METRICS and "accuracy" not in task.metrics:
        pytest.skip("the text metrics are not there")
    scores = task.score(examples, outputs)
    assert tuple(scores) == task.metrics
    assert all(np.isfinite(value) for value in scores.values())
    return scores


@pytest.mark.parametrize("name", [*NAMES, "mini-decoder"])
def test_parts_are_disjoint_and_a_seed_gives_the_same_data(name):
    task = all_of(name)
    parts = [task.examples(part, 150) for part in PARTS]
    inputs = [{x.inputs for x in part} for part in parts]
    assert [len(some) for some in inputs] == [150] * 3 and len(set().union(*inputs)) == 450
    for part, examples in zip(PARTS, parts):
        assert task.examples(part, 150) == examples
        assert task.examples(part, 150, seed=1) != examples
        assert task.examples(part, 20) == examples[:20]


@pytest.mark.parametrize("name", [*NAMES, "mini-decoder"])
def test_every_example_is_in_the_words_of_the_base_and_fits_its_positions(name):
    task, config = all_of(name), RECIPES["mini-decoder"].config
    assert task.words.vocab_size == config.vocab_size <= 256
    for example in task.examples("train", 400):
        text = task.words.encode(example.inputs)
        for answer in example.answer:
            ids = task.words.encode(f"{answer} {END}")
            assert task.words.decode(ids) == answer
            assert not set(answer.split()) & set(SPECIAL)
            assert len(ids) <= task.longest
            assert len(text) + len(ids) + 16 <= config.n_positions  # with room for trained tokens


@every
def test_the_base_is_never_trained_on_a_test_input(name):
    """A part depends on the input alone, so it is the same in the task and in the base's text."""
    own = BASE_TEXTS["mini-decoder"]
    seen = {x.inputs for x in own.examples("train", 3000)}
    assert not seen & {x.inputs for x in TASKS[name].examples("test", 300)}


@every
def test_references_get_top_marks_and_garbage_gets_none(name):
    task = TASKS[name]
    examples = task.examples("test", 40)
    best = scored(task, examples, [x.answer[0] for x in examples])
    for outputs in ([""] * 40, ["<pad>"] * 40, ["amy"] * 40, ["select ( from = = where"] * 40):
        worst = scored(task, examples, outputs)
        for metric, value in worst.items():
            assert value < 0.2 * best[metric]
    for metric, value in best.items():
        if metric not in OPEN:
            assert value == pytest.approx(1) or value == pytest.approx(100), metric


@given(st.lists(st.sampled_from([*TASKS["mini-sql"].words.words, "'", '"', ";", "--", "\0", "é"]),
                max_size=12), seeds)
def test_no_output_makes_a_score_fail(words, seed):
    for name in ("mini-sql", "mini-mnli"):
        task = TASKS[name]
        example = task.examples("test", 1, seed=seed)
        assert set(task.score(example, [" ".join(words)]).values()) <= {0.0, 1.0}


def test_sql_is_right_where_it_gives_the_same_rows():
    table = sql.Table(("name", "age"), (("amy", 20), ("ben", 22), ("dan", 22)))
    right = sql.execute("select name from players where age = 22", table)
    assert right == sql.execute("select name from players where age > 21", table)
    assert right == ["('ben',)", "('dan',)"]
    assert sql.execute("select avg ( age ) from players where name = ben", table) == ["(22.0,)"]
    for wrong in ("select team from players", "name from players", "drop", "select ( from",
                  "select name from players ; select name from players",
                  "select count ( 1 ) from " + " , ".join(["players"] * 20)):
        assert sql.execute(wrong, table) is None
    assert sql.execute("", table) == sql.execute("drop table players", table) == []
    assert sql.execute("select name from players where age = 22", table) == right


def test_sql_questions_have_an_answer_that_other_queries_seldom_give():
    examples = TASKS["mini-sql"].examples("test", 200)
    answers_ = [sql.execute(x.answer[0], x.facts) for x in examples]
    assert all(rows and rows != ["(None,)"] for rows in answers_)
    without = [sql.execute(x.answer[0].partition(" where")[0], x.facts) for x in examples]
    assert np.mean([a == b for a, b in zip(answers_, without)]) < 0.15


def test_labels_are_equally_likely_and_follow_from_the_words():
    task = TASKS["mini-mnli"]
    labels = [x.answer[0] for x in task.examples("train", 900)]
    assert all(abs(labels.count(label) / 900 - 1 / 3) < 0.07 for label in set(labels))
    own = BASE_TEXTS["mini-decoder"].examples("train", 400)
    for x in own:
        if x.inputs.startswith("compare"):
            assert set(x.answer[0].split()) <= {
                "colour", "animal", "action", "room", "same", "wider", "narrower", "other"}


@pytest.mark.parametrize("name", [*NAMES, "mini-decoder"])
def test_padding_is_never_scored(name):
    """More padding changes neither the loss nor an answer; only answers are targets."""
    task = all_of(name)
    words, pad = task.words, task.words.ids[PAD]
    model = ml.GPT2(ml.GPT2Config(words.vocab_size, 80, 8, 1, 2), rng=0, dtype="float64")
    examples = task.examples("train", 6)
    ids, targets = task.batch(examples)
    for x, tokens, row in zip(examples, ids, targets):
        first, last = np.flatnonzero(row >= 0)[[0, -1]]
        assert first == len(words.encode(x.inputs)) - 1, "at the prompt's last word"
        assert np.array_equal(row[first:last], tokens[first + 1 : last + 1])
        assert words.decode(row[row >= 0]) == x.answer[0]
        assert words.ids[END] == row[row >= 0][-1]
    longer = [np.pad(array, ((0, 0), (0, 9)), constant_values=fill)
              for array, fill in ((ids, pad), (targets, -100))]
    loss = ml.evaluate(model, [(ids, targets)])
    assert ml.evaluate(model, [tuple(longer)]) == pytest.approx(loss, rel=1e-12)
    each = [ml.evaluate(model, [task.batch([x])]) for x in examples]
    counts = [len(words.encode(x.answer[0])) + 1 for x in examples]
    assert np.average(each, weights=counts) == pytest.approx(loss, rel=1e-12)


def test_batches_of_a_base_are_the_same_at_each_call_and_its_parts_differ():
    (first, second), (again, _) = (base_batches("mini-decoder", n=2, batch=4) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], second[0])
    other = base_batches("mini-decoder", "train", n=1, batch=4)[0]
    assert not np.array_equal(first[0], other[0])
    with pytest.raises(ValueError, match="base_batches: name must be one of mini-decoder"):
        base_batches("gpt2")


def test_the_base_answers_its_own_questions():
    model = ml.load_base("mini-decoder")
    task = BASE_TEXTS["mini-decoder"]
    assert model.tokenizer.words == task.words.words
    examples = task.examples("test", 60)
    out = answers(model, [model.tokenizer.encode(x.inputs) for x in examples], task.longest,
                  task.words.ids[END])
    assert task.score(examples, [task.words.decode(ids) for ids in out])["exact"] > 0.75


@pytest.mark.parametrize("words", [[1], ["a", "a"], ["a b"], ["<pad>"], "a", [["a"]], None, {},
                                   [f"w{i}" for i in range(300)]])
def test_a_file_with_broken_words_is_refused_by_name(words, tmp_path):
    arrays, meta = checkpoint.read(base_path("mini-decoder"), "model")
    path = checkpoint.write(tmp_path / "a.npz", arrays, {**meta, "words": words})
    with pytest.raises(ValueError, match=r"a\.npz"):
        ml.load_model(path)


def test_words_are_kept_in_the_file_of_a_model(tmp_path):
    model = ml.load_base("mini-decoder")
    back = ml.load_model(ml.save_model(model, tmp_path / "a.npz"))
    assert back.tokenizer.words == model.tokenizer.words
    assert contents(str(tmp_path / "a.npz"))["tokenizer"] == f"{len(back.tokenizer.words)} tokens"
    with pytest.raises(ValueError, match="Words: 'fox' is not one of the"):
        back.tokenizer.encode("amy fox")
