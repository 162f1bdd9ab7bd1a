"""Metrics of texts: values from their sources, slow formulas, and what is true of any texts."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data.metrics import bleu, cider, meteor, nist, rouge, texts

pytestmark = pytest.mark.usefixtures("numpy_only")

NEEDS = {"bleu": "sacrebleu", "nist": "nltk", "meteor": "nltk", "rouge": "rouge_score", "cider": ""}
METRICS = {"bleu": bleu, "nist": nist, "meteor": meteor, "rouge": rouge, "cider": cider}
TOP = {"bleu": 100, "nist": math.inf, "meteor": 100, "rouge": 100, "cider": 10}
every_metric = pytest.mark.parametrize("name", METRICS)

some_words = st.lists(st.sampled_from(["a", "b", "c", "dogs", "dog"]), max_size=8).map(" ".join)
right_texts = st.lists(some_words.filter(bool), min_size=1, max_size=3)
corpora = st.lists(st.tuples(some_words, right_texts), min_size=1, max_size=5)
near = pytest.approx


def need(*names):
    for name in names:
        if NEEDS[name]:
            pytest.importorskip(NEEDS[name], reason="needs pip install '.[metrics]'")


def score(name, corpus):
    return METRICS[name]([output for output, _ in corpus], [right for _, right in corpus])


def grams(text, n):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# Values from the sources

GUIDE = (
    "It is a guide to action which ensures that the military always obeys the commands of the party"
)
TROOPS = "It is to insure the troops forever hearing the activity guidebook that party direct"
GUIDES = (  # the three references of the BLEU paper's example; NLTK's documentation has it, too
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the "
    "command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
)


def test_bleu_of_the_papers_example():
    """Its p1 = 17/18 and p2 = 10/17 are printed there; p3 and p4 counted by hand; no penalty."""
    need("bleu")
    wanted = 100 * (17 / 18 * 10 / 17 * 7 / 16 * 4 / 15) ** 0.25
    assert bleu([GUIDE], [GUIDES]) == near(wanted)
    assert wanted == near(50.45666840058485)  # NLTK's documentation


def test_bleu_of_sacrebleus_example():
    need("bleu")
    outputs = ["The dog bit the man .", "It wasn't surprising .", "The man had just bitten him ."]
    references = [
        ["The dog bit the man .", "The dog had bit the man ."],
        ["It was not unexpected .", "No one was surprised ."],
        ["The man bit him first .", "The man had bitten the dog ."],
    ]
    assert bleu(outputs, references) == near(48.530827009929865)


def test_nist_of_nltks_examples():
    need("nist")
    assert nist([GUIDE], [GUIDES]) == near(3.3709, abs=1e-4)
    assert nist([TROOPS], [GUIDES]) == near(1.4619, abs=1e-4)


def test_meteor_of_nltks_example():
    need("meteor")
    assert meteor([GUIDE], [GUIDES]) == near(69.44, abs=5e-3)
    assert meteor(["non matching hypothesis"], [["this is a cat"]]) == 0


@pytest.mark.parametrize("output, l, two", [
    ("police kill the gunman", 3 / 4, 1 / 3),
    ("the gunman kill police", 2 / 4, 1 / 3),
    ("the gunman police killed", 2 / 4, 2 / 3),
])
def test_rouge_of_the_papers_example(output, l, two):
    need("rouge")
    right = [["police killed the gunman"]]
    assert rouge([output], right) == rouge([output], right, "l") == near(100 * l)
    assert rouge([output], right, "2") == near(100 * two)
    common = len({*output.split()} & {*right[0][0].split()})
    assert rouge([output], right, "1") == near(100 * common / 4)


# Formulas, written slowly

def cider_by_vectors(corpus):
    """Dense vectors over all n-grams, as the paper writes them."""
    total = 0.0
    for n in (1, 2, 3, 4):
        index = sorted({g for o, right in corpus for t in (o, *right) for g in grams(t, n)})
        having = [sum(any(g in grams(t, n) for t in right) for _, right in corpus) for g in index]
        idf = np.array([np.log(len(corpus) / max(1, many)) for many in having])
        for output, right in corpus:
            for text in right:
                h, r = (np.array([grams(t, n).count(g) for g in index], float) * idf
                        for t in (output, text))
                delta = len(output.split()) - len(text.split())
                if h.any() and r.any():
                    cosine = np.minimum(h, r) @ r / np.linalg.norm(h) / np.linalg.norm(r)
                    total += np.exp(-delta**2 / 72) * cosine / len(right)
    return 10 * total / 4 / len(corpus)


@given(corpora)
def test_cider_equals_the_formula_on_vectors(corpus):
    assert score("cider", corpus) == near(cider_by_vectors(corpus), abs=1e-9)


def test_cider_of_a_longer_output_is_clipped_and_penalized():
    """A word of weight log 2, in the output twice: min(2, 1) · 1 / (2 · 1), lengths differ by 1."""
    got = cider(["x x", "y"], [["x"], ["z"]])
    assert got == near(10 * math.exp(-1 / 72) * 0.5 / 4 / 2)


@pytest.mark.oracle
@given(corpora)
def test_cider_equals_its_authors_code(corpus):
    oracle = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    scorer = oracle.CiderScorer(n=4, sigma=6.0)
    for output, right in corpus:
        scorer += (output, right)
    assert score("cider", corpus) == near(float(scorer.compute_score()[0]), abs=1e-9)


def nist_by_hand(corpus):
    """Doddington's Equation 3, for one reference each."""
    count = Counter(g for _, (r,) in corpus for n in range(1, 6) for g in grams(r, n))
    count[()] = sum(len(r.split()) for _, (r,) in corpus)
    total = 0.0
    for n in range(1, 6):
        common = [Counter(grams(o, n)) & Counter(grams(r, n)) for o, (r,) in corpus]
        matched = [g for each in common for g in each.elements()]
        every = sum(len(grams(o, n)) for o, _ in corpus)
        total += sum(math.log2(count[g[:-1]] / count[g]) for g in matched) / max(1, every)
    ratio = min(1, sum(len(o.split()) for o, _ in corpus) / count[()])
    return total * 0.5 ** (math.log(ratio) / math.log(2 / 3)) ** 2 if ratio else 0.0


