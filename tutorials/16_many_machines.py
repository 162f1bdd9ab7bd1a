# %% [markdown]
# # 16. Many machines
#
# *The reader can then:* share a training step among processes, with the same bits on 1 to 8.
# *Time:* 25 minutes. *Needs:* chapters 08 and 12.
# *Remember:* Cut each batch into the same shards, add them in one order: you get the same bits.
#
# One machine is too slow. How do several train one model together? Each takes a part of the batch,
# computes its gradients, and sends them to the others. All add up the same numbers and take the
# same step. LoRA helps twice: it has few gradients to send, and the processes of one computer can
# share the frozen weights. We build this by hand, with processes that we only imagine: they are
# turns of a loop. The commands for real ones come later. (`MINILORA_FAST=1` takes fewer steps.)

# %%
import os
from itertools import pairwise

import numpy as np

import minilora as ml
from minilora import accounting, data, lora, methods, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, ROWS, TOKENS = (2, 8, 16) if FAST else (6, 16, 32)
SHARDS = 8  # parts of a batch: the same for any number of processes

text = ml.load_base("shakespeare").tokenizer.encode(data.load_text("kjv"))
batches = data.Windows(text[:50_000], ROWS, TOKENS, seed=0)

def started() -> tuple[ml.GPT2, ml.AdamW]:
    model = ml.load_base("shakespeare")
    lora.attach(model, lora.LoRAConfig(4, 8), rng=0)
    return model, ml.AdamW(model.trainable_parameters(), lr=1e-2)

# %% [markdown]
# ## A batch in parts
#
# The loss of a batch is a mean over its targets. We cut its rows into parts, the *shards*. For each
# shard we compute the *sum* of the losses, not the mean, and its gradients. All the sums together,
# divided by the number of targets of the entire batch, are the loss of the batch. The gradients
# likewise. If we took the mean of each shard and then the mean of these means, a shard with few
# targets would count too much.

# %%
def flat_gradient(model, inputs, targets, total: int) -> np.ndarray:
    """Return the gradients of sum(losses) / total of a shard, in one row."""
    for p in model.trainable_parameters().values():
        p.grad = None
    mean = ops.cross_entropy(model(inputs), targets)
    here = (targets >= 0).sum()  # a target below 0 is masked
    (mean * float(here / total)).backward()
    trained = model.trainable_parameters().values()
    return np.concatenate([ml.asnumpy(p.grad).ravel() for p in trained])

def shards_of(inputs, targets) -> list:
    cuts = np.linspace(0, len(inputs), SHARDS + 1).astype(int)
    return [(inputs[a:b], targets[a:b]) for a, b in pairwise(cuts)]

