"""Train the built-in bases, from random weights. RECIPES says how each one was trained.

`minilora pretrain` runs this file. It writes the model, and a log of the lines that it prints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import backend
from .backend import asnumpy
from .checks import choice
from .data import BPE, Windows, load_text, sequential, split
from .data.tasks import BASE_TEXTS, base_batches
from .data.tasks.base_text import Stream
from .data.words import END
from .files import atomic
from .generate import answers, generate
from .models.bert import Bert, BertConfig
from .models.gpt2 import GPT2, GPT2Config
from .models.pretrained import save_model
from .ops.neural import IGNORED
from .tensor import no_grad
from .training.fit import Batch, History, Loss, evaluate, fit, lm_loss
from .training.losses import encoder_loss
from .training.optim import AdamW
from .training.schedules import cosine_schedule


@dataclass(frozen=True)
class Material:
    """What a run trains and reads, made from a recipe and a seed.

    batches     batches[i] -> (inputs, targets)
    held_out    batches; the first few are evaluated during the run
    facts       the second line of the log
    settings    what identifies the run besides its recipe, for its checkpoint
    report      (model, held-out loss) -> the last lines of the log
    """

    model: Any
    batches: Any
    held_out: Sequence[Batch]
    facts: str
    settings: Mapping[str, Any]
    report: Callable[[Any, float], Iterable[str]]
    loss: Loss = lm_loss


@dataclass(frozen=True)
class Recipe:
    """How a built-in base is pretrained: sizes, steps, sequences in a batch, the highest rate.

    prepare: (recipe, seed, text) -> Material; text: another one to train on, or None.
    """

    about: str
    config: Any
    prepare: Callable[[Recipe, int, str | None], Material]
    steps: int
    batch: int = 16
    peak: float = 3e-3

    @property
    def tokens(self) -> int:
        """The most tokens in a sequence."""
        return min(256, int(self.config.n_positions))


def text_material(recipe: Recipe, seed: int, text: str | None) -> Material:
    """Return windows of a text, in tokens of a byte-pair encoding that is learned from it."""
    text = load_text(recipe.about) if text is None else text
    train_text, held_out_text = split(text, 0.05)
    tokenizer = BPE.train(train_text, recipe.config.vocab_size)
    ids, held_out_ids = tokenizer.encode(train_text), tokenizer.encode(held_out_text)
    model = GPT2(recipe.config, rng=seed)
    model.tokenizer = tokenizer

    def report(model: GPT2, loss: float) -> Iterable[str]:
        yield (f"held-out loss over all of it: {loss:.4f} nats a token, "
               f"{loss * len(held_out_ids) / len(held_out_text):.4f} nats a character")
        how: Any = {"temperature": 0.8, "top_p": 0.95, "rng": seed}
        yield tokenizer.decode(generate(model, tokenizer.encode("\n\n"), 120, **how)).strip()

    return Material(
        model, Windows(ids, recipe.batch, recipe.tokens, seed),
        sequential(held_out_ids, recipe.batch, recipe.tokens),
        f"{len(ids):,} tokens to train on, {len(held_out_ids):,} held out, "
        f"{len(train_text) / len(ids):.2f} characters a token", {"text": text}, report,
    )


def task_material(recipe: Recipe, seed: int, text: str | None) -> Material:
    """Return batches of the text of a base for tasks, in tokens of the tasks' words."""
    _no_text(recipe, text)
    task = BASE_TEXTS[recipe.about]
    model = GPT2(replace(recipe.config, vocab_size=task.words.vocab_size), rng=seed)
    model.tokenizer = task.words

    def report(model: GPT2, loss: float) -> Iterable[str]:
        yield f"held-out loss over all of it: {loss:.4f} nats a token of an answer"
        examples = task.examples("test", 128)
        end = task.words.ids[END]
        ids = answers(model, [task.words.encode(x.inputs) for x in examples], task.longest, end)
        outputs = [task.words.decode(row) for row in ids]
        yield f"right answers, of {len(examples)}: {task.score(examples, outputs)['exact']:.3f}"
        yield from (f"{x.inputs} {out}" for x, out in zip(examples[:6], outputs))

    return Material(
        model, Stream(task, recipe.batch, seed), base_batches(recipe.about),
        f"{task.words.vocab_size} words; examples are drawn from the seed", {}, report,
    )


