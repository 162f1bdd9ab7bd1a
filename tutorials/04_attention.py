# %% [markdown]
# # 04. Attention
#
# *The reader can then:* build an attention head, say what its scale and mask do, and read its map.
# *Time:* 25 minutes. *Needs:* chapter 03.
# *Remember:* Attention is an average over tokens, and each token chooses its own weights.
#
# In a transformer, tokens exchange information only in attention. Here attention reverses a word:
# "stressed" becomes "desserts". The letters are the tokens, and we know where each has to look.

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
# A head computes three vectors for each token. The **query** $q_i$ says what token $i$ looks for.
# The **key** $k_j$ describes token $j$ to the others. The **value** $v_j$ is what token $j$ gives.
#
# The score $q_i \cdot k_j$ says how well token $j$ fits the search of token $i$. **Softmax** turns
# the scores of one query into weights, as chapter 03 turned logits into probabilities. The output
# is the average of the values with these weights, $y_i = \sum_j w_{ij} v_j$.
#
# Softmax first subtracts the largest score $c$. On paper this changes nothing: the factor $e^{-c}$
# appears above and below the fraction bar, and cancels. On a computer it matters:

# %%
def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)

large = np.array([1000.0, 999.0])
with np.errstate(all="ignore"):
    print("without subtraction:", np.exp(large) / np.exp(large).sum())
print("with subtraction:   ", softmax(large).round(3))

# %% [markdown]
# The features of a token say which letter of "stressed" it is (26 numbers, a single 1) and its
# place (8 numbers, a single 1). We write the weight matrices by hand. The query of token $i$ is
# place $T - 1 - i$, its key its own place, its value its letter. `sharpness` scales the scores.

# %%
x = np.concatenate([np.eye(V)[ids], np.eye(T)], axis=1)  # (T, 34)
letter, place = np.eye(V + T)[:V], np.eye(V + T)[V:]  # (26, 34), (8, 34)

def head(sharpness: float) -> tuple[np.ndarray, str]:
    """Return the weights (T, T) and the output word."""
    Wq, Wk, Wv = sharpness * place[::-1], place, letter
    q, k, v = x @ Wq.T, x @ Wk.T, x @ Wv.T  # (T, 8), (T, 8), (T, 26)
    weights = softmax(q @ k.T)  # row i: the weights of query i
    return weights, "".join(LETTERS[i] for i in (weights @ v).argmax(axis=1))

for sharpness in (1, 10):
    weights, out = head(sharpness)
    print(f"sharpness {sharpness}: {out}, with row 0", weights[0].round(2))
answer = np.eye(T)[::-1]  # the anti-diagonal
assert (weights.round() == answer).all()

# %% [markdown]
# With small scores all weights are similar. The average then contains a little of every letter, and
# the most frequent letter wins. Large scores select one token. The right map is the
# **anti-diagonal**: the first output looks at the last letter, the last output at the first.
#
# ## Why divide by √d_head
#
# So the size of the scores matters. If $q$ and $k$ have $d_\mathrm{head}$ numbers each, a score is
# a sum of $d_\mathrm{head}$ products. If the numbers are independent, with mean 0 and variance 1,
# then so are the products, and their sum has the variance $d_\mathrm{head}$. We measure it:

# %%
print("d_head  variance of q·k  of q·k/√d  top weight: q·k  q·k/√d")
for d in (4, 16, 64, 256):
    q, k = (rng.standard_normal((2000, n, d)) for n in (1, 8))
    raw = (q * k).sum(axis=-1)  # (2000, 8): the scores of 8 tokens
    scaled = raw / math.sqrt(d)
    top = [softmax(z).max(axis=1).mean() for z in (raw, scaled)]
    print(f"{d:6}{raw.var():17.1f}{scaled.var():11.2f}", end="")
    print(f"{top[0]:17.2f}{top[1]:8.2f}")

# %% [markdown]
# Without the division, a wide head starts with a weight near 1, on a random token. This is hard to
# change: the derivative of a weight $w$ by its own score, $w(1 - w)$, is near 0 if $w$ is near 0 or
# 1. After the division by $\sqrt{d_\mathrm{head}}$, all widths start alike.
#
# ## The mask, several heads, and the engine
#
# A model that predicts the next token must not see it. A **causal mask** adds a very large negative
# number to the scores of all later tokens, right of the diagonal. Their weights become 0. A head
# has only one map. For several maps we cut the features into pieces, one for each head.
#
# Now we use Tensors. Both functions consist of the engine's ops, so they need no gradient rules.
# (`xp` is the array library in use, here NumPy. `mask` hides padding: there is none here.) The
# engine's softmax, printed below, is one op.

# %%
MAPS = []  # the weights of every call

def my_softmax(z, *, axis=-1):
    e = ops.exp(z - z.data.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis).reshape(*z.shape[:-1], 1)  # (..., 1)

def my_attention(q, k, v, *, heads, causal=True, mask=None, first_late=1):
    (batch, T, d), d_head = q.shape, q.shape[-1] // heads

    def cut(x):  # (batch, T, d) -> (batch, heads, T, d_head)
        x = x.reshape(batch, T, heads, d_head)
        return ops.transpose(x, axes=(0, 2, 1, 3))

    keys = ops.transpose(cut(k), axes=(0, 1, 3, 2))  # (..., d_head, T)
    scores = cut(q) @ keys * (1 / math.sqrt(d_head))
    if causal:  # hide keys that are first_late or more places later
        scores += xp.triu(xp.full((T, T), -1e9, dtype=q.dtype), k=first_late)
    weights = ops.softmax(scores)
    MAPS.append(ml.asnumpy(weights))  # (batch, heads, T, T)
    y = ops.transpose(weights @ cut(v), axes=(0, 2, 1, 3))
    return y.reshape(batch, T, d)

