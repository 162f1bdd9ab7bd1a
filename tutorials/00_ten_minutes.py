# %% [markdown]
# # 00. Ten minutes
#
# A pretrained model is frozen. A small update is trained beside its weights, saved to a file, and
# added into the weights. The merged model writes what the adapted one wrote, at the cost of the
# original. That is LoRA (Hu et al., 2021, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)),
# and this chapter goes through all of it once.
#
# You need Python and the idea of a matrix product. Everything runs on NumPy, on one core, without
# a download. With `MINILORA_FAST=1` the same cells run with a handful of steps on small batches:
# what is said of gradients, files and merging still holds, but the curves are stubs and the
# samples barely change.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import minilora as ml
from minilora import accounting, data, lora, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TOKENS = (6, 2, 32) if FAST else (60, 8, 64)
SEED = 0

# %% [markdown]
# ## A base
#
# The package brings a small GPT-2 that was pretrained on Shakespeare's plays, by this engine. The
# tree below is the model: `*` marks what would be trained, and so far that is everything.

# %%
base = ml.load_base("shakespeare")
print(base.summary())

# %% [markdown]
# One prompt will be with us to the end of the chapter. It is not a line from a play.

# %%
PROMPT = "And God said"


def sample(model: ml.GPT2) -> str:
    ids = base.tokenizer.encode(PROMPT)
    out = ml.generate(model, ids, 16 if FAST else 60, temperature=0.7, top_p=0.9, rng=SEED)
    return base.tokenizer.decode(out)


before = sample(base)
print(before)

# %% [markdown]
# ## A new text
#
# The new text is prose: Genesis and Exodus in the King James Version. Its last tenth is held out.
# Held-out loss is the mean cross-entropy of the next token, in nats, on text that is never trained
# on. The first number is that of the base as it is; it is the line to beat.

# %%
training, rest = (base.tokenizer.encode(t) for t in data.split(data.load_text("kjv")))
batches = data.Windows(training, BATCH, TOKENS, seed=SEED)
held_out = data.sequential(rest, batch=8, tokens=2 * TOKENS)[: 1 if FAST else 3]

frozen_loss = ml.evaluate(base, held_out)
print(f"{len(training):,} tokens to train on; held-out loss of the base: {frozen_loss:.3f}")

# %% [markdown]
# ## Full fine-tuning
#
# The usual way: take a copy of the base and train every weight of it. For each weight the optimizer
# AdamW keeps two running means, so that every trained number is held four times: itself, its
# gradient, its two means.


# %%
def train(model: ml.GPT2, peak: float) -> tuple[ml.AdamW, ml.History]:
    optimizer = ml.AdamW(model.trainable_parameters(), lr=peak, weight_decay=0.0)
    schedule = ml.optim.linear_schedule(peak, STEPS, warmup=STEPS // 10)
    history = ml.fit(
        model, batches, optimizer, STEPS, schedule=schedule, max_grad_norm=1.0,
        held_out=held_out, eval_every=max(1, STEPS // 6), log_every=STEPS // 3,
    )  # fmt: skip
    return optimizer, history


full = ml.load_base("shakespeare")
full_optimizer, full_history = train(full, peak=1e-3)

# %% [markdown]
# ## LoRA
#
# LoRA leaves each weight matrix $W_0$ as it is and trains an update of low rank beside it:
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x, \qquad
#    W_0 \in \mathbb{R}^{d \times k},\; B \in \mathbb{R}^{d \times r},\;
#    A \in \mathbb{R}^{r \times k}. $$
#
# With $r$ far below $d$ and $k$, the pair $B$, $A$ has $r(d + k)$ numbers where $W_0$ has $dk$.
# `attach` freezes the whole model, then gives every layer that is named an $A$ of small random
# numbers and a $B$ of zeros. In the tree, `*` now stands at the A and B alone.

# %%
config = ml.LoRAConfig(r=8, alpha=16, targets=("q", "k", "v", "o", "up", "down"))
model = ml.load_base("shakespeare")
lora.attach(model, config, rng=SEED)
print(model.summary())

# %% [markdown]
# ### The first step
#
# **Predict.** $B$ is zero, so the update $BA$ is zero and the model computes what the base
# computes. After one backward pass, which of the two has a gradient that is not zero: $A$, $B$,
# both, or neither?
#
# <details><summary>Answer</summary>
#
# Only $B$. Write $g$ for the gradient of the loss with respect to $y$, and $s = \alpha / r$. Then
# $dB = s\, g\, (A x)^\top$ has $A$ in it, which is random, and $dA = s\, B^\top g\, x^\top$ has $B$
# in it, which is zero. The first step moves $B$; from the second step on, both move.
#
# </details>

# %%
inputs, targets = batches[0]
ml.ops.cross_entropy(model(inputs), targets).backward()

gradients = {name: p.grad for name, p in model.trainable_parameters().items()}
for letter in "AB":
    largest = max(abs(g).max() for name, g in gradients.items() if name.endswith(f".{letter}"))
    print(f"largest entry of any d{letter}: {largest:.2e}")

assert all((g == 0).all() for name, g in gradients.items() if name.endswith(".A"))
assert all((g != 0).any() for name, g in gradients.items() if name.endswith(".B"))

# %% [markdown]
# Nothing has moved yet. Now the same steps on the same batches. The learning rate is higher than in
# full fine-tuning: each method has its own best one.

# %%
W0 = {name: p.data.copy() for name, p in model.named_parameters() if not p.requires_grad}
optimizer, history = train(model, peak=1e-2)

unchanged = ml.History(held_out=[(0, frozen_loss), (STEPS, frozen_loss)])
ax = viz.loss_curves({"frozen base": unchanged, "LoRA": history, "full fine-tuning": full_history})
ax.set_title("Held-out loss on the new text")
viz.show()

# %% [markdown]
# LoRA takes most of the way down with a small share of the parameters. On a base as small as this
# one, full fine-tuning gets further in the same number of steps; chapter 08 looks at what rank,
# learning rate and choice of layers do to that gap. What LoRA saves is counted here:

# %%
counts = {name: accounting.count(m).trainable for name, m in (("full", full), ("LoRA", model))}
ledgers = {
    "full": accounting.ledger(full, full_optimizer, BATCH, TOKENS),
    "LoRA": accounting.ledger(model, optimizer, BATCH, TOKENS),
}
_, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 4.2), layout="constrained")
viz.parameter_bars(counts, ax=top).set_title("Trained parameters")
viz.memory_bars(ledgers, ax=bottom)
viz.show()

