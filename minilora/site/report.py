"""The report of the experiments as a page of the site, from the runs that come with the package."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from ..experiments import html
from ..experiments.cells import Scale
from ..experiments.experiment import experiment
from ..experiments.order import NAMES, in_order
from ..experiments.reporting import pages_of
from ..experiments.results import Results
from ..experiments.shipped import complete, shipped
from . import cache


def report(say: Callable[[str], None]) -> dict[str, Any]:
    """Return the page's body, a sentence for the cover, and the figures (name -> PNG in base64).

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
    """Return the same, of the experiments whose runs are all there."""
    chosen = [one for name in in_order([*NAMES]) if complete(one := experiment(name), results)]
    pages, files = pages_of(chosen, results)
    body = html.body([*pages.values()], files, lambda name: f"figures/report-{name}.png")
    pictures = {name: base64.b64encode(data).decode() for name, data in files.items()
                if name.endswith(".png")}
    return {"body": body, "claims": sum(len(page["claims"]) for page in pages.values()),
            "experiments": len(pages), "pictures": pictures}
