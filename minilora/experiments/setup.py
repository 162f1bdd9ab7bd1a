"""How an experiment was run, from its own settings: the models, the chosen rates, and the answers
to what people ask who try to reproduce a paper."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from .. import accounting
from ..data.tasks import TASKS, Task
from ..docstrings import docstring
from ..jobs.driver import Job
from ..models.pretrained import load_base
from ..training.optim import AdamW
from . import training
from .cells import ALPHA, GRID, START, Cell
from .experiment import Experiment
from .kinds import function_of
from .results import Results

EDGE = "at the edge of the grid: a rate beyond it may be better"


def cells_of(experiment: Experiment) -> list[Cell]:
    """Return the cells that an experiment trains, each once."""
    every = (*experiment.cells, *(cell for cell, _ in experiment.every_rate))
    return list(dict.fromkeys(every))


def tasks_of(experiment: Experiment, results: Results) -> list[Task]:
    """Return the tasks of an experiment's cells and jobs, in order."""
    names = [cell.task for cell in cells_of(experiment)]
    names += [job.config.get("task", "") for job in experiment.jobs(results)]
    return [TASKS[name] for name in dict.fromkeys(names) if name in TASKS]


@functools.cache
def size_of(base: str) -> dict[str, Any]:
    """Return the size of a built-in base."""
    model = load_base(base)
    return {
        "base": base, "parameters": accounting.count(model).total, "layers": len(model.blocks),
        "width": model.config.d_model,
    }


def models(experiment: Experiment, results: Results) -> list[dict[str, Any]]:
    """Return each task with the data set that it stands for and the size of its base."""
    return [
        {"task": task.name, "stands_for": task.stands_for, "about": first_sentence(task),
         **size_of(task.base)}
        for task in tasks_of(experiment, results)
    ]


def first_sentence(thing: Any) -> str:
    """Return the first line of a docstring; of a class that is not its own, nothing."""
    kind = type(thing)
    return docstring(kind).partition("\n")[0] if "__doc__" in vars(kind) else ""


def rates(experiment: Experiment, results: Results) -> list[dict[str, Any]]:
    """Return for each trained cell the rates that were tried, their validation scores (None: the
    run diverged) and the one that was chosen, with a warning if it is the grid's first or last."""
    rows = []
    for cell in experiment.cells:
        if cell.untrained:
            continue
        metric, chosen = TASKS[cell.task].metrics[0], results.rate(cell)
        tried = {
            f"{rate:g}": None if "diverged" in run else run["validation"][metric]
            for rate, run in sorted(results.tried(cell).items())
        }
        rows.append({
            "task": cell.task, "cell": cell.label(), "metric": metric, "tried": tried,
            "rate": chosen, "warning": EDGE if chosen in (GRID[0], GRID[-1]) else "",
            **{name: value for name in ("examples", "steps") if (value := getattr(cell, name))},
        })
    return rows


def questions(experiment: Experiment, results: Results) -> list[tuple[str, str]]:
    """Return questions and answers: settings, step, split, seeds, metric, lengths, head."""
    configs = _configs(experiment, results)
    others = [job for job in experiment.jobs(results) if job.kind != "train"]
    kinds = list({job.kind: job for job in others}.values())
    measured = [("What else was measured, and how?" if configs else "What was measured, and how?",
                 " ".join(_measured(job) for job in kinds))] if kinds else []
    if not configs:
        return measured
    tasks = tasks_of(experiment, results)
    return [
        ("Which hyperparameters, and where are they from?", _settings(experiment, results)),
        ("The last step, or the best?",
         f"The last: each run has a fixed number of steps ({_values(configs, 'steps')}), and is "
         "scored once, after them. No step is chosen."),
        ("Validation or test?", _parts(experiment, configs)),
        ("Which seeds?",
         f"{', '.join(map(str, range(results.scale.seeds)))}. A seed sets the adapter's random "
         "start, the order of the batches and a new head. The base and the examples are the same "
         "for all. The rate is chosen with seed 0; the spread is over the seeds."),
        ("Which metric exactly?", " ".join(_metric(task) for task in tasks)),
        ("Which lengths?", " ".join(_lengths(task) for task in tasks)),
        ("Where is the head, and is it counted?", " ".join(_heads(tasks))),
        *measured,
    ]


