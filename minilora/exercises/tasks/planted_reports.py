"""Reports with a known verdict, for exercise 15. Each kind has one thing that a reader may miss.

A kind is a function (rng, n, higher) -> (report, verdict): with about n pairs of runs, and a score
that is better if it is higher, or a loss.
"""
# mypy: ignore-errors

import numpy as np

NAMES = ("LoRA", "BitFit", "Adapter-H", "PreLayer", "full")


class Report(dict):
    """The arguments of verdict by name, with a short repr: Hypothesis makes one of each case."""

    def __repr__(self):
        return f"<a report with {len(self['runs'])} runs>"


def planted(rng, gains, higher=True, level=0.75, chance=0.5):
    """Return a report whose pairs have these gains: what a careful reader would believe.

    The scores of a seed move together by far more than the gains: unpaired, nothing shows.
    """
    better, other, third = (str(name) for name in rng.permutation(NAMES)[:3])
    sign, n = (1 if higher else -1), len(gains)
    seeds = [int(s) for s in rng.choice(1000, n, replace=False)]
    shared = rng.normal(0, 0.04, n)
    low = level + sign * (shared - shared.mean()) if n else shared
    scores = {better: low + sign * np.array(gains), other: low}
    runs = [{"method": name, "seed": seed, "split": "test", "score": float(score)}
            for name, values in scores.items() for seed, score in zip(seeds, values)]
    runs += [{"method": third, "seed": seed, "split": "test", "score": float(rng.uniform(0.5, 1))}
             for seed in seeds]
    figure = {name: float(np.mean(values)) if n else 0.0 for name, values in scores.items()}
    return Report(better=better, other=other, higher_is_better=higher, chance=chance,
                  figure=figure | {third: 0.9},
                  runs=[runs[i] for i in rng.permutation(len(runs))])


def _figure(report):
    """Draw the figure of a report again, from its runs."""
    names = report["better"], report["other"]
    own = {name: {run["seed"]: report["chance"] if run["score"] is None else run["score"]
                  for run in report["runs"] if run["method"] == name and run["split"] == "test"}
           for name in names}
    seeds = own[names[0]].keys() & own[names[1]].keys()
    for name in names:
        report["figure"][name] = float(np.mean([own[name][seed] for seed in seeds]))


def _clear(rng, n, sign):
    """Gains that are all of one sign, with some spread."""
    return sign * rng.uniform(0.03, 0.04, n)


def _spread(rng, n):
    """Gains of both signs, whose mean is within its error."""
    gains = rng.normal(0, 0.05, n)
    return gains - gains.mean() + 0.3 * gains.std(ddof=1) / n**0.5


def _flip(rng, report):
    """Exchange the names of the claim: what reproduced does not, and the reverse."""
    report["better"], report["other"] = report["other"], report["better"]


def clear(rng, n, higher):
    report = planted(rng, _clear(rng, n, 1), higher, 0.75 if higher else 0.3)
    return report, "reproduces"


def against(rng, n, higher):
    report, _ = clear(rng, n, higher)
    _flip(rng, report)
    return report, "does not reproduce"


def within_noise(rng, n, higher):
    return planted(rng, _spread(rng, n), higher, 0.75 if higher else 0.3), "undecided"


def _errors(rng, n, higher, count):
    """A report with a mean gain of so many errors."""
    gains = rng.normal(0, 0.02, n)
    error = gains.std(ddof=1) / n**0.5
    return planted(rng, gains - gains.mean() + count * error, higher, 0.75 if higher else 0.3)


def equal(rng, n, higher):
    """The methods have the same scores: the gain and its error are 0."""
    return planted(rng, np.zeros(n), higher, 0.75 if higher else 0.3), "undecided"


def same_gain(rng, n, higher):
    """Each pair has the same gain: its error is 0."""
    report, _ = equal(rng, n, higher)
    for role, gain in (("better", 1 if higher else -1), ("other", 0)):
        for run in _runs(report, role):  # these numbers are exact in binary
            run["score"] = round(64 * run["score"]) / 64 + gain / 16
    _figure(report)
    if rng.random() < 0.5:
        return report, "reproduces"
    _flip(rng, report)
    return report, "does not reproduce"


def barely(rng, n, higher):
    """A mean of 1.5 errors: above 0 or below, but not by two."""
    return _errors(rng, n, higher, rng.choice([-1.5, 1.5])), "undecided"


def well_beyond(rng, n, higher):
    """A mean of 3.2 errors: enough, but not without the division by sqrt(n)."""
    return _errors(rng, n, higher, 3.2), "reproduces"


def below_two(rng, n, higher):
    """A mean of less than two errors: with n in place of n - 1, or with 1.96, it is enough."""
    return _errors(rng, n, higher, rng.choice([-1.98, -1.9, 1.9, 1.98])), "undecided"


