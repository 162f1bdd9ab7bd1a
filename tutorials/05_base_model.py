# %% [markdown]
# # 05. A base model
#
# *The reader can then:* split a text into tokens, pretrain a small GPT, read its loss, and sample.
# *Time:* 25 minutes. *Needs:* chapter 04.
# *Remember:* A language model answers one question, what comes next. Every text has the answers.
#
# LoRA adapts a pretrained model. This chapter pretrains one, in a few seconds. (With
# `MINILORA_FAST=1` it learns nothing.)

# %%
import os
import re
from collections import Counter
from itertools import pairwise

import numpy as np

import minilora as ml
from minilora import accounting, data, nn, viz
from minilora.models.transformer import Block

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, SEED = (10 if FAST else 450), 0
LINE = "To be, or not to be,--that is the question:--"
plays, rest = data.split(data.load_text("plays"), held_out=0.05)
plays = plays[: 50_000 if FAST else 1_000_000]
rest = rest[: 5_000 if FAST else 40_000]
print(f"characters: {len(plays):,} to train on, {len(rest):,} held out")

# %% [markdown]
# ## From text to numbers
#
# A model takes integers. The 256 bytes can represent any text, but then a sentence becomes long.
# **Byte-pair encoding** gives common pieces their own numbers: count the pairs of neighbours inside
# words, give the most frequent pair (the first of equals) a new number, and repeat.

# %%
words = re.findall(r" ?[A-Za-z]+| ?[^\w\s]+", LINE)  # a space joins its word
words = [list(word.encode()) for word in words]  # as bytes

def join(word, pair, new):
    """Replace each pair in the word by the new number."""
    for i in range(len(word)):
        if tuple(word[i : i + 2]) == pair:
            word[i : i + 2] = [new]

# %%
spelled, merges = {i: bytes([i]) for i in range(256)}, []
for new in range(256, 260):
    pairs = Counter()
    for word in words:
        pairs.update(pairwise(word))
    a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
    merges.append((a, b))
    spelled[new] = spelled[a] + spelled[b]
    print(f"{new}: {spelled[a]} + {spelled[b]}, {pairs[a, b]} times")
    for word in words:
        join(word, (a, b), new)

assert merges == data.BPE.train(LINE, 260).merges  # the library agrees

# %% [markdown]
# From a longer text we learn 256 merges. Frequent words are now one token; rare words are pieces.

# %%
V = 512
tokenizer = data.BPE.train(plays[:200_000], V)
ids, held_out_ids = tokenizer.encode(plays), tokenizer.encode(rest)
print("|".join(tokenizer.decode([i]) for i in tokenizer.encode(LINE)))
print(f"{len(plays) / len(ids):.2f} characters a token")

# %% [markdown]
# The question "what comes next?" is asked at every place at once: the target is the next token. The
# causal mask of chapter 04 hides the answers.

# %%
line = tokenizer.encode(LINE)
for seen, target in pairwise([tokenizer.decode([i]) for i in line[:5]]):
    print(f"{seen!r} -> {target!r}")

TOKENS = 64
batches = data.Windows(ids, 16, TOKENS, seed=SEED)  # at random places
held_out = data.sequential(held_out_ids, batch=16, tokens=TOKENS)
inputs, targets = batches[0]
assert (targets[:, :-1] == inputs[:, 1:]).all()

# %% [markdown]
# ## What a loss means
#
# The loss is the mean of $-\ln p$, with the $p$ that the model gave to the right token. Compare two
# models without a network. The uniform model gives all $V$ tokens the same $p$: its loss is
# $\ln V$. The unigram model knows only how frequent each token is.

# %%
frequency = (np.bincount(ids, minlength=V) + 1) / (len(ids) + V)  # never 0
uniform = float(np.log(V))
unigram = float(-np.log(frequency[held_out_ids]).mean())
print(f"uniform {uniform:.3f}, unigram {unigram:.3f} (nats a token)")

# %% [markdown]
# ## The model from its parts
#
# The model adds a vector for the token and one for its place. Blocks of chapter 04 and a layer norm
# follow. Then the first table is used again: the logit of a token is its vector times the output of
# the norm (`project`). This **tied head** has no parameters of its own.

