# %% [markdown]
# # 07. The LoRA layer
#
# *The reader can then:* write LoRA's layer, start it, scale it, and say which memory it saves.
# *Time:* 25 minutes. *Needs:* chapter 06.
# *Remember:* B starts at zero and A does not: nothing changes at first, and yet it can learn.
#
# A layer multiplies by a frozen matrix $W_0$, $d \times k$. LoRA adds an update of low rank beside
# it, with $B$, $d \times r$, and $A$, $r \times k$, and trains these two alone:
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x. $$
#
# First by hand, on a matrix of twelve numbers; then a layer that you wrote runs a real model.

# %%
import numpy as np

import minilora as ml
from minilora import accounting, lora, ops, viz

# %% [markdown]
# ## One matrix, one update
#
# Here $r = 1$, so $B$ is a column, $A$ is a row, and $BA$ is their outer product. The layer gets
# one input, `x`, and ought to give `wanted`. In practice $A$ is random; these numbers are chosen so
# that every step can be followed with a pencil.

# %%
W0 = np.array([[1.0, 0, 2, -1], [0, 1, -1, 1], [2, -1, 0, 1]])  # (d, k): 3 outputs, 4 inputs
x, wanted = np.array([1.0, 2, -1, 1]), np.array([0.0, 3, 2])
A0, B0 = np.array([[0.5, -0.5, 1, 0.5]]), np.zeros((3, 1))
r, alpha = 1, 2
s = alpha / r  # the scale

# B (A x) makes r numbers and then d; (B A) x would first make a matrix as large as W0.
print("W0 x           =", W0 @ x)
print("W0 x + s B A x =", W0 @ x + s * (B0 @ (A0 @ x)), " as B is 0")
print(f"{W0.size} numbers are frozen, {A0.size + B0.size} are trained")

# %% [markdown]
# ## One of the two starts at zero
#
# Let the loss be $\frac{1}{2} \|y - \mathrm{wanted}\|^2$. Its gradient with respect to $y$ is
# $g = y - \mathrm{wanted}$, and the chain rule carries that on to the two factors:
#
# $$ dB = s\; g\,(A x)^\top, \qquad dA = s\; (B^\top g)\, x^\top. $$
#
# $dB$ contains $A$, and $dA$ contains $B$. So it matters how they start: here are four starts, with
# the two gradients before the first and before the second step.

# %%
LR = 0.05


def descend(A, B, steps: int) -> list[tuple[float, float, float]]:
    """(loss, largest |dA|, largest |dB|) before each step of gradient descent."""
    seen = []
    for _ in range(steps):
        g = W0 @ x + s * (B @ (A @ x)) - wanted
        dA, dB = s * np.outer(B.T @ g, x), s * np.outer(g, A @ x)
        seen.append((g @ g / 2, abs(dA).max(), abs(dB).max()))
        A, B = A - LR * dA, B - LR * dB
    return seen


B1 = np.array([[0.3], [0.5], [-0.2]])
starts = {"B": (A0, B0), "A": (0 * A0, B1), "neither": (A0, B1), "both": (0 * A0, B0)}
print("zero at first    loss    |dA|    |dB|    then |dA|    |dB|    loss in the end")
for name, start in starts.items():
    (loss, dA, dB), (_, dA2, dB2), *_, (end, _, _) = descend(*start, steps=50)
    print(f"{name:<13}{loss:8.2f}{dA:8.2f}{dB:8.2f}{dA2:13.2f}{dB2:8.2f}{end:19.2f}")

# %% [markdown]
# With one factor at zero the layer starts as $W_0$. One gradient is exactly zero, but after a
# single step both are alive. With neither at zero it starts as another function (see its loss), and
# with both nothing ever moves. LoRA sets $B = 0$ and draws $A$ at random. Here are the first two
# steps of that, on the engine's tape: every box has its value and, after backward, its gradient.


# %%
@ml.op
def distance(y, wanted):
    """½ |y - wanted|²"""
    e = y - wanted
    return (e * e).sum() / 2, (lambda g: g * e, None)  # None: `wanted` needs no gradient


