"""`reproduce`: do the runs of experiments, and write the report about them to a folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, viz
from ..checks import integer, warn
from ..files import owned
from ..files.journal import Journal
from ..jobs.executors import Pool, pool
from ..words import our_words
from . import html, markdown
from .cells import Scale
from .experiment import Experiment, Figure, experiment
from .facts import facts
from .order import NAMES, in_order
from .results import Results
from .running import left_out, needed, run

FULL = Scale()
INDEX = "report.json"
JOURNAL = "runs.jsonl"
PAGES = (INDEX, "README.md", "times.json", "index.html")
KINDS = ("png", "svg")


@our_words
def reproduce(
    names: str | Iterable[str] = "all", out: str | os.PathLike[str] = "report", *,
    scale: Scale = FULL, jobs: int = 1, executor: Pool | None = None,
    journal: Journal | None = None, begins: Callable[[str], Any] = lambda name: None,
) -> dict[str, Any]:
    """Do what the experiments need and `out`/runs.jsonl lacks; write the report; return its facts.

    names     of experiments, or "all"
    scale     the number of seeds; fast: a smoke run, without verdicts
    jobs      number of processes; or `executor`: a `Pool` of anything with PEP 3148's submit
    journal   finished runs to make the report from: nothing is run
    begins    is called with the name of each run

    An interrupted call goes on when it is made again. The report is the same for any number of
    processes. "all" leaves out, with a warning, what needs packages that are not installed. Raises
    ValueError if a file in `out` is not the report's, or lacks a run.
    """
    folder = Path(out)
    chosen = [experiment(name) for name in select(names)]
    check(folder, scale)
    if journal is not None:
        return write(folder, chosen, Results(journal, scale))
    folder.mkdir(exist_ok=True)
    with Journal(folder / JOURNAL) as own, contextlib.ExitStack() as stack:
        if names == "all":
            for name, why in left_out(chosen, Results(own, scale)).items():
                warn(f"reproduce: {name} is left out: {why}")
                chosen = [one for one in chosen if one.name != name]
        if executor is None and integer("reproduce", "jobs", jobs, 1) > 1:
            executor = stack.enter_context(pool("processes", jobs))
        results = run(chosen, own, scale, executor, begins)
        return write(folder, chosen, results)


def select(names: str | Iterable[str]) -> list[str]:
    """Return the names of experiments, in the report's order. Raises ValueError if one is unknown.
    """
    chosen = [names] if isinstance(names, str) else [*names]
    if chosen == ["all"]:
        chosen = [*NAMES]
    for name in chosen:
        experiment(name)
    return in_order([*dict.fromkeys(chosen)])


def check(folder: Path, scale: Scale) -> None:
    """Raise ValueError, with the remedy, if no report of this scale can be written to the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the name of a folder")
    if not folder.parent.is_dir():
        raise ValueError(f"{folder}: {folder.parent} is not a folder: create it first")
    if owned.known(folder) and INDEX not in owned.known(folder):
        raise ValueError(f"{folder} is no report, but minilora wrote it: give another folder")
    pages = [f"{name}.{kind}" for name in NAMES for kind in ("json", "md")]
    owned.check(folder, [*PAGES, *pages])
    before = _read(folder / INDEX)
    if before and (before["smoke"], before["seeds"]) != (scale.fast, scale.seeds):
        kind = "smoke run" if before["smoke"] else "report"
        raise ValueError(
            f"{folder} holds a {kind} with {before['seeds']} seeds: give another folder, or the "
            "same seeds"
        )


def pages_of(
    chosen: Sequence[Experiment], results: Results
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the facts of each experiment's page by name, and the figures' files."""
    pages, files = dict[str, Any](), dict[str, bytes]()
    for one in chosen:
        page, figures = facts(one, results)
        drawn = pictures(figures)
        page["figures"] = [about for _, about in drawn]
        files |= {name: data for pair, _ in drawn for name, data in pair.items()}
        pages[one.name] = page
    return pages, files


def write(folder: Path, chosen: Sequence[Experiment], results: Results) -> dict[str, Any]:
    """Write the pages of these experiments, and an index of them and of the pages that are there.
    """
    pages, files = pages_of(chosen, results)
    sums = owned.known(folder)
    for name in NAMES:  # pages of an earlier command stay
        file = f"{name}.json"
        if name not in pages and file in sums and (page := _read(folder / file)):
            pages[name] = page
            names = [f"{figure['name']}.{kind}" for figure in page["figures"] for kind in KINDS]
            files |= {name: (folder / name).read_bytes() for name in names}
    ordered = [pages[name] for name in in_order([*pages])]
    for page in ordered:
        files[f"{page['name']}.json"] = _json(page)
        files[f"{page['name']}.md"] = markdown.page(page).encode()
    report = {
        "version": __version__, "smoke": results.scale.fast, "seeds": results.scale.seeds,
        "experiments": [
            {"name": page["name"], "title": page["title"],
             "claims": [{key: claim[key] for key in ("says", "source", "verdict", "because")}
                        for claim in page["claims"]]} for page in ordered
        ],
    }
    files |= {
        INDEX: _json(report), "README.md": markdown.index(ordered).encode(),
        "times.json": _json(times(chosen, results, _read(folder / "times.json"))),
        "index.html": html.page(ordered, files).encode(),
    }
    folder.mkdir(exist_ok=True)
    owned.write(folder, files)
    return report


def times(
    chosen: Sequence[Experiment], results: Results, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the seconds of processor time of each experiment's runs. Runs are shared: a run counts
    for each experiment that reads it."""
    seconds = dict((before or {}).get("seconds", {}))
    runs = dict((before or {}).get("runs", {}))
    for one in chosen:
        jobs = {job.key for job in needed(one, results)}
        runs[one.name] = len(jobs)
        seconds[one.name] = round(sum(results.journal[key]["seconds"] for key in jobs), 1)
    return {
        "note": "The times of the runs. Nothing else in the report depends on when and where it "
                "was made, but for what an experiment says that it times.",
        "machine": platform.machine(), "system": platform.system(),
        "numpy": np.__version__, "seconds": seconds, "runs": runs,
    }


def pictures(figures: Sequence[Figure]) -> list[tuple[dict[str, bytes], dict[str, Any]]]:
    """Return each figure's files (PNG and SVG, name -> bytes), and what a page needs to know of it.

    Without matplotlib there are none.
    """
    if not viz.available():
        return []
    plt, result = viz.need(), []
    for figure in figures:
        drawn, files = figure.draw(), dict[str, bytes]()
        page = (drawn[0] if isinstance(drawn, Sequence) else drawn).figure
        for kind in KINDS:
            file = io.BytesIO()
            with plt.rc_context({"svg.hashsalt": figure.name}):
                page.savefig(file, format=kind, dpi=2 * 96,
                             metadata={"Software" if kind == "png" else "Date": None})
            files[f"{figure.name}.{kind}"] = file.getvalue()
        about = {"name": figure.name, "alt": figure.alt, "smallest": viz.smallest(page)}
        result.append((files, about))
        plt.close(page)
    return result


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
