# %% [markdown]
# # 09. Merge
#
# *The reader can then:* separate rounding from a mistake in a merge, and say what a merge can lose.
# *Time:* 25 minutes. *Needs:* chapter 08.
# *Remember:* Rounding shrinks when you compute in float64; a mistake does not.
#
# $W_0 x + s B A x = (W_0 + s B A)\, x$ is true on paper. A computer rounds every operation, so the
# two sides differ a little. How large can the difference be? How can a test separate rounding from
# a mistake? What does a merge lose, and how do we undo it? (`MINILORA_FAST=1` tests fewer cases.)

# %%
import os
import time
from unittest import mock

import numpy as np

import minilora as ml
from minilora import data, lora, viz

FAST = os.environ.get("MINILORA_FAST") == "1"

# %% [markdown]
# ## One layer, one input
#
# We train an adapter for a few steps, as in chapter 08, and follow one layer: the first query
# projection, with its input at the last token of "And God said". (We leave out the bias.)

# %%
model = ml.load_base("shakespeare")
config = lora.LoRAConfig(r=4, alpha=8, targets=("q", "k", "v", "o"))
lora.attach(model, config, rng=0)
text = model.tokenizer.encode(data.load_text("kjv")[:50_000])
batches = data.Windows(text, batch=4, tokens=32, seed=0)
optimizer = ml.AdamW(model.trainable_parameters(), lr=3e-3)
ml.fit(model, batches, optimizer, steps=4 if FAST else 15, progress=False)

# %%
block, ids = model.blocks[0], model.tokenizer.encode("And God said")
layer, adapter = block.attn.q, block.attn.q.adapters["default"]
inputs = model.tok(ids) + model.pos(np.arange(len(ids)))  # (tokens, k)
x = ml.asnumpy(block.ln1(inputs))[-1]  # (k,)
W0 = ml.asnumpy(layer.base.W).copy()
A, B, alpha = ml.asnumpy(adapter.A), ml.asnumpy(adapter.B), adapter.alpha
size = np.linalg.norm(adapter.scale * B @ A) / np.linalg.norm(W0)
print(f"the update has {100 * size:.1f} % of the norm of W0")

# %%
def unmerged(W0, A, B, alpha, x):
    return W0 @ x + x.dtype.type(alpha / len(A)) * (B @ (A @ x))

def merge(W0, A, B, alpha):
    """Return W0 + s B A, computed in float64 and rounded once."""
    BA = np.float64(B) @ np.float64(A)
    return (W0 + alpha / len(A) * BA).astype(W0.dtype)

for dtype in (np.float32, np.float64):
    *case, one = (a.astype(dtype) for a in (W0, A, B, x))
    error = merge(*case, alpha) @ one - unmerged(*case, alpha, one)
    print(f"{dtype.__name__}: they differ by up to {abs(error).max():.1e}")

# %% [markdown]
# ## How large can the difference be?
#
# An operation returns the float nearest to its exact result. That is the exact result times
# $1 + \delta$, with $|\delta| \le u$. In float32 $u$ is $2^{-24}$, in float64 $2^{-53}$. Follow one
# term of an output, $s\, b_{il}\, a_{lj}\, x_j$, and count how often it is rounded.
#
# - *Unmerged.* The product with $x_j$ and the sum over $j$ take at most $k$ roundings. The product
#   with $b_{il}$ and the sum over $l$ take at most $r$. Three more: $s = \alpha / r$, the product
#   with $s$, and the addition to $W_0 x$.
# - *Merged.* $BA$ takes at most $r$. Three more: $s$, the product with $s$, and the addition to
#   $W_0$. The product with $x_j$ and the sum over $j$ take at most $k$. (For float32, `merge`
#   computes $W$ in float64 and rounds it once. This is more precise.)
#
# A term of $W_0 x$ has fewer roundings. So each term has at most $n = k + r + 3$. In any order of
# summation, rounding multiplies it by $(1 + \delta_1) \cdots (1 + \delta_n)$. This factor differs
# from 1 by at most $\gamma = nu / (1 - nu)$ (Higham, *Accuracy and Stability of Numerical
# Algorithms*, §3.1). So the error of each side is at most $\gamma$ times the sum of the terms'
# absolute values. For both sides together:
#
# $$ |\mathrm{merged} - \mathrm{unmerged}| \le 2\gamma\, T, \qquad
#    T = |W_0|\,|x| + |s|\,|B|\,|A|\,|x|. $$

