"""`minilora finetune`: train an adapter on a text or on labelled sentences; compare it with the
base."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import accounting, data, lora, methods, viz
from ..adapters.registry import adapters_of, state_of
from ..data.corpora import Batch
from ..files import atomic
from ..files.atomic import reason
from ..training.fit import History, evaluate, fit, lm_loss
from ..training.loss_scale import LossScale
from ..training.optim import AdamW
from ..training.schedules import linear_schedule
from . import classify, inputs, ranked, settings
from .lesson import Lesson
from .parser import OneOf, Parser, Say, above_0, integer, to_write

# The options that define a run, besides base, data, method and sizes: a checkpoint belongs to them.
DEFINING = ("seed", "lr", "checks", "dtype")
EVERY_LAYER = "q,k,v,o,up,down,tok"
WINDOWS = 64  # enough to estimate how the loss differs from window to window
STEPS, CHECKS = 200, 8  # of a text
RATES = {"full": 1e-3, "fttop2": 1e-3}
RATE = 1e-2  # of all other methods
IN_PEFT = ("lora", "rslora", "dora", "pissa", "peft-lora")  # methods with a form there


def add_to(top: Parser) -> None:
    to = top.command("finetune", run)
    to.argument("text", inputs.TEXTS)
    to.instead = {
        "--text": f"the text is the first argument: {inputs.TEXTS}", "--learning-rate": "give --lr",
    }
    inputs.add_run(to, "adapter.npz", STEPS)
    inputs.add_base(to)
    help = "text: the next token; classify: the label of a sentence, by an encoder as --base"
    to.option("--task", read=OneOf("text", "classify"), help=help, default="text")
    help = ("for --task classify: a CSV file with the columns text and label; by default one pass "
            f"over it, in batches of {classify.BATCH}")
    to.option("--data", read=Path, help=help)
    help = "the file to evaluate on, before and after; else a tenth of the data is held out for it"
    to.option("--eval", read=str, help=help)
    settings.add_to(to, "how to train")
    to.option("--adapter", read=Path, help="go on with the adapter in this .npz")
    inputs.add_sizes(to)
    help = (f"peak learning rate ({RATE:g}, full and fttop2 {RATES['full']:g}; --task classify: "
            f"{classify.RATE:g}, {classify.RATES['full']:g})")
    to.option("--lr", read=above_0, help=help)
    help = ("dtype of the frozen base and of the arithmetic; float16 is for a GPU: the loss is "
            "scaled, and other commands need --base-dtype float16 to load the adapter")
    dtypes = OneOf("float16", "float32", "float64")
    to.option("--dtype", read=dtypes, help=help, default="float32")
    help = "of a text: number of held-out batches to evaluate"
    to.option("--checks", read=integer(1), help=help, default=CHECKS)
    to.option("--chart", read=to_write(".png", ".svg"), help="draw the losses into a new file")
    to.add_argument("--export", nargs=2, metavar=("peft", "FOLDER"),
                    help="also write the adapter to a new folder that PEFT loads")
    to.set_defaults(steps=None, checks=None)  # None: not given
    ranked.add_to(to)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train an adapter on a text or on labelled sentences, and save it."""
    checkpoint = args.out.with_suffix(".run.npz")
    group = ranked.group(args)
    if group and not group.exact:
        say("--reduce fast: the last bits of the result depend on the number of ranks")
    check(args)
    inputs.check_out(args.out, "adapter", say)
    inputs.check_run(args.out)
    lesson = lesson_of(args, say)
    model, about = lesson.model, dict(lesson.about)
    args.steps, args.lr = args.steps or lesson.steps, args.lr or lesson.rate
    model.train().recompute = args.recompute
    if args.adapter:
        about["adapter"] = inputs.load_adapter(
            model, args, args.adapter, strict=True, trainable=True)
        (name,) = state_of(model).configs
    else:
        name = _adapter_name(args.out.stem)
        head = {"trainable": ("head",)} if args.task == "classify" else {}
        methods.apply(model, settings.method(args, **head), name=name, rng=args.seed,
                      base_dtype=args.base_dtype)
    method = state_of(model).configs[name]
    _check_export(args, method)
    own = settings.DEFAULTS[method.called]
    about |= {"--method": method.called, **{f"--{key}": getattr(method, key) for key in own},
              **{f"--{key}": getattr(args, key) for key in DEFINING}}
    count = accounting.count(model)
    say(f"{accounting.label(method)}: {count.trainable:,} of {count.total:,} parameters train")
    optimizer = AdamW(model.trainable_parameters(), lr=args.lr, weight_decay=0.0)
    result = lesson.before()
    history = fit(
        model, lesson.batches, optimizer, args.steps, loss=lesson.loss, max_grad_norm=1.0,
        progress=say, held_out=lesson.checks,
        loss_scale=LossScale() if args.dtype == "float16" else None,
        schedule=linear_schedule(args.lr, args.steps, args.steps // 20), checkpoint=checkpoint,
        resume=not args.restart, about=about, group=group,
    )
    if ranked.rank():
        return {}  # rank 0 writes and reports
    before, after = history.held_out[0][1], history.held_out[-1][1]
    result |= {"before": before, "after": after, "passed": True, "method": method.called,
               "steps": args.steps, "trainable": count.trainable, "total": count.total}
    saved = f"the training is finished and saved in {checkpoint}: the same command writes the file"
    try:
        worse = lesson.worse(before, after)
        lora.save(model, args.out)
        _write_more(args, model, name, history, lesson, result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {saved}") from None
    except (OSError, ValueError):
        if checkpoint.exists():
            say(saved)
        raise
    try:
        checkpoint.unlink(missing_ok=True)
    except OSError as error:  # the adapter is written
        say(f"{checkpoint} is not needed any more, but cannot be removed ({reason(error)})")
    if group and group.size > 1:
        result |= {"ranks": group.size, "sent": group.sent}
        say(f"{group.size} ranks; in a step each gave {group.sent:,} bytes of gradients to MPI")
    result |= {"adapter": str(args.out), "bytes": args.out.stat().st_size}
    say(f"held-out loss {before:.4f} -> {after:.4f} {lesson.unit}{lesson.beside}")
    lesson.after(result)
    say(f"{args.out}: {result['bytes']:,} bytes")
    if worse:
        result |= {"passed": False, "failed": (
            f"{worse}: try a smaller --lr (it was {args.lr:g}) or fewer --steps; {args.out} is "
            "written nevertheless"
        )}
    return result


def lesson_of(args: argparse.Namespace, say: Say) -> Lesson:
    """Read the base and what it is trained on."""
    return (classify.lesson if args.task == "classify" else _of_text)(args, say)


def _worse(model: Any, checks: Sequence[Batch], before: float, after: float) -> str:
    """Say that the adapter is worse than the base, by more than the base's loss varies; or ""."""
    if after <= before:
        return ""
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in checks for i in range(len(x))]
    with lora.disabled(model):
        spread = float(np.std([evaluate(model, [row]) for row in rows[:WINDOWS]]))
    if after <= before + spread:
        return ""
    return (
        f"the adapter is worse than the base by {after - before:.4f} nats a token, and the loss "
        f"of the base varies by {spread:.4f} from window to window"
    )


def _adapter_name(stem: str) -> str:
    """Return the adapter's name in its file: printable, without dots, and not "base"."""
    name = "".join(c if c.isprintable() and c != "." else "_" for c in stem)
    return "adapter" if name == "base" else name


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot act, alone or together, before any work."""
    if args.task == "classify":
        if args.text is not None:
            raise ValueError(f"--task classify takes no text {args.text!r}: give --data FILE.csv")
        if args.data is None:
            raise ValueError("--task classify needs --data: a CSV file with the columns text and "
                             "label")
        if args.checks:
            raise ValueError("--checks is for a text: --task classify scores all that is held out")
    elif args.data is not None:
        raise ValueError("--data is for --task classify: give a text as the first argument")
    elif args.text is None:
        raise ValueError(f"finetune needs a text: {inputs.TEXTS}")
    elif args.li:
        raise ValueError(f"--li {args.li}: a text has no prompt for tokens to follow: give --lp")
    if args.base_dtype == args.dtype:
        raise ValueError(f"--base-dtype {args.dtype} repeats --dtype: leave it out")
    if args.adapter:
        fixed = ["method"] * bool(args.method) + [*settings.given(args)]
        if fixed:
            raise ValueError(f"--adapter {args.adapter} has its own method and settings: leave out "
                             f"--{fixed[0]}")
        if not args.adapter.exists():
            raise ValueError(f"--adapter {args.adapter}: there is no such file: give the .npz that "
                             "`minilora finetune` wrote")
    else:
        _check_export(args, settings.method(args))
    if args.chart:
        inputs.check_new(args.chart, False, "give another --chart, or remove it first")
        viz.need()


def _check_export(args: argparse.Namespace, method: methods.Method) -> None:
    """Raise ValueError if --export cannot be done."""
    if not args.export:
        return
    form, folder = args.export
    if form != "peft":
        raise ValueError(f"--export {form}: choose peft, as in --export peft FOLDER")
    if method.called not in IN_PEFT:
        raise ValueError(f"--export peft: {method.called} has no form in PEFT: it is for --method "
                         f"{', '.join(IN_PEFT)}")
    if Path(folder).exists():
        raise ValueError(f"--export peft {folder}: it exists: give a new folder")


def _write_more(
    args: argparse.Namespace, model: Any, name: str, history: History, lesson: Lesson,
    result: dict[str, Any],
) -> None:
    """Write the folder for PEFT and the chart, where they are asked for."""
    if args.export:
        lora.save_peft(model, args.export[1])
        result["export"] = args.export[1]
    if args.chart:
        ax = viz.loss_curves({name: history}, ylabel=f"loss ({lesson.unit})")
        with atomic.writing(args.chart) as file:
            ax.figure.savefig(file, format=args.chart.suffix[1:])
        result["chart"] = str(args.chart)


def _of_text(args: argparse.Namespace, say: Say) -> Lesson:
    """Read the base and the text; the lesson is to predict the next token."""
    model = inputs.decoder(args)
    batch, window = inputs.sizes(args, model, settings.taken(args))
    if not args.adapter:
        inputs.check_targets(model, getattr(settings.method(args), "targets", ()))
    text = inputs.text(args.text)
    if args.eval:
        words = text, inputs.text(args.eval)
        inputs.check_eval(args.eval, words[0] == words[1])
        training, held_out = inputs.tokens(args.text, words, model, window)
    else:
        training, held_out = inputs.split(args.text, text, model, window)
    checks = data.sequential(held_out, batch, window)
    wanted = args.checks or CHECKS
    chosen, vocabulary = checks[:wanted], model.config.vocab_size
    fewer = f" (batches: {len(chosen)}, not {wanted})" * (len(chosen) < wanted)
    say(f"{args.text}: {len(training):,} tokens to train on, {len(held_out):,} held out{fewer}")
    unigrams = data.unigram_loss(training, chosen, vocabulary)
    remedy = f"train longer, with --steps {3 * (args.steps or STEPS)}"

    def before() -> dict[str, Any]:
        nonlocal remedy
        if (start := evaluate(model, chosen)) > (guess := math.log(vocabulary)):
            ((name, method),) = state_of(model).configs.items()
            if hasattr(method, "targets") and "tok" not in adapters_of(model, name):
                remedy = f"adapt its table of tokens too, with --targets {EVERY_LAYER}"
            say(
                f"the base does not know these tokens: its held-out loss is {start:.4f}, above "
                f"{guess:.4f}, the ln {vocabulary:,} of a guess: {remedy}"
            )
        return {"unigrams": unigrams}

    def after(result: dict[str, Any]) -> None:
        if result["after"] >= unigrams:
            say(f"the adapter has not learned more than these frequencies: {remedy}")

    merges = getattr(model.tokenizer, "merges", None) or model.tokenizer.vocab_size
    return Lesson(
        model, data.Windows(training, batch, window, args.seed), chosen, "nats a token", lm_loss,
        STEPS, RATES.get(args.method, RATE), before, after,
        lambda before, after: _worse(model, checks, before, after),
        {"text": text, "tokenizer": merges, "--batch": batch, "--window": window,
         "held-out text": words[1] if args.eval else ""},
        f"; to beat: {unigrams:.4f}, by the frequency of each token in the part to train on alone",
    )
