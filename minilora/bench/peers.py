"""The other engines: PyTorch with and without PEFT, HIPS autograd, bare matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..training import optim
from .ours import ALPHA, LR, PROMPT, Grads, R, Step, build, sizes, tokens


def torch_model(shape: str, adapters: bool) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Return (a PyTorch GPT-2 with our weights, its A and B by minilora's names, the batch)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    model, batch = build(shape)
    s, d = sizes(shape), sizes(shape).d_model

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.attn, self.mlp = nn.Module(), nn.Module()
            for name in "qkvo":
                setattr(self.attn, name, nn.Linear(d, d))
            self.mlp.up, self.mlp.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x: Any, past: Any = None) -> Any:
            h, a = self.ln1(x), self.attn
            q, k, v = (f(h).unflatten(-1, (s.heads, -1)).transpose(1, 2) for f in (a.q, a.k, a.v))
            if past is not None:
                if past:
                    k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
                past[:] = k, v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
            x = x + a.o(y.transpose(1, 2).flatten(2))
            return x + self.mlp.down(F.gelu(self.mlp.up(self.ln2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok, self.pos = nn.Embedding(s.vocabulary, d), nn.Embedding(s.tokens, d)
            self.blocks = nn.ModuleList(Block() for _ in range(s.layers))
            self.ln_f = nn.LayerNorm(d)

        def forward(self, ids: Any, past: Any = None) -> Any:
            start = past[0][0].shape[2] if past and past[0] else 0
            x = self.tok(ids) + self.pos.weight[start : start + ids.shape[1]]
            for i, block in enumerate(self.blocks):
                x = block(x, past[i] if past is not None else None)
            return self.ln_f(x) @ self.tok.weight.T

    theirs = Model()
    letters = {"W": "weight", "g": "weight", "b": "bias"}
    pairs: dict[str, Any] = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            path, _, letter = name.replace(".base.", ".").rpartition(".")
            if letter in letters:
                theirs.get_parameter(f"{path}.{letters[letter]}").copy_(torch.tensor(p.data))
        if adapters:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=R, lora_alpha=int(ALPHA), target_modules=["q", "v"])
            theirs = get_peft_model(theirs, config)
            for name, p in model.trainable_parameters().items():
                path, _, letter = name.replace(".default.", ".").rpartition(".")
                key = f"base_model.model.{path}.lora_{letter}.default.weight"
                pairs[name] = theirs.get_parameter(key)
                pairs[name].copy_(torch.tensor(p.data))
    return theirs, pairs, batch


def torch_step(shape: str, adapters: bool) -> Step:
    """Return a step in PyTorch eager: with PEFT's adapters, or with the full q and v trained."""
    import torch

    model, pairs, (ids, targets) = torch_model(shape, adapters)
    if not adapters:
        for name, p in model.named_parameters():
            p.requires_grad_(".attn.q." in name or ".attn.v." in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01)
    x, y = torch.tensor(ids), torch.tensor(targets)

    def step() -> tuple[float, Callable[[], Grads]]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        return loss.item(), lambda: {n: p.grad.numpy() for n, p in pairs.items()}

    return step


def torch_decode(shape: str) -> Step:
    """Return greedy decoding in PyTorch eager with a cache of keys and values."""
    import torch

    model, _, (ids, _) = torch_model(shape, adapters=False)
    start = torch.tensor(ids[:1, :PROMPT])

    def step() -> None:
        past: list[list[Any]] = [[] for _ in model.blocks]
        feed = start
        with torch.no_grad():
            for _ in range(tokens("decode", shape)):
                feed = model(feed, past)[:, -1:].argmax(-1)

    return step


