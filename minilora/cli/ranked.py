"""A command in several processes, `mpiexec -n 4 minilora finetune ...`: rank 0 alone speaks."""

from __future__ import annotations

import argparse
import os
import sys
import time

from ..backend import current, use
from ..backend.threads import threads
from ..extras import need
from ..training import ranks
from ..training.ranks import MPI, Alone, Group
from ..training.shards import SHARDS
from .parser import OneOf, Parser, integer

FIRST = 3  # seconds in which rank 0 may speak first
_rank = 0  # of this process, once `group` knows it


def add_to(to: Parser) -> None:
    to.set_defaults(ranked=True)
    help = ("parts of a batch, which the ranks of mpiexec share: the result depends on this number "
            f"and not on that of the ranks (under mpiexec {SHARDS}, else a batch is not cut)")
    to.option("--shards", read=integer(1), help=help)
    help = ("under mpiexec: fast sends less for full fine-tuning, and the result's bits depend on "
            "the number of ranks")
    to.option("--reduce", read=OneOf("exact", "fast"), help=help, default="exact")


def begin() -> None:
    """Under mpiexec, start this process again as `python -m mpi4py ...`: there, a rank that raises
    ends the job. Elsewhere the others would wait for it for ever."""
    if ranks.started() is None or "mpi4py.run" in sys.modules:
        return
    need("mpi4py", "several ranks", "mpi")
    words = sys.orig_argv  # python, its options, the script or -m and a module, our arguments
    at = len(words) - len(sys.argv)
    at -= words[at - 1] == "-m"
    os.execv(sys.executable, [*words[:at], "-m", "mpi4py", *words[at:]])


def group(args: argparse.Namespace) -> Group | None:
    """Return the group of mpiexec's processes; without mpiexec, None or what --shards asks for."""
    global _rank
    if ranks.started() is None:
        if args.reduce != "exact":
            raise ValueError(f"--reduce {args.reduce} is for several ranks: start with `mpiexec -n "
                             "4 minilora finetune`")
        return Alone(args.shards) if args.shards else None
    together = MPI(args.shards, args.reduce)
    _rank = together.rank
    if args.threads is None:  # the ranks of a node share its cores
        threads(max(1, threads() // together.node_size))
    if args.backend == "cupy":  # and its GPUs
        use(f"cupy:{together.node_rank % current().devices}", plain=args.plain)
    return together


def rank() -> int:
    """Return the rank of this process; 0 if it is alone."""
    return _rank


def after_rank_0() -> bool:
    """Return whether this is another rank than 0; if so, after some seconds, in which the end of
    rank 0 ends this process, too: what all ranks have to say, rank 0 says alone."""
    if _rank:
        time.sleep(FIRST)
    return _rank > 0
