# %% [markdown]
# # 04. Attention
#
# *The reader can then:* build a head of attention, say what its scale and mask do, read its map.
# *Time:* 25 minutes. *Needs:* chapter 03.
# *Remember:* Attention is an average over tokens, and each token chooses its own weights.
#
# In a transformer, attention is the one place where tokens exchange something. Here it turns a word
# round, "stressed" into "desserts". The letters are the tokens, and we know where each has to look.

# %%
import math

import numpy as np

import minilora as ml
from minilora import nn, ops, viz, xp
from minilora.models.transformer import Block

rng = np.random.default_rng(0)
WORD, LETTERS = "stressed", "abcdefghijklmnopqrstuvwxyz"
T, V = len(WORD), len(LETTERS)
ids = np.array([LETTERS.index(letter) for letter in WORD])  # (T,)

# %% [markdown]
# ## A head by hand
#
# A head makes three vectors of each token: a **query** $q_i$, what the token looks for; a **key**
# $k_j$, what it can be found by; a **value** $v_j$, what it hands over when it is found.
#
# The score $q_i \cdot k_j$ says how well token $j$ fits what token $i$ looks for. **Softmax** makes
# weights of the scores of one query, as chapter 03 made probabilities of logits. The output is the
# average of the values with these weights, $y_i = \sum_j w_{ij} v_j$.
#
# First it subtracts the largest score $c$. On paper that changes nothing: $e^{z - c}$ has the same
# factor $e^{-c}$ above and below the line. On a computer it does:


# %%
def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


large = np.array([1000.0, 999.0])
with np.errstate(all="ignore"):
    print("without subtracting:", np.exp(large) / np.exp(large).sum(), end="; ")
print("with:", softmax(large).round(3))

# %% [markdown]
# Now "stressed". A token's features say which letter it is (26 numbers, a single 1 among zeros) and
# at which place it stands (8 numbers, likewise). For this task we can write the weight matrices
# ourselves: the token at place $i$ asks for place $T - 1 - i$, is found by its own place, and hands
# over its letter. `sharpness` says how large the scores are.

# %%
x = np.concatenate([np.eye(V)[ids], np.eye(T)], axis=1)  # (T, 34)
letter, place = np.eye(V + T)[:V], np.eye(V + T)[V:]  # (26, 34), (8, 34): pick their part of x


def head(sharpness: float) -> tuple[np.ndarray, str]:
    """The weights (T, T), and the word that comes out."""
    Wq, Wk, Wv = sharpness * place[::-1], place, letter
    q, k, v = x @ Wq.T, x @ Wk.T, x @ Wv.T  # (T, 8), (T, 8), (T, 26)
    weights = softmax(q @ k.T)  # row i: the weights of query i
    return weights, "".join(LETTERS[i] for i in (weights @ v).argmax(axis=1))


for sharpness in (1, 10):
    weights, out = head(sharpness)
    print(f"sharpness {sharpness:2}: row 0 is {weights[0].round(2)}, the word is {out}")
answer = np.eye(T)[::-1]  # the anti-diagonal
assert (weights.round() == answer).all()

# %% [markdown]
# With small scores all weights are much alike, the average holds a little of every letter, and the
# commonest wins. Large scores pick one token. The right map is the **anti-diagonal**: the first
# output looks at the last letter, the last output at the first.
#
# ## Why divide by √d_head
#
# So the size of scores matters. If $q$ and $k$ have $d_\mathrm{head}$ numbers each, a score is the
# sum of as many products. If the numbers are independent, with mean 0 and variance 1, so are the
# products, and their sum has variance $d_\mathrm{head}$. Measured, and given to softmax:

# %%
print("d_head  variance of q·k   of q·k/√d   largest of 8 weights: q·k   q·k/√d")
for d in (4, 16, 64, 256):
    raw = (rng.standard_normal((2000, 1, d)) * rng.standard_normal((2000, 8, d))).sum(axis=-1)
    top = [softmax(z).max(axis=1).mean() for z in (raw, raw / math.sqrt(d))]
    print(f"{d:6} {raw.var():16.1f} {raw.var() / d:11.2f} {top[0]:26.2f} {top[1]:8.2f}")

# %% [markdown]
# Unscaled, a wide head would start with one weight near 1, on a token picked by chance. That is
# hard to unlearn: a weight $w$ changes with its own score at the rate $w(1 - w)$, near 0 at both
# ends. Divided by $\sqrt{d_\mathrm{head}}$, all widths start alike.
#
# ## The mask, several heads, and the engine
#
# A model that predicts the next token must not see it. A **causal mask** adds a hugely negative
# number to the scores of all later tokens, those right of the diagonal: their weights become 0. And
# one head has one map. To look at several places, cut the features into pieces, each with a head.
#
# Now on Tensors: both functions are made of the engine's ops and need no gradient rules of their
# own. (`xp` is the array library in use, here NumPy.) The engine's softmax, below, is a single op.

# %%
MAPS = []  # the weights of every call, for us to look at


def my_softmax(z, *, axis=-1):
    e = ops.exp(z - z.data.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis).reshape(*z.shape[:-1], 1)  # the summed axis back, with length 1


