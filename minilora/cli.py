"""The command line: `minilora` is the demo; `minilora COMMAND --help` tells the rest."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, accounting, backend, data, lora, rounding
from .accounting.plan import POLICIES
from .backend import gpu
from .backend.threads import threads
from .bench.engines import ENGINES, SHAPES
from .bench.turns import bench
from .demo import demo
from .generate import generate
from .loss_scale import LossScale
from .models import GPT2, load_base, load_model, save_model
from .models.pretrained import BASES
from .optim import AdamW, linear_schedule
from .pretrain import STEPS, pretrain
from .train import fit

Say = Callable[[str], None]


def finetune(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Adapt the base to a text; write the adapter."""
    model = _base(args)
    text = _text(args.text)
    training, held_out = (model.tokenizer.encode(part) for part in data.split(text))
    batch, tokens = _sizes(args)
    tokens = min(tokens, model.config.n_positions)
    batches = data.Windows(training, batch, tokens, args.seed)
    checks = data.sequential(held_out, batch, tokens)[: args.checks]
    say(f"{args.text}: {len(training):,} tokens to train on, {len(held_out):,} held out")
    paths = lora.attach(model, _config(args), name=args.out.stem, rng=args.seed,
                        base_dtype=args.base_dtype)  # fmt: skip
    numbers = accounting.count(model)
    say(f"LoRA on {len(paths)} layers: {numbers.trainable:,} of {numbers.total:,} parameters train")
    run = args.out.with_suffix(".run.npz")
    optimizer = AdamW(model.trainable_parameters(), lr=args.lr, weight_decay=0.0)
    model.train().recompute = args.recompute
    history = fit(
        model, batches, optimizer, args.steps, max_grad_norm=1.0, held_out=checks, progress=say,
        loss_scale=LossScale() if args.dtype == "float16" else None,
        schedule=linear_schedule(args.lr, args.steps, args.steps // 20), checkpoint=run,
    )  # fmt: skip
    lora.save(model, args.out)
    run.unlink()
    before, after = history.held_out[0][1], history.held_out[-1][1]
    size = args.out.stat().st_size
    say(f"held-out loss {before:.4f} -> {after:.4f} nats a token")
    say(f"{args.out}: {size:,} bytes")
    return {
        "before": before, "after": after, "trainable": numbers.trainable, "total": numbers.total,
        "adapter": str(args.out), "bytes": size,
    }  # fmt: skip


def write(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Continue a prompt."""
    model = _base(args)
    if args.adapter:
        lora.load(model, args.adapter, base_dtype=args.base_dtype)
    ids = model.tokenizer.encode(args.prompt.replace("\\n", "\n"))
    out = generate(
        model, ids, args.tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        rng=args.seed, cache=not args.no_cache,
    )  # fmt: skip
    text = model.tokenizer.decode(out)
    if not args.json:
        print(text)
    return {"text": text, "ids": out.tolist()}


def merge(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Add an adapter into the base's weights; write a plain model."""
    model = _base(args)
    lora.load(model, args.adapter, base_dtype=args.base_dtype)
    ids = np.random.default_rng(args.seed).integers(0, model.config.vocab_size, (2, 64))
    apart = rounding.compare(model, ids)
    lost = lora.merge(model)
    save_model(model, args.out)
    say(f"merged {len(lost)} layers into {args.out} ({args.out.stat().st_size:,} bytes)")
    say(f"largest logit difference {apart.difference:.2e}, rounding allows {apart.bound:.2e}")
    return {
        "model": str(args.out), "layers": len(lost), "difference": apart.difference,
        "bound": apart.bound, "lost": max(lost.values()),
    }  # fmt: skip


def account(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Count parameters, bytes and operations of a step: on the base, or of a named shape."""
    if args.shape:
        return _plan(args, say)
    if args.method != "lora" or args.policy != "float32":
        raise ValueError(
            "account: --method and --policy go with a shape: account gpt2 --method full"
        )
    batch, tokens = _sizes(args)
    result: dict[str, Any] = {}
    for name in ("full", "lora"):
        model = _base(args).train()
        model.requires_grad_(True).recompute = args.recompute
        if name == "lora":
            lora.attach(model, _config(args), rng=args.seed, base_dtype=args.base_dtype)
        numbers = accounting.count(model)
        book = accounting.ledger(
            model,
            AdamW(model.trainable_parameters()),
            batch,
            tokens,
        )
        say(f"{name}: {numbers.trainable:,} of {numbers.total:,} parameters train "
            f"({numbers.percent:.3f} %)\n{book}\n")  # fmt: skip
        result[name] = {
            "trainable": numbers.trainable, "total": numbers.total, "bytes": book.as_dict(),
            "activations": book.activations,
        }  # fmt: skip
    return result


def _plan(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Of a shape that need not fit into any memory: nothing is computed but sizes."""
    if args.base_dtype:
        raise ValueError(f"account {args.shape}: give --policy 'half base' for --base-dtype")
    given = {"r": args.r, "alpha": args.alpha, "targets": _config(args).targets}
    plan = accounting.plan(
        args.shape, method=args.method, policy=args.policy, recompute=args.recompute,
        batch=1 if args.batch is None else args.batch, tokens=args.window, plain=args.plain,
        device=args.backend.partition(":")[0], **given,
    )  # fmt: skip
    say(str(plan))
    return plan.as_dict()


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
    }  # fmt: skip
    for name, value in facts.items():
        say(f"{name:<10}{', '.join(value) if isinstance(value, list) else value}")
    return facts


def train_base(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train the built-in base again, from nothing."""
    _, history = pretrain(args.out, steps=args.steps, seed=args.seed, say=say)
    return {"model": str(args.out), "held_out": history.held_out[-1][1]}


def measure(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Time a training step beside other engines, in turns, on the same weights and batch."""
    names = [name.strip() for name in args.engines.split(",")]
    shapes = [name.strip() for name in args.shapes.split(",") if name.strip()]
    for kind, chosen, known in (("engine", names, ENGINES), ("shape", shapes, SHAPES)):
        odd = [name for name in chosen if name.partition(":")[0] not in known]
        if odd:
            raise ValueError(f"there is no {kind} {odd[0]!r}: there are {', '.join(known)}")
    if args.chart:
        from . import viz  # what is missing is told before the work, not after it

        if not shapes:
            raise ValueError("--chart needs a shape to draw: give --shapes")
    if args.growth and args.backend != "numpy":
        raise ValueError("--growth measures the host: leave --backend out")
    if args.parity:
        from .bench.parity import parity

        return parity(shapes, say=say)
    result = bench(
        shapes, names, rounds=args.rounds, threads=args.threads or 2, whole=not args.no_whole,
        grow=args.growth, device=args.backend, say=say,
    )  # fmt: skip
    if args.chart:
        viz.bench_page(result).savefig(args.chart, dpi=150)
        say(f"\n{args.chart} shows it")
    return result


_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0: it worked, 1: a comparison failed, 2: bad input, 130: interrupted."""
    args = parser().parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    try:
        if args.threads is not None:
            threads(args.threads)
        if args.command is account and args.shape:
            pass  # a plan chooses its own
        elif args.backend == "shapes":
            raise ValueError("--backend shapes has no numbers: `minilora account` counts on it")
        else:
            backend.use(args.backend, plain=args.plain)
        result = args.command(args, say)
    except (ValueError, KeyError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        if isinstance(error, FileNotFoundError) and error.filename:
            message = f"there is no file {error.filename}"
        print(f"minilora: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minilora: interrupted; the same command goes on where a run left off",
              file=sys.stderr)  # fmt: skip
        return 130
    if args.json:
        print(json.dumps(result))
    return int(result.get("passed") is False)


def parser() -> argparse.ArgumentParser:
    """Every command and option there is."""
    based = argparse.ArgumentParser(add_help=False)
    based.add_argument("--base", default="shakespeare", help="a built-in base, or a model's .npz")
    stored = argparse.ArgumentParser(add_help=False)
    stored.add_argument("--base-dtype", help="float16: the frozen base in half the bytes")
    adapting = argparse.ArgumentParser(add_help=False)
    adapting.add_argument("--r", type=int, default=8, help="rank (8)")
    adapting.add_argument("--alpha", type=float, default=16.0, help="ΔW = alpha / r · BA (16)")
    adapting.add_argument("--targets", default="q,v", help="names or globs, by commas (q,v)")
    adapting.add_argument("--batch", type=int, help="sequences a step (8)")
    adapting.add_argument("--window", type=int, help="tokens a sequence (128)")
    adapting.add_argument(
        "--recompute", action="store_true",
        help="compute each block's activations again instead of keeping them: less memory",
    )  # fmt: skip
    top = argparse.ArgumentParser(
        prog="minilora",
        parents=[_common()],
        description="LoRA on NumPy; without a command: the demo.",
    )
    top.add_argument("--version", action="version", version=__version__)
    top.set_defaults(
        command=lambda args, say: demo(args.seed, say),
        seed=0, backend="numpy", threads=None, plain=False, json=False,
    )  # fmt: skip
    commands = top.add_subparsers(title="commands", metavar="")

    def command(name: str, run: Any, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        told = run.__doc__.strip()
        sub = commands.add_parser(name, help=told, description=told, parents=[_common(), *parents])
        sub.set_defaults(command=run)
        return sub

    sub = command("finetune", finetune, based, stored, adapting)
    sub.add_argument("text", help=f"a text file, or one of {', '.join(data.TEXTS)}")
    sub.add_argument("--out", type=Path, default=Path("adapter.npz"), help="(adapter.npz)")
    sub.add_argument("--steps", type=int, default=200, help="updates (200)")
    sub.add_argument("--lr", type=float, default=5e-3, help="peak learning rate (0.005)")
    sub.add_argument(
        "--dtype", choices=("float16", "float32", "float64"), default="float32",
        help="of the frozen base and all that is computed. float16 scales the loss, for a GPU; its "
        "adapter then goes with --base-dtype float16",
    )  # fmt: skip
    sub.add_argument("--dropout", type=float, default=0.0, help="of the adapters' input (0)")
    sub.add_argument("--checks", type=int, default=8, help="held-out batches to evaluate on (8)")
    sub = command("generate", write, based, stored)
    sub.add_argument("--adapter", type=Path, help="an adapter's .npz")
    sub.add_argument("--prompt", default="\\n", help="what to continue; \\n is a new line")
    sub.add_argument("--tokens", type=int, default=100, help="how many to write (100)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (0.8)")
    sub.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    sub.add_argument("--top-p", type=float, default=0.95, help="only the likeliest mass p (0.95)")
    sub.add_argument("--no-cache", action="store_true", help="without key/value cache: slower")
    sub = command("merge", merge, based, stored)
    sub.add_argument("--adapter", type=Path, required=True, help="an adapter's .npz")
    sub.add_argument("--out", type=Path, default=Path("model.npz"), help="(model.npz)")
    sub = command("account", account, based, stored, adapting)
    sub.add_argument(
        "shape", nargs="?", choices=[*accounting.SHAPES],
        help=f"instead of the base: {', '.join(accounting.SHAPES)}; batch 1, its longest window",
    )  # fmt: skip
    sub.add_argument("--method", choices=("lora", "full"), default="lora", help="of a shape (lora)")
    sub.add_argument(
        "--policy", choices=[*POLICIES], default="float32",
        help="of a shape: float32; half base: the frozen matrices in float16; mixed: all in "
        "float16 but what is trained, which has float32 masters",
    )  # fmt: skip
    command("info", info)
    sub = command("bench", measure)
    sub.add_argument(
        "--shapes", default="classroom,long,gpt2-small",
        help=f"of {', '.join(SHAPES)}; classroom:4 has a batch of 4; '' is none",
    )  # fmt: skip
    sub.add_argument("--engines", default=",".join(ENGINES), help=", ".join(ENGINES))
    sub.add_argument("--rounds", type=int, default=10, help="turns of three steps each (10)")
    sub.add_argument("--no-whole", action="store_true", help="leave out start, 50 steps, exit")
    sub.add_argument(
        "--growth", action="store_true",
        help="also a step's time for batches of 1 to 32, attention's memory for 512 to 4096 tokens",
    )  # fmt: skip
    sub.add_argument(
        "--parity", action="store_true",
        help="instead: losses, gradients, time, memory of a GPU (--backend cupy) and the host",
    )  # fmt: skip
    sub.add_argument("--chart", type=Path, help="draw time and memory into this file, .png or .svg")
    sub = command("pretrain", train_base)
    sub.add_argument("--out", type=Path, default=Path("shakespeare.npz"), help="(shakespeare.npz)")
    sub.add_argument("--steps", type=int, default=STEPS, help=f"({STEPS})")
    return top


def _common() -> argparse.ArgumentParser:
    """What may stand before the command or behind it; so only the whole parser has defaults."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--seed", type=int, help="of everything random (0)")
    common.add_argument("--backend", help="numpy, cupy, or cupy:1 (that GPU)")
    common.add_argument("--threads", type=int, help="to share work among (0: one per core)")
    common.add_argument("--plain", action="store_true", help="every op as printed, no kernels")
    common.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return common


def _sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Sequences of a batch, tokens of a sequence."""
    return 8 if args.batch is None else args.batch, 128 if args.window is None else args.window


def _base(args: argparse.Namespace) -> GPT2:
    if args.base not in BASES and not Path(args.base).exists():
        raise ValueError(f"there is no file {args.base}, nor a built-in base of that name: "
                         f"there is {', '.join(BASES)}")  # fmt: skip
    load, dtype = load_base if args.base in BASES else load_model, getattr(args, "dtype", "float32")
    model = load(args.base, dtype=dtype)
    if model.tokenizer is None:
        raise ValueError(f"{args.base} has no tokenizer with it")
    return model


def _text(name: str) -> str:
    if name in data.TEXTS:
        return data.load_text(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file {name}, nor a built-in text of that name: "
                         f"there are {', '.join(data.TEXTS)}") from None  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from None


def _config(args: argparse.Namespace) -> lora.LoRAConfig:
    targets = tuple(filter(None, args.targets.split(",")))
    return lora.LoRAConfig(args.r, args.alpha, targets, getattr(args, "dropout", 0.0))
