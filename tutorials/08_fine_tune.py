# %% [markdown]
# # 08. Fine-tune
#
# *The reader can then:* choose rank, learning rate and layers by measuring, and see what is lost.
# *Time:* 25 minutes. *Needs:* chapter 07.
# *Remember:* Each choice has its own best learning rate: do not compare at one rate only.
#
# We can choose the rank, the scale, the learning rate, and the layers to adapt. Which of these
# choices matter? For each choice, we train the base of chapter 00 on its new text with three seeds,
# and evaluate the loss on held-out text. A seed sets the start of $A$ and the order of the text.
#
# Each training is short. So the results hold for a small model and a few steps, and we also say
# what they do not show. With `MINILORA_FAST=1` there are too few steps for any result.

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
new = held_out[:2]  # half of it, because we evaluate often
frozen = ml.evaluate(base, new)
print(f"held-out loss of the base: {ml.evaluate(base, held_out):.3f}", end="; ")
print(f"on the part used below: {frozen:.3f}")

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
# We train every rank with every learning rate and every seed. A line is the median of the seeds. A
# band goes from the smallest to the largest loss.

# %%
ranks, rates = ((1, 4), (3e-3, 1e-2)) if FAST else ((1, 4, 16), (1e-3, 3e-3, 1e-2))
tuned = {(r, lr): [tune(seed, lr, r) for seed in SEEDS] for r in ranks for lr in rates}
losses = {key: [ml.evaluate(model, new) for model in models] for key, models in tuned.items()}
sweep = {f"learning rate {lr:g}": {r: losses[r, lr] for r in ranks} for lr in rates}
viz.rank_sweep(sweep, title="Which rank is best depends on the learning rate")
viz.show()


def best(what, among) -> tuple[float, str]:
    """Return the learning rate with the lowest median loss, and a description."""
    lr = min(among, key=lambda lr: np.median(losses[what, lr]))
    low, middle, high = np.sort(losses[what, lr])
    return lr, f"at lr {lr:g}: loss {middle:.3f} ({low:.3f} to {high:.3f})"


for r in ranks:
    print(f"r = {r:>2}, {best(r, rates)[1]}")

# %% [markdown]
# One line alone is misleading. At the lowest rate, rank 16 is far better than rank 1. At the
# highest rate, it is far worse. Both have the same cause. Adam changes every number by about the
# learning rate, and $BA$ is a sum of $r$ products. So at the same rate, a larger rank changes the
# weights more.
#
# The table shows each rank at its own best rate. There the ranks are close: the differences between
# them are small compared with the cost of a wrong rate. This agrees with chapter 06, where a few
# directions did most of the work. Our few steps do not show that a larger rank helps. A long
# training on much text has more to learn, so there a larger rank may help. (We choose the best rate
# on the same text that we then use to compare. This makes every rank look a little better than it
# is.)
#
# ## Alpha is a learning rate
#
# Then what does the scale do? We can move it into the factors:
# $s\,BA = (\sqrt{s}\,B)(\sqrt{s}\,A)$.
#
# **Predict.** You train with $s = 4$. A friend trains with $s = 1$, and starts from $2A$ where you
# start from $A$. So $B$ is multiplied by the same $\sqrt{s} A$ in both. Both use Adam. With which
# learning rate does your friend get your ΔW: yours, twice yours, or four times yours?
#
# <details><summary>Answer</summary>
#
# Twice yours. Your friend's $A' = \sqrt{s} A$ and $B' = \sqrt{s} B$ are twice as large as yours, so
# they have to move twice as far. The gradients are half of yours, but that does not matter: Adam
# divides a gradient by its own size, so the learning rate alone sets the length of a step.
#
# </details>
#
# This is exact. With $\varepsilon = 0$ in Adam, $(s, \mathrm{lr}, A_0)$ and
# $(1, \sqrt{s}\,\mathrm{lr}, \sqrt{s} A_0)$ give the same ΔW. If $\sqrt{s}$ is a power of two,
# nothing is rounded, and even the bits are the same.


