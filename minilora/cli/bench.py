"""`minilora bench`: time a training step, beside other engines or on a GPU."""

from __future__ import annotations

import argparse
from typing import Any

from ..bench.engines import ENGINES, SHAPES, sizes
from ..bench.turns import bench
from ..files import atomic
from . import inputs
from .parser import Parser, Say, integer, names, some_names, to_write
from .streams import Progress


def add_to(top: Parser) -> None:
    to = top.command("bench", run)
    help = f"some of {', '.join(SHAPES)}; classroom:4 has a batch of 4"
    to.option("--shapes", read=names, help=help, default="classroom,long,gpt2-small")
    help = f"some of {', '.join(ENGINES)} (all that are installed)"
    to.option("--engines", read=some_names, help=help)
    to.option("--rounds", read=integer(1), help="turns of each engine, three steps in each (10)")
    to.flag("--no-whole", help="skip the time of an entire process (start, 50 steps, exit)")
    to.option("--chart", read=to_write(".png", ".svg", ".pdf"),
              help="draw time and memory in this .png, .svg or .pdf")
    to.flag("--force", help="replace the chart, if it is there")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Time a training step of several engines, on 2 threads (see --threads)."""
    for shape in args.shapes:
        sizes(shape)
    for name in args.engines or ():
        if name not in ENGINES:
            raise ValueError(f"--engines {name}: choose some of {', '.join(ENGINES)}")
    if not args.shapes:
        raise ValueError("--shapes '' leaves nothing to measure: give one")
    if args.chart:
        from .. import viz

        inputs.check_new(args.chart, args.force, "give another name, or --force")

        viz.need()  # a missing library is reported before the work
    rounds, whole = args.rounds or 10, not args.no_whole
    with Progress(len(args.shapes) * (rounds + 3 * whole)) as begins:

        def clear_and_say(line: str) -> None:
            begins.clear()
            say(line)

        result = bench(
            args.shapes, args.engines, rounds=rounds, threads=args.threads or 2, whole=whole,
            device=args.backend, say=clear_and_say, begins=begins,
        )
    if args.chart:
        with atomic.writing(args.chart) as file:
            viz.bench_page(result).savefig(file, format=args.chart.suffix[1:], dpi=150)
        say(f"\nthe chart is in {args.chart}")
    return result
