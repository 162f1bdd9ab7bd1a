"""Train the built-in base, a small GPT-2, on Shakespeare's plays.

`minilora pretrain` runs this file. It writes the model, and a log of the lines that it prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import backend
from .data import BPE, Windows, load_text, sequential, split
from .files import atomic
from .generate import generate
from .models.gpt2 import GPT2, GPT2Config
from .models.pretrained import save_model
from .training.fit import History, evaluate, fit
from .training.optim import AdamW
from .training.schedules import cosine_schedule

CONFIG = GPT2Config(vocab_size=1024, n_positions=256, d_model=160, n_layers=4, n_heads=5)
STEPS, BATCH, TOKENS, PEAK = 3600, 16, 256, 3e-3


def is_log(path: Path) -> bool:
    """Return whether a file begins as the log of `pretrain` does."""
    try:
        with path.open(encoding="utf-8") as file:
            return bool(re.search(r"; seed \d+; \d+ steps of \d+ x \d+ tokens$", file.readline()))
    except (OSError, UnicodeDecodeError):
        return False


def pretrain(
    out: str | Path, *, steps: int = STEPS, seed: int = 0, config: GPT2Config = CONFIG,
    batch: int = BATCH, text: str | None = None, resume: bool = True,
    say: Callable[[str], Any] = print,
) -> tuple[GPT2, History]:
    """Train the base; write it to `out` (a float16 .npz) and its log beside it (.log).

    An interrupted run continues from the checkpoint beside `out` (.run.npz), unless resume=False.
    The checkpoint is removed at the end. Raises ValueError if one of the files cannot be written.
    """
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

    text = load_text("plays") if text is None else text
    train_text, held_out_text = split(text, 0.05)
    tokens = min(TOKENS, config.n_positions)
    header = say if continuing else print_and_log  # the log of a continued run has it already
    header(
        f"{backend.current().describe()}; seed {seed}; {steps} steps of {batch} x {tokens} tokens"
    )
    tokenizer = BPE.train(train_text, config.vocab_size)
    ids, held_out_ids = tokenizer.encode(train_text), tokenizer.encode(held_out_text)
    model = GPT2(config, rng=seed)
    model.tokenizer = tokenizer
    header(
        f"{len(ids):,} tokens to train on, {len(held_out_ids):,} held out, "
        f"{len(train_text) / len(ids):.2f} characters a token"
    )
    held_out = sequential(held_out_ids, batch, tokens)
    optimizer = AdamW(model.trainable_parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.1)
    history = fit(
        model, Windows(ids, batch, tokens, seed), optimizer, steps, max_grad_norm=1.0,
        schedule=cosine_schedule(PEAK, steps, warmup=steps // 30, floor=PEAK / 20),
        held_out=held_out[:4], eval_every=max(1, steps // 12), log_every=max(1, steps // 36),
        progress=print_and_log, checkpoint=run, save_every=200, resume=resume,
        about={"text": text, "batch": batch, "--seed": seed},
    )
    model.eval()
    final = evaluate(model, held_out)
    print_and_log(
        f"held-out loss over all of it: {final:.4f} nats a token, "
        f"{final * len(held_out_ids) / len(held_out_text):.4f} nats a character"
    )
    sample = generate(model, tokenizer.encode("\n\n"), 120, temperature=0.8, top_p=0.95, rng=seed)
    print_and_log(tokenizer.decode(sample).strip())
    about = {"trained_on": "plays", "steps": steps, "seed": seed, "held_out_loss": final}
    save_model(model, out, dtype="float16", about=about)
    run.unlink(missing_ok=True)
    return model, history
