"""The demo: adapt a pretrained model to another text with LoRA, count the cost, and merge."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from . import accounting, data, lora
from .generate import generate
from .lora import LoRAConfig
from .models.gpt2 import GPT2
from .models.pretrained import load_base
from .training.fit import fit
from .training.optim import AdamW
from .training.schedules import linear_schedule

TEXT, STEPS, BATCH, TOKENS, PEAK = "kjv", 150, 8, 128, 3e-2
CONFIG = LoRAConfig()


def demo(seed: int = 0, say: Callable[[str], Any] = print, *, steps: int = STEPS) -> dict[str, Any]:
    """Run the demo; return the numbers that it prints."""
    model = load_base("shakespeare")
    training, held_out = (model.tokenizer.encode(t) for t in data.split(data.load_text(TEXT)))
    batches = data.Windows(training, BATCH, TOKENS, seed)
    checks = data.sequential(held_out, BATCH, TOKENS)[:4]
    say("1. A base: a small GPT-2, pretrained on Shakespeare's plays\n")
    say(model.summary())
    before = _sample(model, seed)
    full = accounting.ledger(model, AdamW(model.trainable_parameters()), BATCH, TOKENS)

    say(f"\n2. Base frozen, and adapted to {data.TEXTS[TEXT]}\n")
    lora.attach(model, CONFIG, rng=seed)
    count = accounting.count(model)
    say(
        f"LoRA, r = {CONFIG.r}, alpha = {CONFIG.alpha:g}, on {', '.join(CONFIG.targets)}: "
        f"{count.trainable:,} of {count.total:,} parameters train ({count.percent:.2f} %)"
    )
    optimizer = AdamW(model.trainable_parameters(), lr=PEAK, weight_decay=0.0)
    adapted = accounting.ledger(model, optimizer, BATCH, TOKENS)
    history = fit(
        model, batches, optimizer, steps, max_grad_norm=1.0, held_out=checks, progress=say,
        schedule=linear_schedule(PEAK, steps, steps // 10), log_every=max(1, steps // 5),
    )
    first, last = history.held_out[0][1], history.held_out[-1][1]
    unigrams = data.unigram_loss(training, checks, model.config.vocab_size)
    say(f"held-out loss: {first:.3f} before, {last:.3f} after (nats a token)")
    say(f"to beat: {unigrams:.3f}, by the frequency of each token in the part to train on alone")

    say(f"\n3. The bytes of a training step of {BATCH} x {TOKENS} tokens\n")
    say(f"{'':<16}{'full fine-tuning':>18}{'LoRA':>14}{'LoRA / full':>13}")
    for name, row in adapted.as_dict().items():
        bytes_of_full = full.as_dict()[name]["measured"]
        share = f"{row['measured'] / bytes_of_full:.3f}" if bytes_of_full else "-"
        say(f"{name:<16}{bytes_of_full:>18,}{row['measured']:>14,}{share:>13}")
    say(f"predicted from shapes alone: total {full.predicted:,} and {adapted.predicted:,};")
    peaks = f"{full.peak.predicted:,} and {adapted.peak.predicted:,}"
    say(f"peak, which includes scratch arrays: {peaks}.")
    say("Gradients are allocated as activations are freed, so the total is never resident at once.")

    say("\n4. Merged: W0 + (alpha / r) · B A in layers without adapters\n")
    after = _sample(model, seed)
    proof = lora.verify(model, checks[0][0][:2])
    lora.merge(model)
    same = _sample(model, seed) == after
    say(str(proof))
    say(f"the same sample from the merged model: {'yes' if same else 'no'}")

    say("\n5. Samples before and after\n")
    for name, text in (("before", before), ("after", after)):
        say(f"{name}:\n{textwrap.indent(text, '    ')}\n")
    return {
        "before": first, "after": last, "unigrams": unigrams, "trainable": count.trainable,
        "total": count.total, "full": full.as_dict(), "lora": adapted.as_dict(),
        "verified": proof.as_dict(),
        "difference": proof.logits.difference, "bound": proof.logits.bound, "same_sample": same,
        "samples": {"before": before, "after": after},
    }


def _sample(model: GPT2, seed: int) -> str:
    ids = model.tokenizer.encode("And the king said unto")
    out = generate(model, ids, 60, temperature=0.7, top_p=0.9, rng=seed)
    text: str = model.tokenizer.decode(out)
    return "\n".join(textwrap.fill(line, 88) for line in text.splitlines())
