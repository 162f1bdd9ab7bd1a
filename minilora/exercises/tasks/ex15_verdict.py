"""15. Read a report: does the claim reproduce?

A report tests a claim of the form "LoRA is better than BitFit": two methods, some runs, a figure.
You write the function that reads it and gives the verdict. It must not believe the figure, and it
must be able to say that nothing can be decided.

verdict(better, other, higher_is_better, chance, figure, runs) takes
    better, other      names of methods: the claim says that `better` is better than `other`
    higher_is_better   True for a score such as accuracy, False for a loss
    chance             number: the score of a blind guess
    figure             dictionary: method -> the height that the figure shows for it
    runs               list of dictionaries, each with "method", "seed", "split" ("train" or "test")
                       and "score", which is a number, or None if the run diverged
and returns "reproduces", "does not reproduce" or "undecided", by these rules:

- Only runs on the split "test" count, and only those of the two methods of the claim.
- A run that diverged counts as a run with the score `chance`. (If it were left out, a method that
  often fails would look good.)
- Runs are compared in pairs, by seed. A seed that only one of the two methods has does not count.
  With fewer than 3 pairs, the report is undecided.
- The figure must show the mean score of the counted runs for each of the two methods, to within
  0.001. If it does not, figure and runs contradict each other: undecided.
- If neither method's mean is better than chance, nothing was learned: undecided.
- A gain is the score of `better` minus that of `other` in a pair, or the reverse if a lower score
  is better. With n pairs, m is the mean of the gains, and e is their standard deviation (with
  n - 1) divided by sqrt(n). If m - 2 e is above 0, the claim reproduces. If m + 2 e is below 0, it
  does not reproduce. Otherwise it is undecided.

No argument is changed. A report without runs has fewer than 3 pairs:

    verdict("LoRA", "BitFit", True, 0.5, {"LoRA": 0.9, "BitFit": 0.8}, [])  ->  "undecided"
"""

import numpy as np


def verdict(better, other, higher_is_better, chance, figure, runs):
    """One of "reproduces", "does not reproduce" and "undecided"."""
    ### BEGIN SOLUTION
    names = better, other
    scores = {name: {} for name in names}
    for run in runs:
        if run["split"] == "test" and run["method"] in names:
            score = chance if run["score"] is None else run["score"]
            scores[run["method"]][run["seed"]] = score
    seeds = sorted(scores[names[0]].keys() & scores[names[1]].keys())
    if len(seeds) < 3:
        return "undecided"
    first, second = (np.array([scores[name][seed] for seed in seeds]) for name in names)
    sign = 1 if higher_is_better else -1
    for name, values in zip(names, (first, second)):
        if abs(figure[name] - values.mean()) > 0.001:
            return "undecided"
    if max(sign * (values.mean() - chance) for values in (first, second)) <= 0:
        return "undecided"
    gains = sign * (first - second)
    m, e = gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))
    if m - 2 * e > 0:
        return "reproduces"
    return "does not reproduce" if m + 2 * e < 0 else "undecided"
    ### END SOLUTION


### CHECKS
# mypy: ignore-errors

import operator

from hypothesis import strategies as st

from minilora.exercises import kit
from minilora.exercises.tasks import planted_reports as planted

TITLE = "read a report"
MINUTES = 30
CHAPTER = "13"

HINTS = (
    "First collect the scores that count: method -> {seed: score}. Then keep the seeds that both "
    "methods have. All else is computed from two arrays in the same order of seeds.",
    "None is not a number: put chance in its place before you compute. sign = 1 if a higher score "
    "is better, else -1: multiply by it, and each rule needs only one form.",
    "gains = sign * (first - second); m = gains.mean(); e = gains.std(ddof=1) / len(gains) ** 0.5; "
    "reproduces if m - 2 * e > 0, does not reproduce if m + 2 * e < 0, undecided otherwise.",
)
ARGUMENTS = ("better", "other", "higher_is_better", "chance", "figure", "runs")


@st.composite
def reports(draw, kinds):
    """A report of each kind, with a score or a loss, and the verdicts."""
    rng = draw(kit.generators())
    pairs = [kind(rng, int(rng.integers(4, 8)), bool(higher))
             for kind in kinds for higher in rng.permutation([True, False])]
    return {"_reports": [pairs[i] for i in rng.permutation(len(pairs))]}


