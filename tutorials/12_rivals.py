# %% [markdown]
# # 12. The paper's rivals
#
# *The reader can then:* write BitFit, adapters and prefixes, and compare them with LoRA.
# *Time:* 30 minutes. *Needs:* chapters 10 and 11.
# *Remember:* LoRA's update can be merged; an adapter or a prefix has to run at every step.
#
# LoRA is not the only way to train a few numbers beside a frozen model. The paper compares it with
# three kinds of others (§5.1): train only the biases, put small layers between the layers, or put
# trained vectors before the text. We write each in a few lines and check it against the library.
# How good is it for its number of parameters? How much longer is the chain of operations, and how
# much time does that cost? (`MINILORA_FAST=1` trains for too few steps.)

# %%
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import minilora as ml
from minilora import accounting, lora, methods, nn, ops, viz
from minilora.data.tasks import TASKS

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, N, BATCH = (3, 40, 4) if FAST else (70, 400, 16)
task, base = TASKS["mini-e2e"], ml.load_base("mini-decoder")
examples = task.examples("train", N)
held_out = [task.batch(task.examples("validation", 64))]
ids = held_out[0][0][:2, :12]  # (2, tokens): a small input for the checks
config = base.config

# %% [markdown]
# The task is the first of chapter 11: a sentence about a restaurant.
#
# ## BitFit: only the biases
#
# A bias is a vector that a layer adds. BitFit (Zaken et al. 2021,
# [arXiv 2106.10199](https://arxiv.org/abs/2106.10199)) trains all of them and adds nothing.

# %%
def bitfit() -> ml.GPT2:
    model = ml.load_base("mini-decoder")
    for name, p in model.named_parameters():
        p.requires_grad = name.endswith(".b")
    return model

# %% [markdown]
# ## Adapters: a small layer after a layer
#
# The adapter of Houlsby et al. (2019, [arXiv 1902.00751](https://arxiv.org/abs/1902.00751)) is a
# *bottleneck*. It takes the output $h$ of attention, or of the MLP, reduces it to $r$ numbers, and
# adds what it makes of them:
#
# $$ h + U\, \mathrm{relu}(D h + b) + c. $$
#
# $U$ and $c$ start at zero, so the model starts as the base. A `lora.Adapter` is a module around
# another one, `inner`; a `Method` says which module gets which adapter.

# %%
class Bottleneck(lora.Adapter):
    def __init__(self, d: int, r: int, rng: np.random.Generator) -> None:
        self.down = nn.Linear(d, r, rng=rng)
        self.up = nn.Linear(r, d, rng=rng)
        self.up.W.data[...] = 0

    def forward(self, inner, *args, **settings):
        h = inner(*args, **settings)
        return h + self.up(ops.relu(self.down(h)))

@dataclass(frozen=True)
class Houlsby(methods.Method):
    r: int = 8

    def around(self, model, rng) -> Mapping[str, lora.Adapter]:
        paths = [f"blocks.{i}.{part}" for i in range(model.config.n_layers)
                 for part in ("attn", "mlp")]
        return {at: Bottleneck(model.config.d_model, self.r, rng)
                for at in paths}

# %% [markdown]
# ## Prefixes: trained vectors before the text
#
# The model reads vectors, one for each token. So we can put `n` trained vectors, which stand for no
# words, before the text, and let attention use them. *PreEmbed* does it once, at the input.
# *PreLayer* replaces them again before every block.

# %%
def prefixed(model: ml.GPT2, ids: np.ndarray, E: list) -> ml.Tensor:
    """Return logits. E: one array or Tensor (n, d), or one for each block."""
    n, tokens = E[0].shape[0], model.tok(ids)
    ones = ml.xp.ones((len(ids), 1, 1), dtype=tokens.dtype)  # for each row
    x = ops.concat(ops.mul(ones, E[0]), tokens, axis=1)
    x = x + model.pos(np.arange(x.shape[1]))
    for i, block in enumerate(model.blocks):
        if len(E) > 1:  # PreLayer: these vectors get no position
            x = ops.concat(ops.mul(ones, E[i]), x[:, n:], axis=1)
        x = block(x)
    return model.tok.project(model.ln_f(x)[:, n:])

# %% [markdown]
# **Check.** Each of the four has the library's number of parameters, and computes the same.

# %%
def applied(method: str, **settings) -> ml.GPT2:
    model = ml.load_base("mini-decoder")
    methods.apply(model, method, rng=0, **settings)
    return model

theirs = {"BitFit": applied("bitfit"), "Adapter-H": applied("adapter-h", r=4),
          "PreEmbed": applied("preembed", lp=8),
          "PreLayer": applied("prelayer", lp=8)}
mine = bitfit(), ml.load_base("mini-decoder")
Houlsby(r=4).apply(mine[1], rng=0)
rng = np.random.default_rng(0)
trained = {name: list(model.trainable_parameters().values())
           for name, model in theirs.items()}
for name, model in zip(("BitFit", "Adapter-H"), mine):
    own = model.trainable_parameters().values()
    for p, q in zip(own, trained[name]):
        noise = rng.normal(0, 0.1, p.shape).astype("float32")
        p.data[...] = q.data + ml.xp.asarray(noise)  # as if trained
        q.data[...] = p.data
outputs = {"BitFit": mine[0](ids), "Adapter-H": mine[1](ids)}
trained["PreLayer"].reverse()  # their order: last block first
for name in ("PreEmbed", "PreLayer"):
    outputs[name] = prefixed(base, ids, trained[name])