@given(corpora)
def test_nist_equals_the_formula(corpus):
    need("nist")
    corpus = [(output, right[:1]) for output, right in corpus]
    assert score("nist", corpus) == near(nist_by_hand(corpus), abs=1e-9)


# What is true of any texts

@every_metric
@given(corpus=corpora, data=st.data())
def test_no_order_matters_and_scores_stay_on_the_scale(name, corpus, data):
    need(name)
    value = score(name, corpus)
    assert type(value) is float and 0 <= value <= TOP[name] * (1 + 1e-12)
    mixed = [(output, data.draw(st.permutations(right))) for output, right in corpus]
    assert score(name, data.draw(st.permutations(mixed))) == near(value, abs=1e-9)


@every_metric
@given(corpus=corpora)
def test_spaces_do_not_matter_nor_the_kind_of_list(name, corpus):
    need(name)
    wide = tuple((f"  {output.replace(' ', '   ')}\n", tuple(right)) for output, right in corpus)
    assert score(name, wide) == score(name, corpus)


@every_metric
@given(corpus=corpora)
def test_a_word_is_what_stands_between_spaces(name, corpus):
    """Other words in their places, with signs and capitals, score the same; METEOR reads stems."""
    need(name)
    if name == "meteor":
        return
    other = {"a": "£20-25", "b": "don't", "c": ".", "dog": "Fitzbillies,(The)", "dogs": "FITZ"}

    def said(text):
        return " ".join(other[word] for word in text.split())

    renamed = [(said(output), [*map(said, right)]) for output, right in corpus]
    assert score(name, renamed) == near(score(name, corpus), abs=1e-9)


@every_metric
@given(corpus=corpora)
def test_outputs_without_words_score_0(name, corpus):
    need(name)
    assert score(name, [(" ", right) for _, right in corpus]) == 0


@every_metric
@given(outputs=st.lists(st.text("aB .,'-%$\n\t\0\u00a0\u2028éİß日", max_size=12), min_size=1))
def test_any_text_is_scored(name, outputs):
    need(name)
    assert score(name, [(output, ["a b c d", output + " x"]) for output in outputs]) >= 0