def _reads(student, pairs):
    """Compare the verdict on each report."""
    for report, expected in pairs:
        got = student.verdict(*report.values())
        kit.holds(isinstance(got, str), "one of three words as a str", kit.described(got))
        if got != expected:
            raise kit.Wrong(f'expected "{expected}"', f"got      {got!r}", "for this report:",
                            *_lines(report))


def _lines(report):
    """Return a report as lines to read."""
    names = report["better"], report["other"]
    better = "a higher" if report["higher_is_better"] else "a lower"
    yield f"  claim: {names[0]} is better than {names[1]}; {better} score is better, chance " \
          f"{report['chance']:g}"
    for name in names:
        yield f"  {name}: the figure shows {report['figure'].get(name, float('nan')):.4f}"
        for split in ("test", "train"):
            own = sorted((run["seed"], run["score"]) for run in report["runs"]
                         if run["method"] == name and run["split"] == split)
            if own:
                told = ", ".join(f"{seed}: {'diverged' if x is None else f'{x:.4f}'}"
                                 for seed, x in own)
                yield f"    {split}, by seed: {told}"


def group(title, *kinds, points=1):
    """A check with reports of these kinds, mixed with clear ones."""

    def run(student, _reports):
        _reads(student, _reports)

    run.__doc__ = title
    mixed = reports((planted.clear, planted.against, planted.within_noise, *kinds))
    return kit.check(mixed, points=points, examples=8)(run)


noise = group("A difference within the noise decides nothing, a larger one does",
              planted.barely, planted.well_beyond, planted.equal)
enough = group("A mean gain above two errors is enough, one below is not",
               planted.beyond, planted.beyond_below, planted.below_two, planted.same_gain, points=2)
pairs = group("Runs are compared by seed, and at least three pairs are needed",
              planted.too_few, planted.just_three, planted.unpaired, planted.extra_seed, points=2)
splits = group("Only the test split counts", planted.trained_on)
failures = group("A run that diverged counts as chance",
                 planted.diverged, planted.one_diverged, planted.figure_without_diverged,
                 planted.figure_with_zeros, planted.zeros,
                 points=2)
figures = group("The figure must agree with the runs",
                planted.wrong_figure, planted.exchanged_figure, planted.nearly_right_figure)
chances = group("Two methods that are worse than chance decide nothing",
                planted.below_chance, planted.one_above_chance, planted.at_chance)

PROMISES = {
    noise: ("It must not believe", "A gain is", "With n pairs", "Otherwise it is undecided",
            "verdict(better, other", 'and returns "reproduces"'),
    enough: ("If m - 2 e is above 0", "If m + 2 e is below 0"),
    pairs: ("Runs are compared", "A seed that only one", "With fewer than 3"),
    splits: ("Only runs on",), failures: ("A run that diverged", "No argument is changed"),
    figures: ("The figure must", "If it does not, figure"),
    chances: ("If neither method",),
}
EXPLAINS = ("Read a report", "A report tests a claim", "You write the function",
            "(If it were left out", "A report without runs")


def _verdict(
    splits=("test",), chance=lambda report: report["chance"], pair=True, least=3, gap=0.001,
    off=abs, of=("better", "other"), floor=max, chance_sign=None, errors=2.0, ddof=1, root=True,
    sign=lambda higher: 1 if higher else -1, place=lambda i, seed: seed, all_means=False,
    own_errors=False, words=("reproduces", "does not reproduce", "undecided"), last="undecided",
    above=operator.gt,
):
    """The reference with one part changed."""

    def verdict(*arguments):
        report = dict(zip(ARGUMENTS, arguments))
        names, yes, no, open_ = (report["better"], report["other"]), *words
        scores = {name: {} for name in names}
        for run in report["runs"]:
            if run["split"] in splits and run["method"] in names:
                score = chance(report) if run["score"] is None else run["score"]
                own = scores[run["method"]]
                if score is not None:
                    own[place(len(own), run["seed"])] = score
        both = sorted(scores[names[0]].keys() & scores[names[1]].keys())
        if len(both) < least:
            return open_
        each = [np.array([scores[name][seed] for seed in both]) for name in names]
        if not pair:
            each = [np.array([*scores[name].values()]) for name in names]
        side = sign(report["higher_is_better"])
        means = {role: np.mean([*scores[name].values()] if all_means else x)
                 for role, name, x in zip(("better", "other"), names, each)}
        if gap is not None and any(off(report["figure"][report[role]] - means[role]) > gap
                                   for role in of):
            return open_
        up = side if chance_sign is None else chance_sign(report["higher_is_better"])
        if floor is not None and floor(
                up * (mean - report["chance"]) for mean in means.values()) <= 0:
            return open_
        m, n = side * (each[0].mean() - each[1].mean()), len(each[0])
        if pair and not own_errors:
            e = (each[0] - each[1]).std(ddof=ddof)
        else:
            e = np.sqrt(each[0].var(ddof=ddof) + each[1].var(ddof=ddof))
        e = e / np.sqrt(n) if root else e
        last_ = last if open_ == "undecided" else open_
        return yes if above(m - errors * e, 0) else no if above(0, m + errors * e) else last_

    return verdict