row, goal, frozen = (ml.Tensor(array) for array in (x[None], wanted[None], W0))
A, B = (ml.Tensor(start, requires_grad=True) for start in (A0, B0))
told, frames = [
    "B is zero, so s B A x is zero, and y is what W0 alone makes of x.",
    "dB is not zero, but dA is: on its way to A, the gradient is multiplied by B, which is zero.",
    "B has moved, A has not. Now s B A x is not zero, y has moved, and the loss has gone down.",
    "As B is no longer zero, dA is not zero either: from now on both of them learn.",
], []
for step in range(2):
    with viz.watching() as seen:  # notes the values, for the picture
        Ax = ops.linear(row, A)  # (1, r): an input is a row here
        BAx = ops.linear(Ax, B)  # (1, d)
        y = ops.linear(row, frozen) + BAx * s
        loss = distance(y, goal)
    names = {"x": row, "W0": frozen, "A": A, "B": B, "Ax": Ax, "BAx": BAx, "y": y, "loss": loss}
    A.grad = B.grad = None
    (_, before), *_, (_, after) = viz.backward_steps(loss, names, seen)  # runs loss.backward()
    assert (abs(A.grad).max() == 0) == (step == 0)
    for p in (A, B):
        p.data -= LR * p.grad
    frames += zip(told[2 * step :], (before, after))
viz.show(viz.stepper(frames, title="The first two steps of A and B"))

# %% [markdown]
# ## Your layer in a real model
#
# Write the layer as an op. It gets a row $x$ for each token, so $W_0 x$ becomes `x @ W.T`. $W_0$
# and the bias $b$ are frozen and need no rule. `mask` is for dropout (it zeroes inputs by chance),
# which is off here. `ops.rows` is that of chapter 02. Below is the engine's own op, as it runs.


# %%
@ml.op
def mine(x, W, b, A, B, mask=None, *, scale):
    """W0 x + b + scale · B (A x)        x: (..., k)   W: (d, k)   A: (r, k)   B: (d, r)"""

    Ax, rows = x @ A.T, ops.rows
    def dx(g): return g @ W + scale * (g @ B) @ A
    def dA(g): return scale * rows(g @ B).T @ rows(x)
    def dB(g): return scale * rows(g).T @ rows(Ax)
    return x @ W.T + b + scale * (Ax @ B.T), (dx, None, None, dA, dB, None)


viz.source(ops.lora_linear)


# %% [markdown]
# The real model is the base of chapter 00. `attach` freezes all of it and puts the layer into each
# attention projection. Its $B$ is zero, and a test with $B = 0$ would see nothing of $A$ or the
# scale. So a step of AdamW comes first.

# %%
config = lora.LoRAConfig(r=8, alpha=16, targets=("q", "k", "v", "o"))
model = ml.load_base("shakespeare")
lora.attach(model, config, rng=0)
print(accounting.count(model))
trained = model.trainable_parameters()
ids = model.tokenizer.encode("And God said, Let there be light: and there was light.")


def results(layer) -> dict[str, np.ndarray]:
    """The loss and the gradient of each A and B, with `layer` as the model's LoRA layer."""
    for p in trained.values():
        p.grad = None
    with ops.replaced(lora_linear=layer):
        loss = ops.cross_entropy(model(ids[None, :-1]), ids[None, 1:])
        loss.backward()
    return {"loss": ml.asnumpy(loss.data), **{n: ml.asnumpy(p.grad) for n, p in trained.items()}}


results(ops.lora_linear)  # the gradients are there now
ml.AdamW(trained, lr=0.05).step()  # and B is no longer zero


def furthest(layer) -> float:
    """The largest difference from the engine's results, as a share of the array's largest."""
    a, b = results(layer), results(ops.lora_linear)
    return max(abs(a[n] - b[n]).max() / abs(b[n]).max() for n in b)


# %% [markdown]
# **Check.** The model that runs on your layer has the engine's loss and the engine's gradients, up
# to rounding. (float32 keeps some seven digits of a number; long sums lose two or three.)

