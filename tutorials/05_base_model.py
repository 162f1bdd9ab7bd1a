# %% [markdown]
# # 05. A base model
#
# *The reader can then:* make tokens of a text, pretrain a small GPT on it, read its loss, sample.
# *Time:* 25 minutes. *Needs:* chapter 04.
# *Remember:* A language model has one question, what comes next, and every text holds the answers.
#
# LoRA adapts a model that somebody has pretrained. This chapter pretrains one, in a few seconds.
# With `MINILORA_FAST=1` it takes a handful of steps, which is too few to learn anything.

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
plays, rest = data.split(data.load_text("plays"), held_out=0.05)  # the last 5 % is never trained on
plays, rest = plays[: 50_000 if FAST else 1_000_000], rest[: 5_000 if FAST else 40_000]
print(f"{len(plays):,} characters of Shakespeare to train on, {len(rest):,} held out")

# %% [markdown]
# ## From text to numbers
#
# A model takes integers. The 256 bytes would do, as any text can be written in them, but then
# sentences are long. **Byte-pair encoding** gives common pieces a number of their own: count the
# pairs of neighbours inside words, give the most frequent pair a new number, and repeat.

# %%
words = re.findall(r" ?[A-Za-z]+| ?[^\w\s]+", LINE)  # letters or signs, with the space before them
words = [list(word.encode()) for word in words]  # as bytes
spelled, merges = {i: bytes([i]) for i in range(256)}, []
for new in range(256, 260):
    pairs = Counter(pair for word in words for pair in pairwise(word))
    a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))  # of equals, the smaller numbers
    merges.append((a, b))
    spelled[new] = spelled[a] + spelled[b]
    print(f"{new}: {spelled[a]} + {spelled[b]} = {spelled[new]}, seen {pairs[a, b]} times")
    for word in words:
        i = 0
        while i + 1 < len(word):
            if (word[i], word[i + 1]) == (a, b):
                word[i : i + 2] = [new]
            i += 1

assert merges == data.BPE.train(LINE, 260).merges  # the library's: the same merges

# %% [markdown]
# From a longer text it learns 256 merges: frequent words are one token now, rare ones are pieces.

# %%
V = 512
tokenizer = data.BPE.train(plays[:200_000], V)
ids, held_out_ids = tokenizer.encode(plays), tokenizer.encode(rest)
print("|".join(tokenizer.decode([i]) for i in tokenizer.encode(LINE)))
print(f"{len(plays) / len(ids):.2f} characters a token")

# %% [markdown]
# The question "what comes next?" is asked at every place at once: the target at each place is the
# token one place later. The causal mask of chapter 04 makes that honest.

# %%
line = tokenizer.encode(LINE)
for seen, target in pairwise(line[:5]):
    print(f"{tokenizer.decode([seen])!r:>8} -> {tokenizer.decode([target])!r}")

TOKENS = 64
batches = data.Windows(ids, batch=16, tokens=TOKENS, seed=SEED)  # random places of the text
held_out = data.sequential(held_out_ids, batch=16, tokens=TOKENS)
inputs, targets = batches[0]
assert (targets[:, :-1] == inputs[:, 1:]).all()

# %% [markdown]
# ## What a loss is worth
#
# The loss is the mean of $-\ln p$, where $p$ is the probability that the model gave to the token
# that came. Two models without any network say what a loss is worth: one gives all $V$ tokens the
# same probability and has loss $\ln V$; one knows how frequent each token is, and nothing else.

# %%
frequency = (np.bincount(ids, minlength=V) + 1) / (len(ids) + V)  # + 1: none is impossible
uniform, unigram = float(np.log(V)), float(-np.log(frequency[held_out_ids]).mean())
print(f"uniform {uniform:.3f}, unigram {unigram:.3f} (nats a token, held-out text)")

# %% [markdown]
# ## The model from its parts
#
# A vector for what the token is, one for where it stands, a stack of chapter 04's blocks, a layer
# norm. Then the first table is used again: a token's logit is its own vector times what the blocks
# made (`project`). This **tied head** has no parameters of its own. With width $d$, the table has
# $V d$ of them and a block about $12 d^2$: four matrices in attention, and two four times as large.


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
# **Check.** The engine's `GPT2` has the same parts under the same names. With our weights it
# computes what ours computes. It can also generate, so we go on with it.

# %%
model = ml.GPT2(config, rng=SEED)
model.load_state_dict(tiny.state_dict())
assert (ml.asnumpy(model(inputs)) == ml.asnumpy(tiny(inputs))).all()

# %% [markdown]
# **Predict.** The loss starts at $\ln V$, as in chapter 03. It falls steeply and soon comes to a
# first halt. At which number, and what has the model learned by then?
#
# <details><summary>Answer</summary>
#
# At the unigram loss. How frequent each token is can be learned without looking at any other token,
# so it is learned first. See the thin line in the figure. To get below, it has to use the context.
#
# </details>

