"""The report of the experiments as a page of the site, from the runs that come with the package."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..experiments import html
from ..experiments.cells import Scale
from ..experiments.experiment import experiment
from ..experiments.order import NAMES, in_order
from ..experiments.paper import latency
from ..experiments.reporting import pages_of
from ..experiments.results import Results
from ..experiments.shipped import complete, shipped
from . import cache


def report(say: Callable[[str], None]) -> dict[str, Any]:
    """Return the page's body, its figures (name -> PNG in base64), and what the cover says of it.

    They are made from the shipped runs, or come from the cache.
    """
    name = f"report-{cache.key('')}.json"
    text = cache.get(name)
    if text is None:
        say("the report: drawing its figures")
        text = json.dumps(_make(Results(shipped(), Scale())))
        cache.put(name, text)
    result: dict[str, Any] = json.loads(text)
    return result


def _make(results: Results) -> dict[str, Any]:
    """Return the same, of the experiments whose runs are all there.

    pages: of the paper's experiments, name -> its title, and the verdict and reason of each claim
    verdicts: of the paper's claims, verdict -> how many
    times: form of a model -> least and greatest ratio of its time to the base's (none: not there)
    """
    chosen = [one for name in in_order([*NAMES]) if complete(one := experiment(name), results)]
    pages, files = pages_of(chosen, results)
    body = html.body([*pages.values()], files, lambda name: f"figures/report-{name}.png")
    pictures = {name: base64.b64encode(data).decode() for name, data in files.items()
                if name.endswith(".png")}
    of_paper = [page for name, page in pages.items() if NAMES[name] == "paper"]
    return {
        "body": body, "claims": sum(len(page["claims"]) for page in pages.values()),
        "experiments": len(pages), "pictures": pictures,
        "verdicts": Counter(claim["verdict"] for page in of_paper for claim in page["claims"]),
        "pages": {
            page["name"]: {"title": page["title"], "claims": [
                {key: claim[key] for key in ("verdict", "because")} for claim in page["claims"]]}
            for page in of_paper
        },
        "times": _times(results) if "latency" in pages else {},
    }


def _times(results: Results) -> dict[str, list[float]]:
    """Return form -> the least and the greatest ratio of its time to the base's, of all settings.

    Each is a ratio of medians over blocks, which took turns.
    """
    ratios: dict[str, list[float]] = {}
    for shape, at in latency.every():
        times = latency.times(results, shape, at)
        for form, blocks in times.items():
            ratios.setdefault(form, []).append(float(np.median(blocks) / np.median(times["base"])))
    return {form: [min(all_of), max(all_of)] for form, all_of in ratios.items()}