# %%
def difference(merge, dtype, W0, A, B, alpha, x):
    """Return |merged - unmerged| and its bound, for each output."""
    W0, A, B, x = (a.astype(dtype) for a in (W0, A, B, x))
    error = np.abs(merge(W0, A, B, alpha) @ x - unmerged(W0, A, B, alpha, x))
    nu = (len(x) + len(A) + 3) * np.finfo(dtype).eps / 2
    W0, A, B, x = (np.abs(np.float64(a)) for a in (W0, A, B, x))
    terms = W0 @ x + abs(alpha) / len(A) * (B @ (A @ x))
    return error, 2 * nu / (1 - nu) * terms

# %% [markdown]
# **Check.** A right merge stays below the bound for all sizes, scales and numbers. A loop searches
# random cases for a counterexample. For our merge it finds none. With the scale $\alpha$ instead of
# $\alpha / r$ it finds one. ($d$ and $k$ differ, so that a missing transpose cannot hide. We leave
# out numbers so close to zero that floats become less precise.)

# %%
def counterexample(merge, trials: int):
    """Describe a case in which `merge` exceeds the bound, or return None."""
    rng = np.random.default_rng(0)
    for _ in range(trials):
        d, k, r = (int(rng.integers(1, n)) for n in (80, 80, 9))
        alpha = float(r * rng.choice([0.25, 0.5, 2, 4]))  # not r
        case = [2.0 ** rng.integers(-3, 4) * rng.normal(size=shape)
                for shape in ((d, k), (r, k), (d, r))]
        for dtype in (np.float32, np.float64):
            x = rng.standard_normal(k)
            error, bound = difference(merge, dtype, *case, alpha, x)
            if not (error <= bound).all():
                i = np.argmax(error / bound)
                return f"{d=} {k=} {r=}: {error[i]:.1e} > {bound[i]:.1e}"
    return None

def by_alpha(W0, A, B, alpha):
    return merge(W0, A, B, alpha * len(A))  # forgets to divide by r

assert counterexample(merge, trials=50 if FAST else 2000) is None
print("alpha for alpha / r:", counterexample(by_alpha, trials=50))

# %% [markdown]
# ## Break it
#
# The bound allows for the worst case, in which all rounding errors have the same sign. This almost
# never happens, so the bound is far above the usual error. For an entire model (`lora.verify`
# counts the roundings op by op) it is so high that an update that is 1 % too large stays below it.

# %%
right = lora.Adapted.delta  # ΔW, which the library adds to W0

def too_large(layer): return 1.01 * right(layer)

with mock.patch.object(lora.Adapted, "delta", too_large):
    proof = lora.verify(model, ids[None])
off = proof.logits
assert off.difference <= off.bound and not proof.passed
print(f"Caught: {off.difference:.0e} is below {off.bound:.0e}, but:")
print(proof)

# %% [markdown]
# Three sharper checks find it. *Weights*: a right one is rounded once, so it is off by at most half
# a unit in its last digit. (The error is largest where $W_0$ and the update almost cancel: the last
# digit of such a weight is tiny.) *float64*: rounding is smaller than in float32 by a factor of
# $2^{29}$; a mistake stays the same. *Rounding*: errors of both signs mostly cancel. The bound that
# they exceed once in a million cases is far below the worst case. The library's merge passes all:

# %%
print(lora.verify(model, ids[None]))