# %%
def update(s: float, lr: float, start: float = 1.0, eps: float = 0.0, decay: float = 0.0):
    """Return ΔW of every adapted layer, stacked. `start` multiplies A0."""
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
# **Check.** The two runs give the same bits. With Adam's usual $\varepsilon$ they differ a little,
# because a few gradients are so small that $\varepsilon$ matters. Weight decay also makes a
# difference: each step removes a share of $A$ and $B$, the learning rate times the decay, and your
# friend's learning rate is twice yours.

# %%
for s in (4.0,) if FAST else (0.25, 4.0):
    assert (update(s, 1e-2) == update(1.0, s**0.5 * 1e-2, s**0.5)).all()
for how in ({"eps": 1e-8}, {"decay": 0.1}):
    yours, friends = update(4.0, 1e-2, **how), update(1.0, 2e-2, 2.0, **how)
    off = np.linalg.norm(yours - friends) / np.linalg.norm(yours)
    print(f"with {how} they differ by {off:.1e} of the norm of ΔW")

# %% [markdown]
# So we do not need to search both alpha and the learning rate. §4.1 of
# [the paper](https://arxiv.org/abs/2106.09685) says the same, and therefore sets $\alpha$ once, to
# the first $r$ that it tries.
#
# ## Which matrices
#
# The paper adapts only attention. We can put about as many trained parameters into the MLP. We show
# both at the better of two rates, because the figure has shown that the rate matters.

# %%
for lr in rates[-2:]:
    tuned["MLP", lr] = [tune(seed, lr, 3, MLP) for seed in SEEDS]
    losses["MLP", lr] = [ml.evaluate(model, new) for model in tuned["MLP", lr]]
for name, what in (("attention", 4), ("MLP", "MLP")):
    lr, description = best(what, rates[-2:])
    n = accounting.count(tuned[what, lr][0]).trainable
    print(f"{name:<9} {n:,} parameters, {description}")

# %% [markdown]
# Here the MLP is the better place: the ranges do not overlap. This is one small model and one text.
# But work after the paper also adapts all linear layers, and not only attention.
#
# ## What is forgotten
#
# The base knew Shakespeare's plays. How much of this does it lose while it learns the new text?

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
# When the new loss falls, the old loss rises. LoRA does not prevent this. $W_0$ is unchanged, but
# the model computes with $W_0 + \Delta W$. The highest rate of LoRA forgets more than the middle
# one, and learns nothing more.
#
# Compare two rows that learned the same amount. At its lower rate, full fine-tuning learns about as
# much as LoRA at its best rate, and it forgets *less*. This is one small model, a few steps, and
# LoRA on attention only. Still, we do not find that LoRA forgets less. But LoRA has a way back:
# remove the adapter, and you have the base again, bit for bit.
#
# ## Break it
#
# Choose by the wrong loss. A training on a few lines of text looks excellent if we judge it by the
# same lines.

# %%
model = ml.load_base("shakespeare")
lora.attach(model, lora.LoRAConfig(r=16, alpha=32, targets=ATTENTION), rng=0)
history = train(model, seed=0, lr=1e-2, ids=training[:200], steps=30 if FAST else 60)
try:
    assert ml.evaluate(model, new) < frozen, "worse than the frozen base"
except AssertionError as error:
    print(f"Caught: training loss {history.losses[0]:.2f} -> {history.losses[-1]:.2f},")
    print(f"held-out loss {frozen:.2f} -> {ml.evaluate(model, new):.2f}: {error}")
else:
    raise RuntimeError("this should have failed")

# %% [markdown]
# ## What you built, and what is next
#
# You built a fair comparison: each choice at its own learning rate, with several seeds, on held-out
# text, and with both the gain and the loss of old knowledge.
#
# **Next:** chapter 09 merges the update into the weights.
