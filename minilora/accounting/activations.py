"""What the tape of a GPT-2 keeps for the backward pass, from shapes alone.

Read beside the ops: each line here is what the rules of one op close over. A rule exists only for
an input that requires a gradient, so freezing W makes the line of its input vanish.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..lora import parts
from ..models.gpt2 import GPT2
from ..nn import Dropout, LayerNorm
from ..ops.fused import QUERIES

INTEGER = 8  # bytes of a token id


def activations(model: GPT2, batch: int, tokens: int) -> dict[str, int]:
    """Bytes kept after the forward pass of one batch, by the kind of op that keeps them.

    Counts everything up to the loss; weights are not activations. Holds for any pattern of frozen
    and trained parameters, with or without LoRA.
    """
    c, size = model.config, model.ln_f.g.data.itemsize
    n, d = batch * tokens, c.d_model
    kept: Counter[str] = Counter()

    def linear(layer: Any, grad: bool) -> tuple[bool, bool]:
        """(is the input kept, does the output require a gradient)"""
        base, adapters = parts(layer)
        own = base.W.requires_grad
        out = grad or own or (getattr(base, "b", None) is not None and base.b.requires_grad)
        k = base.W.shape[1]
        for adapter in adapters:
            trains = adapter.A.requires_grad
            if adapter.training and adapter.dropout:
                kept["dropout"] += n * k * size * (grad + trains)  # the mask; the masked input
            else:
                own = own or trains
            kept["lora"] += n * adapter.r * size * adapter.B.requires_grad  # A x
            out = out or trains or adapter.B.requires_grad
        return own, out

    def norm(layer: LayerNorm, grad: bool) -> bool:
        if grad or layer.g.requires_grad:
            kept["layer_norm"] += n * d * size  # the normalised input
        if grad:
            kept["layer_norm"] += (n + d) * size  # one rate a row; 1/d
        return grad or layer.g.requires_grad or layer.b.requires_grad

    def drop(layer: Dropout, grad: bool) -> None:
        kept["dropout"] += n * d * size * (grad and layer.training and layer.rate > 0)

    def table(layer: Any, rows: int) -> bool:
        base, adapters = parts(layer)
        for adapter in adapters:
            kept["lora"] += rows * adapter.r * size * adapter.B.requires_grad
        return base.W.requires_grad or any(a.A.requires_grad or a.B.requires_grad for a in adapters)

    grad = table(model.tok, n)
    if table(model.pos, tokens):
        kept["embedding"] += tokens * INTEGER
        grad = True
    drop(model.drop, grad)
    for block in model.blocks:
        after = norm(block.ln1, grad)
        qkv = [linear(layer, after) for layer in (block.attn.q, block.attn.k, block.attn.v)]
        kept["linear inputs"] += n * d * size * any(own for own, _ in qkv)
        attended = any(out for _, out in qkv)
        own, after = linear(block.attn.o, attended)
        kept["attention"] += n * d * size * (attended or own)  # its output
        if attended:
            kept["attention"] += 3 * n * d * size + _weights(batch, tokens, c.n_heads) * size
        drop(block.drop, after)
        grad = grad or after
        own, after = linear(block.mlp.up, norm(block.ln2, grad))
        kept["linear inputs"] += n * d * size * own
        wide = n * block_width(block) * size
        kept["gelu"] += wide * after  # its slope
        own, after = linear(block.mlp.down, after)
        kept["linear inputs"] += wide * own
        drop(block.drop, after)
        grad = grad or after
    grad = norm(model.ln_f, grad)
    base, adapters = parts(model.tok)
    own = base.W.requires_grad or any(a.B.requires_grad for a in adapters)
    kept["linear inputs"] += n * d * size * own  # the tied head's
    kept["lora"] += sum(n * a.r * size * a.A.requires_grad for a in adapters)
    own = own or any(a.A.requires_grad for a in adapters)
    if grad or own:
        kept["cross_entropy"] += (n * c.vocab_size + 1) * size + 2 * n * (size + INTEGER)
    return {name: total for name, total in kept.items() if total}


def block_width(block: Any) -> int:
    """The MLP's inner width."""
    return int(parts(block.mlp.up)[0].W.shape[0])


def _weights(batch: int, tokens: int, heads: int) -> int:
    """Numbers that causal attention keeps beside q, k, v and its output."""
    rows = batch * heads * tokens
    side = min(tokens, QUERIES)
    kept = 2 * rows + side * side  # two numbers a row; the mask of one block
    if tokens <= 512:
        for start in range(0, tokens, QUERIES):
            end = min(start + QUERIES, tokens)
            kept += batch * heads * (end - start) * end
    return kept
