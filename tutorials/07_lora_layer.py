# %% [markdown]
# # 07. The LoRA layer
#
# *The reader can then:* write LoRA's layer, initialize and scale it, and say which memory it saves.
# *Time:* 25 minutes. *Needs:* chapter 06.
# *Remember:* B starts at zero and A does not: nothing changes at first, but the layer can learn.
#
# A layer multiplies by a frozen matrix $W_0$, $d \times k$. LoRA adds an update of low rank beside
# it: $B$, $d \times r$, times $A$, $r \times k$. Only these two are trained:
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x. $$
#
# We start with a small matrix and do it by hand. Then your own layer runs a real model.

# %%
import numpy as np

import minilora as ml
from minilora import accounting, lora, ops, viz

# %% [markdown]
# ## One matrix, one update
#
# Here $r = 1$, so $B$ is a column, $A$ is a row, and $BA$ is their outer product. The layer gets
# one input, `x`, and should return `wanted`. Usually $A$ is random. We chose these numbers so that
# you can follow every step with a pencil.

# %%
W0 = np.array([[1.0, 0, 2, -1], [0, 1, -1, 1], [2, -1, 0, 1]])  # (d, k)
x, wanted = np.array([1.0, 2, -1, 1]), np.array([0.0, 3, 2])
A0, B0 = np.array([[1.0, 0, 1, -1]]), np.zeros((3, 1))
r, alpha = 1, 2
s = alpha / r  # the scale

# B (A x), not (B A) x: B A would be a matrix as large as W0.
print("W0 x           =", W0 @ x)
print("W0 x + s B A x =", W0 @ x + s * (B0 @ (A0 @ x)), " as B is 0")
print(f"{W0.size} numbers are frozen, {A0.size + B0.size} are trained")

# %% [markdown]
# ## One of the two starts at zero
#
# Let the loss be $\frac{1}{2} \|y - \mathrm{wanted}\|^2$. Its gradient with respect to $y$ is
# $g = y - \mathrm{wanted}$. The chain rule gives the gradients of the two factors:
#
# $$ dB = s\; g\,(A x)^\top, \qquad dA = s\; (B^\top g)\, x^\top. $$
#
# $dB$ contains $A$, and $dA$ contains $B$. So it matters how the two start. We try four starts, and
# print both gradients before the first step and before the second.

# %%
LR = 0.05

def descend(A, B, steps: int) -> list[tuple[float, float, float]]:
    """Return (loss, largest |dA|, largest |dB|) before each step."""
    rows = []
    for _ in range(steps):
        g = W0 @ x + s * (B @ (A @ x)) - wanted
        dA, dB = s * np.outer(B.T @ g, x), s * np.outer(g, A @ x)
        rows.append((g @ g / 2, abs(dA).max(), abs(dB).max()))
        A, B = A - LR * dA, B - LR * dB
    return rows

B1 = np.array([[0.3], [0.5], [-0.2]])
starts = {
    "B": (A0, B0), "A": (0 * A0, B1), "none": (A0, B1), "both": (0 * A0, B0)}
print("zero  step   loss   |dA|   |dB|")
for name, (A, B) in starts.items():
    rows = descend(A, B, steps=50)
    for step in (1, 2, 50):
        loss, dA, dB = rows[step - 1]
        print(f"{name:5}{step:5}{loss:7.2f}{dA:7.2f}{dB:7.2f}")

# %% [markdown]
# If one factor is zero, the layer starts as $W_0$. One gradient is exactly zero, but only in the
# first step. If no factor is zero, the layer starts as another function (see its loss). If both are
# zero, nothing ever changes. LoRA starts with $B = 0$ and a random $A$. The pictures show its first
# two steps on the engine's tape. Each box has a value and then a gradient.

# %%
@ml.op
def distance(y, wanted):
    """½ |y - wanted|²"""
    e = y - wanted
    return (e * e).sum() / 2, (lambda g: g * e, None)  # None: no gradient

