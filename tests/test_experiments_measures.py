"""Experiments on ΔW, on costs and on switching: rules on made-up results, and their jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from minilora import analysis, lora, methods
from minilora.data.tasks import base_batches
from minilora.experiments import timing
from minilora.experiments.beyond import intruders
from minilora.experiments.cells import Cell, Scale
from minilora.experiments.experiment import FAILS, REPRODUCES, UNDECIDED, Experiment
from minilora.experiments.kinds import KINDS, work
from minilora.experiments.paper import amplification, latency, subspace, switch, throughput
from minilora.experiments.readings import TOPS, read_updates
from minilora.experiments.results import Results
from minilora.files.journal import Journal
from minilora.jobs.driver import Job
from minilora.models.gpt2 import GPT2, GPT2Config

pytestmark = pytest.mark.usefixtures("numpy_only")
NOISE = (-0.01, 0.0, 0.01)  # of three seeds
MODULES = (amplification, intruders, latency, subspace, switch, throughput)
EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES
}
Made = Mapping[str, Callable[..., Any]]


class MadeUp(Results):
    """kinds: the kind of a job -> its result, for its config. Each cell has the same rate."""

    def __init__(self, kinds: Made) -> None:
        super().__init__(Journal(None), Scale(seeds=len(NOISE)))
        self.kinds = kinds

    def job(self, job: Job) -> Any:
        return self._change(job, self.kinds[job.kind](**job.config))

    def rate(self, cell: Cell) -> float:
        return 1e-3


def by_top(top: float, four: float, rest: float, noise: float) -> list[list[float]]:
    """φ(1, 1), φ(i, j) up to 4, and beyond."""
    at = np.maximum.outer(np.arange(16), np.arange(16))
    return (np.where(at < 1, top, np.where(at < 4, four, rest)) + noise).tolist()  # type: ignore[no-any-return]


def similar(
    ranks: tuple[float, ...], seeds: tuple[float, ...], random: tuple[float, ...] = (0.02, 0.1, 0.2)
) -> Made:
    def made(few: Any, most: Any, other: Any) -> Any:
        noise = NOISE[most["seed"]]
        own = {"ranks": ranks, "seeds": seeds}
        return {pair: {name: {"update": by_top(*x, noise), "A": by_top(*x, noise),
                              "random": by_top(*random, noise)} for name in ("q", "v")}
                for pair, x in own.items()}

    return {"subspace": made}


def amplified(inside: Mapping[int, float], norm: float = 4.0) -> Made:
    """W has 1 in random directions and 10 in its own; ΔW's norm is the same for every r."""
    def train(settings: Any, seed: int, **_: Any) -> Any:
        value = inside[settings["r"]] * (1 + NOISE[seed])
        return {"updates": {"q": {"norm": norm, "inside": {str(settings["r"]): value}}}}

    def own(**_: Any) -> Any:
        return {"q": {"norm": 12.0, "own": dict.fromkeys(map(str, TOPS), 10.0),
                      "random": dict.fromkeys(map(str, TOPS), 1.0)}}

    return {"train": train, "own": own}


def slow(merged: int = 100, low: int = 120, share: tuple[float, float] = (0.2, 0.05),
         high: float = 0.1, noise: float = 0.01) -> Made:
    """share: the time that adapters add for a small batch and a large one; high: Adapter-H's more.
    """
    calls = {"base": 100, "merged": merged, "LoRA": 110, "Adapter-L": low, "Adapter-H": 130}
    blocks = noise * np.array([-1, 1, 0, 1, -1])

    def made(**_: Any) -> Any:
        added = {latency.SMALL: share[0], latency.LARGE: share[1]}
        counts = {name: {"calls": n, "depth": n, "products": 10**6} for name, n in calls.items()}
        times = {at: {"base": [10.0] * 5, "merged": [10.0] * 5, "LoRA": [11.0] * 5,
                      "Adapter-L": (10 * (1 + more + blocks)).tolist(),
                      "Adapter-H": (10 * (1 + more + high - blocks)).tolist()}
                 for b, t in latency.SETTINGS for at in [f"{b} x {t}"]
                 for more in [added.get(at, 0.1)]}
        return {"counts": dict.fromkeys(times, counts), "times": times}

    return {"latency": made}


