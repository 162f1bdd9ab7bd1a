# %% [markdown]
# # 06. Is the update low rank?
#
# *The reader can then:* measure how many directions a fine-tuning needs, and say what that shows.
# *Time:* 25 minutes. *Needs:* chapter 05.
# *Remember:* A few directions of the update do most of its work, but not all of it.
#
# LoRA writes the change of a weight matrix as a product of two thin matrices, so the rank of the
# change is at most $r$. The paper assumes that a small $r$ is enough (§4.1), following Aghajanyan
# et al. (2020, [arXiv 2012.13255](https://arxiv.org/abs/2012.13255)). Here nothing limits the rank:
# we train all weights, and then look at the changes. We look most closely at one matrix: the value
# projection of the first block. (`MINILORA_FAST=1` trains for two steps: its numbers mean nothing.)

# %%
import os

import numpy as np

import minilora as ml
from minilora import data, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TOKENS = (2, 2, 32) if FAST else (40, 8, 64)
RANKS = (1, 160) if FAST else (1, 2, 4, 8, 16, 32, 64, 160)  # 160: full
SEEDS, MATRIX = (0, 1, 2), "blocks.0.attn.v.W"  # (160, 160)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Directions and their energy
#
# The singular value decomposition (SVD) writes any matrix as a sum of simple matrices:
#
# $$ D = \sum_i \sigma_i\, u_i v_i^\top, \qquad \sigma_1 \ge \sigma_2 \ge \dots \ge 0. $$
#
# Each term is a **direction**: it reads one number from the input, $v_i^\top x$, and writes
# $\sigma_i u_i$ times that number. The **rank** is the number of terms with $\sigma_i > 0$. If $B$
# has $r$ columns and $A$ has $r$ rows, $BA$ is a sum of $r$ terms, so its rank is at most $r$.
#
# The $u_i$ have length 1 and are orthogonal to each other, and so are the $v_i$. So the sum of the
# squares of all entries of $D$ (its *norm*, squared) is $\sum_i \sigma_i^2$. We call it the
# **energy** of $D$. How many directions contain most of it?

# %%
def sizes(D: np.ndarray) -> np.ndarray:
    """Return the singular values, largest first."""
    return np.linalg.svd(D, compute_uv=False)

def share(D: np.ndarray) -> np.ndarray:
    """Return the share of energy in the first 1, 2, ... directions."""
    energy = sizes(D) ** 2
    return np.cumsum(energy) / energy.sum()

def first(D: np.ndarray, ranks) -> dict[int, np.ndarray]:
    """Return r -> the sum of the first r terms: the best of rank r."""
    U, s, Vt = np.linalg.svd(D, full_matrices=False)
    return {r: (U[:, :r] * s[:r]) @ Vt[:r] for r in ranks}

# %% [markdown]
# **Check.** The first $r$ terms leave out exactly the energy of the other terms. Then we test two
# matrices with a known answer: a sum of 8 directions, and independent random numbers.

# %%
noise = rng.standard_normal((160, 160))
rank_8 = rng.standard_normal((160, 8)) @ rng.standard_normal((8, 160))
left_out = noise - first(noise, [8])[8]
energy = (left_out**2).sum() / (noise**2).sum()
assert np.isclose(energy, 1 - share(noise)[7])  # [7]: 8 directions
assert np.isclose(share(rank_8)[7], 1)
for name, D in (("sum of 8 directions", rank_8), ("random", noise)):
    print(f"{name}: {share(D)[7]:.0%} in 8 of 160;", end=" ")
    print("σ of 7 to 10:", sizes(D)[6:10].round(1))

# %% [markdown]
# Even for random numbers, the first 8 directions contain more than 8/160 of the energy, because
# they are the largest. So a share means something only if we compare it with a random matrix of the
# same size.
#
# ## Fine-tune everything
#
# The base knows Shakespeare's plays. We train all its weights on Genesis and Exodus, three times,
# each time with other batches. We keep $\Delta W = W - W_0$ for every parameter. During training we
# print, for one matrix, the share of the energy that is in 8 directions.

# %%
base = ml.load_base("shakespeare")
W0 = base.state_dict()  # name -> array
training, rest = data.split(data.load_text("kjv"))
training, rest = base.tokenizer.encode(training), base.tokenizer.encode(rest)
held_out = data.sequential(rest, BATCH, 2 * TOKENS)[: 1 if FAST else 2]
start = ml.evaluate(base, held_out)
print(f"held-out loss of the base: {start:.3f}")

# %%
def change(model) -> dict[str, np.ndarray]:
    """Return name -> ΔW."""
    return {name: W - W0[name] for name, W in model.state_dict().items()}