model, _ = started()
inputs, targets = batches[0]
targets = targets.copy()
targets[: ROWS // 2, 4:] = -100  # mask: the shards have unlike numbers
total = (targets >= 0).sum()
whole = flat_gradient(model, inputs, targets, total)
shards = shards_of(inputs, targets)
rows = [flat_gradient(model, *shard, total) for shard in shards]
means = [flat_gradient(model, x, y, SHARDS * (y >= 0).sum())  # mean / 8
         for x, y in shards]
for name, parts in (("sums", rows), ("means of means", means)):
    off = np.linalg.norm(sum(parts) - whole) / np.linalg.norm(whole)
    print(f"{name:15} differ from the entire batch by {off:.0e}")

# %% [markdown]
# ## Ranks
#
# A process of the group has a number, its *rank* (not LoRA's $r$). Rank $k$ of $n$ computes the
# shards $k$, $k + n$, $k + 2n$, and so on. Then every rank gets the rows of all shards (an
# *all-gather*), and adds them up.
#
# **Predict.** Four ranks and eight shards. Each rank could add up its own two rows first, and send
# only the sum: half as many numbers. On paper the total is the same. Does the model get the same
# bits as with one rank or with two?
#
# <details><summary>Answer</summary>
#
# No. Floating-point addition depends on the order: $(a + b) + c$ is not always $a + (b + c)$,
# because each sum is rounded. With one rank the order is another one than with four. The
# differences are tiny, but each step starts from the numbers of the last, so they can grow.
#
# </details>
#
# So we fix the order: all rows, neighbours first, whoever computed them.

# %%
def summed(rows: list) -> np.ndarray:
    """((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))"""
    while len(rows) > 1:
        rows = [sum(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return rows[0]

def exact(by_rank: list[list]) -> np.ndarray:
    """Put the rows of all ranks in the order of the shards, and add."""
    n = len(by_rank)
    return summed([by_rank[i % n][i // n] for i in range(SHARDS)])

def fast(by_rank: list[list]) -> np.ndarray:
    """Each rank adds up its own rows; then the sums are added."""
    return sum(sum(rows) for rows in by_rank)

def train(ranks: int, add) -> bytes:
    """Return the trained numbers after some steps, as bytes."""
    model, adamw = started()
    for step in range(STEPS):
        inputs, targets = batches[step]
        shards, by_rank = shards_of(inputs, targets), []
        for rank in range(ranks):  # on a cluster, all at the same time
            by_rank.append([flat_gradient(model, *shard, targets.size)
                            for shard in shards[rank::ranks]])
        total, at = add(by_rank), 0
        for p in adamw.parameters.values():
            part = total[at : at + p.size].reshape(p.shape)
            p.grad, at = ml.xp.asarray(part), at + p.size
        adamw.step()
    trained = model.trainable_parameters().values()
    return b"".join(ml.asnumpy(p.data).tobytes() for p in trained)

# %% [markdown]
# **Check.** With a fixed order, 1, 2, 4 and 8 ranks end with the same bits.

# %%
alone = train(1, exact)
for ranks in (2, 4, 8):
    assert train(ranks, exact) == alone
    print(f"{ranks} ranks: the same {len(alone):,} bytes as one")

# %% [markdown]
# The library does this in `fit(..., group=ml.MPI())`; `mpiexec -n 4 python -m mpi4py script.py`
# starts it. `ml.Alone()` is a group of one process: it cuts the batch in the same way, and so it
# gives the bits of any number of ranks, up to one for each shard.
#
# ## What is sent
#
# A step sends the gradients of what is trained. Our all-gather sends each row to all other ranks:
# too much for very many. So for GPT-3 on 1,024 ranks we count the sum of `fast` (an *all-reduce*):
# about two copies of the gradients, without the equal bits. The seconds come from a *model* of the
# network: a message takes a delay (its *latency*), plus its bytes divided by the speed. It knows
# nothing of other traffic.

# %%
RANKS = 8 if FAST else 1024
shape = "gpt2" if FAST else "gpt3-175b"
plans = {"LoRA": methods.LoRA(4), "Adapter-H": methods.AdapterH(8),
         "BitFit": methods.BitFit(), "full": methods.Full()}
sent = {name: accounting.traffic(shape, method, RANKS, reduce="fast")
        for name, method in plans.items()}
print(f"{shape}, {RANKS:,} ranks; seconds a step, by the model")
print(f"{'':10}{'trained':>18}{'bytes sent':>12}",
      *(f"{net:>12}" for net in sent["full"].seconds))
for name, each in sent.items():
    seconds = [f"{s:12.3g}" for s in each.seconds.values()]
    print(f"{name:10}{each.trained:18,}{each.sent:12.3g}", *seconds)

# %%
nets = {name: [*each.seconds.values()][-1] for name, each in sent.items()}
times = {name: [1000 * s] for name, s in nets.items() if name != "full"}
title = f"Sending the gradients of {shape} at 100 Gbit/s"
viz.latency_bars(times, None, title)
viz.show()

# %% [markdown]
# Full fine-tuning does not fit into the figure: on the faster network it takes almost two minutes.
# LoRA needs about a second on the slower one. (Our all-gather would need ten minutes: it is for few
# ranks.) But every process keeps the frozen weights. Those on one computer can share them, since
# nobody writes to them: the library does so.
#
# ## When to leave one machine
#
# Most experiments need many *runs*, not one faster run: rates, values of $r$, seeds. Then nothing
# has to be sent at all: each process does its own run. `minilora sweep` does this, and writes down
# each finished run, so an interrupted sweep goes on where it was. Share one run only if a single
# run is too slow.
#
# ```sh
# minilora sweep sweep.toml                            # many runs, here
# pip install '.[mpi]' mpich                           # for the next one
# mpiexec -n 4 minilora finetune kjv --out kjv.npz     # one run, 4 ranks
# ```
#
# ## Break it
#
# Add up as `fast` does: each rank its own rows first. (8 ranks have a row each: the order of one.)

# %%
different = [n for n in (2, 4, 8) if train(n, fast) != train(1, fast)]
assert different, "this should have failed"
one, two = (np.frombuffer(train(n, fast), np.float32) for n in (1, 2))
print(f"Caught: with {different} ranks the bits are others than with one;")
print(f"after {STEPS} steps they differ by up to {abs(one - two).max():.0e}")

# %% [markdown]
# ## What you built, and what is next
#
# You built data-parallel training with the same bits on 1 to 8 processes, and counted what it
# sends.
#
# **Next:** this is the last chapter. `minilora reproduce` tests the paper's claims: try one.
