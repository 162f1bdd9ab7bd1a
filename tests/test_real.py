"""The experiment on a real encoder: its jobs, rules and planted mistakes, on made-up runs; and its
runs, on a small random encoder in the place of the real one."""

import re

import numpy as np
import pytest

import minilora as ml
from minilora.data.labelled import Labelled
from minilora.experiments import Scale, facts, reporting, reproduce, running, shipped
from minilora.experiments.experiment import experiment
from minilora.experiments.real import films, real
from minilora.experiments.results import Results
from minilora.files.journal import Journal

pytestmark = pytest.mark.usefixtures("numpy_only")
FULL, FAST = Scale(), Scale(2, True)
SPREAD = (-0.002, 0.0, 0.002)
SCORES = {"full": 0.80, "bitfit": 0.79, "adapter-h": 0.80, "lora": 0.80}


def made_up(**changed):
    """Results in which each method scores as SCORES say, best at the middle one of its rates."""
    scores = {**SCORES, "probe": 0.75, "r = 1": 0.80, **changed}
    results = Results(Journal(None), FULL)
    while jobs := [job for job in real.jobs(results) if job.key not in results.journal]:
        for job in jobs:
            c = job.config
            if job.kind == "real probe":
                found = {"test": {"accuracy": scores["probe"]}, "ridge": 1.0, "trained": 385}
            elif job.kind == "real speed":
                rows = {name: 100.0 if name.startswith("full") else 60.0 for name in c["by_name"]}
                found = {"times": {name: [ms] * 3 for name, ms in rows.items()},
                         "peak": {name: int(1e6 * ms) for name, ms in rows.items()},
                         "tokens": 70, "by length": 80, "random": 140}
                found["times"]["random order"] = [90.0] * 3
            else:
                one = c["settings"].get("r") == 1
                row = next(row for row in real.MAIN if row.method == c["method"])
                far = abs(row.rates.index(c["rate"]) - 1) / 20
                score = scores["r = 1" if one else c["method"]] + SPREAD[c["seed"]] - far
                found = {"validation": {"accuracy": score}, "test": {"accuracy": score},
                         "loss": {"validation": 1 - score}, "bytes": 10_000,
                         "trained": 22_565_376 if c["method"] == "full" else 73_728}
            results.journal.add(job.key, {"kind": job.kind, "config": c, "seconds": 1.0,
                                          "version": "0", "result": found})
    return results


def words(results):
    return [verdict.word for verdict in real.EXPERIMENT.verdicts(results)]


def test_each_method_gets_its_own_rate_and_the_other_loras_get_loras():
    results = made_up()
    for row in real.MAIN:
        assert real.rate(results, row) == row.rates[1]
    for row in real.OTHERS:
        assert real.rate(results, row) == real.LORA.rates[1]
        assert len(real.repeats(results, row)) == (1 if row.few else 3)
    jobs = running.needed(real.EXPERIMENT, results)
    assert len({job.key for job in jobs}) == len(jobs) == 4 * (3 + 2) + 3 + 3 * 1 + 2
    assert shipped.complete(real.EXPERIMENT, results)


@pytest.mark.parametrize(("changed", "expected"), [
    ({}, ["reproduces"] * 4),
    ({"bitfit": 0.70}, ["does not reproduce", "reproduces", "reproduces", "reproduces"]),
    ({"bitfit": 0.751}, ["undecided", "reproduces", "reproduces", "reproduces"]),
    ({"lora": 0.77}, ["reproduces", "does not reproduce", "reproduces", "reproduces"]),
    ({"lora": 0.781}, ["reproduces", "undecided", "reproduces", "reproduces"]),
    ({"r = 1": 0.76}, ["reproduces", "reproduces", "does not reproduce", "reproduces"]),
])
def test_a_verdict_follows_from_the_scores(changed, expected):
    assert words(made_up(**changed)) == expected


def test_a_planted_mistake_turns_each_verdict():
    results = made_up()
    for claim in real.EXPERIMENT.claims:
        after = claim.rule(facts.mistaken(real.EXPERIMENT, claim.mistake, results)).word
        assert after == "does not reproduce", claim.says


def test_the_page_has_all_numbers(tmp_path):
    reproduce("real", tmp_path, journal=made_up().journal)
    page = (tmp_path / "real.md").read_text("utf-8")
    for part in ("| linear probe, ridge 1 | 385 | 0.750 |", "| LoRA r = 8, q v | 73,728 | 0.800 ±",
                 "| LoRA r = 8, q k v o up down |", films.INSTALL, "12% are padding", "50% in ran",
                 "| BitFit | 0.001 | 0.738 | 0.262 |", "| full fine-tuning | by length | 160 |"):
        assert part in page, part
    assert "synthetic" not in page and facts.REAL in (tmp_path / "README.md").read_text("utf-8")


