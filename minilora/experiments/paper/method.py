"""Equation 3 and §4.1: what holds of the method itself, exactly."""

from __future__ import annotations

from ...jobs.driver import Job
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Table, Verdict
from ..results import Results

JOB = Job("method", {}, "the start, the frozen weights and the merge")
MEANINGS = {
    "start": "logits that differ from the base's before the first step",
    "changed": "parameters of the base that changed in training",
    "parameters": "parameters of the base, as arrays",
    "total": "numbers in them",
    "moved": "norm of all ΔW after training",
    "apart": "largest difference of merged and unmerged logits in float64, relative",
    "allowed": "the most that is allowed there",
    "checks": "checks of the merge that pass",
    "of": "checks of the merge",
}


def verdict(holds: bool, because: str) -> Verdict:
    return Verdict(REPRODUCES if holds else FAILS, because)


def starts_at_the_base(results: Results) -> Verdict:
    """Before the first step, every logit of the adapted model has the same bits as the base's."""
    differ = results.job(JOB)["start"]
    return verdict(not differ, f"{differ} logits differ")


def trains_only_two(results: Results) -> Verdict:
    """A and B are the only trained parameters; after training ΔW is not 0, and every parameter of
    the base has the same bits as before."""
    one = results.job(JOB)
    holds = one["trained"] == ["A", "B"] and one["moved"] > 0 and not one["changed"]
    return verdict(holds, (
        f"trained: {' and '.join(one['trained'])}; {one['changed']} of the base's "
        f"{one['parameters']} arrays changed; the norm of ΔW is {one['moved']:.3g}"
    ))


def merges(results: Results) -> Verdict:
    """All four checks of the merge pass: the weights, what must be unchanged, the logits in
    float64, and their rounding in float32."""
    one = results.job(JOB)
    return verdict(one["checks"] == one["of"] and one["moved"] > 0, (
        f"{one['checks']} of {one['of']} checks pass; in float64 the logits are "
        f"{one['apart']:.1g} of the largest apart, and {one['allowed']:.1g} is allowed"
    ))


def tables(results: Results) -> list[Table]:
    one = results.job(JOB)
    return [Table(f"After {one['steps']} steps with r = 4 on q and v", ["what", "measured"],
                  [[says, one[name]] for name, says in MEANINGS.items()])]


EXPERIMENT = Experiment(
    name="method", title="Does the method do what its equation says?", tables=tables,
    jobs=lambda _: [JOB],
    toy="A built-in base is adapted for a few steps. These claims are exact, so no seeds are "
        "compared; `minilora reproduce latency` and `switch` measure what follows from them.",
    claims=(
        Claim("Training starts at the base: ΔW = BA is 0.", "§4.1",
              "no number: A is random, B is 0", starts_at_the_base),
        Claim("W0 stays frozen: only A and B are trained.", "§4.1, equation 3",
              "no number", trains_only_two),
        Claim("Merged, W0 + BA computes what W0 and BA compute side by side.", "§4.1",
              "no number: \"no additional inference latency\" follows", merges),
    ),
)
