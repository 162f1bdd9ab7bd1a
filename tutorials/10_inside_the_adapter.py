# %% [markdown]
# # 10. Inside the adapter
#
# *The reader can then:* ask what an update contains, and judge each answer beside a random update.
# *Time:* 25 minutes. *Needs:* chapter 09.
# *Remember:* A similarity or a factor means nothing until you know its value for a random update.
#
# What did the training write into $BA$? The paper (§7) asks two questions. Do two trainings find
# the same directions? And how does $\Delta W$ relate to the $W$ that it changes? We build both
# measures, and a third one from a later paper. Beside every number we put the same number for an
# update with random directions: a *control*. (`MINILORA_FAST=1` trains for too few steps.)

# %%
import os

import numpy as np

import minilora as ml
from minilora import analysis, data, lora, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, SHAPE = (3, (2, 16)) if FAST else (60, (4, 64))
FEW, MANY = 8, 32  # the two ranks

# %% [markdown]
# ## Three adapters of one task
#
# We train the base of chapter 00 on its new text three times: with rank 8, with rank 32, and with
# rank 32 again from another seed. Then we follow one matrix: $v$ of the last block.

# %%
base = ml.load_base("shakespeare")
encode = base.tokenizer.encode
text = encode(data.split(data.load_text("kjv"))[0])
PATH = f"blocks.{len(base.blocks) - 1}.attn.v.W"

def tune(r: int, seed: int, steps: int = STEPS) -> ml.GPT2:
    model = ml.load_base("shakespeare")
    config = lora.LoRAConfig(r, alpha=FEW, targets=("q", "v"))
    lora.attach(model, config, rng=seed)
    adamw = ml.AdamW(model.trainable_parameters(), 1e-2, weight_decay=0.0)
    batches = data.Windows(text, *SHAPE, seed=seed)
    ml.fit(model, batches, adamw, steps, progress=False)
    return model

tuned = [tune(FEW, seed=0), tune(MANY, seed=1), tune(MANY, seed=2)]
few, many, again = (analysis.updates(model)[PATH] for model in tuned)
W = np.float64(ml.asnumpy(base.blocks[-1].attn.v.W.data))  # (d, k)
d, k = W.shape

# %% [markdown]
# `updates` returns each $\Delta W$ as its scale and factors, $(s, B, A)$. Its singular values show
# how many directions it uses (chapter 06), and its size beside $W$.

# %%
def size(scale, B, A) -> float:
    return np.linalg.norm(scale * B @ A)

for name, update in (("r = 8", few), ("r = 32", many), ("again", again)):
    ratio, n = size(*update) / np.linalg.norm(W), analysis.rank_for(update)
    print(f"{name:7} ‖ΔW‖ / ‖W‖ = {ratio:.2f}; "
          f"{n} directions have 90 % of ‖ΔW‖²")

# %% [markdown]
# All three use far fewer directions than they have, and rank 32 hardly more than rank 8.
#
# ## Do two trainings find the same directions?
#
# Take the first $i$ right singular vectors of one update, and the first $j$ of another one. They
# span two subspaces. The paper's similarity (§7.2, equation 4) compares them:
#
# $$ \phi(i, j) = \frac{\| V_{1,i}^\top V_{2,j} \|_F^2}{\min(i, j)}. $$
#
# It is 0 if the two subspaces are orthogonal, and 1 if one contains the other.

# %%
def directions(scale, B, A) -> np.ndarray:
    """Return the right singular vectors of ΔW as rows, largest first."""
    return np.linalg.svd(scale * B @ A)[2][: len(A)]

def phi(V1: np.ndarray, V2: np.ndarray, i: int, j: int) -> float:
    overlap = V1[:i] @ V2[:j].T  # the cosines between the vectors
    return (overlap**2).sum() / min(i, j)

# %% [markdown]
# **Predict.** You draw two subspaces at random in a space of 160 dimensions, one with 8 dimensions
# and one with 32. How similar are they: exactly 0, about 0.05, or about 0.2?
#
# <details><summary>Answer</summary>
#
# About 0.2. A vector of length 1 has the squared length $j / k$ in a random subspace with $j$ of
# $k$ dimensions, on average. So $\phi$ is about $\max(i, j) / k$. It becomes 1 as soon as one of
# the two is the entire space. GPT-3 has 12,288 dimensions, so there chance gives almost 0. In a
# small model it does not.
#
# </details>
#
# **Check.** Our function gives the numbers of `minilora.analysis`, for a trained pair and for
# random updates. These have the same singular values as the trained ones: only their directions are
# random.

# %%
rng = np.random.default_rng(0)
control = [analysis.random_like(update, rng) for update in (few, many)]
chance = [np.linalg.svd(dW)[2] for dW in control]
print(" i   j   trained   random   expected")
for i, j in ((1, 1), (4, 4), (8, 8), (8, 32)):
    ours = phi(directions(*few), directions(*many), i, j)
    assert abs(ours - analysis.subspace_similarity(few, many, i, j)) < 1e-6
    print(f"{i:2}  {j:2}{ours:10.2f}{phi(*chance, i, j):9.2f}"
          f"{analysis.random_similarity(k, i, j):11.2f}")

# %%
grids = {
    "two ranks": analysis.subspace_grid(few, many, FEW, 16),
    "two seeds": analysis.subspace_grid(many, again, FEW, 16),
    "random": analysis.subspace_grid(*control, FEW, 16),
}
title = "The first direction is shared most"
viz.subspace_similarity(grids, None, title, names=("one", "the other"))
viz.show()

