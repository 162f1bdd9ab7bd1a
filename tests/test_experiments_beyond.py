"""Experiments on what is known since the paper: rules on made-up runs, and the law of alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import methods
from minilora.experiments.beyond import alpha, asymmetry, forgetting, lr_ratio, variants, where
from minilora.experiments.cells import START, Cell, Scale, cell
from minilora.experiments.experiment import FAILS, REPRODUCES, UNDECIDED, Experiment
from minilora.experiments.results import Results
from minilora.experiments.scaling import compare
from minilora.experiments.statistics import Interval
from minilora.files.journal import Journal
from minilora.jobs.driver import Job
from minilora.models.gpt2 import GPT2, GPT2Config

pytestmark = pytest.mark.usefixtures("numpy_only")
MODULES = (alpha, variants, lr_ratio, where, asymmetry, forgetting)
ALL: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
NOISE = (-1e-3, 0.0, 1e-3)  # of three seeds: the floors are about 0.002
OWN = 3e-3 * 1.01  # the chosen rate, which is none of the shared ones
Made = Callable[[Mapping[str, Any]], Any]


class MadeUp(Results):
    """made: the config of a run -> its score, or (its loss, its loss on the base's text)."""

    def __init__(self, made: Made, scale: Scale | None = None) -> None:
        super().__init__(Journal(None), scale or Scale())
        self.made = made

    def job(self, job: Job) -> Any:
        config, found = job.config, self.made(job.config)
        if job.kind == "scaling":
            return self._change(job, found)
        noise = 0.0 if config["method"] == "base" else NOISE[config["seed"]]
        if isinstance(found, tuple):
            score, (loss, base) = 0.5, (x * math.exp(noise) for x in found)
        else:
            score, loss, base = found + noise, 1.0, 1.0
        names = ("bleu", "accuracy", "exact")
        result = {"test": dict.fromkeys(names, score), "validation": dict.fromkeys(names, score),
                "loss": {"validation": loss}, "base_loss": base, "trained": 2048}
        return self._change(job, result)

    def rate(self, cell: Cell) -> float:
        return OWN


def compared(**equal: bool) -> Made:
    """Return runs of the law: condition -> whether all bits agree; those not named differ."""
    def made(config: Mapping[str, Any]) -> Any:
        own = {name: all(config.get(k) == v for k, v in settings.items())
               and len(config) == 7 + len(settings)
               for name, settings in alpha.CONDITIONS.items()}
        name = next(name for name, same in own.items() if same).replace(" ", "_")
        same = equal.get(name, False)
        return [{"scale": s, "equal": alpha.STEPS if same else 1, "at": [10, 100],
                 "distance": [0.0, 0.0 if same else 0.1]} for s in config["scales"]]

    return made


MENDED = alpha.ADJUSTED.replace(" ", "_")


def by_method(tuned: Mapping[str, float], shared: Mapping[float, Mapping[str, float]] = {}) -> Made:
    """Return scores at a method's own rate, and at the shared ones; 0.9 if it is not named."""
    def made(config: Mapping[str, Any]) -> float:
        if config["method"] == "base":
            return 0.2
        at = shared.get(config["rate"], {}) if config["rate"] in START else tuned
        return at.get(config["method"], 0.9)

    return made


CROSSING = {START[0]: {"lora": 0.95, "dora": 0.6}, START[1]: {"dora": 0.5},
            START[2]: {"lora": 0.6, "dora": 0.95}}
ALWAYS = {rate: {"lora": 0.99} for rate in START}


def by_factor(both: float, B: float, A: float, more: float) -> Made:
    def made(config: Mapping[str, Any]) -> float:
        if config["method"] == "base":
            return 0.2
        of = {"": both, "A alone": A, "B alone": B}[config["variation"]]
        return more if config["settings"]["r"] == 2 * asymmetry.R else of

    return made


def by_place(attention: float, mlp: float, every: float, base: float = 5.0) -> Made:
    """Return losses by what is adapted."""
    def made(config: Mapping[str, Any]) -> tuple[float, float]:
        targets = config["settings"].get("targets", ())
        return {0: base, 2: mlp, 4: attention, 6: every}[len(targets)], 1.0

    return made


FULL = {OWN: (0.01, 5.0), 3e-3: (0.02, 4.0), 1e-3: (0.05, 3.0), 3e-4: (0.3, 1.5), 1e-4: (1.5, 0.8)}


def points(loss: float, lost: float, base: float = 4.0) -> Made:
    """Return LoRA's two losses beside those of full fine-tuning at several rates."""
    def made(config: Mapping[str, Any]) -> tuple[float, float]:
        if config["method"] == "full":
            return FULL[config["rate"]]
        return {"base": (base, 0.2), "lora": (loss, lost)}.get(config["method"], (0.5, 2.0))

    return made


def parabolas(full: float, *ranks: float) -> Made:
    """Return losses with the lowest at these rates, of full fine-tuning and of the three ranks."""
    def made(config: Mapping[str, Any]) -> tuple[float, float]:
        r = config["settings"].get("r")
        best = full if r is None else ranks[lr_ratio.RANKS.index(r)]
        return math.exp(0.1 * math.log2(config["rate"] / best) ** 2 - 3), 1.0

    return made


CASES: list[tuple[str, int, Made, Made, Made | None]] = [  # holds, fails, below the floor
    ("alpha", 0, compared(the_law=True), compared(), None),
    ("alpha", 1, compared(the_law=True), compared(eps=True), None),
    ("alpha", 2, compared(**{MENDED: True}), compared(the_law=True), None),
    ("variants", 0, by_method({}), by_method({"dora": 0.5}), by_method({"dora": 0.882})),
    ("variants", 1, by_method({}, CROSSING), by_method({"dora": 0.5}), by_method({})),
    ("variants", 2, by_method({}, CROSSING), by_method({}, ALWAYS), by_method({})),
    ("lr-ratio", 0, parabolas(1e-3, 1e-2, 9e-3, 1.1e-2), parabolas(1e-3, 1e-2, 1e-2, 1e-3),
     parabolas(1e-3, 1e-2, 1e-2, 5e-3)),
    ("lr-ratio", 1, parabolas(1e-3, 1e-2, 9e-3, 1.1e-2), parabolas(1e-3, 1e-2, 1e-2, 4e-2),
     parabolas(1e-3, 1e-2, 1.4e-2, 2e-2)),
    ("where", 0, by_place(0.3, 0.2, 0.2), by_place(0.2, 0.3, 0.2), by_place(0.2, 0.2, 0.2)),
    ("where", 1, by_place(0.3, 0.2, 0.2), by_place(0.2, 0.3, 0.3), by_place(0.2, 0.2, 0.2)),
    ("where", 2, by_place(0.3, 0.2, 0.2), by_place(0.2, 0.3, 0.2),
     by_place(0.3, 0.2 * math.exp(0.05), 0.2)),
    ("asymmetry", 0, by_factor(0.9, 0.88, 0.5, 0.9), by_factor(0.9, 0.5, 0.88, 0.9),
     by_factor(0.9, 0.8, 0.8, 0.8)),
    ("asymmetry", 1, by_factor(0.9, 0.88, 0.5, 0.9), by_factor(0.9, 0.5, 0.5, 0.9),
     by_factor(0.9, 0.855, 0.5, 0.9)),
    ("asymmetry", 2, by_factor(0.9, 0.5, 0.5, 0.92), by_factor(0.9, 0.9, 0.5, 0.7),
     by_factor(0.9, 0.9, 0.5, 0.855)),
    ("forgetting", 0, points(0.3, 1.0), points(0.005, 1.0), points(0.01, 1.0)),
    ("forgetting", 1, points(0.3, 1.0), points(0.3, 9.0), points(0.3, 5.0)),
    ("forgetting", 2, points(0.3, 1.0), points(0.3, 3.0), points(0.3, 1.5)),
]


def word(name: str, i: int, results: Results) -> str:
    return ALL[name].claims[i].rule(results).word


@pytest.mark.parametrize(("name", "i", "holds", "fails", "near"), CASES,
                         ids=[f"{name}-{i}" for name, i, *_ in CASES])
def test_a_claim_can_come_out_in_three_ways_and_its_mistake_turns_it(
    name: str, i: int, holds: Made, fails: Made, near: Made | None
) -> None:
    assert word(name, i, MadeUp(holds)) == REPRODUCES
    assert word(name, i, MadeUp(fails)) == FAILS
    assert near is None or word(name, i, MadeUp(near)) == UNDECIDED
    one = ALL[name]
    assert word(name, i, one.blunders[one.claims[i].mistake](MadeUp(holds))) != REPRODUCES


def test_every_claim_has_a_case_a_rule_in_words_and_a_mistake() -> None:
    assert {(name, i) for name, i, *_ in CASES} == {
        (name, i) for name, one in ALL.items() for i in range(len(one.claims))}
    for one in ALL.values():
        assert len(set(one.cells)) == len(one.cells)
        assert all(c.rule_in_words.endswith(".") and c.mistake and c.printed for c in one.claims)


@pytest.mark.parametrize(("name", "i", "made"), [
    ("where", 2, by_place(0.2, 5.0, 5.0)),
    ("asymmetry", 1, by_factor(0.2, 0.2, 0.2, 0.2)),
    ("asymmetry", 2, by_factor(0.2, 0.2, 0.2, 0.2)),
    ("variants", 0, by_method(dict.fromkeys(variants.METHODS, 0.2))),
    ("forgetting", 0, points(4.0, 0.2)), ("forgetting", 1, points(4.0, 0.2)),
])
def test_what_is_not_learned_is_neither_equal_nor_better(name: str, i: int, made: Made) -> None:
    assert word(name, i, MadeUp(made)) == UNDECIDED


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [Scale(), Scale(seeds=2, fast=True)], ids=["full", "fast"])
def test_tables_have_a_column_for_each_head_and_figures_draw(name: str, scale: Scale) -> None:
    one = ALL[name]
    made = next(holds for at, _, holds, *_ in CASES if at == name)
    for table in one.tables(MadeUp(made, scale)):
        assert table.rows and all(len(row) == len(table.head) for row in table.rows)
    assert scale.fast <= all(v.word == "no verdict" for v in one.verdicts(MadeUp(made, scale)))
    pytest.importorskip("matplotlib")
    for figure in one.figures(MadeUp(made, scale)):
        assert figure.draw().lines and figure.alt


