# %% [markdown]
# # 00. Ten minutes
#
# *The reader can then:* adapt a frozen model, merge the update into it, and see the same output.
# *Time:* 10 minutes. *Needs:* NumPy.
# *Remember:* The weights stay fixed; a small update beside them learns, and can be added to them.
#
# A model was trained on one kind of text. Now it should write another kind. Do we have to train all
# of its weights again? LoRA (Hu et al., 2021, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685))
# trains a small update beside the weights and saves only this update. At the end, the update can be
# added to the weights. This chapter shows all of these steps once, with the library's functions.
# You do not need to know yet how they work: the next chapters build them.
#
# Run the file with `python tutorials/00_ten_minutes.py`, or cell by cell (from `# %%` to `# %%`) in
# an editor such as VS Code. It uses NumPy and one core, and it downloads nothing. The figures need
# `pip install '.[viz]'`. For a notebook: `pip install '.[tutorials]'`, then
# `minilora tutorials notebook 00`. (`MINILORA_FAST=1` trains for a few steps only.)

# %%
import os
import tempfile
from pathlib import Path

import minilora as ml
from minilora import accounting, data, lora, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TOKENS = (6, 2, 32) if FAST else (50, 8, 64)
HELD_OUT, SEED = (2, 32) if FAST else (8, 128), 0

# %% [markdown]
# ## A base
#
# The package contains a small language model, a GPT-2 that was trained on Shakespeare's plays. It
# is our *base*: the model before we change anything. The tree below shows its parts: two tables,
# four *blocks* with the same structure, and a norm (`ln_f`). The important parts here are the
# matrices `W` in each block, named q, k, v, o, up and down. A `*` marks the parameters that
# training would change. So far, that is every parameter.

# %%
base = ml.load_base("shakespeare")
print(base.summary())

# %% [markdown]
# The model reads a text in pieces, its *tokens*. For every possible token it computes the
# probability that this token comes next. To write a text, we draw one token after another.
# (`temperature` and `top_p` favour likely tokens.) We use the same first words in the entire
# chapter.

# %%
PROMPT = "And God said"

def sample(model: ml.GPT2) -> str:
    ids = base.tokenizer.encode(PROMPT)  # a number for each token
    n = 16 if FAST else 60
    out = ml.generate(model, ids, n, temperature=0.7, top_p=0.9, rng=SEED)
    return base.tokenizer.decode(out)

before = sample(base)
print(before)

# %% [markdown]
# ## A new text
#
# The new text is Genesis and Exodus in the King James Version. We never train on its last tenth:
# this part is *held out*. So the loss on it shows what the model has learned, and not what it has
# memorized. The loss is the mean of $-\ln p$ over all tokens, where $p$ is the probability that the
# model gave to the token that really came next. A model that is always certain and right has loss
# 0. The unit is the *nat*, from the natural logarithm. We want a loss below the base's.

# %%
training, rest = data.split(data.load_text("kjv"))
training, rest = base.tokenizer.encode(training), base.tokenizer.encode(rest)
batches = data.Windows(training, BATCH, TOKENS, seed=SEED)
held_out = data.sequential(rest, *HELD_OUT)[:4]  # pairs (inputs, targets)

frozen_loss = ml.evaluate(base, held_out)
print(f"{len(training):,} tokens to train on")
print(f"held-out loss of the base: {frozen_loss:.3f}")

# %% [markdown]
# ## Full fine-tuning
#
# The usual way is to continue the training of every weight. Each step reads a *batch*, which is
# some pieces of the text. `backward` computes how the loss depends on each weight. `step` then
# changes each weight a little, so that the loss falls. The *learning rate* sets how far.

