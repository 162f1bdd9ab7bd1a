"""The same GPT-2 with LoRA, written with plain PyTorch: equal logits, losses, gradients, steps."""

import math

import numpy as np
import pytest
from strategies import adapted, gpt2, ids, normal

import minilora as ml
from minilora import lora, ops, optim

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("one_thread_each")]
WITHIN = 1e-5


def equal(ours, theirs, within: float = WITHIN) -> None:
    a, b = ml.asnumpy(ours).astype("float64"), theirs.detach().numpy().astype("float64")
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= within * np.linalg.norm(b)


def weights(model) -> dict:
    """The parameters as tensors of PyTorch, each trained as ours is, under the base's names."""
    return {
        name.replace(".base.", "."): torch.tensor(
            ml.asnumpy(p.data).copy(), requires_grad=p.requires_grad
        )
        for name, p in model.named_parameters()
    }


def linear(x, w, path, scale):
    y = F.linear(x, w[f"{path}.W"], w[f"{path}.b"])
    if f"{path}.default.A" in w:
        y = y + F.linear(F.linear(x, w[f"{path}.default.A"]), w[f"{path}.default.B"]) * scale
    return y


def forward(w, config, at, scale=0.0):
    """GPT-2 with the functions of PyTorch, and LoRA as in equation 3."""
    batch, tokens, d = *at.shape, config.d_model
    x = F.embedding(at, w["tok.W"]) + w["pos.W"][:tokens]

    def norm(x, path):
        return F.layer_norm(x, (d,), w[f"{path}.g"], w[f"{path}.b"])

    def heads(x):
        return x.view(batch, tokens, config.n_heads, -1).transpose(1, 2)

    for i in range(config.n_layers):
        path = f"blocks.{i}"
        y = norm(x, f"{path}.ln1")
        q, k, v = (heads(linear(y, w, f"{path}.attn.{n}", scale)) for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, tokens, d)
        x = x + linear(y, w, f"{path}.attn.o", scale)
        y = F.gelu(linear(norm(x, f"{path}.ln2"), w, f"{path}.mlp.up", scale), approximate="tanh")
        x = x + linear(y, w, f"{path}.mlp.down", scale)
    return F.linear(norm(x, "ln_f"), w["tok.W"])