def faster(less: int = 5, saved: float = 0.4) -> Made:
    counts = {name: {"products": 10**9 * n, "gradients": n, "Adam moments": n, "peak": n,
                     "trained": n} for name, n in {"full": 9, "lora": less}.items()}
    part = 1 - saved + 0.02 * np.array([-1, 1, 0, 1, -1])
    times = {"full": [10.0] * 5, "lora": (10 * part).tolist()}
    return {"throughput": lambda **_: {"counts": counts, "times": times}}


def switched(adapters: int = 500, changed: int = 0, same: int = 100, ms: float = 5.0) -> Made:
    times = {"adapter": (ms + np.array([-0.5, 0.5, 0.0, 0.5, -0.5])).tolist(), "model": [10.0] * 5}
    return {"switch": lambda **_: {
        "model": 1000, "adapters": adapters, "same": same, "changed": changed, "summed": 0.3,
        "times": times}}


def planted(mine: float = 3.0, full: float = 1.0, random: float = 1.0, back: float = 0.5,
            base: float = 2.0) -> Made:
    def train(seed: int, **_: Any) -> Any:
        return {"loss": {"validation": 0.5 + NOISE[seed]}}

    def found(run: Any, target: float) -> Any:
        noise, count = NOISE[run["seed"]], full if run["method"] == "full" else mine
        task = [1.0, 1.1, 1.5, 1.8, 2.0]
        known = [base, base - back * (base - 1), base, 1.1, 1.0]
        return {"intruders": count + noise, "random": random - noise, "steps": 10, "loss": target,
                "curve": {"task": task, "base": [x + noise * (x != 1.0) for x in known]}}

    return {"train": train, "intruders": found}


FALLING, RISING = {1: 2.0, 4: 3.0, 8: 4.0, 64: 12.0}, {1: 0.5, 4: 12.0, 8: 4.0, 64: 0.1}
RANDOM = {1: 1.0, 4: 1.001, 8: 1.0, 64: 1.0}
SHARED, APART = (0.9, 0.5, 0.2), (0.3, 0.5, 0.6)
CASES: list[tuple[str, int, Made, Made, Made | None]] = [  # holds, fails, below the floor
    ("subspace", 0, similar(SHARED, SHARED), similar(APART, SHARED),
     similar((0.505, 0.3, 0.2), SHARED)),
    ("subspace", 1, similar(SHARED, SHARED), similar(APART, SHARED),
     similar((0.9, 0.9, 0.899), SHARED)),
    ("subspace", 2, similar(SHARED, SHARED), similar(SHARED, APART),
     similar(SHARED, (0.9, 0.101, 0.2))),
    ("subspace", 3, similar(SHARED, SHARED), similar(SHARED, SHARED, (0.6, 0.6, 0.6)),
     similar(SHARED, SHARED, (0.499, 0.2, 0.2))),
    ("amplification", 0, amplified(FALLING), amplified({**FALLING, 4: 0.5}), amplified(RANDOM)),
    ("amplification", 1, amplified(FALLING), amplified(RISING), amplified({**FALLING, 4: 4.999})),
    ("amplification", 2, amplified(FALLING), amplified(RISING), amplified({**FALLING, 4: 4.001})),
    ("amplification", 3, amplified(FALLING), amplified(RISING), amplified(RANDOM)),
    ("latency", 0, slow(), slow(merged=101), None),
    ("latency", 1, slow(), slow(low=100), None),
    ("latency", 2, slow(), slow(share=(0.05, 0.2)), slow(share=(0.1, 0.0999))),
    ("latency", 3, slow(), slow(high=-0.1), slow(high=0.0001)),
    ("throughput", 0, faster(), faster(less=9), None),
    ("throughput", 1, faster(), faster(saved=-0.2), faster(saved=0.001)),
    ("throughput", 2, faster(), faster(saved=0.1), faster(saved=0.251)),
    ("switch", 0, switched(), switched(adapters=9001), None),
    ("switch", 1, switched(), switched(ms=20.0), switched(ms=9.99)),
    ("switch", 2, switched(), switched(same=99), None),
    ("switch", 2, switched(), switched(changed=1), None),
    ("intruders", 0, planted(), planted(full=5.0), planted(full=2.999)),
    ("intruders", 1, planted(), planted(random=5.0), planted(random=2.999)),
    ("intruders", 2, planted(), planted(back=0.0), planted(base=1.001)),
]


