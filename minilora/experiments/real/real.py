"""Does LoRA adapt a real encoder to real sentences? MiniLM, 22.7 million parameters, learns from
some sentences about films whether they praise (Pang & Lee 2005).

The floor is a linear classifier on the frozen encoder. The rates of the four main methods are
chosen on validation sentences; LoRA with other ranks and targets keeps LoRA's rate and alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import viz
from ...jobs.driver import Job
from .. import statistics, timing
from ..cells import cell
from ..experiment import (
    FAILS,
    REPRODUCES,
    Claim,
    Experiment,
    Figure,
    Table,
    Verdict,
    effect,
    larger,
    no_worse,
    plus_minus,
)
from ..results import Results, Values, best
from . import films

SIZES = {"examples": 1600, "validation": 300, "test": 800}
SMOKE = {"examples": 32, "validation": 24, "test": 24}
ALPHA = 8.0  # for every rank, as the paper keeps it (§4.1)
MARGIN = 0.02  # "on par" means at most 2 points of 100 less
FEWER = 100  # times
BLOCKS = 3  # of the timing


@dataclass(frozen=True)
class Row:
    """A line of the table. rates: to choose from; (): the rate of LORA. few: one seed alone."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    rates: tuple[float, ...] = ()
    few: bool = False

    @property
    def label(self) -> str:
        return cell("", self.method, **dict(self.settings)).label()


def lora(r: int, targets: tuple[str, ...] = ("q", "v"), **how: Any) -> Row:
    return Row("lora", (("alpha", ALPHA), ("r", r), ("targets", targets)), **how)


FULL = Row("full", rates=(3e-5, 1e-4, 3e-4))
BITFIT = Row("bitfit", rates=(1e-3, 3e-3, 1e-2))
ADAPTER = Row("adapter-h", (("r", 16),), rates=(1e-3, 3e-3, 1e-2))
LORA = lora(8, rates=(1e-3, 3e-3, 1e-2))
LORA_1 = lora(1)
MAIN = (FULL, BITFIT, ADAPTER, LORA)
OTHERS = (LORA_1, lora(32, few=True), lora(8, ("q",), few=True),
          lora(8, ("q", "k", "v", "o", "up", "down"), few=True))


def sizes(results: Results) -> dict[str, int]:
    return SMOKE if results.scale.fast else SIZES


def run(results: Results, row: Row, rate: float, seed: int) -> Job:
    """Return the job that trains a row with a rate and a seed."""
    config = {"method": row.method, "settings": dict(row.settings), "rate": rate, "seed": seed}
    name = f"real, {row.label}, rate {rate:g}, seed {seed}"
    return Job("real", config | sizes(results), name)


def tried(results: Results, row: Row) -> dict[float, Job]:
    """Return the search of a main row: its rates, with the first seed."""
    return {rate: run(results, row, rate, 0) for rate in results.scale.rates(row.rates)}


def rate(results: Results, row: Row) -> float:
    """Return the rate with the best validation accuracy; of equals, with the lowest loss."""
    jobs = tried(results, row if row.rates else LORA)
    return best({rate: results.job(job) for rate, job in jobs.items()}, "accuracy")


def repeats(results: Results, row: Row) -> list[Job]:
    """Return the runs of a row at its rate, one for each seed."""
    seeds = 1 if row.few else results.scale.seeds
    return [run(results, row, rate(results, row), seed) for seed in range(seeds)]


def probe(results: Results) -> Job:
    return Job("real probe", sizes(results), "real, linear probe")


def speed(results: Results) -> Job:
    by_name = {row.label: [row.method, dict(row.settings)] for row in MAIN}
    blocks = 2 if results.scale.fast else BLOCKS
    config = {"by_name": by_name, "examples": sizes(results)["examples"], "blocks": blocks}
    return Job("real speed", config, "real, times of steps", alone=True)


def jobs(results: Results) -> list[Job]:
    """Return the search of the rates; once it has run, all jobs."""
    search = [job for row in MAIN for job in tried(results, row).values()]
    search.append(probe(results))
    if any(job.key not in results.journal for job in search):
        return search
    runs = [job for row in (*MAIN, *OTHERS) for job in repeats(results, row)]
    every = {job.key: job for job in [*search, *runs, speed(results)]}
    return list(every.values())


