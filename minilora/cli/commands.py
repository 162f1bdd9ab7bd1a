"""The other commands: each takes the options and `say`, and returns what --json prints."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from .. import __version__, accounting, backend, data, lora, methods
from ..backend import gpu
from ..backend.threads import threads
from ..bench.engines import ENGINES, sizes
from ..bench.turns import bench
from ..demo import demo
from ..files import atomic
from ..generate import generate
from ..models.families import SHAPES, smallest
from ..models.pretrained import BASES, save_model
from ..pretrain import pretrain
from ..training.optim import AdamW
from . import inputs

Say = Callable[[str], None]


def show(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """The demo."""
    return demo(args.seed, say)


def write(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Continue a prompt."""
    model = inputs.base(args)
    if args.adapter:
        inputs.adapt(model, args, strict=False)
    elif args.base_dtype:
        raise ValueError(f"--base-dtype {args.base_dtype} goes with an adapter: give --adapter")
    out = generate(
        model, model.tokenizer.encode(args.prompt), args.tokens, temperature=args.temperature,
        top_k=args.top_k, top_p=args.top_p, rng=args.seed, cache=not args.no_cache,
    )
    text = model.tokenizer.decode(out)
    if not args.json:
        print(text)
    return {"text": text, "ids": out.tolist()}