def sizes(seed: int) -> dict[str, int]:
    """Sizes of a model, drawn."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    return {
        "n_heads": heads, "d_model": heads * int(rng.integers(2, 9)),
        "n_layers": int(rng.integers(1, 4)), "vocab_size": int(rng.integers(5, 80)),
        "n_positions": int(rng.integers(8, 150)), "d_ff": int(rng.choice([0, 11])),
    }


def batch(model, seed: int):
    c, rng = model.config, np.random.default_rng(seed)
    n, tokens = int(rng.integers(1, 5)), int(rng.integers(2, c.n_positions + 1))
    at, targets = ids(seed, n, tokens, c.vocab_size), ids(seed + 1, n, tokens, c.vocab_size)
    targets[rng.random(targets.shape) < 0.2] = -100
    targets[0, 0] = 0
    return at, targets


def compare(model, seed: int, scale: float = 0.0) -> None:
    at, targets = batch(model, seed)
    w = weights(model)
    ours, theirs = model(at), forward(w, model.config, torch.tensor(at), scale)
    equal(ours.data, theirs)
    loss = ops.cross_entropy(ours, targets)
    wanted = F.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets.reshape(-1)))
    assert loss.item() == pytest.approx(wanted.item(), rel=WITHIN)
    loss.backward()
    wanted.backward()
    for name, p in model.named_parameters():
        at_home = w[name.replace(".base.", ".")]
        assert (p.grad is None) == (at_home.grad is None), name
        if p.grad is not None:
            equal_gradient(name, p.grad, at_home.grad, w)


def equal_gradient(name, ours, theirs, w) -> None:
    if name.endswith("attn.k.b"):
        # softmax does not feel a bias of the keys: this gradient is 0, and all of it is rounding
        size = w[name[:-1] + "W"].grad
        size = torch.ones(1) if size is None else size
        assert np.abs(ours).max() <= WITHIN * float(size.abs().max())
        return
    equal(ours, theirs)


@pytest.mark.parametrize("seed", range(10))
def test_lora_has_the_logits_the_loss_and_the_gradients_of_pytorch(seed):
    rng = np.random.default_rng(seed)
    names = np.array(["q", "k", "v", "o", "up", "down"])
    targets = tuple(names[rng.permutation(6)[: rng.integers(1, 7)]].tolist())
    r, alpha = int(rng.integers(1, 6)), float(rng.uniform(0.5, 20))
    model, paths = adapted(seed, "float32", r, alpha, targets=targets, sizes=sizes(seed))
    assert len(model.trainable_parameters()) == 2 * len(paths) > 0
    compare(model, seed, alpha / r)


@pytest.mark.parametrize("seed", range(10))
def test_full_fine_tuning_has_the_gradient_of_pytorch_for_every_parameter(seed):
    compare(gpt2(seed, "float32", **sizes(seed)), seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_merged_model_is_pytorchs_unmerged_one(seed):
    model, _ = adapted(seed, "float32", 3, 5.0, targets=("q", "v", "up"), sizes=sizes(seed))
    at, _ = batch(model, seed)
    theirs = forward(weights(model), model.config, torch.tensor(at), 5 / 3)
    lora.merge(model)
    equal(model(at).data, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "momentum"])
def test_optimizers_take_the_steps_of_pytorch(kind, seed):
    how, w = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}, torch.tensor(normal(seed, 6, 4))
    p = ml.nn.Parameter(w.numpy().copy())
    w.requires_grad_()
    ours, theirs = {
        "AdamW": lambda: (optim.AdamW([p], **how, weight_decay=0.1),
                          torch.optim.AdamW([w], **how, weight_decay=0.1)),
        "Adam": lambda: (optim.Adam([p], **how), torch.optim.Adam([w], **how)),
        "SGD": lambda: (optim.SGD([p], 0.1), torch.optim.SGD([w], 0.1)),
        "momentum": lambda: (optim.SGD([p], 0.1, 0.9), torch.optim.SGD([w], 0.1, 0.9)),
    }[kind]()
    for step in range(20):
        g = normal(seed + step, 6, 4)
        p.grad, w.grad = g, torch.tensor(g)
        ours.step()
        theirs.step()
        equal(p.data, w, 1e-13)


def test_a_whole_fine_tuning_is_that_of_pytorch():
    model, _ = adapted(0, "float32", 2, 6.0, targets=("q", "v"))
    w, batches = weights(model), [(ids(i), ids(i + 1)) for i in range(4)]
    trained = [t for t in w.values() if t.requires_grad]
    theirs = torch.optim.AdamW(trained, 1e-2, weight_decay=0.05)
    ours = optim.AdamW(model.trainable_parameters(), 1e-2, weight_decay=0.05)
    schedule = optim.linear_schedule(1e-2, 8, 2)
    history = ml.fit(model, batches, ours, 8, schedule=schedule, max_grad_norm=0.1, progress=False)
    for step in range(8):
        at, targets = (torch.tensor(x) for x in batches[step % 4])
        theirs.param_groups[0]["lr"] = schedule(step)
        theirs.zero_grad()
        logits = forward(w, model.config, at, 3.0)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        theirs.step()
        assert history.losses[step] == pytest.approx(loss.item(), rel=1e-4)
    for name, p in model.trainable_parameters().items():
        equal(p.data, w[name], 1e-3)  # Adam divides by √v: it magnifies what rounding leaves


def both(f, g, *arrays, within: float = 1e-12) -> None:
    """f (ours) and g (PyTorch's): values, and gradients of a random contraction, in float64."""
    ours = [ml.Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = f(*ours), g(*theirs)
    equal(y.data, z, within)
    weight = normal(99, *y.shape)
    (y * weight).sum().backward()
    (z * torch.tensor(weight)).sum().backward()
    for a, b in zip(ours, theirs):
        equal(a.grad, b.grad, within)


@pytest.mark.parametrize("how", ["tanh", "none"])
def test_gelu(how):
    x = normal(0, 5, 9) * 3
    both(lambda x: ops.gelu(x, approximate=how), lambda x: F.gelu(x, approximate=how), x)


@pytest.mark.parametrize("axis", [0, -1])
def test_softmax_and_its_logarithm(axis):
    x = normal(0, 3, 4, 5) * 10
    both(lambda x: ops.softmax(x, axis=axis), lambda x: x.softmax(axis), x)
    both(lambda x: ops.log_softmax(x, axis=axis), lambda x: x.log_softmax(axis), x)


@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_layer_norm(d):
    x, g, b = normal(0, 3, 4, d) * 2 + 5, normal(1, d), normal(2, d)
    within = 1e-9  # subtracting the mean loses two digits; in one dimension all is 0
    if d == 1:
        assert not (ml.asnumpy(ops.layer_norm(x, g, b).data) - b).any()
        return
    both(ops.layer_norm, lambda x, g, b: F.layer_norm(x, (d,), g, b), x, g, b, within=within)


@pytest.mark.parametrize("ignored", [-100, 2])
def test_cross_entropy_with_targets_ignored(ignored):
    logits, targets = normal(0, 4, 6, 9) * 3, ids(1, 4, 6, 9)
    targets[:, ::2] = ignored
    both(
        lambda x: ops.cross_entropy(x, targets, ignore_index=ignored),
        lambda x: F.cross_entropy(
            x.flatten(0, 1), torch.tensor(targets.reshape(-1)), ignore_index=ignored
        ),
        logits,
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", ["plain", "kept", "made again"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (1, 7), (3, 7), (130, 130), (129, 300)])
def test_attention(causal, how, m, n, monkeypatch):
    heads, d = 2, 6
    monkeypatch.setattr(ml.kernels.attention, "KEEP", n if how == "kept" else 0)
    q, k, v = normal(0, 2, m, d), normal(1, 2, n, d), normal(2, 2, n, d)

    def split(x):
        return x.view(2, -1, heads, d // heads).transpose(1, 2)

    def theirs(q, k, v):
        seen = torch.ones(m, n, dtype=torch.bool).tril(n - m) if causal else None
        y = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=seen)
        return y.transpose(1, 2).reshape(2, m, d)

    def ours(q, k, v):
        with ops.plain(how == "plain"):
            return ops.attention(q, k, v, heads=heads, causal=causal)

    if n == 1:  # one key has all the weight: dq and dk are 0 but for rounding
        y = ours(*(ml.Tensor(x, requires_grad=True) for x in (q, k, v)))
        np.testing.assert_allclose(y.data, v, rtol=3 * np.finfo(v.dtype).eps)  # e v / e
        return
    both(ours, theirs, q, k, v, within=1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_attention_with_padding(causal, plain):
    x, n = normal(0, 3, 2, 130, 6), 130
    mask = np.arange(n) < np.array([[n], [n - 65]])
    seen = torch.tensor(mask)[:, None, None] & (torch.ones(n, n).tril() > (0 if causal else -1))

    def theirs(*inputs):
        q, k, v = (t.view(2, n, 2, 3).transpose(1, 2) for t in inputs)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return y.transpose(1, 2).reshape(2, n, 6)

    def ours(q, k, v):
        with ops.plain(plain):
            return ops.attention(q, k, v, heads=2, causal=causal, mask=mask)

    both(ours, theirs, *x, within=1e-11)


def test_embedding():
    at, table = ids(0, 3, 5), normal(0, 11, 4)
    both(lambda W: ops.embedding(W, at), lambda W: F.embedding(torch.tensor(at), W), table)


def test_the_scale_of_the_scores_is_one_over_the_root_of_a_heads_width():
    q = np.zeros((1, 1, 4))
    q[..., :2] = 1.0
    k, v = np.zeros((1, 2, 4)), np.zeros((1, 2, 4))
    k[0, 0, :2], v[0, 0] = 1.0, 1.0
    out = ops.attention(q, k, v, heads=2, causal=False)
    assert float(out.data[0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-2 / math.sqrt(2))))