SHORT: dict[str, Any] = {"task": "mini-e2e", "r": 2, "rate": 3e-3, "steps": 5, "batch": 4,
                         "seed": 1, "scales": [0.25, 16.0]}


@pytest.mark.parametrize("settings", [
    {}, {"decay": 0.1, "eps": 1e-4, "clip": 0.1, "adjusted": True}], ids=["plain", "adjusted"])
def test_alpha_is_a_learning_rate_to_the_bit(settings: dict[str, Any]) -> None:
    for line in compare(**SHORT, **settings):
        assert line["equal"] == 5 and line["at"] == [1, 2, 3, 4, 5]
        assert line["distance"] == [0.0] * 5


@pytest.mark.parametrize("settings", [
    {"decay": 0.1}, {"eps": 1e-4}, {"starts": False}, {"over_r": False},
    {"decay": 0.1, "eps": 1e-4, "clip": 0.1}], ids=lambda settings: " ".join(settings))
def test_what_breaks_the_law_of_alpha(settings: dict[str, Any]) -> None:
    for line in compare(**SHORT, **settings):
        assert line["equal"] < 5 and line["distance"][-1] > 1e-6


def test_the_law_has_a_second_mistake() -> None:
    on = alpha.EXPERIMENT.blunders["decay on"]
    assert word("alpha", 0, on(MadeUp(compared(the_law=True)))) == FAILS


