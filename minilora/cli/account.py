"""`minilora account`: the parameters, bytes and operations of a training step."""

from __future__ import annotations

import argparse
from typing import Any

from .. import accounting, lora
from ..accounting.plan import POLICIES, STORED
from ..models.families import SHAPES, smallest
from ..training.optim import AdamW
from ..training.shards import SHARDS
from . import inputs, settings
from .parser import OneOf, Parser, Say, integer
from .streams import Progress

UNITS = """\
trained: parameters, and their share of all. file: what training saves. peak: memory in use.
TFLOP: 10^12 FLOPs of matrix products. depth: calls in the longest chain. (Forward and backward.)
"""  # of the columns of --compare


REDUCE = "exact", "fast"
RING = """\
MB that each of {} ranks sends in a step, and seconds by a model: around a ring, a message of n
bytes takes latency + n / bandwidth. Latency: {}.
exact: --shards {}, the same bits on any number of ranks (an all-gather).
fast: --reduce fast (an all-reduce).
"""


def add_to(top: Parser) -> None:
    to = top.command("account", run)
    help = f"a known model to count for, instead of --base: {', '.join(SHAPES)}"
    to.argument("shape", help, read=OneOf(*SHAPES, metavar="shape"))
    inputs.add_base(to)
    inputs.add_sizes(to, "; with a shape: 1", "; with a shape: its maximum")
    settings.add_to(to, "with a shape: how to train it")
    to.flag("--compare", help="with a shape: compare the methods of the paper's tables 2 to 4")
    help = ("with a shape: its precision; half base: frozen matrices in float16; mixed: all in "
            "float16, with float32 copies of the trained parameters")
    ranks = "with a shape: plan what so many ranks send in a step, instead of memory and work"
    to.option("--ranks", read=integer(2, 10**6), help=ranks)
    to.option("--policy", read=OneOf(*POLICIES), help=help, default="float32")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Count the parameters, bytes and operations of a training step."""
    given = settings.given(args)
    if args.shape:
        return _of_shape(args, given, say)
    examples = {"method": "--method full", "policy": "--policy mixed", "compare": "--compare",
                "ranks": "--ranks 8"} | {
        name: f"--method {settings.having(name)[0]} --{name} 4"
        for name in settings.READERS if name not in settings.DEFAULTS["lora"]
    }
    asked = given | {"method": args.method, "compare": args.compare,
                     "ranks": args.ranks, "policy": args.policy != "float32"}
    for name, example in examples.items():
        if asked.get(name) not in (None, False):
            raise ValueError(f"--{name} needs a shape: account gpt2 {example}")
    result: dict[str, Any] = {}
    for name in ("full", "lora"):
        model = inputs.base_model(args).train()
        batch, tokens = inputs.sizes(args, model)
        inputs.check_targets(model, given.get("targets", ()))
        model.requires_grad_(True).recompute = args.recompute
        if name == "lora":
            lora.attach(
                model, lora.LoRAConfig(**given), rng=args.seed, base_dtype=args.base_dtype
            )
        count = accounting.count(model)
        ledger = accounting.ledger(model, AdamW(model.trainable_parameters()), batch, tokens)
        say(f"{name}: {count.trainable:,} of {count.total:,} parameters train "
            f"({count.percent:.3f} %)\n{ledger}\n")
        result[name] = {
            "trainable": count.trainable, "total": count.total, "bytes": ledger.as_dict(),
            "activations": ledger.activations,
        }
    return result


def _of_shape(args: argparse.Namespace, given: dict[str, Any], say: Say) -> dict[str, Any]:
    """Plan a step of a shape of any size: only shapes are computed, no numbers."""
    if args.base_dtype:
        policy = next(name for name, dtype in STORED.items() if dtype == args.base_dtype)
        raise ValueError(f"account {args.shape} has no --base-dtype: give --policy '{policy}'")
    shape = SHAPES[args.shape]
    if args.ranks:
        return _sent(args, given, say)
    inputs.check_window(args.window, args.shape, shape.n_positions)
    step: dict[str, Any] = {
        "policy": args.policy, "recompute": args.recompute, "batch": args.batch or 1,
        "tokens": args.window, "plain": args.plain, "device": args.backend.partition(":")[0],
    }
    if args.compare:
        if useless := ["method"] * bool(args.method) + [*given]:
            raise ValueError(f"--compare has its own methods and sizes: leave out --{useless[0]}")
        return _compare(args.shape, step, say)
    method = settings.method(args)
    inputs.check_targets(smallest(shape), given.get("targets", ()))
    plan = accounting.plan(args.shape, method=method, **step)
    say(str(plan))
    return plan.as_dict()


def _compare(shape: str, step: dict[str, Any], say: Say) -> dict[str, Any]:
    """Plan the methods of tables 2 to 4, all with as many tokens as the longest prefix leaves."""
    result: dict[str, Any] = {}
    prefixes = {accounting.label(method): getattr(method, "lp", 0) + getattr(method, "li", 0)
                for method in accounting.COMPARED}
    longest, most = max(prefixes, key=prefixes.__getitem__), SHAPES[shape].n_positions
    tokens = step["tokens"] = step["tokens"] or most - prefixes[longest]
    say(f"{shape}: {step['batch']} × {tokens:,} tokens, AdamW, {step['policy']}")
    if tokens == most - prefixes[longest]:
        say(f"{tokens:,} tokens in every row: it reads {most:,}, and {longest} takes "
            f"{prefixes[longest]}")
    say(UNITS)
    say(f"{'':<44}{'trained':>18}{'%':>9}{'file, MB':>13}{'peak, GB':>11}{'TFLOP':>11}{'depth':>8}")
    with Progress(len(accounting.COMPARED)) as begins:
        for method in accounting.COMPARED:
            begins(label := accounting.label(method))
            try:
                plan = accounting.plan(shape, method=method, **step)
            except ValueError as error:  # full fine-tuning has no frozen base to store in half
                line = str(error)
            else:
                result[label], line = plan.as_dict(), _row(plan)
            begins.clear()
            say(f"{label:<44}{line}")
    return result


def _row(plan: accounting.Plan) -> str:
    costs = plan.forward, plan.backward
    return (
        f"{plan.count.trainable:>18,}{plan.count.percent:>9.4f}"
        f"{plan.checkpoint / 1e6:>13,.1f}{plan.bytes['peak'] / 1e9:>11,.2f}"
        f"{sum(cost.products for cost in costs) / 1e12:>11,.3f}"
        f"{sum(cost.depth for cost in costs):>8,}"
    )


def _sent(args: argparse.Namespace, given: dict[str, Any], say: Say) -> dict[str, Any]:
    """Plan what ranks send: for the method that is given, or for those of tables 2 to 4."""
    used = {"batch": args.batch, "window": args.window, "recompute": args.recompute,
            "compare": args.compare, "policy": args.policy != "float32"}
    if useless := [name for name, value in used.items() if value]:
        raise ValueError(f"--ranks plans what is sent, for which --{useless[0]} changes nothing: "
                         "leave it out")
    chosen = (settings.method(args),) if args.method or given else accounting.COMPARED
    inputs.check_targets(smallest(SHAPES[args.shape]), given.get("targets", ()))
    result: dict[str, Any] = {}
    nets = [net.name for net in accounting.NETWORKS]
    late = (f"{net.latency * 1e6:g} µs at {net.name}" for net in accounting.NETWORKS)
    say(RING.format(f"{args.ranks:,}", ", ".join(late), max(SHARDS, args.ranks)))
    head = (f"{how + ', MB':>16}" + "".join(f"{net:>14}" for net in nets) for how in REDUCE)
    say(f"{'':<44}{'trained':>18}" + "".join(head))
    for method in chosen:
        plans = {how: accounting.traffic(args.shape, method, args.ranks, reduce=how)
                 for how in REDUCE}
        result[label := accounting.label(method)] = {how: vars(p) for how, p in plans.items()}
        say(f"{label:<44}{plans['fast'].trained:>18,}" + "".join(
            f"{plan.sent / 1e6:>16,.3f}" + "".join(f"{plan.seconds[net]:>14,.4f}" for net in nets)
            for plan in plans.values()))
    return result
