# %% [markdown]
# # 14. A real model
#
# *The reader can then:* load a published encoder, adapt it to real sentences, and merge the result.
# *Time:* 25 minutes. *Needs:* chapters 08, 09 and 12.
# *Remember:* First measure what the frozen model can do: only what comes above it was learned.
#
# The models so far were made for this course. Now we take one that others have trained and that
# many programs use: all-MiniLM-L6-v2, a MiniLM (Wang et al. 2020,
# [arXiv 2002.10957](https://arxiv.org/abs/2002.10957)) that was trained further on pairs of
# sentences. This encoder reads a sentence and returns a vector for each token. Its task: does a
# sentence about a film praise it? The sentences are real, too (Pang and Lee 2005,
# [arXiv cs/0506075](https://arxiv.org/abs/cs/0506075)).
#
# Weights and sentences come in two packages, which minilora does not contain. Without them this
# chapter prints the command that installs them, and runs on the small built-in encoder and on
# synthetic sentences. (`MINILORA_FAST=1` always does, and trains for too few steps.)

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

import minilora as ml
from minilora import accounting, data, lora, nn, ops, viz
from minilora.data.tasks import TASKS
from minilora.experiments.cells import Scale
from minilora.experiments.real import films, real
from minilora.experiments.results import Results
from minilora.experiments.shipped import shipped
from minilora.models.pretrained import with_head

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, BATCH, TRAIN, TEST = (3, 8, 40, 40) if FAST else (32, 16, 256, 200)
REAL = not FAST
try:
    films.ready()
except ImportError as missing:
    REAL = False
    print(missing)
if not REAL:
    print("This run uses a small encoder and synthetic sentences.")

# %% [markdown]
# ## An encoder and its tokens
#
# `films.encoder()` calls `ml.Bert.from_pretrained(folder)`, which reads the folder of a published
# model. We keep sentences of at most 20 tokens, to be fast.

# %%
if REAL:
    encoder, texts = films.encoder(), films.sentences()
    rows = data.token_rows(texts.texts, encoder.tokenizer, 64)
    labels = texts.labels
else:
    encoder, task = ml.load_base("mini-encoder"), TASKS["mini-sst"]
    examples = task.examples("train", TRAIN + TEST)
    rows = [np.array(task.words.encode(x.inputs)) for x in examples]
    labels = np.array([x.answer for x in examples])
short = [i for i, row in enumerate(rows) if len(row) <= 20]
rows, labels = [rows[i] for i in short], labels[short]
training, test = slice(TRAIN), slice(TRAIN, TRAIN + TEST)

if REAL:
    print(texts.texts[short[0]], "->", labels[0])
print("ids:", rows[0].tolist())
print(accounting.count(encoder))
print(f"{TRAIN} sentences to train on, {TEST} to test")

# %% [markdown]
# Sentences have different lengths, and a batch is a rectangle. So the shorter ones get *padding*,
# and a mask (1 for a token, 0 for padding) tells attention not to look at it. `data.Buckets` and
# `data.by_length` put sentences of similar length together, so there is little padding.

# %%
batches = data.Buckets(rows[training], labels[training], BATCH, seed=0)
test_batches = data.by_length(rows[test], labels[test], 50)
(ids, mask, _), classes = test_batches[-1]
print(f"a batch: ids {ids.shape}, {100 * mask.mean():.0f} % of them tokens")

# %% [markdown]
# ## What does the frozen encoder know?
#
# Before we train, we measure a floor. The mean of a sentence's vectors is one point. We compute the
# centre of the points of each class, on the training sentences. A test sentence gets the class of
# the nearer centre. Nothing of the encoder is trained.
#
# **Predict.** A guess is right for half of the sentences. How good are the centres with MiniLM: as
# a guess, about three quarters, or almost perfect?
#
# <details><summary>Answer</summary>
#
# About three quarters. The encoder was trained to tell which sentences mean the same, and praise is
# a part of the meaning. So a large part of the final accuracy comes from the encoder, and not from
# the training of this chapter. An experiment without such a floor shows too little. (The small
# encoder is hardly better than a guess.)
#
# </details>

