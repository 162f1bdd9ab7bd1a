"""`minilora info`: what is installed and built in, or what is in a file."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

import numpy as np

from .. import __version__, backend, data
from ..backend import gpu
from ..backend.threads import threads
from ..models.pretrained import BASES
from .contents import contents
from .parser import Parser, Say

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def add_to(top: Parser) -> None:
    to = top.command("info", run)
    to.argument("file", "a model, an adapter or an interrupted run, to see what is in it (.npz)")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Print versions, threads, devices and what is built in; with a file: what is in it."""
    facts = contents(args.file) if args.file else _installation()
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        say(f"{name.replace('_', ' '):<{width}}{_text(value)}")
    return facts


def _installation() -> dict[str, Any]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    limits = {name: os.environ[name] for name in THREADS if name in os.environ}
    return {
        "minilora": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}", "cores": os.cpu_count(),
        "threads": limits or f"{threads()}",
        "backend": backend.current().describe(),
        "devices": gpu.devices(),
        "bases": list(BASES), "texts": list(data.TEXTS),
    }


def _text(value: Any) -> str:
    """A value in one line: "4,096", "q, v", "r 8, alpha 16"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if type(value) is int:
        return f"{value:,}"
    return str(value) if str(value).isprintable() else repr(value)
