# %% [markdown]
# # 05. A base model
#
# *The reader can then:* split a text into tokens, pretrain a small GPT, read its loss, and sample.
# *Time:* 25 minutes. *Needs:* chapter 04.
# *Remember:* A language model answers one question, what comes next. Every text has the answers.
#
# LoRA adapts a model that is already pretrained. This chapter pretrains one, in a few seconds.
# (`MINILORA_FAST=1` trains for too few steps to learn anything.)

# %%
import os
import re
from collections import Counter
from itertools import pairwise

import numpy as np

import minilora as ml
from minilora import data, nn, viz
from minilora.models.transformer import Block

FAST = os.environ.get("MINILORA_FAST") == "1"
STEPS, SEED = (10 if FAST else 450), 0
LINE = "To be, or not to be,--that is the question:--"
plays, rest = data.split(data.load_text("plays"), held_out=0.05)
plays, rest = plays[: 50_000 if FAST else 1_000_000], rest[: 5_000 if FAST else 40_000]
print(f"characters: {len(plays):,} to train on, {len(rest):,} held out")

# %% [markdown]
# ## From text to numbers
#
# A model takes integers. The 256 bytes can represent any text, but then a sentence becomes long.
# **Byte-pair encoding** gives common pieces their own numbers: count the pairs of neighbours inside
# words, give the most frequent pair a new number, and repeat.

# %%
words = re.findall(r" ?[A-Za-z]+| ?[^\w\s]+", LINE)  # a space joins its word
words = [list(word.encode()) for word in words]  # as bytes
spelled, merges = {i: bytes([i]) for i in range(256)}, []
for new in range(256, 260):
    pairs = Counter(pair for word in words for pair in pairwise(word))
    a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))  # first of equals
    merges.append((a, b))
    spelled[new] = spelled[a] + spelled[b]
    print(f"{new}: {spelled[a]} + {spelled[b]} = {spelled[new]}, {pairs[a, b]} times")
    for word in words:
        i = 0
        while i + 1 < len(word):
            if (word[i], word[i + 1]) == (a, b):
                word[i : i + 2] = [new]
            i += 1

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
# The question "what comes next?" is asked at every place at the same time: the target at each place
# is the next token. The causal mask of chapter 04 hides the answers.

# %%
line = tokenizer.encode(LINE)
for seen, target in pairwise(line[:5]):
    print(f"{tokenizer.decode([seen])!r:>8} -> {tokenizer.decode([target])!r}")

TOKENS = 64
batches = data.Windows(ids, batch=16, tokens=TOKENS, seed=SEED)  # random places
held_out = data.sequential(held_out_ids, batch=16, tokens=TOKENS)
inputs, targets = batches[0]
assert (targets[:, :-1] == inputs[:, 1:]).all()

# %% [markdown]
# ## What a loss means
#
# The loss is the mean of $-\ln p$, where $p$ is the probability that the model gave to the right
# token. We compare it with two models without a network. The uniform model gives all $V$ tokens the
# same probability; its loss is $\ln V$. The unigram model knows only how frequent each token is.

# %%
frequency = (np.bincount(ids, minlength=V) + 1) / (len(ids) + V)  # + 1: never 0
uniform, unigram = float(np.log(V)), float(-np.log(frequency[held_out_ids]).mean())
print(f"uniform {uniform:.3f}, unigram {unigram:.3f} (nats a token, held-out text)")

# %% [markdown]
# ## The model from its parts
#
# The model adds a vector for the token and one for its place. Blocks of chapter 04 and a layer norm
# follow. Then the first table is used again: the logit of a token is its vector times the output of
# the norm (`project`). This **tied head** has no parameters of its own. With width $d$, the table
# has $V d$ parameters and a block about $12 d^2$.