class Counted(Results):
    """Results of runs that are made up when they are asked for: no rate is known before."""

    def __init__(self, made: Made) -> None:
        super().__init__(Journal(None), Scale())
        self.made = made

    def finish(self) -> int:
        """Do all jobs of lr-ratio; return their number."""
        while new := [j for j in lr_ratio.jobs(self) if j.key not in self.journal]:
            for job in new:
                noise = NOISE[job.config["seed"]]
                loss = self.made(job.config)[0] * math.exp(noise)
                self.journal.add(job.key, {"result": {"loss": {"validation": loss}}})
        return len(self.journal)


@given(st.lists(st.floats(2e-5, 5e-2), min_size=4, max_size=4))
def test_the_search_finds_the_best_rate_wherever_it_is(rates: list[float]) -> None:
    results = Counted(parabolas(*rates))
    assert results.finish() <= 4 * 29
    for rate, which in zip(rates, lr_ratio.NAMED.values()):
        at, missing = lr_ratio.centre(results, which)
        assert not missing and abs(2 * math.log2(rate / 1e-3) - at) < 0.6
        found = lr_ratio.best(results, which)
        assert found is not None and found.low < math.log2(rate) < found.high + 1e-9


def test_the_search_does_not_depend_on_other_runs() -> None:
    made = parabolas(1e-3, 1e-2, 1e-2, 1e-2)
    one, other = Counted(made), Counted(made)
    job = lr_ratio.FULL.run(lr_ratio.rate_of(5), 0, Scale())
    other.journal.add(job.key, {"result": {"loss": {"validation": 1e-9}}})
    one.finish()
    other.finish()
    assert set(one.journal.lines) <= set(other.journal.lines)
    assert lr_ratio.centre(one, lr_ratio.FULL)[0] == lr_ratio.centre(other, lr_ratio.FULL)[0]


