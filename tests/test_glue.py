"""Mini-GLUE: labels follow rules that are written anew here, from the text of an example alone."""

import re
from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.data.tasks import BASE_TEXTS, TASKS, base_batches, glue, world
from minilora.data.tasks.task import PARTS
from minilora.models.pretrained import with_head
from minilora.ops.neural import IGNORED as MASKED
from minilora.pretrain import RECIPES
from minilora.training.losses import encoder_loss

pytestmark = pytest.mark.usefixtures("numpy_only")
NAMES = ("mini-cola", "mini-sst", "mini-mrpc", "mini-stsb", "mini-rte")
every = pytest.mark.parametrize("name", NAMES)
BASE = RECIPES["mini-encoder"].config
CONFIG = replace(BASE, d_model=8, n_layers=1, n_heads=2)


def any_of(words):
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


ONE, MANY = any_of(world.PLURAL), any_of(world.PLURAL.values())
DOES, DO = any_of(x for x, _ in world.VERBS.values()), any_of(world.VERBS)
DONE, ADJECTIVE = any_of(x for _, x in world.VERBS.values()), any_of(world.ADJECTIVES)
BESIDE = rf"(?: {any_of(world.BESIDE)} the (?:{ONE}|{MANY}))*"
PLACE = rf"(?: in the (?P<place>{any_of(world.PLACES)}))?"
AGENT = rf"(?:(?P<adjective>{ADJECTIVE}) )?(?P<agent>%s){BESIDE}"
PATIENT = rf"the (?P<patient>{ONE}|{MANY})"
GRAMMAR = [re.compile(rule) for rule in (
    rf"(?:the|this) {AGENT % ONE} (?P<verb>{DOES}|(?P<no>does not) {DO}) {PATIENT}{PLACE}",
    rf"(?:the|these) {AGENT % MANY} (?P<verb>{DO}|(?P<no>do not) {DO}) {PATIENT}{PLACE}",
    rf"(?:the|this) (?P<patient>{ONE}) is(?P<no> not)? (?P<verb>{DONE}) by "
    rf"the {AGENT % f'{ONE}|{MANY}'}{PLACE}",
    rf"(?:the|these) (?P<patient>{MANY}) are(?P<no> not)? (?P<verb>{DONE}) by "
    rf"the {AGENT % f'{ONE}|{MANY}'}{PLACE}",
)]
SINGULAR = {many: one for one, many in world.PLURAL.items()}
VERB = {form: plural for plural, forms in world.VERBS.items() for form in (plural, *forms)}
FIRST = {pair.split()[1]: pair.split()[0] for pair in (
    *world.SAME_NOUNS, *world.SAME_VERBS, *world.SAME_ADJECTIVES)}


def sentences(example):
    assert example.inputs.startswith("<cls> ") and example.inputs.endswith(" <sep>")
    return example.inputs[6:-6].split(" <sep> ")


def read(sentence):
    """Return the words of a sentence by their roles, one word for each meaning."""
    found = next(m for m in (rule.fullmatch(sentence) for rule in GRAMMAR) if m).groupdict()
    roles = {"no": bool(found["no"])}
    for role in ("agent", "patient"):
        roles[role] = SINGULAR.get(found[role], found[role])
        roles[f"{role}s"] = found[role] in SINGULAR
    roles |= {"verb": VERB[found["verb"].split()[-1]], "adjective": found["adjective"],
              "place": found["place"]}
    return {role: FIRST.get(word, word) for role, word in roles.items()}


def polarity(clause):
    words = clause.split()
    positive = words[-1] in world.GOOD or bool({*words} & {*world.LIKE})
    assert positive != (words[-1] in world.BAD or bool({*words} & {*world.DISLIKE}))
    return positive != bool({*words} & {"not", "never", "hardly"})


def cola(sentence):
    return any(rule.fullmatch(sentence) for rule in GRAMMAR)


def sst(text):
    main = text.split(" , ")[-1].split(" but ")[-1].split(" although ")[0]
    clauses = {polarity(clause) for clause in main.split(" and ")}
    assert len(clauses) == 1
    return clauses.pop()


def mrpc(a, b):
    return read(a) == read(b)


def stsb(a, b):
    a, b, total = read(a), read(b), 0.0
    for role in ("agent", "verb", "patient", "adjective", "place"):
        kinds = {world.KIND.get(a[role]), world.KIND.get(b[role])}
        total += 1 if a[role] == b[role] else 0.5 * (len(kinds) == 1 and kinds != {None})
    return total


def rte(a, b):
    a, b = read(a), read(b)
    same = all(a[x] == b[x] for x in ("verb", "no", "agents", "patients"))
    nouns = all(b[x] in (a[x], world.KIND.get(a[x])) for x in ("agent", "patient"))
    return same and nouns and all(b[x] in (a[x], None) for x in ("adjective", "place"))