row, goal, frozen = map(ml.Tensor, (x[None], wanted[None], W0))
A, B = (ml.Tensor(start, requires_grad=True) for start in (A0, B0))

def forward_and_back():
    """Return pictures of the tape before and after its backward pass."""
    A.grad = B.grad = None
    with viz.watching() as seen:  # records the values for the picture
        Ax = ops.linear(row, A)  # (1, r): an input is a row here
        BAx = ops.linear(Ax, B)  # (1, d)
        y = ops.linear(row, frozen) + BAx * s
        loss = distance(y, goal)
    names = {"x": row, "W0": frozen, "A": A, "B": B, "y": y, "loss": loss}
    steps = viz.backward_steps(loss, names, seen)  # runs loss.backward()
    return steps[0][1], steps[-1][1]

before, after = forward_and_back()
assert abs(A.grad).max() == 0
B.data -= LR * B.grad  # the first step: only B changes
later, last = forward_and_back()

# %%
viz.show(viz.stepper([
    ("B is zero, so s B A x is zero, and y equals W0 x.", before),
    ("dA is zero: on its way to A, the gradient is multiplied by B.", after),
    ("Only B changed. s B A x is not zero now; the loss is lower.", later),
    ("B is not zero, so dA is not zero. From now on both learn.", last),
], title="The first two steps of A and B"))

# %% [markdown]
# ## Your layer in a real model
#
# Now write the layer as an op. Its input has a row $x$ for each token, so $W_0 x$ becomes
# `x @ W.T`. $W_0$ and the bias $b$ are frozen and need no rule. `mask` is for dropout (it sets
# random inputs to zero), which is off here. `ops.rows` is the function of chapter 02.

# %%
@ml.op
def mine(x, W, b, A, B, mask=None, *, scale):
    """W0 x + b + scale · B (A x)     x: (..., k)  A: (r, k)  B: (d, r)"""
    Ax, rows = x @ A.T, ops.rows
    def dx(g): return g @ W + scale * (g @ B) @ A
    def dA(g): return scale * rows(g @ B).T @ rows(x)
    def dB(g): return scale * rows(g).T @ rows(Ax)
    return x @ W.T + b + scale * (Ax @ B.T), (dx, None, None, dA, dB, None)

viz.source(ops.lora_linear)

# %% [markdown]
# The model is the base of chapter 00. `attach` freezes it and puts the layer into each projection
# of attention. A test with $B = 0$ cannot see $A$ or the scale. So AdamW takes a step first.

# %%
config = lora.LoRAConfig(r=8, alpha=16, targets=("q", "k", "v", "o"))
model = ml.load_base("shakespeare")
lora.attach(model, config, rng=0)
print(accounting.count(model))
trained = model.trainable_parameters()
ids = model.tokenizer.encode("And God said, Let there be light.")

def results(layer) -> dict[str, np.ndarray]:
    """Return the loss and the gradients of each A and B with this layer."""
    for p in trained.values():
        p.grad = None
    with ops.replaced(lora_linear=layer):
        loss = ops.cross_entropy(model(ids[None, :-1]), ids[None, 1:])
        loss.backward()
    gradients = {name: ml.asnumpy(p.grad) for name, p in trained.items()}
    return {"loss": ml.asnumpy(loss.data), **gradients}

results(ops.lora_linear)  # computes the gradients
ml.AdamW(trained, lr=0.05).step()  # now B is not zero

def furthest(layer) -> float:
    """Return the largest relative difference from the engine."""
    a, b = results(layer), results(ops.lora_linear)
    return max(abs(a[n] - b[n]).max() / abs(b[n]).max() for n in b)

# %% [markdown]
# **Check.** With your layer, the model has the engine's loss and gradients, up to rounding.
# (float32 keeps about seven digits of a number; long sums lose two or three of them.)