def test_losses_without_a_lowest_point_decide_nothing() -> None:
    def falling(config: Mapping[str, Any]) -> tuple[float, float]:
        return math.exp(-math.log2(config["rate"])), 1.0

    verdict = lr_ratio.about_ten(MadeUp(falling))
    assert verdict.word == UNDECIDED and "no lowest point" in verdict.because


@given(*[st.tuples(st.floats(-20, 0), st.floats(0.01, 2), st.floats(0.01, 2))] * 2)
def test_a_difference_of_intervals(a: Any, b: Any) -> None:
    x, y = (Interval(m, m - down, m + up) for m, down, up in (a, b))
    one, other = lr_ratio.apart(x, y), lr_ratio.apart(y, x)
    assert one.estimate == pytest.approx(-other.estimate)
    assert one.low == pytest.approx(-other.high)
    assert one.high - one.estimate >= max(x.high - x.estimate, y.estimate - y.low) - 1e-12
    assert lr_ratio.apart(x, Interval(y[0], y[0], y[0])) == pytest.approx([v - y[0] for v in x])


def test_all_places_train_equally_many_parameters() -> None:
    counts = set()
    for place in where.PLACES:
        model = GPT2(GPT2Config(vocab_size=9, n_positions=4, d_model=64, n_layers=1, n_heads=4))
        settings = where.at("mini-e2e", place).config(Scale())["settings"]
        methods.apply(model, "lora", **settings)
        counts.add(sum(p.size for p in model.trainable_parameters().values()))
    assert counts == {5120}


def test_where_full_fine_tuning_has_no_such_loss_nothing_is_compared() -> None:
    verdict = forgetting.two_curves(MadeUp(points(3.0, 0.1)))
    assert verdict.word == UNDECIDED and "nothing can be compared" in verdict.because
    on_it = forgetting.below(MadeUp(points(0.05, 3.0)), "mini-sql", 4)
    assert on_it is not None and on_it == pytest.approx([0, 0, 0])
    half = forgetting.below(MadeUp(points(math.sqrt(0.05 * 0.3), 1.0)), "mini-sql", 4)
    assert half is not None and half[1] == pytest.approx(math.log(3.0 * 1.5) / 2)


def test_cells_are_shared_with_the_paper_s_experiments() -> None:
    from minilora.experiments.paper import nlg, params, rank

    paper = {x for module in (nlg, params, rank) for x in module.EXPERIMENT.cells}
    new = {*forgetting.EXPERIMENT.cells} - paper
    assert not new
    assert cell("mini-e2e", "lora", r=4, targets=("q", "v")) in asymmetry.CELLS