def merge(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Add an adapter into the base's weights; write a plain model."""
    inputs.replacing(args.out, "model", say)
    model = inputs.base(args)
    merged = [*inputs.held(args.base), inputs.adapt(model, args, strict=True)]
    shape = 2, min(64, model.config.n_positions)
    ids = np.random.default_rng(args.seed).integers(0, model.config.vocab_size, shape)
    proof = lora.verify(model, ids)
    say(str(proof))
    told = {"passed": proof.passed, "verified": proof.as_dict()}
    if not proof.passed:
        return told | {"failed": f"{args.out} is not written: the merge is wrong, see above"}
    lost = lora.merge(model)
    save_model(model, args.out, about={"merged": merged})
    say(f"merged {len(lost)} layers into {args.out} ({args.out.stat().st_size:,} bytes)")
    return told | {
        "model": str(args.out), "layers": len(lost), "lost": max(lost.values()),
        "difference": proof.logits.difference, "bound": proof.logits.bound,
    }


def account(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Count parameters, bytes and operations of a step: on the base, or of a named shape."""
    asked = [name for name in (*inputs.USUAL, "lp", "li") if getattr(args, name) is not None]
    vars(args).update({k: x for k, x in inputs.USUAL.items() if k not in asked})
    if args.shape:
        return _plan(args, asked, say)
    if args.method or args.policy != "float32":
        raise ValueError("--method and --policy go with a shape: account gpt2 --method full")
    if args.compare or "lp" in asked or "li" in asked:
        odd = "compare" if args.compare else asked[-1]
        raise ValueError(f"--{odd} goes with a shape: account gpt2 --compare")
    result: dict[str, Any] = {}
    for name in ("full", "lora"):
        model = inputs.base(args).train()
        batch, tokens = inputs.sizes(args, model)
        settings = inputs.settings(args, model)
        model.requires_grad_(True).recompute = args.recompute
        if name == "lora":
            lora.attach(model, settings, rng=args.seed, base_dtype=args.base_dtype)
        numbers = accounting.count(model)
        optimizer = AdamW(model.trainable_parameters())
        book = accounting.ledger(model, optimizer, batch, tokens)
        say(f"{name}: {numbers.trainable:,} of {numbers.total:,} parameters train "
            f"({numbers.percent:.3f} %)\n{book}\n")
        result[name] = {
            "trainable": numbers.trainable, "total": numbers.total, "bytes": book.as_dict(),
            "activations": book.activations,
        }
    return result


def _plan(args: argparse.Namespace, asked: list[str], say: Say) -> dict[str, Any]:
    """Of a shape that need not fit into any memory: nothing is computed but sizes."""
    if args.base_dtype:
        raise ValueError(f"account {args.shape}: give --policy 'half base' for --base-dtype")
    shape = SHAPES[args.shape]
    inputs.within(args.window, args.shape, shape.n_positions)
    settings = inputs.settings(args, smallest(shape))
    how: dict[str, Any] = {
        "policy": args.policy, "recompute": args.recompute, "batch": args.batch or 1,
        "tokens": args.window, "plain": args.plain, "device": args.backend.partition(":")[0],
    }
    if args.compare:
        if odd := ["method"] * bool(args.method) + asked:
            raise ValueError(f"--compare has methods and sizes of its own: leave out --{odd[0]}")
        return _compared(args.shape, how, say)
    called = args.method or "lora"
    kind = methods.METHODS[called]
    given = {"r": settings.r, "alpha": settings.alpha, "targets": settings.targets,
             "lp": args.lp, "li": args.li}
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name in asked:
        if name not in known:
            fit = "preembed and prelayer" if name in ("lp", "li") else "lora and others"
            raise ValueError(f"--{name} goes with {fit}, not with {called}")
    plan = accounting.plan(args.shape, method=called, **how, **{
        name: value for name, value in given.items() if name in known and value is not None
    })
    say(str(plan))
    return plan.as_dict()


def _compared(shape: str, how: dict[str, Any], say: Say) -> dict[str, Any]:
    """Methods of tables 2 to 4 side by side, on as many tokens as the most trained ones leave."""
    found: dict[str, Any] = {}
    most = max(getattr(m, "lp", 0) + getattr(m, "li", 0) for m in accounting.COMPARED)
    how["tokens"] = how["tokens"] or SHAPES[shape].n_positions - most
    say(f"{shape}: one step of {how['batch']} × {how['tokens']:,} tokens, AdamW, {how['policy']}\n")
    say(f"{'':<44}{'trained':>18}{'%':>9}{'file, MB':>13}{'peak, GB':>11}{'TFLOP':>11}{'depth':>8}")
    for method in accounting.COMPARED:
        try:
            plan = accounting.plan(shape, method=method, **how)
        except ValueError as error:  # such as half a base, which full fine-tuning has not
            say(f"{accounting.label(method):<44}{error}")
            continue
        costs = plan.forward, plan.backward
        found[accounting.label(method)] = plan.as_dict()
        say(f"{accounting.label(method):<44}{plan.count.trainable:>18,}{plan.count.percent:>9.4f}"
            f"{plan.checkpoint / 1e6:>13,.1f}{plan.bytes['peak'] / 1e9:>11,.2f}"
            f"{sum(cost.products for cost in costs) / 1e12:>11,.3f}"
            f"{sum(cost.depth for cost in costs):>8,}")
    return found


def info(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Versions, BLAS, threads, devices."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    counts = {v: os.environ[v] for v in _THREADS if v in os.environ}
    facts = {
        "minilora": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}", "cores": os.cpu_count(),
        "threads": counts or f"{threads()}",
        "backend": backend.current().describe(),
        "devices": gpu.devices(),
        "bases": list(BASES), "texts": list(data.TEXTS),
    }
    for name, value in facts.items():
        say(f"{name:<10}{', '.join(value) if isinstance(value, list) else value}")
    return facts


_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def train_base(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train the built-in base again, from nothing."""
    inputs.replacing(args.out, "model", say)
    _, history = pretrain(
        args.out, steps=args.steps, seed=args.seed, resume=not args.restart, say=say
    )
    return {"model": str(args.out), "held_out": history.held_out[-1][1]}


def measure(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Time a training step beside other engines, in turns, on the same weights and batch."""
    for shape in args.shapes:
        sizes(shape)
    for name in args.engines or ():
        if name not in ENGINES:
            raise ValueError(f"--engines {name}: there are {', '.join(ENGINES)}")
    if not args.shapes:
        raise ValueError("--shapes '' leaves nothing to measure: give one")
    if args.chart:
        from .. import viz

        viz.need()  # fail before the work, not after it
    result = bench(
        args.shapes, args.engines, rounds=args.rounds or 10, threads=args.threads or 2,
        whole=not args.no_whole, device=args.backend, say=say,
    )
    if args.chart:
        with atomic.writing(args.chart) as file:
            viz.bench_page(result).savefig(file, format=args.chart.suffix[1:], dpi=150)
        say(f"\n{args.chart} shows it")
    return result
