# %% [markdown]
# # 15. A GPU
#
# *The reader can then:* run the same code on a GPU, say when that is slower, and time it correctly.
# *Time:* 20 minutes. *Needs:* chapters 07 and 12.
# *Remember:* A GPU is fast at large operations; each operation, also a tiny one, costs a launch.
#
# All chapters have run on NumPy. The engine asks one object, `xp`, for its arrays and functions. If
# this object forwards to CuPy, the same code computes on an NVIDIA GPU. What does this change? Not
# the results, and not always the time. Without a GPU this chapter still runs: it counts the work of
# a step exactly, and it uses stand-ins for the rest. It says so wherever it does.

# %%
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import minilora as ml
from minilora import accounting, lora, methods, ops, viz

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, WIDTHS = (3, (32, 64)) if FAST else (20, (64, 128, 256, 512, 1024))
try:
    with ml.using("cupy"):
        GPU = True
except (ImportError, RuntimeError) as reason:
    GPU = False
    print("There is no GPU here:", str(reason).split("(")[0])

# %% [markdown]
# ## The same code
#
# A backend is chosen once, before the model is made; `ml.using` does it for a block. Random numbers
# are always drawn on the host, the processor of the computer, and then moved. So one seed gives one
# model on every backend.

# %%
def train(backend: str, plain: bool = False) -> tuple[list[float], list]:
    """Return the losses, and the trained A and B as NumPy arrays."""
    with ml.using(backend, plain=plain):
        config = ml.GPT2Config(vocab_size=64, n_positions=32, d_model=64,
                               n_layers=2, n_heads=4)
        model = ml.GPT2(config, rng=0)
        lora.attach(model, lora.LoRAConfig(4, 8), rng=0)
        adamw = ml.AdamW(model.trainable_parameters(), lr=1e-2)
        ids = np.random.default_rng(0).integers(0, 64, (4, 33))  # on the host
        losses = []
        for _ in range(STEPS):
            loss = ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            losses.append(float(loss))  # a copy from the device
        trained = model.trainable_parameters().values()
        return losses, [ml.asnumpy(p.data) for p in trained]

# %% [markdown]
# **Check.** Two ways to compute, one result, up to rounding. The second way is CuPy if there is a
# GPU. If not, it is a stand-in: NumPy without our faster versions, with the formulas as chapters 01
# to 07 print them. A GPU also adds numbers in another order than a processor.

# %%
mine, adapter = train("numpy")
other, theirs = train("cupy") if GPU else train("numpy", plain=True)
gap = max(abs(a - b) for a, b in zip(mine, other))
apart = max(abs(a - b).max() for a, b in zip(adapter, theirs))
print("NumPy and", "CuPy on a GPU:" if GPU else "the stand-in, plain NumPy:")
print(f"losses {mine[0]:.3f} -> {mine[-1]:.3f}, differ by {gap:.0e}; "
      f"A and B by {apart:.0e}")
assert gap < 1e-4 and apart < 1e-3

# %% [markdown]
# ## What a step asks for
#
# A GPU gets its work as *kernels*, about one for each operation on arrays. To start one, a
# *launch*, costs some microseconds, whatever the size of the array. So we need two counts: how many
# operations a step has, and how large they are. `accounting.plan` runs the real code on arrays
# without numbers (the backend `shapes`) and counts both. This is exact, and needs no GPU.

# %%
TOKENS = 16  # in a step: one short text

def shape(d: int) -> ml.GPT2Config:
    return ml.GPT2Config(vocab_size=512, n_positions=TOKENS, d_model=d,
                         n_layers=2, n_heads=4)

def cost(d: int, method: methods.Method):
    """Return the counted work of a training step, as CuPy would get it."""
    plan = accounting.plan(shape(d), method=method, device="cupy",
                           batch=1, tokens=TOKENS)
    parts = plan.forward, plan.backward, plan.step  # products: FLOPs
    return {name: sum(getattr(part, name) for part in parts)
            for name in ("calls", "products", "moved")}

both = {"LoRA": methods.LoRA(r=4), "full": methods.Full()}
work = {(name, d): cost(d, m) for name, m in both.items() for d in WIDTHS}
print("method width  operations  multiply-adds   bytes moved")
for (name, d), n in work.items():
    print(f"{name:6}{d:6}{n['calls']:12,}{n['products'] // 2:15,}"
          f"{n['moved']:14,}")