# %%
class TinyGPT(nn.Module):
    def __init__(self, c: ml.GPT2Config, seed: int):
        rng = np.random.default_rng(seed)
        self.tok = nn.Embedding(c.vocab_size, c.d_model, rng=rng)
        self.pos = nn.Embedding(c.n_positions, c.d_model, rng=rng)
        self.blocks = [
            Block(c.d_model, c.n_heads, 4 * c.d_model, rng=rng, dtype="float32")
            for _ in range(c.n_layers)
        ]
        self.ln_f = nn.LayerNorm(c.d_model)

    def forward(self, ids):  # (batch, tokens) -> (batch, tokens, V)
        x = self.tok(ids) + self.pos(np.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tok.project(self.ln_f(x))


config = ml.GPT2Config(vocab_size=V, n_positions=TOKENS, d_model=64, n_layers=2, n_heads=2)
tiny = TinyGPT(config, SEED)
parts = Counter()
for name, p in tiny.named_parameters():
    parts[name.split(".")[0]] += p.data.size
print({part: f"{n:,}" for part, n in parts.items()}, f"of {parts.total():,} parameters")

# %% [markdown]
# **Check.** The engine's `GPT2` has the same parts with the same names. With our weights it
# computes the same numbers as our model. It can also generate text, so we use it from here on.

# %%
model = ml.GPT2(config, rng=SEED)
model.load_state_dict(tiny.state_dict())
assert (ml.asnumpy(model(inputs)) == ml.asnumpy(tiny(inputs))).all()

# %% [markdown]
# **Predict.** The loss starts at $\ln V$, as in chapter 03. It falls fast, and soon it slows down
# for the first time. At which value, and what has the model learned by then?
#
# <details><summary>Answer</summary>
#
# At the unigram loss. The model can learn without any context how frequent each token is, so it
# learns this first (the thin line in the figure). For a lower loss it has to use the context.
#
# </details>

# %%
PROMPT, samples = "HAMLET.\nTo be", []


def sample(model: ml.GPT2, tokens: int = 40, temperature: float = 0.8, top_p: float = 0.9) -> str:
    start = model.tokenizer.encode(PROMPT)
    out = ml.generate(model, start, tokens, temperature=temperature, top_p=top_p, rng=SEED)
    return model.tokenizer.decode(out[len(start) :])


def report(line: str) -> None:
    """Print the progress line of `fit`, and a sample of the model."""
    text = " ".join(sample(model).split())  # on one line
    samples.append(text.encode("ascii", "replace").decode())  # ?: not ASCII
    print(f"{line}\n    To be {samples[-1]}")


model.tokenizer = tokenizer
report(f"untrained: loss {ml.evaluate(model, held_out):.3f}, uniform {uniform:.3f}")
optimizer = ml.AdamW(model.trainable_parameters(), betas=(0.9, 0.98), weight_decay=0.1)
rate = ml.optim.cosine_schedule(4e-3, STEPS, warmup=STEPS // 10)  # up, then to 0
history = ml.fit(
    model, batches, optimizer, STEPS, schedule=rate, max_grad_norm=1.0,
    held_out=held_out[:4], eval_every=STEPS // 5, log_every=STEPS // 5, progress=report,
)

# %%
constant = {f"{name} ({loss:.2f})": ml.History(held_out=[(0, loss), (STEPS, loss)])
            for name, loss in (("uniform", uniform), ("unigram", unigram))}
(ax,) = viz.panels(1, 1, (10, 4.5))
curves = {**constant, "tiny GPT": history}
viz.loss_curves(curves, ax=ax, title="First token frequencies, then the context")
for i, ((step, loss), text) in enumerate(zip(history.held_out, samples)):
    if ax and step < STEPS:  # ax is None without matplotlib
        at = (step + 4, unigram - 0.27 * i) if step else (40, 0.8 * uniform + 0.2 * unigram)
        ax.annotate(text[:26], (step, loss), at, fontsize=9, arrowprops={
            "arrowstyle": "-", "color": "0.6", "relpos": (0, 0.5)})
viz.show()

# %% [markdown]
# ## What more training gives
#
# The package contains a base that was pretrained in the same way, on all of the plays except the
# same last part. It has more parameters, more tokens, and far more steps. We cannot compare losses
# per *token*, because its tokens are longer. Per *character* we can.

# %%
base = ml.load_base("shakespeare")
for name, m in (("tiny GPT", model), ("built-in base", base)):
    tokens = m.tokenizer.encode(rest)
    loss = ml.evaluate(m, data.sequential(tokens, batch=16, tokens=TOKENS))
    n, per_character = sum(p.data.size for p in m.parameters()), loss * len(tokens) / len(rest)
    print(f"{name}: {n:,} parameters, {per_character:.3f} nats a character (held out)")
    print(PROMPT + sample(m), end="\n\n")

# %% [markdown]
# ## Sampling
#
# Sampling draws each token with its probability. Two settings change the probabilities.
# **Temperature** divides the logits before the softmax: below 1 it makes likely tokens more likely,
# above 1 less likely. **Top-p** draws only from the most likely tokens that together have the
# probability $p$. Temperature 0 always takes the most likely one. Then `generate` is this loop:

# %%
written = start = base.tokenizer.encode(PROMPT)
for _ in range(10):
    written = np.append(written, ml.asnumpy(base(written[None]))[0, -1].argmax())
assert (written == ml.generate(base, start, 10, temperature=0)).all()
logits = ml.asnumpy(base(start[None]))[0, -1].astype(float)  # of the token after "To be"
for temperature in (0.5, 1.0, 2.0):
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    best = np.argsort(-p)
    top = ", ".join(f"{base.tokenizer.decode([i])!r} {p[i]:.2f}" for i in best[:4])
    n = 1 + np.searchsorted(np.cumsum(p[best]), 0.9)
    print(f"\ntemperature {temperature}: {top}; {n} tokens have 90 %")
    print(repr("To be" + sample(base, 15, temperature)))

# %% [markdown]
# ## Break it
#
# Forget the shift: each token is its own target. Everything runs, and the loss looks excellent.

# %%
broken = ml.GPT2(config, rng=SEED)
broken.tokenizer = tokenizer
unshifted = [(batches[i][0], batches[i][0]) for i in range(40)]
optimizer = ml.AdamW(broken.trainable_parameters(), lr=3e-3)
dream = ml.fit(broken, unshifted, optimizer, 40, progress=False).losses[-1]
truth = ml.evaluate(broken, held_out)
print("it writes:", repr(PROMPT + sample(broken, tokens=10)))
assert dream < uniform < truth
print(f"Caught: training loss {dream:.3f}, loss on the next token {truth:.3f}")

# %% [markdown]
# The model has learned to copy its input. Look at a batch before you train on it, as we did above.
# And do not trust a loss that is too good: the honest model stayed far above it.
#
# ## What you built, and what is next
#
# You built a tokenizer and a GPT, compared its loss with two simple models, and drew samples.
#
# **Next:** chapter 06 trains all of the built-in base on another text, and measures what changed.