for name, model in theirs.items():
    off = float(abs(outputs[name].data - model(ids).data).max())
    count = sum(p.size for p in trained[name])
    print(f"{name:10}{count:6} parameters, logits differ by {off:.0e}")
    assert off < 1e-3
for own, name in zip(mine, ("BitFit", "Adapter-H")):
    assert accounting.count(own) == accounting.count(theirs[name])

# %% [markdown]
# ## Quality against parameters
#
# Each method trains on the same batches, for the same number of steps. Each has its own best
# learning rate (chapter 08), so we try two for each size and show the better one. We run one seed
# only: small differences mean nothing. (`minilora reproduce gpt3` compares them with more seeds, on
# three tasks.)

# %%
class Drawn:
    def __getitem__(self, i: int):
        at = np.random.default_rng(i).integers(0, N, BATCH)
        return task.batch([examples[j] for j in at])

def trained_loss(method: str, lr: float, **settings) -> tuple[int, float]:
    model = applied(method, **settings)
    adamw = ml.AdamW(model.trainable_parameters(), lr, weight_decay=0.0)
    ml.fit(model, Drawn(), adamw, STEPS, progress=False)
    return accounting.count(model).trainable, ml.evaluate(model, held_out)

SIZES = {"BitFit": [{}], "PreEmbed": [{"lp": 8}], "PreLayer": [{"lp": 8}],
         "Adapter-H": [{"r": 1}, {"r": 8}], "full": [{}],
         "LoRA": [{"r": r, "alpha": 4} for r in (1, 4, 16)]}
results = {}
for name, sizes in SIZES.items():
    rates = (1e-3, 3e-3) if name == "full" else (1e-2, 3e-2)
    for settings in sizes:
        runs = [trained_loss(name.lower(), lr, **settings) for lr in rates]
        n, loss = min(runs, key=lambda run: run[1])
        results.setdefault(name, {})[n] = [loss]
        print(f"{name:10}{n:8,} parameters: loss {loss:5.2f}")

# %%
level = {"base": ml.evaluate(base, held_out)}
title = "Adapters and LoRA learn most for their size"
viz.quality_vs_parameters(results, None, title, levels=level)
viz.show()

# %% [markdown]
# PreEmbed gains least, with as many numbers as the smallest LoRA. BitFit gains more, adapters and
# LoRA still more. LoRA's curve is a little lower, but one seed cannot rank them. Full fine-tuning
# is best here. In the paper it is not: for GPT-3 (table 4) LoRA is as good, and all distances are
# far smaller. Our base is tiny, and we train for few steps: do not take the distances from here.
#
# ## Depth
#
# **Predict.** Adapter-H with $r = 8$ adds only a few per cent to the multiplications of a forward
# pass. Look at the longest chain of operations in which each waits for the one before. How much
# longer does it get: by the same few per cent, by about a fifth, or by twice as much?
#
# <details><summary>Answer</summary>
#
# By about a fifth. Small operations are still operations. An adapter comes *after* a layer, so the
# next layer has to wait for all of its steps. LoRA's $BA x$ is computed *beside* $W_0 x$, so it
# adds little to the chain, and after a merge nothing.
#
# </details>

# %%
plans = {"base": methods.Full(), "LoRA": methods.LoRA(r=8),
         "Adapter-H": methods.AdapterH(8), "PreLayer": methods.PreLayer(8)}
costs = {name: accounting.plan(config, method=m, batch=1, tokens=16).forward
         for name, m in plans.items()}
print("           multiplications  longest chain")
for name, cost in costs.items():
    work = cost.products / costs["base"].products - 1
    chain = cost.depth / costs["base"].depth - 1
    print(f"{name:10}{work:+16.1%}{chain:+15.1%}")

# %% [markdown]
# A prefix costs in another way: the model reads more tokens, and less text fits.
#
# ## Time
#
# What does it cost to read one short text? The paper measures it in table 1. All models take turns.

# %%
models = {"base": base, "unmerged LoRA": applied("lora", r=8),
          "merged LoRA": applied("lora", r=8),
          "Adapter-H": applied("adapter-h", r=8)}
lora.merge(models["merged LoRA"])
taken = {name: [] for name in models}
for _ in range(20 if FAST else 200):
    for name, model in models.items():
        start = time.perf_counter()
        with ml.no_grad():
            model(ids[:1])
        taken[name].append(1000 * (time.perf_counter() - start))
fastest = {name: np.sort(ms)[: len(ms) // 2] for name, ms in taken.items()}
print(", ".join(f"{n} {np.median(x):.2f} ms" for n, x in fastest.items()))
title = "Only the merged model is as fast as the base"
viz.latency_bars(fastest, None, title)
viz.show()

# %% [markdown]
# ## Break it
#
# Can we merge an adapter, as we merge LoRA? Between $D$ and $U$ is a relu. If we leave it out,
# $UD$ is one matrix, and could be added to a layer. But then it is another function.

# %%
D, U, h = (rng.normal(size=s) for s in ((4, 64), (64, 4), (10, 64)))
merged = h @ (np.eye(64) + U @ D).T
adapter = h + np.maximum(h @ D.T, 0) @ U.T
off = np.linalg.norm(merged - adapter) / np.linalg.norm(adapter - h)
assert off > 0.5, "this should have failed"
print(f"Caught: the merged update is off by {off:.0%} of the right one")

# %% [markdown]
# ## What you built, and what is next
#
# You built the paper's rivals, and compared their quality, depth and time with LoRA's.
#
# **Next:** chapter 13 changes LoRA itself.
