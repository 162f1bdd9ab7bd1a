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
# Each training is short: the results hold for a small model and a few steps, and we also say what
# they do not show. (`MINILORA_FAST=1` has too few steps for any result.)

# %%
import os

import numpy as np

import minilora as ml
from minilora import accounting, data, lora, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, TOKENS, HELD_OUT = (2, 16, (2, 32)) if FAST else (8, 32, (8, 64))
RANKS = (4,) if FAST else (1, 4, 16)
RATES = (3e-3, 1e-2) if FAST else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS, FIRST = (0, 1, 2), 4  # FIRST: the rank that we tried first
ATTENTION, MLP = ("q", "k", "v", "o"), ("up", "down")

base = ml.load_base("shakespeare")
encode = base.tokenizer.encode
training, rest = data.split(data.load_text("kjv"))
training = encode(training)
new = data.sequential(encode(rest), *HELD_OUT)[:1]
frozen = ml.evaluate(base, new)
print(f"held-out loss of the base: {frozen:.3f}")

# %% [markdown]
# One training. `fit` is the loop of chapter 03.

# %%
def train(model, seed, lr, ids=training, steps=STEPS) -> ml.History:
    optimizer = ml.AdamW(model.trainable_parameters(), lr, weight_decay=0.0)
    batches = data.Windows(ids, 2, TOKENS, seed=seed)
    return ml.fit(model, batches, optimizer, steps, progress=False)

def tune(seed, lr, r=FIRST, alpha=FIRST, targets=ATTENTION) -> ml.GPT2:
    model = ml.load_base("shakespeare")
    lora.attach(model, lora.LoRAConfig(r, alpha, targets), rng=seed)
    train(model, seed, lr)
    return model

def deltas(model) -> np.ndarray:
    """Return the ΔW of all adapted layers, in one row."""
    modules = [module for _, module in model.named_modules()]
    layers = [m for m in modules if isinstance(m, lora.LoRALinear)]
    return np.concatenate([ml.asnumpy(m.delta()).ravel() for m in layers])

# %% [markdown]
# ## Two ways to set alpha
#
# The scale is $s = \alpha / r$. If we try another rank, what happens to $\alpha$? There are two
# habits. The paper sets $\alpha$ to the first $r$ that it tries, and leaves it there
# ([§4.1](https://arxiv.org/abs/2106.09685)). Our first rank is 4, so $\alpha = 4$ for every rank.
# Many users set $\alpha = 2r$, so the scale is always 2. We try both, with every rank, rate and
# seed. All else stays the same: the layers (attention), the steps, the text.

# %%
def sweep(alpha_of) -> dict:
    """Return (r, lr) -> a row for each seed: loss, norm of ΔW."""
    results = {}
    for r in RANKS:
        for lr in RATES:
            models = [tune(seed, lr, r, alpha_of(r)) for seed in SEEDS]
            losses = [ml.evaluate(model, new) for model in models]
            sizes = [np.linalg.norm(deltas(model)) for model in models]
            results[r, lr] = list(zip(losses, sizes))
    return results

# %%
def table(results) -> None:
    """Print the medians of the seeds; apart: the worst rank less the best."""
    print("rate  ", *(f"{f'r = {r}':>11}" for r in RANKS))
    print("      ", *[" loss  ‖ΔW‖"] * len(RANKS), " apart")
    for lr in RATES:
        cells = [np.median(results[r, lr], axis=0) for r in RANKS]
        apart = np.ptp([loss for loss, _ in cells])
        row = (f"{loss:5.2f}{size:6.1f}" for loss, size in cells)
        print(f"{lr:<6g}", *row, f"{apart:6.2f}")

print(f"alpha = {FIRST} for every rank")
table(fixed := sweep(lambda r: FIRST))
print("\nalpha = 2r")
table(twice := sweep(lambda r: 2 * r))

# %%
top, bottom = viz.panels(2, 1)
viz.rate_sweep(fixed, top, "alpha = 4: one rate fits all", frozen)
viz.rate_sweep(twice, bottom, "alpha = 2r: it does not", frozen)
viz.show()

# %% [markdown]
# **It depends on what we keep fixed.** With $\alpha$ fixed, the ranks have similar losses in every
# row but the last: a rate that is good for one rank is good for the others. With the scale fixed
# ($\alpha = 2r$) they differ, and the best rate for rank 1 is too high for rank 16. So with the
# paper's habit we need no new search for the rate when the rank changes; with the other we do.
#
# Look at $\|\Delta W\|$ along a row. Adam changes every number by about the rate, and $BA$ is a sum
# of $r$ products. With a fixed scale, $\Delta W$ grows with $r$. With a fixed $\alpha$ the sum is
# divided by $r$, and $\Delta W$ shrinks. So neither habit keeps its size.
#
# At its own best rate, each rank reaches about the same loss in both tables, as in chapter 06,
# where a few directions did most of the work. Our few steps do not show that a larger rank helps.
# (We choose the best rate on the same text that we then compare on: every rank looks a little
# better than it is.)
#
# ## Alpha is a learning rate
#
# What does the scale do? We can move it into the factors: $s\,BA = (\sqrt{s}\,B)(\sqrt{s}\,A)$.
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
def update(s, lr, start=1.0, eps=0.0, decay=0.0) -> np.ndarray:
    """Return ΔW of all adapted layers. `start` multiplies A0."""
    model = ml.load_base("shakespeare")
    lora.attach(model, lora.LoRAConfig(r=4, alpha=4 * s), rng=0)
    trained = model.trainable_parameters()
    for name, p in trained.items():
        if name.endswith(".A"):
            p.data *= start
    optimizer = ml.AdamW(trained, lr=lr, eps=eps, weight_decay=decay)
    batches = data.Windows(training, 2, 16, seed=0)
    ml.fit(model, batches, optimizer, 3, progress=False)
    return deltas(model)

