"""`minilora info`: versions, threads, devices, and what is built in."""

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
from .parser import Parser, Say

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def add_to(top: Parser) -> None:
    top.command("info", run)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Print versions, BLAS, threads, devices, built-in bases and texts."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    limits = {name: os.environ[name] for name in THREADS if name in os.environ}
    facts = {
        "minilora": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}", "cores": os.cpu_count(),
        "threads": limits or f"{threads()}",
        "backend": backend.current().describe(),
        "devices": gpu.devices(),
        "bases": list(BASES), "texts": list(data.TEXTS),
    }
    for name, value in facts.items():
        say(f"{name:<10}{', '.join(value) if isinstance(value, list) else value}")
    return facts