def beyond(rng, n, higher):
    return _errors(rng, n, higher, rng.choice([2.02, 2.5])), "reproduces"


def beyond_below(rng, n, higher):
    return _errors(rng, n, higher, rng.choice([-2.02, -2.5])), "does not reproduce"


def too_few(rng, n, higher):
    report = planted(rng, _clear(rng, int(rng.integers(0, 3)), 1), higher)
    return report, "undecided"


def just_three(rng, n, higher):
    return clear(rng, 3, higher)


def unpaired(rng, n, higher):
    """Many runs, but only two seeds that both methods have."""
    report = planted(rng, _clear(rng, n + 2, 1), higher)
    seeds = sorted({run["seed"] for run in report["runs"]})
    gone = {seed: (report["better"], report["other"])[i % 2] for i, seed in enumerate(seeds[2:])}
    report["runs"] = [run for run in report["runs"] if gone.get(run["seed"]) != run["method"]]
    _figure(report)
    return report, "undecided"


def extra_seed(rng, n, higher):
    """A seed that only the better method has, with a very bad score."""
    report, word = clear(rng, n, higher)
    report["runs"].append({"method": report["better"], "seed": 5000, "split": "test",
                           "score": report["chance"] - (9.0 if higher else -9.0)})
    return report, word


def trained_on(rng, n, higher):
    """The runs on the training split say the opposite."""
    report, word = clear(rng, n, higher)
    for run in [*report["runs"]]:
        good = run["method"] == report["other"]
        score = report["chance"] + (0.4 if higher else -0.4) * (1 if good else 0.1)
        report["runs"].append({**run, "split": "train", "score": score})
    return report, word


def diverged(rng, n, higher):
    """The better method diverges in every seed."""
    report, _ = clear(rng, n, higher)
    for run in _runs(report, "better"):
        run["score"] = None
    _figure(report)
    return report, "does not reproduce"


def one_diverged(rng, n, higher):
    """The better method diverges in one seed: with it, the gains are of both signs."""
    report, _ = clear(rng, n - 1, higher)
    _runs(report, "better")[0]["score"] = None
    _figure(report)
    return report, "undecided"


def figure_without_diverged(rng, n, higher):
    """The figure leaves out a seed in which the better method diverged."""
    report, _ = clear(rng, n + 1, higher)
    gone = _runs(report, "better")[0]
    for role in ("better", "other"):
        report["figure"][report[role]] = float(np.mean(
            [run["score"] for run in _runs(report, role) if run["seed"] != gone["seed"]]))
    gone["score"] = None
    return report, "undecided"


def figure_with_zeros(rng, n, higher):
    """The figure shows 0 for a method that diverged in every seed."""
    report, _ = clear(rng, n, higher)
    role = "other" if higher else "better"
    for run in _runs(report, role):
        run["score"] = None
    report["figure"][report[role]] = 0.0
    return report, "undecided"


def zeros(rng, n, higher):
    """The worse accuracy, or the better loss, is 0 in every seed: no run diverged."""
    report, word = clear(rng, n, higher)
    for run in _runs(report, "other" if higher else "better"):
        run["score"] = 0.0
    _figure(report)
    return report, word


def _runs(report, role):
    """The runs of the better or the other method."""
    return [run for run in report["runs"] if run["method"] == report[role]]


def wrong_figure(rng, n, higher):
    """The figure does not show the runs' mean of one method."""
    report, _ = clear(rng, n, higher)
    name = report[str(rng.choice(["better", "other"]))]
    report["figure"][name] += rng.choice([-1, 1]) * rng.uniform(0.0015, 0.008)
    return report, "undecided"


def exchanged_figure(rng, n, higher):
    """The figure shows the mean of each method for the other one."""
    report, _ = clear(rng, n, higher)
    figure, better, other = report["figure"], report["better"], report["other"]
    figure[better], figure[other] = figure[other], figure[better]
    return report, "undecided"


def nearly_right_figure(rng, n, higher):
    """The figure is off by less than 0.001: it was rounded."""
    report, word = clear(rng, n, higher)
    for name in (report["better"], report["other"]):
        report["figure"][name] += rng.choice([-1, 1]) * rng.uniform(0.0006, 0.0009)
    return report, word


def below_chance(rng, n, higher):
    """Both methods are worse than a blind guess."""
    level = 0.3 if higher else 0.75
    return planted(rng, _clear(rng, n, 1), higher, level), "undecided"


def one_above_chance(rng, n, higher):
    """Only the better method is better than a blind guess."""
    level = 0.47 if higher else 0.53
    gains = rng.uniform(0.15, 0.2, n)
    return planted(rng, gains, higher, level), "reproduces"


def at_chance(rng, n, higher):
    """The better method is just as good as a blind guess, because each run diverged."""
    report, word = below_chance(rng, n, higher)
    for run in _runs(report, "better"):
        run["score"] = None
    _figure(report)
    return report, word