# %%
class TinyGPT(nn.Module):
    def __init__(self, c: ml.GPT2Config, seed: int):
        rng = np.random.default_rng(seed)
        self.tok = nn.Embedding(c.vocab_size, c.d_model, rng=rng)
        self.pos = nn.Embedding(c.n_positions, c.d_model, rng=rng)
        sizes = c.d_model, c.n_heads, 4 * c.d_model
        self.blocks = [Block(*sizes, rng=rng, dtype="float32")
                       for _ in range(c.n_layers)]
        self.ln_f = nn.LayerNorm(c.d_model)

    def forward(self, ids):  # (batch, tokens) -> (batch, tokens, V)
        x = self.tok(ids) + self.pos(np.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tok.project(self.ln_f(x))

config = ml.GPT2Config(
    vocab_size=V, n_positions=TOKENS, d_model=64, n_layers=2, n_heads=2)
tiny = TinyGPT(config, SEED)
print("table", accounting.count(tiny.tok), "\nmodel", accounting.count(tiny))

# %% [markdown]
# **Check.** The engine's `GPT2` has the same parts with the same names. With our weights it
# computes the same numbers as our model. It can also generate text, so we use it from here on.

# %%
model = ml.GPT2(config, rng=SEED)
model.load_state_dict(tiny.state_dict())
off = abs(ml.asnumpy(model(inputs)) - ml.asnumpy(tiny(inputs))).max()
print("largest difference:", off)
assert off == 0

# %% [markdown]
# **Predict.** The loss starts at $\ln V$, as in chapter 03. It falls fast, and soon it slows down
# for the first time. At which value, and what has the model learned by then?
#
# <details><summary>Answer</summary>
#
# At the unigram loss. The model can learn without any context how frequent each token is, so it
# learns this first. For a lower loss it has to use the context.
#
# </details>

# %%
PROMPT = "HAMLET.\nTo be"

def sample(model, tokens=40, temperature=0.8) -> str:
    start = model.tokenizer.encode(PROMPT)
    how = {"temperature": temperature, "top_p": 0.9, "rng": SEED}
    out = ml.generate(model, start, tokens, **how)
    return model.tokenizer.decode(out[len(start) :])

def report(line: str) -> None:
    """Print the progress line of `fit`, and a sample of the model."""
    text = " ".join(sample(model).split())  # on one line
    print(f"{line}\n    To be", re.sub("[^ -~]", "?", text))  # ?: not ASCII

# %%
model.tokenizer = tokenizer
report(f"untrained: loss {ml.evaluate(model, held_out):.3f}")
trained, every = model.trainable_parameters(), STEPS // 5
optimizer = ml.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.1)
rate = ml.optim.cosine_schedule(4e-3, STEPS, warmup=STEPS // 10)
history = ml.fit(
    model, batches, optimizer, STEPS, schedule=rate, max_grad_norm=1.0,
    held_out=held_out[:4], eval_every=every, log_every=every, progress=report,
)

# %% [markdown]
# The lower figure shows the start: the loss rests near the unigram loss, then it falls on.

# %%
top, bottom = viz.panels(2, 1)
levels, early = {"uniform": uniform, "unigram": unigram}, history.losses[:80]
viz.loss_curves({"tiny GPT": history}, top, "All steps", levels=levels)
viz.loss_curves({"tiny GPT": early}, bottom, "Its start", levels=levels)
viz.show()

# %% [markdown]
# ## What more training gives
#
# The package contains a base that was pretrained in the same way, on all of the plays except the
# same last part: more parameters, more tokens, far more steps. Its tokens are longer, so we cannot
# compare losses per *token*. Per *character* we can.

# %%
base = ml.load_base("shakespeare")
for name, m in (("tiny GPT", model), ("built-in base", base)):
    tokens = m.tokenizer.encode(rest)
    loss = ml.evaluate(m, data.sequential(tokens, batch=16, tokens=TOKENS))
    print(name, accounting.count(m))
    print(f"nats a character: {loss * len(tokens) / len(rest):.3f}")
    print(PROMPT + sample(m), end="\n\n")

# %% [markdown]
# ## Sampling
#
# Sampling draws each token with its probability. **Temperature** divides the logits before the
# softmax: below 1 it makes likely tokens more likely, above 1 less. **Top-p** draws only from the
# most likely tokens that together have the probability $p$. Temperature 0 always takes the most
# likely one. Then `generate` is this loop:

# %%
written = start = base.tokenizer.encode(PROMPT)
for _ in range(10):
    logits = ml.asnumpy(base(written[None]))[0, -1]  # of the next token
    written = np.append(written, logits.argmax())
assert (written == ml.generate(base, start, 10, temperature=0)).all()
print(base.tokenizer.decode(written))

# %%
logits = ml.asnumpy(base(start[None]))[0, -1].astype(float)  # after "To be"
for temperature in (0.5, 1.0, 2.0):
    p = np.exp((logits - logits.max()) / temperature)
    p, best = p / p.sum(), np.argsort(-p)
    n = 1 + np.searchsorted(np.cumsum(p[best]), 0.9)
    print(f"temperature {temperature}: {n} tokens have 90 %. First:", end=" ")
    print(*(f"{base.tokenizer.decode([i])!r} {p[i]:.2f}" for i in best[:3]))
    print(repr("To be" + sample(base, 15, temperature)), end="\n\n")

# %% [markdown]
# ## Break it
#
# Forget the shift: each token is its own target. Everything runs, and the loss looks excellent.

# %%
broken = ml.GPT2(config, rng=SEED)
unshifted = [(batches[i][0], batches[i][0]) for i in range(40)]
optimizer = ml.AdamW(broken.trainable_parameters(), lr=3e-3)
dream = ml.fit(broken, unshifted, optimizer, 40, progress=False).losses[-1]
truth = ml.evaluate(broken, held_out)
assert dream < uniform < truth
print(f"Caught: training loss {dream:.3f}, on the next token {truth:.3f}")

# %% [markdown]
# The model has learned to copy its input. Look at a batch before you train on it, as we did above.
#
# ## What you built, and what is next
#
# You built a tokenizer and a GPT, compared its loss with two simple models, and drew samples.
#
# **Next:** chapter 06 trains all of the built-in base on another text, and measures what changed.