# %% [markdown]
# The number of operations does not depend on the width; the multiply-adds grow almost with its
# square. Full fine-tuning trains far more numbers than LoRA, but its step has only a third more
# operations. So LoRA saves little time where launches decide.
#
# **Predict.** A GPU is a hundred times faster than your processor at large matrix products. It
# needs 10 microseconds to start an operation. How many times longer is a step at the largest width
# above than at the smallest: as many times as the multiply-adds grow, half as many, or about the
# same time?
#
# <details><summary>Answer</summary>
#
# About the same time (without a GPU, our model says so). At these sizes it mostly waits for
# launches, and their number does not change. The processor starts an operation in less time, so at
# the smallest width it can be faster. At the largest it has far more to compute.
#
# </details>

# %% [markdown]
# ## Time against width
#
# We measure the step on this processor. For the GPU we measure, too, if there is one; otherwise we
# draw a *model* of it from the counts, with three round numbers that we assume: 10 µs a launch
# (with Python's part), 10 TFLOP/s ($10^{13}$ additions or products a second), 1 TB/s. A kernel is
# limited by computing or by moving, whichever is slower. The model shows the shape of the curve. Do
# not read times from it.

# %%
LAUNCH, FLOPS, BYTES = 10e-6, 10e12, 1e12

def modelled(n: dict[str, int]) -> float:
    """Return the milliseconds of a step by the model."""
    busy = max(n["products"] / FLOPS, n["moved"] / BYTES)
    return 1000 * max(n["calls"] * LAUNCH, busy)

def measured(d: int, backend: str, turns: int = 2 if FAST else 20) -> float:
    """Return the milliseconds of a LoRA step: the fastest of some turns."""
    with ml.using(backend):
        model = ml.GPT2(shape(d), rng=0)
        lora.attach(model, lora.LoRAConfig(4, 8), rng=0)
        adamw = ml.AdamW(model.trainable_parameters(), lr=1e-3)
        ids = np.random.default_rng(0).integers(0, 512, (1, TOKENS + 1))
        times = []
        for _ in range(turns):
            start = time.perf_counter()
            loss = ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            float(loss)  # waits until all is computed
            times.append(1000 * (time.perf_counter() - start))
        return min(times)

here = [measured(d, "numpy") for d in WIDTHS]
label = "GPU, measured" if GPU else "GPU, modelled"
there = [measured(d, "cupy") if GPU else modelled(work["LoRA", d])
         for d in WIDTHS]
for d, a, b in zip(WIDTHS, here, there):
    print(f"width {d:4}: this processor {a:8.2f} ms, {label} {b:6.2f} ms")

# %%
times = {"this processor": (WIDTHS, here), label: (WIDTHS, there)}
title = "Small steps wait for launches"
viz.curves(times, None, title, "width d", "ms a step", log="xy")
viz.show()

# %% [markdown]
# ## What crosses the border
#
# The memory of a GPU is its own, and a copy between it and the host is slow. In the training above
# only the token ids go in, and one number comes out: `float(loss)`. Weights, gradients and Adam's
# moments stay there. This is why `ml.asnumpy` is a function that you have to call: no array crosses
# by itself.
#
# ## Break it
#
# On a GPU a call returns before the work is done: it only puts the work into a queue. So a clock
# around the call measures the queueing. A stand-in shows it without a GPU: a queue with one worker,
# which is our device.

# %%
device = ThreadPoolExecutor(1)  # one worker takes the work in order
x = np.random.default_rng(0).normal(size=(600, 600))

def timed(wait: bool) -> float:
    start = time.perf_counter()
    jobs = [device.submit(np.matmul, x, x) for _ in range(5)]
    if wait:
        jobs[-1].result()  # as float(loss) does, or a synchronize()
    return 1000 * (time.perf_counter() - start)

timed(wait=True)  # the first call is slower
right = timed(wait=True)
wrong = timed(wait=False)
device.shutdown()
assert wrong < right, "this should have failed"
print("Caught: without waiting, the clock sees only a part of the time")
print(f"({wrong:.2f} ms of {right:.2f} ms)")

# %% [markdown]
# ## What you built, and what is next
#
# You ran one training on two backends, counted the work of a step, and learned what a GPU waits
# for. On a machine with a GPU, run this chapter again, and
# `pytest -m gpu`.
#
# **Next:** chapter 16 trains on several machines.