@pytest.mark.parametrize(
    ("name", "n", "holds", "fails", "below"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_rules_decide(name: str, n: int, holds: Made, fails: Made, below: Made | None) -> None:
    """The claim reproduces, does not, or is below the floor; its mistake turns the verdict."""
    one = EXPERIMENTS[name]
    claim = one.claims[n]
    assert claim.rule(MadeUp(holds)).word == REPRODUCES
    assert claim.rule(MadeUp(fails)).word == FAILS
    if below is not None:
        assert claim.rule(MadeUp(below)).word == UNDECIDED
    assert claim.rule(one.blunders[claim.mistake](MadeUp(holds))).word != REPRODUCES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_declarations_are_whole(name: str) -> None:
    """Every claim has a rule in words and a mistake; tables and jobs come from results alone."""
    one, made = EXPERIMENTS[name], MadeUp(next(case[2] for case in CASES if case[0] == name))
    assert all(claim.rule_in_words and claim.mistake in one.blunders for claim in one.claims)
    jobs = one.jobs(made)
    assert jobs and {job.kind for job in jobs} <= KINDS.keys()
    assert all(job.alone == ("times" in made.job(job)) for job in jobs)
    if name != "amplification":  # its made-up runs have q alone
        assert all(len(row) == len(table.head) for table in one.tables(made) for row in table.rows)


def test_a_missing_number_decides_nothing() -> None:
    made = amplified(FALLING)
    lost = {**made, "train": lambda **config: {"diverged": True} if config["seed"] == 1
            else made["train"](**config)}
    for claim in amplification.EXPERIMENT.claims:
        assert claim.rule(MadeUp(lost)).word == UNDECIDED


def test_changes_of_results_add_up() -> None:
    plain = MadeUp({"own": lambda **_: 1})
    twice = plain.changed(lambda job, x: x + 1).changed(lambda job, x: 10 * x)
    assert (plain.job(amplification.own_job()), twice.job(amplification.own_job())) == (1, 20)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest turns; of a base's own text a few sentences."""
    monkeypatch.setattr(timing, "MOST", timing.FEWEST)
    few = base_batches("mini-decoder", "test", 1, 8)
    monkeypatch.setattr(intruders, "base_text", lambda name: few)


def test_calls_take_turns(brief: None) -> None:
    """A B C, C B A, ...: each call has the same number of turns, and the order turns around."""
    done: list[str] = []
    calls: dict[str, Callable[[], Any]] = {x: lambda x=x: done.append(x) for x in "ABC"}  # type: ignore[misc]
    found = timing.in_turns(calls, blocks=2)
    turns = "".join(done[6:])
    assert turns == ("ABCCBA" * len(turns))[: len(turns)] and len(turns) == 2 * 3 * timing.FEWEST
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys("ABC", 2)


@pytest.fixture
def adapted() -> tuple[GPT2, GPT2]:
    """A base, and the same with a trained LoRA."""
    base = GPT2(GPT2Config(vocab_size=11, n_positions=8, d_model=12, n_layers=2, n_heads=2), rng=0)
    model, rng = deepcopy(base), np.random.default_rng(1)
    lora.attach(model, lora.LoRAConfig(r=4, alpha=3.0, targets=("q", "v")), rng=2)
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            p.data = rng.normal(0, 0.3, p.shape).astype("float32")
    return base, model


def test_a_run_reads_what_W_has_in_the_directions_of_its_update(
    adapted: tuple[GPT2, GPT2]
) -> None:
    base, model = adapted
    read = read_updates(model, base)
    for name in ("q", "v"):
        W = getattr(base.blocks[1].attn, name).W.data.astype("float64")
        U, _, Vt = np.linalg.svd(getattr(model.blocks[1].attn, name).delta())
        assert read[name]["inside"].keys() == {"1", "4"}  # r = 4: no more directions
        for r in (1, 4):
            inside = np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)
            assert read[name]["inside"][str(r)] == pytest.approx(inside, rel=1e-9)


def test_an_update_is_scaled_between_the_base_and_the_merged_model(
    adapted: tuple[GPT2, GPT2]
) -> None:
    base, model = adapted
    methods.merge(model)
    for factor in (0.0, 0.5, 1.0):
        for name, p in intruders.scaled(base, model, factor).named_parameters():
            W0, W = (dict(m.named_parameters())[name].data for m in (base, model))
            np.testing.assert_allclose(p.data, W0 + np.float32(factor) * (W - W0), atol=1e-7)


def test_a_matrix_has_all_directions_of_itself() -> None:
    B, A = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(20, 6), (6, 20)]))
    assert np.array_equal(np.diag(subspace.grid((2.0, B, A), B @ A)), np.ones(6))