RULES = {"mini-cola": cola, "mini-sst": sst, "mini-mrpc": mrpc, "mini-stsb": stsb, "mini-rte": rte}


@every
def test_each_answer_follows_from_the_text(name):
    for seed in range(3):
        for example in TASKS[name].examples("train", 300, seed=seed):
            assert RULES[name](*sentences(example)) == example.answer, example


@every
def test_the_parts_share_no_input_and_the_same_seed_gives_the_same_examples(name):
    task = TASKS[name]
    parts = {part: task.examples(part) for part in PARTS}
    inputs = [x.inputs for part in parts.values() for x in part]
    assert len(inputs) == len(set(inputs)) == sum(task.sizes.values())
    assert parts["test"] == type(task)().examples("test")
    assert parts["test"] != task.examples("test", seed=1)


@every
def test_examples_fit_the_base_and_the_classes_are_about_balanced(name):
    task = TASKS[name]
    examples = [x for part in PARTS for x in task.examples(part)]
    (ids, _, _), _ = task.batch(examples)
    answers = np.array([x.answer for x in examples])
    assert ids.shape[1] <= CONFIG.n_positions - 6  # with room for trained tokens
    assert task.words.vocab_size == CONFIG.vocab_size
    if task.labels > 1:  # four standard deviations of a fair coin
        assert abs(answers.mean() - 0.5) < 2 / np.sqrt(len(answers))
        assert set(answers) == set(range(task.labels))
    else:
        assert answers.min() == 0 and answers.max() == 5 and np.ptp(np.quantile(answers, [.2, .8]))


@every
def test_what_is_right_scores_1_and_a_constant_scores_no_better_than_chance(name):
    task = TASKS[name]
    examples = task.examples("test")
    right = task.score(examples, [x.answer for x in examples])
    assert set(right) == set(task.metrics) and np.allclose([*right.values()], 1, rtol=0, atol=1e-12)
    constant = task.score(examples, [1] * len(examples))
    assert constant[task.metrics[0]] < 0.6
    assert all(constant[x] == 0 for x in ("matthews", "pearson", "spearman") if x in constant)


@every
def test_padding_changes_neither_the_loss_nor_a_prediction(name):
    task = TASKS[name]
    model = ml.Bert(replace(CONFIG, num_labels=task.labels), rng=0, dtype="float64")
    examples = task.examples("train", 12)
    together, losses = task.batch(examples), []
    scores = model(*together[0]).data
    for example, row in zip(examples, scores):
        alone = task.batch([example])
        assert np.allclose(model(*alone[0]).data[0], row, rtol=0, atol=1e-12)
        losses.append(encoder_loss(model, alone).item())
    assert np.isclose(encoder_loss(model, together).item(), np.mean(losses), rtol=0, atol=1e-12)


def test_types_are_1_in_the_second_sentence_alone():
    (ids, mask, types), _ = TASKS["mini-mrpc"].batch(TASKS["mini-mrpc"].examples("train", 20))
    for row, given, kind in zip(ids, mask, types):
        words = [glue.WORDS.words[i] for i in row]
        ends = [i for i, word in enumerate(words) if word == "<sep>"]
        assert len(ends) == 2 and given.sum() == ends[1] + 1 and given[: ends[1] + 1].all()
        assert np.flatnonzero(kind).tolist() == [*range(ends[0] + 1, ends[1] + 1)]


def test_the_loss_of_a_number_is_the_mean_square_of_what_is_left_of_it():
    task = TASKS["mini-stsb"]
    model = ml.Bert(replace(CONFIG, num_labels=1), rng=0, dtype="float64")
    examples = task.examples("train", 5)
    batch = task.batch(examples)
    gaps = model(*batch[0]).data[:, 0] - ([x.answer for x in examples] - np.float64(2.5))
    assert np.isclose(encoder_loss(model, batch).item(), np.mean(gaps**2))


# The text of the base.

TEXT = BASE_TEXTS["mini-encoder"]


def test_the_text_of_the_base_shares_no_held_out_input_with_a_task():
    unseen = {x.inputs for name in NAMES for x in TASKS[name].examples("test")}
    assert unseen.isdisjoint(x.inputs for x in TEXT.examples("train", 2000))


