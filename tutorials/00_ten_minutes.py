# %% [markdown]
# # 00. Ten minutes
#
# *The reader can then:* adapt a frozen model, merge the update into it, and see nothing change.
# *Time:* 10 minutes. *Needs:* NumPy.
# *Remember:* The weights stay as they are, a small update beside them learns, and is added in.
#
# A model was trained on one kind of text and is to write another. Must all of its weights be
# trained again? LoRA (Hu et al., 2021, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)) trains
# a small update beside them, keeps that in a small file, and in the end adds it into the weights.
# This chapter goes through all of it once, with parts that are ready; do not stop at how they work
# inside. The chapters after this one build them.
#
# Run it with `python tutorials/00_ten_minutes.py`, or cell by cell (from `# %%` to `# %%`) in an
# editor such as VS Code. It runs on NumPy, on one core, without a download; the figures need
# `pip install '.[viz]'`. As a notebook: `pip install '.[tutorials]'`, then
# `minilora tutorials notebook 00`. (With `MINILORA_FAST=1` it takes a few steps only: then the
# curves are stubs and the samples barely change.)

# %%
import os
import tempfile
from pathlib import Path

import minilora as ml
from minilora import accounting, data, lora, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TOKENS, HELD_OUT = (6, 2, 32, (2, 32)) if FAST else (50, 8, 64, (8, 128))
SEED = 0

# %% [markdown]
# ## A base
#
# The package brings a small language model, a GPT-2 that was trained on Shakespeare's plays. The
# tree below names its parts: two tables, four *blocks* that are made alike, a norm (`ln_f`). What
# matters here are the matrices `W` in a block, under the names q, k, v, o, up and down. `*`
# marks what would be trained: so far, everything.

# %%
base = ml.load_base("shakespeare")
print(base.summary())

# %% [markdown]
# The model reads a text in pieces, its *tokens*, and says how likely each token is to come next.
# Drawing one token after the other, it writes. (`temperature` and `top_p` make it prefer likely
# ones.) One beginning will be with us through the chapter; it is not from a play.

# %%
PROMPT = "And God said"


def sample(model: ml.GPT2) -> str:
    ids = base.tokenizer.encode(PROMPT)  # a number for each token
    out = ml.generate(model, ids, 16 if FAST else 60, temperature=0.7, top_p=0.9, rng=SEED)
    return base.tokenizer.decode(out)


before = sample(base)
print(before)

# %% [markdown]
# ## A new text
#
# The new text is Genesis and Exodus in the King James Version. Its last tenth is held out: nothing
# is trained on it, so the loss there tells what was learned and not what was learned by heart. The
# loss is the mean of $-\ln p$ over all tokens, where $p$ is how likely the model thought the token
# that came: 0 if it was sure of each. As the logarithm is the natural one, the unit is called a
# *nat*. The base's own loss is the one to beat.

# %%
training, rest = (base.tokenizer.encode(text) for text in data.split(data.load_text("kjv")))
batches = data.Windows(training, BATCH, TOKENS, seed=SEED)
held_out = data.sequential(rest, *HELD_OUT)[:4]  # pairs: (texts, tokens), and what comes next

frozen_loss = ml.evaluate(base, held_out)
print(f"{len(training):,} tokens to train on; held-out loss of the base: {frozen_loss:.3f}")

# %% [markdown]
# ## Full fine-tuning
#
# The usual way is to go on training every weight. A step reads a *batch*, some pieces of the text,
# follows the loss back to each weight (`backward`), and moves the weights a little so that the loss
# falls (`step`). How far, the *learning rate* says.