# %%
def means(some: list) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean vector of each sentence and its class."""
    points, classes = [], []
    with ml.no_grad(), nn.evaluating(encoder):
        for (ids, mask, types), batch_classes in some:  # types: None here
            vectors = ml.asnumpy(encoder.encode(ids, mask, types).data)
            total = (vectors * mask[..., None]).sum(axis=1)
            points.append(total / mask.sum(axis=1)[:, None])
            classes.append(batch_classes)
    return np.concatenate(points), np.concatenate(classes)

points, known = means(data.by_length(rows[training], labels[training], 50))
centres = np.stack([points[known == c].mean(axis=0) for c in (0, 1)])
points, known = means(test_batches)
distances = ((points[:, None] - centres) ** 2).sum(axis=2)
floor = (distances.argmin(axis=1) == known).mean()
print(f"the frozen encoder and two centres: {100 * floor:.1f} % right")

# %% [markdown]
# ## A new head, and LoRA
#
# `with_head` puts a new classifier on a copy of the encoder: random, so it must be trained in full.
# `trainable=("head",)` says so. The paper's count of parameters leaves the head out, because every
# method needs one. But it has to be in the file.

# %%
model = with_head(encoder, 2, rng=0)
config = lora.LoRAConfig(8, 8, ("q", "v"), trainable=("head",))
lora.attach(model, config, rng=0)
trained = model.trainable_parameters()
in_head = sum(p.size for n, p in trained.items() if n.startswith("head"))
mine = accounting.count(model).trainable - in_head
print(f"LoRA trains {mine:,} numbers, the head has {in_head:,}")

def loss(model, batch) -> ml.Tensor:
    inputs, classes = batch
    return ops.cross_entropy(model(*inputs), classes)

def right(model) -> float:
    """Return the share of right answers on the test sentences."""
    correct = []
    with ml.no_grad(), nn.evaluating(model):
        for (ids, mask, types), classes in test_batches:
            scores = model(ids, mask, types)
            found = ml.asnumpy(scores.data).argmax(axis=1)
            correct.extend(found == classes)
    return float(np.mean(correct))

adamw = ml.AdamW(trained, 1e-3, weight_decay=0.0)
history = ml.fit(model, batches, adamw, STEPS, loss=loss, progress=False)
accuracy = right(model)
error = (accuracy * (1 - accuracy) / TEST) ** 0.5
print(f"loss {np.mean(history.losses[:5]):.2f} -> "
      f"{np.mean(history.losses[-5:]):.2f}")
print(f"LoRA: {100 * accuracy:.1f} % right, floor {100 * floor:.1f} %")
print(f"standard error: {100 * error:.1f} %")

# %% [markdown]
# The loss falls. But MiniLM with two centres is about as good, without any training of its weights.
# Without the floor we would praise LoRA for what the encoder knew before. (The small encoder hardly
# learns.) Look also at the *standard error*: how far a share of so few sentences usually is from
# that of very many. If two shares differ by less than two of it, they do not say which is better.
#
# ## Accuracy against parameters
#
# A fair comparison takes many runs: rates for each method, seeds, more sentences. They are too long
# for a chapter. `minilora reproduce real` makes them, and the package contains their results. We
# draw these. Some points have three seeds, some of LoRA's only one.

# %%
accuracies, level = real.accuracies(Results(shipped(), Scale()))
title = "Only full fine-tuning is clearly above the probe"
viz.quality_vs_parameters(accuracies, None, title, "test accuracy",
                          levels={"frozen base, linear probe": level})
viz.show()

# %% [markdown]
# The probe is a linear classifier on the frozen encoder, a stronger floor than our two centres.
# Full fine-tuning is above it by more than the seeds differ. LoRA with the fewest numbers is below
# it; with the most it is a little above. The long line is Adapter-H: one of its seeds failed. The
# paper's encoders are larger, and so are its training sets: there LoRA equals full fine-tuning
# (table 2). Here we do not see it.
#
# ## Save and merge
#
# The file has the adapter and the head. A program that knows nothing of LoRA needs the merged
# model: `merge` gives it, and `save_pretrained` writes the folder that `transformers` reads.
#
# **Check.** The merged model and the adapted one answer the same, up to rounding.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = lora.save(model, Path(folder) / "praise.npz")
    whole = 4 * accounting.count(encoder).total
    print(f"the file: {path.stat().st_size / 1024:,.0f} KiB, "
          f"all weights: {whole / 1024:,.0f} KiB")

def scores(mask):
    with ml.no_grad(), nn.evaluating(model):
        return ml.asnumpy(model(ids, mask, None).data)

before = scores(mask)  # ids, mask: the last test batch
lora.merge(model)
off = abs(scores(mask) - before).max()
print(f"largest difference of a score: {off:.0e}")
assert off < 1e-3
assert right(model) == accuracy

# %% [markdown]
# ## Break it
#
# Forget the mask. Then attention reads the padding as if it were words, and the answer to a
# sentence depends on the length of its neighbours. No error is raised.

# %%
longer = np.pad(ids, ((0, 0), (0, 12)))  # a longer neighbour would do this
longer_mask = np.pad(mask, ((0, 0), (0, 12)))
with ml.no_grad(), nn.evaluating(model):
    with_it, without = (ml.asnumpy(model(longer, m, None).data)
                        for m in (longer_mask, None))
same, other = abs(with_it - before).max(), abs(without - before).max()
assert same < 1e-3 < other, "this should have failed"
print(f"Caught: 12 more places of padding change a score by {other:.2f};")
print(f"with the mask by {same:.0e}")

# %% [markdown]
# ## What you built, and what is next
#
# You built a classifier on a real encoder, with a floor, an error bar and a file of its own.
# `minilora finetune --base FOLDER --task classify --data FILE.csv` does this with your own data.
#
# **Next:** chapter 15 runs the same code on a GPU.
