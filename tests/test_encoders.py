"""BERT, RoBERTa, DeBERTa: what their formulas say, whatever is padded, on every array library."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DEBERTAS, bits, ids, made, normal, seeds, seen

import minilora as ml
from minilora import ops
from minilora.models import deberta

ENCODERS = ("bert", "roberta", "deberta")
encoder = pytest.mark.parametrize("family", ENCODERS)
encoders = st.sampled_from(ENCODERS)
HEADS = ({}, {"num_labels": 3})
KINDS = [
    ("bert", {"d_ff": 5}), ("roberta", {"n_heads": 4, "padding_id": 3}),
    *(("deberta", sizes) for sizes in DEBERTAS),
    ("deberta", {"z_steps": 2}), ("deberta", {"z_steps": 3, "conv_kernel_size": 0}),
]  # fmt: skip


def said(model, at, mask=None, types=None) -> np.ndarray:
    with ml.no_grad():
        return np.array(ml.asnumpy(model(at, mask=mask, types=types).data))


def reference(model, row: np.ndarray, types: np.ndarray) -> np.ndarray:
    """The logits of one sequence without padding, a head and a pair of tokens at a time."""
    w, c, n = model.state_dict(), model.config, len(row)
    kinds, span = getattr(c, "pos_att_type", ()), 0

    def norm(x, at):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.eps)
        return y * w[f"{at}.g"] + w[f"{at}.b"]

    def linear(x, at):
        return x @ w[f"{at}.W"].T + w[f"{at}.b"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def row_of(away):  # of the table of distances
        far = abs(away)
        if (middle := c.position_buckets // 2) and far > middle:
            most = c.max_relative_positions or c.n_positions
            share = math.log(far / middle) / math.log((most - 1) / middle)
            far = middle + math.ceil(share * (middle - 1))
        return min(max(span + (far if away > 0 else -far), 0), 2 * span - 1)

    if kinds:
        table = norm(w["rel.W"], "ln_r") if c.norm_rel_ebd else w["rel.W"]
        span = c.position_buckets or c.max_relative_positions or c.n_positions
        assert len(table) == 2 * span

    def attention(x, context, at):
        q, k, v = (linear(y, f"{at}.{name}") for y, name in ((x, "q"), (context, "k"), (context, "v")))
        if kinds:
            own = "" if c.share_att_key else "pos_"
            pos_k = linear(table, f"{at}.{own}k") if "c2p" in kinds else None
            pos_q = linear(table, f"{at}.{own}q") if "p2c" in kinds else None
        heads = []
        for part in np.split(np.arange(c.d_model), c.n_heads):
            s = q[:, part] @ k[:, part].T
            for i, j in np.ndindex(s.shape):
                if "c2p" in kinds:
                    s[i, j] += q[i, part] @ pos_k[row_of(i - j), part]
                if "p2c" in kinds:
                    s[i, j] += k[j, part] @ pos_q[row_of(i - j), part]
            p = np.exp(s / np.sqrt(len(part) * (1 + len(kinds))))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
        return linear(np.concatenate(heads, -1), f"{at}.o")

    def block(i, x, context):
        x = norm(x + attention(x, context, f"blocks.{i}.attn"), f"blocks.{i}.ln1")
        up = gelu(linear(x, f"blocks.{i}.mlp.up"))
        return norm(x + linear(up, f"blocks.{i}.mlp.down"), f"blocks.{i}.ln2")

    def conv(x, y):
        size, out = c.conv_kernel_size, []
        for i in range(n):
            near = range(i - size // 2, i + size // 2 + 1)
            around = [x[j] if 0 <= j < n else np.zeros(c.d_model) for j in near]
            out.append(linear(np.concatenate(around), "conv.mix"))
        f = np.tanh if c.conv_act == "tanh" else gelu
        return norm(y + f(np.array(out)), "conv.ln")

    x = w["tok.W"][row]
    if type(c) is not ml.DebertaConfig or c.position_biased_input:
        start = c.padding_id + 1 if type(c) is ml.RobertaConfig else 0
        x = x + w["pos.W"][start : start + n]
    if c.n_types:
        x = x + w["types.W"][types]
    x = start = norm(x, "ln_e")
    for i in range(c.n_layers):
        before, x = x, block(i, x, x)
        if i == 0 and getattr(c, "conv_kernel_size", 0):
            x = conv(start, x)
    for _ in range(1, getattr(c, "z_steps", 0)):
        x = block(c.n_layers - 1, x, before)
    if c.num_labels:
        f = gelu if type(c) is ml.DebertaConfig else np.tanh
        return linear(f(linear(x[0], "head.dense")), "head.out")
    return norm(gelu(linear(x, "head.dense")), "head.ln") @ w["tok.W"].T + w["head.b"]


@pytest.mark.parametrize(("family", "sizes"), KINDS)
@settings(max_examples=4)
@given(seeds, st.sampled_from(HEADS), st.integers(1, 2), st.booleans())
def test_an_encoder_is_what_its_formulas_say(family, sizes, seed, head, layers, told):
    """Of each row alone, without what it is padded with."""
    model = made(family, seed, **{"n_layers": layers, "eps": 0.01} | sizes | head)
    at, mask = seen(model, seed)
    types = np.random.default_rng(seed).integers(0, model.config.n_types or 1, at.shape)
    given = {"types": types} if told and model.config.n_types else {}
    out = said(model, at, mask, **given)
    for row, real, kinds, got in zip(at, mask, types, out):
        wanted = reference(model, row[real], kinds[real] if given else 0 * row[real])
        got = got if model.config.num_labels else got[real]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)