# What the user installs.


@pytest.fixture
def nothing(monkeypatch):
    monkeypatch.setattr(films.importlib.util, "find_spec", lambda name: None)


def test_without_the_packages_the_command_that_installs_them_is_told(nothing, tmp_path):
    with pytest.raises(ImportError, match=re.escape(films.INSTALL)):
        reproduce("real", tmp_path)
    assert running.left_out([experiment("rank")], Results(Journal(None), FULL)) == {}
    left = running.left_out([experiment("real")], Results(Journal(None), FULL))
    assert films.INSTALL in str(left["real"])
    assert running.left_out([experiment("real")], made_up()) == {}  # it has all runs


def test_all_leaves_it_out_with_a_word(nothing, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "NAMES", {"real": "real"})
    with pytest.warns(UserWarning, match="real is left out: .*pip install --no-deps"):
        report = reproduce("all", tmp_path)
    assert report["experiments"] == []


# Its runs, on a small encoder.


class Letters:
    def encode(self, text):
        return [1 + ord(letter) - ord("a") for letter in text]


@pytest.fixture
def small(monkeypatch):
    config = ml.BertConfig(vocab_size=30, n_positions=64, d_model=16, n_layers=1, n_heads=2,
                           dropout=0.0)
    model = ml.Bert(config, rng=0)
    model.tokenizer = Letters()
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"cdefgh"], 5 + i % 20)) + "ab"[i % 2] for i in range(4100)]
    whole = Labelled(tuple(texts), np.arange(len(texts)) % 2, ("0", "1"))
    monkeypatch.setattr(films, "encoder", lambda: model)
    monkeypatch.setattr(films, "sentences", lambda: whole)
    films.part.cache_clear()
    yield model
    films.part.cache_clear()


SIZES = {"examples": 100, "validation": 40, "test": 40}


@pytest.mark.parametrize("row", [real.FULL, real.BITFIT, real.ADAPTER, real.LORA])
def test_a_run_trains_a_copy_and_is_the_same_each_time(row, small):
    before = {name: p.data.copy() for name, p in small.named_parameters()}
    run = {"method": row.method, "settings": dict(row.settings), "rate": 1e-3, "seed": 0, **SIZES}
    found = films.train(**run)
    assert found == films.train(**run) != films.train(**run | {"seed": 1})
    assert all(np.array_equal(before[name], p.data) for name, p in small.named_parameters())
    head = 16 * 16 + 16 + 2 * 16 + 2
    assert found["trained"] > 0 and found["bytes"] > 4 * (found["trained"] + head)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_says_so(small):
    run = {"method": "full", "settings": {}, "rate": 1e30, "seed": 0, **SIZES}
    assert films.train(**run) == {"diverged": True}


def test_the_probe_finds_what_is_linear_in_the_frozen_vectors(small):
    found = films.probe(400, 100, 200)
    assert found["test"]["accuracy"] > 0.8 and found["trained"] == 17


def test_the_fit_of_the_probe_is_where_the_gradient_is_0():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.integers(0, 2, 50)
    w = films.logistic(x, y, 0.1)
    assert np.allclose(x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 50 + 0.1 * w, 0, atol=1e-12)


def test_the_mean_of_a_sentence_does_not_see_its_padding(small):
    rows = [np.array([1, 2, 3]), np.array([4] * 20)]
    one, two = films.means(rows)
    assert np.allclose(one, films.means(rows[:1])[0], atol=1e-6) and not np.allclose(one, two)


def test_times_and_padding_are_measured(small):
    by_name = {row.label: (row.method, dict(row.settings)) for row in (real.FULL, real.LORA)}
    found = films.speed(by_name, 40, 1)
    assert {*found["times"]} == {*by_name, "random order"}
    assert found["tokens"] < found["by length"] < found["random"]
    assert found["peak"][real.LORA.label] < found["peak"][real.FULL.label]


def test_no_sentence_is_in_two_parts(small):
    assert len({*films.sentences().texts}) > 4000
    seen = [tuple(row) for name in ("train", "validation", "test")
            for row in films.part(name, 100)[0]]
    where = {id(row): row for row in seen}
    assert len(where) == 300