def hips_autograd(shape: str) -> Step:
    """Return a step in HIPS autograd on NumPy: the same model, gradients of A and B only."""
    import autograd
    import autograd.numpy as anp

    model, (ids, targets) = build(shape)
    s = sizes(shape)
    W = {n.replace(".base.", "."): p.data for n, p in model.named_parameters()}
    trained = {n: p.data for n, p in model.trainable_parameters().items()}
    scale = np.float32(1 / math.sqrt(s.d_model / s.heads))
    hidden = anp.triu(anp.full((s.tokens, s.tokens), -1e9, "float32"), 1)

    def norm(x: Any, at: str) -> Any:
        x = x - anp.mean(x, -1, keepdims=True)
        return x / anp.sqrt(anp.mean(x * x, -1, keepdims=True) + 1e-5) * W[f"{at}.g"] + W[f"{at}.b"]

    def linear(x: Any, at: str) -> Any:
        return x @ W[f"{at}.W"].T + W[f"{at}.b"]

    def adapted(x: Any, at: str, T: Any) -> Any:
        update = x @ T[f"{at}.default.A"].T @ T[f"{at}.default.B"].T
        return linear(x, at) + update * np.float32(ALPHA / R)

    def gelu(x: Any) -> Any:
        c = np.float32(math.sqrt(2 / math.pi))
        return x * (anp.tanh(c * (x + np.float32(0.044715) * x * x * x)) + 1) * np.float32(0.5)

    def heads(x: Any) -> Any:
        return anp.swapaxes(anp.reshape(x, (s.batch, s.tokens, s.heads, -1)), 1, 2)

    def loss_of(T: Any) -> Any:
        x = W["tok.W"][ids] + W["pos.W"]
        for i in range(s.layers):
            at = f"blocks.{i}"
            h = norm(x, f"{at}.ln1")
            q, v = (heads(adapted(h, f"{at}.attn.{n}", T)) for n in "qv")
            k = heads(linear(h, f"{at}.attn.k"))
            z = q @ anp.swapaxes(k, -1, -2) * scale + hidden
            z = anp.exp(z - anp.max(z, -1, keepdims=True))
            y = anp.swapaxes(z / anp.sum(z, -1, keepdims=True) @ v, 1, 2)
            x = x + linear(anp.reshape(y, x.shape), f"{at}.attn.o")
            h = gelu(linear(norm(x, f"{at}.ln2"), f"{at}.mlp.up"))
            x = x + linear(h, f"{at}.mlp.down")
        z = anp.reshape(norm(x, "ln_f") @ W["tok.W"].T, (-1, s.vocabulary))
        z = z - anp.max(z, -1, keepdims=True)
        chosen = z[np.arange(len(z)), targets.reshape(-1)]
        return anp.mean(anp.log(anp.sum(anp.exp(z), -1)) - chosen)

    run = autograd.value_and_grad(loss_of)
    optimizer = optim.AdamW(model.trainable_parameters(), LR)

    def step() -> tuple[float, Callable[[], Grads]]:
        loss, grads = run(trained)
        for name, p in optimizer.parameters.items():
            p.grad = grads[name]
        optimizer.step()
        return float(loss), lambda: grads

    return step


def floor(shape: str) -> Step:
    """Return the matrix products that a LoRA step cannot avoid, into preallocated arrays.

    Forward through every layer; backward down to the first block's attention, as no gradient is
    needed below it. BLAS uses its own threads, and attention computes the full square.
    """
    s, matmul = sizes(shape), np.matmul
    n, d, each = s.batch * s.tokens, s.d_model, s.d_model // s.heads
    draw = np.random.default_rng(0).standard_normal

    def f32(*sizes: int) -> np.ndarray:
        return draw(sizes).astype("float32")

    x, wide, logits = f32(n, d), f32(n, 4 * d), f32(n, s.vocabulary)
    W, up, down, head = f32(d, d), f32(4 * d, d), f32(d, 4 * d), f32(s.vocabulary, d)
    A, B, narrow, dA, dB = f32(R, d), f32(d, R), f32(n, R), f32(R, d), f32(d, R)
    q = f32(s.batch * s.heads, s.tokens, each)
    y, keys, out = f32(n, d), f32(len(q), each, s.tokens), np.empty_like(q)
    p = f32(len(q), s.tokens, s.tokens)

    def attention(gradients: int) -> None:
        matmul(q, keys, p)  # q kᵀ, or the gradient of p
        matmul(p, q, out)  # p v, or the gradient of q
        for _ in range(gradients):  # of v and, except in the first block, of k
            matmul(p.swapaxes(-1, -2), q, out)

    def step() -> None:
        for layer in range(s.layers):
            for _ in range(4):
                matmul(x, W.T, y)
            for _ in range(2):
                matmul(x, A.T, narrow)
                matmul(narrow, B.T, y)
            attention(0)
            matmul(x, up.T, wide)
            matmul(wide, down.T, y)
            matmul(y, down, wide)
            matmul(wide, up, x)
            matmul(y, W, x)
            attention(2 if layer else 1)
            for _ in range(2):
                matmul(y, B, narrow)
                matmul(narrow.T, x, dA)
                matmul(y.T, narrow, dB)
            for _ in range(3 if layer else 0):
                matmul(y, W, x)
            for _ in range(2 if layer else 0):
                matmul(narrow, A, x)
            x[...] = 1
        matmul(x, head.T, logits)
        matmul(logits, head, x)
        x[...] = 1

    return step