# %% [markdown]
# Trained updates are more similar than random ones, most of all in the first direction (the first
# row and column). The paper sees the same for GPT-3, and takes it as a reason why a very small rank
# is enough. But look at the last two rows of the table: from (8, 8) to (8, 32) $\phi$ grows almost
# as much for random updates. Without them you would call that a similarity.
#
# ## How does the update relate to W?
#
# Project $W$ onto the top $r$ directions of $\Delta W$, on both sides: $U^\top W V$, an $r \times
# r$ matrix. Its norm says how much of $W$ lies there. The paper (§7.3, table 7) divides:
#
# $$ \mathrm{amplification} = \frac{\|\Delta W\|_F}{\|U^\top W V\|_F}. $$
#
# A large factor means: the update is large in directions in which $W$ is small.

# %%
def inside(W: np.ndarray, dW: np.ndarray, r: int) -> float:
    """Return ‖Uᵀ W V‖ for the top r singular vectors of dW."""
    U, _, Vt = np.linalg.svd(dW)
    return np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)

def row(update, r: int, draws: int = 2 if FAST else 20) -> list[float]:
    """Return ‖Uᵀ W V‖ in ΔW's, W's and random directions; two factors."""
    scale, B, A = update
    dW = np.float64(scale * B @ A)
    random = [inside(W, analysis.random_like(update, rng), r)
              for _ in range(draws)]
    norms = [inside(W, dW, r), inside(W, W, r), np.mean(random)]
    return [*norms, size(*update) / norms[0], size(*update) / norms[2]]

print("‖Uᵀ W V‖ in directions of   ΔW    W itself   random")
table = {r: row(many, r) for r in (2, 4, 8, 16, MANY)}
for r, (own, best, random, *_) in table.items():
    print(f"{f'r = {r}':23}{own:8.2f}{best:11.2f}{random:9.2f}")

# %%
curves = {name: (list(table), [row[i] for row in table.values()])
          for name, i in (("trained update", 3), ("random directions", 4))}
title = "A random update of the same norm has a larger factor"
viz.curves(curves, None, title, "directions, r", "amplification factor",
           log="y")
viz.show()

# %% [markdown]
# There are three things to see. $\|U^\top W V\|$ is much smaller in the directions of the update
# than in $W$'s own: the update does not repeat them. It is larger than by chance: the update is
# related to $W$. And the factor is above 1 and falls with $r$. (It must: $\|\Delta W\|$ stays, and
# $\|U^\top W V\|$ grows. In the paper each $r$ is another adapter.) But the curve of the random
# update is *higher*. So a large factor does not show that training found something in $W$ to
# amplify: every update of this norm has one, and only the distance between the curves says
# something.
#
# ## Intruders
#
# A third measure (Shuttleworth et al. 2024, [arXiv 2410.21228](https://arxiv.org/abs/2410.21228))
# looks at the result, $W + \Delta W$. A top singular vector of it that resembles no singular vector
# of $W$ (here: no |cosine| of 0.5 or more) is an *intruder*. The authors find them after LoRA, and
# hardly any after full fine-tuning.

# %%
def intruders(dW: np.ndarray, top: int = 10, eps: float = 0.5) -> int:
    before, after = np.linalg.svd(W)[0], np.linalg.svd(W + dW)[0]
    cosines = abs(before.T @ after[:, :top]).max(axis=0)
    return int((cosines < eps).sum())

print("among the top 10 of W + ΔW: trained, random directions (5 draws)")
for name, update in (("r = 8", few), ("r = 32", many), ("again", again)):
    scale, B, A = update
    drawn = [intruders(analysis.random_like(update, rng)) for _ in range(5)]
    print(f"{name:7}{intruders(scale * np.float64(B) @ A):6}   {drawn}")

# %% [markdown]
# A random update with the same singular values plants intruders as well, though fewer on average.
# So the count alone does not say that LoRA learned in a special way: a few strong directions are
# enough. Compare the two columns, not the first one with 0.
#
# ## Break it
#
# The paper compares the matrices $A$. But $A$ does not start at zero, and it keeps a part of its
# random start. Start two adapters with the same seed, and train only one of them. The other has
# learned nothing at all. Are their $A$ similar?

# %%
untrained = ml.load_base("shakespeare")
config = lora.LoRAConfig(MANY, alpha=FEW, targets=("q", "v"))
lora.attach(untrained, config, rng=1)  # the seed of `many`
start = ml.asnumpy(untrained.blocks[-1].attn.v.adapters["default"].A.data)
V0, V1 = np.linalg.svd(start)[2], np.linalg.svd(many[2])[2]
similar, by_chance = phi(V0, V1, MANY, MANY), MANY / k
assert similar > by_chance + 0.1, "this should have failed"
print(f"Caught: φ = {similar:.2f}, by chance {by_chance:.2f}, yet the")
print("first A has learned nothing. Compare ΔW: it starts at zero.")

# %% [markdown]
# ## What you built, and what is next
#
# You built the paper's similarity and amplification, a count of intruders, and a control for each.
# `minilora reproduce subspace`, `amplification` and `intruders` measure them with more
# seeds, on another task: there the first direction is not always shared.
#
# **Next:** chapter 11 puts many adapters on one base.