# %%
print(f"furthest from the engine's: {furthest(mine):.0e} of the largest")
assert furthest(mine) < 1e-4

# %% [markdown]
# ## Break it
#
# A common mistake scales by $\alpha$ and forgets to divide by $r$.


# %%
def by_alpha(x, W, b, A, B, mask=None, *, scale):
    return mine(x, W, b, A, B, mask, scale=scale * len(A))  # len(A) is r


assert furthest(by_alpha) > 1e-4
wrong, right = (results(layer)["loss"] for layer in (by_alpha, mine))
print(f"Caught: with alpha for alpha / r the loss is {wrong:.3f}, and it ought to be {right:.3f}")

# %% [markdown]
# ## The scale has many names
#
# What multiplies $BA$ is one number, the scale. Dividing $\alpha$ by $r$ is meant to keep the size
# of the update when $r$ is changed (§4.1 of [the paper](https://arxiv.org/abs/2106.09685)); rsLoRA
# divides by $\sqrt{r}$ ([arXiv 2312.03732](https://arxiv.org/abs/2312.03732)), and some libraries
# take the number as it is. An adapter that moves to another library takes its scale along.

# %%
r, s = config.r, config.alpha / config.r
print(f"with r = {r}, the number to set:{f'for the scale {s:g}':>25}{'scale that 16 gives':>22}")
for rule, factor in (("alpha / r (paper, loralib, PEFT, here)", 1 / r),
                     ("alpha / sqrt(r) (PEFT's use_rslora)", 1 / r**0.5),
                     ("the scale itself (MLX)", 1)):
    print(f"{rule:<40}{s / factor:>15.3g}{16 * factor:>22.3g}")

# %% [markdown]
# ## Frozen, and where the memory went
#
# **Predict.** Training holds frozen weights, trained weights, their gradients, two running means
# for each trained number (Adam's moments), and activations: what the backward pass will want. LoRA
# trains a few per cent of the numbers. Does the sum shrink thirty times, ten, or less than four?
#
# <details><summary>Answer</summary>
#
# Less than four. Gradients and moments shrink with the trained numbers, but the weights are there
# all the same, only frozen. Activations shrink little: to reach the lowest $A$ and $B$, a gradient
# travels through every frozen layer above. The more tokens in a step, the less LoRA saves.
#
# </details>

# %%
full, ledgers = ml.load_base("shakespeare"), {}
for batch, tokens in ((1, 32), (8, 128)):
    for name, each in (("full", full), ("LoRA", model)):
        bytes_of = accounting.ledger(each, ml.AdamW(each.trainable_parameters()), batch, tokens)
        ledgers[f"{name}, {batch * tokens:,} tokens"] = bytes_of
viz.memory_bars(ledgers, title="LoRA saves gradients and Adam's moments; most activations stay")
viz.show()

# %% [markdown]
# What the tape keeps tells why. A trained `linear` keeps its input, $k$ numbers a token, because
# $dW$ needs it. `lora_linear` keeps that for $dA$, and $Ax$ for $dB$. A frozen layer without an
# adapter, such as the MLP's here, keeps nothing. The other ops keep nearly what they kept before.

# %%
kept = [ledger.activations for ledger in ledgers.values()]  # op -> bytes
print(f"{'MiB':<14}" + "".join(f"{label:>20}" for label in ledgers))
for op in sorted(set().union(*kept)):
    print(f"{op:<14}" + "".join(f"{by_op.get(op, 0) / 2**20:>20.2f}" for by_op in kept))

# %% [markdown]
# It is the same with time. Full fine-tuning makes three large products for each layer: $y$, $dx$
# and $dW$. LoRA leaves out $dW$ alone, so its step can be shorter by a third at most.
#
# ## What you built, and what is next
#
# LoRA's layer and its gradients, in a real model; its start, its scale, and its memory.
#
# **Next:** chapter 08 fine-tunes: rank, learning rate, which matrices, and what is forgotten.