# %% [markdown]
# **Check.** The two runs give the same bits. With Adam's usual $\varepsilon$ they differ a little,
# because a few gradients are so small that $\varepsilon$ matters. Weight decay also makes a
# difference: each step removes a share of $A$ and $B$, the learning rate times the decay, and your
# friend's learning rate is twice yours.

# %%
for s in (4.0,) if FAST else (0.25, 4.0):
    root = s**0.5
    assert (update(s, 1e-2) == update(1.0, root * 1e-2, root)).all()
for how in ({"eps": 1e-8}, {"decay": 0.1}):
    yours, friends = update(4.0, 1e-2, **how), update(1.0, 2e-2, 2.0, **how)
    off = np.linalg.norm(yours - friends) / np.linalg.norm(yours)
    print(f"with {how} they differ by {off:.1e} of ‖ΔW‖")

# %% [markdown]
# So do not search both. §4.1 says nearly the same: to tune $\alpha$ is roughly to tune the rate, if
# the start is scaled too.
#
# ## Which matrices
#
# The paper adapts only attention. We also put about as many trained parameters into the MLP. For
# both we show the better of two rates.

# %%
places = {"attention": (4, ATTENTION), "MLP": (3, MLP)}
for place, (r, targets) in places.items():
    found = {}
    for lr in (3e-3, 1e-2):
        models = [tune(seed, lr, r, FIRST, targets) for seed in SEEDS]
        found[lr] = sorted(ml.evaluate(model, new) for model in models)
    lr = min(found, key=lambda lr: found[lr][1])  # [1]: the median
    low, middle, high = found[lr]
    print(f"{place}: {accounting.count(models[0]).trainable:,} parameters,")
    print(f"  lr {lr:g}: loss {middle:.3f} ({low:.3f} to {high:.3f})")

# %% [markdown]
# The ranges overlap: our three seeds do not say which place is better. QLoRA (Dettmers et al. 2023,
# §4 of [arXiv 2305.14314](https://arxiv.org/abs/2305.14314)) adapts all linear layers, and finds
# that this is needed to reach the quality of full fine-tuning.
#
# ## What is forgotten
#
# The base knew Shakespeare's plays. How much of this does it lose? We print how both losses change.

# %%
def tune_all(seed, lr) -> ml.GPT2:
    model = ml.load_base("shakespeare")
    train(model, seed, lr)
    return model

plays = encode(data.split(data.load_text("plays"), 0.05)[1])
old = data.sequential(plays, *HELD_OUT)[:1]  # held out
known = ml.evaluate(base, old)
print("loss of ...    new text old text (from .. to)")
for way, rates in ((tune, RATES[1:4]), (tune_all, (1e-4, 3e-4))):
    for lr in rates:
        models = [way(seed, lr) for seed in SEEDS]
        gain = np.median([ml.evaluate(m, new) for m in models]) - frozen
        low, lost, high = sorted(ml.evaluate(m, old) - known for m in models)
        name = f"{'LoRA' if way is tune else 'full'}, {lr:g}"
        print(f"{name:<14}{gain:+9.2f}{lost:+9.2f} ({low:.2f} .. {high:.2f})")

# %% [markdown]
# When the new loss falls, the old loss rises. LoRA does not prevent this. $W_0$ is unchanged, but
# the model computes with $W_0 + \Delta W$. The highest rate of LoRA forgets far more than the
# middle one, and learns hardly more. Compare two rows that learned about the same: the middle rate
# of LoRA and the lower rate of full fine-tuning. Here LoRA does not forget less. (In far longer
# trainings it does: Biderman et al. 2024, [arXiv 2405.09673](https://arxiv.org/abs/2405.09673).)
# But LoRA has a way back: remove the adapter, and you have the base again, bit for bit.
#
# ## Break it
#
# Choose by the wrong loss: a training on a few lines looks excellent if the same lines judge it.

# %%
model = ml.load_base("shakespeare")
lora.attach(model, lora.LoRAConfig(r=16, alpha=32, targets=ATTENTION), rng=0)
history = train(model, 0, 1e-2, ids=training[:200], steps=30 if FAST else 60)
first, last = history.losses[0], history.losses[-1]
after = ml.evaluate(model, new)
assert after > frozen, "this should have failed"
print(f"Caught: training loss {first:.2f} -> {last:.2f}, but")
print(f"held-out loss {frozen:.2f} -> {after:.2f}, worse than the base's")

# %% [markdown]
# ## What you built, and what is next
#
# You built a fair comparison: each choice at its own rate, several seeds, a held-out text.
# **Next:** chapter 09 merges the update into the weights.
