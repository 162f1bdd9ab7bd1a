# %% [markdown]
# # 03. Training
#
# *The reader can then:* write by hand a model, its loss, its optimizer and the training loop.
# *Time:* 25 minutes. *Needs:* chapter 02.
# *Remember:* Every training loop has four lines: forget the gradients, forward, backward, step.
#
# A small network learns to predict the next letter of a text. We write all of it, from arrays to
# AdamW. Then we replace each part by the library's, and the numbers stay the same.

# %%
import os

import numpy as np

import minilora as ml
from minilora import data, nn, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH = (40, 16) if FAST else (1000, 64)
EVERY, RATE = STEPS // 10, 0.3  # steps between evaluations; SGD's rate
CONTEXT, D, H = 8, 8, 64  # letters to read; table width; hidden width
rng = np.random.default_rng(0)

# %% [markdown]
# ## The task
#
# The text is Genesis and Exodus; its last tenth is *held out*, never trained on. A letter becomes a
# number: its place in the list of letters. An example is 8 letters in a row; its target is the next
# letter. We follow one example: `And God `, then `s`.

# %%
text = data.load_text("kjv")
letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
V = len(letters)

def numbers(text): return np.array([letters[letter] for letter in text])

def examples(ids, starts):
    """Return inputs (n, CONTEXT) and targets (n,)."""
    return ids[starts[:, None] + np.arange(CONTEXT)], ids[starts + CONTEXT]

example, target = examples(numbers("And God s"), np.array([0]))
print(f"{V} letters; the example is {example[0]}, its target {target[0]}")
training, rest = (numbers(part) for part in data.split(text))
starts = rng.integers(0, len(training) - CONTEXT, (STEPS, BATCH))
batches = [examples(training, row) for row in starts]  # at random places
held_out = [examples(rest, np.arange(0, len(rest) - CONTEXT, 20))]

# %% [markdown]
# ## A model is a few arrays
#
# Each letter selects a row of a table. The rows of all 8 letters, side by side, go through a layer
# with `tanh`. A last layer gives one number for every possible next letter, its *logit*:
# $e^{\text{logit}}$, divided by the sum of all of these, is the probability of that letter.

# %%
def normal(std, *shape):
    return (std * rng.standard_normal(shape)).astype("float32")

N = CONTEXT * D  # inputs of the hidden layer
start = {"table.W": normal(1, V, D), "out.W": normal(0.01, V, H),
         "hidden.W": normal(N**-0.5, H, N)}
start |= {"hidden.b": normal(0, H), "out.b": normal(0, V)}
w = {n: ml.Tensor(x.copy(), requires_grad=True) for n, x in start.items()}

# %%

def logits(ids):
    rows = ops.embedding(w["table.W"], ids).reshape(len(ids), N)
    hidden = ops.tanh(ops.linear(rows, w["hidden.W"], w["hidden.b"]))
    return ops.linear(hidden, w["out.W"], w["out.b"])

# %% [markdown]
# ## The loss
#
# The loss of an example is $-\ln p$, where $p$ is the probability of the right letter: 0 if
# $p = 1$, large if $p$ is small. This is the *cross-entropy*, in nats; of a batch, the mean.
#
# **Predict.** At first, all weights of the last layer and all logits are near 0. What is the loss?
#
# <details><summary>Answer</summary>
#
# About $\ln V$. Equal logits give each of the $V$ letters the probability $1/V$, and
# $-\ln(1/V) = \ln V$. If a new model starts far above this, it contains a mistake.
#
# </details>

# %%
z = ml.asnumpy(logits(example))[0]  # (V,)
by_hand = -np.log(np.exp(z[target[0]]) / np.exp(z).sum())
loss = ops.cross_entropy(logits(example), target).item()
print(f"by hand: {by_hand:.4f}, minilora: {loss:.4f}, ln V: {np.log(V):.4f}")

# %% [markdown]
# ## The loop
#
# A step of *stochastic gradient descent*, SGD, moves each parameter against its slope:
# $p \leftarrow p - \eta\, g$, with a learning rate $\eta$ (`RATE`). This is all of training:

# %%
losses = []
for inputs, targets in batches:
    for p in w.values():
        p.grad = None  # forget the gradients: backward adds to them
    loss = ops.cross_entropy(logits(inputs), targets)
    loss.backward()
    for p in w.values():
        p.data -= RATE * p.grad
    losses.append(loss.item())
print(f"first batch: loss {losses[0]:.3f}; last batch: {losses[-1]:.3f}")

# %% [markdown]
# ## The same, as a Module
#
# A `Module` has parameters and other modules as attributes. Their names name the parameters:
# `hidden.W` is the `W` of the `Linear` in `self.hidden`. A `*` marks what is trained.