def _parts(experiment: Experiment, configs: Sequence[Mapping[str, Any]]) -> str:
    validation, test = _values(configs, "validation"), _values(configs, "test")
    chosen = f"Each cell's rate is chosen on {validation} validation examples."
    claims = "All scores in the claims and tables are"
    if experiment.on_validation:
        chosen += " The claims compare the losses on these examples, with all seeds."
        claims = "Other scores in the tables are"
    return (f"{chosen} {claims} on {test} test examples, which nothing was chosen on. No input is "
            "in two parts.")


def _configs(experiment: Experiment, results: Results) -> list[Mapping[str, Any]]:
    """Return the configurations of all that an experiment trains."""
    cells = [cell for cell in cells_of(experiment) if not cell.untrained]
    jobs = [job.config for job in experiment.jobs(results) if job.kind == "train"]
    return [*(cell.config(results.scale) for cell in cells), *jobs]


def _measured(job: Job) -> str:
    """Return what a job of a kind does, from its function, with the settings of this one."""
    how = docstring(function_of(job.kind)).partition("\n")[0]
    settings = ", ".join(f"{name} {value}" for name, value in job.config.items())
    return how + f" Here, for example: {settings}." * bool(settings)


def _values(configs: Sequence[Mapping[str, Any]], name: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({config[name] for config in configs}))


def _default(name: str) -> Any:
    return inspect.signature(AdamW.__init__).parameters[name].default


def _settings(experiment: Experiment, results: Results) -> str:
    configs = _configs(experiment, results)
    beta1, beta2 = _default("betas")
    words = [
        f"AdamW (betas {beta1} and {beta2}, eps {_default('eps'):g}) with decoupled weight decay "
        f"{training.DECAY}, a linear schedule with a warm-up over {100 * training.WARMUP:g} % of "
        f"the steps, and gradients cut to norm {training.CLIP:g}; batches of "
        f"{_values(configs, 'batch')}, {_values(configs, 'examples')} training examples. AdamW and "
        "the linear schedule are the paper's; the numbers are ours, one setting for all methods."
    ]
    if results.scale.fast:
        words.append(f"A smoke run tries one rate, {START[len(START) // 2]:g}.")
    elif experiment.cells:
        words.append(
            "Each cell's rate is the best of a grid from "
            f"{GRID[0]:g} to {GRID[-1]:g}, two in each factor of ten: it tries "
            f"{', '.join(f'{rate:g}' for rate in START)} first, then goes on while the best is "
            "the outermost."
        )
    else:
        tried = sorted({config["rate"] for config in configs if "rate" in config})
        words.append(f"Rates: {', '.join(f'{rate:.2g}' for rate in tried)}.")
    if alphas := sorted({c["settings"]["alpha"] for c in configs if "alpha" in c["settings"]}):
        rule = "the first rank that is tried, and stays there for every rank (§4.1)"
        words.append(
            f"alpha is {ALPHA:g}: {rule}." if alphas == [ALPHA] else
            f"alpha is {', '.join(f'{alpha:g}' for alpha in alphas)}; {ALPHA:g} is {rule}."
        )
    return " ".join(words)


def _metric(task: Task) -> str:
    main, *others = task.metrics
    how = docstring(type(task).score).partition("\n")[0] if "score" in vars(type(task)) else ""
    also = f", with {', '.join(others)} beside it" * bool(others)
    return f"{task.name}: {main}{also}." + f" {how}" * bool(how)


@functools.cache
def _lengths(task: Task) -> str:
    longest = max(len(task.words.encode(x.inputs)) for x in task.examples("test"))
    said = f"{task.name}: inputs of up to {longest} tokens, each a word"
    return f"{said}; answers of up to {task.longest}, decoded greedily." if task.longest else (
        f"{said}, padded to the longest of the batch."
    )


def _heads(tasks: Sequence[Task]) -> list[str]:
    decoders = [task.name for task in tasks if not task.labels]
    encoders = [task.name for task in tasks if task.labels]
    words = []
    if encoders:
        words.append(
            f"{', '.join(encoders)}: a new head stands on the encoder. Every method trains it in "
            "full, and no number of trained parameters counts it, as in the paper."
        )
    if decoders:
        words.append(f"{', '.join(decoders)}: there is no new head; the answer is the base's text.")
    return words