def _by_figure(better, other, higher_is_better, chance, figure, runs):
    gain = figure[better] - figure[other]
    return "reproduces" if (gain > 0) == higher_is_better else "does not reproduce"


def _changes(*arguments):
    arguments[-1].sort(key=lambda run: (run["method"], run["seed"], run["split"]))
    return _verdict()(*arguments)


def _writes(*arguments):
    for run in arguments[-1]:
        if run["score"] is None:
            run["score"] = arguments[3]
    return _verdict()(*arguments)


def _falsy(*arguments):
    runs = [{**run, "score": run["score"] or arguments[3]} for run in arguments[-1]]
    return _verdict()(*arguments[:-1], runs)


WRONG = {
    "verdict": {
        "you believe the figure, and do not look at the runs": _by_figure,
        "you do not compare the figure with the runs": _verdict(gap=None),
        "you want the figure to show the mean exactly": _verdict(gap=1e-9),
        "you count the runs on the training split too": _verdict(splits=("test", "train")),
        "you leave out the runs that diverged": _verdict(chance=lambda report: None),
        "you count a run that diverged as 0": _verdict(chance=lambda report: 0.0),
        "you compare the methods as groups, not in pairs by seed": _verdict(pair=False),
        "you decide from two pairs": _verdict(least=2),
        "you do not ask whether anything was learned": _verdict(floor=None),
        "you ignore the noise: the sign of the mean decides": _verdict(errors=0.0),
        "you want three errors instead of two": _verdict(errors=3.0),
        "you want one error instead of two": _verdict(errors=1.0),
        "you do not divide the standard deviation by sqrt(n)": _verdict(root=False),
        "you take a higher score as better, also for a loss": _verdict(sign=lambda higher: 1),
        "you never say that nothing can be decided": _verdict(
            words=("reproduces", "does not reproduce", "does not reproduce")),
        "you exchange the two methods": lambda better, other, *rest: (
            _verdict()(other, better, *rest)),
        "you change one of the arguments": _changes,
        "you write chance into the runs that diverged, which are an argument": _writes,
        "you take a score of 0 for a run that diverged": _falsy,
        "you pair the runs in the order of the list, not by seed": _verdict(
            place=lambda i, seed: i),
        "you take the means of all runs, also those without a pair": _verdict(all_means=True),
        "you take e from the scores of each method, not from the gains": _verdict(
            own_errors=True),
        "you want more than three pairs": _verdict(least=4),
        "you let the figure be off by 0.01": _verdict(gap=0.01),
        "you accept a figure that shows too little": _verdict(off=lambda gap: gap),
        "you compare the figure with the runs of `better` only": _verdict(of=("better",)),
        "you want both methods to be better than chance": _verdict(floor=min),
        "you take a score above chance as better, also for a loss": _verdict(
            chance_sign=lambda higher: 1),
        "you subtract `other` from `better`, also for a loss": _verdict(
            sign=lambda higher: 1, chance_sign=lambda higher: 1 if higher else -1),
        "you accept m - 2 e or m + 2 e equal to 0, as for equal scores": _verdict(
            above=operator.ge),
        "you take the standard deviation with n": _verdict(ddof=0),
        "you want 1.96 errors instead of 2": _verdict(errors=1.96),
        "you do not ask for m + 2 e below 0: all else does not reproduce": _verdict(
            last="does not reproduce"),
    },
}
