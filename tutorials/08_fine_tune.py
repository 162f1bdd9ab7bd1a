# %% [markdown]
# # 08. Fine-tune
#
# *The reader can then:* choose rank, learning rate and layers by measuring, and see what is lost.
# *Time:* 25 minutes. *Needs:* chapter 07.
# *Remember:* Each choice has its own best learning rate: compare nothing at one rate alone.
#
# Rank, scale, learning rate, and which layers to adapt: which of these choices matter? We teach the
# base of chapter 00 its new text once for each choice and each of three seeds, and look at the loss
# on text that was held out. A seed draws the start of $A$ and the order in which the text is read.
#
# Each training is short. What is found here is found for a small model and a few steps, and what is
# not found is said as well. With `MINILORA_FAST=1` there are too few steps to find anything.

# %%
import os

import numpy as np

import minilora as ml
from minilora import accounting, data, lora, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TOKENS, HELD_OUT = (2, 2, 16, (2, 32)) if FAST else (12, 4, 32, (8, 128))
SEEDS = (0, 1, 2)
ATTENTION, MLP = ("q", "k", "v", "o"), ("up", "down")

base = ml.load_base("shakespeare")
encode = base.tokenizer.encode
training, rest = (encode(text) for text in data.split(data.load_text("kjv")))
held_out = data.sequential(rest, *HELD_OUT)[:4]  # as in chapter 00
new = held_out[:2]  # this half will do, as we look often
frozen = ml.evaluate(base, new)
told = f"held-out loss of the base: {ml.evaluate(base, held_out):.3f}"
print(f"{told}; of the part looked at below: {frozen:.3f}")

# %% [markdown]
# ## One training
#
# `fit` is the loop of chapter 03. The scale $s = \alpha / r$ is the same for every rank.


# %%
def tune(seed: int, lr: float, r: int = 4, targets=ATTENTION) -> ml.GPT2:
    model = ml.load_base("shakespeare")
    lora.attach(model, lora.LoRAConfig(r=r, alpha=2 * r, targets=targets), rng=seed)
    train(model, seed, lr)
    return model


def train(model: ml.GPT2, seed: int, lr: float, ids=training, steps: int = STEPS) -> ml.History:
    optimizer = ml.AdamW(model.trainable_parameters(), lr=lr, weight_decay=0.0)
    batches = data.Windows(ids, BATCH, TOKENS, seed=seed)
    return ml.fit(model, batches, optimizer, steps, progress=False)


# %% [markdown]
# ## Rank and learning rate
#
# Every rank with every learning rate, each with every seed. The line is the median of the seeds,
# the band goes from the smallest to the largest.

# %%
ranks, rates = ((1, 4), (3e-3, 1e-2)) if FAST else ((1, 4, 16), (1e-3, 3e-3, 1e-2))
tuned = {(r, lr): [tune(seed, lr, r) for seed in SEEDS] for r in ranks for lr in rates}
losses = {key: [ml.evaluate(model, new) for model in models] for key, models in tuned.items()}
sweep = {f"learning rate {lr:g}": {r: losses[r, lr] for r in ranks} for lr in rates}
viz.rank_sweep(sweep, title="Which rank is best depends on the learning rate")
viz.show()


def best(what, among) -> tuple[float, str]:
    """The learning rate with the lowest median loss, and that loss with its range in words."""
    lr = min(among, key=lambda lr: np.median(losses[what, lr]))
    low, middle, high = np.sort(losses[what, lr])
    return lr, f"at lr {lr:g}: loss {middle:.3f} ({low:.3f} to {high:.3f})"


for r in ranks:
    print(f"r = {r:>2}, {best(r, rates)[1]}")

# %% [markdown]
# Read one line alone and you learn something wrong. At the lowest rate, rank 16 is far ahead of
# rank 1; at the highest it is far behind. Both follow from one thing: Adam moves every number by
# about the learning rate, and $BA$ is a sum of $r$ products. So at one rate, a larger rank moves
# the weights further.
#
# The table has each rank at its own best rate. There the ranks are close: what is left between them
# is small beside what a wrong rate costs. It fits chapter 06, where few directions did most of the
# work. That a larger rank helps is not found here, in a few steps. A long training on much text has
# more to store, and may well find it. (The best rate is picked on the very text by which it is then
# judged. That flatters every rank a little, and all of them alike.)
#
# ## Alpha is a learning rate
#
# Then what does the scale do? Move it into the factors: $s\,BA = (\sqrt{s}\,B)(\sqrt{s}\,A)$.
#
# **Predict.** You train with $s = 4$. A friend trains with $s = 1$, and starts from $2A$ where you
# start from $A$, so that $B$ meets the same $\sqrt{s} A$. Both use Adam. With which learning rate
# does your friend get your ΔW: yours, twice yours, or four times yours?
#
# <details><summary>Answer</summary>
#
# Twice. Your friend's $A' = \sqrt{s} A$ and $B' = \sqrt{s} B$ are twice as large as yours, so they
# have to move twice as far. Their gradients are half of yours, but Adam divides a gradient by its
# own size: the length of its step is the learning rate, whatever the scale.
#
# </details>
#
# That is exact. With $\varepsilon = 0$ in Adam, $(s, \mathrm{lr}, A_0)$ and
# $(1, \sqrt{s}\,\mathrm{lr}, \sqrt{s} A_0)$ give the same ΔW; and where $\sqrt{s}$ is a power of
# two, which rounds nothing, the same bits.


