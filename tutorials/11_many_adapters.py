# %% [markdown]
# # 11. Many adapters
#
# *The reader can then:* keep one base with many adapters: swap, scale, add and mix them in a batch.
# *Time:* 25 minutes. *Needs:* chapter 10.
# *Remember:* To add two updates, put their factors side by side; do not add the factors.
#
# An adapter is small and the base is not changed. So a hundred tasks need one base and a hundred
# small files, and not a hundred models (§4.2). In this chapter one base learns three tasks. We swap
# their adapters, use several of them in one batch, make one weaker or stronger, and add two.
# (`MINILORA_FAST=1` trains for too few steps.)

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

import minilora as ml
from minilora import accounting, lora, viz
from minilora.data.tasks import TASKS

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, N, BATCH = (5, 40, 4) if FAST else (100, 400, 32)

# %% [markdown]
# ## Three tasks
#
# The package has a second base, smaller than that of chapter 00. It was trained on synthetic
# sentences. Each task is a new way to answer: a sentence about a restaurant from its facts, a query
# for a database from a question, a summary of a talk. They stand for data sets of the paper (E2E,
# WikiSQL, SAMSum), but they are far easier.

# %%
NAMES = ("mini-e2e", "mini-sql", "mini-samsum")
tasks = {name.removeprefix("mini-"): TASKS[name] for name in NAMES}
for name, task in tasks.items():
    first = task.examples("train", 1)[0]
    print(f"{name}: {first.inputs}\n  -> {first.answer[0]}")

# %% [markdown]
# The training reads random batches of examples. Only the answer counts in the loss. `Drawn[i]` is
# batch `i`, the form that `fit` asks for.

# %%
class Drawn:
    def __init__(self, task):
        self.task, self.examples = task, task.examples("train", N)

    def __getitem__(self, i: int):
        at = np.random.default_rng(i).integers(0, N, BATCH)
        return self.task.batch([self.examples[j] for j in at])

model, config = ml.load_base("mini-decoder"), lora.LoRAConfig(4, 8)
held_out = {name: [task.batch(task.examples("validation", 64))]
            for name, task in tasks.items()}
for seed, (name, task) in enumerate(tasks.items()):
    lora.attach(model, config, name=name, rng=seed)  # only this one trains
    adamw = ml.AdamW(model.trainable_parameters(), 1e-2, weight_decay=0.0)
    ml.fit(model, Drawn(task), adamw, STEPS, progress=False)

# %% [markdown]
# ## Swap
#
# All three are attached now. `activate` chooses who takes part. Nothing is loaded, copied or
# computed for it, so it costs nothing. We evaluate every adapter on every task.

# %%
def losses() -> dict[str, float]:
    return {name: ml.evaluate(model, held_out[name]) for name in tasks}

table = {}
for adapter in ("base", *tasks):
    lora.activate(model, *(() if adapter == "base" else (adapter,)))
    table[adapter] = losses()
for adapter, row in table.items():
    print(f"{adapter:8}", *(f"{name} {x:6.2f} " for name, x in row.items()))
guess = np.log(model.config.vocab_size)
print(f"a guess among all words: {guess:.2f} on each")

# %%
title = "Each adapter knows its own task, and no other"
viz.cross_table(table, None, title, "task", "active adapter")
viz.show()

# %% [markdown]
# Every adapter also lowers the loss of the other tasks, but never below a guess among all words: it
# does not know them. The base is above a guess everywhere, because it expects the ways to answer
# that it was trained on, and is sure of them.
#
# What does a task cost on disk? We write one adapter, and the base as a whole.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = lora.save(model, Path(folder) / "sql.npz", name="sql")
    base = ml.load_base("mini-decoder")
    whole = ml.save_model(base, Path(folder) / "base.npz")
    small, large = path.stat().st_size, whole.stat().st_size
for n in (1, 3, 100):
    models, adapters = n * large / 2**20, (large + n * small) / 2**20
    print(f"tasks: {n:3}. As models {models:.1f} MiB, as a base and "
          f"adapters {adapters:.1f} MiB")
ratio = accounting.count(base).total / accounting.count(model).trainable
print(f"(numbers of the base / of one adapter: {ratio:.0f})")

# %% [markdown]
# ## A batch with several adapters
#
# A server gets requests for all tasks at once. Merged weights can serve only one task at a time
# (§4.2 says so). Unmerged, each row of the batch can have its own $A$ and $B$, and all rows share
# the large product $W_0 x$. By hand, for one layer:

# %%
layer = model.blocks[0].attn.q
rows = ["e2e", "sql", "samsum", "sql"]
x = np.random.default_rng(0).normal(size=(4, 5, 64)).astype("float32")
W0, b = (ml.asnumpy(p.data) for p in (layer.base.W, layer.base.b))
own = [layer.adapters[name] for name in rows]
A, B = (np.stack([ml.asnumpy(getattr(each, letter).data) for each in own])
        for letter in "AB")  # (rows, r, k) and (rows, d, r)
