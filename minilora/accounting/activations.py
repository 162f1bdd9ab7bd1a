"""A training step of a GPT-2 walked through on sizes alone: what the tape keeps, and the peak.

Read beside the ops. A rule exists only for an input that requires a gradient, so freezing W makes
the line of its input vanish. `Walk` is the engine once more, without numbers: arrays that are only
their bytes, a tape of rules, gradients on their way. It holds for any pattern of frozen and trained
parameters, with or without LoRA, kept or recomputed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..backend import current
from ..lora import parts
from ..models.gpt2 import GPT2
from ..nn import Dropout, LayerNorm
from ..ops.attend import tasks

INTEGER = 8  # bytes of a token id


@dataclass(eq=False)
class Sized:
    """An array that is only its bytes; does it require a gradient?"""

    nbytes: int
    grad: bool = False
    holders: int = 0


class Walk:
    """kept: bytes on the tape after the forward pass, by kind of op; peak: the most at any time.

    Neither counts weights and optimizer state; gradients count towards the peak. It is that of one
    thread: another one has temporary arrays of its own, a few times `piece` numbers of the backend.
    """

    def __init__(self, model: GPT2, batch: int, tokens: int) -> None:
        self.model, self.batch, self.tokens = model, batch, tokens
        self.size, self.on_host = model.ln_f.g.data.itemsize, current().numbers_are_free
        self.wide = max(self.size, 4)  # of what a half is too narrow for
        self.half = self.size < self.wide
        self.n, self.d = batch * tokens, model.config.d_model
        self.now = self.peak = 0
        self.tape: list[tuple[str, list[Sized], Callable[[], Any]]] | None = []
        self.flowing: dict[Sized, Sized] = {}
        self.trained: dict[int, Sized] = {}
        loss = self.forward()
        self.kept = self.on_tape()
        self.flowing[loss] = self.new(self.wide)
        self.backward()

    # Memory: an array lives as long as somebody holds it.
    def hold(self, array: Sized) -> Sized:
        if not array.holders:
            self.moment(array.nbytes)
            self.now += array.nbytes
        array.holders += 1
        return array

    def drop(self, *arrays: Sized) -> None:
        for array in arrays:
            array.holders -= 1
            self.now -= array.nbytes * (not array.holders)

    def new(self, nbytes: float, grad: bool = False) -> Sized:
        return self.hold(Sized(int(nbytes), grad))

    def moment(self, extra: float) -> None:
        """For a moment there are `extra` bytes more."""
        self.peak = max(self.peak, self.now + int(extra))

    def pieces(self, n: int) -> int:
        """Bytes of one temporary array of an op that goes through n numbers piece by piece."""
        return int(min(n, current().piece) * self.wide)

    def widened(self, x: Sized) -> int:
        """Bytes of x where it is computed: halves in float32, all else as it is."""
        return int(x.nbytes // self.size * self.wide)

    # The tape.
    def record(self, kind: str, arrays: Iterable[Sized], rule: Callable[[], Any]) -> None:
        if self.tape is not None:
            self.tape.append((kind, [self.hold(array) for array in arrays], rule))

    def on_tape(self) -> Counter[str]:
        kept, seen = Counter[str](), set[Sized]()
        for kind, arrays, _ in self.tape or ():
            for array in arrays:
                kept[kind] += array.nbytes * (array not in seen)
                seen.add(array)
        return Counter({kind: nbytes for kind, nbytes in kept.items() if nbytes})

    def backward(self) -> None:
        while self.tape:
            _, arrays, rule = self.tape.pop()
            rule()
            self.drop(*arrays)

    def arrive(self, x: Sized, gradient: Sized) -> None:
        """The first gradient of x is held as it came, later ones are added to it."""
        if x not in self.flowing:
            self.flowing[x] = gradient
        elif self.flowing[x].holders == 1:
            self.drop(gradient)
        else:  # it is somebody else's
            self.drop(self.flowing[x])
            self.flowing[x] = gradient

    def train(self, p: Any) -> None:
        """The gradient of a parameter, if it is trained, stays."""
        if p is not None and p.requires_grad and id(p) not in self.trained:
            self.trained[id(p)] = self.new(p.data.size * p.data.itemsize)

    # The ops.
    def linear(self, layer: Any, x: Sized) -> Sized:
        base, adapters = parts(layer)
        n, (d, k) = self.n, base.W.shape
        own, b = base.W.requires_grad, getattr(base, "b", None)
        wide = d * k * self.size * (base.W.data.itemsize < self.size)  # W, if it is stored narrower
        kinds: list[tuple[str, Sized]] = []
        grad = x.grad or own or (b is not None and b.requires_grad)
        for adapter in adapters:
            A, B = adapter.A.requires_grad, adapter.B.requires_grad
            if adapter.training and adapter.dropout:
                masks = [self.new(n * k * self.size) for on in (x.grad, A) if on]
                kinds += [("dropout", mask) for mask in masks]
            elif A:
                kinds.append(("linear inputs", self.hold(x)))
            if B:
                kinds.append(("lora", self.new(n * adapter.r * self.size)))
            grad = grad or A or B
            if grad and self.half:  # A and B, rounded
                kinds.append(("lora", self.new((k + d) * adapter.r * self.size)))
        if own:
            kinds.append(("linear inputs", self.hold(x)))
        y = self.new(n * d * self.size, grad)
        self.moment(wide + y.nbytes * bool(adapters))  # the update, before it is added

        def rule() -> None:
            g = self.flowing.pop(y)
            self.train(b)
            self.train(base.W)
            for adapter in adapters:
                self.train(adapter.B)
                self.train(adapter.A)
            if x.grad:
                dx = self.new(x.nbytes)
                self.moment(wide + x.nbytes * bool(adapters))
                self.arrive(x, dx)
            self.drop(g)

        if grad:
            for kind, array in kinds:
                self.record(kind, [array], lambda: None)
            self.record("linear inputs", [], rule)
        self.drop(*(array for _, array in kinds))
        return y

    def norm(self, layer: LayerNorm, x: Sized) -> Sized:
        normal = self.new(self.n * self.d * self.wide)
        rate = self.new((self.n + self.d) * self.wide)
        grad = x.grad or layer.g.requires_grad or layer.b.requires_grad
        y = self.new(x.nbytes, grad)
        if self.half:
            self.moment(2 * normal.nbytes)  # x and y, not yet rounded

        def rule() -> None:
            g = self.flowing.pop(y)
            self.train(layer.b)
            if layer.g.requires_grad:
                self.moment(normal.nbytes)
            self.train(layer.g)
            if x.grad:
                dx = self.new(x.nbytes)
                self.moment(self.pieces(self.n * self.d) + normal.nbytes * self.half)
                self.arrive(x, dx)
            self.drop(g)

        if grad:
            on = [normal] * (x.grad or layer.g.requires_grad) + [rate] * x.grad
            self.record("layer_norm", on, rule)
        self.drop(normal, rate)
        return y

    def attend(self, q: Sized, k: Sized, v: Sized) -> Sized:
        heads, size, n = self.model.config.n_heads, self.wide, self.tokens
        side, d_head, rows = min(n, current().queries), self.d // heads, self.batch * heads * n
        ends = [min(i + side, n) for i in range(0, n, side)]
        blocks = [(end - i * side, end) for i, end in enumerate(ends)]  # queries, keys
        sequences, each = tasks(self.batch, heads, side * n)[0]  # what is done together
        at_once = min(sequences.stop, self.batch) * each.stop * size
        turned, largest = at_once * n * d_head, at_once * max(i * j for i, j in blocks)
        products = at_once * max((2 * i + j) * d_head for i, j in blocks)
        keep = self.tape is not None and n <= 512
        half, whole = self.half, self.widened(q)
        out = self.new(q.nbytes, q.grad or k.grad or v.grad)
        own = [self.new(whole) for _ in "qkvo"] if half else [*map(self.hold, (q, k, v, out))]
        beside = self.new((2 * rows + side * side) * size)  # two numbers a row; the mask
        weights = self.new(self.batch * heads * sum(i * j for i, j in blocks) * size * keep)
        self.moment(turned + at_once * side * d_head + largest * (not keep))

        def rule() -> None:
            g = self.flowing.pop(out)
            widened = self.new(whole * half)
            three = [self.new(whole) for _ in range(3)]
            if keep:  # the weights of a block go when it is done: the first blocks need the most
                self.moment(turned + at_once * blocks[0][0] * blocks[0][1] + products)
            else:
                self.moment(2 * turned + 2 * largest + products)
            if half:
                halves = [self.new(q.nbytes) for _ in range(3)]
                self.drop(*three)
                three = halves
            for x, dx in zip((v, k, q), three):
                if x.grad:
                    self.arrive(x, dx)
                else:
                    self.drop(dx)
            self.drop(g, widened)

        if out.grad:
            self.record("attention", [*own, beside, weights], rule)
        self.drop(*own, beside, weights)
        return out

    def gelu(self, x: Sized) -> Sized:
        half, whole = self.half, self.widened(x)
        self.moment((3 * whole + x.nbytes) * half)  # x, phi and y, y being rounded
        y = self.times("gelu", x)  # its slope
        if x.grad and self.tape is not None and self.on_host:  # a device has them in registers
            self.moment(2 * self.pieces(x.nbytes // self.size) + (2 * whole - x.nbytes) * half)
        return y

    def dropped(self, layer: Dropout, x: Sized) -> Sized:
        if not (layer.training and layer.rate):
            return x
        y = self.times("dropout", x)  # its mask
        self.drop(x)
        return y

    def times(self, kind: str, x: Sized) -> Sized:
        """An elementwise op whose gradient is g times something kept, as large as x."""
        factor, y = self.new(x.nbytes), self.new(x.nbytes, x.grad)

        def rule() -> None:
            g = self.flowing.pop(y)
            self.arrive(x, self.new(x.nbytes))
            self.drop(g)

        if x.grad:
            self.record(kind, [factor], rule)
        self.drop(factor)
        return y

    def add(self, x: Sized, y: Sized) -> Sized:
        out = self.new(max(x.nbytes, y.nbytes), x.grad or y.grad)

        def rule() -> None:
            g = self.flowing.pop(out)
            for part in (y, x):
                if part.grad and part.nbytes == out.nbytes:
                    self.arrive(part, self.hold(g))
                elif part.grad:
                    self.arrive(part, self.new(part.nbytes))
            self.drop(g)

        if out.grad:
            self.record("add", [], rule)
        return out

    def table(self, layer: Any, rows: int, some: bool) -> Sized:
        """Rows of a table: some, by their ids, or those of a slice, which are no copy."""
        base, adapters = parts(layer)
        grad = base.W.requires_grad or any(a.A.requires_grad or a.B.requires_grad for a in adapters)
        copied = some or bool(adapters) or base.W.data.itemsize < self.size
        out = self.new(rows * self.d * self.size * copied, grad)
        own = [self.new(rows * INTEGER * (some and not self.on_host))]
        narrow = [self.new(rows * a.r * self.size * some) for a in adapters if a.B.requires_grad]

        def rule() -> None:
            g = self.flowing.pop(out)
            for adapter in adapters:
                self.train(adapter.A)
                self.train(adapter.B)
            if base.W.requires_grad:
                n = base.W.shape[0]
                different = n * (1 - (1 - 1 / n) ** rows)  # of random ids
                scratch = (rows + 2 * different) * some
                self.moment((n + scratch) * self.d * self.size)
                self.train(base.W)
            self.drop(g)

        if grad:
            self.record("embedding", own, rule)
            self.record("lora", narrow, lambda: None)
        self.drop(*own, *narrow)
        return out

    # The model.
    def block(self, block: Any, x: Sized) -> Sized:
        attn, h = block.attn, self.norm(block.ln1, x)
        q, k, v = (self.linear(layer, h) for layer in (attn.q, attn.k, attn.v))
        mixed = self.attend(q, k, v)
        y = self.linear(attn.o, mixed)
        self.drop(mixed, q, k, v, h)
        y = self.dropped(block.drop, y)
        middle = self.add(x, y)
        self.drop(y)
        h = self.norm(block.ln2, middle)
        up = self.linear(block.mlp.up, h)
        wide = self.gelu(up)
        self.drop(up)
        y = self.linear(block.mlp.down, wide)
        self.drop(wide, h)
        y = self.dropped(block.drop, y)
        out = self.add(middle, y)
        self.drop(y, middle)
        return out

    def recomputed(self, block: Any, x: Sized) -> Sized:
        """As recompute.py does it: the tape gets x alone, and the rule walks the block anew."""
        if not (x.grad or any(p.requires_grad for p in block.parameters())):
            return self.block(block, x)
        tape, self.tape = self.tape, None
        y = self.block(block, x)
        self.tape, y.grad = tape, True

        def rule() -> None:
            g = self.flowing.pop(y)
            tape, self.tape = self.tape, []
            out = self.block(block, x)
            self.flowing[out] = self.hold(g)
            self.drop(out)
            self.backward()
            self.drop(g)
            self.tape = tape

        self.record("recompute", [x], rule)
        return y

    def forward(self) -> Sized:
        model = self.model
        tok, pos = self.table(model.tok, self.n, True), self.table(model.pos, self.tokens, False)
        x = self.add(tok, pos)
        self.drop(tok, pos)
        x = self.dropped(model.drop, x)
        for block in model.blocks:
            y = self.recomputed(block, x) if model.recompute else self.block(block, x)
            self.drop(x)
            x = y
        h = self.norm(model.ln_f, x)
        logits = self.linear(model.tok, h)
        self.drop(h, x)
        p = self.new(self.widened(logits))
        beside = self.new(self.wide + 2 * self.n * (self.wide + INTEGER))
        loss = self.new(0, logits.grad)
        self.moment(p.nbytes * self.half)  # the logits, widened

        def rule() -> None:
            self.drop(self.flowing.pop(loss))
            self.arrive(logits, self.new(logits.nbytes) if self.half else self.hold(p))

        if loss.grad:
            self.record("cross_entropy", [p, beside], rule)
        self.drop(logits, p, beside)
        return loss