def my_attention(q, k, v, *, heads, causal=True, mask=None, first_hidden=1):
    batch, T, d = q.shape  # mask would hide padding, and there is none here

    def cut(x):  # (batch, T, d) -> (batch, heads, T, d_head)
        return ops.transpose(x.reshape(batch, T, heads, d // heads), axes=(0, 2, 1, 3))

    scores = cut(q) @ ops.transpose(cut(k), axes=(0, 1, 3, 2)) * (1 / math.sqrt(d // heads))
    if causal:  # hide what is first_hidden or more places after the query
        scores = scores + xp.triu(xp.full((T, T), -1e9, q.dtype), first_hidden)
    weights = ops.softmax(scores)
    MAPS.append(ml.asnumpy(weights))  # (batch, heads, T, T)
    return ops.transpose(weights @ cut(v), axes=(0, 2, 1, 3)).reshape(batch, T, d)


viz.source(ops.softmax)

# %% [markdown]
# **Check.** `ops.replaced` puts our functions in the place of the engine's. A pretrained GPT-2 now
# runs on them, and gives the same numbers up to rounding.

# %%
base = ml.load_base("shakespeare")
prompt = base.tokenizer.encode("Desserts are stressed, read from the end.")[None]  # (1, tokens)
logits = ml.asnumpy(base(prompt))
with ops.replaced(softmax=my_softmax, attention=my_attention):
    mine = ml.asnumpy(base(prompt))
print(f"{len(MAPS)} blocks, in each a map of (batch, heads, tokens, tokens): {MAPS[0].shape}")
print(f"largest logit {abs(logits).max():.1f}, largest difference {abs(mine - logits).max():.1e}")
assert abs(mine - logits).max() < 1e-4 * abs(logits).max()

# %% [markdown]
# ## Does training find the anti-diagonal?
#
# Now the weights start random. The engine's `Block`, printed below, adds to each token's vector
# what attention makes of it, then what `mlp` makes: two linear layers, a nonlinearity between.
# Before each, a *layer norm* (`ln1`, `ln2`) takes the vector's mean off, divides by its standard
# deviation, scales and shifts; `drop` and `cache` are idle. It learns to reverse random words.


# %%
class Letters(nn.Module):
    """ids (batch, T) -> a logit for every letter at each place (batch, T, V)."""

    def __init__(self, causal: bool, d: int = 32):
        rng = np.random.default_rng(0)
        self.tok = nn.Embedding(V, d, rng=rng, std=0.5)  # a trained vector for each letter
        self.pos = nn.Embedding(T, d, rng=rng, std=0.5)  # and for each place
        self.block = Block(d, 1, 2 * d, causal=causal, rng=rng, dtype="float32")
        self.out = nn.Linear(d, V, rng=rng)

    def forward(self, ids):
        return self.out(self.block(self.tok(ids) + self.pos(np.arange(T))))


viz.source(Block.forward)


def train(model: Letters, batches: list) -> ml.History:
    adam = ml.AdamW(model.trainable_parameters(), lr=5e-3)
    return ml.fit(model, batches, adam, len(batches), progress=False)


def look(model: Letters) -> np.ndarray:
    """The map (T, T) of "stressed"; prints what comes out."""
    with ops.replaced(attention=my_attention):
        best = ml.asnumpy(model(ids[None]))[0].argmax(axis=1)
    print(WORD, "->", "".join(LETTERS[i] for i in best))
    return MAPS[-1][0, 0]


words = rng.integers(0, V, (151, 32, T))  # 150 batches of 32 words to train on, one to test
reversals = [(batch, batch[:, ::-1]) for batch in words]
model = Letters(causal=False)
maps = {"Before: it looks everywhere": look(model)}
train(model, reversals[:150])
maps["After: at the mirror place"] = weights = look(model)
assert (weights.round() == answer).all()  # the map that we wrote by hand
for (name, weights), ax in zip(maps.items(), viz.panels(1, 2, (8.3, 3.4))):
    viz.attention_map(weights, [f"{c}{i}" for i, c in enumerate(WORD)], ax=ax, title=name)
viz.show()

# %% [markdown]
# **Predict.** The same block with a causal mask: each place sees itself and what comes before. How
# many of the eight places can it get right?
#
# <details><summary>Answer</summary>
#
# The latter half. Place $i$ needs the letter at place $7 - i$ and sees it if $7 - i \le i$: from
# place 4 on. At places 0 to 3 that letter is still to come, and one guess in 26 is right.
#
# </details>

# %%
causal = Letters(causal=True)
train(causal, reversals[:150])
inputs, targets = reversals[150]
for name, trained in (("no mask", model), ("causal", causal)):
    right = ml.asnumpy(trained(inputs)).argmax(axis=-1) == targets
    print(f"{name:>8}: share of right letters, place by place: {right.mean(axis=0).round(2)}")

# %% [markdown]
# ## Break it
#
# A mask that is one off hides what is two or more places later, so each place sees the *next*
# letter. Two causal models learn to predict the next letter of random strings. A random letter
# cannot be predicted: an honest loss stays at about $\ln 26$.


# %%
def one_off(*qkv, **settings):
    return my_attention(*qkv, **settings, first_hidden=2)


next_letter = [(x[:, :-1], x[:, 1:]) for x in rng.integers(0, V, (150, 32, T + 1))]
changed = np.append(ids[:-1], (ids[-1] + 1) % V)  # "stressed" with another last letter
moved = {}
for name, attention in (("honest", my_attention), ("one off", one_off)):
    with ops.replaced(softmax=my_softmax, attention=attention):
        model = Letters(causal=True)
        loss = np.mean(train(model, next_letter).losses[-20:])
        apart = ml.asnumpy(model(ids[None]))[:, :-1] - ml.asnumpy(model(changed[None]))[:, :-1]
        moved[name] = abs(apart).max()
    print(f"{name:>8}: loss {loss:.2f}, and ln 26 is {math.log(V):.2f}")
assert moved["honest"] == 0 < moved["one off"]
print(f"Caught: a later letter was changed, and logits before it moved by {moved['one off']:.1f}")

# %% [markdown]
# The loss alone looked like good news. (Of eight places, only the last has no letter to see.) The
# test needs no training: when a later token changes, no earlier output may move by a single bit.
#
# ## What you built, and what is next
#
# A head of attention, its scale and its mask. Your ops ran a GPT-2; training found your map.
#
# **Next:** chapter 05 stacks such blocks, makes tokens of a text, and pretrains a language model.