def fine_tune(seed: int) -> ml.GPT2:
    model, shares = ml.load_base("shakespeare"), []

    def report(line: str) -> None:  # fit calls it ten times
        shares.append(f"{share(change(model)[MATRIX])[7]:.0%}")

    batches = data.Windows(training, BATCH, TOKENS, seed=seed)
    optimizer = ml.AdamW(model.trainable_parameters(), weight_decay=0.0)
    rate = ml.optim.linear_schedule(1e-3, STEPS, warmup=STEPS // 10)
    ml.fit(model, batches, optimizer, STEPS, schedule=rate, max_grad_norm=1.0,
           progress=report)
    print(f"seed {seed}: shares in 8 directions:", *shares)
    return model

models = [fine_tune(seed) for seed in SEEDS]
updates = [change(model) for model in models]
tuned = np.median([ml.evaluate(model, held_out) for model in models])
print(f"held-out loss {start:.2f} -> {tuned:.2f} (median)")

# %% [markdown]
# **Predict.** How many of the 160 directions contain 90 % of the energy of a $\Delta W$ in
# attention: about 8, about 30, or about 80?
#
# <details><summary>Answer</summary>
#
# About 30. A random matrix needs about 80, so the update is far from random. But it is not a matrix
# of rank 8 either.
#
# </details>

# %%
def cell(matrices) -> str:
    """Return means: energy in 8 directions, directions with 90 % of it."""
    shares = np.array([share(D) for D in matrices])
    needed = 1 + (shares < 0.9).sum(axis=1)
    return f"{shares[:, 7].mean():6.0%}{needed.mean():5.0f}"

print("energy in 8 directions, directions with 90 % of the energy")
print(f"{'':14}{'ΔW':>9}{'W0':>11}{'random':>13}")
for kind in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"):
    names = [name for name in W0 if name.endswith(f"{kind}.W")]
    changes = [update[name] for update in updates for name in names]
    old = [W0[name] for name in names]
    random = rng.standard_normal(old[0].shape)
    print(f"{kind:14}{cell(changes)}{cell(old)}{cell([random])}")

# %% [markdown]
# ## Are the first directions the useful ones?
#
# Training aims at a low loss, not at energy. So we reduce every $\Delta W$, also those of the two
# embeddings, to its first $r$ directions. We add the result to $W_0$, and evaluate the held-out
# loss. Biases and layer norms are vectors: they keep their entire change, and at $r = 0$ only they
# change. For comparison, we also take $r$ random directions.

# %%
def at_random(D: np.ndarray, ranks) -> dict[int, np.ndarray]:
    """Return r -> D projected on r random directions of 160."""
    result = {}
    for r in ranks:
        Q = np.linalg.qr(rng.standard_normal((160, r)))[0]
        result[r] = Q @ (Q.T @ D) if len(D) == 160 else D @ Q @ Q.T
    return result

def losses(update: dict[str, np.ndarray], cut) -> dict[int, float]:
    """Return r -> held-out loss of W0 + cut ΔW (r = 0: vectors alone)."""
    matrices = {name: D for name, D in update.items() if D.ndim == 2}
    parts = {name: cut(D, (0, *RANKS)) for name, D in matrices.items()}
    model, result = ml.load_base("shakespeare"), {}
    for r in (0, *RANKS):
        D = update | {name: by_rank[r] for name, by_rank in parts.items()}
        state = {n: (W + D[n]).astype("float32") for n, W in W0.items()}
        model.load_state_dict(state)
        result[r] = ml.evaluate(model, held_out)
    return result

# %%
best = [losses(update, first) for update in updates]
chance = [losses(update, at_random) for update in updates]
print("r: share of the gain in loss with r first, r random directions")
for r in (0, *RANKS):
    print(f"{r:3}", end="")
    for kind in (best, chance):
        gain = start - np.median([loss[r] for loss in kind])
        print(f"{gain / (start - tuned):8.0%}", end="")
    print()

# %%
of_update = np.mean([sizes(update[MATRIX]) for update in updates], axis=0)
spectra = {"full ΔW": of_update, "W0": sizes(W0[MATRIX])}
spectra["random"] = sizes(noise)
title = "σ falls faster than by chance, without a clear end"
viz.spectrum(spectra, title=title, norm=1.0)
viz.show()

# %%
sweeps = {"full ΔW, first r": {r: [loss[r] for loss in best] for r in RANKS},
          "random r": {r: [loss[r] for loss in chance] for r in RANKS}}
vectors = np.median([loss[0] for loss in best])
levels = {"frozen base": start, "vectors alone": vectors, "full: all": tuned}
title = "A few directions do most of the work"
viz.rank_sweep(sweeps, title=title, levels=levels)
viz.show()

# %% [markdown]
# ## What we found, and what we did not find
#
# **Found:** $\Delta W$ has its energy in fewer directions than a random matrix, and in fewer than
# $W_0$. For the loss the effect is stronger: the first few directions give most of the gain, and as
# many random directions give far less. Biases and layer norms alone give a part of it.
#
# **Not found:** a rank. Neither the singular values nor the gain stop at some $r$, and the last
# part of the gain takes tens of directions. During training the share in 8 directions fell. In a
# longer training it might fall further; we did not measure that. We reduced the rank *after*
# training. Is training *within* rank $r$ as good? The next chapters ask that. And this is one small
# model, one pair of texts, and one optimizer.
#
# ## Break it
#
# There are two ways to "find" a low rank that is not there. The first is circular: train
# $\Delta W = BA$ with $r = 8$ and "discover" rank 8. The matrix `rank_8` above had rank 8 without
# any training. The second is a mistake: forget to subtract $W_0$. We show it on a *control*, an
# update that we know is random.

# %%
size = np.linalg.norm(updates[0][MATRIX]) / np.linalg.norm(noise)
control = W0[MATRIX] + size * noise  # a random ΔW
right, wrong = share(control - W0[MATRIX])[7], share(control)[7]
print(f"in 8 directions: W - W0 {right:.0%}, W alone {wrong:.0%}", end=", ")
print(f"random {share(noise)[7]:.0%}")
assert np.isclose(right, share(noise)[7], rtol=1e-3)
assert wrong > 1.2 * right
print("Caught: without the subtraction, even a random update looks low rank")

# %% [markdown]
# ## What you built, and what is next
#
# You built a measure of rank, with a random matrix for comparison, and applied it to a real
# fine-tuning.
#
# **Next:** chapter 07 builds the layer that trains only $r$ directions from the start.
