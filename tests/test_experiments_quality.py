"""The rules of the paper's quality tables, on made-up results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_up import MadeUp

from minilora import methods
from minilora.experiments.cells import Cell, Scale, cell, chance
from minilora.experiments.experiment import FAILS, REPRODUCES, UNDECIDED, Experiment
from minilora.experiments.paper import glue, gpt3, lowdata, matrices, nlg, params
from minilora.experiments.quality import best_of, digits, fewer, margin, quality_table, unlearned
from minilora.experiments.results import Results
from minilora.models import GPT2Config

pytestmark = pytest.mark.usefixtures("numpy_only")
Score = Callable[[Cell], float]
ALL = {x.EXPERIMENT.name: x.EXPERIMENT for x in (glue, nlg, gpt3, params, matrices, lowdata)}
NOISE = 1e-3  # so the floors are about 0.002: effects of 0.05 are above, of 0.0005 below


def by_method(default: float = 0.7, base: float = 0.2, **scores: float) -> Score:
    """Return scores by method, such as lora=0.9, adapter_h=0.8."""
    def score(one: Cell) -> float:
        if one.method in ("base", "probe"):
            return base
        return scores.get(one.method.replace("-", "_"), default)

    return score


def by_size(**curves: tuple[float, float, float]) -> Score:
    """Return scores by method and its size: the smallest, the middle one, the largest."""
    def score(one: Cell) -> float:
        own = dict(one.settings)
        if one.method not in curves:
            return 0.2 if one.untrained else 0.5
        sizes = params.LENGTHS if "lp" in own else params.RANKS
        return curves[one.method][sizes.index(own.get("lp") or own["r"])]

    return score


def by_choice(default: float = 0.5, **scores: float) -> Score:
    return lambda one: scores.get("".join(dict(one.settings)["targets"]), default)


def by_examples(**scores: tuple[float, float]) -> Score:
    """Return scores by method: with the fewest examples, and with all."""
    def score(one: Cell) -> float:
        few, every = scores[one.method]
        return {lowdata.FEW: few, lowdata.ALL: every}.get(one.examples, every)

    return score


UP, FLAT, DROP = (0.4, 0.5, 0.6), (0.5, 0.5003, 0.5), (0.4, 0.6, 0.5)
CASES: list[tuple[str, int, Score, Score, Score]] = [  # holds, fails, below the floor
    ("glue", 0, by_method(lora=0.71), by_method(lora=0.6), by_method(lora=0.6799)),
    ("glue", 1, by_method(lora=0.8), by_method(lora=0.6), by_method(lora=0.7005)),
    ("nlg", 0, by_method(lora=0.8), by_method(lora=0.6), by_method(lora=0.7005)),
    ("nlg", 1, by_method(lora=0.71), by_method(lora=0.6), by_method(lora=0.6799)),
    ("gpt3", 0, by_method(lora=0.71), by_method(lora=0.6), by_method(lora=0.6799)),
    ("gpt3", 1, by_method(lora=0.8), by_method(lora=0.6), by_method(lora=0.7005)),
    ("params", 0, by_size(lora=UP), by_size(lora=DROP), by_size(lora=FLAT)),
    ("params", 1, by_size(preembed=DROP, prelayer=DROP), by_size(preembed=UP, prelayer=DROP),
     by_size(preembed=FLAT, prelayer=DROP)),
    ("matrices", 0, by_choice(qv=0.7), by_choice(qv=0.5, q=0.6), by_choice(qv=0.5005)),
    ("matrices", 1, by_choice(qkvo=0.7, qv=0.6), by_choice(qkvo=0.7, o=0.8),
     by_choice(qkvo=0.6005, qv=0.6)),
    ("matrices", 2, by_choice(qk=0.7), by_choice(qv=0.7), by_choice(qk=0.5005)),
    ("lowdata", 0, by_examples(full=(0.5, 0.9), lora=(0.6, 0.9), preembed=(0.4, 0.9),
                               prelayer=(0.5, 0.9)),
     by_examples(full=(0.5, 0.9), lora=(0.4, 0.9), preembed=(0.3, 0.9), prelayer=(0.5, 0.9)),
     by_examples(full=(0.5, 0.9), lora=(0.5, 0.9), preembed=(0.4, 0.9), prelayer=(0.5, 0.9))),
    ("lowdata", 1, by_examples(full=(0.5, 0.9), lora=(0.5, 0.9), preembed=(0.4, 0.9),
                               prelayer=(0.5, 0.9)),
     by_examples(full=(0.6, 0.9), lora=(0.5, 0.9), preembed=(0.4, 0.9), prelayer=(0.5, 0.9)),
     by_examples(full=(0.52, 0.9), lora=(0.5, 0.9), preembed=(0.4, 0.9), prelayer=(0.5, 0.9))),
    ("lowdata", 2, by_examples(full=(0.5, 0.9), lora=(0.6, 0.9), preembed=(0.4, 0.9),
                               prelayer=(0.5, 0.9)),
     by_examples(full=(0.5, 0.9), lora=(0.5, 0.9), preembed=(0.5, 0.8), prelayer=(0.5, 0.7)),
     by_examples(full=(0.5, 0.9), lora=(0.5, 0.9), preembed=(0.5, 0.9), prelayer=(0.5, 0.9))),
]
IDS = [f"{name}-{i}" for name, i, *_ in CASES]


def word(one: Experiment, i: int, results: Results) -> str:
    return one.claims[i].rule(results).word


def made_up(score: Score) -> MadeUp:
    return MadeUp(score, NOISE, blind=0.1)


def frozen(score: Score) -> Score:
    """Return the scores with B frozen: LoRA is the base, or its head alone."""
    def other(one: Cell) -> Cell:
        return cell(one.task, "base") if one.lora else one

    return lambda one: 0.2 if one.lora else score(other(one))


@pytest.mark.parametrize(("name", "i", "holds", "fails", "near"), CASES, ids=IDS)
def test_a_claim_can_come_out_in_three_ways_and_its_mistake_turns_it(
    name: str, i: int, holds: Score, fails: Score, near: Score
) -> None:
    one, claim = ALL[name], ALL[name].claims[i]
    assert word(one, i, made_up(holds)) == REPRODUCES
    assert word(one, i, made_up(fails)) == FAILS
    assert word(one, i, made_up(near)) == UNDECIDED
    if claim.mistake in one.blunders:
        plant = one.blunders[claim.mistake]
        for score, right in ((holds, REPRODUCES), (fails, FAILS)):
            assert word(one, i, plant(made_up(score))) != right
    else:
        assert word(one, i, made_up(frozen(holds))) != REPRODUCES


def test_every_claim_has_a_case_a_rule_in_words_and_a_mistake() -> None:
    assert {(name, i) for name, i, *_ in CASES} == {
        (name, i) for name, one in ALL.items() for i in range(len(one.claims))}
    for one in ALL.values():
        for claim in one.claims:
            assert claim.rule_in_words.endswith(".") and claim.mistake and claim.printed


@pytest.mark.parametrize("name", ALL)
def test_tables_have_a_column_for_each_head_and_name_no_cell_twice(name: str) -> None:
    one = ALL[name]
    assert len(set(one.cells)) == len(one.cells)
    for table in one.tables(MadeUp(lambda x: 0.5)):
        assert all(len(row) == len(table.head) for row in table.rows)
        labels = [row[0] for row in table.rows]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", ["glue", "params", "lowdata"])
def test_figures_draw_the_scores(name: str) -> None:
    pytest.importorskip("matplotlib")
    counts = {x: 10 + i for i, x in enumerate(ALL[name].cells)}
    results = MadeUp(lambda x: 0.5, trained=lambda x: counts.get(x, 1))
    for figure in ALL[name].figures(results):
        ax = figure.draw()
        heights = [y for line in ax.lines for y in line.get_ydata()]
        assert 0.5 in heights and figure.alt


@pytest.mark.parametrize("name", ["glue", "nlg", "gpt3", "lowdata"])
def test_what_is_not_learned_is_not_equal(name: str) -> None:
    """A run in which nothing learns, so that all score the same, gives no verdict of equality."""
    i = {"glue": 0, "nlg": 1, "gpt3": 0, "lowdata": 1}[name]
    results = MadeUp(lambda x: 0.3, NOISE, blind=0.3)
    assert word(ALL[name], i, results) == UNDECIDED


def test_far_fewer_parameters_are_part_of_the_claim() -> None:
    many = MadeUp(by_method(lora=0.71), NOISE, trained=lambda x: 2048, blind=0.1)
    assert word(ALL["glue"], 0, many) == FAILS
    larger_lora = MadeUp(by_method(lora=0.8), NOISE, blind=0.1,
                         trained=lambda x: 2049 if x.lora else 2048)
    assert word(ALL["nlg"], 0, larger_lora) == FAILS


def test_the_sizes_compared_are_as_the_claims_say() -> None:
    """LoRA trains no more than its rivals in `nlg`, and the choices of `matrices` train equally."""
    config: Any = GPT2Config(vocab_size=50, n_positions=64, d_model=64, n_layers=2, n_heads=4)

    def count(one: Cell) -> int:
        return int(methods.METHODS[one.method](**dict(one.settings)).count(config))

    results = MadeUp(by_method(lora=0.8), NOISE, trained=count, blind=0.1)
    assert fewer(results, nlg.LORA, nlg.RIVALS).word == REPRODUCES
    assert {count(x) for x in matrices.CHOICES.values()} == {2048}
    for curve in params.CURVES.values():
        sizes = [count(x) for x in curve]
        assert sizes == sorted(set(sizes))


def test_cells_are_shared_between_the_experiments() -> None:
    own = {name: set(one.cells) for name, one in ALL.items()}
    assert len(own["gpt3"] - own["params"]) == len(gpt3.METHODS)  # those of mini-samsum
    assert cell("mini-mnli", "lora", r=4, targets=("q", "v")) in (
        own["params"] & own["matrices"] & own["gpt3"] & own["lowdata"])


def test_k_and_v_exchanged_reads_each_choice_from_the_other() -> None:
    scores = {"q": 0.1, "k": 0.2, "v": 0.3, "o": 0.4, "qk": 0.5, "qv": 0.6, "qkvo": 0.7}
    right = MadeUp(by_choice(**scores))
    wrong = matrices.exchanged(right)
    other = {"k": "v", "v": "k", "qk": "qv", "qv": "qk"}
    for letters, choice in matrices.CHOICES.items():
        got = wrong.scores(choice.on("mini-sql")).mean()
        assert got == pytest.approx(scores[other.get(letters, letters)])


def test_helpers_of_quality_tables() -> None:
    results = MadeUp(by_method(lora=0.8, base=0.1), blind=0.3)
    assert unlearned(results, "mini-sql") == pytest.approx(0.3)
    assert unlearned(MadeUp(by_method(base=0.4)), "mini-samsum") == pytest.approx(40)
    assert best_of(results, nlg.CELLS) == nlg.LORA
    assert (margin("mini-sql"), margin("mini-e2e")) == (0.02, 2.0)
    assert [digits(x) for x in ("accuracy", "nist", "bleu")] == [3, 2, 1]
    table = quality_table(results, "t", [cell("", "full"), cell("", "lora", r=4)],
                          [("mini-sql", "accuracy"), ("mini-samsum", "rouge_1")],
                          chance=True)
    assert table.rows[0][:2] == ["full fine-tuning", "100,000"]
    assert table.rows[1][2:4] == ["0.800 ± 0.001", "80.0 ± 0.1"]
    assert table.rows[-1] == ["chance", "", "0.300", "30.0"]
    mean = quality_table(results, "t", [cell("", "lora", r=4)], glue.COLUMNS, mean=True,
                         chance=True)
    assert [row[-1] for row in mean.rows] == ["0.800 ± 0.001", "0.300"]


def test_the_chance_job_scores_the_examples_that_the_runs_score() -> None:
    for scale in (Scale(), Scale(fast=True)):
        job = chance("mini-sql", scale)
        run = cell("mini-sql", "full").run(1e-3, 0, scale)
        assert job.config == {"task": "mini-sql", "test": run.config["test"]}