def scores(results: Results, row: Row) -> Values:
    """Return the test accuracy of each seed. A run that diverged scores as 0."""
    found = [results.job(job) for job in repeats(results, row)]
    return np.array([run["test"]["accuracy"] if "test" in run else 0.0 for run in found])


def number(results: Results, row: Row, what: str) -> int:
    """Return a number of the first run: "trained" or "bytes"; 0 if it diverged."""
    return int(results.job(repeats(results, row)[0]).get(what, 0))


def floor(results: Results) -> float:
    """Return the noise floor of a difference between two rows with all seeds."""
    groups = [scores(results, row) for row in (*MAIN, LORA_1)]
    return statistics.noise_floor(groups, results.scale.seeds)


def above_the_floor(results: Results) -> Verdict:
    """Full fine-tuning, BitFit, Adapter-H and LoRA r = 8 each have a higher accuracy than the
    linear probe of the frozen encoder, by more than the noise floor."""
    level, noise = results.job(probe(results))["test"]["accuracy"], floor(results)
    return larger([
        effect(f"{row.label} minus the probe", x, np.full_like(x, level), noise)
        for row in MAIN for x in [scores(results, row)]
    ])


def on_par(results: Results) -> Verdict:
    """The accuracy of LoRA r = 8 on q and v is at most 2 points of 100 below that of full
    fine-tuning, by more than the noise floor."""
    return _no_worse(results, LORA, FULL)


def one_is_enough(results: Results) -> Verdict:
    """The accuracy of LoRA r = 1 on q and v is at most 2 points of 100 below that of r = 8, by more
    than the noise floor."""
    return _no_worse(results, LORA_1, LORA)


def _no_worse(results: Results, row: Row, than: Row) -> Verdict:
    what, noise = f"{row.label} minus {than.label}", floor(results)
    return no_worse([effect(what, scores(results, row), scores(results, than), noise)], MARGIN)


def fewer(results: Results) -> Verdict:
    """LoRA r = 8 on q and v trains at most 1 / 100 of the parameters of full fine-tuning, and the
    memory of its step peaks below. This is exact."""
    few, all_of_them = (number(results, row, "trained") for row in (LORA, FULL))
    less, most = (results.job(speed(results))["peak"][row.label] for row in (LORA, FULL))
    right = 0 < few * FEWER <= all_of_them and less < most
    return Verdict(REPRODUCES if right else FAILS, (
        f"{few:,} of {all_of_them:,} parameters; a step peaks at {less:,} of {most:,} bytes"
    ))