# %%
class Speller(nn.Module):
    def __init__(self):
        self.table = nn.Embedding(V, D)
        self.hidden = nn.Linear(N, H)
        self.out = nn.Linear(H, V)

    def forward(self, ids):
        rows = self.table(ids).reshape(len(ids), N)
        return self.out(ops.tanh(self.hidden(rows)))

def fresh():
    model = Speller()
    model.load_state_dict(start)  # the numbers from above, by name
    return model

print(fresh().summary())

# %% [markdown]
# An optimizer does the work of both inner loops. Four lines remain, the same for every model. Here
# they give exactly the losses of our own loop:

# %%
def train(model, optimizer):
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()  # forget the gradients
        loss = ops.cross_entropy(model(inputs), targets)  # forward
        loss.backward()  # backward
        optimizer.step()  # step
        losses.append(loss.item())
    return losses

model = fresh()
assert train(model, ml.SGD(model.trainable_parameters(), lr=RATE)) == losses
probability = np.exp(-ops.cross_entropy(model(example), target).item())
print(f"P(s after 'And God '): {probability:.2f}, at first {1 / V:.2f}")

# %% [markdown]
# ## AdamW
#
# SGD has one rate for all numbers, but some gradients are far larger than others. Adam keeps two
# running means for each number: $m$ of its gradient, and $v$ of its squared gradient. It steps by
# $m / \sqrt{v}$, in which the size of the gradient cancels. At step $t$:
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2,
#    \quad p \leftarrow p - \eta \lambda p - \eta\,
#    \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}. $$
#
# The means start at 0, so they are too small at first: $1 - \beta^t$ corrects that. $\eta\lambda p$
# pulls the weights towards 0: *weight decay*, the W of AdamW. Here for one matrix:

# %%
model = fresh()
eta, decay, beta1, beta2, eps = 0.01, 0.1, 0.9, 0.999, 1e-8
trained = model.trainable_parameters()
optimizer = ml.AdamW(trained, eta, (beta1, beta2), eps, decay)
p, m, v = start["out.W"].astype("float64"), 0.0, 0.0
for t, (inputs, targets) in enumerate(batches[:10], start=1):
    optimizer.zero_grad()
    ops.cross_entropy(model(inputs), targets).backward()
    g = ml.asnumpy(model.out.W.grad).astype("float64")
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    move = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    p = p - eta * decay * p - eta * move
    optimizer.step()
off = abs(ml.asnumpy(model.out.W) - p).max()
assert off < 1e-6
print(f"largest difference after {t} steps: {off:.0e}")

# %% [markdown]
# ## fit
#
# `ml.fit` is our loop with additions: the loss on held-out examples, a progress line (its tokens
# are our letters), and files to continue from. It returns a `History`: the `losses` and `lrs` of
# each step, and `held_out`: pairs (step, loss).
#
# **Check.** With the rate of our own loop, `fit` gives exactly the losses of our own loop.

# %%
def run(kind, lr, **settings):
    model, settings = fresh(), settings | {"held_out": held_out}
    optimizer = kind(model.trainable_parameters(), lr=lr)
    return ml.fit(model, batches, optimizer, STEPS, **settings)

assert run(ml.SGD, RATE, log_every=STEPS // 4).losses == losses

# %% [markdown]
# SGD and AdamW try three rates each. We choose by the loss *in training*, not the held-out loss.

# %%
def best(kind, rates):
    runs = [run(kind, lr, eval_every=EVERY, progress=False) for lr in rates]
    return min(runs, key=lambda history: sum(history.losses[-EVERY:]))

sgd = best(ml.SGD, (0.3, 1.0, 3.0))
adamw = best(ml.AdamW, (0.003, 0.01, 0.03))
chosen = {f"SGD, {sgd.lrs[0]}": sgd, f"AdamW, {adamw.lrs[0]}": adamw}
viz.loss_curves(chosen, None, "Each at its best rate", "loss (nats a letter)")
viz.show()

# %% [markdown]
# ## Break it
#
# This optimizer forgets no gradient: each step follows the sum of all gradients so far.

# %%
class Forgetful(ml.SGD):
    def zero_grad(self): pass

model = fresh()
wrong = train(model, Forgetful(model.trainable_parameters(), lr=RATE))
assert wrong[-1] > losses[0] > losses[-1], "this should have failed"
print(f"Caught: the loss rose from {wrong[0]:.3f} to {wrong[-1]:.3f}")

# %% [markdown]
# ## What you built, and what is next
#
# You built a model as arrays and as a Module, its loss, SGD, AdamW, and the training loop.
#
# **Next:** chapter 04 builds attention, the part that makes a model a transformer.