# %%
def train(model: ml.GPT2, peak: float, steps: int = STEPS) -> ml.History:
    """Train all that is not frozen. The rate falls from `peak` to 0."""
    history = ml.History()
    trained = model.trainable_parameters()
    optimizer = ml.AdamW(trained, lr=peak, weight_decay=0.0)  # chapter 03
    for step in range(steps):
        if step % max(1, steps // 5) == 0:
            history.held_out.append((step, ml.evaluate(model, held_out)))
        inputs, targets = batches[step]  # targets: the next tokens
        loss = ops.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = peak * (1 - step / steps)
        optimizer.step()
    history.held_out.append((steps, ml.evaluate(model, held_out)))
    return history

full = ml.load_base("shakespeare")
full_history = train(full, peak=1e-3)
print(f"loss after full fine-tuning: {full_history.held_out[-1][1]:.3f}")

# %% [markdown]
# ## LoRA
#
# LoRA keeps each weight matrix $W_0$ fixed, and trains an update beside it. The update is a product
# of two thin matrices:
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x, \qquad
#    W_0 \in \mathbb{R}^{d \times k},\; B \in \mathbb{R}^{d \times r},\;
#    A \in \mathbb{R}^{r \times k}. $$
#
# We choose the *rank* $r$, and $\alpha$, which scales the update. If $r$ is far smaller than $d$
# and $k$, then $B$ and $A$ have few numbers: $r(d + k)$, and $W_0$ has $dk$. `attach` does two
# things. It *freezes* the entire model: no weight of the base is trained any more. And it gives
# each layer named in `targets` (find them in the tree) a matrix $A$ of small random numbers and a
# matrix $B$ of zeros. So $BA$ is zero at the start, and the model still gives the same output. In
# the tree, only the A and B have a `*` now. `default` is the name of this pair.

# %%
model = ml.load_base("shakespeare")
W0 = [(p.data, p.data.copy()) for p in model.parameters()]  # and a copy
layers = ("q", "k", "v", "o", "up", "down")
config = lora.LoRAConfig(r=8, alpha=16, targets=layers)
lora.attach(model, config, rng=SEED)
assert ml.evaluate(model, held_out) == frozen_loss
print(model.summary())

# %% [markdown]
# Now we train for the same number of steps on the same batches. The learning rate is higher than in
# full fine-tuning, because each method has its own best rate.

# %%
history = train(model, peak=1e-2)
print(f"loss after LoRA: {history.held_out[-1][1]:.3f}")

# %%
top, bottom = viz.panels(2, 1)
losses, level = {"LoRA": history, "full": full_history}, {"base": frozen_loss}
viz.loss_curves(losses, top, "LoRA gets most of the gain ...", levels=level)
counts = {"LoRA": accounting.count(model), "full": accounting.count(full)}
viz.parameter_bars(counts, bottom, "... and trains few parameters")
viz.show()

# %% [markdown]
# On a model as small as this one, full fine-tuning reaches a lower loss in the same number of
# steps. LoRA trains only a small share of the parameters. Chapter 07 counts the memory that this
# saves. Chapter 08 tests the rank, the learning rate and the choice of layers.
#
# ## Save the adapter
#
# All the $A$ and $B$ together are the *adapter*. $W_0$ has not changed, so the file needs only the
# adapter. Load it into a new copy of the base: the output is exactly that of the adapted model.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = lora.save(model, Path(folder) / "king_james.npz")
    base_path = ml.save_model(base, Path(folder) / "base.npz")
    print(f"adapter: {path.stat().st_size / 1024:,.0f} KiB", end="; ")
    print(f"base: {base_path.stat().st_size / 1024:,.0f} KiB")
    reloaded = ml.load_base("shakespeare")
    lora.load(reloaded, path)

ids = held_out[0][0][:1]  # (1, tokens)
assert (reloaded(ids).data == model(ids).data).all()

# %% [markdown]
# ## Merge
#
# **Predict.** The adapted model has more parameters than the base. Each adapted layer computes
# three matrix products, and each layer of the base computes one. Now we merge the update into the
# weights. How many parameters does the merged model have: as many as the adapted model, as many as
# $A$ and $B$, or as many as the base?
#
# <details><summary>Answer</summary>
#
# As many as the base. $W_0 x + s B A x = (W_0 + s B A)\, x$ with $s = \alpha / r$, and $W_0 + sBA$
# is one matrix of the same size as $W_0$. We compute it once, and put it into a plain layer that
# replaces the adapted one. So the merged model is as small and as fast as the base.
#
# </details>
#
# On paper both sides are equal. A computer rounds after every operation, so the two results are
# only almost equal. A mistake in the merge could hide behind this "almost". `verify` tells rounding
# from a mistake. It checks three things: each merged weight; the *logits* (the numbers from which
# the model computes its probabilities) in float64, where rounding is tiny; and the logits in the
# model's own float32. For each it prints the difference, and the largest difference that rounding
# allows. Chapter 09 derives such limits.

# %%
adapted, logits = sample(model), model(ids).data
proof = lora.verify(model, ids)
print(proof)
lora.merge(model)
print(accounting.count(model))

# %% [markdown]
# The first row reaches its limit, as it should: among so many weights there is one that is rounded
# by almost half of its last digit. The last row is a second, wider limit for the logits.
#
# **Check.** The merge is right, the model is as large as the base, and it writes the same text. The
# arrays of $W_0$ still have their first values: neither training nor merging wrote to them.

# %%
assert proof.passed
assert abs(model(ids).data - logits).max() <= proof.logits.bound
assert accounting.count(model) == accounting.count(base)
assert sample(model) == adapted
assert all((array == copy).all() for array, copy in W0)
print(f"the base wrote:\n{before}\n\nthe merged model writes:\n{adapted}")

# %% [markdown]
# ## Break it
#
# $B$ starts at zero. Why not start $A$ at zero too? Then the model would also start equal to the
# base. Train such a model for a few steps, and see whether the held-out loss changes.

# %%
broken = ml.load_base("shakespeare")
lora.attach(broken, config, rng=SEED)
for name, p in broken.trainable_parameters().items():
    if name.endswith(".A"):
        p.data[...] = 0

train(broken, peak=1e-2, steps=3)
assert ml.evaluate(broken, held_out) == frozen_loss, "this should have failed"
print("Caught: after three steps the loss is the same")

# %% [markdown]
# The formula for the gradient of $A$ contains $B$, and the formula for the gradient of $B$ contains
# $A$. If both are zero, both gradients are zero, now and after every step. So one of the two must
# start at zero, and the other must not.
#
# ## What you built, and what is next
#
# You adapted a frozen model with an update of low rank (a product of two thin matrices). You saved
# the update alone and merged it, and the output stayed the same.
#
# **Next:** chapter 01 builds the part that computes the gradients.