@given(corpora)
def test_perfect_outputs_have_the_top_score(corpus):
    need("bleu", "meteor", "rouge")
    perfect = [(right[-1], right) for _, right in corpus]
    lengths = [len(output.split()) for output, _ in perfect]
    assert score("rouge", perfect) == near(100)
    assert score("bleu", perfect) == near(100 if max(lengths) >= 4 else 0)
    # METEOR: of the references that the output equals once stemmed, all are as long
    alone = [(output, [output]) for output, _ in perfect]
    top = 100 * sum(1 - 0.5 / m**3 for m in lengths) / len(lengths)
    assert score("meteor", alone) == near(top)
    assert score("meteor", [(o, r) for (o, _), (_, r) in zip(corpus, alone)]) <= top + 1e-9


@given(st.integers(2, 5), st.integers(4, 7), st.integers(0, 2))
def test_cider_of_perfect_outputs_is_10(n, length, common):
    """Each has a word of its own, so an n-gram of weight above 0 for each n."""
    right = [" ".join(["the"] * common + [f"w{i}_{j}" for j in range(length)]) for i in range(n)]
    assert cider(right, [[text] for text in right]) == near(10)
    assert cider(right[::-1], [[text] for text in right]) < 10
    assert cider(right[:1], [right[:1]]) == 0  # nothing is rare among one


@given(corpora, some_words.filter(bool))
def test_one_more_reference_lowers_no_best(corpus, text):
    need("meteor", "rouge")
    more = [(output, [*right, text]) for output, right in corpus]
    for name in ("meteor", "rouge"):
        assert score(name, more) >= score(name, corpus) - 1e-9


@given(corpora)
def test_a_reference_given_twice_is_one_reference(corpus):
    """For BLEU, which has as many streams of references as the longest list."""
    need("bleu")
    more = [(output, [*right, *right[:1]]) for output, right in corpus[:1]] + corpus[1:]
    assert score("bleu", more) == score("bleu", corpus)


@given(some_words.filter(bool), st.data())
def test_a_word_less_costs_rouge_its_share(text, data):
    need("rouge")
    words = text.split()
    m, at = len(words), data.draw(st.integers(0, len(words) - 1))
    less = " ".join(words[:at] + words[at + 1 :])
    for kind in ("1", "l"):
        assert rouge([less], [[text]], kind) == near(100 * 2 * (m - 1) / (2 * m - 1))


def test_meteor_reads_stems_and_letters_but_no_synonyms(monkeypatch):
    """And loads no WordNet, which would ask for a download."""
    need("meteor")
    import nltk

    def refuse(*_, **__):
        raise AssertionError("METEOR wants a corpus")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.data, "find", refuse)
    assert meteor(["The dog sleeps"], [["the dogs sleep"]]) == near(100 * (1 - 0.5 / 27))
    assert meteor(["big"], [["large"]]) == 0
    assert bleu(["The dog sleeps"], [["the dogs sleep"]]) == 0


# Mistakes

@every_metric
@pytest.mark.parametrize("outputs, references, words", [
    (["a", "b"], [["a"]], "there are 2 outputs, but references for 1"),
    ([], [], "there are no outputs"),
    (["a"], [[]], r"references\[0\] is empty"),
    (["a", "a"], [["a"], ["b", " "]], r"references\[1\]\[1\] has no words"),
    (["a"], ["a"], r"references\[0\] must be a list of texts, not the str 'a'"),
    (["a"], [None], r"references\[0\] must be a list of texts"),
    ("a", [["a"]], "outputs must be a list, not the str 'a'"),
    (["a"], "a", "references must be a list"),
    (["a", None], [["a"]] * 2, r"outputs\[1\] must be a text \(str\), not None"),
    (["a"], [["a", 3]], r"references\[0\]\[1\] must be a text \(str\), not 3"),
    ([["a"]], [["a"]], r"outputs\[0\] must be a text"),
])
def test_bad_texts_are_refused(name, outputs, references, words):
    with pytest.raises((TypeError, ValueError), match=f"{name}: {words}"):
        METRICS[name](outputs, references)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="rouge: kind must be one of 1, 2, l, not '3'"):
        rouge(["a"], [["a"]], "3")


@pytest.mark.parametrize("name, module", [
    ("bleu", "sacrebleu"), ("nist", "nltk.translate.nist_score"),
    ("meteor", "nltk.translate.meteor_score"), ("rouge", "rouge_score.rouge_scorer"),
])
def test_a_missing_library_names_the_remedy(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"need {NEEDS[name]}: pip install '.\[metrics\]' in"):
        METRICS[name](["a"], [["a"]])


def test_the_words_are_read_once_for_all():
    assert texts._words("bleu", [" a  b "], [("c",)]) == ([["a", "b"]], [[["c"]]])