viz.source(ops.softmax)

# %% [markdown]
# **Check.** `ops.replaced` puts our functions in the place of the engine's. A pretrained GPT-2 now
# runs on them, and computes the same numbers up to rounding.

# %%
base = ml.load_base("shakespeare")
prompt = base.tokenizer.encode("Desserts are stressed.")[None]  # (1, tokens)
logits = ml.asnumpy(base(prompt))
with ops.replaced(softmax=my_softmax, attention=my_attention):
    mine = ml.asnumpy(base(prompt))
off, largest = abs(mine - logits).max(), abs(logits).max()
print(f"{len(MAPS)} maps (batch, heads, tokens, tokens): {MAPS[0].shape}")
print(f"largest difference {off:.1e}, largest logit {largest:.1f}")
assert off < 1e-4 * largest

# %% [markdown]
# ## Does training find the anti-diagonal?
#
# Now the weights start random, and a block learns to reverse words. The engine's `Block`, printed
# below, adds the output of attention to each token's vector, and then the output of `mlp`: two
# linear layers with a nonlinearity between them. A *layer norm* (`ln1`, `ln2`) comes before each.
# It subtracts the mean of the vector, divides by its standard deviation, then scales and shifts.
# (`drop` and `cache` do nothing here.)

# %%
class Letters(nn.Module):
    """ids (batch, T) -> logits of the letters at each place (batch, T, V)"""

    def __init__(self, causal: bool, d: int = 32):
        rng = np.random.default_rng(0)
        self.tok = nn.Embedding(V, d, rng=rng, std=0.5)  # for each letter
        self.pos = nn.Embedding(T, d, rng=rng, std=0.5)  # for each place
        self.block = Block(
            d, 1, 2 * d, causal=causal, rng=rng, dtype="float32")
        self.out = nn.Linear(d, V, rng=rng)

    def forward(self, ids):
        return self.out(self.block(self.tok(ids) + self.pos(np.arange(T))))

viz.source(Block.forward)

# %%

def train(model: Letters, batches: list) -> ml.History:
    adam = ml.AdamW(model.trainable_parameters(), lr=5e-3)
    return ml.fit(model, batches, adam, len(batches), progress=False)

def look(model: Letters) -> np.ndarray:
    """Print the output for "stressed", and return the map (T, T)."""
    with ops.replaced(attention=my_attention):
        best = ml.asnumpy(model(ids[None]))[0].argmax(axis=1)
    print(WORD, "->", "".join(LETTERS[i] for i in best))
    return MAPS[-1][0, 0]

# %%
words = rng.integers(0, V, (151, 32, T))  # 150 batches, and one to test
reversals = [(batch, batch[:, ::-1]) for batch in words]
model = Letters(causal=False)
before = look(model)
train(model, reversals[:150])
after = look(model)
assert (after.round() == answer).all()  # the map that we wrote by hand

# %%
viz.attention_map(before, WORD, title="Before training: it looks everywhere")
viz.attention_map(after, WORD, title="After: it looks at the mirror place")
viz.show()

# %% [markdown]
# **Predict.** Now the block has a causal mask. How many of the eight places can it get right?
#
# <details><summary>Answer</summary>
#
# The last four. Place $i$ needs the letter at place $7 - i$, and sees it if $7 - i \le i$. At
# places 0 to 3 this letter comes later, so the model can only guess one of 26 letters.
#
# </details>

# %%
causal = Letters(causal=True)
train(causal, reversals[:150])
inputs, targets = reversals[150]
for name, trained in (("no mask", model), ("causal", causal)):
    right = ml.asnumpy(trained(inputs)).argmax(axis=-1) == targets
    print(f"{name:>8}: right letters by place: {right.mean(axis=0).round(2)}")

# %% [markdown]
# ## Break it
#
# A mask with an error of one hides only tokens that are two or more places later. So each place
# sees the *next* letter. Two models, one with each mask, learn to predict the next letter of random
# strings. Random letters cannot be predicted: an honest loss is near $\ln 26$.

# %%
def one_off(*qkv, **settings):
    return my_attention(*qkv, **settings, first_late=2)

strings = rng.integers(0, V, (150, 32, T + 1))
next_letter = [(x[:, :-1], x[:, 1:]) for x in strings]
changed = np.append(ids[:-1], (ids[-1] + 1) % V)  # another last letter
moved = {}
for name, attention in (("honest", my_attention), ("one off", one_off)):
    with ops.replaced(softmax=my_softmax, attention=attention):
        model = Letters(causal=True)
        loss = np.mean(train(model, next_letter).losses[-20:])
        off = ml.asnumpy(model(ids[None])) - ml.asnumpy(model(changed[None]))
        moved[name] = abs(off[:, :-1]).max()
    print(f"{name:>8}: loss {loss:.2f}; ln 26 is {math.log(V):.2f}")
assert moved["honest"] == 0 < moved["one off"]
print("Caught: a later letter moves earlier logits by", moved["one off"])

# %% [markdown]
# By its loss, the second model seems good. (Only the last place cannot see its answer.) A better
# test needs no training: if a later token changes, no earlier output may change.
#
# ## What you built, and what is next
#
# You built an attention head, its scale and mask. Your ops ran a GPT-2. Training found your map.
#
# **Next:** chapter 05 stacks such blocks, turns text into tokens, and pretrains a language model.