# %%
PROMPT, samples = "HAMLET.\nTo be", []


def sample(model: ml.GPT2, tokens: int = 40, temperature: float = 0.8, top_p: float = 0.9) -> str:
    start = model.tokenizer.encode(PROMPT)
    out = ml.generate(model, start, tokens, temperature=temperature, top_p=top_p, rng=SEED)
    return model.tokenizer.decode(out[len(start) :])


def tell(line: str) -> None:
    """What `fit` calls to report: the line that it would print, and what the model writes now."""
    text = " ".join(sample(model).split())  # on one line
    samples.append(text.encode("ascii", "replace").decode())  # ? for bytes that are no letters
    print(f"{line}\n    To be {samples[-1]}")


model.tokenizer = tokenizer
tell(f"untrained: loss {ml.evaluate(model, held_out):.3f}, uniform {uniform:.3f}")
optimizer = ml.AdamW(model.trainable_parameters(), betas=(0.9, 0.98), weight_decay=0.1)
rate = ml.optim.cosine_schedule(4e-3, STEPS, warmup=STEPS // 10)  # up for a tenth, then down to 0
history = ml.fit(
    model, batches, optimizer, STEPS, schedule=rate, max_grad_norm=1.0,  # no gradient longer than 1
    held_out=held_out[:4], eval_every=STEPS // 5, log_every=STEPS // 5, progress=tell,
)

# %%
constant = {f"{name} ({loss:.2f})": ml.History(held_out=[(0, loss), (STEPS, loss)])
            for name, loss in (("uniform", uniform), ("unigram", unigram))}
(ax,) = viz.panels(1, 1, (10, 4.5))
curves = {**constant, "tiny GPT": history}
viz.loss_curves(curves, ax=ax, title="First how frequent tokens are, then what follows what")
for i, ((step, loss), text) in enumerate(zip(history.held_out, samples)):
    if ax and step < STEPS:  # ax is None without matplotlib
        at = (step + 4, unigram - 0.27 * i) if step else (40, 0.8 * uniform + 0.2 * unigram)
        ax.annotate(text[:26], (step, loss), at, fontsize=9, arrowprops={
            "arrowstyle": "-", "color": "0.6", "relpos": (0, 0.5)})
viz.show()

# %% [markdown]
# ## What more training gives
#
# The package brings a base that was pretrained in the same way, on all of the plays but the same
# last part: more parameters, more tokens to choose from, far more steps. Its loss per *token*
# cannot be compared with ours, as its tokens are longer. Per *character* it can.

# %%
base = ml.load_base("shakespeare")
for name, m in (("tiny GPT", model), ("shipped base", base)):
    tokens = m.tokenizer.encode(rest)
    loss = ml.evaluate(m, data.sequential(tokens, batch=16, tokens=TOKENS))
    n, per_character = sum(p.data.size for p in m.parameters()), loss * len(tokens) / len(rest)
    print(f"{name}: {n:,} parameters, {per_character:.3f} nats a character (held out)")
    print(PROMPT + sample(m), end="\n\n")

# %% [markdown]
# ## Sampling
#
# A model gives a probability to each token, and sampling draws one. Two settings bend the draw.
# **Temperature** divides the logits before the softmax: below 1 it sharpens, above 1 it flattens.
# **Top-p** draws among the likeliest tokens that together hold the share $p$, and drops the others.
# At temperature 0 the likeliest is taken: `generate` is then a loop that we can write out.

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
    kept = 1 + np.searchsorted(np.cumsum(p[best]), 0.9)
    print(f"\ntemperature {temperature}: {top}; {kept} tokens hold 90 %")
    print(repr("To be" + sample(base, 15, temperature)))

# %% [markdown]
# ## Break it
#
# Forget to shift: let each token be its own target. Everything runs, and the loss is a dream.

# %%
broken = ml.GPT2(config, rng=SEED)
broken.tokenizer = tokenizer
unshifted = [(batches[i][0], batches[i][0]) for i in range(40)]
optimizer = ml.AdamW(broken.trainable_parameters(), lr=3e-3)
dream = ml.fit(broken, unshifted, optimizer, 40, progress=False).losses[-1]
truth = ml.evaluate(broken, held_out)
print("it writes:", repr(PROMPT + sample(broken, tokens=10)))
assert dream < uniform < truth
print(f"Caught: loss {dream:.3f} where it was trained, {truth:.3f} on the next token")

# %% [markdown]
# It has learned to copy. Look at a batch before training on it, as the cell with the targets did,
# and distrust a loss that is too good: in far more steps, the honest model came nowhere near.
#
# ## What you built, and what is next
#
# A tokenizer; a GPT from its parts; its loss, read against two baselines; its samples.
#
# **Next:** chapter 06 trains all of the shipped base on another text, and measures what changed.
