# %% [markdown]
# # 03. Training
#
# *The reader can then:* write a model, its loss and optimizer and the loop that trains it by hand.
# *Time:* 25 minutes. *Needs:* chapter 02.
# *Remember:* Every training loop is four lines: forget the gradients, forward, backward, step.
#
# A small network learns to guess the next letter of a text. We write all of it ourselves, from bare
# arrays to AdamW. Each part is then replaced by the library's, and the numbers stay the same.

# %%
import os

import numpy as np

import minilora as ml
from minilora import data, nn, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH = (40, 16) if FAST else (1500, 64)
CONTEXT, D, H = 8, 8, 64  # letters to guess from; numbers for each letter; numbers in the middle
rng = np.random.default_rng(0)

# %% [markdown]
# ## The task
#
# The text is Genesis and Exodus. Its last tenth is *held out*: we measure on it, and never train on
# it. A letter becomes a number, its place in the list of all letters. An example is 8 letters in a
# row, and its target is the letter after them. One example stays with us: `And God `, then `s`.

# %%
text = data.load_text("kjv")
letters = sorted(set(text))
V = len(letters)


def examples(text, starts):
    """The letters at each start, as numbers, and the one after them: (n, CONTEXT), (n,)"""
    ids = np.array([letters.index(letter) for letter in text])
    return ids[starts[:, None] + np.arange(CONTEXT)], ids[starts + CONTEXT]


training, rest = data.split(text)
inputs, targets = examples(training, rng.integers(0, len(training) - CONTEXT, STEPS * BATCH))
batches = list(zip(inputs.reshape(STEPS, BATCH, CONTEXT), targets.reshape(STEPS, BATCH)))
held_out = [examples(rest, np.arange(0, len(rest) - CONTEXT, 20))]
one = examples("And God s", np.array([0]))
print(f"{V} letters; the example is {one[0][0]}, its target {one[1][0]}")

# %% [markdown]
# ## A model is a few arrays
#
# Each letter picks a row of a table. The rows of all 8 letters, one after the other, go through a
# layer with `tanh`. A last layer gives a number for every letter that could follow, its *logit*:
# $e^{\text{logit}}$, divided by the sum of them all, is the probability of that letter.


# %%
def normal(*shape, std):
    return (std * rng.standard_normal(shape)).astype("float32")


start = {
    "table.W": normal(V, D, std=1),
    "hidden.W": normal(H, CONTEXT * D, std=(CONTEXT * D) ** -0.5),  # so that tanh gets about ±1
    "hidden.b": np.zeros(H, "float32"),
    "out.W": normal(V, H, std=0.01),
    "out.b": np.zeros(V, "float32"),
}
w = {name: ml.Tensor(array.copy(), requires_grad=True) for name, array in start.items()}


def logits(ids):
    rows = ops.embedding(w["table.W"], ids).reshape(len(ids), CONTEXT * D)
    hidden = ops.tanh(ops.linear(rows, w["hidden.W"], w["hidden.b"]))
    return ops.linear(hidden, w["out.W"], w["out.b"])


# %% [markdown]
# ## The loss
#
# The loss of an example is minus the logarithm of the probability of the right letter: 0 for
# certainty, and more the smaller it is. This is the *cross-entropy*, in nats because the logarithm
# is natural. Of many examples we take the mean.
#
# **Predict.** At the start, the last layer's weights are close to 0, and so are all logits. What is
# the loss?
#
# <details><summary>Answer</summary>
#
# About $\ln V$. Equal logits give each of the $V$ letters the probability $1/V$, and
# $-\ln(1/V) = \ln V$. A new model that starts far above this has a mistake in it.
#
# </details>

# %%
z = ml.asnumpy(logits(one[0]))[0]  # (V,)
by_hand = -np.log(np.exp(z[one[1][0]]) / np.exp(z).sum())
loss = ops.cross_entropy(logits(one[0]), one[1]).item()
print(f"by hand: {by_hand:.4f}, minilora: {loss:.4f}, ln V: {np.log(V):.4f}")

# %% [markdown]
# ## The loop
#
# A step of *stochastic gradient descent*, SGD, moves each parameter against its slope:
# $p \leftarrow p - \eta\, g$ with a learning rate $\eta$. Here is training, all of it:

# %%
losses = []
for inputs, targets in batches:
    for p in w.values():
        p.grad = None  # forget the gradients: backward adds to them
    loss = ops.cross_entropy(logits(inputs), targets)
    loss.backward()
    for p in w.values():
        p.data -= 0.3 * p.grad
    losses.append(loss.item())
print(f"loss of the first batch {losses[0]:.3f}, of the last {losses[-1]:.3f}")

# %% [markdown]
# ## The same, as a Module
#
# With a hundred arrays, such a dict gets tedious. A `Module` is an object that has parameters and
# other modules as attributes, and by these it finds and names them all.


