"""Tables 1 to 5 and 15, §4.2: the numbers of parameters and bytes that the paper prints."""

from __future__ import annotations

import math
from typing import Any

from ...accounting.claims import RESTS
from ...jobs.driver import Job
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Table, Verdict
from ..numbers import PARTS, exact, statuses, summary
from ..results import Results

JOB = Job("numbers", {}, "every number of parameters and bytes in the paper")
FEWER, OF_ADAM = "full file / LoRA file, r 4 on q, v", "(weights + moments) / weights"


def ratio(results: Results, what: str) -> dict[str, Any]:
    rows = results.job(JOB)["ratios"]
    return next(row for row in rows if row["what"] == what)


def verdict(holds: bool, because: str) -> Verdict:
    return Verdict(REPRODUCES if holds else FAILS, because)


def far_fewer(results: Results) -> Verdict:
    """The bytes of GPT-3's weights, divided by those of LoRA with r = 4 on q and v, are 10,000
    within a factor of √10: the same order of magnitude."""
    times = ratio(results, FEWER)["exact"]
    return verdict(abs(math.log10(times / 10_000)) <= 0.5, f"{times:,.0f} times fewer")


def less_memory(results: Results) -> Verdict:
    """Weights and Adam's two moments, divided by the weights alone, are 3 when rounded to the
    printed digit."""
    times = ratio(results, OF_ADAM)["exact"]
    return verdict(round(times) == 3, f"{times:.3g} times; 4 if the gradients are counted too")


def every_number(results: Results) -> Verdict:
    """Each printed number is the one that the formula gives, and the code that is run, when it is
    rounded or cut to the printed digits, in millions or in units of 2^20."""
    counted, _ = statuses(results.job(JOB))
    return verdict(not counted["mismatch"], summary(counted, "numbers"))


def tables(results: Results) -> list[Table]:
    parts = results.job(JOB)
    head = ["source", "what", "shape", "exact", "printed", "status", "why"]
    made = [
        Table(title, head, [
            [row["source"], row["what"], row["shape"], exact(row), row["printed"], row["status"],
             row["why"]] for row in parts[part]
        ]) for part, title in PARTS.items()
    ]
    rests = Table("What rests on numbers that do not match", ["statement"], [[x] for x in RESTS])
    return [*made, rests]


EXPERIMENT = Experiment(
    name="counts", title="Are so few parameters trained?", tables=tables, jobs=lambda _: [JOB],
    toy="These numbers are exact and of the paper's own sizes: a model is built on arrays that "
        "have shapes and no numbers. `minilora reproduce counts` prints them.",
    claims=(
        Claim("LoRA trains 10,000 times fewer parameters than full fine-tuning of GPT-3.",
              "abstract, §4.2", "10,000 times: 350 GB become 35 MB", far_fewer),
        Claim("Training with Adam needs three times less memory.", "abstract, §4.2",
              "3 times: 1.2 TB become 350 GB", less_memory),
        Claim("The printed numbers of parameters and bytes follow from the formulas.",
              "Tables 1 to 5 and 15, §4.2, §5.1", "in the tables below", every_number),
    ),
)