# %% [markdown]
# Gradients and Adam's moments shrink with the trained parameters. Activations shrink far less: the
# gradient still travels down through every frozen layer to reach the lowest $A$ and $B$. How much
# memory LoRA saves therefore depends on what dominates, weights or activations.
#
# ## Save the adapter
#
# The base is still what it was, so the file needs to hold only $A$ and $B$. Load it onto a fresh
# copy of the base, and the adapted model is back, to the last bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = lora.save(model, Path(folder) / "king_james.npz")
    whole = ml.save_model(base, Path(folder) / "base.npz")
    print(f"adapter: {path.stat().st_size / 1024:,.0f} KiB", end="; ")
    print(f"whole model: {whole.stat().st_size / 1024:,.0f} KiB")
    again = ml.load_base("shakespeare")
    lora.load(again, path)

ids = held_out[0][0][:1]  # (1, tokens)
assert (again(ids).data == model(ids).data).all()

# %% [markdown]
# ## Merge
#
# $W_0 x + s B A x = (W_0 + s B A)\, x$. So add the update into the weights once, and put plain
# layers back: the merged model has the layers of the base, and its speed.
#
# In floating point the two sides agree up to rounding, no better. How far apart may they be?
# `lora.verify` holds every weight and logit against what rounding can do. Chapter 09 derives that.

# %%
adapted, logits = sample(model), model(ids).data
proof = lora.verify(model, ids)
now = dict(model.named_parameters())
assert all((now[name].data == array).all() for name, array in W0.items())  # never written

lora.merge(model)
merged = sample(model)
print(proof)

# %% [markdown]
# **Check.** The adapted and the merged model differ by no more than rounding explains, and they
# write the same text.

# %%
assert proof.passed
assert abs(model(ids).data - logits).max() <= proof.logits.probable
assert merged == adapted
print(f"the base wrote:\n{before}\n\nthe merged model writes:\n{merged}")

# %% [markdown]
# ## Break it
#
# If zeros in $B$ are good, why not zeros in $A$ as well? The model starts at the base either way.
# Train that for a few steps and ask whether the held-out loss moved.

# %%
broken = ml.load_base("shakespeare")
lora.attach(broken, config, rng=SEED)
for name, p in broken.trainable_parameters().items():
    if name.endswith(".A"):
        p.data[...] = 0

ml.fit(broken, batches, ml.AdamW(broken.trainable_parameters(), 1e-2), steps=3, progress=False)
try:
    assert ml.evaluate(broken, held_out) != frozen_loss, "the loss has not moved by a single bit"
except AssertionError as error:
    print(f"Caught: {error}")
else:
    raise RuntimeError("this was meant to fail")

# %% [markdown]
# $dA$ has $B$ in it and $dB$ has $A$ in it. With both at zero, both gradients are zero, at this
# step and at every later one. One of the two has to start away from zero, and one at zero.
#
# ## What you built, and what is next
#
# You adapted a frozen model with a low-rank update, saved the update alone, merged it, and saw
# nothing change.
#
# **Next:** chapter 01 builds the engine that computed these gradients, and chapter 07 the LoRA
# layer itself. **Exercise 06** asks for LoRA's forward pass and its start; **exercise 08** for
# merging and unmerging.