# %% [markdown]
# ## What a merge can lose
#
# Merged and unmerged agree, but a merge can still lose the update itself. The rounding error of
# $W_0 + \Delta W$ depends on the size of $W_0$, not of $\Delta W$. In float32 this hardly matters.
# But many models are stored in 16 bits: float16 has 11 binary digits, bfloat16 8.
#
# **Predict.** Let the norm of $\Delta W$ be a thousandth of the norm of $W_0$. Which part of
# $\Delta W$ does a merge in bfloat16 lose: a thousandth, a tenth, or most of it?
#
# <details><summary>Answer</summary>
#
# Most of it. The distance from a weight to the next bfloat16 is several thousandths of the weight.
# Rounding removes an update below half of this distance. The lost share is at most
# $u\,\|W\| / \|\Delta W\|$, and at most 1. If it is 1, no weight changes.
#
# </details>

# %%
def bfloat16(a: np.ndarray) -> np.ndarray:
    """Return the nearest bfloat16: a float32 without its last 16 bits."""
    bits = np.asarray(a, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)

def lost(store, size: float) -> float:
    """Return the share of ΔW that a merge loses if ‖ΔW‖ is `size` · ‖W0‖."""
    start, delta = np.float64(store(W0)), np.float64(B) @ np.float64(A)
    delta *= size * np.linalg.norm(start) / np.linalg.norm(delta)
    error = np.float64(store(start + delta)) - start - delta
    return np.linalg.norm(error) / np.linalg.norm(delta)

stores = {"bfloat16": bfloat16, "float16": np.float16, "float32": np.float32}
print("lost share of  the small update  the one trained above")
for name, store in stores.items():
    print(f"{name:13}{lost(store, 1e-3):18.1e}{lost(store, size):23.1e}")

# %%
sizes = np.logspace(-5, 0, 41)
share, most = {}, {}
for name, u in (("bfloat16", 2**-8), ("float16", 2**-11)):
    share[name] = sizes, [lost(stores[name], n) for n in sizes]
    most[name] = sizes, np.minimum(1, u * (1 + 1 / sizes))
share["trained above"] = [size, size], [0, 1]
title = "A merge rounds a small update away, bfloat16 first"
axes = "size of the update, ‖ΔW‖ / ‖W0‖", "lost share (dotted: bound)"
viz.curves(share, None, title, *axes, log="x", dotted=most)
viz.show()

# %% [markdown]
# ## The same layers, the same speed
#
# The merged model has the layers of the base. In the unmerged model, each adapted layer computes
# two more products. They take turns, so that other programs slow all equally. We compare the
# fastest turns.

# %%
plain, merged = ml.load_base("shakespeare"), ml.load_base("shakespeare")
lora.attach(merged, config, rng=0)
lora.merge(merged)
assert repr(merged) == repr(plain) != repr(model)
models = {"base": plain, "unmerged": model, "merged": merged}
seconds = {name: [] for name in models}
for _ in range(20 if FAST else 100):
    for name, each in models.items():
        start = time.perf_counter()
        with ml.no_grad():
            each(ids[None])
        seconds[name].append(time.perf_counter() - start)
for name, taken in seconds.items():
    times = min(taken) / min(seconds["base"])
    print(f"{name:8} {1000 * min(taken):.2f} ms, {times:.2f} times the base")

# %% [markdown]
# ## Undo
#
# Can we subtract $\Delta W$ again? $W_0 + \Delta W$ was rounded, and a subtraction does not restore
# the lost digits. With many adapters, such errors add up. `lora.merged` merges only inside a `with`
# block, bit for bit as our own `merge`. At the end it puts the original array of $W_0$ back.

# %%
W, rng, swaps = W0, np.random.default_rng(0), 20 if FAST else 500
for _ in range(swaps):
    other = rng.permutation(A, axis=1), rng.permutation(B, axis=0)  # new
    W = merge(merge(W, *other, alpha), *other, -alpha)
changed = np.mean(W != W0)
print(f"after {swaps} adapters, {changed:.0%} of the weights have changed")
with lora.merged(model):
    assert (ml.asnumpy(block.attn.q.W.data) == merge(W0, A, B, alpha)).all()
assert (ml.asnumpy(block.attn.q.base.W.data) == W0).all()

# %% [markdown]
# ## What you built, and what is next
#
# You built a bound for a merge, a search that finds a wrong one, sharper checks and an exact undo.
#
# **Next:** chapter 10 looks inside the update.