def tables(results: Results) -> list[Table]:
    floor_of_it, timed = results.job(probe(results)), results.job(speed(results))
    rows: list[list[Any]] = [[
        f"linear probe, ridge {floor_of_it['ridge']:g}", f"{floor_of_it['trained']:,}",
        f"{floor_of_it['test']['accuracy']:.3f}", "", "", "", ""]]
    steps = -(-sizes(results)["examples"] // films.BATCH)
    for row in (*MAIN, *OTHERS):
        seconds, peak = "", ""
        if row in MAIN:
            seconds = f"{float(timing.median_ms(timed['times'], row.label)) * steps / 1000:.1f}"
            peak = f"{timed['peak'][row.label] / 1e6:.1f}"
        rows.append([
            row.label, f"{number(results, row, 'trained'):,}", plus_minus(scores(results, row)),
            f"{rate(results, row):g}", f"{number(results, row, 'bytes'):,}", seconds, peak])
    search = [[row.label, f"{at:g}", *_search(results.job(job))]
              for row in MAIN for at, job in tried(results, row).items()]
    kept = timed["tokens"]
    return [
        Table("Accuracy on film sentences, and what it costs", [
            "method", "trained parameters", "accuracy", "rate", "file, bytes", "training, s",
            "peak, MB"], rows,
            "Trained parameters: without the head, which every method but the probe trains in full "
            "and whose numbers are in the file. Training: processor seconds for one pass, from the "
            f"time of a step. Peak: of a step of {films.BATCH} x {films.TOKENS} tokens, counted. "
            "A row with one number has one seed"),
        Table("Sentences a second in training", ["method", "batches", "sentences a second"], [
            [LORA.label if name == "random order" else name,
             name if name == "random order" else "by length",
             f"{1000 * films.BATCH / float(timing.median_ms(timed['times'], name)):.0f}"]
            for name in timed["times"]],
            f"One thread. Of the tokens computed, {1 - kept / timed['by length']:.0%} are padding "
            f"with batches by length, and {1 - kept / timed['random']:.0%} in random order"),
        Table("The search of the rates, on validation sentences",
              ["method", "rate", "accuracy", "loss"], search),
    ]


def _search(found: Any) -> list[str]:
    if "diverged" in found:
        return ["diverged", ""]
    return [f"{found['validation']['accuracy']:.3f}", f"{found['loss']['validation']:.3f}"]


def accuracies(results: Results) -> tuple[dict[str, dict[int, list[float]]], float]:
    """Return method -> {trained parameters: the seeds' test accuracies}, and the linear probe's."""
    curves: dict[str, dict[int, list[float]]] = {}
    for row in (*MAIN, *OTHERS):
        name = row.label if row in MAIN[:-1] else "LoRA"
        n = number(results, row, "trained")
        curves.setdefault(name, {})[max(n, 1)] = scores(results, row).tolist()
    return curves, results.job(probe(results))["test"]["accuracy"]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        curves, level = accuracies(results)
        return viz.quality_vs_parameters(
            curves, title="A real encoder, real sentences", ylabel="accuracy",
            levels={"linear probe": level})

    return [Figure("real", draw, "accuracy on film sentences against the number of trained "
                   "parameters for each method, and the linear probe as a line")]


def exchanged(results: Results) -> Results:
    """Plant a mistake: LoRA's two classes are exchanged, so what was right is wrong."""
    def change(job: Job, result: Any) -> Any:
        if job.kind != "real" or job.config["method"] != "lora" or "test" not in result:
            return result
        return result | {"test": {"accuracy": 1 - result["test"]["accuracy"]}}

    return results.changed(change)


def thin(results: Results) -> Results:
    """Plant a mistake: with r = 1 half of the sentences are answered by a coin."""
    def change(job: Job, result: Any) -> Any:
        if job.kind != "real" or job.config["settings"].get("r") != 1 or "test" not in result:
            return result
        return result | {"test": {"accuracy": (result["test"]["accuracy"] + 0.5) / 2}}

    return results.changed(change)


def everything(results: Results) -> Results:
    """Plant a mistake: LoRA's base is not frozen."""
    def change(job: Job, result: Any) -> Any:
        if job.kind == "real" and job.config["method"] == "lora" and "trained" in result:
            return result | {"trained": number(results, FULL, "trained")}
        return result

    return results.changed(change)


EXPERIMENT = Experiment(
    name="real", title="Does LoRA adapt a real encoder to real sentences?",
    tables=tables, figures=figures, jobs=jobs, ready=films.ready,
    blunders={
        "LoRA's two classes are exchanged": exchanged,
        "with r = 1 a coin answers half of the sentences": thin,
        "LoRA's base is not frozen": everything,
    },
    noise=(
        "The noise floor is the half-width of the 95 % interval of a difference between two means "
        "over the seeds. Its standard deviation is that of one method under another seed, pooled "
        f"over the methods with all seeds. A seed does not draw the {SIZES['test']} test sentences."
    ),
    toy=(
        "A real model and real sentences, but few: all-MiniLM-L6-v2, an encoder of 22.7 million "
        f"parameters, 6 layers and width 384, and {SIZES['examples']:,} of 8,530 sentences about "
        f"films to train on, once each. The user installs both: `{films.INSTALL}`."
    ),
    claims=(
        Claim(
            "Each method adapts the encoder: it beats a linear probe of the frozen one.",
            "Devlin et al. 2019, §5.3, Table 7",
            "BERT base, F1 of names: fine-tuned 96.4; its frozen last layer 94.9",
            above_the_floor, "LoRA's two classes are exchanged",
        ),
        Claim(
            "LoRA is on par with full fine-tuning.", "§5.2, Table 2",
            "RoBERTa base, SST-2: full fine-tuning 94.8, LoRA 95.1 ± 0.2", on_par,
            "LoRA's two classes are exchanged",
        ),
        Claim(
            "A very small r is enough.", "§7.2, Table 6",
            "GPT-3, q and v: WikiSQL 73.4 with r = 1 and 73.8 with r = 8; MNLI 91.3 and 91.6",
            one_is_enough, "with r = 1 a coin answers half of the sentences",
        ),
        Claim(
            "LoRA trains a hundredth of the parameters or less, in less memory.", "§4.2, Table 2",
            "RoBERTa base: 0.3 of 125.0 million parameters", fewer, "LoRA's base is not frozen",
        ),
    ),
)