# %%
print(f"largest relative difference from the engine: {furthest(mine):.0e}")
assert furthest(mine) < 1e-4

# %% [markdown]
# ## Break it
#
# A common mistake: scale by $\alpha$, and forget to divide by $r$.

# %%
def by_alpha(x, W, b, A, B, mask=None, *, scale):
    return mine(x, W, b, A, B, mask, scale=scale * len(A))  # len(A) is r

assert furthest(by_alpha) > 1e-4
wrong, right = (results(layer)["loss"] for layer in (by_alpha, mine))
print(f"Caught: with alpha the loss is {wrong:.3f}, not {right:.3f}")

# %% [markdown]
# ## The scale has many names
#
# One number multiplies $BA$: the scale. Why divide $\alpha$ by $r$? So that less has to be tuned
# again when $r$ changes (§4.1 of [the paper](https://arxiv.org/abs/2106.09685); chapter 08 tries
# it). rsLoRA ([arXiv 2312.03732](https://arxiv.org/abs/2312.03732)) divides by $\sqrt{r}$. Some
# libraries use the number itself. If you move an adapter to another library, convert its scale.

# %%
r, s = config.r, config.alpha / config.r
rules = {"alpha / r (paper, loralib, PEFT, here)": 1 / r,
         "alpha / sqrt(r) (PEFT's use_rslora)": 1 / r**0.5,
         "the scale itself (MLX)": 1.0}
print(f"r = {r}")
for rule, factor in rules.items():
    print(f"{rule}: 16 gives scale {16 * factor:.3g},")
    print(f"    {s / factor:.3g} gives scale {s:g}")

# %% [markdown]
# ## Frozen, and where the memory went
#
# **Predict.** Training needs memory for frozen weights, trained weights, gradients, two running
# means for each trained number (Adam's moments), and activations (what the backward pass uses).
# LoRA trains a few per cent of the numbers. Is the sum 30 times smaller, 10 times, or less than 4?
#
# <details><summary>Answer</summary>
#
# Less than 4. Fewer trained numbers need fewer gradients and moments. But all weights are still
# there, only frozen. And activations shrink little: to reach the lowest $A$ and $B$, a gradient
# passes through every frozen layer above. The more tokens in a step, the smaller the saved share.
#
# </details>

# %%
full, ledgers = ml.load_base("shakespeare"), {}
for batch, tokens in ((1, 32), (8, 128)):
    for name, each in (("full", full), ("LoRA", model)):
        adamw = ml.AdamW(each.trainable_parameters())
        ledger = accounting.ledger(each, adamw, batch, tokens)
        ledgers[f"{name}, {batch * tokens:,} tokens"] = ledger
title = "LoRA saves gradients and moments, few activations"
viz.memory_bars(ledgers, title=title)
viz.show()

# %% [markdown]
# The tape shows why. A trained `linear` keeps its input, $k$ numbers for each token, because $dW$
# needs it. `lora_linear` keeps it for $dA$, and also $Ax$ for $dB$. A frozen layer without an
# adapter (here: in the MLP) keeps nothing. The other ops keep almost as much as before.

# %%
by_full, by_lora = (  # op -> bytes
    ledgers[f"{name}, 1,024 tokens"].activations for name in ("full", "LoRA"))
print("MiB, 1,024 tokens   full    LoRA")
for op in sorted({*by_full, *by_lora}):
    before, after = (by.get(op, 0) / 2**20 for by in (by_full, by_lora))
    print(f"{op:<16}{before:8.2f}{after:8.2f}")

# %% [markdown]
# It is similar for time. Full fine-tuning computes three large products for each layer: $y$, $dx$
# and $dW$. LoRA leaves out only $dW$, so it saves at most a third of the time of a step.
#
# ## What you built, and what is next
#
# You built LoRA's layer and ran a real model on it. You know its start, its scale, its memory.
#
# **Next:** chapter 08 fine-tunes: rank, learning rate, which matrices, and what is forgotten.