# %%
class Speller(nn.Module):
    def __init__(self):
        self.table = nn.Embedding(V, D)
        self.hidden = nn.Linear(CONTEXT * D, H)
        self.out = nn.Linear(H, V)

    def forward(self, ids):
        rows = self.table(ids).reshape(len(ids), CONTEXT * D)
        return self.out(ops.tanh(self.hidden(rows)))


def fresh():
    model = Speller()
    model.load_state_dict(start)  # the same numbers as above, by the same names
    return model


print(fresh().summary())

# %% [markdown]
# `*` marks what is trained; here that is everything. An optimizer takes the trained parameters, and
# does the two inner loops. Four lines remain, the same ones for every model:


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
assert np.allclose(train(model, ml.SGD(model.trainable_parameters(), lr=0.3)), losses)

# %% [markdown]
# ## AdamW
#
# SGD has one rate for all. But some gradients are a thousand times larger than others, and the row
# of a rare letter seldom gets one at all. Adam keeps two running means for each number: $m$ of its
# gradient, $v$ of the square. It steps by $m / \sqrt{v}$, from which the size of the gradient
# cancels. At step $t$:
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2,
#    \qquad p \leftarrow p - \eta\,\lambda\,p
#    - \eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}. $$
#
# The means start at 0, so at first they are too small; $1 - \beta^t$ corrects that. The term
# $\eta\,\lambda\,p$ draws weights towards 0: *weight decay*, the W of AdamW. By hand, for one matrix:

# %%
model = fresh()
optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01, weight_decay=0.1)
p, m, v = start["out.W"].astype("float64"), 0.0, 0.0
for t, (inputs, targets) in enumerate(batches[:10], start=1):
    optimizer.zero_grad()
    ops.cross_entropy(model(inputs), targets).backward()
    g = ml.asnumpy(model.out.W.grad).astype("float64")
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    move = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    p = p - 0.01 * 0.1 * p - 0.01 * move
    optimizer.step()
print(f"largest difference after {t} steps: {abs(ml.asnumpy(model.out.W) - p).max():.0e}")
assert np.allclose(ml.asnumpy(model.out.W), p, rtol=0, atol=1e-6)  # float32 against float64

# %% [markdown]
# ## fit
#
# `ml.fit` is our loop with more around it: the loss on held-out examples, progress, files to go on
# from. From here on we use it. Both optimizers get three learning rates, since each has its own best
# one. The best *training* loss decides; the held-out text takes no part in the choice.
#
# **Check.** SGD at the rate of our own loop gives our own losses, to the last bit.

# %%
runs = {}
for kind, rates in ((ml.SGD, (0.3, 1.0, 3.0)), (ml.AdamW, (0.003, 0.01, 0.03))):
    for lr in rates:
        model = fresh()
        optimizer = kind(model.trainable_parameters(), lr=lr)
        looks = {"held_out": held_out, "eval_every": STEPS // 10, "progress": False}
        runs[kind.__name__, lr] = model, ml.fit(model, batches, optimizer, STEPS, **looks)
assert runs["SGD", 0.3][1].losses == losses

# %%
curves, ends = {}, {}
for name in ("SGD", "AdamW"):
    of_it = [(np.mean(h.losses[-STEPS // 10 :]), lr, m, h) for (n, lr), (m, h) in runs.items() if n == name]
    _, lr, model, history = min(of_it, key=lambda run: run[0])
    curves[f"{name}, rate {lr}"], ends[name] = history, history.held_out[-1][1]
    guess = np.exp(-ops.cross_entropy(model(one[0]), one[1]).item())
    print(f"{name}: after 'And God ', s has the probability {guess:.2f}; before training {1 / V:.2f}")
low, high = sorted(ends, key=ends.get)
viz.loss_curves(curves, title=f"Held-out text: {low} gets below {high}, each at its best rate of three")
viz.show()

# %% [markdown]
# The thin lines are the batches that were trained on, the dots the text that was not.
#
# ## Break it
#
# Two mistakes. An optimizer that does not forget: each step follows the sum of all gradients so far.
# And an optimizer that was made before the model was frozen.


# %%
class Forgetful(ml.SGD):
    def zero_grad(self):
        pass


model = fresh()
wrong = train(model, Forgetful(model.trainable_parameters(), lr=0.3))
assert not np.allclose(wrong, losses), "this was meant to fail"
print(f"Caught: the last loss is {wrong[-1]:.3f}, and should be {losses[-1]:.3f}")

optimizer = ml.SGD(model.trainable_parameters(), lr=0.3)
model.requires_grad_(False)
try:
    ml.fit(model, batches, optimizer, STEPS)
except ValueError as error:
    print(f"Caught: {error}")
else:
    raise RuntimeError("this was meant to fail")

# %% [markdown]
# ## What you built, and what is next
#
# A model as arrays and as a Module, its loss, SGD, AdamW, and the loop that trains it. From here on
# `fit` runs that loop.
#
# **Next:** chapter 04 builds the part that makes a transformer: attention.