def masked_material(recipe: Recipe, seed: int, text: str | None) -> Material:
    """Return batches of masked words of the text of an encoder (Devlin et al. 2019, §3.1)."""
    _no_text(recipe, text)
    task = BASE_TEXTS[recipe.about]
    model = Bert(recipe.config, rng=seed)
    model.tokenizer = task.words
    for p in model.parameters():
        if len(p.shape) == 2:
            # BERT's standard deviation, 0.02, is for 768 dimensions: with it, so small a model does
            # not learn to compare two words in these steps.
            p.data *= 1 / math.sqrt(recipe.config.d_model) / 0.02
    held_out = base_batches(recipe.about)

    def report(model: Bert, loss: float) -> Iterable[str]:
        yield f"held-out loss over all of it: {loss:.4f} nats a masked word"
        hits: list[bool] = []
        for (ids, *others), targets in held_out:
            with no_grad():
                best = asnumpy(model(ids, *others).data)[:, 0].argmax(axis=1)
            hits += (best == targets[:, 0])[targets[:, 0] != IGNORED].tolist()
        yield f"right words at <cls>, of {len(hits)}: {np.mean(hits):.3f}"

    return Material(
        model, Stream(task, recipe.batch, seed), held_out,
        f"{task.words.vocab_size} words; texts are drawn from the seed", {}, report, encoder_loss,
    )


def _no_text(recipe: Recipe, text: str | None) -> None:
    if text is not None:
        raise ValueError(f"pretrain: {recipe.about} draws its own text: leave out `text`")


RECIPES = {
    "shakespeare": Recipe(
        "plays", GPT2Config(vocab_size=1024, n_positions=256, d_model=160, n_layers=4, n_heads=5),
        text_material, steps=3600),
    "mini-decoder": Recipe(
        "mini-decoder", GPT2Config(
            BASE_TEXTS["mini-decoder"].words.vocab_size, n_positions=64, d_model=64, n_layers=2,
            n_heads=4),
        task_material, steps=1440, batch=64),
    "mini-encoder": Recipe(
        "mini-encoder", BertConfig(
            BASE_TEXTS["mini-encoder"].words.vocab_size, n_positions=32, d_model=64, n_layers=2,
            n_heads=4),
        masked_material, steps=3960, batch=32, peak=1e-3),
}


def is_log(path: Path) -> bool:
    """Return whether a file begins as the log of `pretrain` does."""
    try:
        with path.open(encoding="utf-8") as file:
            return bool(re.search(r"; seed \d+; \d+ steps of \d+ x \d+ tokens$", file.readline()))
    except (OSError, UnicodeDecodeError):
        return False


def pretrain(
    out: str | Path, name: str = "shakespeare", *, steps: int | None = None, seed: int = 0,
    config: Any = None, batch: int | None = None, text: str | None = None, resume: bool = True,
    say: Callable[[str], Any] = print,
) -> tuple[Any, History]:
    """Train a base; write it to `out` (a float16 .npz) and its log beside it (.log).

    name: a key of RECIPES, whose steps, config and batch are the defaults; text: train on it.
    An interrupted run continues from the checkpoint beside `out` (.run.npz), unless resume=False.
    The checkpoint is removed at the end. Raises ValueError if one of the files cannot be written,
    or if the name is unknown.
    """
    choice("pretrain", "name", name, [*RECIPES])
    given = {"steps": steps, "config": config, "batch": batch}
    recipe = replace(RECIPES[name], **{k: v for k, v in given.items() if v is not None})
    steps, batch, peak = recipe.steps, recipe.batch, recipe.peak
    out = Path(out)
    log, run = out.with_suffix(".log"), out.with_suffix(".run.npz")
    for path, suffix in ((out, ".npz"), (log, ".log"), (run, ".npz")):
        atomic.check(path, suffix)
    continuing = resume and run.exists()
    if not continuing:
        log.write_text("", encoding="utf-8")

    def print_and_log(line: str) -> None:
        say(line)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")

    header = say if continuing else print_and_log  # the log of a continued run has it already
    header(
        f"{backend.current().describe()}; seed {seed}; {steps} steps of {batch} x {recipe.tokens} "
        "tokens"
    )
    material = recipe.prepare(recipe, seed, text)
    model, held_out = material.model, material.held_out
    header(material.facts)
    optimizer = AdamW(model.trainable_parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    history = fit(
        model, material.batches, optimizer, steps, max_grad_norm=1.0, loss=material.loss,
        schedule=cosine_schedule(peak, steps, warmup=steps // 30, floor=peak / 20),
        held_out=held_out[:4], eval_every=max(1, steps // 12), log_every=max(1, steps // 36),
        progress=print_and_log, checkpoint=run, save_every=200, resume=resume,
        about={**material.settings, "batch": batch, "--seed": seed},
    )
    model.eval()
    final = evaluate(model, held_out, material.loss)
    for line in material.report(model, final):
        print_and_log(line)
    about = {"trained_on": recipe.about, "steps": steps, "seed": seed, "held_out_loss": final}
    save_model(model, out, dtype="float16", about=about)
    run.unlink(missing_ok=True)
    return model, history