# %%
def train(model: ml.GPT2, peak: float, steps: int = STEPS) -> ml.History:
    """Train what is not frozen, at a learning rate that falls from `peak` to 0."""
    history = ml.History()
    optimizer = ml.AdamW(model.trainable_parameters(), lr=peak, weight_decay=0.0)  # chapter 03
    for step in range(steps):
        if step % max(1, steps // 5) == 0:
            history.held_out.append((step, ml.evaluate(model, held_out)))
        inputs, targets = batches[step]  # the targets: which token came next
        loss = ops.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = peak * (1 - step / steps)
        optimizer.step()
    history.held_out.append((steps, ml.evaluate(model, held_out)))
    return history


full = ml.load_base("shakespeare")
full_history = train(full, peak=1e-3)
print(f"held-out loss after full fine-tuning: {full_history.held_out[-1][1]:.3f}")

# %% [markdown]
# ## LoRA
#
# LoRA leaves each weight matrix $W_0$ as it is and trains an update beside it, a product of two
# thin matrices:
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x, \qquad
#    W_0 \in \mathbb{R}^{d \times k},\; B \in \mathbb{R}^{d \times r},\;
#    A \in \mathbb{R}^{r \times k}. $$
#
# We choose $r$, the *rank*, and $\alpha$, which scales the update. With $r$ far below $d$ and $k$,
# the matrices $B$ and $A$ have few numbers: $r(d + k)$ where $W_0$ has $dk$. `attach` freezes the
# whole model, and gives every layer named in `targets` (find them in the tree) an $A$ of small
# random numbers and a $B$ of zeros. At first, then, $BA$ is zero and the model is what it was. In
# the tree, `*` now stands at the A and B alone; `default` is what this pair is called.

# %%
model = ml.load_base("shakespeare")
W0 = [(p.data, p.data.copy()) for p in model.parameters()]  # each array, and what is in it
config = lora.LoRAConfig(r=8, alpha=16, targets=("q", "k", "v", "o", "up", "down"))
lora.attach(model, config, rng=SEED)
assert ml.evaluate(model, held_out) == frozen_loss
print(model.summary())

# %% [markdown]
# Now the same steps on the same batches. The learning rate is higher than in full fine-tuning: each
# way has its own best one.

# %%
history = train(model, peak=1e-2)
print(f"held-out loss after LoRA: {history.held_out[-1][1]:.3f}")

unchanged = ml.History(held_out=[(0, frozen_loss), (STEPS, frozen_loss)])
curves = {"frozen base": unchanged, "LoRA": history, "full fine-tuning": full_history}
counts = {name: accounting.count(m).trainable for name, m in (("LoRA", model), ("full", full))}
top, bottom = viz.panels(2, 1, (7.5, 5.5))
viz.loss_curves(curves, ax=top, title="LoRA goes most of the way on new text ...")
viz.parameter_bars(counts, ax=bottom, title="... and trains few of the parameters")
viz.show()

# %% [markdown]
# On a model as small as this one, full fine-tuning gets further in the same number of steps. LoRA
# trains a small share of the parameters; chapter 07 counts the memory that this saves, and chapter
# 08 asks what rank, learning rate and choice of layers do.
#
# ## Save the adapter
#
# All the $A$ and $B$ together are called the *adapter*. $W_0$ is what it was, so a file needs to
# hold the adapter alone. Load it onto a fresh copy of the base, and the adapted model is back, to
# the last bit.

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
# **Predict.** The adapted model has more parameters than the base, and each adapted layer makes
# three products where the base makes one. The update is now merged. How many parameters does the
# merged model have: as many as the adapted one, as many as $A$ and $B$, or as many as the base?
#
# <details><summary>Answer</summary>
#
# As many as the base. $W_0 x + s B A x = (W_0 + s B A)\, x$ with $s = \alpha / r$, and $W_0 + sBA$
# is one matrix of the size of $W_0$. It is computed once, and a plain layer with it takes the place
# of the adapted one. So the merged model is as large and as fast as the base.
#
# </details>
#
# On paper both sides are equal. On a computer every operation rounds, so they are nearly equal, and
# a mistake in the merge could hide behind "nearly". `verify` tells the two apart. It looks at each
# merged weight, at the *logits* (the numbers from which the model makes its probabilities) in
# float64, where rounding is tiny, and at the logits in the model's own float32. For each it says
# what it saw and what rounding allows. Chapter 09 shows where such limits come from.

# %%
proof, adapted, logits = lora.verify(model, ids), sample(model), model(ids).data
print(proof)
lora.merge(model)
print(accounting.count(model))

# %% [markdown]
# The first row stands at its limit, and should: among so many weights there is one that is rounded
# by very nearly half of its last digit. The last row is a second, wider limit for the logits.
#
# **Check.** The merge is right, the model has the base's size, and it writes the very same text.

# %%
assert proof.passed
assert abs(model(ids).data - logits).max() <= proof.logits.bound
assert accounting.count(model) == accounting.count(base)
assert sample(model) == adapted
print(f"the base wrote:\n{before}\n\nthe merged model writes:\n{adapted}")

# %% [markdown]
# The arrays of $W_0$ hold what they held at first: nothing was written to them, neither in training
# nor in merging.

# %%
assert all((array == copy).all() for array, copy in W0)

# %% [markdown]
# ## Break it
#
# If zeros in $B$ are good, why not zeros in $A$ as well? The model starts as the base either way.
# Train that for a few steps and see whether the held-out loss moves.

# %%
broken = ml.load_base("shakespeare")
lora.attach(broken, config, rng=SEED)
for name, p in broken.trainable_parameters().items():
    if name.endswith(".A"):
        p.data[...] = 0

train(broken, peak=1e-2, steps=3)
try:
    assert ml.evaluate(broken, held_out) != frozen_loss, "the loss has not moved by a single bit"
except AssertionError as error:
    print(f"Caught: {error}")
else:
    raise RuntimeError("this was meant to fail")

# %% [markdown]
# The gradient of $A$ contains $B$, and that of $B$ contains $A$. With both at zero, both gradients
# are zero, now and after every step. One has to start at zero, and one must not.
#
# ## What you built, and what is next
#
# You adapted a frozen model with an update of low rank (of two thin matrices), saved the update
# alone, merged it, and saw nothing change.
#
# **Next:** chapter 01 builds what found the gradients.