Ax = x @ A.swapaxes(1, 2)  # one small product for each row
y = x @ W0.T + b + own[0].scale * (Ax @ B.swapaxes(1, 2))

# %% [markdown]
# **Check.** The library does the same in every layer. Each row gets what its adapter gives alone,
# up to rounding.

# %%
with lora.per_row(model, rows):
    together = ml.asnumpy(layer(ml.Tensor(ml.xp.asarray(x))).data)
print(f"largest difference from our layer: {abs(together - y).max():.0e}")
assert abs(together - y).max() < 1e-4

ids = np.concatenate([held_out[name][0][0][:1, :12] for name in rows])
with ml.no_grad(), lora.per_row(model, rows):
    mixed = ml.asnumpy(model(ids).data)
for i, name in enumerate(rows):
    lora.activate(model, name)
    with ml.no_grad():
        alone = ml.asnumpy(model(ids[i : i + 1]).data)[0]
    assert abs(mixed[i] - alone).max() < 1e-3
print("each row has the logits of its own adapter")

# %% [markdown]
# ## Scale
#
# $\Delta W$ can be multiplied by any number after training. At 0 we have the base, at 1 the adapter
# as it was trained. `combine` makes a new adapter from others, each with a weight.

# %%
weights = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
swept = []
for i, weight in enumerate(weights):
    lora.combine(model, {"sql": weight}, name=f"sql {i}")
    swept.append(losses()["sql"])
    lora.detach(model, f"sql {i}")
    print(f"{weight:4.2f} times sql: loss {swept[-1]:6.2f}")
title = "The first half of the update brings most of the gain"
viz.curves({"sql": (weights, swept)}, None, title, "factor of ΔW",
           "held-out loss (nats a token)")
viz.show()

# %% [markdown]
# The loss is lowest near 1, the factor that the training used. A stronger update is worse, and half
# of it is already far from the base.
#
# ## Add
#
# **Predict.** You add the updates of two adapters with rank 4, $B_1 A_1 + B_2 A_2$. Can the sum be
# written as one adapter? With which rank: 4, 8, or only as a full matrix?
#
# <details><summary>Answer</summary>
#
# With rank 8. Put the factors side by side:
#
# $$ B_1 A_1 + B_2 A_2 = \begin{bmatrix} B_1 & B_2 \end{bmatrix}
#    \begin{bmatrix} A_1 \\ A_2 \end{bmatrix}. $$
#
# The sum has at most rank $4 + 4$, and nothing is lost. A smaller rank is possible, with an error:
# the SVD gives the best one (chapter 06).
#
# </details>

# %%
one, two = layer.adapters["e2e"], layer.adapters["sql"]
A1, B1, A2, B2 = (ml.asnumpy(p.data) for p in (one.A, one.B, two.A, two.B))
wanted = one.scale * (B1 @ A1) + two.scale * (B2 @ A2)  # ΔW1 + ΔW2
side_by_side = one.scale * (np.hstack([B1, B2]) @ np.vstack([A1, A2]))
print(f"side by side: off by {abs(side_by_side - wanted).max():.0e}")

both = {"e2e": 1.0, "sql": 1.0}
for how, r in (("cat", None), ("svd", 4)):
    errors = lora.combine(model, both, how, name=how, r=r)
    print(f"{how}: rank {len(layer.adapters[how].A)}, "
          f"in the worst layer off by {max(errors.values()):.0%},",
          *(f"{name} {loss:.2f} " for name, loss in losses().items()))

# %% [markdown]
# The sum (`cat`) is exact. One model is now far better than the base at e2e and sql (at sql worse
# than a guess), and far worse than the adapter of each: the two updates were not trained to work
# together. Each disturbs the other. `svd` cuts the sum to rank 4: $\Delta W$ is off by a large
# share, the loss at sql rises most.
#
# ## Break it
#
# It is tempting to add the factors: $(B_1 + B_2)(A_1 + A_2)$. The rank stays 4, and no SVD is
# needed. Multiply it out, and see what comes in besides the two updates.

# %%
wrong = one.scale * ((B1 + B2) @ (A1 + A2))
cross = one.scale * (B1 @ A2 + B2 @ A1)  # belongs to no task
off = np.linalg.norm(wrong - wanted) / np.linalg.norm(wanted)
assert off > 0.2, "this should have failed"
assert abs(wrong - wanted - cross).max() < 1e-4
print(f"Caught: ΔW is off by {off:.0%} of its norm, by B1 A2 + B2 A1")
lora.combine(model, both, "linear", name="linear")
print("and the losses:",
      *(f"{name} {loss:.2f} " for name, loss in losses().items()))

# %% [markdown]
# ## What you built, and what is next
#
# You built one base for many tasks: swapped, mixed in a batch, scaled and added.
# `minilora reproduce switch` measures the cost of a swap.
#
# **Next:** chapter 12 compares LoRA with the methods that the paper compares it with.