def test_forms_are_counted_on_the_code_itself() -> None:
    ids = timing.ids("tiny", 2, 8)[0]
    costs = {name: latency.counted(name, "tiny", ids) for name in latency.FORMS}
    assert costs["merged"] == costs["base"]
    r = latency.LORA["r"]
    more = costs["LoRA"]["products"] - costs["base"]["products"]
    assert more == 2 * 2 * 16 * 2 * r * (64 + 64)  # 2 blocks, q and v, 16 tokens, A and B
    assert all(costs[name]["depth"] > costs["base"]["depth"] for name in latency.ADAPTERS)


@pytest.mark.parametrize(("kind", "config"), [
    ("switch", {"base": "shakespeare", "tasks": 2, "blocks": 1}),
    ("throughput", {"shape": "tiny", "blocks": 1}),
    pytest.param("latency", {"shape": "tiny", "blocks": 1}, marks=pytest.mark.thorough),
])
def test_what_is_not_a_time_is_the_same_again(
    kind: str, config: dict[str, Any], brief: None
) -> None:
    first, again = (work(kind, config) for _ in range(2))
    assert first.pop("times").keys() == again.pop("times").keys()
    assert first == again
    if kind == "switch":
        assert (first["same"], first["changed"]) == (2, 0) and 0 < first["summed"] < 1


def test_a_sum_that_is_rounded_does_not_give_W_back() -> None:
    W = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    assert switch.summed(W, 0) == 0 < switch.summed(W, 3) < switch.summed(W, 30)


@pytest.mark.parametrize(
    "method", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
def test_a_run_stops_at_the_target(method: str, brief: None) -> None:
    """It stops as soon as the loss is low enough, and says what it did to the base."""
    one = intruders.at(4) if method == "lora" else intruders.FULL
    run = {**one.run(1e-2, 0, Scale(fast=True)).config, "examples": 64, "validation": 8}
    found = intruders.matched(run, 100.0)
    assert found["steps"] == intruders.EVERY < run["steps"]
    assert found["curve"]["task"][0] == pytest.approx(found["loss"], rel=1e-4)
    assert len(found["curve"]["base"]) == len(intruders.SCALES)
    assert 0 <= found["intruders"] <= intruders.TOP >= found["random"] >= 0


def test_the_same_run_is_found_again() -> None:
    """Two jobs of one seed share r = 64: with itself every φ is 1."""
    run = {**subspace.FEW.run(1e-2, 0, Scale(fast=True)).config, "examples": 64}
    found = subspace.last_updates(run)
    again = subspace.last_updates(run)
    assert all(np.array_equal(found[n][i], again[n][i]) for n in ("q", "v") for i in (1, 2))
    assert analysis.subspace_similarity(found["q"], again["q"], 4, 4) == pytest.approx(1.0)