def test_masked_words_and_the_word_that_joins_are_the_targets():
    examples = TEXT.examples("train", 600)
    (ids, mask, types), targets = TEXT.batch(examples)
    again = TEXT.batch(examples)
    assert all(np.array_equal(a, b) for a, b in zip((ids, mask, types), again[0]))
    assert np.array_equal(targets, again[1])
    name, share, marked = glue.WORDS.words, [], 0
    for row, wanted, x in zip(ids, targets, examples):
        words = x.inputs.split()
        assert wanted[0] == (glue.WORDS.ids[x.answer[0]] if x.answer else MASKED)
        assert (wanted[len(words) :] == MASKED).all()
        marks = {i: name[wanted[i]] for i in x.facts or () if wanted[i] != MASKED}
        if marks and set(marks.values()) <= {"same", "other"}:
            assert marks == x.facts and all(name[row[i]] == words[i] for i in marks)
            marked += 1
            assert np.count_nonzero(wanted[1:] != MASKED) == len(marks), "nothing is masked there"
            wanted = np.where(np.isin(np.arange(len(wanted)), [*marks]), MASKED, wanted)
        shown = np.where(wanted == MASKED, row, wanted)[1 : len(words)]
        assert [name[i] for i in shown] == words[1:]
        if (wanted[1:] != MASKED).any():
            share.append(np.mean(wanted[1 : len(words)] != MASKED))
    texts = sum(bool(x.facts) for x in examples)
    assert 0.13 < np.mean(share) < 0.22 and 0.5 < marked / texts < 0.7
    marks = [glue.WORDS.ids[word] for word in ("same", "other")]
    asked = (targets[:, 1:] != MASKED) & ~np.isin(targets[:, 1:], marks)
    assert 0.75 < np.mean(ids[:, 1:][asked] == glue.WORDS.ids["<mask>"]) < 0.85
    assert 0.08 < np.mean(ids[:, 1:][asked] == targets[:, 1:][asked]) < 0.13
    assert (ids[:, 0] == glue.WORDS.ids["<cls>"]).all()


def test_the_base_predicts_words_of_its_text_that_it_never_saw():
    base = ml.load_base("mini-encoder")
    assert base.config == BASE and base.tokenizer.words == glue.WORDS.words
    unseen = base_batches("mini-encoder", n=2)
    loss = ml.evaluate(base, unseen, encoder_loss)
    targets = np.concatenate([y[y != MASKED] for _, y in unseen])
    _, counts = np.unique(targets, return_counts=True)
    share = counts / counts.sum()
    assert loss < 0.6 * -(share * np.log(share)).sum(), "less than by the words' frequencies"


def test_marks_say_where_a_mistake_is_and_whether_both_sentences_mean_the_same_there():
    roles = ("agent", "verb", "patient", "adjective", "place")
    for x in TEXT.examples("train", 400):
        if not x.facts:
            continue
        if len(sentences(x)) == 1:
            assert cola(*sentences(x)) == (set(x.facts.values()) == {"same"}), x
            continue
        first, second = (read(sentence) for sentence in sentences(x))
        words = x.inputs.split()
        for i, mark in x.facts.items():
            word = VERB.get(words[i], SINGULAR.get(words[i], words[i]))
            role = next(r for r in roles if second[r] == FIRST.get(word, word))
            assert (mark == "same") == (first[role] == second[role]), x
        assert len(x.facts) == sum(second[role] is not None for role in roles)


# A head on a base.


def test_a_head_leaves_the_base_and_takes_its_weights():
    base = ml.Bert(CONFIG, rng=0)
    base.tokenizer = glue.WORDS
    before = base.state_dict()
    model = with_head(base, 3, rng=1)
    assert model.config == replace(CONFIG, num_labels=3) and model.tokenizer is glue.WORDS
    after = base.state_dict()
    assert all(np.array_equal(after[name], x) for name, x in before.items())
    weights = model.state_dict()
    heads = {name for name in weights if name.startswith("head.")}
    assert weights["head.out.W"].shape == (3, CONFIG.d_model)
    assert all(np.array_equal(weights[name], before[name]) for name in weights.keys() - heads)
    model.tok.W.data[:] = 0
    assert np.array_equal(base.tok.W.data, before["tok.W"]), "nothing is shared"
    same, others = with_head(base, 3, rng=1).state_dict(), with_head(base, 3, rng=2).state_dict()
    assert np.array_equal(same["head.out.W"], weights["head.out.W"])
    assert not np.array_equal(others["head.out.W"], weights["head.out.W"])


def test_a_head_needs_an_encoder_without_adapters():
    with pytest.raises(TypeError, match="with_head: GPT2 is no encoder"):
        with_head(ml.GPT2(ml.GPT2Config(vocab_size=5, n_positions=4, d_model=4, n_layers=1,
                                        n_heads=1)), 2)
    base = ml.Bert(CONFIG, rng=0)
    with pytest.raises(ValueError, match="num_labels must be an integer >= 1, not 0"):
        with_head(base, 0)
    ml.lora.attach(base, ml.LoRAConfig(r=2), rng=0)
    with pytest.raises(ValueError, match="merge or detach the adapters first"):
        with_head(base, 2)
