"""What is trained: a cell of a table, and the run that a rate and a seed make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.tasks import TASKS
from ..jobs.driver import Job

# The learning rates to choose from, for every method: two in each factor of ten.
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
START = (1e-3, 3e-3, 1e-2)  # the first rates that are tried


@dataclass(frozen=True)
class Scale:
    """How much is run: the seeds, and the share of steps and examples.

    fast: a smoke run of a few steps at one rate. It shows that all works, and decides nothing.
    """

    seeds: int = 3
    fast: bool = False

    def rates(self, rates: tuple[float, ...]) -> tuple[float, ...]:
        return rates[len(rates) // 2 :][:1] if self.fast else rates


@dataclass(frozen=True)
class Cell:
    """A method with its settings on a task: one line of a table.

    settings    of the method, as methods.apply takes them
    examples    number of training examples; None: all that the task has
    steps       number of updates; None: the task's
    variation   "" or a name in variations.VARIATIONS: what else is different
    """

    task: str
    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    examples: int | None = None
    steps: int | None = None
    variation: str = ""

    def config(self, scale: Scale) -> dict[str, Any]:
        """Return the settings that all runs of the cell share."""
        task = TASKS[self.task]
        steps = self.steps or task.steps
        sizes = {part: min(task.sizes[part], 24 if scale.fast else 10**9)
                 for part in ("validation", "test")}
        return {
            "task": self.task, "method": self.method, "settings": self._settings(),
            "examples": self.examples or task.sizes["train"],
            "steps": min(steps, 8) if scale.fast else steps, "batch": task.batch_size,
            "variation": self.variation, **sizes,
        }

    def _settings(self) -> dict[str, Any]:
        """Return the settings; those that are patterns, such as rank_pattern, as mappings again."""
        return {name: dict(value) if name.endswith("_pattern") else value
                for name, value in self.settings}

    def run(self, rate: float, seed: int, scale: Scale) -> Job:
        """Return the job that trains this cell with a rate and a seed."""
        rate, seed = (0.0, 0) if self.untrained else (rate, seed)
        config = self.config(scale) | {"rate": rate, "seed": seed}
        return Job("train", config, f"{self.task}, {self.label()}, rate {rate:g}, seed {seed}")

    @property
    def untrained(self) -> bool:
        """Is it the base itself, for which there is no rate to choose?"""
        return self.method == "base"

    @property
    def lora(self) -> bool:
        return "lora" in self.method or self.method in ("dora", "pissa")

    def label(self) -> str:
        """Return a short name for tables and figures: "LoRA r = 4, q v"."""
        settings = dict(self.settings)
        words = NAMES.get(self.method, self.method)
        if "r" in settings:
            words += f" r = {settings['r']}"
        if "targets" in settings:
            words += f", {' '.join(settings['targets'])}"
        if "lp" in settings:
            words += f", {settings['lp']} token" + "s" * (settings["lp"] > 1)
        return words + f" ({self.variation})" * bool(self.variation)

    def varied(self, variation: str) -> Cell:
        return replace(self, variation=variation)

    def on(self, task: str) -> Cell:
        """Return the same method and settings on a task: cell("", "full").on("mini-sql")."""
        return replace(self, task=task)


NAMES: Mapping[str, str] = {
    "base": "the base", "probe": "the head alone", "full": "full fine-tuning", "fttop2": "FT top 2",
    "bitfit": "BitFit", "adapter-h": "Adapter-H", "adapter-l": "Adapter-L",
    "adapter-p": "Adapter-P", "adapter-d": "Adapter-D", "preembed": "PreEmbed",
    "prelayer": "PreLayer", "lora": "LoRA", "rslora": "rsLoRA", "lora+": "LoRA+",
    "pissa": "PiSSA", "dora": "DoRA",
}
ALPHA = 4.0  # the first rank that is tried is 4; alpha stays there for every rank (§4.1)


def cell(task: str, method: str, *, examples: int | None = None, steps: int | None = None,
         variation: str = "", **settings: Any) -> Cell:
    """Return a cell: cell("mini-e2e", "lora", r=4). LoRA and its variants get alpha = ALPHA."""
    if Cell(task, method).lora:
        settings = {"alpha": ALPHA, "targets": ("q", "v")} | settings
    fixed = {name: _fixed(value) for name, value in settings.items()}
    return Cell(task, method, tuple(sorted(fixed.items())), examples, steps, variation)


def chance(task: str, scale: Scale) -> Job:
    """Return the job that scores answers which are drawn from the training examples, blindly."""
    test = cell(task, "base").config(scale)["test"]
    return Job("chance", {"task": task, "test": test}, f"{task}, chance")


def _fixed(value: Any) -> Any:
    """Return a setting that can be hashed: a list as a tuple, a mapping as pairs."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list | tuple) else value