# %%
def update(s: float, lr: float, start: float = 1.0, eps: float = 0.0, decay: float = 0.0):
    """ΔW of every adapted layer, one after the other, with A0 times `start`."""
    model, r = ml.load_base("shakespeare"), 4
    lora.attach(model, lora.LoRAConfig(r=r, alpha=s * r), rng=0)
    trained, batches = model.trainable_parameters(), data.Windows(training, 2, 16, seed=0)
    for name, p in trained.items():
        if name.endswith(".A"):
            p.data *= start
    optimizer = ml.AdamW(trained, lr=lr, eps=eps, weight_decay=decay)
    ml.fit(model, batches, optimizer, 3, progress=False)
    layers = [m for _, m in model.named_modules() if isinstance(m, lora.LoRALinear)]
    return np.stack([ml.asnumpy(layer.delta()) for layer in layers])


# %% [markdown]
# **Check.** The two runs give the same bits. With Adam's usual $\varepsilon$ they part a little,
# where a gradient is so small that $\varepsilon$ counts beside it. Weight decay parts them, too:
# each step takes a share of $A$ and $B$ away, the learning rate times the decay, and your friend's
# learning rate is twice yours.

# %%
for s in (4.0,) if FAST else (0.25, 4.0):
    assert (update(s, 1e-2) == update(1.0, s**0.5 * 1e-2, s**0.5)).all()
for how in ({"eps": 1e-8}, {"decay": 0.1}):
    yours, friends = update(4.0, 1e-2, **how), update(1.0, 2e-2, 2.0, **how)
    off = np.linalg.norm(yours - friends) / np.linalg.norm(yours)
    print(f"with {how} apart by {off:.1e} of the norm of ΔW")

# %% [markdown]
# So there is no need to search alpha and the learning rate both: keep $\alpha / r$ and search the
# rate, as §4.1 of [the paper](https://arxiv.org/abs/2106.09685) says in a sentence.
#
# ## Which matrices
#
# The paper adapts attention only. As many trained parameters can go into the MLP. Each place is
# shown at the better of two rates, as the figure has taught us.

# %%
for lr in rates[-2:]:
    tuned["MLP", lr] = [tune(seed, lr, 3, MLP) for seed in SEEDS]
    losses["MLP", lr] = [ml.evaluate(model, new) for model in tuned["MLP", lr]]
for name, what in (("attention", 4), ("MLP", "MLP")):
    lr, told = best(what, rates[-2:])
    print(f"{name:<9} {accounting.count(tuned[what, lr][0]).trainable:,} parameters, {told}")

# %% [markdown]
# Here the MLP is the better place: the ranges do not meet. It is one small model and one text; but
# later work than the paper, too, adapts all linear layers and not attention alone.
#
# ## What is forgotten
#
# The base knew Shakespeare's plays. How much of that does it lose, while it learns the new text?

# %%
old = data.sequential(encode(data.split(data.load_text("plays"), 0.05)[1]), *HELD_OUT)[:2]
known = ml.evaluate(base, old)
for lr in (1e-4, 3e-4):
    tuned["full", lr] = [ml.load_base("shakespeare") for _ in SEEDS]
    for seed, model in zip(SEEDS, tuned["full", lr]):
        train(model, seed, lr)
    losses["full", lr] = [ml.evaluate(model, new) for model in tuned["full", lr]]
print("change of the loss   new text   old text (from .. to)")
for what, lr in [key for key in tuned if key[0] in (4, "full")]:
    gain = np.median(losses[what, lr]) - frozen
    low, middle, high = np.sort([ml.evaluate(model, old) for model in tuned[what, lr]]) - known
    name = f"{'full' if what == 'full' else 'LoRA'}, lr {lr:g}"
    print(f"{name:<19}{gain:>+10.2f}{middle:>+11.2f} ({low:+.2f} .. {high:+.2f})")

# %% [markdown]
# As the new loss falls, the old one rises. LoRA does not protect from that: $W_0$ is untouched, but
# the model computes with $W_0 + \Delta W$. Its highest rate forgets twice as much as its middle one
# and learns nothing more for it.
#
# Compare what was lost where as much was won. Full fine-tuning at its lower rate learns what LoRA
# learns at its best one, and forgets *less*. It is one small model, a few steps, and LoRA on
# attention alone; but that LoRA forgets less is not found. What LoRA has is a way back: take the
# adapter off, and the base is there, bit for bit.
#
# ## Break it
#
# Choose by the wrong loss. A training on a few lines of text looks splendid, if it is judged by the
# text that it is trained on.

# %%
model = ml.load_base("shakespeare")
lora.attach(model, lora.LoRAConfig(r=16, alpha=32, targets=ATTENTION), rng=0)
history = train(model, seed=0, lr=1e-2, ids=training[:200], steps=30 if FAST else 60)
try:
    assert ml.evaluate(model, new) < frozen, "it is worse on new text than the frozen base"
except AssertionError as error:
    print(f"Caught: training loss {history.losses[0]:.2f} -> {history.losses[-1]:.2f}, but held")
    print(f"out {frozen:.2f} -> {ml.evaluate(model, new):.2f}: {error}")
else:
    raise RuntimeError("this was meant to fail")

# %% [markdown]
# ## What you built, and what is next
#
# A comparison that holds: each choice at its own learning rate, over seeds, on held-out text, with
# what was lost beside what was won.
#
# **Next:** chapter 09 merges the update into the weights.
